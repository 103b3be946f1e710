"""Problems in RDDL: formulas fold to small tables; instances have the known sizes and optima.

The formulas are tested here without the packages; the instances where they are installed.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import numpy as np
import pytest

from lmppl.errors import BadArgument
from lmppl.inference.planning import ActionCost, FactoredMDP, Reward
from lmppl.inference.planning.dp import solve
from lmppl.inference.planning.rddl import (
    NoRDDL,
    _joint,
    _tabulate,
    _terms,
    fold,
    from_rddl,
    names_in,
    probability,
    value,
)

HERE = importlib.util.find_spec("pyRDDLGym") and importlib.util.find_spec("rddlrepository")
needed = pytest.mark.skipif(not HERE, reason="the extra `rddl` is not installed")


def var(name: str) -> Any:
    return ("var", name)


def const(x: Any) -> Any:
    return ("const", x)


def test_a_guard_that_is_constant_is_folded_away() -> None:
    """Of three neighbours, one is connected: one parent is left."""
    parts = [("^", var(f"link{i}"), var(f"up{i}")) for i in range(3)]
    node = ("+", ("+", parts[0], parts[1]), parts[2])
    env = {"link0": False, "link1": True, "link2": False}
    assert names_in(fold(node, env)) == ["up1"]
    assert value(fold(node, env), {"up1": np.array([False, True])}).astype(float).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("node", "env", "left"),
    [
        (("if", var("a"), var("x"), var("y")), {"a": True}, ["x"]),
        (("|", var("a"), var("x")), {"a": True}, []),
        (("=>", var("a"), var("x")), {"a": False}, []),
        (("*", const(0.0), var("x")), {}, []),
        (("^", var("a"), var("x")), {"a": True}, ["x"]),
        (("==", var("a"), const(2)), {"a": 2}, []),
    ],
)
def test_folding(node: Any, env: dict[str, Any], left: list[str]) -> None:
    assert names_in(fold(node, env)) == left


def test_folding_keeps_the_value() -> None:
    """Random formulas: folded and then evaluated equals evaluated at once."""
    rng = np.random.default_rng(0)
    names = ["a", "b", "x", "y"]

    def formula(depth: int) -> Any:
        if depth == 0:
            return (
                var(names[rng.integers(4)]) if rng.random() < 0.7 else const(bool(rng.integers(2)))
            )
        op = ["^", "|", "~", "=>", "if", "<=>"][rng.integers(6)]
        n = {"~": 1, "if": 3}.get(op, 2)
        return (op, *(formula(depth - 1) for _ in range(n)))

    for _ in range(300):
        node = formula(4)
        at = {n: np.array(bool(rng.integers(2))) for n in names}
        known = {n: bool(at[n]) for n in ("a", "b")}
        assert bool(value(fold(node, known), at)) == bool(value(node, at))


def test_tables_of_laws() -> None:
    node = ("if", var("reset"), ("KronDelta", const(True)),
            ("if", var("up"), ("Bernoulli", const(0.75)), ("Bernoulli", const(0.25))))  # fmt: skip
    parents, table = _tabulate(
        node, {"noop": {"reset": False}, "reset": {"reset": True}}, {}, probability, "up"
    )
    assert parents == ["up"]
    np.testing.assert_allclose(table, [[0.25, 1.0], [0.75, 1.0]])


def test_a_reward_is_split_into_terms() -> None:
    node = ("-", ("+", var("x"), ("*", const(2.0), var("y"))), ("*", const(0.75), var("go")))
    terms = _terms(node, {"noop": {"go": False}, "go": {"go": True}}, {})
    assert [r.scope for r in terms if isinstance(r, Reward)] == [("x",), ("y",)]
    costs = [r.cost.tolist() for r in terms if isinstance(r, ActionCost)]
    assert costs == [[0.0, 0.75]]


def test_joint_actions() -> None:
    assert list(_joint(["a", "b"], 1)) == ["noop", "a", "b"]
    assert list(_joint(["a", "b"], None)) == ["noop", "a", "b", "a+b"]


@pytest.mark.skipif(bool(HERE), reason="it is installed")
def test_without_the_extra_the_error_names_it() -> None:
    with pytest.raises(NoRDDL, match=r"lmppl-lang\[rddl\]"):
        from_rddl("SysAdmin_MDP_ippc2011", "1")


def load(name: str, number: int = 1, **options: Any) -> FactoredMDP:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the parser's own
        return from_rddl(f"{name}_MDP_ippc2011", str(number), **options)


@needed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n", "actions", "widest"),
    [
        ("SysAdmin", 10, 11, 4),
        ("GameOfLife", 9, 10, 9),
        ("SkillTeaching", 12, 5, 6),
        ("CrossingTraffic", 18, 5, 11),
        ("Traffic_CTM", 32, 16, 5),
        ("Navigation", 12, 5, 6),
        ("CooperativeRecon", 31, 20, 5),
        ("Elevators", 13, 5, 9),
    ],
)
def test_sizes_of_instances(name: str, n: int, actions: int, widest: int) -> None:
    mdp = load(name)
    assert (len(mdp.states), len(mdp.actions)) == (n, actions)
    assert max(len(c.parents) for c in mdp.transitions.values()) == widest


@needed
@pytest.mark.slow
def test_optima_of_instances() -> None:
    """The exact optima of 40 actions; a position as one variable is exact in 13 states."""
    pytest.importorskip("jax")
    assert solve(load("GameOfLife"), 40).value == pytest.approx(209.4349, abs=1e-3)
    machines = load("SysAdmin")
    assert all(machines.initial.values())
    assert solve(machines, 40).value == pytest.approx(342.6804, abs=1e-3)
    assert solve(load("SysAdmin", timing="successor"), 40).value == pytest.approx(
        341.1328, abs=1e-3
    )
    grid = load("Navigation")
    one = load("Navigation", one_hot=[list(grid.states)])
    assert one.size == 13
    assert solve(one, 40).value == pytest.approx(-9.5669, abs=1e-3)


@needed
def test_an_unknown_problem() -> None:
    with pytest.raises(BadArgument, match="no problem is called"):
        from_rddl("Sysadmin", "1")
