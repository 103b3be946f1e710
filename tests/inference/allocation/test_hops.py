"""Routing in hops: the plan against every policy, greedy and fixed chains below it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from lmppl.errors import BadArgument
from lmppl.inference.allocation.hops import (
    STOP,
    _followed,
    greedy_hops,
    hop_table,
    plan_hops,
    single_model,
)


def instance(seed: int, models: int = 3, classes: int = 4) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(classes, 0.6), size=(models, classes))
    return table, np.sort(rng.uniform(0, 1, classes)), rng.uniform(0.02, 0.15, models)


@pytest.mark.parametrize("seed", range(5))
def test_the_plan_is_the_best_of_all_policies(seed: int) -> None:
    table, q, c = instance(seed, models=2, classes=2)
    plan = plan_hops(table, q, c, hops=2, trade=0.8)
    options = list(itertools.product((STOP, 0, 1), repeat=2))
    worth = [
        _followed(table, q, c, 0.8, [np.array(last), np.array(first)]).values[2]
        for last in options
        for first in options
    ]
    assert np.allclose(np.max(worth, axis=0), plan.values[2], atol=1e-12)


def test_the_value_is_what_following_the_plan_earns() -> None:
    table, q, c = instance(7)
    plan = plan_hops(table, q, c, hops=3)
    rng, earned = np.random.default_rng(0), []
    for _ in range(20_000):
        s, paid = 0, 0.0
        for left in (3, 2, 1):
            m = plan(s, left)
            if m == STOP:
                break
            paid += c[m]
            s = int(rng.choice(4, p=table[m, s]))
        earned.append(q[s] - paid)
    se = np.std(earned) / len(earned) ** 0.5
    assert abs(np.mean(earned) - plan.values[3, 0]) < 4.9 * se  # z-test at 1e-6


def test_greedy_and_one_model_stay_behind() -> None:
    """300 random instances: never better than the plan, behind it in more than half."""
    plans, greedy, single = (np.zeros(300) for _ in range(3))
    for i in range(300):
        table, q, c = instance(100 + i)
        plans[i] = plan_hops(table, q, c, hops=4).values[4, 0]
        greedy[i] = greedy_hops(table, q, c, hops=4).values[4, 0]
        single[i] = single_model(table, q, c, hops=4)
    assert (plans >= greedy - 1e-12).all() and (plans >= single - 1e-12).all()
    assert np.mean(plans > greedy + 1e-9) > 0.5
    assert plans.mean() > greedy.mean() > single.mean()


def test_a_table_from_logs() -> None:
    table = hop_table([(0, 0, 1)] * 7 + [(0, 0, 0)] * 2, models=1, classes=2)
    assert table[0].tolist() == [[0.3, 0.7], [0.0, 1.0]]
    with pytest.raises(BadArgument, match="never left"):
        hop_table([], 1, 2, prior=0.0)
    with pytest.raises(BadArgument, match="probabilities"):
        plan_hops(np.ones((1, 2, 2)), np.zeros(2), np.zeros(1), hops=1)
    with pytest.raises(BadArgument, match="T \\[models, S, S\\]"):
        plan_hops(table, np.zeros(3), np.zeros(1), hops=1)
    with pytest.raises(BadArgument, match="hops must be a positive integer"):
        plan_hops(table, np.zeros(2), np.zeros(1), hops=0)
