"""Potentials: the targets of three toys by hand, every engine on them, and what is refused.

A: two uniform binary steps. B: x# at once, or a, a, a, a, y#. C: a or b, then forced c, c, d#.
The scores are a process reward model's; `PATHS` has every path with its probability and scores.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from lmppl import (
    Delta,
    LmpplError,
    Reward,
    Uniform,
    handlers,
    potentials,
    program,
    sample,
)
from lmppl.errors import AllParticlesDead, BadArgument, NonFiniteWeight
from lmppl.inference import SMC, Enumerate, Importance, Rejection, infer
from lmppl.potentials import Factor, Outcome, Prefix, Value
from lmppl.testing import LawBroken, assert_properly_weighted, enumerate_exact

ATOL = 1e-10


@program
def toy_a() -> Any:
    return sample("step1", Uniform(["a", "b"])) + "|" + sample("step2", Uniform(["a#", "b#"]))


@program
def toy_b() -> Any:
    if sample("step", Uniform(["x#", "a"])) == "x#":
        return "x#"
    for text in ("a", "a", "a", "y#"):
        sample("step", Delta(text))
    return "y#"


@program
def toy_c() -> Any:
    first = sample("step", Uniform(["a", "b"]))
    for text in ("c", "c", "d#"):
        sample("step", Delta(text))
    return first


def score_a(text: str) -> float:
    return {"a": 0.6, "b": 0.5, "aa#": 0.8}.get(text, 0.5)


def score_b(text: str) -> float:
    return 0.75 if text in ("x#", "a") or text.endswith("y#") else 0.5


STEP_C = {"a": 0.8, "b": 0.6, "c": 0.9, "d#": 0.9}


def score_c(steps: tuple[str, ...]) -> float:
    return math.prod(STEP_C[s] for s in steps)


def running(first: float) -> list[float]:
    return [first, first * 0.9, first * 0.9**2, first * 0.9**3]


PATHS: dict[str, list[tuple[str, float, list[float]]]] = {
    "A": [
        ("a|a#", 0.25, [0.6, 0.8]),
        ("a|b#", 0.25, [0.6, 0.5]),
        ("b|a#", 0.25, [0.5, 0.5]),
        ("b|b#", 0.25, [0.5, 0.5]),
    ],
    "B": [("x#", 0.5, [0.75]), ("y#", 0.5, [0.75, 0.5, 0.5, 0.5, 0.75])],
    "C": [("a", 0.5, running(0.8)), ("b", 0.5, running(0.6))],
}
TOYS: dict[str, tuple[Any, Any, str]] = {
    "A": (toy_a, score_a, "text"),
    "B": (toy_b, score_b, "text"),
    "C": (toy_c, score_c, "steps"),
}


def odds(r: float) -> float:
    return r / (1.0 - r)


PSI: dict[str, Any] = {
    "probability": lambda rs: math.prod(rs),
    "exp": lambda rs: math.exp(sum(rs)),
    "odds": lambda rs: math.prod(map(odds, rs)),
    "ratio": lambda rs: rs[-1],
    "odds_ratio": lambda rs: odds(rs[-1]),
}
TABLE = {
    "probability": (("a|a#", 0.3750, 0.32), ("x#", 0.9143, 0.410156), ("a", 0.7596, 0.143276)),
    "exp": (("a|a#", 0.3245, 3.123982), ("x#", 0.0953, 11.101268), ("a", 0.6655, 11.767053)),
    "odds": (("a|a#", 0.6316, 2.375), ("x#", 0.25, 6.0), ("a", 0.9534, 13.894493)),
    "ratio": (("a|a#", 0.3478, 0.575), ("x#", 0.5, 0.75), ("a", 0.5714, 0.5103)),
    "odds_ratio": (("a|a#", 0.5714, 1.75), ("x#", 0.5, 3.0), ("a", 0.6428, 1.088347)),
}
"""The published numbers, to their last digit."""


def target(toy: str, link: str) -> dict[str, float]:
    """γ by hand."""
    return {label: p * PSI[link](scores) for label, p, scores in PATHS[toy]}


def wrapped(toy: str, link: str) -> Any:
    fn, score, of = TOYS[toy]
    kind = Prefix if "ratio" in link else Factor
    return potentials.apply(fn, kind(score, at="step*", link=link, of=of))


CELLS = [(toy, link) for toy in TOYS for link in PSI]


@pytest.mark.parametrize(("toy", "link"), CELLS)
def test_exact_targets(toy: str, link: str) -> None:
    post = infer(wrapped(toy, link), engine=Enumerate())
    law = target(toy, link)
    z = sum(law.values())
    assert abs(math.exp(post.log_evidence) - z) < 1e-9
    for value, p in post.marginal().items():
        assert abs(p - law[value] / z) < 1e-9
    value, p, printed = TABLE[link]["ABC".index(toy)]
    assert abs(law[value] / z - p) <= 5.1e-5
    assert abs(z - printed) <= 5.1e-7


@pytest.mark.parametrize(("toy", "link"), CELLS)
def test_smc_is_properly_weighted(toy: str, link: str) -> None:
    found = assert_properly_weighted(
        wrapped(toy, link), engine=SMC(particles=2, always=True), exact=target(toy, link), atol=ATOL
    )
    assert found.outcomes > 3


ENGINES = (
    Importance(particles=2),
    SMC(particles=2, ess_threshold=0.9),
    SMC(particles=2, always=True, resample_at="factor", resampling="stratified"),
    SMC(particles=2, always=True, guide=lambda trace: 0.3 * len(trace)),
)


@pytest.mark.parametrize("engine", ENGINES, ids=range(len(ENGINES)))
@pytest.mark.parametrize("driver", ["greenlet", "eager"])
def test_engines(engine: Any, driver: str) -> None:
    for toy, link in (("A", "odds"), ("B", "odds"), ("C", "ratio")):
        assert_properly_weighted(
            wrapped(toy, link), engine=engine, exact=target(toy, link), driver=driver, atol=ATOL
        )


def test_rejection() -> None:
    engine = Rejection(samples=2, max_tries=2, log_bound=0.0)
    assert_properly_weighted(
        wrapped("A", "ratio"), engine=engine, exact=target("A", "ratio"), atol=ATOL
    )


def test_a_weight_is_used_once() -> None:
    """The final selection: .632 where weighing twice gives .875, .25 for .956, .571 for .951."""
    for toy, link, value, p in (
        ("A", "odds", "a|a#", 0.632),
        ("B", "odds", "x#", 0.25),
        ("C", "ratio", "a", 0.571),
    ):
        found = assert_properly_weighted(wrapped(toy, link), engine=SMC(particles=2, always=True))
        assert abs(found.estimate[value] / found.estimate.z - p) < 5.1e-4


class Twice(Prefix):
    """The mutant: multiplies by ψ_t, and forgets to divide by ψ_{t-1}."""

    def weight(self, scores: Any, where: str) -> float:
        return self.total(scores, where)


def test_a_prefix_that_does_not_telescope_is_rejected() -> None:
    mutant = potentials.apply(toy_c, Twice(score_c, link="odds_ratio", of="steps"))
    with pytest.raises(LawBroken, match="not properly weighted"):
        assert_properly_weighted(
            mutant, engine=SMC(particles=2, always=True), exact=target("C", "odds_ratio")
        )
    law = enumerate_exact(mutant)
    assert abs(law["a"] / law.z - 0.9534) < 5.1e-5  # what the published tool samples


# -- what is kept and counted --------------------------------------------------------------------


def test_the_trace_keeps_scores_and_weights() -> None:
    found = handlers.trace(handlers.seed(wrapped("A", "ratio"), 0)).get_trace()
    first = found["step1"]
    assert found["step1:prefix:score"] == score_a(first)
    assert found["step1:prefix"] == pytest.approx(math.log(score_a(first)))
    assert found.site("step2:prefix").op == "factor"
    whole = first + found["step2"]
    assert found.log_joint == pytest.approx(math.log(0.25 * score_a(whole)))


def test_calls_are_batched_counted_and_never_repeated() -> None:
    asked: list[list[str]] = []

    def batch(texts: list[str]) -> list[float]:
        asked.append(texts)
        return [0.9 if t[0] == "a" else 0.1 for t in texts]

    rewarded = potentials.apply(toy_a, Prefix(Reward.of(batch, batched=True), link="ratio"))
    post = infer(rewarded, engine=SMC(particles=16, always=True), seed=1)
    assert post.ledger.reward_calls == 32
    assert post.ledger.reward_passes == len(asked) == 2
    assert all(len(set(texts)) == len(texts) for texts in asked)
    assert post.ledger.replayed > 0


# -- what is said --------------------------------------------------------------------------------


def test_target_says_the_combination() -> None:
    rewarded = potentials.apply(
        toy_a,
        Factor(Reward.of(score_a, name="prm"), at="step*", link="odds", temperature=2),
        Prefix(score_a, link="ratio", aggregate="min"),
        Outcome(len, link="exp"),
    )
    for engine in (Enumerate(), SMC(), Importance(), Rejection()):
        said = engine.target(rewarded)
        assert "Π_t odds(prm_t)^(1/2) at step*" in said
        assert "min(score_a_1..T), T the last step" in said
        assert "exp(len) of the result" in said
    post = infer(handlers.mask(rewarded, True), engine=Importance(2))
    assert "odds(prm_t)" in post.target
    assert "includes" not in SMC().target(toy_a)


BAD: list[tuple[Any, str]] = [
    (lambda: Prefix(score_a), "needs a link"),
    (lambda: Factor(score_a, link="logodds"), "no link 'logodds'"),
    (lambda: Factor(score_a, link="ratio"), "which telescopes"),
    (lambda: Factor(score_a, link="odds", temperature=0), "temperature must be a positive"),
    (lambda: Factor(score_a, link="odds", clip=0.7), "clip must be"),
    (lambda: Prefix(score_a, link="ratio", aggregate="sum"), "no aggregate 'sum'"),
    (lambda: Prefix(score_a, link="ratio", of="words"), 'of must be "text"'),
    (lambda: Prefix(0.5, link="ratio"), "a reward must be a function"),
    (lambda: Prefix(score_a, link="ratio", at=3), "at must name sites"),
    (lambda: Outcome(score_a, link="exp", at="x"), "Outcome takes no at"),
    (lambda: potentials.apply(toy_a, Value(score_a, link="ratio")), "changes no target"),
    (lambda: potentials.apply(toy_a, score_a), "apply takes potentials"),  # type: ignore[arg-type]
    (lambda: potentials.apply(Prefix(score_a, link="ratio")), "needs a program first"),
    (lambda: Outcome(len, link="exp").__enter__(), "not around a block"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        make()


@pytest.mark.parametrize(
    ("score", "link", "message"),
    [
        (lambda t: 1.5, "probability", r"takes scores in \[0, 1\]"),
        (lambda t: 1.0, "odds", "odds of a score of 1 are infinite"),
        (lambda t: math.nan, "exp", "reward"),
        (lambda t: None, "exp", "reward"),
        (lambda t: "0.5", "exp", "reward"),
    ],
)
def test_bad_scores(score: Any, link: str, message: str) -> None:
    with pytest.raises(LmpplError, match=message) as caught:
        infer(potentials.apply(toy_a, Factor(score, link=link)), engine=SMC(2))
    assert "step1" in str(caught.value)


def test_zero_everywhere_names_the_potential() -> None:
    never = potentials.apply(toy_a, Prefix(lambda t: 0.0, link="ratio", name="prm"))
    with pytest.raises(AllParticlesDead, match="step1:prm"):
        infer(never, engine=SMC(2))


def test_plus_infinity_is_an_error() -> None:
    with pytest.raises(NonFiniteWeight):
        infer(potentials.apply(toy_a, Factor(lambda t: math.inf, link="exp")), engine=SMC(2))
