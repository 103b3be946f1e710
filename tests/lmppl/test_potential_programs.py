"""Potentials on strings, in async programs, among handlers, in loops, calls, plates and blocks."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lmppl import (
    LM,
    Categorical,
    Uniform,
    call,
    handlers,
    loop,
    observe,
    plate,
    potentials,
    program,
    sample,
)
from lmppl.inference import SMC, Enumerate, infer, tokens
from lmppl.lm.table import TableLM
from lmppl.potentials import Factor, Outcome, Prefix
from lmppl.testing import assert_properly_weighted

ATOL = 1e-10


def odds(r: float) -> float:
    return r / (1.0 - r)


# -- strings -------------------------------------------------------------------------------------

AB = TableLM(
    ["a", "b", "<eos>"],
    {(): [0.5, 0.3, 0.2], (0,): [0.25, 0.35, 0.4], (1,): [0.6, 0.0, 0.4], (2,): [0.5, 0.3, 0.2]},
)


def liked(text: str) -> float:
    return (1 + text.count("a")) / (2 + len(text))


@program
def two_texts() -> Any:
    x = sample("x", LM("", max_tokens=1))
    y = sample("y", LM(x, max_tokens=1))
    observe("z", LM(y, max_tokens=1), "a")
    return x, y


def measure(psi: Any) -> dict[Any, float]:
    """γ of `two_texts` by hand."""
    p: dict[str, dict[str, float]] = {
        "": {"a": 0.5, "b": 0.3, "": 0.2},
        "a": {"a": 0.25, "b": 0.35, "": 0.4},
        "b": {"a": 0.6, "": 0.4},
    }
    return {
        (x, y): q * r * p[y]["a"] * psi(x, y) for x, q in p[""].items() for y, r in p[x].items()
    }


STRINGS: dict[str, tuple[Any, Any]] = {
    "factor": (
        Factor(liked, link="probability", temperature=2),
        lambda x, y: math.sqrt(liked(x) * liked(x + y)),
    ),
    "min": (
        Prefix(liked, link="probability", aggregate="min"),
        lambda x, y: min(liked(x), liked(x + y)),
    ),
    "prod": (
        Prefix(liked, link="ratio", aggregate="prod", of="last"),
        lambda x, y: liked(x) * liked(y),
    ),
    "mean": (
        Prefix(liked, link="logit", aggregate="mean"),
        lambda x, y: 1 / (1 + math.exp(-(liked(x) + liked(x + y)) / 2)),
    ),
    "outcome": (Outcome(lambda xy: len(xy[0] + xy[1]), link="exp"), lambda x, y: math.exp(len(x + y))),
    "zero": (
        Prefix(lambda t: 0.0 if t == "b" else 0.5, link="ratio"),
        lambda x, y: 0.0 if x == "b" else 0.0 if x + y == "b" else 0.5,
    ),
    "one": (Factor(liked, at="y", link="odds", clip=0.01), lambda x, y: clipped(liked(y))),
    "function": (Factor(liked, at=("?",), link=lambda r: -r), lambda x, y: math.exp(-liked(x) - liked(x + y) - liked(x + y + "a"))),
}  # fmt: skip


def clipped(r: float) -> float:
    return odds(min(max(r, 0.01), 0.99))


@pytest.mark.parametrize("engine", [Enumerate(), SMC(2, always=True, resample_at=tokens(1))])
@pytest.mark.parametrize("name", STRINGS)
def test_strings(name: str, engine: Any) -> None:
    """Links, aggregators, temperature, zeros, clips and places, on a language model."""
    potential, psi = STRINGS[name]
    exact = {xy: mass for xy, mass in measure(psi).items() if mass > 0}
    assert_properly_weighted(
        potentials.apply(two_texts, potential), engine=engine, lm=AB, exact=exact, atol=ATOL
    )


@program
async def two_texts_async() -> Any:
    x = await sample("x", LM("", max_tokens=1))
    y = await sample("y", LM(x, max_tokens=1))
    await observe("z", LM(y, max_tokens=1), "a")
    return x, y


@pytest.mark.parametrize("driver", ["coroutine", "greenlet", "eager"])
@pytest.mark.parametrize("name", ["min", "outcome"])
def test_async_programs(name: str, driver: str) -> None:
    potential, psi = STRINGS[name]
    assert_properly_weighted(
        potentials.apply(two_texts_async, potential), engine=SMC(2, always=True), lm=AB,
        exact=measure(psi), driver=driver, atol=ATOL,
    )  # fmt: skip


def test_two_potentials_and_handlers() -> None:
    """They stack; what stands outside scales and conditions them, what stands inside does not."""
    factor, prefix = STRINGS["factor"], STRINGS["min"]
    both = potentials.apply(two_texts, factor[0], prefix[0])
    exact = measure(lambda x, y: factor[1](x, y) * prefix[1](x, y))
    assert_properly_weighted(both, engine=SMC(2, ess_threshold=0.9), lm=AB, exact=exact, atol=ATOL)

    same = potentials.apply(two_texts, prefix[0], prefix[0])
    exact = measure(lambda x, y: prefix[1](x, y) ** 2)
    assert_properly_weighted(same, engine=SMC(2, ess_threshold=0.9), lm=AB, exact=exact, atol=ATOL)
    assert {"y:prefix", "y:prefix2"} <= set(infer(same, engine=Enumerate(), lm=AB).traces[0])

    outside = handlers.scale(potentials.apply(two_texts, prefix[0]), 0.5)
    exact = {xy: math.sqrt(mass) for xy, mass in measure(prefix[1]).items()}
    assert_properly_weighted(outside, engine=Enumerate(), lm=AB, exact=exact, atol=ATOL)
    inside = potentials.apply(handlers.scale(two_texts, 0.5), prefix[0])
    exact = {xy: math.sqrt(mass) * prefix[1](*xy) for xy, mass in measure(lambda x, y: 1).items()}
    assert_properly_weighted(inside, engine=Enumerate(), lm=AB, exact=exact, atol=ATOL)

    for wrap in (
        lambda fn: handlers.condition(potentials.apply(fn, prefix[0]), {"x": "a"}),
        lambda fn: potentials.apply(handlers.condition(fn, {"x": "a"}), prefix[0]),
    ):
        exact = {xy: mass for xy, mass in measure(prefix[1]).items() if xy[0] == "a"}
        assert_properly_weighted(
            wrap(two_texts), engine=SMC(2, ess_threshold=0.9), lm=AB, exact=exact, atol=ATOL
        )
    assert_properly_weighted(
        potentials.apply(two_texts, prefix[0]), engine=SMC(2, ess_threshold=0.9), lm=AB,
        exact=exact, observations={"x": "a"}, atol=ATOL,
    )  # fmt: skip


# -- structure -----------------------------------------------------------------------------------


def test_in_loops_calls_and_plates() -> None:
    """Folded parts of the tape are remembered; branches are sequences of their own."""
    coin = Categorical({"a": 0.5, "b": 0.5})

    def step(text: str, t: int) -> str:
        return text + str(sample("s", coin))

    @program
    def looped() -> Any:
        return loop(step, "", n=3)

    once = Prefix(liked, at="s", link="ratio", aggregate="prod")
    exact = {
        t: 0.125 * liked(t[:1]) * liked(t[:2]) * liked(t)
        for t in (a + b + c for a in "ab" for b in "ab" for c in "ab")
    }
    for driver in ("greenlet", "eager"):
        assert_properly_weighted(
            potentials.apply(looped, once), engine=SMC(2, ess_threshold=0.9), exact=exact,
            driver=driver, atol=ATOL,
        )  # fmt: skip

    @program
    def sub() -> Any:
        return sample("s", coin) + sample("s", coin)

    rewarded = potentials.apply(sub, Prefix(liked, link="ratio"))

    @program
    def called() -> Any:
        return call(rewarded, name="one"), call(rewarded, name="two")

    pairs = [a + b for a in "ab" for b in "ab"]
    both = {(s, t): liked(s) * liked(t) / 16 for s in pairs for t in pairs}
    assert_properly_weighted(called, engine=Enumerate(), exact=both, atol=ATOL)

    @program
    def branched() -> Any:
        return plate("p", range(2), lambda i: sample("s", coin) + sample("s", coin))

    for engine in (Enumerate(), SMC(2, ess_threshold=0.9)):
        assert_properly_weighted(
            potentials.apply(branched, Prefix(liked, link="ratio")),
            engine=engine, exact=both, atol=ATOL,
        )  # fmt: skip


def test_around_a_block() -> None:
    """Inside a program the score can close over its arguments."""

    @program
    def answer(question: str) -> Any:
        with Prefix(lambda text: 0.9 if text == question else 0.1, at="x", link="ratio"):
            x = sample("x", Uniform(["a", "b"]))
        sample("y", Uniform(["a", "b"]))
        return x

    assert_properly_weighted(
        answer, "b", engine=SMC(2, always=True), exact={"a": 0.05, "b": 0.45}, atol=ATOL
    )
