"""Guides: declared, checked, batched; exact ones make a filter perfect; none changes a target."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lmppl import (
    LM,
    Bernoulli,
    Categorical,
    Choice,
    LmpplError,
    Reward,
    Uniform,
    factor,
    loop,
    observe,
    plate,
    potentials,
    program,
    sample,
)
from lmppl.errors import BadArgument
from lmppl.inference import SMC, Guide, infer, tokens
from lmppl.inference.guide import partial_trace
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.results.history import History
from lmppl.inference.results.posterior import population_posterior
from lmppl.lm.table import TableLM
from lmppl.potentials import Prefix, Value
from lmppl.steps import steps_of
from lmppl.testing import LawBroken, assert_properly_weighted, check_guide, enumerate_exact
from lmppl.trace import Entry, SoFar, Trace
from lmppl.weights import exp, log_mean_exp

ATOL = 1e-10
AB = TableLM(
    ["a", "b", "<eos>"],
    {(): [0.5, 0.3, 0.2], (0,): [0.6, 0.0, 0.4], (1,): [0.0, 0.0, 1.0], (2,): [0.5, 0.3, 0.2]},
    name="ab",
)


@program
def chain() -> Any:
    """Two strings and a late observation: the case for a guide."""
    x = sample("x", LM("", max_tokens=2))
    y = sample("y", LM(x, max_tokens=1))
    observe("z", LM(y, max_tokens=1), "a")
    factor("long", 0.7 * len(x + y))
    return x, y


GUIDES: dict[str, Any] = {
    "function": lambda trace: 0.3 * len(trace),
    "probability": Guide(lambda trace: 1 / (1 + len(trace)), scale="prob"),
    "real": Guide(lambda trace: 2.0 + len(trace), scale="real"),
    "floor": Guide(lambda trace: float("x" in trace), scale="prob", floor=0.01),
    "batched": Guide(lambda traces: [0.2 * len(t) for t in traces], batched=True),
    "reward": Guide.reward(lambda text: text.count("a") / (1 + len(text)), at=("x", "y")),
    "yes_no": Guide.reward(Reward.yes_no("{text}", yes="a", no="b"), at="x"),
    "min": Guide.value(Value(lambda text: 1 / (1 + len(text)), link="ratio", aggregate="min")),
    "optimal": Guide.optimal(chain, lm=AB),
    "relaxed": Guide.relaxed(chain, lm=AB, key=len),
}


QUICK = ("batched", "reward", "optimal")


@pytest.mark.parametrize(
    ("name", "at"),
    [
        *((name, "site") for name in GUIDES),
        *((name, tokens(1)) for name in QUICK),
        *(pytest.param(n, tokens(1), marks=pytest.mark.slow) for n in GUIDES if n not in QUICK),
    ],
    ids=str,
)
def test_no_guide_changes_the_target(name: str, at: Any) -> None:
    engine = SMC(2, always=True, resample_at=at, guide=GUIDES[name])
    assert_properly_weighted(chain, engine=engine, lm=AB, atol=ATOL)


@dataclass(frozen=True)
class Forgetful(SMC):
    """The mutant: multiplies by h_t at each barrier and forgets to divide by h_{t-1}."""

    keep_last: bool = False

    def run(self, machine: Machine) -> Jobs:
        population = [machine.particle(i) for i in range(self.particles)]
        guide = Guide.of(self.guide)
        last = np.zeros(self.particles)
        while True:
            yield from machine.advance(population, "site")
            if all(p.finished for p in population):
                break
            logh = yield from guide.log_h(machine, population)  # type: ignore[union-attr]
            for p, now, before in zip(population, logh, last, strict=True):
                p.logw += now - before if self.keep_last else now
            last = logh
        if self.keep_last:
            for p, before in zip(population, last, strict=True):
                p.logw -= before
        lw = np.array([p.log_weight for p in population])
        history = History(self.particles)
        history.end(lw, [p.eve for p in population])
        return population_posterior(machine, self, population, log_mean_exp(lw), history)


def test_a_filter_that_forgets_the_old_guide_is_rejected() -> None:
    guide = GUIDES["probability"]
    right = Forgetful(2, guide=guide, keep_last=True)
    assert_properly_weighted(chain, engine=right, lm=AB, atol=ATOL)
    with pytest.raises(LawBroken, match="not properly weighted"):
        assert_properly_weighted(chain, engine=Forgetful(2, guide=guide), lm=AB, atol=ATOL)


# -- exact guides --------------------------------------------------------------------------------


def test_optimal_by_hand() -> None:
    """h*(prefix) = Σ γ below / γ(prefix), and the largest for "max"."""

    @program
    def two() -> Any:
        x = sample("x", Categorical({"a": 0.5, "b": 0.5}))
        factor("f", math.log(0.3) if x == "a" else 0.0)
        y = sample("y", Categorical({"a": 0.25, "b": 0.75}))
        factor("g", math.log(0.2) if x == y else False)
        return x, y

    x = Entry(None, "sample", "x", "a", logp=math.log(0.5))
    f = Entry(x, "factor", "f", math.log(0.3), logw=math.log(0.3))
    y = Entry(f, "sample", "y", "b", logp=math.log(0.75))
    best = Guide.optimal(two, semiring="max")
    both = Guide.optimal(two)
    assert both.exact and not both.admissible and best.admissible
    for guide, whole in ((both, 0.5 * 0.3 * 0.25 * 0.2 + 0.5 * 0.75 * 0.2), (best, 0.075)):
        assert guide(Trace(None)) == pytest.approx(math.log(whole))
        assert guide(Trace(x)) == pytest.approx(math.log(0.3 * 0.25 * 0.2))
        assert guide(Trace(f)) == pytest.approx(math.log(0.25 * 0.2))
        assert guide(Trace(y)) == -math.inf  # a proof that nothing follows


@program
def looped() -> Any:
    def step(state: int, t: int) -> int:
        state = sample("s", Categorical({0: 0.7, 1: 0.3}) if state == 0 else Bernoulli(0.6)) * 1
        observe("o", Bernoulli(0.8 if state else 0.1), t != 1)
        return state

    return loop(step, 0, n=2)


@program
def branches() -> Any:
    def one(i: int) -> Any:
        a = sample("a", Uniform([0, 1]))
        factor("f", -0.5 * (a + i))
        return a

    total = sum(plate("p", range(2), one))
    observe("total", Categorical({total: 0.9, 3: 0.1}), 2)
    return total


@program
def dead_ends() -> Any:
    x = sample("x", Choice("", ["a", "b"]))
    y = sample("y", LM("", max_tokens=1))
    factor("equal", str(x) == str(y))
    return x


@pytest.mark.parametrize("at", ["site", tokens(1), "factor"], ids=str)
@pytest.mark.parametrize("fn", [chain, looped, branches, dead_ends], ids=lambda f: f.__name__)
def test_exact_guides_change_no_target(fn: Any, at: Any) -> None:
    """Nor where h* = 0 says that a living particle has no future."""
    engine = SMC(2, always=True, resample_at=at, guide=Guide.optimal(fn, lm=AB))
    assert_properly_weighted(fn, engine=engine, lm=AB, atol=ATOL)


@pytest.mark.parametrize("fn", [chain, looped, branches, dead_ends], ids=lambda f: f.__name__)
def test_h_star_is_a_martingale(fn: Any) -> None:
    """E[w_t h*_t | past] = w_{t-1} h*_{t-1} on every partial trace, half-drawn strings included."""
    guide = Guide.optimal(fn, lm=AB)
    z = enumerate_exact(fn, lm=AB).z
    seen: list[list[float]] = []

    @dataclass(frozen=True)
    class Watch(SMC):
        def run(self, machine: Machine) -> Jobs:
            population = [machine.particle(0)]
            levels = []
            while not population[0].finished:
                yield from machine.advance(population, "site", 1)
                logh = yield from guide.log_h(machine, population)
                levels.append(population[0].log_weight + float(logh[0]))
            seen.append(levels)
            lw = np.array([population[0].log_weight])
            history = History(1)
            history.end(lw, [0])
            return population_posterior(machine, self, population, float(lw[0]), history)

    from lmppl.testing import outcomes

    levels: dict[int, float] = {}
    for probability, _ in outcomes(
        lambda chance: infer(fn, engine=Watch(1), lm=AB, chance=chance, on_dead="return")
    ):
        path = seen[-1]
        for t in range(12):  # a finished particle keeps its weight
            levels[t] = levels.get(t, 0.0) + probability * exp(path[min(t, len(path) - 1)])
    for mean in levels.values():
        assert mean == pytest.approx(z, abs=ATOL)


def test_relaxed_guides() -> None:
    """The largest h* of a class bounds h*; the mean keeps E[h] right; one class knows nothing."""
    exact = Guide.optimal(chain, lm=AB, semiring="max")
    bound = Guide.relaxed(chain, lm=AB, key=len, semiring="max")
    assert bound.admissible and not bound.exact
    gaps = []

    def look(trace: Trace) -> Any:
        head: Entry | None = None
        for e in trace.sites:
            head = Entry(head, e.op, e.address, e.value, e.logp, e.logq, e.logw)
            gaps.append(bound(Trace(head)) - exact(Trace(head)))

    enumerate_exact(chain, lm=AB, of=look)
    assert min(gaps) >= -1e-12 and max(gaps) > 0.1
    whole = enumerate_exact(chain, lm=AB)
    mean = Guide.relaxed(chain, lm=AB, key=lambda trace: len(trace.sites))
    assert mean(Trace(None)) == pytest.approx(math.log(whole.z))
    assert bound(Trace(None)) == pytest.approx(math.log(max(_traces(chain))))
    assert Guide.relaxed(chain, lm=AB, key=lambda t: "?", semiring="max")(Trace(None)) >= bound(
        Trace(None)
    )


def _traces(fn: Any) -> list[float]:
    from lmppl.inference import Enumerate

    return [exp(lw) for lw in infer(fn, engine=Enumerate(), lm=AB).log_weights.tolist()]


# -- the object ----------------------------------------------------------------------------------


def test_jobs_of_a_guide_are_batched_and_counted() -> None:
    before = AB.usage.passes
    guide = Guide.reward(Reward.yes_no("{text}", yes="a", no="b"), at="x")

    @program
    def word() -> Any:
        x = sample("x", Uniform(["a", "b"]))
        return x, sample("y", Uniform(["a", "b"]))

    post = infer(word, engine=SMC(8, always=True, guide=guide), lm=AB, seed=0)
    assert post.ledger.reward_calls == 8
    assert post.ledger.passes == AB.usage.passes - before == 1

    asked: list[int] = []

    def batch(traces: list[Trace]) -> list[float]:
        asked.append(len(traces))
        return [0.0] * len(traces)

    infer(word, engine=SMC(8, always=True, guide=Guide(batch, batched=True)), seed=0)
    assert asked == [8]


def test_what_a_guide_sees_of_a_string() -> None:
    met: list[SoFar] = []

    def look(trace: Trace) -> float:
        if "x" in trace or "x" in trace.partial:
            met.append(trace.so_far("x"))
        return 0.0

    infer(chain, engine=SMC(4, always=True, resample_at=tokens(1), guide=look), lm=AB, seed=1)
    half = [text for text in met if not text.finished]
    whole = [text for text in met if text.finished]
    assert half and whole
    assert all(text.token_ids is not None and len(text) == len(text.token_ids) for text in half)
    assert {len(text) for text in half} == {1}
    trace = infer(chain, engine=SMC(2), lm=AB).traces[0]
    assert trace.so_far("x") == trace["x"] and trace.so_far("x").finished
    with pytest.raises(KeyError):
        trace.so_far("nowhere")


def test_branches_are_seen() -> None:
    met: set[str] = set()

    def look(trace: Trace) -> float:
        met.update(trace)
        return 0.0

    class Spy(SMC):
        def run(self, machine: Machine) -> Jobs:
            p = machine.particle(0)
            yield from machine.advance([p], "site")
            assert {"p[0]/a", "p[1]/a"} <= set(partial_trace(p))
            p.strand.kill()
            return (yield from super().run(machine))

    infer(branches, engine=Spy(2, guide=look), seed=0, on_dead="return")
    assert {"p[0]/a", "p[0]/f", "p[1]/f"} <= met


def test_check_guide_takes_guides() -> None:
    low, high = check_guide(GUIDES["probability"], chain, lm=AB)
    assert low < high < 0.0


def test_potentials_and_their_value() -> None:
    """The same model as a target and as the guide that looks ahead to it."""
    prm = Reward.of(lambda text: (1 + text.count("a")) / (2 + len(text)), name="prm")
    rewarded = potentials.apply(chain, Prefix(prm, link="ratio"))
    engine = SMC(2, always=True, guide=Guide.value(Value(prm, link="ratio")))
    assert_properly_weighted(
        rewarded, engine=dataclasses.replace(engine, always=False), lm=AB, atol=ATOL
    )
    said = engine.target(rewarded)
    assert "γ(trace) includes prm_T" in said and "h = prm_t" in said


BAD: list[tuple[Any, str]] = [
    (lambda: Guide(3), "must be a function of a partial trace"),  # type: ignore[arg-type]
    (lambda: Guide(len, semiring="min"), "semiring must be one of"),
    (lambda: Guide(len, scale="probability"), "scale must be one of"),
    (lambda: Guide(len, admissible=True), "bounds the best completion"),
    (lambda: Guide(len, batched=True, steps=True), "exclude each other"),
    (lambda: Guide(len, floor=-1.0), "floor must be"),
    (lambda: Guide.value(Prefix(len, link="ratio")), "needs a potentials.Value"),
    (lambda: SMC(guide=3), "must be a function of a partial trace"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        make()


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (lambda t: -math.inf, "gave zero to a particle that is alive"),
        (Guide(lambda t: 0.0, scale="prob"), "gave zero to a particle that is alive"),
        (Guide(lambda t: 1.5, scale="prob"), "must return a probability"),
        (Guide(lambda t: -0.5, scale="real"), "a number ≥ 0"),
        (Guide(lambda t: [0.0], batched=True), "1 numbers for 2 traces"),
        (lambda t: math.nan, "guide"),
        (lambda t: None, "guide"),
    ],
)
def test_bad_values(guide: Any, message: str) -> None:
    with pytest.raises(LmpplError, match=message):
        infer(chain, engine=SMC(2, always=True, guide=guide), lm=AB)


@pytest.mark.parametrize("aggregate", ["prod", "min", "mean", "last"])
def test_a_prefix_is_scored_once(aggregate: str) -> None:
    """Four steps, 16 particles: one question for each distinct prefix, whatever the aggregate."""
    asked: list[str] = []

    def judge(text: str) -> float:
        asked.append(text)
        return 0.5 + 0.1 * text.count("a")

    @program
    def steps() -> str:
        text = ""
        for i in range(4):
            text = text + sample(f"step{i}", LM(text, max_tokens=1))
        return str(text)

    guide = Guide.value(Value(judge, at="step*", link="probability", aggregate=aggregate))
    lm = TableLM.random(["a", "b"], seed=2)
    engine = SMC(16, always=True, guide=guide)
    first = infer(steps, engine=engine, lm=lm, seed=0)
    assert len(asked) == len(set(asked))
    again = infer(steps, engine=engine, lm=lm, seed=0)  # a run of its own
    assert len(asked) == 2 * len(set(asked))
    assert first.log_evidence == again.log_evidence
    plain = Guide(
        lambda trace, env: Value(
            judge, at="step*", link="probability", aggregate=aggregate
        ).step(steps_of(trace, ("step*",)), env),
        steps=True, floor=1e-3,
    )  # fmt: skip
    without = infer(steps, engine=SMC(16, always=True, guide=plain), lm=lm, seed=0)
    assert without.log_evidence == first.log_evidence
    # the ledger counts the step of each particle once, and not its past again
    assert len(set(asked)) <= first.ledger.reward_calls <= 4 * 16
    assert (without.ledger.reward_calls > first.ledger.reward_calls) or aggregate == "last"
