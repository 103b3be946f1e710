"""The testing kit itself: it counts right, and it sees what it is there to see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lmppl import LM, Bernoulli, Categorical, effect, factor, observe, program, sample
from lmppl.inference import SMC, Enumerate, Forward, Importance, infer
from lmppl.lm.base import Drawn, TokenLaw
from lmppl.lm.laws import token_law_by_hand
from lmppl.lm.table import TableLM, TableRows, token_law
from lmppl.random import GumbelMax, draw
from lmppl.testing import (
    Enumerator,
    LawBroken,
    Measure,
    assert_properly_weighted,
    check_guide,
    check_keys,
    check_language_model,
    enumerate_exact,
    outcomes,
)
from lmppl.trace import Trace
from lmppl.types import Floats, Ints

# -- outcomes ------------------------------------------------------------------------------------


def test_outcomes_of_nothing() -> None:
    assert [tuple(o) for o in outcomes(lambda chance: "same")] == [(1.0, "same")]


def test_outcomes_of_a_tree() -> None:
    """Two draws, the second only after the first came up 1: three leaves."""

    def run(chance: Any) -> tuple[int, ...]:
        first = draw(chance, 1, np.log([0.25, 0.75]))
        return (first,) if first == 0 else (first, draw(chance, 2, np.log([0.5, 0.5])))

    found = {o.value: o.probability for o in outcomes(run)}
    assert found == pytest.approx({(0,): 0.25, (1, 0): 0.375, (1, 1): 0.375}, abs=1e-15)


def test_zero_probabilities_are_not_visited() -> None:
    with np.errstate(divide="ignore"):
        row = np.log([0.0, 1.0, 0.0])
    assert [o.value for o in outcomes(lambda chance: draw(chance, 1, row))] == [1]


def test_rows_are_choices_one_after_the_other() -> None:
    def run(chance: Any) -> tuple[int, ...]:
        rows = np.log([[0.5, 0.5], [0.2, 0.8], [1.0, 1e-30]])
        return tuple(chance.categorical(np.arange(3, dtype=np.uint64), rows).tolist())

    found = list(outcomes(run))
    assert len(found) == 8
    assert abs(math.fsum(o.probability for o in found) - 1.0) <= 1e-15


def test_offsets_are_intervals() -> None:
    def run(chance: Any) -> float:
        return float(chance.offsets(np.array([5], dtype=np.uint64), [np.array([0.7, 0.2, 0.2])])[0])

    found = [(o.probability, o.value) for o in outcomes(run)]
    expected = [(0.2, 0.1), (0.5, 0.45), (0.3, 0.85)]
    np.testing.assert_allclose(found, expected, atol=1e-15)


def test_breakpoints_outside_the_interval_and_rounding_count_nothing() -> None:
    def run(chance: Any) -> float:
        points = np.array([-0.3, 1e-15, 0.5, 0.5 + 1e-15, 1.0 - 1e-15, 2.0])
        return float(chance.offsets(np.array([5], dtype=np.uint64), [points])[0])

    assert [round(o.value, 6) for o in outcomes(run)] == [0.25, 0.75]


def test_continuous_draws_are_refused() -> None:
    with pytest.raises(LawBroken, match="continuous"):
        list(outcomes(lambda chance: chance.offsets(np.array([1], dtype=np.uint64))))


def test_a_key_is_a_function() -> None:
    """Asked the same again it answers the same; asked something else it is an error."""
    row = np.log([0.5, 0.5])
    pairs = [o.value for o in outcomes(lambda c: (draw(c, 1, row), draw(c, 1, row)))]
    assert pairs == [(0, 0), (1, 1)]
    with pytest.raises(LawBroken, match="two different draws"):
        list(outcomes(lambda c: (draw(c, 1, row), draw(c, 1, np.log([0.4, 0.6])))))


def test_a_run_that_is_no_function_of_its_draws() -> None:
    state = [0]

    def run(chance: Any) -> int:
        state[0] += 1
        return draw(chance, 1, np.zeros(2 + state[0] % 2))

    with pytest.raises(LawBroken, match="another path"):
        list(outcomes(run))


@pytest.mark.parametrize("row", [[np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf]])
def test_weights_that_are_none(row: list[float]) -> None:
    with pytest.raises(LawBroken):
        list(outcomes(lambda chance: draw(chance, 1, np.array(row))))


def test_too_many_outcomes() -> None:
    with pytest.raises(LawBroken, match="more than 3 outcomes"):
        list(outcomes(lambda chance: draw(chance, 1, np.zeros(10)), most=3))


def test_an_exception_tells_its_script() -> None:
    def run(chance: Any) -> int:
        found = draw(chance, 1, np.zeros(3))
        if found == 2:
            raise ValueError("two")
        return found

    with pytest.raises(ValueError, match="two") as caught:
        list(outcomes(run))
    assert "script [2]" in caught.value.__notes__[0]


def test_an_enumerator_takes_the_first_option_past_its_script() -> None:
    chance = Enumerator([1])
    assert [draw(chance, k, np.zeros(3)) for k in (1, 2)] == [1, 0]
    assert chance.taken == [1, 0]
    assert chance.widths == [3, 3]
    assert abs(chance.probability - 1 / 9) <= 1e-15


# -- exact measures ------------------------------------------------------------------------------


def test_measure_of_nothing() -> None:
    assert Measure({}).log_z == -math.inf
    assert Measure({}).z == 0.0


def test_a_dead_run_ends_at_once() -> None:
    """As a particle does: what follows a weight of zero is not run."""

    @program
    def divides() -> Any:
        x = sample("x", Categorical([0, 1]))
        factor("positive", x > 0)
        return 1 / x

    assert enumerate_exact(divides) == {1.0: 0.5}
    assert_properly_weighted(divides, engine=SMC(particles=2, always=True))


def test_exceptions_as_a_constraint() -> None:
    @program
    def divides() -> Any:
        return 1 / sample("x", Categorical([0, 1]))

    with pytest.raises(ZeroDivisionError):
        enumerate_exact(divides)
    assert enumerate_exact(divides, on_error="kill") == {1.0: 0.5}
    found = assert_properly_weighted(divides, engine=SMC(particles=2), on_error="kill")
    assert found.outcomes == 4


def test_effects_run_in_every_outcome() -> None:
    calls = []

    def tool(x: bool) -> int:
        calls.append(x)
        return int(x)

    @program
    def uses() -> Any:
        return effect("tool", tool, sample("x", Bernoulli(0.5)))

    assert enumerate_exact(uses) == pytest.approx({0: 0.5, 1: 0.5})
    assert len(calls) == 2


# -- engines -------------------------------------------------------------------------------------


@program
def coin() -> Any:
    heads = sample("heads", Bernoulli(0.3))
    factor("bias", 0.5 if heads else 0.0)
    return heads


def test_an_engine_that_ignores_factors_is_rejected() -> None:
    with pytest.raises(LawBroken, match="is not properly weighted") as caught:
        assert_properly_weighted(coin, engine=Forward(particles=2))
    assert "E[Ẑ] = 0.99999" in str(caught.value)
    assert "Z = 1.1946" in str(caught.value)


@dataclass(frozen=True)
class Own:
    """An engine of a user: it only needs `infer`."""

    error: float = 0.0

    def infer(self, program: Any, *args: Any, **options: Any) -> Any:
        found = infer(program, *args, engine=Importance(particles=1), **options)
        found.log_evidence += self.error
        return found


def test_engines_of_users() -> None:
    assert_properly_weighted(coin, engine=Own())
    with pytest.raises(LawBroken, match=r"Own\(error=0.001\)"):
        assert_properly_weighted(coin, engine=Own(0.001))


def test_report_of_a_good_engine(programs: ModuleType) -> None:
    found = assert_properly_weighted(
        programs.soft, engine=SMC(particles=2, always=True), lm=programs.AB
    )
    assert found.outcomes > 50  # of strings, weights and ancestors
    assert found.error < 1e-14
    assert found.exact.keys() == found.estimate.keys()
    assert abs(found.exact.z - found.estimate.z) < 1e-14


def test_keys_are_counted() -> None:
    assert check_keys(coin, engine=Importance(particles=4), seeds=(0,)) == 4


# -- guides --------------------------------------------------------------------------------------


def test_a_guide_is_met_on_every_prefix(programs: ModuleType) -> None:
    low, high = check_guide(programs.rough, programs.soft, lm=programs.AB)
    assert low < 0.0 < high
    check_guide(lambda trace: 0.0, programs.one_site, lm=programs.AB)


def test_guides_that_are_none(programs: ModuleType) -> None:
    counter = iter(range(10_000))
    with pytest.raises(LawBroken, match="to the same partial trace"):
        check_guide(lambda trace: float(next(counter)), programs.soft, lm=programs.AB)
    with pytest.raises(LawBroken, match="gave zero"):
        check_guide(lambda trace: -math.inf if "y" in trace else 0.0, programs.soft, lm=programs.AB)


def test_a_guide_reads_values_and_weights(programs: ModuleType) -> None:
    """It sees the trace so far, and nothing of what is to come."""
    seen: set[tuple[str, ...]] = set()

    def guide(trace: Trace) -> float:
        seen.add(tuple(trace))
        assert trace.result is None
        return float(trace.log_joint)

    check_guide(guide, programs.soft, lm=programs.AB)
    assert seen == {
        ("x",),
        ("x", "long"),
        ("x", "long", "y"),
        ("x", "long", "y", "match"),
    }


# -- language models -----------------------------------------------------------------------------

TEXTS = {"AB": ["", "a", "ab", "aab"], "TWINS": ["ab"], "HALVES": ["é", "aé"], "MERGES": ["aaa"]}


@pytest.mark.parametrize("name", TEXTS)
def test_tables_obey_the_laws(programs: ModuleType, name: str) -> None:
    lm = getattr(programs, name)
    check_language_model(lm, [(), (0,), (0, 1), (1, 0)], texts=TEXTS[name])
    check_language_model(lm)


def test_wide_rows_obey_the_laws() -> None:
    """Above 1,024 tokens the draw has two levels."""
    rng = np.random.default_rng(0)
    words = [f"w{i} " for i in range(1_400)]
    lm = TableLM(words, {(): rng.dirichlet(np.full(1_400, 0.02)).tolist()}, name="wide")
    check_language_model(lm, [(), (3,), (1_399,)], texts=["w1 w1399 "], draws=8)


class Model(TableLM):
    """A table whose rows can be made wrong."""

    rows_of: type[TableRows] = TableRows

    def open(self, contexts: Any) -> TableRows:
        return self.rows_of(self, super().open(contexts).rows)


class Unnormalised(TableRows):
    def log_probs(self) -> Floats:
        return super().log_probs() + 0.01


class SuffixOnly(TableRows):
    """The defect of genlm-backend 0.3.1: one row of a batch answers for another."""

    def log_probs(self) -> Floats:
        rows = super().log_probs()
        return np.repeat(rows[:1], len(rows), axis=0) if len(rows) > 2 else rows


class Forgets(TableRows):
    def push(self, tokens: Ints) -> None:
        super().push(tokens[::-1].copy())


class Keeps(TableRows):
    def select(self, rows: Ints) -> None:
        super().select(np.sort(rows))


class RawDensity(TableRows):
    """Reports the model's own density as the one it drew from: temperature uncorrected."""

    def draw(self, keys: Any, laws: Any, mask: Any, chance: Any) -> Drawn:
        drawn = super().draw(keys, laws, mask, chance)
        return Drawn(drawn.tokens, drawn.logp, drawn.logp)


class InverseCdf(TableRows):
    """Draws the right law by other noise: not a function of the key alone as promised."""

    def draw(self, keys: Any, laws: Any, mask: Any, chance: Any) -> Drawn:
        if isinstance(chance, GumbelMax):
            keys = keys + np.uint64(1)
        return super().draw(keys, laws, mask, chance)


class WrongMass(TableRows):
    def log_mass(self, sets: Any, temperatures: Any) -> Floats:
        return super().log_mass(sets, [1.0] * len(temperatures))


@pytest.mark.parametrize(
    ("rows", "law"),
    [
        (Unnormalised, "rows are normalised"),
        (SuffixOnly, "a batch gives the rows of its members"),
        (Forgets, "the chain rule"),
        (Keeps, "select reorders"),
        (RawDensity, "log q of"),
        (InverseCdf, "GumbelMax of"),
        (WrongMass, "log_mass"),
    ],
)
def test_broken_models_are_rejected(rows: type[TableRows], law: str) -> None:
    lm = Model(
        ["a", "b", "c", "<eos>"],
        {(): [0.4, 0.3, 0.2, 0.1], (0,): [0.1, 0.2, 0.3, 0.4], (1,): [0.3, 0.3, 0.3, 0.1]},
    )
    check_language_model(lm, [(0,), (1,), (2,)])
    lm.rows_of = rows
    with pytest.raises(LawBroken, match=law):
        check_language_model(lm, [(0,), (1,), (2,)])


@pytest.mark.parametrize("temperature", [0.1, 0.7, 2.0])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_two_references_agree(temperature: float, top_p: float) -> None:
    """The equations of `TokenLaw`, vectorised in the table and by hand in the kit."""
    rng = np.random.default_rng(1)
    for trial in range(20):
        p = rng.dirichlet(np.ones(6))
        p[rng.random(6) < 0.2] = 0.0
        with np.errstate(divide="ignore"):
            row = np.log(p / p.sum())
        law = TokenLaw(temperature, top_p, int(rng.integers(0, 4)), 0.1 * (trial % 2), 1.3)
        mask = rng.random(6) < 0.7
        mask[int(row.argmax())] = True
        for m in (None, mask):
            logp, logq = token_law(row[None, :], law, None if m is None else m[None, :])
            want = token_law_by_hand(row.tolist(), law, None if m is None else m.tolist())
            for got, expected in zip((logp[0], logq[0]), want, strict=True):
                np.testing.assert_allclose(got, expected, atol=1e-12)
            assert abs(np.exp(logq).sum() - 1.0) <= 1e-12


def test_exact_answer_of_the_first_page(programs: ModuleType) -> None:
    """What the documentation shows: Enumerate, plain calls and a sum by hand are one number."""

    @program
    def story() -> Any:
        x = sample("x", LM("", max_tokens=1))
        observe("y", LM(x, max_tokens=1), "a")
        return x

    exact = enumerate_exact(story, lm=programs.AB)
    post = infer(story, engine=Enumerate(), lm=programs.AB)
    by_hand = math.fsum(q * programs.p("a", x) for x, q in programs.strings("", 1))
    assert abs(exact.z - by_hand) <= 1e-15
    assert abs(post.log_evidence - math.log(by_hand)) <= 1e-15
    assert exact.posterior == pytest.approx(dict(post.marginal()))
