"""A plain call: the program is ordinary Python, runs once from start to end, and keeps its trace."""

from __future__ import annotations

import math
import traceback
from typing import Any

import pytest

from lmppl import (
    LM,
    Bernoulli,
    Categorical,
    Choice,
    Delta,
    Text,
    Uniform,
    cached,
    call,
    deterministic,
    effect,
    factor,
    loop,
    observe,
    param,
    plate,
    program,
    prompt,
    sample,
)
from lmppl import handlers as H
from lmppl.context import local
from lmppl.eager import EagerContext
from lmppl.errors import NoActiveProgram, NonFiniteWeight, SiteError, UnsupportedValue
from lmppl.inference import Importance, infer
from lmppl.lm.table import TableLM
from lmppl.random import Argmax
from lmppl.weights import NEG_INF

TOY = TableLM(["a", "b", "<eos>"], {(): [0.5, 0.3, 0.2], (0,): [0.1, 0.6, 0.3]}, name="toy")


@program
def everything(n: int) -> Any:
    """One of each."""
    p = param("p", 0.25)
    x = sample("x", Bernoulli(p))
    word = sample("word", LM("a", max_tokens=2), proposal={"temperature": 2.0})
    verdict = observe("verdict", Choice(prompt("{w}", w=word), ["a", "b"]), "a")
    factor("f", -0.5)
    total = deterministic("total", [n, int(x)])
    tool = effect("tool", lambda t: t[0] * 2, total)
    memo = cached("memo", lambda a: a + 1, tool)
    branches = plate("p", [0, 1], lambda i: sample("b", Uniform([i, i + 10])))
    last = loop(lambda c, t: c + sample("s", Uniform([1, 2])), 0, n=2)
    sub = call(inner, n)
    return x, str(word), str(verdict), total, tool, memo, branches, last, sub


@program
def inner(n: int) -> Any:
    return n + sample("i", Uniform([0, 1]))


def test_a_plain_call_has_the_trace_of_an_engine() -> None:
    plain = H.trace(H.seed(H.using(everything, TOY), 0)).get_trace(7)
    engine = infer(everything, 7, engine=Importance(1), lm=TOY).traces[0]
    assert [(e.op, e.address) for e in plain.sites] == [(e.op, e.address) for e in engine.sites]
    for t in (plain, engine):
        values = {a: t[a] for a in t if t.site(a).op == "sample"}
        again = H.trace(H.using(H.substitute(everything, values), TOY)).get_trace(7)
        assert again.result == t.result
        assert again.log_joint == pytest.approx(t.log_joint)
        p = 0.25 if t["x"] else 0.75
        assert t.site("x").logp == pytest.approx(math.log(p))
        assert t.site("word").logp != t.site("word").logq  # drawn hotter than meant
        assert t.log_weight == pytest.approx(
            t.site("word").logp - t.site("word").logq + t.site("verdict").logp - 0.5
        )


def test_values_are_those_of_an_engine() -> None:
    """The same types: strings are texts that know their site, results are frozen."""

    @program
    def model() -> Any:
        return (
            sample("x", Uniform(["a", "b"])),
            sample("y", Choice("a", ["a", "b"])),
            sample("z", LM("a", max_tokens=1)),
        )

    with H.using(TOY):
        plain = H.seed(model, 0)()
    for result in (plain, infer(model, engine=Importance(1), lm=TOY).values()[0]):
        assert [type(v) for v in result] == [Text] * 3
        assert [v.address for v in result] == ["x", "y", "z"]


def test_it_runs_once_and_goes_on_where_an_engine_would_stop() -> None:
    ran: list[int] = []

    @program
    def model() -> Any:
        ran.append(1)
        observe("impossible", Delta(1), 2)
        factor("never", False)
        return "end"

    assert model() == "end" and ran == [1]
    t = H.trace(model).get_trace()
    assert t.log_joint == NEG_INF and t.log_weight == NEG_INF


def test_exceptions_are_the_programs_own() -> None:
    @program
    def model() -> Any:
        x = sample("x", Delta(0))
        return 1 / x

    with pytest.raises(ZeroDivisionError) as raised:
        model()
    assert not isinstance(raised.value, SiteError)
    lines = "".join(traceback.format_exception(raised.value))
    assert "return 1 / x" in lines
    assert local.active is None  # and the next call starts afresh
    with pytest.raises(NoActiveProgram):
        sample("x", Delta(1))


def test_mistakes_are_named_as_under_an_engine() -> None:
    @program
    def nan() -> Any:
        factor("f", math.nan)

    @program
    def outside() -> Any:
        observe(
            "x",
            LM("", max_tokens=1),
            "ab",
        )

    with pytest.raises(NonFiniteWeight, match="site 'f'"):
        nan()
    with pytest.raises(UnsupportedValue, match="2 tokens, max_tokens is 1"):
        H.using(outside, TOY)()


def test_the_random_number_generator_of_python_is_left_alone() -> None:
    import random

    random.seed(3)
    want = random.random()
    random.seed(3)
    H.using(H.seed(everything, 0), TOY)(1)
    assert random.random() == want


def test_two_plain_calls_differ_and_seeded_ones_do_not() -> None:
    @program
    def model() -> Any:
        return tuple(sample("x", Uniform(list(range(1000)))) for _ in range(3))

    assert model() != model()  # with probability 1 - 1e-9
    assert H.seed(model, 1)() == H.seed(model, 1)() != H.seed(model, 2)()
    assert len(set(H.seed(model, 1)())) > 1  # repeated names draw anew


def test_greedy_chance() -> None:
    context = EagerContext(0, chance=Argmax(), models={"default": TOY})
    assert context.enter(lambda: str(sample("x", LM("", max_tokens=2))), (), {}) == "ab"
    assert context.trace["x"] == "ab" and context.ledger.tokens_out == 2


def test_programs_inside_programs_share_the_run() -> None:
    @program
    def outer() -> Any:
        return inner(1), inner(2)

    t = H.trace(H.seed(outer, 0)).get_trace()
    assert list(t) == ["i", "i[1]"]


def test_a_plain_call_inside_another_runs_context_is_restored() -> None:
    @program
    def model() -> Any:
        post = infer(inner, 5, engine=Importance(2))
        return len(post), sample("after", Delta(1))

    t = H.trace(H.seed(model, 0)).get_trace()
    assert t.result == (2, 1) and list(t) == ["infer", "after"]


def test_masked_and_scaled_like_an_engine() -> None:
    @program
    def model() -> Any:
        with H.scale(scale=2.0):
            sample("x", Categorical({"a": 0.25, "b": 0.75}), obs="a")
        with H.mask(mask=False):
            factor("f", -9.0)

    assert H.trace(model).get_trace().log_joint == pytest.approx(2 * math.log(0.25))
    assert infer(model, engine=Importance(1)).log_evidence == pytest.approx(2 * math.log(0.25))
