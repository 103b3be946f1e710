"""`compile_step`: tables, parents and rewards of a step function, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lmppl import Bernoulli, Categorical, Choice, choose, factor, observe, reward, sample
from lmppl.errors import BadArgument, BadProgram
from lmppl.inference.planning import ActionCost, Reward, compile_step, inference_value
from lmppl.lm.table import TableLM

MODES = {"mode": ["start", "risky", "safe"], "coin": ["h", "t"], "win": [0.0, 0.6, 1.0]}


def reactive(s: Any, a: Any) -> dict[str, Any]:
    reward("win", s.win)

    def win() -> float:
        if s.mode == "risky":
            return 1.0 if (s.coin == "h") == (a == "risky") else 0.0
        return {"start": 0.0, "safe": 0.6}[s.mode]

    after = {"start": a, "risky": "start", "safe": "start"}
    return {"mode": lambda: after[s.mode], "coin": lambda: sample("c", Categorical({"h": 1, "t": 1})), "win": win}  # fmt: skip


def test_parents_are_what_is_read_under_any_value() -> None:
    """The coin is read in the risky mode only, and is a parent for it."""
    mdp = compile_step(reactive, MODES, ["risky", "safe"], timing="state")
    parents = {k: v.parents for k, v in mdp.transitions.items()}
    assert parents == {"mode": ("mode",), "coin": (), "win": ("mode", "coin")}
    assert [r.scope for r in mdp.rewards if isinstance(r, Reward)] == [("win",)]
    assert inference_value(mdp, 2, risk=0.0) == pytest.approx(1.0)
    assert inference_value(mdp, 2, "mmap", risk=0.0) == pytest.approx(0.6)


def test_plain_values_make_the_same_tables() -> None:
    def plain(s: Any, a: Any) -> dict[str, Any]:
        out = reactive(s, a)
        return {k: v() for k, v in out.items()}

    one = compile_step(reactive, MODES, ["risky", "safe"], timing="state")
    two = compile_step(plain, MODES, ["risky", "safe"], timing="state")
    for name, cpt in one.transitions.items():
        assert cpt.parents == two.transitions[name].parents
        np.testing.assert_array_equal(cpt.table, two.transitions[name].table)


def test_random_steps_equal_their_tables() -> None:
    """A step written from random tables compiles to these tables."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, y = rng.random((2, 2, 2)), rng.random((2, 2))
        r = rng.normal(size=(2, 2))

        def step(s: Any, a: int, x: Any = x, y: Any = y, r: Any = r) -> dict[str, Any]:
            reward("r", r[s.y, a])
            return {
                "x": lambda: int(sample("x", Bernoulli(x[s.x, s.y, a]))),
                "y": lambda: int(sample("y", Bernoulli(y[s["y"], a]))),
            }

        mdp = compile_step(step, {"x": 2, "y": 2}, 2)
        np.testing.assert_allclose(mdp.transitions["x"].table[..., 1], x, atol=1e-12)
        np.testing.assert_allclose(mdp.transitions["y"].table[..., 1], y, atol=1e-12)
        assert mdp.transitions["y"].parents == ("y",)
        found = mdp.rewards[0]
        assert isinstance(found, Reward)
        np.testing.assert_allclose(found.table, r, atol=1e-12)


def test_costs_of_actions_are_kept() -> None:
    def step(s: Any, a: Any) -> dict[str, Any]:
        reward("up", s.x)
        if a == "fix":
            reward("cost", -0.75)
        return {"x": 1 if a == "fix" else s.x}

    mdp = compile_step(step, {"x": 2}, ["wait", "fix"])
    costs = [r.cost for r in mdp.rewards if isinstance(r, ActionCost)]
    assert len(costs) == 1 and costs[0].tolist() == [0.0, 0.75]


def test_a_language_model_as_chance() -> None:
    lm = TableLM(["a", "b", "\n"], {(): [0.25, 0.75, 0.0]}, order=1, name="quarter")

    def step(s: Any, a: Any) -> dict[str, Any]:
        return {"x": lambda: sample("x", Choice("next:", ["a", "b"]))}

    mdp = compile_step(step, {"x": ["a", "b"]}, 1, lm=lm)
    np.testing.assert_allclose(mdp.transitions["x"].table[0], [0.25, 0.75], atol=1e-12)


def correlated(s: Any, a: Any) -> dict[str, Any]:
    c = sample("c", Bernoulli(0.5))
    return {"x": int(c), "y": int(c)}


def shared(s: Any, a: Any) -> dict[str, Any]:
    c = sample("c", Bernoulli(0.5))
    return {"x": lambda: int(c), "y": lambda: int(c)}


def observing(s: Any, a: Any) -> dict[str, Any]:
    observe("o", Bernoulli(0.5), True)
    return {"x": 0, "y": 0}


def scoring(s: Any, a: Any) -> dict[str, Any]:
    factor("r", 1.0)
    return {"x": 0, "y": 0}


def choosing(s: Any, a: Any) -> dict[str, Any]:
    return {"x": choose("b", [0, 1]), "y": 0}


def lucky(s: Any, a: Any) -> dict[str, Any]:
    reward("r", sample("c", Bernoulli(0.5)))
    return {"x": 0, "y": 0}


def setting(s: Any, a: Any) -> dict[str, Any]:
    s.x = 1
    return {"x": 0, "y": 0}


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (correlated, "depend on one another"),
        (shared, "drawn in the body"),
        (observing, "evidence"),
        (scoring, "write reward"),
        (choosing, "second argument"),
        (lucky, "depends on what the step draws"),
        (setting, "must not set 'x'"),
        (lambda s, a: {"x": 0}, "every variable"),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_what_is_refused(step: Any, words: str) -> None:
    with pytest.raises(BadProgram, match=words):
        compile_step(step, {"x": 2, "y": 2}, 2)


def test_a_mean_reward_is_taken_when_asked() -> None:
    mdp = compile_step(lucky, {"x": 2, "y": 2}, 2, expected_rewards=True)
    assert inference_value(mdp, 4, risk=0.0) == pytest.approx(2.0)


def test_a_wide_table_is_refused() -> None:
    names = {f"x{i}": 2 for i in range(17)}

    def wide(s: Any, a: Any) -> dict[str, Any]:
        return {k: (lambda: sum(s[n] for n in names) % 2) for k in names}

    with pytest.raises(BadArgument, match="split the variable"):
        compile_step(wide, names, 2)
