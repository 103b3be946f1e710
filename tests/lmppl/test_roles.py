"""`choose` and `reward`: what each role means under a planner, and under an engine that is none."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest

from lmppl import (
    Bernoulli,
    Choice,
    Uniform,
    choose,
    factor,
    handlers,
    observe,
    plate,
    program,
    reward,
    sample,
)
from lmppl.errors import BadArgument, BadProgram, LmpplWarning
from lmppl.inference import SMC, Enumerate, Importance, MetropolisHastings, Rejection, infer
from lmppl.inference.planning import Planning
from lmppl.lm.table import TableLM
from lmppl.roles import NotAPlanner


@program
def reactive() -> None:
    """Risky: look, then match, worth 1. Safe: .6."""
    first = choose("first", ["risky", "safe"])
    side = sample("side", Uniform(["l", "r"])) if first == "risky" else "middle"
    second = choose("second", ["l", "r"])
    reward("win", 0.6 if side == "middle" else side == second)


def guess(seen: bool) -> None:
    coin = sample("coin", Uniform([0, 1]))
    reward("right", choose("said", [0, 1], seen=coin if seen else None) == coin)


@pytest.mark.parametrize(
    ("kind", "value", "action"),
    [
        ("planning", 1.0, "risky"),
        ("mmap", 0.620115, "risky"),
        ("map", 0.6, "safe"),
        ("marginal", 1.996402, "risky"),
        ("marginal_uniform", 0.610108, "risky"),
    ],
)
def test_the_role_sets_the_entropy_weight(kind: str, value: float, action: str) -> None:
    """One program, five kinds; the values are those of the same task as a table."""
    found = Planning(kind=kind, risk_aversion=-1.0).infer(reactive)
    assert found.value == pytest.approx(value, abs=1e-6) and found.action == action


def test_the_switch_of_the_open_loop_choice() -> None:
    for lam, action in ((0.822, "safe"), (0.823, "risky")):
        assert Planning(kind="mmap", risk_aversion=-lam).infer(reactive).action == action
        assert Planning(risk_aversion=-lam).infer(reactive).action == "risky"


@pytest.mark.parametrize(
    "engine", [SMC(particles=4), Importance(4), Enumerate(), Rejection(), MetropolisHastings()],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_an_engine_that_is_no_planner_names_the_site(engine: Any) -> None:
    with pytest.raises(NotAPlanner, match="'first' is chosen"):
        infer(reactive, engine=engine)


def test_a_plain_call_is_no_planner() -> None:
    with pytest.raises(NotAPlanner, match="'first'"):
        reactive()


def test_a_fixed_action_makes_an_ordinary_program() -> None:
    fixed = handlers.do(reactive, {"first": "risky", "second": "l"})
    post = infer(fixed, engine=Enumerate())
    assert post.log_evidence == pytest.approx(0.0)
    assert post.marginal("win")[1.0] == pytest.approx(0.5)


@pytest.mark.parametrize(("seen", "value"), [(False, 0.5), (True, 1.0)])
def test_no_clairvoyance(seen: bool, value: float) -> None:
    assert Planning().infer(guess, seen).value == value


def test_evidence_before_the_choice_is_a_belief() -> None:
    """Prior 1/4, likelihood 4:1 for the rare side: posterior 4/7."""

    def signal() -> None:
        rare = sample("rare", Bernoulli(0.25))
        observe("ring", Bernoulli(0.8 if rare else 0.2), True)
        reward("right", choose("said", [True, False], seen=None) == rare)

    found = Planning().infer(signal)
    assert found.action is True and found.value == pytest.approx(4 / 7)
    assert found.marginal("rare")[True] == pytest.approx(4 / 7)


def test_memory_of_what_was_seen() -> None:
    """A second choice that sees nothing new still knows what the first one saw."""

    def twice() -> None:
        coin = sample("coin", Uniform([0, 1]))
        choose("look", ["on"], seen=coin)
        reward("right", choose("said", [0, 1], seen=None) == coin)

    assert Planning().infer(twice).value == 1.0


def test_evidence_after_a_choice_is_refused() -> None:
    def wishful() -> None:
        a = choose("a", [0.1, 0.9])
        observe("luck", Bernoulli(a), True)
        reward("r", 1.0)

    with pytest.raises(BadProgram, match="evidence after the choice 'a'"):
        Planning().infer(wishful)


def test_a_reward_scored_as_evidence_warns() -> None:
    def scored() -> None:
        factor("r", -0.5)
        reward("r2", choose("a", [0, 1]))

    with pytest.warns(LmpplWarning, match="write reward"):
        assert Planning().infer(scored).value == 1.0


def test_rewards_are_no_likelihood() -> None:
    def paid() -> Any:
        x = sample("x", Uniform([0, 1]))
        reward("r", 100.0 * x)
        return x

    assert infer(paid, engine=Enumerate()).marginal()[1] == pytest.approx(0.5)
    assert Planning().infer(paid).value == pytest.approx(50.0)


def test_random_trees_against_all_policies() -> None:
    """Two choices with chance between them: every policy by brute force, at three risks."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        p, r = rng.dirichlet(np.ones(2), 2), rng.normal(size=(2, 2, 2))

        def tree(p: Any = p, r: Any = r) -> None:
            a = choose("a", [0, 1])
            x = sample("x", Bernoulli(float(p[a, 1])))
            reward("r", r[a, int(x), choose("b", [0, 1])])

        for lam in (0.0, 0.7, -0.7):
            best = -np.inf
            for a, b0, b1 in itertools.product(range(2), repeat=3):
                v = np.array([r[a, 0, b0], r[a, 1, b1]])
                if lam:
                    value = float(np.log((p[a] * np.exp(lam * v)).sum()) / lam)
                else:
                    value = float(p[a] @ v)
                best = max(best, value)
            assert Planning(-lam).infer(tree).value == pytest.approx(best, abs=1e-9)


def test_a_temperature_softens_the_policy() -> None:
    found = Planning(temperature=0.5).infer(guess, False)
    assert found.policy("said", seen=None) == pytest.approx({0: 0.5, 1: 0.5})
    assert found.value == pytest.approx(0.5 + 0.5 * np.log(2))
    assert len(found) == 4 and found.weights == pytest.approx(0.25)


def test_choices_in_the_branches_of_a_plate() -> None:
    """A branch sees its own coin, not the other's."""

    def branch(i: int) -> None:
        coin = sample("coin", Uniform([0, 1]))
        reward("r", choose("said", [0, 1]) == coin)

    def both() -> None:
        plate("side", range(2), branch)

    assert Planning().infer(both).value == pytest.approx(2.0)


def test_what_is_refused() -> None:
    for bad in ([], [0, 0], "ab", [[1]]):
        with pytest.raises(BadArgument):
            Planning().infer(lambda bad=bad: choose("a", bad))
    for wrong in (float("nan"), "much", float("-inf")):
        with pytest.raises(BadArgument, match="finite number"):
            Planning().infer(lambda wrong=wrong: reward("r", wrong))
    with pytest.raises(BadArgument, match="risk_aversion < 0"):
        Planning(kind="map")
    with pytest.raises(BadArgument, match="more than one decision"):
        Planning().infer(reactive).policy("second")


def test_a_planner_in_a_program() -> None:
    """Nested: the outer program is ordinary, and conditions on what a planning agent does."""

    def watched() -> Any:
        safe = sample("safe", Uniform([0.4, 0.7]))

        def agent() -> None:
            if choose("a", ["gamble", "wait"]) == "gamble":
                reward("r", sample("luck", Bernoulli(0.5)))
            else:
                reward("r", safe)

        law = Planning(temperature=0.1).infer(agent).policy("a")
        observe("does", Bernoulli(law["gamble"]), True)
        return safe

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        post = infer(watched, engine=Enumerate())
    odds = [1 / (1 + np.exp((s - 0.5) / 0.1)) for s in (0.4, 0.7)]
    assert post.marginal()[0.4] == pytest.approx(odds[0] / sum(odds))


def test_an_agent_that_plans_before_it_speaks() -> None:
    """The listener is a language model; the speaker plans what it will make of each word."""
    lm = TableLM(
        ["please", "now", " yes", " no"],
        {(): [0.25] * 4, (0,): [0, 0, 0.8, 0.2], (1,): [0, 0, 0.3, 0.7]},
        order=1,
        name="listener",
    )

    def ask() -> None:
        word = choose("word", ["please", "now"])
        answer = sample("answer", Choice(word, [" yes", " no"]))
        reward("agreed", answer == " yes")
        reward("effort", -0.1 if word == "please" else 0.0)

    found = Planning().infer(ask, lm=lm)
    assert found.action == "please" and found.value == pytest.approx(0.7)
    assert found.policy("word") == {"please": 1.0, "now": 0.0}
