"""Mixtures of distributions, of any kinds: P(x) = Σ_k w_k P_k(x)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from lmppl.distributions import (
    Categorical,
    Distribution,
    after,
    as_distribution,
    gather,
    score_or_zero,
)
from lmppl.errors import items_of
from lmppl.jobs import Draw, Env, Step
from lmppl.lm.base import LanguageModel
from lmppl.random import fold, hash_text
from lmppl.types import Key
from lmppl.weights import NEG_INF, log_sum_exp


class Mixture(Distribution):
    """P(x) = Σ_k w_k P_k(x).

    Args:
        components: a mapping from distribution to weight, or a sequence with `weights`.
        weights: non-negative numbers, one per component; equal when left out.

    A draw picks a component and draws from it. If that component draws by a proposal, its ratio
    log p_k - log q_k is the weight of the draw: proper on (k, x), hence on x.
    """

    kind = "Mixture"
    __slots__ = ("components", "picker")

    def __init__(
        self,
        components: Mapping[Distribution, float] | Sequence[Distribution],
        weights: Sequence[float] | None = None,
    ) -> None:
        """Check the weights."""
        if isinstance(components, Mapping):
            weights = list(components.values())
        given = items_of(
            components, "Mixture needs distributions", "write Mixture([first, second], [0.3, 0.7])"
        )
        self.components = tuple(as_distribution(c, "Mixture") for c in given)
        self.picker = Categorical(list(range(len(self.components))), weights)

    def draw(self, key: Key, env: Env) -> Step[Draw]:
        """Pick, draw, then score under the other components."""
        k = int(self.picker.draw(fold(key, "component"), env).value)
        step: Step[Draw] = after(
            self.components[k].draw(fold(key, "value"), env), lambda d: self._drawn(k, d, env)
        )
        return step

    def _drawn(self, k: int, drawn: Draw, env: Env) -> Step[Draw]:
        if drawn.logp == NEG_INF:  # an impossible string of its component
            return Draw(drawn.value, NEG_INF, 0.0, drawn.restricted)
        others = [c for j, c in enumerate(self.components) if j != k]

        def done(scores: list[float]) -> Draw:
            scores.insert(k, drawn.logp)
            logp = self._mix(scores)
            return Draw(drawn.value, logp, logp - (drawn.logp - drawn.logq), drawn.restricted)

        step: Step[Draw] = gather(
            [partial(score_or_zero, c, drawn.value, env) for c in others], done
        )
        return step

    def parts(self) -> Iterator[Distribution]:
        """Those of its components."""
        for component in self.components:
            yield from component.parts()

    def bound(self, models: Mapping[str, LanguageModel]) -> Mixture:
        """With every component bound."""
        new = copy.copy(self)
        new.components = tuple(c.bound(models) for c in self.components)
        return new

    def _mix(self, scores: Sequence[float]) -> float:
        return log_sum_exp(
            [s + float(w) for s, w in zip(scores, self.picker.log_weights, strict=True)]
        )

    def score(self, value: Any, env: Env) -> Step[float]:
        """Score under every component."""
        step: Step[float] = gather(
            [partial(score_or_zero, c, value, env) for c in self.components], self._mix
        )
        return step

    def support(self, env: Env) -> Step[list[tuple[Any, float]]]:
        """The union of the supports; one text in several tokenisations is as many entries."""

        def done(lists: list[list[tuple[Any, float]]]) -> list[tuple[Any, float]]:
            found: dict[Any, dict[Any, tuple[Any, list[float]]]] = {}
            for pairs, w in zip(lists, self.picker.log_weights, strict=True):
                for value, logp in pairs:
                    ids = getattr(value, "token_ids", None)
                    same = found.setdefault(value, {})
                    own = None if ids is None else tuple(ids)
                    same.setdefault(own, (value, []))[1].append(logp + float(w))
            for same in found.values():
                if len(same) == 2 and None in same:  # a text that another component lists too
                    _, terms = same.pop(None)
                    next(iter(same.values()))[1].extend(terms)
            return [
                (v, log_sum_exp(terms)) for same in found.values() for v, terms in same.values()
            ]

        step: Step[list[tuple[Any, float]]] = gather(
            [partial(c.support, env) for c in self.components], done
        )
        return step

    @property
    def fingerprint(self) -> int:
        """Of components and weights."""
        return fold(
            hash_text(self.kind), self.picker.fingerprint, *(c.fingerprint for c in self.components)
        )

    def __repr__(self) -> str:
        pairs = zip(self.components, self.picker.log_weights, strict=True)
        return f"Mixture({{{', '.join(f'{c!r}: {math.exp(w):.4g}' for c, w in pairs)}}})"
