"""Moves of a program as a small problem: tables from traces, routing against its known optimum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lmppl import Bernoulli, Categorical, Uniform, deterministic, program, reward, sample
from lmppl.errors import BadArgument
from lmppl.inference import Enumerate, Forward, infer
from lmppl.inference.planning import plan_policy
from lmppl.inference.planning.moves import moves_of

SKILL, COST = {"small": 0.6, "large": 0.9}, {"small": 0.05, "large": 0.3}


@program
def route(law: Callable[[int, Any], Any]) -> None:
    """Ask a small model, look whether it is sure, then stop or ask the large one."""
    state = "new"
    for t in range(2):
        deterministic("state", state)
        move = sample("move", law(t, state) if state == "new" else law(t, state))
        if move == "stop":
            reward("right", state == "sure")
            return
        reward("cost", -COST[move])
        right = sample("right", Bernoulli(SKILL[move]))
        if move == "large" or t == 1:
            reward("answered", right)
            return
        state = "sure" if right else "unsure"


def anything(t: int, state: Any) -> Any:
    return Uniform(["small", "large"]) if state == "new" else Uniform(["stop", "large", "small"])


def test_tables_of_all_runs_give_the_optimum() -> None:
    """Small first: sure 60 % of the time and done, else ask the large one for .9 - .3."""
    pytest.importorskip("jax")
    found = plan_policy(infer(route, anything, engine=Enumerate()))
    optimum = -0.05 + 0.6 * 1.0 + 0.4 * (0.9 - 0.3)
    assert found.value == pytest.approx(optimum)
    assert found.plan.action == "small"
    assert found.plan.policy(1, "unsure")["large"] == found.plan.policy(1, "sure")["stop"] == 1.0

    post = infer(route, found.law, engine=Enumerate())
    earned = sum(w * sum(m.reward for m in moves_of(t)) for t, w in zip(post.traces, post.weights, strict=True))  # fmt: skip
    assert earned == pytest.approx(optimum)


def test_from_random_runs() -> None:
    pytest.importorskip("jax")
    found = plan_policy(infer(route, anything, engine=Forward(400), seed=1))
    assert found.plan.action == "small" and found.value == pytest.approx(0.79, abs=0.1)


def test_what_was_never_tried_is_not_allowed() -> None:
    pytest.importorskip("jax")

    def small_only(t: int, state: Any) -> Any:
        return Categorical({"small": 1}) if state == "new" else Categorical({"stop": 1})

    found = plan_policy(infer(route, small_only, engine=Enumerate()))
    assert found.tried["unsure", "stop"] == pytest.approx(0.4 * 2)
    assert found.plan.policy(1, "unsure") == {"small": 0.0, "stop": 1.0}
    assert found.value == pytest.approx(-0.05 + 0.6)


def test_traces_without_moves() -> None:
    with pytest.raises(BadArgument, match="no trace has a site 'move'"):
        plan_policy(infer(lambda: sample("x", Bernoulli(0.5)), engine=Enumerate()))
    assert np.isclose(COST["small"], 0.05)
