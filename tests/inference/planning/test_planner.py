"""`plan`: what it returns, what it refuses, and that `auto` is not fooled."""

from __future__ import annotations

import itertools
import subprocess
import sys
import warnings

import numpy as np
import pytest

from lmppl.errors import BadArgument
from lmppl.inference.planning import (
    CPT,
    FactoredMDP,
    NotConverged,
    RecedingHorizon,
    Reward,
    TabularMDP,
    plan,
)

pytest.importorskip("jax")
pytest.importorskip("scipy")

WALK = TabularMDP(
    ["a", "b", "c"], ["left", "right"],
    [[[1, 0, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, 1]], [[0, 1, 0], [0, 0, 1]]], [0.1, 0, 1],
)  # fmt: skip


def shared(safe: float, coins: int) -> FactoredMDP:
    """Choose risky, then match all coins by one action; or safe."""
    mode, won = np.zeros((3, 2, 3)), np.zeros((3, 2, 2, 3))
    mode[0, 0, 1] = mode[0, 1, 2] = mode[1:, :, 0] = 1.0
    won[0, ..., 0] = won[2, ..., 1] = 1.0
    for coin, a in itertools.product(range(2), repeat=2):
        won[1, coin, a, 2 if a == coin else 0] = 1.0
    states, cpts, rewards = {"mode": 3}, {"mode": CPT(["mode"], mode)}, []
    for i in range(coins):
        states |= {f"c{i}": 2, f"w{i}": 3}
        cpts |= {f"c{i}": CPT([], [[0.5, 0.5]] * 2), f"w{i}": CPT(["mode", f"c{i}"], won)}
        rewards.append(Reward([f"w{i}"], [0, safe, 1]))
    return FactoredMDP(states, ["risky", "safe"], cpts, rewards, timing="state")


def test_every_method_of_a_table_agrees() -> None:
    exact, by_lp = plan(WALK, "a", 4, "dp"), plan(WALK, "a", 4, "lp")
    assert exact.action == by_lp.action == plan(WALK, "a", 4).action == "right"
    assert exact.value == pytest.approx(by_lp.value) == pytest.approx(2.1)
    assert exact.value_kind == by_lp.value_kind == "exact"
    assert exact.policy(2, "c") == by_lp.policy(2, "c") == {"left": 0.0, "right": 1.0}


def test_a_plan_is_a_policy() -> None:
    """In the reactive task the second action depends on the coin that was seen."""
    found = plan(shared(0.6, 1), horizon=2)
    assert found.value == pytest.approx(1.0) and found.action == "risky"
    for coin, action in ((0, "risky"), (1, "safe")):
        assert found.policy(1, {"mode": 1, "c0": coin})[action] == 1.0


@pytest.mark.parametrize(
    ("coins", "safe", "right"),
    [
        (1, 0.6, "risky"),
        pytest.param(2, 0.85, "safe", marks=pytest.mark.slow),
        pytest.param(2, 0.6, "risky", marks=pytest.mark.slow),
    ],
)
def test_auto_is_not_fooled(coins: int, safe: float, right: str) -> None:
    """The tables are forbidden; the baseline misses the first, the messages the second."""
    mdp = shared(safe, coins)
    found = plan(mdp, horizon=2, exact_work=0.0)
    assert found.method == "auto" and found.action == right
    assert set(found.diagnostics["candidates"]) == {"rollout", "vbp"}
    assert plan(mdp, horizon=2).action == right


def test_kinds_of_values() -> None:
    mdp = shared(0.85, 2)
    bound, base = plan(mdp, horizon=2, method="lp"), plan(mdp, horizon=2, method="rollout")
    assert (bound.value_kind, base.value_kind) == ("upper_bound", "estimate")
    assert bound.value == pytest.approx(2.0) and plan(mdp, horizon=2).value == pytest.approx(1.7)


def test_a_run_that_did_not_converge_says_so() -> None:
    found = plan(shared(0.6, 1), horizon=2, method="vbp", sweeps=1)
    assert not found.converged and found.diagnostics["sweeps"] == 1
    with pytest.warns(NotConverged, match="did not converge"):
        assert found.action in ("risky", "safe")
    rested = plan(shared(0.6, 1), horizon=2, method="vbp")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rested.converged and rested.action == "risky"


def test_risk_aversion_is_the_opposite_of_risk() -> None:
    """A lottery with mean 1 against .9 for sure."""
    bet = TabularMDP(
        ["start", "lost", "won", "sure"], ["risky", "safe"],
        [[[0, 0.5, 0.5, 0], [0, 0, 0, 1]], *[[row] * 2 for row in np.eye(4)[1:].tolist()]],
        [0, 0, 2, 0.9], timing="successor",
    )  # fmt: skip
    assert [plan(bet, horizon=1, risk_aversion=r).action for r in (-1.0, 0.0, 1.0)] == [
        "risky", "risky", "safe",
    ]  # fmt: skip


@pytest.mark.parametrize("risk", [0.0, 1.0, -1.0])
def test_a_hidden_first_state_is_not_used(risk: float) -> None:
    """A fair coin that is not seen and must be matched is worth .5; a plan for each is worth 1."""
    coin = TabularMDP(2, 2, np.full((2, 2, 2), 0.5), np.eye(2), initial=[0.5, 0.5])
    found = plan(coin, horizon=1, risk_aversion=-risk)
    worth = np.log((1 + np.exp(risk)) / 2) / risk if risk else 0.5
    assert found.value == pytest.approx(worth) and found.value_kind == "upper_bound"
    assert list(found.action_values.values()) == pytest.approx([worth, worth])
    biased = plan(coin, np.array([0.2, 0.8]), horizon=1)
    assert biased.action == 1 and biased.value == pytest.approx(0.8)


def test_receding_horizon_walks_to_the_goal() -> None:
    agent = RecedingHorizon(WALK, lookahead=3)
    state = "a"
    for remaining in (4, 3):
        state = {"left": "a", "right": {"a": "b", "b": "c", "c": "c"}[state]}[
            agent.act(state, remaining)
        ]
    assert state == "c"


def test_what_is_refused() -> None:
    for wrong in ({"method": "best"}, {"method": "vbp"}, {"method": "lp", "temperature": 1.0},
                  {"horizon": 0}, {"temperature": -1.0}):  # fmt: skip
        with pytest.raises(BadArgument):
            plan(WALK, "a", **wrong)
    with pytest.raises(BadArgument, match="times 0 to 1"):
        plan(WALK, "a", 2).policy(2, "a")


def test_importing_is_light() -> None:
    code = (
        "import sys, lmppl.inference, lmppl.inference.planning as p\n"
        "print(sorted({'jax', 'scipy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
