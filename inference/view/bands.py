"""Numbers as answers of a picture: those that hardly repeat fall into intervals of one width."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from lmppl.inference.results.estimates import Marginal
from lmppl.inference.results.overview import as_numbers, quantile
from lmppl.inference.results.summary import answers, hashable

if TYPE_CHECKING:
    from lmppl.inference.results.posterior import Posterior

MOST = 12
"""Different numbers that are still answers of their own."""
BANDS = 6
"""About how many intervals hold nine tenths of the weight."""


@dataclass(frozen=True)
class Bands:
    """Intervals [k · step, (k + 1) · step) for k from `low` to `high`; the outermost are open.

    >>> bands = Bands(step=0.5, low=2, high=6)
    >>> [bands(x) for x in (0.3, 1.7, 99.0)]
    ['below 1.5', '1.5 to 2', 'from 3']
    """

    step: float
    low: int
    high: int

    def __call__(self, value: Any) -> Any:
        """Its interval, as text; what is no number is itself."""
        if not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
            return hashable(value)
        k = min(max(math.floor(value / self.step + 1e-9), self.low), self.high)
        return self.names[k - self.low]

    @cached_property
    def names(self) -> list[str]:
        """All of them, in order."""
        edges = [f"{k * self.step:.10g}" for k in range(self.low, self.high + 1)]
        inner = [f"{a} to {b}" for a, b in pairwise(edges[1:])]
        return [f"below {edges[1]}", *inner, f"from {edges[-1]}"]


def bands_of(posterior: Posterior) -> Bands | None:
    """Intervals for what the program returned; None where its values are answers as they are."""
    results, weights = posterior.values(), posterior.weights
    x = as_numbers(results, weights)
    if x is None or x.dtype != np.float64:
        return None
    alive = x[weights > 0]
    if len(np.unique(alive)) <= MOST or not np.isfinite(alive).all():
        return None
    low, high = quantile(x, weights, 0.05), quantile(x, weights, 0.95)
    if low == high:
        return None
    raw = (high - low) / BANDS
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw * (1 - 1e-9))
    return Bands(step, math.floor(low / step) - 1, math.floor(high / step) + 1)


def named_answers(posterior: Posterior) -> tuple[Marginal, Callable[[Any], Any]]:
    """The law of the answers as a picture shows it, and which of them a result is."""
    bands = bands_of(posterior)
    if bands is None:
        return answers(posterior), hashable
    return posterior.marginal(lambda t: bands(t.result)), bands


def in_order(found: Marginal, name: Callable[[Any], Any]) -> list[tuple[Any, float]]:
    """The answers as they are listed: intervals from left to right, others by probability."""
    if isinstance(name, Bands):
        return [(v, found[v]) for v in name.names if v in found]
    return list(found.items())
