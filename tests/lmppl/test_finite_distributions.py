"""Finite distributions: draws, scores, supports and fingerprints say the same thing."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from lmppl import LM, Bernoulli, Categorical, Choice, Delta, Mixture, Uniform
from lmppl.batches import run_now
from lmppl.distributions import Distribution, as_distribution, fingerprint_of
from lmppl.errors import BadArgument, NotADistribution, NotFinite
from lmppl.jobs import Draw, Env
from lmppl.ledger import Ledger
from lmppl.lm.table import TableLM
from lmppl.random import fold
from lmppl.weights import NEG_INF, log_sum_exp

TOY = TableLM(["a", "b", "ab", "<eos>"], {(): [0.4, 0.3, 0.2, 0.1], (0,): [0.1, 0.2, 0.3, 0.4]})
ENV = Env({"default": TOY})
FINITE: list[Distribution] = [
    Categorical({"a": 1, "b": 3}),
    Categorical(["a", "b", "a"], [0.2, 0.5, 0.3]),
    Categorical([1, None, (2, 3), "x"], [1, 1, 1, 1]),
    Bernoulli(0.25),
    Uniform([1, 2, 3]),
    Delta("only"),
    Mixture([Uniform(["a", "b"]), Delta("b")], [0.25, 0.75]),
    Mixture({Bernoulli(0.1): 2, Bernoulli(0.9): 1}),
    Choice("a", ["a", "b"]),
    Choice("a", {"one": ["a", "ab"], "two": "b"}),
    Mixture([LM("a", max_tokens=2), Delta("a")]),
]


def kind(dist: Distribution) -> str:
    """Its name in the list of tests: no address of an object, which two processes would not share."""
    return type(dist).__name__


def score(dist: Distribution, value: Any) -> float:
    return float(run_now(dist.score(value, ENV), ENV, Ledger()))


def support(dist: Distribution) -> list[tuple[Any, float]]:
    return list(run_now(dist.support(ENV), ENV, Ledger()))


def drawn(dist: Distribution, key: int) -> Draw:
    found: Draw = run_now(dist.draw(key, ENV), ENV, Ledger())
    return found


@pytest.mark.parametrize("dist", FINITE, ids=kind)
def test_support_is_normalised_and_agrees_with_scores(dist: Distribution) -> None:
    pairs = support(dist)
    assert log_sum_exp([lp for _, lp in pairs]) == pytest.approx(0.0, abs=1e-12)
    mass: dict[Any, list[float]] = {}
    for value, logp in pairs:
        mass.setdefault(value, []).append(logp)
    if any(isinstance(part, LM) for part in dist.parts()):
        return  # a string has several tokenisations, and is scored by one: tests of strings
    for value, logps in mass.items():
        assert score(dist, value) == pytest.approx(log_sum_exp(logps), abs=1e-12)


@pytest.mark.parametrize("dist", FINITE, ids=kind)
def test_draws_report_their_own_probability(dist: Distribution) -> None:
    """With 400 keys each value of probability ≥ 0.05 misses with chance 1e-9."""
    seen = set()
    for i in range(400):
        d = drawn(dist, fold(9, i))
        assert d.logp == d.logq and not d.restricted  # exact draws weigh nothing
        assert d.logp == pytest.approx(score(dist, d.value), abs=1e-12)
        seen.add(d.value)
    assert {v for v, lp in support(dist) if lp > math.log(0.05)} <= seen


@pytest.mark.parametrize("dist", FINITE, ids=kind)
def test_a_draw_is_a_function_of_its_key(dist: Distribution) -> None:
    assert drawn(dist, 5).value == drawn(dist, 5).value
    assert len({repr(drawn(dist, fold(0, i)).value) for i in range(60)}) > (dist.kind != "Delta")


def test_outside_the_support_is_minus_infinity() -> None:
    assert score(Categorical({"a": 1.0, "b": 0.0}), "b") == NEG_INF
    assert score(Categorical({"a": 1.0}), "z") == NEG_INF
    assert score(Categorical({"a": 1.0}), None) == NEG_INF
    assert score(Mixture([Delta(1), Delta(2)]), 3) == NEG_INF
    assert support(Categorical({"a": 1.0, "b": 0.0})) == [("a", 0.0)]


def test_values_are_equal_as_python_says() -> None:
    """A marginal is a dict, so 1 and True are one answer there; a law may not tell them apart."""
    assert score(Uniform([1, 2]), 1.0) == pytest.approx(math.log(0.5))
    assert score(Uniform([0, 1]), True) == pytest.approx(math.log(0.5))
    both = Mixture([Bernoulli(0.25), Uniform([0, 1])])
    values, logs = zip(*support(both), strict=True)
    assert values == (True, False)
    assert logs == pytest.approx([math.log(0.375), math.log(0.625)])
    assert score(both, 1) == score(both, True) == pytest.approx(math.log(0.375))


@pytest.mark.parametrize("yes", [True, 1, 1.0, np.True_, np.int64(1), np.float32(1.0)])
def test_data_of_coins_come_as_numbers_and_numpy_scalars(yes: Any) -> None:
    assert score(Bernoulli(0.25), yes) == pytest.approx(math.log(0.25))
    assert score(Bernoulli(0.25), type(yes)(0)) == pytest.approx(math.log(0.75))
    assert score(Bernoulli(0.25), 2) == score(Bernoulli(0.25), 0.5) == NEG_INF
    assert score(Bernoulli(0.25), "True") == NEG_INF


def test_a_numpy_scalar_is_the_number_that_it_holds() -> None:
    assert score(Categorical({"a": 1, "b": 3}), np.str_("b")) == pytest.approx(math.log(0.75))
    assert score(Categorical({True: 1, False: 3}), np.False_) == pytest.approx(math.log(0.75))
    assert score(Uniform(np.arange(4)), 3) == pytest.approx(math.log(0.25))


def test_probabilities_without_values_are_refused() -> None:
    """Elsewhere `Categorical(p)` has the values 0, 1, …: nobody should get p as values unasked."""
    several: list[Any] = [[0.3, 0.7], np.array([0.25, 0.25, 0.5])]
    for p in several:
        with pytest.raises(BadArgument, match="a list is the values"):
            Categorical(p)
    assert len(Uniform([0.3, 0.7]).values) == len(Categorical([0.3, 0.7], [1, 2]).values) == 2
    assert Categorical(["a", "b"]).values == ("a", "b")


def test_laws_are_shown_as_they_are_written() -> None:
    assert repr(Categorical({"a": 1, "b": 3})) == "Categorical({'a': 0.25, 'b': 0.75})"
    assert repr(Bernoulli(0.2)) == "Bernoulli(0.2)"
    assert repr(Uniform(["a", "b"])) == "Uniform(['a', 'b'])"
    assert repr(Delta(7)) == "Delta(7)"
    assert repr(Mixture({Delta(1): 1, Delta(2): 3})) == "Mixture({Delta(1): 0.25, Delta(2): 0.75})"
    assert repr(Uniform(range(50))).endswith("10, 11, …])")


def test_a_repeated_value_is_drawn_with_the_probability_of_all_its_entries() -> None:
    """As a proposal, each entry's own weight would count the value twice."""
    dist = Categorical(["a", "b", "a"], [0.2, 0.5, 0.3])
    assert {drawn(dist, fold(1, i)).logq for i in range(50)} == {math.log(0.5)}
    assert score(dist, "a") == pytest.approx(math.log(0.5))


def test_values_are_shared_frozen() -> None:
    """A program that changed a drawn list would change it for every other particle."""
    dist = Uniform([[1, 2], [3, 4]])
    value = drawn(dist, 0).value
    assert isinstance(value, tuple)
    assert score(dist, value) == score(dist, list(value)) == pytest.approx(math.log(0.5))


def test_arrays_are_values_too() -> None:
    dist = Uniform([np.array([1, 2]), np.array([3, 4])])
    assert score(dist, np.array([3, 4])) == pytest.approx(math.log(0.5))
    assert score(dist, np.array([3, 5])) == NEG_INF


@pytest.mark.parametrize(
    "make",
    [
        lambda: Categorical({}),
        lambda: Categorical({"a": -1}),
        lambda: Categorical({"a": math.nan}),
        lambda: Categorical({"a": math.inf}),
        lambda: Categorical({"a": 0.0, "b": 0.0}),
        lambda: Categorical({"a": 1e308, "b": 1e308}),
        lambda: Categorical(["a", "b"], [1.0]),
        lambda: Categorical({"a": "0.5"}),  # type: ignore[dict-item]
        lambda: Bernoulli(1.5),
        lambda: Bernoulli(-0.1),
        lambda: Bernoulli(math.nan),
        lambda: Bernoulli("0.5"),  # type: ignore[arg-type]
        lambda: Uniform([]),
        lambda: Uniform("abc"),
        lambda: Mixture([]),
        lambda: Mixture([Delta(1)], [-1.0]),
        lambda: Mixture([Delta(1), Delta(2)], [1.0]),
    ],
)
def test_bad_weights_are_refused_with_a_fix(make: Any) -> None:
    with pytest.raises(BadArgument) as raised:
        make()
    assert "fix:" in str(raised.value)


@pytest.mark.parametrize("value", ["text", 3, None, Uniform, lambda: 1, [0.5, 0.5]])
def test_what_is_no_distribution_is_named(value: Any) -> None:
    with pytest.raises(NotADistribution, match="site 'x': expected a distribution"):
        as_distribution(value, "x")
    with pytest.raises(TypeError):  # it is a type error for those who catch those
        Mixture([value])


def test_a_mixture_scores_what_one_component_cannot_have() -> None:
    """Uniform gives 7, which is no text: the language model's part counts zero."""
    dist = Mixture([Uniform([7, "a"]), LM("a", max_tokens=1)], [0.5, 0.5])
    assert score(dist, 7) == pytest.approx(math.log(0.25))
    assert score(dist, "a") == pytest.approx(math.log(0.25 + 0.5 * 0.1))
    with_choice = Mixture([Uniform(["z", "a"]), Choice("a", ["a", "b"])])
    assert score(with_choice, "z") == pytest.approx(math.log(0.25))


def test_a_mixture_draw_by_a_proposal_keeps_its_ratio() -> None:
    dist = Mixture([LM("a", max_tokens=1, temperature=0.5), Delta("z")])
    z = [drawn(dist, fold(3, i)) for i in range(4000)]
    mean = sum(math.exp(d.logp - d.logq) for d in z) / len(z)
    # the ratio is at most 5, its variance below 1: five standard errors are 0.08
    assert mean == pytest.approx(1.0, abs=0.08)
    assert any(d.logp != d.logq for d in z)


def test_a_distribution_without_a_list_says_so() -> None:
    class Continuous(Distribution):
        kind = "Continuous"

        def draw(self, key: int, env: Env) -> Draw:
            return Draw(0.0, 0.0, 0.0)

        def score(self, value: Any, env: Env) -> float:
            return 0.0

        @property
        def fingerprint(self) -> int:
            return 1

    with pytest.raises(NotFinite, match="Continuous has no finite support"):
        Continuous().support(ENV)
    assert list(Continuous().parts())[0].kind == "Continuous"


# -- fingerprints -------------------------------------------------------------------------------


def test_fingerprints_separate_what_differs() -> None:
    dists: list[Distribution] = [
        Categorical({"a": 1, "b": 3}),
        Categorical({"a": 1, "b": 2}),
        Categorical({"b": 3, "a": 1}),
        Uniform(["a", "b"]),
        Uniform([1, 2]),
        Uniform(["1", "2"]),
        Uniform([True, False]),
        Bernoulli(0.5),
        Delta(1),
        Delta(1.0),
        Mixture([Delta(1), Delta(2)]),
        Mixture([Delta(2), Delta(1)]),
        LM("p"),
        LM("q"),
        LM("p", stop="x"),
        LM("p", max_tokens=3),
        LM("p", temperature=0.5),
        LM("p", regex="a"),
        LM("p", limit="eos"),
        LM("p").tempered(2.0),
        Choice("p", ["a", "b"]),
        Choice("p", ["b", "a"]),
        Choice("p", ["a", "b"], end=True),
    ]
    assert len({d.fingerprint for d in dists}) == len(dists)
    assert Categorical({"a": 1, "b": 3}).fingerprint == Categorical({"a": 1, "b": 3}).fingerprint


@pytest.mark.parametrize(
    "value",
    [
        "x",
        1,
        1.0,
        True,
        None,
        b"x",
        (1, "1"),
        {"a": [1, 2]},
        {1, 2, 3},
        np.array([1.0, 2.0]),
        float("-inf"),
        "\ud800",
    ],
    ids=repr,
)
def test_fingerprints_of_values_are_stable(value: Any) -> None:
    assert fingerprint_of(value) == fingerprint_of(value)
    assert 0 <= fingerprint_of(value) < 2**64


def test_fingerprints_do_not_depend_on_the_process() -> None:
    """`hash()` would: strings are hashed with a random seed per process."""
    code = (
        "from lmppl.distributions import *; from lmppl import LM, Choice;"
        "print(Categorical({'a': 1, 'b': 3}).fingerprint, LM('p', stop='x').fingerprint,"
        "Choice('p', ['a', 'b']).fingerprint, fingerprint_of({'a', 'b', 'c'}))"
    )
    outs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(outs) == 1 and len(outs.pop().split()) == 4
