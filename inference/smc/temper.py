"""Tempered resampling: ancestors drawn by w^{1/T}, so that early differences count less.

While progress = t / steps is below `early_phase` and ESS / N below `ess_threshold`,

    rule "ess":      T = max(1, N / ESS · (1 - progress))
    rule "entropy":  T = max(1, 1 / (H + (1 - H) · progress)),  H = entropy of the weights / log N
    rule "base":     T = max(1, 2 - progress)

The factor w^{1 - 1/T} that resampling has not used stays in the weight of the child, so the
evidence stays unbiased. `biased=True` drops it, as the entropic particle filter was published.

Reference: the entropic particle filter of its_hub, which has no other description.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lmppl.arguments import check_integers, check_numbers
from lmppl.errors import BadArgument
from lmppl.types import Floats
from lmppl.weights import ess, normalize

RULES = ("ess", "entropy", "base")


@dataclass(frozen=True)
class Temper:
    """When and how much resampling is tempered.

    Args:
        rule: of T, above.
        steps: barriers of a whole run, by which progress is measured.
        ess_threshold: T = 1 where ESS / N is at least this.
        early_phase: T = 1 where progress is at least this.
        biased: drop what resampling has not used.

    >>> import numpy as np
    >>> Temper("base", steps=10).temperature(np.log([0.98, 0.01, 0.01]), 1)
    1.9
    """

    rule: str = "ess"
    steps: int = 40
    ess_threshold: float = 0.5
    early_phase: float = 0.5
    biased: bool = False

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.rule not in RULES:
            raise BadArgument(
                f"no rule of tempering is called {self.rule!r}",
                fix=f"use one of {', '.join(RULES)}",
            )
        check_integers("Temper", steps=self.steps)
        check_numbers(
            "Temper", 0.0, 1.0, ess_threshold=self.ess_threshold, early_phase=self.early_phase
        )

    def temperature(self, v: Floats, step: int) -> float:
        """T after `step` barriers, for log-weights v [N]."""
        n, size, progress = len(v), ess(v), step / self.steps
        if size >= self.ess_threshold * n or progress >= self.early_phase or n < 2:
            return 1.0
        if self.rule == "ess":
            return max(1.0, n / size * (1.0 - progress))
        if self.rule == "base":
            return max(1.0, 2.0 - progress)
        w = normalize(v)
        w = w[w > 0.0]
        entropy = max(-float(w @ [math.log(x) for x in w.tolist()]) / math.log(n), 1e-6)
        return max(1.0, 1.0 / (entropy + (1.0 - entropy) * progress))
