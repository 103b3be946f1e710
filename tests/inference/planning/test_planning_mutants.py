"""Planners with one mistake each, and the fact that tells each from the right one.

The facts are those of the reactive task, the lottery, and one-variable problems, all known by hand
or by enumeration. Every check passes on the shipped planner and must fail on its mutant.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lmppl.inference.planning import dp
from lmppl.inference.planning.kinds import stages_value
from lmppl.inference.planning.mdp import Stages, TabularMDP

pytest.importorskip("jax")

Value = Callable[[Stages, float], float]


def reactive() -> Stages:
    """Look, then match: worth 1; safe is worth .6."""
    to = np.eye(6)
    table = [
        [[0, 0.5, 0.5, 0, 0, 0], to[3]],
        [to[4], to[5]],
        [to[5], to[4]],
        [to[3], to[3]],
        [to[5], to[5]],
        [to[5], to[5]],
    ]
    mdp = TabularMDP(6, 2, table, [0, 0, 0, 0.3, 1, 0], timing="successor")
    return mdp.stages(2)


def lottery() -> Stages:
    return TabularMDP(2, 1, [[[0.5, 0.5]]] * 2, [0, 1], timing="successor").stages(1)


def costly() -> Stages:
    """Pressing gains 1 and costs 2; the reward of a state counts once for each action."""
    table = [[[1, 0], [0, 1]], [[0, 1], [0, 1]]]
    mdp = TabularMDP(2, 2, table, [[0, 0], [1, 1]], action_cost=[0, 2])
    return mdp.stages(2)


def unseen() -> Stages:
    """A fair coin whose side is drawn after the action: matching it is worth .5."""
    mdp = TabularMDP(
        3, 2, [[[0, 0.5, 0.5]] * 2, [[0, 1, 0]] * 2, [[0, 0, 1]] * 2], [0, 0, 1], timing="successor"
    )
    return mdp.stages(1)


def shipped(st: Stages, risk: float) -> float:
    return dp.solve_stages(st, risk=risk).value


def open_loop(st: Stages, risk: float) -> float:
    return stages_value(st, "mmap", risk)


def marginal(st: Stages, risk: float) -> float:
    return stages_value(st, "marginal", risk or 1.0)


def marginal_uniform(st: Stages, risk: float) -> float:
    return stages_value(st, "marginal_uniform", risk)


def other_sign(st: Stages, risk: float) -> float:
    return shipped(st, -risk)


def no_costs(st: Stages, risk: float) -> float:
    return shipped(replace(st, reward=st.reward.max(axis=2, keepdims=True) + 0 * st.reward), risk)


def twice(st: Stages, risk: float) -> float:
    """The reward on the way in and on the way out."""
    ahead = np.einsum("xay,y->xa", st.transition, st.final)
    reward = st.reward.copy()
    reward[-1] += ahead
    return shipped(replace(st, reward=reward), risk)


def clairvoyant(st: Stages, risk: float) -> float:
    """Max and expectation change places: the action sees where it will lead."""
    value = st.final
    for reward in st.reward[::-1]:
        s, a = reward.shape
        following = itertools.product(range(s), repeat=a)
        new = np.zeros(s)
        for to in following:
            p = np.prod([st.transition[:, u, to[u]] for u in range(a)], axis=0)
            new += p * np.max([reward[:, u] + value[to[u]] for u in range(a)], axis=0)
        value = new
    return float(st.initial @ value)


FACTS: dict[str, tuple[Callable[[], Stages], float, float]] = {
    "reactive": (reactive, 0.0, 1.0),
    "lottery seeks": (lottery, 1.0, 0.6201145),
    "lottery avoids": (lottery, -1.0, 0.3798855),
    "costs": (costly, 0.0, 0.0),
    "unseen coin": (unseen, 0.0, 0.5),
}

MUTANTS: list[tuple[Value, str]] = [
    (open_loop, "reactive"),
    (marginal, "reactive"),
    (marginal_uniform, "reactive"),
    (other_sign, "lottery seeks"),
    (other_sign, "lottery avoids"),
    (no_costs, "costs"),
    (twice, "unseen coin"),
    (clairvoyant, "unseen coin"),
]


def holds(value: Value, fact: str) -> bool:
    make, risk, expected = FACTS[fact]
    return abs(value(make(), risk) - expected) < 1e-6


@pytest.mark.parametrize("fact", FACTS)
def test_the_shipped_planner_keeps_the_facts(fact: str) -> None:
    assert holds(shipped, fact)


@pytest.mark.parametrize(("wrong", "fact"), MUTANTS, ids=lambda x: getattr(x, "__name__", x))
def test_a_mutant_is_rejected(wrong: Any, fact: str) -> None:
    assert not holds(wrong, fact)
