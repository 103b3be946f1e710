"""Rules against the optimal-stopping dynamic programme of a Beta-Bernoulli problem.

θ ~ Beta(1, 1) is the share of the first of two answers. A sample costs c; at the stop the leader is
given, worth 1 if it is the more probable answer. The state is the pair of counts, so that the best
rule is a dynamic programme over at most N samples, and any rule's value is the same sum with its own
verdict in place of the maximum: everything here is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from lmppl.inference.stopping.criteria import BetaMajority
from lmppl.inference.stopping.rules import Rule, Threshold
from lmppl.inference.stopping.signals import (
    certainty,
    entropy,
    majority_probability,
)

MOST = 50


@cache
def lead(a: int, b: int) -> float:
    return majority_probability(max(a, b), min(a, b))


def readings(a: int, b: int) -> dict[str, Any]:
    return {
        "counts": [a, b],
        "draws": a + b,
        "entropy": entropy([a, b]) if a + b else 9.9,
        "certainty": certainty([a, b]),
    }


def value(stops: Callable[[int, int], bool] | None, cost: float) -> float:
    """The expected worth of a rule; of the best one where none is given."""
    ahead: dict[tuple[int, int], float] = {}
    for n in range(MOST, -1, -1):
        for a in range(n + 1):
            b = n - a
            now = lead(a, b)
            if n == MOST:
                ahead[a, b] = now
                continue
            p = (a + 1) / (n + 2)
            later = p * ahead[a + 1, b] + (1 - p) * ahead[a, b + 1] - cost
            if stops is None:
                ahead[a, b] = max(now, later)
            else:
                ahead[a, b] = now if stops(a, b) else later
    return ahead[0, 0]


def of_rule(rule: Rule) -> Callable[[int, int], bool]:
    """Its verdict in each state (the rules here remember nothing)."""

    @cache
    def stops(a: int, b: int) -> bool:
        return bool(rule.start().update(readings(a, b))) if a + b else False

    return stops


LEVELS = [0.6 + 0.02 * i for i in range(20)]


@pytest.mark.parametrize("cost", [0.02, 0.005, 0.001])
def test_against_the_dynamic_programme(cost: float, record_property: Any) -> None:
    """The Beta rule at its best level is within 2 % of optimal; a fixed n and certainty are not better.

    Its own statistic is the posterior that the programme uses, so what it lacks is only the horizon:
    the optimal level falls as samples get less likely to change the leader.
    """
    best = value(None, cost)
    beta = max((value(of_rule(BetaMajority(level)), cost), level) for level in LEVELS)
    fixed = max(value(of_rule(Threshold("draws", at_least=n)), cost) for n in range(1, MOST, 2))
    sure = max(
        value(of_rule(Threshold("certainty", at_least=level)), cost) for level in LEVELS[::3]
    )
    ratios = {"beta": beta[0] / best, "certainty": sure / best, "fixed": fixed / best}
    shown = ", ".join(f"{k} {v:.4f}" for k, v in ratios.items())
    record_property("figure", f"stopping, cost {cost}: {shown}; best level {beta[1]:.3f}")
    assert all(r <= 1.0 + 1e-12 for r in ratios.values()), "no rule beats the programme"
    assert ratios["beta"] >= 0.98
    assert ratios["beta"] >= ratios["fixed"] and ratios["beta"] >= ratios["certainty"]


@pytest.mark.parametrize("level", [0.75, 0.9, 0.95])
def test_the_leader_at_a_stop_is_right_with_the_level(level: float) -> None:
    """Under the uniform prior, exactly: P(right | stopped by the rule) ≥ level, at every state."""
    stops = of_rule(BetaMajority(level))
    reach = {(0, 0): 1.0}
    mass = right = 0.0
    for n in range(MOST):
        for a in range(n + 1):
            b = n - a
            p = reach.pop((a, b), 0.0)
            if not p:
                continue
            if stops(a, b):
                assert lead(a, b) >= level - 1e-12
                mass, right = mass + p, right + p * lead(a, b)
                continue
            q = (a + 1) / (n + 2)
            reach[a + 1, b] = reach.get((a + 1, b), 0.0) + p * q
            reach[a, b + 1] = reach.get((a, b + 1), 0.0) + p * (1 - q)
    assert mass > 0.7 and right / mass >= level
