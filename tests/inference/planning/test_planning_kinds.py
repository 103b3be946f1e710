"""The five kinds of inference: closed forms against enumeration, and their order."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from lmppl.errors import BadArgument
from lmppl.inference.planning.kinds import KINDS, as_table, inference_value
from lmppl.inference.planning.mdp import CPT, ActionCost, FactoredMDP, Reward, TabularMDP

T1 = TabularMDP(
    ["start", "left", "right", "middle", "won", "lost", "fair"],
    2,
    [
        [[0, 0.5, 0.5, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0]],
        [[0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1, 0]],
        [[0, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 0, 0]],
        [[0, 0, 0, 0, 0, 0, 1]] * 2,
        *[[[float(i == j) for j in range(7)]] * 2 for i in (4, 5, 6)],
    ],
    [0, 0, 0, 0, 1, 0, 0.6],
    timing="successor",
)


def random_mdp(seed: int, states: int = 3, actions: int = 2, sharp: float = 1.0) -> TabularMDP:
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(states, sharp), (states, actions))
    return TabularMDP(
        states, actions, table, rng.normal(size=(states, actions)), final=rng.normal(size=states),
        initial=rng.dirichlet(np.ones(states)),
    )  # fmt: skip


def by_enumeration(mdp: TabularMDP, horizon: int, kind: str, lam: float) -> float:
    """Every path and every sequence of actions, no recursion."""
    st = mdp.stages(horizon)
    _, s, a = st.reward.shape
    rows = []
    for seq in itertools.product(range(a), repeat=horizon):
        terms = []
        for path in itertools.product(range(s), repeat=horizon + 1):
            p, r = st.initial[path[0]], st.final[path[-1]]
            for t in range(horizon):
                p *= st.transition[path[t], seq[t], path[t + 1]]
                r += st.reward[t, path[t], seq[t]]
            terms.append(p * np.exp(lam * r))
        rows.append(terms)
    table = np.array(rows)
    inside = {
        "marginal": table.sum(),
        "marginal_uniform": table.sum() / a**horizon,
        "mmap": table.sum(axis=1).max(),
        "map": table.max(),
    }
    return float(np.log(inside[kind]) / lam)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "planning"])
def test_closed_forms_equal_enumeration(kind: str) -> None:
    for seed in range(20):
        mdp = random_mdp(seed)
        for lam in (0.3, 2.0):
            got = inference_value(mdp, 3, kind, risk=lam)
            assert got == pytest.approx(by_enumeration(mdp, 3, kind, lam), abs=1e-10)


def test_the_order_of_the_kinds() -> None:
    """200 random problems; map and marginal_uniform come in both orders."""
    above = []
    for seed in range(200):
        mdp = random_mdp(seed, sharp=(0.1, 1.0)[seed % 2])
        v = {k: inference_value(mdp, 3, k, risk=(0.5, 3.0)[seed // 2 % 2]) for k in KINDS}
        assert v["marginal"] >= v["planning"] - 1e-12
        assert v["planning"] >= v["mmap"] - 1e-12
        assert v["mmap"] >= max(v["map"], v["marginal_uniform"]) - 1e-12
        above.append(v["map"] > v["marginal_uniform"])
    assert 0 < sum(above) < 200, "neither order may be asserted"


def test_without_chance_three_kinds_are_one() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        table = np.eye(3)[rng.integers(0, 3, (3, 2))]
        mdp = TabularMDP(3, 2, table, rng.normal(size=(3, 2)))
        v = {k: inference_value(mdp, 4, k, risk=1.3) for k in KINDS}
        assert v["planning"] == pytest.approx(v["mmap"], abs=1e-9)
        assert v["planning"] == pytest.approx(v["map"], abs=1e-9)
        assert v["marginal"] > v["planning"] + 1e-3


@pytest.mark.parametrize(
    ("kind", "lam", "expected"),
    [
        ("planning", -1.0, 1.0),
        ("planning", 0.0, 1.0),
        ("planning", 3.0, 1.0),
        ("mmap", 0.0, 0.6),
        ("mmap", 0.8, 0.6),
        ("mmap", 1.0, 0.620115),
        ("mmap", 3.0, 0.785147),
        ("map", 1.0, 0.6),
        ("map", 1.8, 0.614918),
        ("map", 3.0, 0.768951),
        ("marginal", 1.0, 1.996402),
        ("marginal_uniform", 1.0, 0.610108),
    ],
)
def test_the_reactive_task(kind: str, lam: float, expected: float) -> None:
    assert inference_value(T1, 2, kind, risk=lam) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("lam", "expected"), [(-1.0, 0.379885), (0.1, 0.512495), (1.0, 0.620115), (5.0, 0.862714)]
)
def test_the_sign_of_risk(lam: float, expected: float) -> None:
    """A lottery of 1 or 0: λ > 0 likes it, λ < 0 does not."""
    lottery = TabularMDP(2, 1, [[[0.5, 0.5]]] * 2, [0, 1], timing="successor")
    assert inference_value(lottery, 1, risk=lam) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "switch"),
    [("mmap", 0.8221632), ("marginal", 0.8221632), ("map", np.log(2) / 0.4), ("planning", 0.0)],
)
def test_where_the_first_action_becomes_risky(kind: str, switch: float) -> None:
    """Risky is a fair coin between left and right, safe is the middle; one action is left."""
    risky = np.array([0, 0.5, 0.5, 0, 0, 0, 0])

    def gain(lam: float) -> float:
        return inference_value(T1, 1, kind, risk=lam, state=risky) - inference_value(
            T1, 1, kind, risk=lam, state="middle"
        )

    assert gain(switch + 1e-5) > 0
    assert gain(switch - 1e-5) < 0 or kind == "planning"


def test_no_risk_is_a_branch_of_its_own() -> None:
    mdp = random_mdp(3)
    at_zero = inference_value(mdp, 4, risk=0.0)
    slope = [(inference_value(mdp, 4, risk=e) - at_zero) / e for e in (1e-3, -1e-3)]
    assert slope[0] == pytest.approx(slope[1], abs=1e-2) and slope[0] > 0
    for kind in ("marginal", "map"):
        with pytest.raises(BadArgument, match="needs risk > 0"):
            inference_value(mdp, 2, kind, risk=0.0)


def test_the_conventions_of_time_differ_and_keep_costs() -> None:
    def value(timing: str, cost: float = 0.25) -> float:
        mdp = TabularMDP(2, 1, [[[0, 1]], [[0, 1]]], [1, 10], action_cost=cost, timing=timing)
        return inference_value(mdp, 2, risk=0.0)

    assert [value(t) for t in ("state_action", "state", "successor")] == [10.5, 20.5, 19.5]
    assert value("successor", 0.0) == 20.0


def test_a_terminal_state_ends_the_run() -> None:
    def value(timing: str, **more: Any) -> float:
        mdp = TabularMDP(
            ["go", "end"], 1, [[[0, 1]], [[1, 0]]], [1, 5], action_cost=0.5, timing=timing,
            terminal=["end"], **more,
        )  # fmt: skip
        return inference_value(mdp, 4, risk=0.0)

    assert value("state") == 1 - 0.5 + 5 and value("successor") == 5 - 0.5
    assert value("state_action", final=[0, 7]) == 1 - 0.5 + 7


def test_a_factored_problem_is_its_table() -> None:
    """The joint law of two variables by hand, with action costs and a reward of both."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(2), (2, 3, 2)), rng.dirichlet(np.ones(3), (3,))
    r, cost = rng.normal(size=(3, 2)), rng.normal(size=2)
    mdp = FactoredMDP(
        {"a": 2, "b": ["x", "y", "z"]}, 2, {"a": CPT(["a", "b"], p), "b": CPT(["b"], q)},
        [Reward(["b", "a"], r), ActionCost(cost)],
    )  # fmt: skip
    flat = as_table(mdp)
    for (a, b), (a2, b2) in itertools.product(itertools.product(range(2), range(3)), repeat=2):
        i, j = flat.index((a, "xyz"[b])), flat.index((a2, "xyz"[b2]))
        for u in range(2):
            assert flat.transition[i, u, j] == pytest.approx(p[a, b, u, a2] * q[b, b2])
            assert flat.reward[i, u] - flat.action_cost[i, u] == pytest.approx(r[b, a] - cost[u])


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: TabularMDP(2, 1, [[[0.5, 0.4]]] * 2, [0, 0]), "sum to 1"),
        (lambda: TabularMDP(2, 1, [[[1, 0]]] * 2, [[0], [0]], timing="state"), "states alone"),
        (lambda: TabularMDP(2, 1, [[[1, 0]]] * 2, [0, 0], allowed=[[True], [False]]), "state 1"),
        (lambda: TabularMDP(2, 1, [[[1, 0]]] * 2, [0, np.inf]), "not finite"),
        (lambda: TabularMDP(["a", "a"], 1, [[[1, 0]]] * 2, [0, 0]), "different labels"),
        (lambda: FactoredMDP({"a": 2}, 1, {"a": CPT(["b"], np.eye(2))}), "'b'"),
        (lambda: FactoredMDP({"a": 2}, 1, {}), "one CPT for each"),
        (lambda: inference_value(T1, 0), "counts actions"),
        (lambda: inference_value(T1, 1, "best"), "kind must be"),
        (lambda: inference_value(T1, 1, state="nowhere"), "nowhere"),
    ],
)
def test_errors_say_what_is_wrong(build: Any, says: str) -> None:
    with pytest.raises(BadArgument, match=says):
        build()
