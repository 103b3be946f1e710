"""Search engines on programs: exact where they visit everything, the same in every batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from lmppl import (
    LM,
    Bernoulli,
    Categorical,
    Choice,
    deterministic,
    factor,
    observe,
    program,
    sample,
)
from lmppl.distributions import Distribution
from lmppl.errors import BadArgument, LmpplError
from lmppl.inference import (
    ABMCTS,
    DVTS,
    MCTS,
    AStar,
    Beam,
    BestFirst,
    Engine,
    Enumerate,
    Foresight,
    Forward,
    Found,
    Fractured,
    StepGreedy,
    infer,
    infer_many,
)
from lmppl.jobs import Draw, Env
from lmppl.lm.table import TableLM
from lmppl.random import uniform
from lmppl.trace import Trace

LETTERS = TableLM(
    ["a", "b", "c", "<eos>"],
    {
        (): [0.4, 0.3, 0.2, 0.1],
        (0,): [0.1, 0.5, 0.3, 0.1],
        (1,): [0.3, 0.1, 0.4, 0.2],
        (2,): [0.2, 0.3, 0.1, 0.4],
    },
    name="letters",
)


class Normal(Distribution):
    """A law without a finite support."""

    kind = "Normal"

    def __init__(self, mean: float, sd: float) -> None:
        self.mean, self.sd = mean, sd

    def draw(self, key: int, env: Env) -> Draw:
        z = math.sqrt(-2 * math.log(uniform(key, 0))) * math.cos(2 * math.pi * uniform(key, 1))
        value = self.mean + self.sd * z
        logp = self.score(value, env)
        return Draw(value, logp, logp)

    def score(self, value: Any, env: Env) -> float:
        z = (float(value) - self.mean) / self.sd
        return -0.5 * z * z - math.log(self.sd * math.sqrt(2 * math.pi))

    @property
    def fingerprint(self) -> int:
        return hash((self.mean, self.sd)) & 0xFFFFFFFF


@program
def words(most: int = 3) -> Any:
    """A string, a choice that depends on it, a soft factor."""
    x = sample("x", LM("", max_tokens=most))
    y = sample("y", Choice(x or "a", ["a", "b"]))
    factor("same", 1.0 if y in x else -0.5)
    z = sample("z", LM(x + y, max_tokens=1))
    return x + y + z


EXHAUSTIVE: list[Engine] = [
    Beam(width=100_000),
    Beam(width=100_000, groups=4),
    AStar(solutions=100_000, guide=lambda trace: 1.0 if "y" not in trace else 0.0),
    BestFirst(solutions=100_000, wave=7),
    MCTS(simulations=5_000, batch=16),
]


@pytest.mark.parametrize("engine", EXHAUSTIVE, ids=lambda e: type(e).__name__)
def test_visiting_everything_is_exact(case: Any, engine: Engine) -> None:
    if case.name in ("impossible", "nested"):
        pytest.skip("its evidence is random, or it has none")
    exact = infer(case.program, *case.args, engine=Enumerate(), lm=case.lm)
    post = infer(case.program, *case.args, engine=engine, lm=case.lm)
    assert post.log_evidence == pytest.approx(exact.log_evidence, abs=1e-10)
    assert len(post) == len(exact)
    for value, p in exact.marginal().items():
        assert post.marginal()[value] == pytest.approx(p, abs=1e-10)


ENGINES: list[Engine] = [
    Beam(width=3, expand=3),
    Beam(width=3, expand=3, children="sample", temperature=0.7),
    DVTS(expand=3),
    BestFirst(expand=2, budget=12, children="sample"),
    StepGreedy(expand=3, margin=0.1),
    MCTS(simulations=12, batch=3, expand=2, puct=True),
    MCTS(simulations=12, backup="max", children="sample"),
    Foresight(width=2, least=1),
    Fractured(particles=3, cuts=2, answers=2, cut="x"),
]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: repr(e)[:40])
def test_results_do_not_depend_on_the_batch(engine: Engine) -> None:
    together = infer_many(words, [(3,), (4,), (5,)], engine=engine, lm=LETTERS, ids=[0, 1, 2])
    alone = [
        infer_many(words, [(k,)], engine=engine, lm=LETTERS, ids=[i])[0]
        for i, k in enumerate((3, 4, 5))
    ]
    for a, b in zip(together, alone, strict=True):
        assert [t.result for t in a.traces] == [t.result for t in b.traces]
        assert np.array_equal(a.log_weights, b.log_weights)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: repr(e)[:40])
def test_engines_are_immutable_and_say_what_they_return(engine: Engine) -> None:
    """llm-reasoners' temperature_decay changes the algorithm: its second question starts colder."""
    before = repr(engine)
    first = infer(words, engine=engine, lm=LETTERS, seed=1)
    second = infer(words, engine=engine, lm=LETTERS, seed=1)
    assert [t.result for t in first.traces] == [t.result for t in second.traces]
    assert repr(engine) == before
    with pytest.raises(FrozenInstanceError):
        engine.expand = 2  # type: ignore[attr-defined]
    text = engine.target(words)
    assert "no sample" in text or "not the posterior" in text


@pytest.mark.parametrize("engine", ENGINES[:7], ids=lambda e: repr(e)[:40])
def test_the_evidence_is_a_lower_bound_and_no_trace_is_found_twice(engine: Engine) -> None:
    """llm-reasoners' action_dedup is an UnboundLocalError; here equal children are one child."""
    exact = infer(words, engine=Enumerate(), lm=LETTERS)
    gammas = {repr(t): t.log_joint for t in exact.traces}
    for seed in range(5):
        post = infer(words, engine=engine, lm=LETTERS, seed=seed)
        assert isinstance(post, Found)
        assert post.log_evidence <= exact.log_evidence + 1e-12
        assert len({repr(t) for t in post.traces}) == len(post)
        for t, lw in zip(post.traces, post.log_weights, strict=True):
            assert gammas[repr(t)] == pytest.approx(lw, abs=1e-10)
        assert math.isnan(post.log_evidence_se)
        assert not post.warnings


def test_a_stochastic_beam_draws_in_proportion() -> None:
    """llm-reasoners' sampling_strategy="stochastic" is an IndexError. Width 1: softmax of log g."""

    @program
    def three() -> Any:
        return sample("v", Categorical({"a": 0.5, "b": 0.3, "c": 0.2})) + sample(
            "w", Categorical({"x": 1.0})
        )

    n, counts = 1_000, {"ax": 0, "bx": 0, "cx": 0}
    for seed in range(n):
        post = infer(three, engine=Beam(width=1, temperature=0.5), seed=seed)
        counts[post.best] += 1  # type: ignore[attr-defined]
    squares = {"ax": 0.25, "bx": 0.09, "cx": 0.04}
    for v, w in squares.items():
        p = w / 0.38
        z = (counts[v] / n - p) / math.sqrt(p * (1 - p) / n)
        assert abs(z) < 4.9  # two-sided 1e-6


def test_groups_never_compete() -> None:
    """A beam is taken over by one branch; independent subtrees keep the others."""

    @program
    def lure() -> Any:
        first = sample("first", Categorical({"bad": 0.8, "good": 0.2}))
        for i in range(2):
            sample("more", Categorical({i: 0.25 for i in range(4)}))
        factor("end", 5.0 if first == "good" else 0.0)
        return first

    assert infer(lure, engine=Beam(width=2)).map().result == "bad"
    assert infer(lure, engine=Beam(width=2, groups=2)).map().result == "good"


def test_numbers_are_drawn() -> None:
    @program
    def numbers() -> Any:
        x = sample("x", Normal(0.0, 1.0))
        observe("y", Normal(x, 0.5), 1.0)
        return round(x, 3)

    post = infer(numbers, engine=Beam(width=16, expand=16), seed=0)
    assert len(post) == 256
    assert abs(post.map().result - 0.8) < 0.1  # the mode
    with pytest.raises(LmpplError, match="no finite support"):
        infer(numbers, engine=AStar())


def test_a_guide_ranks_alone() -> None:
    """A process reward model decides, and the language model's own probability does not."""

    def reward(trace: Trace) -> float:
        return -5.0 * float(list(trace.values()).count("likely"))

    @program
    def steps() -> Any:
        law = Categorical({"likely": 0.99, "right": 0.01})
        return [sample("v", law) for _ in range(3)]

    alone = infer(steps, engine=Beam(width=2, rank="guide", guide=reward))
    assert alone.map().result == ("right",) * 3
    # jointly the guide is 1 at the end, so that γ decides among what is finished
    joint = infer(steps, engine=Beam(width=8, guide=reward))
    assert joint.map().result == ("likely",) * 3
    with pytest.raises(BadArgument, match="needs a guide"):
        Beam(rank="guide")


NOISE = [-1.96, -1.15, -0.76, -0.46, -0.15, 0.15, 0.46, 0.76, 1.15, 1.96]
"""Ten equally probable values of about unit variance."""


@program
def chain(steps: int, noise: float) -> Any:
    """A slip with probability 0.15 is final; a reward model sees each step with noise."""
    ok = True
    slips = Categorical([(s, z) for s in (False, True) for z in NOISE], [0.085] * 10 + [0.015] * 10)
    for _ in range(steps):
        slip, z = sample("step", slips)
        ok = ok and not slip
        deterministic("seen", (2.0 if ok else -2.0) + noise * z)
    return ok


def seen(trace: Trace) -> float:
    return next((float(e.value) for e in reversed(trace.sites) if e.op == "deterministic"), 0.0)


def test_going_back_helps_a_greedy_search() -> None:
    n = 40
    options: dict[str, Any] = {"rank": "guide", "guide": seen, "children": "sample"}
    right = [
        sum(bool(infer(chain, 10, 2.0, engine=e, seed=s).map().result) for s in range(n)) / n
        for e in (
            StepGreedy(expand=4, **options),
            StepGreedy(expand=4, margin=2.0, backtracks=40, **options),
        )
    ]
    assert right[1] > right[0] + 0.04


@program
def refine(parent: Any = None) -> Any:
    """A fresh number is low; a refinement closes a part of what is missing."""
    base = 0.0 if parent is None else parent
    x = base + 0.2 * sample("gain", Categorical([0.1, 0.5, 1.0], [0.4, 0.3, 0.3])) * (1 - base)
    factor("score", math.log(x))
    return x


@pytest.mark.parametrize("posterior", ["nix2", "beta", "mixed", "wider_deeper"])
def test_refinement_of_a_program(posterior: str) -> None:
    engine = ABMCTS(nodes=60, batch=4, posterior=posterior)
    post = infer(refine, engine=engine, seed=2)
    assert isinstance(post, Found)
    assert len(post) == post.nodes == 60
    fresh = infer(refine, engine=Forward(60), seed=2)
    assert post.best > 0.4 > max(t.result for t in fresh.traces)
    assert math.isnan(post.log_evidence)
    assert post.best == pytest.approx(max(post.scores))
    again = infer(refine, engine=engine, seed=2)
    assert [t.result for t in again.traces] == [t.result for t in post.traces]


def test_models_and_prompts_are_actions() -> None:
    good = TableLM(["a", "b", "<eos>"], {(): [0.9, 0.05, 0.05]}, name="good")
    poor = TableLM(["a", "b", "<eos>"], {(): [0.05, 0.9, 0.05]}, name="poor")

    @program
    def answer(hint: str = "", parent: Any = None) -> Any:
        x = sample("x", LM(hint, max_tokens=1))
        observe("right", Bernoulli(0.9 if x == "a" else 0.1), True)
        return x

    engine = ABMCTS(nodes=40, batch=4, actions={"good": good, "poor": poor, "hint": {"hint": "b"}})
    post = infer(answer, engine=engine, lm=poor, seed=0)
    tree = post.allocator  # type: ignore[attr-defined]
    used = {name: arm.n for name, arm in tree.arms.items()}
    assert used["good"] > used["poor"] and used["good"] > used["hint"]
    assert post.map().result == "a"
    # in a tree of choices, actions are proposals: the target stays the program's own law
    beam = infer(
        answer,
        engine=Beam(width=8, actions={"good": good, "warm": {"temperature": 3.0}}),
        lm=poor,
    )
    exact = infer(answer, engine=Enumerate(), lm=poor)
    gammas = {t["x"]: t.log_joint for t in exact.traces}
    for t, lw in zip(beam.traces, beam.log_weights, strict=True):
        assert lw == pytest.approx(gammas[t["x"]])


def test_a_program_without_parent_is_told_so() -> None:
    @program
    def alone() -> Any:
        return sample("x", Bernoulli(0.5))

    with pytest.raises(LmpplError, match="parent"):
        infer(alone, engine=ABMCTS())


@program
def trap() -> Any:
    """A right step is a bit less likely than a wrong one; behind a wrong one all is noise."""
    ok = True
    for _ in range(6):
        right = Categorical({"right": 0.45, "wrong": 0.55})
        v = sample("v", right if ok else Categorical({str(i): 0.125 for i in range(8)}))
        ok = ok and v == "right"
    return ok


def test_the_trap_of_local_probability_and_clustering_adds_nothing() -> None:
    def right(n: int, **options: Any) -> float:
        engine = Foresight(width=1, agree=1.0, **options)
        return float(np.mean([infer(trap, engine=engine, seed=s).map().result for s in range(n)]))

    sampled = 0.45**6  # 0.008
    assert right(10, foresight=False, clusters=0) == 0.0
    foresight, clustered = right(40, clusters=0), right(40, clusters=3)
    assert foresight > 3 * sampled
    assert clustered <= foresight + 0.03


def test_fractured_corners_and_costs() -> None:
    @program
    def reason() -> Any:
        thought = sample("thought", LM("", max_tokens=6))
        return len(thought), sample("answer", LM(thought, max_tokens=1))

    post = infer(reason, engine=Fractured(particles=5, cuts=3, answers=4), lm=LETTERS, seed=0)
    assert len(post) == 60
    assert np.allclose(post.log_weights, 0.0)
    assert math.isnan(post.log_evidence)
    plain = infer(reason, engine=Fractured(particles=5, cuts=1, answers=1), lm=LETTERS, seed=0)
    assert len(plain) == 5
    # the same chains, drawn once however many answers there are
    whole = sorted({t["thought"] for t in plain.traces})
    assert set(whole) <= {t["thought"] for t in post.traces}
    # an answer may be empty, which costs no token that counts
    thoughts = sum(len(t["thought"]) for t in plain.traces)
    assert post.ledger.tokens_out <= thoughts + 5 + 60 < 60 * 6
    by_chain = {
        tuple(sorted({len(t["thought"]) for t in post.traces[i : i + 12]}))
        for i in range(0, 60, 12)
    }
    assert all(lengths[0] == round(lengths[-1] / 3) for lengths in by_chain if len(lengths) == 3)
    with pytest.raises(BadArgument, match="no run has come to a site 'idea'"):
        infer(reason, engine=Fractured(cut="idea"), lm=LETTERS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Beam(width=0), "Beam: width must be a positive integer, got 0"),
        (lambda: Beam(width=5, groups=2), "2 groups do not divide width=5"),
        (lambda: Beam(rank="prm"), "rank must be one of joint, guide"),
        (lambda: Beam(guide=3), "guide must be a function"),  # type: ignore[arg-type]
        (lambda: MCTS(backup="min"), "backup must be one of mean, max"),
        (lambda: MCTS(rollout=False), "rollout=False needs a guide"),
        (lambda: ABMCTS(posterior="nuts"), "posterior must be one of nix2, beta, relative, mixed"),
        (lambda: StepGreedy(margin=-1.0), "margin must be a number at least 0"),
        (lambda: Foresight(temperature=0.0), "temperature must be a finite number above 0"),
    ],
)
def test_bad_arguments(make: Callable[[], Engine], message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        make()


def test_a_dead_search_says_so() -> None:
    @program
    def never() -> Any:
        factor("no", sample("x", Bernoulli(0.5)) == 2)

    for engine in (Beam(), AStar(), MCTS(), StepGreedy(), Foresight()):
        with pytest.raises(LmpplError, match="weight zero"):
            infer(never, engine=engine)
