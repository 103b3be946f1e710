"""Inference inside inference, and one batch of the language model for all who wait."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lmppl import (
    LM,
    Bernoulli,
    Categorical,
    Choice,
    Uniform,
    call,
    effect,
    factor,
    loop,
    observe,
    plate,
    program,
    sample,
)
from lmppl import handlers as H
from lmppl.errors import AllParticlesDead, BadArgument, ContextOverflow, SiteError
from lmppl.inference import (
    SMC,
    Enumerate,
    Greedy,
    Importance,
    Rejection,
    ainfer,
    infer,
    infer_many,
    infer_stream,
)
from lmppl.lm.table import TableLM
from lmppl.testing import assert_properly_weighted

DRIVERS = ["greenlet", "eager"]


def fresh() -> TableLM:
    """A model whose strings have one length, so that waves can be counted."""
    return TableLM(["a", "b", "<eos>"], {(): [0.6, 0.4, 0.0]}, name="toy")


@program
def coin(p: float) -> Any:
    return sample("heads", Bernoulli(p))


# -- meaning ------------------------------------------------------------------------------------


def test_exact_inner_evidence_keeps_the_outer_target_exact() -> None:
    @program
    def inner(x: int) -> Any:
        y = sample("y", Categorical([0, 1], [1, 3]))
        observe("o", Bernoulli(0.9 if x == y else 0.2), True)
        return y

    @program
    def outer() -> Any:
        x = sample("x", Bernoulli(0.3))
        post = infer(inner, int(x), engine=Enumerate())
        factor("inner", post.log_evidence)
        return bool(x)

    def evidence(x: int) -> float:
        return sum(p * (0.9 if x == y else 0.2) for y, p in ((0, 0.25), (1, 0.75)))

    z = 0.3 * evidence(1) + 0.7 * evidence(0)
    for driver in DRIVERS:
        post = infer(outer, engine=Enumerate(), driver=driver)
        assert math.exp(post.log_evidence) == pytest.approx(z)
        assert post.marginal()[True] == pytest.approx(0.3 * evidence(1) / z)
    plain = H.trace(H.do(outer, {"x": True})).get_trace()
    assert plain.log_joint == pytest.approx(math.log(evidence(1)))


def test_estimated_inner_evidence_keeps_it_unbiased() -> None:
    """Products of two inner estimates: E is Z² only if the two runs are independent."""

    @program
    def inner() -> Any:
        observe("o", Bernoulli(0.9 if sample("y", Bernoulli(0.5)) else 0.1), True)

    @program
    def outer() -> Any:
        for name in ("first", "second"):
            factor(name, infer(inner, engine=Importance(1)).log_evidence)

    post = infer(outer, engine=Importance(4000), seed=0)
    # a weight is 0.81, 0.09 or 0.01, so its standard deviation is below 0.34
    assert math.exp(post.log_evidence) == pytest.approx(0.25, abs=4.89 * 0.34 / math.sqrt(4000))


def test_inner_runs_have_draws_of_their_own() -> None:
    @program
    def inner() -> Any:
        return sample("y", Uniform(list(range(1000)))), sample("z", Uniform(list(range(1000))))

    def draw() -> Any:
        return infer(inner, engine=Importance(1)).values()[0]

    @program
    def outer() -> Any:
        pair = draw(), draw()
        scoped = tuple(draw() for _ in plate("s", [1, 2]))
        branches = plate("p", [1, 2], lambda i: draw())
        looped = loop(lambda c, t: (*c, draw()), (), n=2)
        return *pair, *scoped, *branches, *looped, call(lambda: draw(), name="sub")

    for driver in DRIVERS:
        post = infer(outer, engine=Importance(5), seed=0, driver=driver)
        drawn = [v for result in post.values() for v in result]
        assert len(drawn) == 45 == len(set(drawn))
    first = [infer(outer, engine=Importance(5), seed=0, driver=d).values() for d in DRIVERS]
    assert first[0] == first[1]
    assert first[0] != infer(outer, engine=Importance(5), seed=1).values()
    plain = H.seed(outer, 3)()
    assert len(set(plain)) == 9 and plain == H.seed(outer, 3)()


def test_offspring_infer_anew_only_after_they_fork() -> None:
    ran: list[int] = []

    @program
    def inner() -> Any:
        ran.append(1)
        return sample("y", Uniform(list(range(1000))))

    @program
    def outer() -> Any:
        a = infer(inner, engine=Importance(2)).values()
        x = sample("x", Bernoulli(0.5))
        factor("f", 4.0 * x)
        sample("between", Bernoulli(0.5))
        b = infer(inner, engine=Importance(2)).values()
        factor("g", 0.1)
        return tuple(a), tuple(b)

    post = infer(outer, engine=SMC(8, always=True), seed=0)
    assert len(ran) == 8 * 2 * 2  # a folded result is never computed again
    firsts, seconds = zip(*post.values(), strict=True)
    assert len(set(firsts)) < 8 == len(set(seconds))  # siblings share the past and not the future


@pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
def test_an_inner_run_that_is_begun_ahead_of_a_resampling_keeps_its_key(resampling: str) -> None:
    """A barrier looks ahead into the inner run; its draws before and after are of one run."""
    echo = TableLM(["a", "b"], {(): [0.5, 0.5], (0,): [1.0, 0.0], (1,): [0.0, 1.0]}, name="echo")

    @program
    def inner() -> Any:
        side = sample("side", Uniform(["a", "b"]))
        word = sample("word", LM(side, max_tokens=1))  # repeats the side
        return side, str(word)

    @program
    def outer() -> Any:
        sample("x", Bernoulli(0.5))
        return tuple(infer(inner, engine=Importance(2)).values())

    for seed in range(5):
        engine = SMC(8, resampling=resampling, always=True)
        runs = [infer(outer, engine=engine, lm=echo, seed=seed, driver=d) for d in DRIVERS]
        assert runs[0].values() == runs[1].values()
        assert all(side == word for found in runs[0].values() for side, word in found)


@pytest.mark.parametrize(
    ("at", "resampling", "driver"),
    [
        ("site", "systematic", "greenlet"),
        ("factor", "systematic", "eager"),
        pytest.param("factor", "multinomial", "greenlet", marks=pytest.mark.slow),
        pytest.param("site", "multinomial", "eager", marks=pytest.mark.slow),
    ],
)
def test_an_inner_run_that_siblings_share_leaves_the_weights_proper(
    at: Any, resampling: str, driver: str
) -> None:
    """It asks no model, so a barrier's look ahead finishes it: siblings inherit what it drew.

    The result ends the program in some particles and not in others, which decides whether those
    without a frame look ahead too.
    """

    @program
    def inner(x: bool) -> Any:
        return sample("y", Bernoulli(0.8 if x else 0.5))

    @program
    def outer() -> Any:
        x = sample("x", Bernoulli(0.3))
        factor("f", 1.0 if x else 0.2)
        y = infer(inner, x, engine=Importance(1)).values()[0]
        if y:
            return x, y, None
        factor("g", 0.7 if x else -0.3)
        z = sample("z", Bernoulli(0.6))
        factor("h", 0.5 if z == x else 0.0)
        return x, y, z

    exact: dict[Any, float] = {}
    for x, p in ((True, 0.3), (False, 0.7)):
        before, ends = p * math.exp(1.0 if x else 0.2), 0.8 if x else 0.5
        exact[x, True, None] = before * ends
        for z, q in ((True, 0.6), (False, 0.4)):
            later = math.exp((0.7 if x else -0.3) + (0.5 if z == x else 0.0))
            exact[x, False, z] = before * (1.0 - ends) * q * later
    engine = SMC(2, resampling=resampling, resample_at=at, always=True)
    assert_properly_weighted(outer, engine=engine, exact=exact, driver=driver)


def test_siblings_share_an_inner_run_that_asks_no_model() -> None:
    @program
    def inner() -> Any:
        return sample("y", Uniform(list(range(1000))))

    @program
    def outer() -> Any:
        factor("f", 0.0)
        y = infer(inner, engine=Importance(1)).values()[0]
        return y, sample("z", Uniform(list(range(1000))))

    found = infer(outer, engine=SMC(16, resampling="multinomial", always=True), seed=0).values()
    firsts, seconds = zip(*found, strict=True)
    assert len(set(firsts)) < 16 and len(set(seconds)) > len(set(firsts))


def test_every_engine_inside_and_three_levels() -> None:
    @program
    def deep() -> Any:
        return infer(coin, 0.25, engine=Enumerate()).marginal()[True]

    @program
    def mid() -> Any:
        return infer(deep, engine=SMC(2)).values()[0]

    @program
    def outer() -> Any:
        engines = [Importance(3), SMC(3, always=True), Rejection(samples=2), Greedy(), Enumerate()]
        sizes = tuple(len(infer(coin, 0.5, engine=e)) for e in engines)
        return sizes, infer(mid, engine=Importance(2)).values()[0]

    for driver in DRIVERS:
        assert infer(outer, engine=SMC(2), driver=driver).values() == [((3, 3, 2, 1, 2), 0.25)] * 2
    assert outer() == ((3, 3, 2, 1, 2), 0.25)


@pytest.mark.parametrize("driver", ["greenlet", "coroutine", "eager"])
def test_async_programs_await_their_inner_runs(driver: str) -> None:
    @program
    async def inner() -> Any:
        return await sample("y", Bernoulli(0.25))

    @program
    async def outer() -> Any:
        a = await ainfer(inner, engine=Enumerate())
        b = await ainfer(coin, 0.5, engine=Importance(4))
        both = await plate("p", [0.1, 0.2], branch)
        return a.marginal()[True], len(b), both, await sample("z", Bernoulli(0.5))

    async def branch(p: float) -> Any:
        return (await ainfer(coin, p, engine=Enumerate())).marginal()[True]

    post = infer(outer, engine=SMC(4, always=True), driver=driver)
    for a, n, both, _ in post.values():
        assert (a, n) == (0.25, 4) and both == pytest.approx((0.1, 0.2))
    plain: Any = outer
    assert plain()[:2] == (0.25, 4)

    @program
    async def blocking() -> Any:
        return infer(coin, 0.5)

    with pytest.raises(BadArgument, match="write await ainfer"):
        infer(blocking, engine=Importance(1), driver=driver)


def test_many_questions_inside_a_program_point_to_plate() -> None:
    @program
    def outer() -> Any:
        return infer_many(coin, [0.1, 0.2])

    for run in (outer, lambda: infer(outer, engine=Importance(1))):
        with pytest.raises(BadArgument, match=r"write plate\("):
            run()


def test_a_dead_inner_run_obeys_the_policy_of_the_outer_one() -> None:
    @program
    def inner(x: int) -> Any:
        factor("must", x == 1)

    @program
    def outer() -> Any:
        x = sample("x", Uniform([1, 2]))
        infer(inner, x, engine=Importance(2))
        return x

    with pytest.raises(AllParticlesDead, match="must"):
        infer(outer, engine=Importance(20))
    post = infer(outer, engine=Importance(200), on_error="kill", seed=0)
    assert set(post.marginal()) == {1} and post.log_evidence == pytest.approx(-0.69, abs=0.3)

    @program
    def handled() -> Any:
        x = sample("x", Uniform([1, 2]))
        inner_post = infer(inner, x, engine=Importance(2), on_dead="return")
        return x, inner_post.dead

    assert set(infer(handled, engine=Importance(20)).marginal()) == {(1, False), (2, True)}


def test_errors_inside_say_the_inner_site() -> None:
    @program
    def inner() -> Any:
        sample("here", Bernoulli(0.5))
        raise KeyError("inner")

    @program
    def outer() -> Any:
        return infer(inner, engine=Importance(1))

    with pytest.raises(SiteError, match="after site 'here'") as raised:
        infer(outer, engine=Importance(2))
    assert raised.value.trace is not None and "here" in raised.value.trace
    assert str(raised.value).count("where:") == 1


def test_inner_runs_inherit_models_and_can_have_their_own() -> None:
    lm = fresh()
    other = TableLM(["b", "<eos>"], {(): [1.0, 0.0]}, name="other")

    @program
    def inner() -> Any:
        return str(sample("x", LM("", max_tokens=2)))

    @program
    def outer() -> Any:
        mine = infer(inner, engine=Importance(1)).values()[0]
        its = infer(inner, engine=Importance(1), lm=other).values()[0]
        return mine, its

    for driver in DRIVERS:
        for mine, its in infer(outer, engine=Importance(4), lm=lm, driver=driver).values():
            assert set(mine) <= {"a", "b"} and its == "bb"
    with H.using(lm):
        assert outer()[1] == "bb"


# -- one batch per wave -------------------------------------------------------------------------


def passes(lm: TableLM, run: Any) -> int:
    before = lm.usage.passes
    run()
    return lm.usage.passes - before


@pytest.mark.parametrize("n", [1, 7, 50])
def test_particles_share_their_batches(n: int) -> None:
    lm = fresh()

    @program
    def model() -> Any:
        a = sample("a", LM("", max_tokens=3))
        b = sample("b", LM(a, max_tokens=2))
        observe("o", LM(b, max_tokens=2), "ab")
        return sample("c", Choice(b, ["a", "b"]))

    for engine in (Importance(n), SMC(n, always=True)):
        for driver in DRIVERS:
            assert (
                passes(lm, lambda e=engine, d=driver: infer(model, engine=e, lm=lm, driver=d))
                == 3 + 2 + 1 + 1
            )


def test_branches_of_plates_share_them() -> None:
    lm = fresh()

    @program
    def model() -> Any:
        def branch(prompt: str) -> Any:
            x = sample("x", LM(prompt, max_tokens=2))
            return sample("y", Choice(x, ["a", "b"]))

        return plate("p", ["", "a", "b", "ab"], branch)

    for driver in DRIVERS:
        assert passes(lm, lambda d=driver: infer(model, engine=SMC(9), lm=lm, driver=d)) == 3


def test_questions_share_them() -> None:
    lm = fresh()

    @program
    def model(prompt: str, n: int) -> Any:
        return str(sample("x", LM(prompt, max_tokens=n)))

    questions = [("", 2), ("a", 2), ("b", 2), ("ab", 2)]
    assert passes(lm, lambda: infer_many(model, questions, engine=Importance(5), lm=lm)) == 2
    uneven = [("", 1), ("a", 4), ("b", 2)]
    assert passes(lm, lambda: infer_many(model, uneven, engine=Importance(5), lm=lm)) == 4
    narrow = passes(
        lm, lambda: infer_many(model, questions, engine=Importance(5), lm=lm, concurrency=2)
    )
    assert narrow == 4
    together = [p.values() for p in infer_many(model, questions, engine=SMC(4), lm=lm, seed=2)]
    streamed = dict(infer_stream(model, questions, engine=SMC(4), lm=lm, seed=2, concurrency=1))
    assert together == [streamed[i].values() for i in range(4)]  # type: ignore[union-attr]


def test_nested_inferences_share_them_too() -> None:
    lm = fresh()

    @program
    def inner(prompt: str) -> Any:
        x = sample("x", LM(prompt, max_tokens=2))
        observe("o", LM(x, max_tokens=1), "b")
        return str(x)

    @program
    def outer(question: str) -> Any:
        first = sample("first", LM(question, max_tokens=2))
        one = infer(inner, str(first), engine=SMC(3, always=True)).values()
        many = plate("p", ["a", "b"], lambda c: infer(inner, c, engine=Importance(4)).values())
        return tuple(one), many

    waves = 2 + (2 + 1) + (2 + 1)
    for driver in DRIVERS:
        assert (
            passes(lm, lambda d=driver: infer(outer, "a", engine=SMC(6), lm=lm, driver=d)) == waves
        )
        assert (
            passes(
                lm,
                lambda d=driver: infer_many(
                    outer, ["a", "b", "ab"], engine=SMC(6), lm=lm, driver=d
                ),
            )
            == waves
        )


def test_waves_of_async_programs_are_the_same() -> None:
    lm = fresh()

    @program
    async def inner() -> Any:
        return str(await sample("x", LM("", max_tokens=2)))

    @program
    async def outer() -> Any:
        await sample("first", LM("", max_tokens=1))
        return tuple((await ainfer(inner, engine=Importance(3))).values())

    for driver in ("greenlet", "coroutine", "eager"):
        assert passes(lm, lambda d=driver: infer(outer, engine=SMC(5), lm=lm, driver=d)) == 3


def test_the_ledger_counts_what_was_asked_for() -> None:
    lm = fresh()

    @program
    def model() -> Any:
        x = sample("x", LM("ab", max_tokens=3))
        observe("o", LM("a", max_tokens=2), "bb")
        return str(x)

    ledger = infer(model, engine=Importance(10), lm=lm).ledger
    cost = ledger.models["toy"]
    assert (cost.calls, cost.passes) == (20, 4)
    assert cost.tokens_out == 30 and cost.tokens_in == 10 * (2 + 1 + 2)
    assert ledger.tokens == 80 and ledger.seconds > 0 and ledger.replayed == 0


def test_two_models_are_two_batches() -> None:
    one, two = fresh(), fresh()

    @program
    def model() -> Any:
        return plate("p", ["default", "judge"], lambda m: sample("x", LM("", max_tokens=2, lm=m)))

    infer(model, engine=Importance(6), lm={"default": one, "judge": two})
    assert (one.usage.passes, two.usage.passes) == (2, 2)


# -- nothing is lost ----------------------------------------------------------------------------


def test_a_question_that_fails_keeps_the_others() -> None:
    lm = fresh()
    lm.max_context = 12

    @program
    def model(prompt: str) -> Any:
        if prompt == "boom":
            raise ValueError("bad question")
        return str(sample("x", LM(prompt, max_tokens=4)))

    questions = ["a", "a" * 30, "boom", ("a", "extra"), "b"]
    results = infer_many(model, questions, engine=Importance(3), lm=lm, on_question_error="return")
    assert [type(r).__name__ for r in results] == [
        "Posterior", "ContextOverflow", "SiteError", "BadArgument", "Posterior",
    ]  # fmt: skip
    assert "question 1" in str(results[1]) and "question 2" in str(results[2])
    with pytest.raises(ContextOverflow) as raised:
        infer_many(model, questions, engine=Importance(3), lm=lm)
    kept = raised.value.results  # type: ignore[attr-defined]
    assert [type(r).__name__ for r in kept] == [type(r).__name__ for r in results]
    alone = infer_many(model, ["a", "b"], engine=Importance(3), lm=lm, ids=[0, 4])
    assert [results[0].values(), results[4].values()] == [p.values() for p in alone]


def test_a_batch_that_fails_takes_only_its_own_questions() -> None:
    class Fails(TableLM):
        def open(self, contexts: Any) -> Any:
            if any(len(c) == 3 for c in contexts):
                raise RuntimeError("out of memory on the device")
            return super().open(contexts)

    lm = Fails(["a", "b", "<eos>"], {(): [0.6, 0.4, 0.0]}, name="fails")

    @program
    def model(prompt: str, wait: bool) -> Any:
        if wait:
            effect("later", lambda: None)
        return str(sample("x", LM(prompt, max_tokens=2)))

    results = infer_many(
        model,
        [("aaa", False), ("a", False), ("b", True)],
        engine=Importance(2),
        lm=lm,
        concurrency=1,
        on_question_error="return",
    )
    assert isinstance(results[0], RuntimeError)
    assert [r.values() and True for r in results[1:]] == [True, True]


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"particles": 3},
        {"engine": "smc"},
        {"seed": "x"},
        {"observations": [1]},
        {"on_error": "ignore"},
    ],
)
def test_options_of_many_are_checked(options: Any) -> None:
    with pytest.raises(BadArgument):
        infer_many(coin, [0.1, 0.2], **options)


def test_ids_are_what_the_draws_depend_on() -> None:
    @program
    def model(_: int) -> Any:
        return sample("x", Uniform(list(range(1000)))), sample("y", Uniform(list(range(1000))))

    a = infer_many(model, [1, 2, 3], engine=Importance(1), ids=["q1", "q2", "q3"])
    b = infer_many(model, [3, 1], engine=Importance(1), ids=["q3", "q1"])
    values = [p.values()[0] for p in a]
    assert [p.values()[0] for p in b] == [values[2], values[0]] and len(set(values)) == 3
    assert (
        infer(model, 1, engine=Importance(1)).values()
        == infer_many(model, [1], engine=Importance(1))[0].values()
    )
