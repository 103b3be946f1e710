"""C2: every engine is properly weighted, by exhaustion of its own randomness.

For every outcome of an engine's draws, resampling included: Σ P Ẑ W(x) = γ(x) to 1e-10, γ by hand.
The settings of SMC form a table in which any two values of any two columns occur together; each
program meets a few of its rows in the fast suite and all of them in the slow one.
"""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from lmppl import LM, factor, observe, program, sample
from lmppl.inference import SMC, Engine, Enumerate, Importance, Rejection, infer_many, tokens
from lmppl.lm.table import TableLM
from lmppl.testing import assert_properly_weighted, enumerate_exact, outcomes
from lmppl.weights import exp

ATOL = 1e-10
AXES: dict[str, tuple[Any, ...]] = {
    "scheme": ("systematic", "multinomial", "stratified", "residual"),
    "resample_at": ("site", "factor", tokens(1)),
    "driver": ("greenlet", "eager", "coroutine"),
    "always": (True, False),
    "guided": (True, False),
}
HEAVY = {"nested", "random_loop", "shared_parent"}
"""Programs with thousands of outcomes: one row each in the fast suite."""
NARROW = {"branching", "calculator", "chosen", "derived", "impossible", "killed_long", "observed"}
"""Programs whose outcomes stay few under multinomial resampling at every site."""
WIDE = HEAVY | {"early_return", "handled", "hard", "recursion", "scoped", "soft"}
"""Programs with more than 5,000 outcomes under it."""


class Row(NamedTuple):
    """One setting of SMC."""

    scheme: str
    resample_at: Any
    driver: str
    always: bool
    guided: bool

    @property
    def broad(self) -> bool:
        """Whether it multiplies the outcomes by N^N at every site."""
        return self.scheme == "multinomial" and self.always and self.resample_at != "factor"

    def __str__(self) -> str:
        when = "always" if self.always else "ess"
        at = self.resample_at if isinstance(self.resample_at, str) else "token"
        return "-".join([self.scheme, at, self.driver, when, "guide" if self.guided else "plain"])


def covering() -> list[Row]:
    """Rows in which any two values of any two axes meet, found greedily."""
    every = [Row(*values) for values in itertools.product(*AXES.values())]

    def pairs(row: Row) -> set[tuple[int, Any, int, Any]]:
        cells = list(enumerate(map(str, row)))
        return {(i, a, j, b) for (i, a), (j, b) in itertools.combinations(cells, 2)}

    missing = set().union(*map(pairs, every))
    rows = []
    while missing:
        best = max(every, key=lambda row: len(pairs(row) & missing))
        rows.append(best)
        missing -= pairs(best)
    return rows


ROWS = covering()


def smc(row: Row, guide: Any, particles: int = 2) -> SMC:
    return SMC(
        particles=particles,
        resampling=row.scheme,
        resample_at=row.resample_at,
        always=row.always,
        ess_threshold=0.85,
        guide=guide if row.guided else None,
    )


def check(case: Any, twin: Any, row: Row, guide: Any, particles: int = 2) -> None:
    chosen = twin if row.driver == "coroutine" else case
    assert_properly_weighted(
        chosen.program,
        *chosen.args,
        engine=smc(row, guide, particles),
        lm=chosen.lm,
        exact=case.by_hand(),
        driver=row.driver,
        atol=ATOL,
    )


@pytest.fixture
def twin(case: Any, async_programs: ModuleType) -> Any:
    """The async form of a case."""
    return next(c for c in async_programs.CASES if c.name == case.name)


def test_rows_cover_all_pairs() -> None:
    assert len(ROWS) <= 20
    for (i, a), (j, b) in itertools.combinations(enumerate(AXES.values()), 2):
        for x, y in itertools.product(a, b):
            assert any(row[i] == x and row[j] == y for row in ROWS)


@pytest.mark.parametrize("pick", [0, 1])
def test_smc(case: Any, twin: Any, programs: ModuleType, pick: int) -> None:
    """Two rows for each program, another two for the next one."""
    if pick and case.name in HEAVY:
        pytest.skip("thousands of outcomes: the slow suite has them")
    rows = [row for row in ROWS if not row.broad]
    at = programs.CASES.index(case)
    check(case, twin, rows[(at + pick * (len(rows) // 2)) % len(rows)], programs.rough)


@pytest.mark.parametrize("row", [row for row in ROWS if row.broad], ids=str)
def test_smc_broad(case: Any, twin: Any, programs: ModuleType, row: Row) -> None:
    if case.name not in NARROW:
        pytest.skip("thousands of outcomes: the slow suite has them")
    check(case, twin, row, programs.rough)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_smc_every_row(case: Any, twin: Any, programs: ModuleType, row: Row) -> None:
    if row.broad and case.name in WIDE:
        pytest.skip("more than 5,000 outcomes")
    if case.name in HEAVY and ROWS.index(row) % 3:
        pytest.skip("thousands of outcomes: every third row is enough")
    check(case, twin, row, programs.rough)


THREE = ("calculator", "chosen", "listed_proposal", "mixture", "observed", "regexed")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("row", [r for r in ROWS if r.scheme != "multinomial"], ids=str)
@pytest.mark.parametrize("name", THREE)
def test_three_particles(
    programs: ModuleType, async_programs: ModuleType, name: str, row: Row
) -> None:
    case, twin = (
        next(c for c in module.CASES if c.name == name) for module in (programs, async_programs)
    )
    check(case, twin, row, programs.rough, particles=3)


# -- proposals: the same target, drawn in three ways ---------------------------------------------


def aimed(programs: ModuleType, kind: str, engine: Engine, driver: str | None = None) -> None:
    assert_properly_weighted(
        programs.aimed,
        kind,
        engine=engine,
        lm=programs.AB,
        exact=programs.aimed_by_hand(),
        driver=driver,
        atol=ATOL,
    )


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("kind", ["prior", "tempered", "perfect"])
def test_proposals(programs: ModuleType, async_programs: ModuleType, kind: str, at: int) -> None:
    row = [row for row in ROWS if not row.broad][3 * at]
    module = async_programs if row.driver == "coroutine" else programs
    aimed(module, kind, smc(row, programs.exact_twist), row.driver)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("row", [row for row in ROWS if not row.broad], ids=str)
@pytest.mark.parametrize("guide", ["rough", "exact_twist"])
@pytest.mark.parametrize("kind", ["prior", "tempered", "perfect"])
def test_proposals_every_row(
    programs: ModuleType, async_programs: ModuleType, kind: str, guide: str, row: Row
) -> None:
    module = async_programs if row.driver == "coroutine" else programs
    aimed(module, kind, smc(row, getattr(programs, guide)), row.driver)


# -- the other engines ---------------------------------------------------------------------------

OTHERS: tuple[Engine, ...] = (
    Importance(particles=1),
    Importance(particles=2),
    Rejection(samples=2, max_tries=2, log_bound=3.0, batch=2),
    SMC(particles=1, always=True),
    SMC(particles=2, ess_threshold=0.0),
)
"""A new engine joins the laws by one line here."""

SMALL = {"observed", "calculator", "hidden_loop", "recursion", "branching", "regexed", "mixture"}
SMALL |= {"impossible", "early_return", "chosen", "forced_end"}


@pytest.mark.parametrize("engine", OTHERS, ids=repr)
def test_engines(case: Any, engine: Engine) -> None:
    if case.name in HEAVY or (isinstance(engine, Rejection) and case.name not in SMALL):
        pytest.skip("thousands of outcomes: the slow suite has them")
    assert_properly_weighted(
        case.program, *case.args, engine=engine, lm=case.lm, exact=case.by_hand(), atol=ATOL
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("engine", [*OTHERS, Rejection(2, 3, 3.0, 1)], ids=repr)
def test_engines_on_all(case: Any, engine: Engine) -> None:
    if isinstance(engine, Rejection) and case.name in HEAVY | {"handled", "scoped"}:
        pytest.skip("tens of thousands of outcomes")
    if isinstance(engine, Rejection) and engine.max_tries > 2 and case.name not in SMALL:
        pytest.skip("thousands of outcomes: two tries are enough")
    assert_properly_weighted(
        case.program, *case.args, engine=engine, lm=case.lm, exact=case.by_hand(), atol=ATOL
    )


def test_enumerate_is_one_outcome(case: Any) -> None:
    if case.name == "nested":
        pytest.skip("an inner importance sampler is not enumerated by the outer engine")
    found = assert_properly_weighted(
        case.program, *case.args, engine=Enumerate(), lm=case.lm, exact=case.by_hand(), atol=1e-12
    )
    assert found.outcomes == 1


@pytest.mark.parametrize(
    "engine", [Importance(particles=2), SMC(particles=2, always=True), Enumerate()], ids=repr
)
@pytest.mark.parametrize("driver", ["greenlet", "eager"])
def test_observations_of_the_run(programs: ModuleType, engine: Engine, driver: str) -> None:
    """`infer(observations=...)` conditions a sample site, replay included."""
    expected = {("a", y): mass for (x, y), mass in programs.soft_by_hand().items() if x == "a"}
    assert_properly_weighted(
        programs.soft,
        engine=engine,
        lm=programs.AB,
        exact=expected,
        observations={"x": "a"},
        driver=driver,
        atol=ATOL,
    )


@pytest.mark.parametrize("of", ["x", lambda trace: len(trace["x"]) + len(trace["y"])])
def test_any_function_of_the_trace(programs: ModuleType, of: Any) -> None:
    assert_properly_weighted(
        programs.soft, engine=SMC(particles=2, always=True), lm=programs.AB, of=of, atol=ATOL
    )


# -- many questions, several models --------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize(
    "engine", [Importance(particles=1), SMC(particles=2, always=True)], ids=repr
)
def test_questions_are_independent(programs: ModuleType, engine: Engine, concurrency: int) -> None:
    """E[Ẑ₁ Ẑ₂ W₁(x) W₂(y)] = γ₁(x) γ₂(y): questions share batches, not draws."""

    @program
    def answer(last: str) -> Any:
        x = sample("x", LM(last, max_tokens=1))
        factor("long", 0.5 * len(x))
        return x

    def run(chance: Any) -> list[Any]:
        return infer_many(
            answer,
            ["a", "b"],
            engine=engine,
            lm=programs.AB,
            chance=chance,
            concurrency=concurrency,
        )

    found: dict[Any, float] = {}
    for probability, (first, second) in outcomes(run):
        z = probability * exp(first.log_evidence + second.log_evidence)
        for s, v in zip(first.traces, first.weights.tolist(), strict=True):
            for t, w in zip(second.traces, second.weights.tolist(), strict=True):
                found[s.result, t.result] = found.get((s.result, t.result), 0.0) + z * v * w
    law = {last: enumerate_exact(answer, last, lm=programs.AB) for last in "ab"}
    for x, p in law["a"].items():
        for y, q in law["b"].items():
            assert abs(found.pop((x, y), 0.0) - p * q) <= ATOL
    assert not any(found.values())


@pytest.mark.parametrize(
    "engine", [Importance(particles=2), SMC(particles=2, always=True), Enumerate()], ids=repr
)
def test_two_models(programs: ModuleType, engine: Engine) -> None:
    """One model writes, another judges: it has the same letters under other ids."""
    judge = TableLM(
        ["b", "a", "<eos>"], {(): [0.2, 0.5, 0.3], (0,): [0.3, 0.4, 0.3], (1,): [0.1, 0.6, 0.3]}
    )

    @program
    def judged() -> Any:
        x = sample("x", LM("", max_tokens=2))
        observe("again", LM("a", max_tokens=2, lm="judge"), x)
        return x

    liked = {"": 0.3, "a": 0.6 * 0.3, "b": 0.1 * 0.3, "aa": 0.36, "ab": 0.06, "ba": 0.04}
    assert_properly_weighted(
        judged,
        engine=engine,
        lm={"default": programs.AB, "judge": judge},
        exact={x: q * liked[x] for x, q in programs.strings("", 2)},
        atol=ATOL,
    )
