"""Handlers: expected values by hand, for plain calls, for engines, and composed."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from lmppl import (
    LM,
    Bernoulli,
    Categorical,
    Choice,
    Delta,
    Mixture,
    Text,
    Uniform,
    call,
    effect,
    factor,
    loop,
    observe,
    param,
    plate,
    program,
    sample,
)
from lmppl import handlers as H
from lmppl.errors import (
    BadArgument,
    LmpplWarning,
    NoActiveProgram,
    NoLanguageModel,
    UnusedCondition,
)
from lmppl.inference import SMC, Enumerate, Importance, Posterior, ainfer, infer, infer_many
from lmppl.lm.table import TableLM
from lmppl.trace import Trace

LOG = math.log
TOY = TableLM(["a", "b", "<eos>"], {(): [0.5, 0.3, 0.2]}, name="toy")
JUDGE = TableLM(["a", "b", "<eos>"], {(): [0.1, 0.8, 0.1]}, name="judge")


@program
def rain() -> Any:
    """P(rain) = 0.2, P(wet | rain) = 0.9, P(wet | dry) = 0.1."""
    r = sample("rain", Bernoulli(0.2))
    w = sample("wet", Bernoulli(0.9 if r else 0.1))
    return r, w


def exact(model: Any, *args: Any, **options: Any) -> Posterior:
    return infer(model, *args, engine=Enumerate(), **options)


def traced(model: Any, *args: Any) -> Trace:
    return H.trace(H.seed(model, 0)).get_trace(*args)


# -- condition, do, substitute ------------------------------------------------------------------


def test_condition_multiplies_by_the_probability() -> None:
    t = traced(H.condition(rain, {"wet": True}))
    assert t.site("wet").op == "observe" and t.result[1] is True
    likelihood = 0.9 if t["rain"] else 0.1
    assert t.log_weight == pytest.approx(LOG(likelihood))
    assert t.log_joint == pytest.approx(LOG((0.2 if t["rain"] else 0.8) * likelihood))
    post = exact(H.condition(rain, {"wet": True}))
    assert math.exp(post.log_evidence) == pytest.approx(0.26)
    assert post.marginal("rain")[True] == pytest.approx(0.18 / 0.26)
    same = exact(rain, observations={"wet": True})
    assert same.log_evidence == post.log_evidence and same.marginal("rain") == post.marginal("rain")


def test_do_cuts_the_arrow() -> None:
    post = exact(H.do(rain, {"wet": True}))
    assert post.log_evidence == pytest.approx(0.0)
    assert post.marginal("rain")[True] == pytest.approx(0.2)
    t = traced(H.do(rain, {"rain": True}))
    assert t["rain"] is True and t.site("rain").op == "deterministic" and t.log_weight == 0.0
    assert exact(H.do(rain, {"rain": True})).marginal("wet")[True] == pytest.approx(0.9)


def test_substitute_fixes_and_keeps_latent() -> None:
    t = traced(H.substitute(rain, {"rain": True, "wet": False}))
    assert [e.op for e in t.sites] == ["sample", "sample"]
    assert t.log_joint == t.log_weight == pytest.approx(LOG(0.2 * 0.1))
    post = exact(H.substitute(rain, {"rain": True}))
    assert math.exp(post.log_evidence) == pytest.approx(0.2)
    assert post.marginal("wet")[True] == pytest.approx(0.9)


@pytest.mark.parametrize("handler", [H.condition, H.substitute, H.do])
def test_data_can_be_a_function_of_the_message(handler: Any) -> None:
    def data(message: Any) -> Any:
        return True if message.name == "rain" else None

    assert handler(rain, data)()[0] is True
    assert all(r for r, _ in exact(handler(rain, data)).values())


@pytest.mark.parametrize("handler", [H.condition, H.substitute, H.do])
def test_forms_of_the_call(handler: Any) -> None:
    for made in (handler(rain, {"rain": True}), handler(rain, data={"rain": True})):
        assert made()[0] is True
    for around in (handler({"rain": True}), handler(data={"rain": True})):
        with around:
            assert rain()[0] is True
            assert all(r for r, _ in exact(rain).values())
        assert exact(rain).log_evidence == pytest.approx(0.0)
    for data in (None, 3, ["rain"], "rain"):
        with pytest.raises(BadArgument, match="needs a mapping"):
            handler(rain, data)
    with pytest.raises(BadArgument, match="wraps no program"):
        handler({"rain": True})()


def test_values_of_string_sites_remember_their_site() -> None:
    @program
    def model() -> Any:
        x = sample("x", LM("", max_tokens=2))
        return x, sample("y", LM("b" + x, max_tokens=1))

    for handler in (H.condition, H.substitute, H.do):
        for x, _ in (
            H.using(handler(model, {"x": "ab"}), TOY)(),
            infer(handler(model, {"x": "ab"}), engine=Importance(1), lm=TOY).values()[0],
        ):
            assert x == "ab" and type(x) is Text and x.address == "x" and x.spans[0].address == "x"
    x = infer(model, engine=Importance(1), lm=TOY, observations={"x": "ab"}).values()[0][0]
    assert type(x) is Text and x.spans[0].address == "x"


def test_params_are_substituted() -> None:
    @program
    def model() -> Any:
        return param("p", 1)

    assert H.substitute(model, {"p": 5})() == 5
    assert exact(H.substitute(model, {"p": 5})).values() == [5]
    assert H.condition(rain, {"rain": True})()[0] is True


def test_addresses_are_whole() -> None:
    @program
    def inner() -> Any:
        return sample("x", Bernoulli(0.25))

    @program
    def model() -> Any:
        first = call(inner)
        both = plate("p", [0, 1], lambda i: inner())
        last = loop(lambda c, t: c + inner(), 0, n=2)
        return first, both, last

    fixed = {"inner/x": True, "p[1]/x": True, "loop[0]/x": True}
    post = exact(H.condition(model, fixed))
    assert math.exp(post.log_evidence) == pytest.approx(0.25**3)
    assert all(t["inner/x"] and t["p[1]/x"] and t["loop[0]/x"] for t in post.traces)
    assert {t["p[0]/x"] for t in post.traces} == {True, False}
    t = traced(H.do(model, {"inner/x": False, "p[0]/x": True}))
    assert t.result[0] is False and t.result[1][0] is True


# -- conditions that meet nothing ---------------------------------------------------------------


def test_a_misspelt_condition_is_an_error_of_the_run() -> None:
    runs: list[Any] = [
        lambda: exact(rain, observations={"ran": True}),
        lambda: exact(H.condition(rain, {"ran": True})),
        lambda: exact(H.do(rain, {"ran": True})),
        lambda: exact(H.seed(H.condition(rain, {"wet": True, "ran": True}), 0)),
    ]
    for run in runs:
        with pytest.raises(UnusedCondition, match="no sample site is called 'ran'") as raised:
            run()
        assert "did you mean 'rain'?" in str(raised.value)
    with pytest.raises(UnusedCondition, match="the sites are: rain, wet"):
        exact(rain, observations={"nothing like it": True})
    with H.condition(data={"ran": True}), pytest.raises(UnusedCondition):
        exact(rain)


def test_in_a_plain_call_it_is_a_warning() -> None:
    with pytest.warns(
        LmpplWarning, match="condition on 'ran' met no site in this run; did you mean 'rain'"
    ):
        H.condition(rain, {"ran": True})()
    with pytest.warns(LmpplWarning, match="do on 'other' met no site"):
        H.trace(H.do(rain, {"other": True})).get_trace()
    H.substitute(rain, {"other": True})()  # a larger set of values is usual there


def test_a_site_of_one_branch_counts_when_any_particle_met_it() -> None:
    @program
    def model() -> Any:
        if sample("rain", Bernoulli(0.5)):
            return sample("umbrella", Bernoulli(0.9))
        return None

    post = exact(H.condition(model, {"umbrella": True}))
    assert math.exp(post.log_evidence) == pytest.approx(0.5 + 0.45)


def test_what_has_a_value_already_cannot_be_conditioned_on() -> None:
    @program
    def model() -> Any:
        observe("y", Bernoulli(0.5), True)

    with pytest.raises(
        UnusedCondition, match="'y' cannot be conditioned on: it has a value already"
    ):
        exact(model, observations={"y": False})


def test_the_dead_are_reported_before_the_unmet() -> None:
    from lmppl.errors import AllParticlesDead

    @program
    def model() -> Any:
        factor("never", False)
        return sample("late", Bernoulli(0.5))

    with pytest.raises(AllParticlesDead, match="never"):
        infer(model, engine=Importance(3), observations={"late": True})
    assert infer(
        model, engine=Importance(3), observations={"late": True}, on_dead="return"
    ).deaths == {"never": 3}


# -- replay, block, mask, scale -----------------------------------------------------------------


def test_replay_repeats_a_trace_and_draws_the_rest() -> None:
    t = traced(rain)
    again = H.trace(H.replay(rain, t)).get_trace()
    assert again.result == t.result and again.log_joint == pytest.approx(t.log_joint)
    for made in (H.replay(rain, {"rain": True}), H.replay({"rain": True}, None)):
        if made.fn is None:
            with made:
                post = exact(rain)
        else:
            post = exact(made)
        assert math.exp(post.log_evidence) == pytest.approx(0.2)
        assert post.marginal("wet")[True] == pytest.approx(0.9)
    for wrong in (None, 3, [t]):
        with pytest.raises(BadArgument, match="replay needs a trace"):
            H.replay(rain, wrong)  # type: ignore[arg-type]


def test_replay_does_not_run_a_recorded_effect_again() -> None:
    ran = []

    def tool() -> int:
        ran.append(1)
        return len(ran)

    @program
    def model() -> Any:
        return effect("tool", tool)

    t = traced(model)
    assert t.result == 1
    assert H.replay(model, t)() == 1
    assert infer(H.replay(model, t), engine=Importance(3)).values() == [1, 1, 1]
    assert ran == [1]


def test_block_hides_sites_from_the_handlers_outside() -> None:
    data = {"rain": True, "wet": True}
    for hidden in (
        H.block(rain, hide=["rain"]),
        H.block(rain, expose=["wet"]),
        H.block(rain, hide=lambda m: m.name == "rain"),
    ):
        with pytest.raises(UnusedCondition, match="'rain'"):
            exact(H.condition(hidden, data))
        post = exact(H.condition(hidden, {"wet": True}))
        assert math.exp(post.log_evidence) == pytest.approx(0.26)
    inside = exact(H.block(H.condition(rain, data)))
    assert math.exp(inside.log_evidence) == pytest.approx(0.18)


def test_block_stops_the_way_back_too_and_no_more_than_that() -> None:
    seen: list[tuple[str, str]] = []

    class Spy(H.Handler):
        def __init__(self, label: str) -> None:
            super().__init__()
            self.label = label

        def postprocess(self, message: Any) -> None:
            seen.append((self.label, message.address))

    @program
    def model() -> Any:
        with Spy("inner 1"), Spy("inner 2"):
            return sample("x", Delta(1))

    with Spy("outer"), H.block():
        model()
    assert seen == [("inner 2", "x"), ("inner 1", "x")]


def test_mask_switches_observations_off() -> None:
    @program
    def model() -> Any:
        x = sample("x", Bernoulli(0.2))
        with H.mask(mask=False):
            observe("y", Delta(1), 2)
            factor("f", -3.0)
        with H.mask(mask=True):
            factor("g", -1.0)
        return x

    for post in (exact(model), infer(model, engine=Importance(400), seed=1)):
        assert post.log_evidence == pytest.approx(-1.0)
        assert post.marginal()[True] == pytest.approx(0.2, abs=0.1)
    assert traced(model).log_weight == pytest.approx(-1.0)
    assert exact(H.mask(model)).log_evidence == pytest.approx(0.0)
    with H.mask(False):
        assert traced(model).log_weight == pytest.approx(0.0)


def test_a_masked_site_that_is_fixed_keeps_its_density() -> None:
    @program
    def model() -> Any:
        with H.mask(mask=False):
            return sample("x", Bernoulli(0.2))

    t = traced(model)
    assert H.log_density(model, t) == pytest.approx(t.log_joint)
    assert math.exp(exact(H.substitute(model, {"x": True})).log_evidence) == pytest.approx(0.2)


def test_a_masked_draw_keeps_its_law() -> None:
    """Otherwise enumeration would count its values, and a proposal would become the law."""

    @program
    def model() -> Any:
        with H.mask(mask=False):
            return sample("x", Bernoulli(0.2), proposal=Bernoulli(0.5))

    assert exact(model).log_evidence == pytest.approx(0.0)
    assert exact(model).marginal()[True] == pytest.approx(0.2)
    post = infer(model, engine=Importance(4000), seed=0)
    assert post.marginal()[True] == pytest.approx(0.2, abs=0.04)  # five standard errors


def test_scale_is_a_power_of_the_density() -> None:
    @program
    def model() -> Any:
        x = sample("x", Categorical({"a": 0.25, "b": 0.75}))
        factor("f", -1.0 if x == "a" else 0.0)
        return x

    post = exact(H.scale(model, 2.0))
    a, b = 0.25**2 * math.exp(-2.0), 0.75**2
    assert math.exp(post.log_evidence) == pytest.approx(a + b)
    assert post.marginal()["a"] == pytest.approx(a / (a + b))
    nested = exact(H.scale(H.scale(model, 4.0), 0.5))
    assert nested.log_evidence == pytest.approx(post.log_evidence)
    t = traced(H.scale(model, 2.0))
    want = 2 * LOG(0.25) - 2.0 if t["x"] == "a" else 2 * LOG(0.75)
    assert t.log_joint == pytest.approx(want)
    with H.scale(2.0):
        assert exact(model).log_evidence == pytest.approx(post.log_evidence)


@pytest.mark.parametrize("number", [0, -1.0, math.nan, math.inf, "2", None])
def test_scale_is_positive(number: Any) -> None:
    with pytest.raises(BadArgument, match="positive number"):
        H.scale(rain, number)


# -- seed and using -----------------------------------------------------------------------------


def test_seed_fixes_a_plain_call() -> None:
    @program
    def model() -> Any:
        return [sample(f"x{i}", Uniform(list(range(100)))) for i in range(5)]

    assert H.seed(model, 3)() == H.seed(model, 3)() != H.seed(model, 4)()
    with H.seed(rng_seed=3):
        assert model() == H.seed(model, 3)()
    assert model() != model()  # with probability 1 - 1e-10
    assert (
        H.trace(H.seed(H.condition(model, {"x0": 7}), 3)).get_trace().result[1:]
        == H.seed(model, 3)()[1:]
    )


@pytest.mark.parametrize("number", [None, "1", 1.5, True])
def test_seed_needs_an_integer(number: Any) -> None:
    with pytest.raises(BadArgument, match="seed needs an integer"):
        H.seed(rain, number)
    if number is not None:
        with pytest.raises(BadArgument, match="seed must be an integer"):
            infer(rain, seed=number)


def test_numpy_integers_are_seeds() -> None:
    import numpy as np

    assert H.seed(rain, np.int64(3))() == H.seed(rain, 3)()
    a = infer(rain, engine=Importance(5), seed=np.int64(3)).values()  # type: ignore[arg-type]
    assert a == infer(rain, engine=Importance(5), seed=3).values()


def test_using_gives_a_program_its_model_everywhere() -> None:
    @program
    def model() -> Any:
        return str(sample("x", LM("", max_tokens=1)))

    want = {"a": 0.5, "b": 0.3, "": 0.2}
    assert dict(exact(H.using(model, TOY)).marginal()) == pytest.approx(want)
    assert dict(exact(H.seed(H.using(model, TOY), 1)).marginal()) == pytest.approx(want)
    with H.using(TOY):
        assert dict(exact(model).marginal()) == pytest.approx(want)
        assert model() in want
    assert H.using(model, TOY)() in want
    assert H.trace(H.using(model, TOY)).get_trace().result in want
    assert H.log_density(H.using(model, TOY), {"x": "a"}) == pytest.approx(LOG(0.5))
    assert H.log_density(model, {"x": "a"}, lm=TOY) == pytest.approx(LOG(0.5))
    with pytest.raises(NoLanguageModel):
        model()


def test_using_inside_a_program_and_by_name() -> None:
    @program
    def model() -> Any:
        x = sample("x", LM("", max_tokens=1))
        with H.using(JUDGE):
            y = sample("y", LM("", max_tokens=1))
            z = sample("z", Mixture([LM("", max_tokens=1), LM("", max_tokens=1, lm="first")]))
        c = sample("c", Choice("", ["a", "b"], lm="second"))
        return x, y, z, c

    models = {"default": TOY, "first": TOY, "second": JUDGE}
    for post in (exact(model, lm=models), exact(H.using(model, models))):
        assert post.marginal("x")["a"] == pytest.approx(0.5)
        assert post.marginal("y")["a"] == pytest.approx(0.1)
        assert post.marginal("z")["a"] == pytest.approx(0.3)
        assert post.marginal("c")["a"] == pytest.approx(0.1 / 0.9)
    t = H.trace(H.using(model, models)).get_trace()
    assert list(t) == ["x", "y", "z", "c"]


def test_nested_inference_inherits_what_using_gave() -> None:
    @program
    def inner() -> Any:
        return str(sample("x", LM("", max_tokens=1)))

    @program
    def outer() -> Any:
        with H.using(JUDGE):
            return infer(inner, engine=Enumerate()).marginal()["b"]

    assert outer() == pytest.approx(0.8)
    for driver in ("greenlet", "eager"):
        assert infer(outer, engine=Importance(1), lm=TOY, driver=driver).values() == [
            pytest.approx(0.8)
        ]


def test_ambient_handlers_reach_other_threads_of_ainfer() -> None:
    @program
    def model() -> Any:
        return str(sample("x", LM("", max_tokens=1))), sample("y", Bernoulli(0.5))

    async def main() -> Any:
        with H.using(TOY), H.condition(data={"y": True}):
            return await ainfer(model, engine=Enumerate())

    post = asyncio.run(main())
    assert math.exp(post.log_evidence) == pytest.approx(0.5)
    assert post.marginal()["a", True] == pytest.approx(0.5)


def test_ambient_handlers_hold_for_many_questions_and_not_inside_programs() -> None:
    @program
    def inner() -> Any:
        return sample("x", Bernoulli(0.5))

    @program
    def outer(_: int) -> Any:
        x = sample("x", Bernoulli(0.5))
        return x, infer(inner, engine=Enumerate()).marginal()[True]

    with H.condition(data={"x": True}):
        posts = infer_many(outer, [1, 2], engine=Enumerate())
    for post in posts:
        assert dict(post.marginal()) == {(True, 0.5): 1.0}


# -- trace and log_density ----------------------------------------------------------------------


def test_log_density_by_hand() -> None:
    assert H.log_density(rain, {"rain": True, "wet": False}) == pytest.approx(LOG(0.2 * 0.1))
    assert H.log_density(rain, traced(rain)) == pytest.approx(traced(rain).log_joint)
    with pytest.raises(BadArgument, match="sites without a value: wet"):
        H.log_density(rain, {"rain": True})
    with pytest.raises(UnusedCondition, match="no sample site is called 'wets'"):
        H.log_density(rain, {"rain": True, "wet": True, "wets": True})


def test_trace_is_for_reading_one_run() -> None:
    with pytest.raises(BadArgument, match="trace wraps no program"):
        H.trace().get_trace()
    with pytest.raises(BadArgument, match="no context manager"):
        with H.trace():
            pass

    @program
    def model() -> Any:
        return H.trace(rain).get_trace()

    with pytest.raises(NoActiveProgram, match="there is one running"):
        model()
    plain = H.trace(lambda: sample("x", Delta(1))).get_trace()  # any function with sites
    assert dict(plain) == {"x": 1}


def test_handlers_wrap_plain_functions_too() -> None:
    def model() -> Any:
        return sample("x", Bernoulli(0.5))

    assert H.seed(H.condition(model, {"x": True}), 0)() is True
    assert exact(H.condition(model, {"x": True})).log_evidence == pytest.approx(LOG(0.5))


# -- composition --------------------------------------------------------------------------------


def test_the_inner_handler_speaks_first() -> None:
    both = H.condition(H.do(rain, {"wet": True}), {"rain": True})
    assert math.exp(exact(both).log_evidence) == pytest.approx(0.2)
    inner_wins = H.substitute(H.substitute(rain, {"rain": True}), {"rain": False})
    assert inner_wins()[0] is True
    assert all(r for r, _ in exact(inner_wins).values())


def test_handlers_that_do_not_touch_each_other_commute() -> None:
    a = H.condition(H.scale(rain, 2.0), {"wet": True})
    b = H.scale(H.condition(rain, {"wet": True}), 2.0)
    assert exact(a).log_evidence == pytest.approx(exact(b).log_evidence)
    assert math.exp(exact(a).log_evidence) == pytest.approx((0.2 * 0.9) ** 2 + (0.8 * 0.1) ** 2)


@pytest.mark.parametrize("driver", ["greenlet", "eager", "coroutine"])
def test_handlers_around_a_plate_hold_for_its_branches(driver: str) -> None:
    """The eager driver has left the block when the branches start."""

    async def amodel() -> Any:
        async def branch(i: int) -> Any:
            await observe("o", Bernoulli(0.25), True)
            return await sample("x", Bernoulli(0.5))

        with H.scale(scale=2.0), H.condition(data={"p[0]/x": True}):
            xs = await plate("p", [0, 1], branch)
        await observe("last", Bernoulli(0.25), True)
        return xs

    def model() -> Any:
        def branch(i: int) -> Any:
            observe("o", Bernoulli(0.25), True)
            return sample("x", Bernoulli(0.5))

        with H.scale(scale=2.0), H.condition(data={"p[0]/x": True}):
            xs = plate("p", [0, 1], branch)
        observe("last", Bernoulli(0.25), True)
        return xs

    for fn in (amodel,) if driver == "coroutine" else (model, amodel):
        post = infer(fn, engine=Enumerate(), driver=driver)
        assert math.exp(post.log_evidence) == pytest.approx(0.25**4 * 0.25 * (2 * 0.25) * 0.25)
        assert set(post.marginal()) == {(True, True), (True, False)}
        forked = infer(fn, engine=SMC(4, always=True), driver=driver)
        assert all(a is True for a, _ in forked.values())


@pytest.mark.parametrize("driver", ["greenlet", "eager", "coroutine"])
def test_handlers_inside_programs_under_every_driver(driver: str) -> None:
    async def amodel() -> Any:
        with H.condition(data={"a": True}), H.scale(scale=2.0):
            a = await sample("a", Bernoulli(0.25))
            b = await sample("b", Bernoulli(0.5))
        c = await sample("a", Bernoulli(0.5))
        return a, b, c

    def model() -> Any:
        with H.condition(data={"a": True}), H.scale(scale=2.0):
            a = sample("a", Bernoulli(0.25))
            b = sample("b", Bernoulli(0.5))
        c = sample("a", Bernoulli(0.5))
        return a, b, c

    for fn in (amodel,) if driver == "coroutine" else (model, amodel):
        post = infer(fn, engine=Enumerate(), driver=driver)
        assert math.exp(post.log_evidence) == pytest.approx(0.25**2 * 0.25 * 2)
        assert len(post) == 4 and all(t["a"] is True for t in post.traces)


def test_handlers_of_forked_particles_do_not_mix() -> None:
    @program
    def model() -> Any:
        total = 0
        for i in range(4):
            with H.scale(scale=float(i + 1)):
                x = sample("x", Bernoulli(0.5))
                factor("f", 0.5 if x else 0.0)
                total += x
        return total

    z = math.prod((0.5 ** (i + 1)) * (1 + math.exp(0.5 * (i + 1))) for i in range(4))
    assert math.exp(exact(model).log_evidence) == pytest.approx(z)
    for driver in ("greenlet", "eager"):
        post = infer(model, engine=SMC(500, always=True), seed=0, driver=driver)
        assert post.log_evidence == pytest.approx(math.log(z), abs=0.4)


def test_an_own_handler_is_three_lines() -> None:
    class upper(H.Handler):  # noqa: N801
        def postprocess(self, message: Any) -> None:
            if message.op == "sample":
                message.value = str(message.value).upper()

    @program
    def model() -> Any:
        return sample("x", Delta("a"))

    assert upper(model)() == "A"
    assert infer(upper(model), engine=Importance(1)).values() == ["A"]
