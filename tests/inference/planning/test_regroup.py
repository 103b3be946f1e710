"""Joint variables, one-hot groups, masks and terminal states: the same problem in other variables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lmppl.errors import BadArgument
from lmppl.inference.planning import (
    CPT,
    ActionCost,
    Allowed,
    FactoredMDP,
    Reward,
    inference_value,
    plan,
)
from lmppl.inference.planning.factors import factors_of
from lmppl.inference.planning.kinds import stages_value
from lmppl.inference.planning.regroup import with_end
from lmppl.inference.planning.vilp import bound

pytest.importorskip("scipy")


def network(seed: int, timing: str = "state_action", **more: Any) -> FactoredMDP:
    rng = np.random.default_rng(seed)
    names, a = ["x", "y", "z"], 3
    cpts = {
        n: CPT([n, names[(i + 1) % 3]], rng.dirichlet(np.ones(2), (2, 2, a)))
        for i, n in enumerate(names)
    }
    table = rng.normal(size=(2, 2, a) if timing == "state_action" else (2, 2))
    rewards: list[Reward | ActionCost] = [Reward(["z", "x"], table)]
    if "terminal" not in more or timing == "state_action":
        rewards.append(ActionCost(rng.normal(size=a)))
    return FactoredMDP(dict.fromkeys(names, 2), a, cpts, rewards, timing=timing, **more)


@pytest.mark.parametrize("group", [["x", "y"], ["z", "x"], ["x", "y", "z"]])
def test_merging_changes_no_value(group: list[str]) -> None:
    for seed in range(10):
        mdp = network(seed, initial={"y": 1})
        joint = mdp.merge(group)
        assert joint.size == mdp.size and len(joint.states) == 4 - len(group)
        for risk in (0.0, 1.0, -1.0):
            assert inference_value(joint, 3, risk=risk) == pytest.approx(
                inference_value(mdp, 3, risk=risk), abs=1e-10
            )


def test_a_merged_problem_takes_states_by_their_old_names() -> None:
    mdp = network(0).merge(["x", "y"])
    assert mdp.full({"x": 1})["x+y"] == (1, 0) and mdp.full({"y": 1, "z": 1}) == {
        "x+y": (0, 1),
        "z": 1,
    }
    assert mdp.merge(["x+y", "z"]).size == 8


def walk(k: int) -> FactoredMDP:
    """A position as k flags; it moves right, and falls off the end."""
    names = [f"at{i}" for i in range(k)]
    cpts = {}
    for i, n in enumerate(names):
        if i == 0:
            cpts[n] = CPT([n], [[[1, 0], [1, 0]], [[0, 1], [1, 0]]])
        else:
            table = np.zeros((2, 2, 2, 2))
            table[..., 0] = 1.0
            table[:, 1, 0] = [0, 1]
            table[1, :, 1] = [0.2, 0.8]
            cpts[n] = CPT([names[i - 1], n], table)
    rewards: list[Reward | ActionCost] = [Reward([names[-1]], [0, 1]), ActionCost([0, 0.01])]
    return FactoredMDP(
        dict.fromkeys(names, 2), ["stay", "go"], cpts, rewards, initial={names[0]: 1}
    )


def test_a_one_hot_group_becomes_one_variable() -> None:
    flags = walk(4)
    one = FactoredMDP(
        flags.states, flags.actions, flags.transitions, flags.rewards, initial=flags.initial,
        one_hot=[list(flags.states)],
    )  # fmt: skip
    assert one.size == 5 and flags.size == 16
    assert inference_value(one, 6, risk=0.0) == pytest.approx(inference_value(flags, 6, risk=0.0))
    # with one variable the linear bound is tight; with flags it is not
    exact = inference_value(one, 6, risk=0.0)
    assert bound(factors_of(one, 6)).value == pytest.approx(exact, abs=1e-7)
    assert bound(factors_of(flags, 6)).value >= exact - 1e-7


def test_flags_that_are_on_together_are_no_group() -> None:
    both = FactoredMDP({"a": 2, "b": 2}, 1, {n: CPT([], [[0.5, 0.5]]) for n in "ab"})
    with pytest.raises(BadArgument, match="can be on together"):
        FactoredMDP(both.states, 1, both.transitions, one_hot=[["a", "b"]])


@pytest.mark.parametrize("timing", ["state_action", "state", "successor"])
def test_terminal_states_as_a_variable(timing: str) -> None:
    """The factored form with a flag has the value of the table with its own rule."""
    for seed in range(10):
        mdp = network(seed, timing, terminal=[{"x": 1, "y": 1}], initial={"z": 1})
        flat = mdp.flat()
        assert len(flat.terminal) == 2
        flagged = with_end(mdp)
        assert not flagged.terminal and "(end)" in flagged.states
        for risk in (0.0, 0.7):
            assert stages_value(flagged.flat().stages(4), "planning", risk) == pytest.approx(
                stages_value(flat.stages(4), "planning", risk), abs=1e-10
            )
        if timing != "state":
            continue
        value = inference_value(mdp, 4, risk=0.0)
        assert bound(factors_of(mdp, 4)).value >= value - 1e-7


def test_masks_of_states_are_obeyed() -> None:
    """An action that is barred where x = 1: exact in the table, by a penalty in the factors."""
    pytest.importorskip("jax")
    for seed in range(5):
        barred = np.ones((2, 3), bool)
        barred[1, [0, 2]] = False
        mdp = network(seed, masks=[Allowed(["x"], barred)], initial={"x": 1})
        found = plan(mdp, horizon=3)
        assert found.action == 1
        assert found.policy(1, {"x": 1})[1] == 1.0
        free = plan(network(seed, initial={"x": 1}), horizon=3)
        assert found.value <= free.value + 1e-9
        limit = bound(factors_of(mdp, 3))
        assert limit.value >= found.value - 1e-7 and limit.action_probs.argmax() == 1


def test_where_there_is_no_factored_form() -> None:
    barred = Allowed(["x"], np.eye(2, 3, dtype=bool) | True)
    with pytest.raises(BadArgument, match="no factored form"):
        factors_of(network(0, "state", masks=[barred]), 2)
    costly = FactoredMDP(
        {"x": 2}, 2, {"x": CPT(["x"], np.eye(2))}, [Reward(["x"], [0, 1]), ActionCost([0, 1])],
        timing="state", terminal=[{"x": 1}],
    )  # fmt: skip
    with pytest.raises(BadArgument, match="no factored form"):
        factors_of(costly, 2)
    assert inference_value(costly, 3, risk=0.0) == pytest.approx(0.0)
