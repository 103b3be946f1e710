"""C12, C13: engines agree, and changes that must not matter do not.

A change that keeps the keys keeps every draw, bit by bit; a change of a name or of a question gives
other draws of the same law, which exhaustion shows.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest

from lmppl import LM, Bernoulli, Uniform, call, factor, handlers, observe, program, sample
from lmppl.inference import SMC, Engine, Enumerate, Importance, infer, infer_many, tokens
from lmppl.testing import assert_properly_weighted, enumerate_exact

ENGINES: tuple[Engine, ...] = (
    Importance(particles=2),
    SMC(particles=2, always=True),
    SMC(particles=2, always=True, resample_at="factor", resampling="stratified"),
    Enumerate(),
)


@program
def pair(swapped: bool = False, certain: bool = False, twist: float = 0.0, name: str = "y") -> Any:
    """Two independent sites, then an observation of both; the arguments change nothing."""
    if swapped:
        y = sample(name, LM("a", max_tokens=1))
        x = sample("x", LM("", max_tokens=1))
    else:
        x = sample("x", LM("", max_tokens=1))
        y = sample(name, LM("a", max_tokens=1))
    if certain:
        observe("certain", Bernoulli(1.0), True)
    if twist:
        factor("plus_minus", twist * len(x) - twist * len(x))
    factor("equal", 0.7 if x == y else 0.0)
    return x, y


VARIANTS: dict[str, dict[str, Any]] = {
    "reordered": {"swapped": True},
    "true observation": {"certain": True},
    "factor added and taken away": {"twist": 3.0},
    "renamed": {"name": "z"},
}


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize("variant", VARIANTS)
def test_same_law(programs: ModuleType, engine: Engine, variant: str) -> None:
    plain = enumerate_exact(pair, lm=programs.AB)
    assert_properly_weighted(
        pair, engine=engine, lm=programs.AB, kwargs=VARIANTS[variant], exact=plain
    )


@pytest.mark.parametrize(
    "variant", ["reordered", "true observation", "factor added and taken away"]
)
def test_same_draws(programs: ModuleType, variant: str) -> None:
    """Keys are made of names, so importance sampling draws the same particles."""
    options: dict[str, Any] = {"engine": Importance(particles=20), "lm": programs.AB, "seed": 3}
    plain = infer(pair, **options)
    other = infer(pair, kwargs=VARIANTS[variant], **options)
    assert [t.result for t in plain.traces] == [t.result for t in other.traces]
    assert max(abs(plain.log_weights - other.log_weights)) <= 1e-12


def test_a_renamed_site_draws_anew(programs: ModuleType) -> None:
    options: dict[str, Any] = {"engine": Importance(particles=40), "lm": programs.AB, "seed": 3}
    plain = infer(pair, **options)
    other = infer(pair, kwargs={"name": "z"}, **options)
    assert [t["x"] for t in plain.traces] == [t["x"] for t in other.traces]
    assert [t["y"] for t in plain.traces] != [t["z"] for t in other.traces]


def test_a_copied_question_is_another_draw_of_the_same(programs: ModuleType) -> None:
    """Copies differ by their position; with the same id they are one and the same."""
    options: dict[str, Any] = {"engine": SMC(particles=12), "lm": programs.AB, "seed": 1}
    first, second = infer_many(pair, [(), ()], **options)
    assert [t.result for t in first.traces] != [t.result for t in second.traces]
    first, second = infer_many(pair, [(), ()], ids=["q", "q"], **options)
    assert [t.result for t in first.traces] == [t.result for t in second.traces]
    assert first.log_evidence == second.log_evidence


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_program_under_call_is_the_program(programs: ModuleType, engine: Engine) -> None:
    @program
    def outer() -> Any:
        return call(pair)

    assert_properly_weighted(
        outer, engine=engine, lm=programs.AB, exact=enumerate_exact(pair, lm=programs.AB)
    )


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_condition_is_observe(programs: ModuleType, engine: Engine) -> None:
    """`condition`, `observations=` and `observe` are one thing."""

    @program
    def written() -> Any:
        x = sample("x", LM("", max_tokens=1))
        y = observe("y", LM("a", max_tokens=1), "a")
        factor("equal", 0.7 if x == y else 0.0)
        return x, y

    exact = enumerate_exact(written, lm=programs.AB)
    assert abs(exact.z - enumerate_exact(pair, lm=programs.AB, observations={"y": "a"}).z) <= 1e-15
    options: dict[str, Any] = {"engine": engine, "lm": programs.AB, "exact": exact}
    assert_properly_weighted(handlers.condition(pair, {"y": "a"}), **options)
    assert_properly_weighted(pair, observations={"y": "a"}, **options)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_interventions_have_no_weight(programs: ModuleType, engine: Engine) -> None:
    """`do` cuts a site off: its value counts nothing, what follows it does."""
    expected = {
        (x, "a"): q * math.exp(0.7 if x == "a" else 0.0) for x, q in programs.strings("", 1)
    }
    assert_properly_weighted(
        handlers.do(pair, {"y": "a"}), engine=engine, lm=programs.AB, exact=expected
    )


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_substituted_values_keep_their_weight(programs: ModuleType, engine: Engine) -> None:
    expected = {
        (x, "a"): q * programs.p("a", "a") * math.exp(0.7 if x == "a" else 0.0)
        for x, q in programs.strings("", 1)
    }
    assert_properly_weighted(
        handlers.substitute(pair, {"y": "a"}), engine=engine, lm=programs.AB, exact=expected
    )


def test_posteriors_of_engines_meet(programs: ModuleType) -> None:
    """With many particles SMC and importance sampling come near enumeration: 4 standard errors."""
    exact = infer(programs.duel, engine=Enumerate(), lm=programs.AB).marginal()
    for engine in (
        Importance(particles=4000),
        SMC(particles=4000),
        SMC(particles=4000, always=True, guide=programs.rough, resample_at=tokens(1)),
    ):
        post = infer(programs.duel, engine=engine, lm=programs.AB, seed=2)
        found = post.marginal()
        for value, probability in exact.items():
            assert abs(found.get(value, 0.0) - probability) < 4 * 0.01
        low, high = post.log_evidence_interval(4.0)
        assert low <= math.log(math.fsum(programs.duel_by_hand().values())) <= high


# -- enumeration that is cut ---------------------------------------------------------------------


@pytest.mark.parametrize("floor", [0.02, 0.1, 0.3])
def test_cut_enumeration_bounds_z(programs: ModuleType, floor: float) -> None:
    """Ẑ ≤ Z ≤ Ẑ + missing: a bound is never broken (factors here are probabilities)."""
    for case in programs.CASES:
        if case.name not in (
            "observed",
            "branching",
            "one_site",
            "cascade",
            "hidden_loop",
            "regexed",
        ):
            continue
        z = math.fsum(case.by_hand().values())
        post = infer(case.program, engine=Enumerate(min_mass=floor), lm=case.lm, on_dead="return")
        found = math.exp(post.log_evidence)
        assert found <= z + 1e-12
        assert z <= found + post.missing + 1e-12


def test_stopped_enumeration_has_the_heaviest(programs: ModuleType) -> None:
    post = infer(programs.cascade, engine=Enumerate(max_traces=1, wave=1), lm=programs.AB)
    exact = programs.gather(
        ((x, y), q * r) for x, q in programs.strings("", 1) for y, r in programs.strings(x, 1)
    )
    best = max(exact, key=lambda v: exact[v])
    assert post.marginal().best == best
    assert math.exp(post.log_evidence) + post.missing >= 1.0 - 1e-12


# -- degenerate programs, by name ----------------------------------------------------------------


@program
def nothing() -> Any:
    return "done"


@program
def certain() -> Any:
    return sample("x", Uniform(["only"]))


@program
def empty_text() -> Any:
    """Only the end can follow."""
    return sample("x", LM("", max_tokens=1, regex=""))


@pytest.mark.parametrize("engine", [*ENGINES, SMC(particles=1), Importance(particles=1)], ids=repr)
def test_degenerate(programs: ModuleType, engine: Engine) -> None:
    assert assert_properly_weighted(nothing, engine=engine, exact={"done": 1.0}).outcomes == 1
    assert_properly_weighted(certain, engine=engine, exact={"only": 1.0})
    assert_properly_weighted(
        empty_text, engine=engine, lm=programs.AB, exact={"": programs.p(".", "")}
    )
