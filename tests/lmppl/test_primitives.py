"""Each primitive: what it returns, what it writes on the trace, what it weighs; by hand."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest

from lmppl import (
    Bernoulli,
    Categorical,
    Delta,
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
    sample,
)
from lmppl import handlers as H
from lmppl.errors import (
    BadArgument,
    BadProgram,
    BadSiteName,
    BadWeight,
    DuplicateSite,
    LmpplWarning,
    NoActiveProgram,
    NonFiniteWeight,
    NotADistribution,
    SiteError,
)
from lmppl.inference import SMC, Beam, Elimination, Enumerate, Importance, Posterior, infer
from lmppl.trace import Trace
from lmppl.weights import NEG_INF

LOG = math.log
DRIVERS = ("greenlet", "eager")


def traces(model: Any, *args: Any, **options: Any) -> list[Trace]:
    """One trace by a plain call, and one by each driver under an engine."""
    found = [H.trace(H.seed(model, 0)).get_trace(*args)]
    for driver in DRIVERS:
        found += infer(model, *args, engine=Importance(1), driver=driver, **options).traces
    return found


def one(model: Any) -> Posterior:
    return infer(model, engine=Importance(1))


def ops(t: Trace) -> list[tuple[str, str]]:
    return [(e.op, e.address) for e in t.sites]


# -- sample and observe -------------------------------------------------------------------------


def test_sample_weighs_nothing_when_drawn_from_its_law() -> None:
    @program
    def model() -> Any:
        return sample("x", Categorical({"a": 0.25, "b": 0.75}))

    for t in traces(model):
        assert t.result in ("a", "b") and t["x"] == t.result
        assert t.log_joint == pytest.approx(LOG(0.25 if t["x"] == "a" else 0.75))
        assert t.log_weight == 0.0 and ops(t) == [("sample", "x")]


def test_sample_by_a_proposal_weighs_the_ratio() -> None:
    @program
    def model() -> Any:
        return sample(
            "x", Categorical({"a": 0.25, "b": 0.75}), proposal=Categorical({"a": 0.5, "b": 0.5})
        )

    seen = set()
    for seed in range(12):
        for t in [H.trace(H.seed(model, seed)).get_trace()] + infer(
            model, engine=Importance(1), seed=seed
        ).traces:
            p = {"a": 0.25, "b": 0.75}[t["x"]]
            assert t.site("x").logp == pytest.approx(LOG(p))
            assert t.site("x").logq == pytest.approx(LOG(0.5))
            assert t.log_weight == pytest.approx(LOG(p / 0.5))
            seen.add(t["x"])
    assert seen == {"a", "b"}


def test_observe_multiplies_by_the_probability_and_returns_the_value() -> None:
    @program
    def model() -> Any:
        return observe("y", Categorical({"a": 0.25, "b": 0.75}), "a")

    for t in traces(model):
        assert t.result == "a" and t.log_weight == t.log_joint == pytest.approx(LOG(0.25))
        assert ops(t) == [("observe", "y")]
    assert one(model).log_evidence == pytest.approx(LOG(0.25))


def test_obs_is_observe() -> None:
    @program
    def model() -> Any:
        return sample("y", Categorical({"a": 0.25, "b": 0.75}), obs="a")

    for t in traces(model):
        assert t.result == "a" and t.log_weight == pytest.approx(LOG(0.25))
        assert ops(t) == [("observe", "y")]


def test_falsy_values_can_be_observed() -> None:
    @program
    def model() -> Any:
        sample("a", Bernoulli(0.25), obs=False)
        observe("b", Uniform([0, 1]), 0)
        return observe("c", Delta(""), "")

    assert one(model).log_evidence == pytest.approx(LOG(0.75 * 0.5))


def test_an_impossible_observation_ends_the_run_with_weight_zero() -> None:
    ran = []

    @program
    def model() -> Any:
        observe("y", Delta("a"), "b")
        ran.append(1)
        return 1

    post = infer(model, engine=Importance(3), on_dead="return")
    assert post.log_evidence == NEG_INF and post.deaths == {"y": 3} and ran == []
    assert H.trace(model).get_trace().log_joint == NEG_INF and ran == [1]  # a plain call goes on


# -- factor -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (-0.5, -0.5),
        (2.0, 2.0),
        (0, 0.0),
        (True, 0.0),
        (np.float32(-1.0), -1.0),
        (np.array(0.5), 0.5),
    ],
)
def test_factor_is_a_log_weight(value: Any, want: float) -> None:
    @program
    def model() -> Any:
        return factor("f", value)

    for t in traces(model):
        assert t.log_weight == t.log_joint == want and t.site("f").op == "factor"
    assert one(model).log_evidence == pytest.approx(want)


@pytest.mark.parametrize("value", [False, NEG_INF, np.bool_(False)])
def test_factor_can_rule_out(value: Any) -> None:
    @program
    def model() -> Any:
        keep = sample("keep", Bernoulli(0.5))
        factor("f", True if keep else value)
        return keep

    post = infer(model, engine=Enumerate())
    assert post.log_evidence == pytest.approx(LOG(0.5)) and dict(post.marginal()) == {True: 1.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float64("nan")])
def test_factor_refuses_what_would_poison_every_weight(value: Any) -> None:
    @program
    def model() -> Any:
        sample("x", Bernoulli(0.5))
        factor("polite", value)

    for run in (model, lambda: infer(model, engine=SMC(4))):
        with pytest.raises(NonFiniteWeight, match="site 'polite'"):
            run()


@pytest.mark.parametrize("value", ["0.5", None, [0.1], np.zeros(2), {}])
def test_factor_refuses_what_is_no_number(value: Any) -> None:
    @program
    def model() -> Any:
        factor("polite", value)

    for run in (model, lambda: infer(model, engine=SMC(4))):
        with pytest.raises(TypeError, match="site 'polite': log-weight must be a number"):
            run()
        with pytest.raises(BadWeight):
            run()


def test_factors_that_look_like_probabilities_are_pointed_out() -> None:
    def model(weights: Any) -> Any:
        x = sample("x", Uniform([0, 1, 2]))
        factor("judge", weights[x])

    def warned(weights: Any, n: int = 200) -> bool:
        post = infer(model, weights, engine=Importance(n))
        return any("judge" in w and "math.log" in w for w in post.warnings)

    assert warned([0.2, 0.9, 1.0])
    assert warned([0.0, 1.0, 1.0])
    assert not warned([0.2, 0.9, -0.1])  # a logarithm among them
    assert not warned([0.2, 0.9, 1.5])
    assert not warned([0.0, 0.0, 0.0])  # nothing but certain
    assert not warned([True, False, True])  # constraints
    assert not warned([0.2, 0.9, 1.0], n=50)  # too few to tell


# -- values -------------------------------------------------------------------------------------


def test_deterministic_records_and_returns_frozen() -> None:
    @program
    def model() -> Any:
        return deterministic("d", {"xs": [1, 2], "s": {3}})

    for t in traces(model):
        assert t["d"] == {"xs": (1, 2), "s": frozenset({3})} == t.result
        assert t.log_weight == 0.0 and ops(t) == [("deterministic", "d")]
        with pytest.raises(TypeError, match="cannot be changed"):
            t["d"]["xs"] = 0


def test_param_is_its_initial_value_or_the_runs() -> None:
    @program
    def model() -> Any:
        return param("scale", 2.0) * 10

    for t in traces(model):
        assert t.result == 20.0 and t["scale"] == 2.0
    for t in traces(model, params={"scale": 0.5})[1:]:
        assert t.result == 5.0 and t["scale"] == 0.5
    assert H.substitute(model, {"scale": 3.0})() == 30.0
    assert infer(H.substitute(model, {"scale": 3.0}), engine=Importance(1)).traces[0].result == 30.0


@pytest.mark.parametrize("engine", [Enumerate(), SMC(4), Elimination(), Beam(2)], ids=repr)
def test_a_misspelt_param_is_told(engine: Any) -> None:
    @program
    def model() -> Any:
        return sample("x", Bernoulli(param("rate", 0.5)))

    assert infer(model, engine=engine, params={"rate": 0.1}).warnings == []
    with pytest.warns(LmpplWarning, match="no param site is called 'rato'.*did you mean 'rate'"):
        post = infer(model, engine=engine, params={"rato": 0.1})
    assert "rato" in post.warnings[0]


def test_results_are_frozen_under_engines() -> None:
    @program
    def model() -> Any:
        return {"found": [sample("x", Delta(1))]}

    result = one(model).traces[0].result
    assert result == {"found": (1,)}
    assert one(model).marginal() == {result: 1.0}  # and hashable


def test_cached_runs_once_per_run_and_arguments() -> None:
    ran: list[int] = []

    def slow(x: int) -> list[int]:
        ran.append(x)
        return [x, x]

    @program
    def model() -> Any:
        x = sample("x", Uniform([1, 2]))
        first = cached("c", slow, x)
        again = cached("c", slow, x)
        return first, again

    post = infer(model, engine=Importance(50))
    assert sorted(ran) == [1, 2]
    assert set(post.values()) == {((1, 1), (1, 1)), ((2, 2), (2, 2))}
    infer(model, engine=Importance(50))
    assert sorted(ran) == [1, 1, 2, 2]  # each run anew
    t = H.trace(model).get_trace()
    assert len(ran) == 5 and ops(t) == [("sample", "x"), ("cached", "c"), ("cached", "c[1]")]


def test_cached_tells_functions_and_captured_values_apart() -> None:
    @program
    def model() -> Any:
        x = sample("x", Uniform([1, 2]))
        return x, cached("a", lambda: x * 10), cached("b", lambda: x * 100), cached("c", lambda: 7)

    for t in traces(model) + infer(model, engine=Importance(20)).traces:
        x = t["x"]
        assert t.result == (x, x * 10, x * 100, 7)


# -- names --------------------------------------------------------------------------------------


def test_a_repeated_name_counts_up_and_strict_refuses_it() -> None:
    @program
    def model() -> Any:
        return [sample("x", Delta(i)) for i in range(3)]

    for t in traces(model):
        assert [e.address for e in t.sites] == ["x", "x[1]", "x[2]"]
        assert [t["x"], t["x[1]"], t["x[2]"]] == [0, 1, 2]
    with pytest.raises(DuplicateSite, match="'x' occurs twice") as raised:
        infer(model, engine=Importance(1), strict=True)
    assert str(raised.value).count("test_primitives.py:") >= 2  # both lines


@pytest.mark.parametrize(
    "name", ["", "a/b", "a[1]", "a\nb", "x" * 201, "\x00", None, 3, b"x", ["x"], {"a": 1}]
)
def test_what_is_no_name_is_refused_by_every_primitive(name: Any) -> None:
    uses: list[Any] = [
        lambda: sample(name, Delta(1)),
        lambda: observe(name, Delta(1), 1),
        lambda: factor(name, 0.0),
        lambda: deterministic(name, 1),
        lambda: effect(name, print),
        lambda: cached(name, print),
        lambda: param(name, 1),
        lambda: plate(name, [1]),
        lambda: loop(lambda c, t: c, 0, n=1, name=name),
    ]
    for use in uses:
        with pytest.raises(BadSiteName, match="no site name"):
            program(use)()


@pytest.mark.parametrize("name", ["x", "a b", "é€漢👍", "x" * 200, "0", "-", "a.b:c"])
def test_any_other_text_is_a_name(name: str) -> None:
    assert list(H.trace(program(lambda: sample(name, Delta(1)))).get_trace()) == [name]


def test_every_primitive_needs_a_program() -> None:
    uses: list[tuple[str, Any]] = [
        ("sample", lambda: sample("x", Delta(1))),
        ("observe", lambda: observe("x", Delta(1), 1)),
        ("factor", lambda: factor("x", 0.0)),
        ("deterministic", lambda: deterministic("x", 1)),
        ("effect", lambda: effect("x", print)),
        ("cached", lambda: cached("x", print)),
        ("param", lambda: param("x", 1)),
        ("plate", lambda: plate("x", [1])),
        ("call", lambda: call(print)),
        ("loop", lambda: loop(lambda c, t: c, 0, n=1)),
    ]
    for name, use in uses:
        with pytest.raises(NoActiveProgram, match=rf"{name}\(\) was called outside of a program"):
            use()


@pytest.mark.parametrize("dist", ["text", 3, None, [1, 2], Uniform])
def test_what_is_no_distribution_is_refused(dist: Any) -> None:
    for use in (lambda: sample("x", dist), lambda: observe("x", dist, 1)):
        with pytest.raises(NotADistribution, match="site 'x'"):
            program(use)()
        with pytest.raises(NotADistribution, match=r"test_primitives.py:\d+"):
            infer(program(use), engine=Importance(1))
    with pytest.raises(NotADistribution):
        program(lambda: sample("x", Delta(1), proposal=dist or 3))()


def test_a_mapping_as_proposal_is_for_language_models() -> None:
    with pytest.raises(BadArgument, match="sets a language model's sampling"):
        program(lambda: sample("x", Delta(1), proposal={"temperature": 0.5}))()


@pytest.mark.parametrize(
    "use",
    [
        lambda: effect("e", 3),  # type: ignore[arg-type]
        lambda: effect("e", print, on_error="ignore"),
        lambda: effect("e", print, timeout=0),
        lambda: effect("e", print, timeout=-1.0),
        lambda: effect("e", print, timeout="1"),  # type: ignore[arg-type]
        lambda: effect("e", print, retries=-1),
        lambda: effect("e", print, retries=1.5),  # type: ignore[arg-type]
        lambda: plate("p", 3),  # type: ignore[arg-type]
        lambda: plate("p", {1, 2}, print),
        lambda: plate("p", [1], 3),  # type: ignore[arg-type]
        lambda: loop(lambda c, t: c, 0),
        lambda: loop(lambda c, t: c, 0, n=-1),
        lambda: loop(lambda c, t: c, 0, n=2.0),  # type: ignore[arg-type]
        lambda: loop(lambda c, t: c, 0, n=True),
    ],
)
def test_wrong_arguments_are_refused(use: Any) -> None:
    with pytest.raises(BadArgument):
        program(use)()
    with pytest.raises(BadArgument):
        infer(program(use), engine=Importance(1))


# -- programs -----------------------------------------------------------------------------------


def test_what_can_be_a_program() -> None:
    def generator() -> Any:
        yield sample("x", Delta(1))

    async def agenerator() -> Any:
        yield sample("x", Delta(1))

    async def coroutine() -> Any:
        return 1

    class Klass:
        def __call__(self) -> int:
            return sample("x", Delta(4))  # type: ignore[no-any-return]

    made = coroutine()
    for wrong, what in (
        (generator, "generator"),
        (agenerator, "generator"),
        (Klass, "class"),
        (made, "coroutine"),
        ("text", "str"),
        (None, "NoneType"),
    ):
        uses: list[Any] = [program, infer]
        for use in uses:
            with pytest.raises(BadProgram, match=what) as raised:
                use(wrong)
            assert isinstance(raised.value, TypeError) and "fix:" in str(raised.value)
    assert infer(Klass(), engine=Importance(1)).values() == [4]
    assert infer(lambda: sample("x", Delta(5)), engine=Importance(1)).values() == [5]


def test_a_result_in_place_of_the_program_says_so() -> None:
    @program
    def model() -> Any:
        return "answer"

    with pytest.raises(BadProgram, match="pass the function itself"):
        infer(model())


def test_a_program_keeps_its_name_and_text() -> None:
    @program
    def model(question: str) -> Any:
        """Answer."""
        return question

    assert model.__doc__ == "Answer." and "model" in repr(model)
    assert model("q") == "q"


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, 2), {}), ((), {"wrong": 1}), ((1,), {"x": 1})]
)
def test_arguments_that_do_not_fit_are_refused_before_anything_runs(args: Any, kwargs: Any) -> None:
    @program
    def model(x: int) -> Any:
        return sample("x", Delta(x))

    for fn in (model, H.condition(model, {"x": 1}), H.seed(H.do(model, {"x": 1}), 0)):
        with pytest.raises(BadArgument, match=r"the arguments do not fit model\(x: 'int'\)"):
            infer(fn, *args, kwargs=kwargs)
    assert infer(model, engine=Importance(1), kwargs={"x": 3}).values() == [3]


def test_a_program_called_in_a_program_shares_its_scope() -> None:
    @program
    def inner() -> Any:
        return sample("x", Delta(1))

    @program
    def outer() -> Any:
        return inner() + inner() + sample("y", Delta(1))

    for t in traces(outer):
        assert list(t) == ["x", "x[1]", "y"] and t.result == 3


def test_an_error_in_the_program_keeps_what_was_there() -> None:
    @program
    def model() -> Any:
        x = sample("x", Uniform([1, 2, 3, 4]))
        factor("f", 0.0)
        if x == 3:
            raise ValueError("three is no answer")
        return x

    with pytest.raises(ValueError, match="three"):  # plain: the exception itself
        for seed in range(100):
            H.seed(model, seed)()
    with pytest.raises(
        SiteError, match="the program raised ValueError: three is no answer"
    ) as raised:
        infer(model, engine=Importance(100))
    error = raised.value
    assert isinstance(error.__cause__, ValueError)
    assert error.trace["x"] == 3
    assert len(error.traces) > 0 and all(t.result in (1, 2, 4) for t in error.traces)
    assert "test_primitives.py:" in str(error) and "particle" in str(error)


def test_traces_read_well() -> None:
    @program
    def model() -> Any:
        sample("x", Delta(1))
        factor("f", -1.0)
        return 2

    t = H.trace(model).get_trace()
    assert repr(t) == "Trace(x=1)" and "x" in t and len(t) == 2 and dict(t) == {"x": 1, "f": -1.0}
    assert "sample x = 1" in repr(t.site("x")) and "<table" in t._repr_html_()
    with pytest.raises(KeyError):
        t["nothing"]


# -- programs as Python objects -------------------------------------------------------------------


@program
def coin() -> bool:
    """A site at the top of a module, where pickle finds it."""
    return bool(sample("side", Bernoulli(0.3)))


class Agent:
    """Programs may be methods."""

    def __init__(self, p: float) -> None:
        self.p = p

    @program
    def heads(self, n: int) -> int:
        """Their object is the first argument."""
        return sum(sample("side", Bernoulli(self.p)) for _ in range(n))

    @program
    async def slow(self) -> bool:
        """Async ones too."""
        return bool(await sample("side", Bernoulli(self.p)))


def test_a_method_is_a_program_of_its_object() -> None:
    agent = Agent(0.3)
    for posterior in (
        infer(agent.heads, 3, engine=Enumerate()),
        infer(Agent.heads, agent, 3, engine=Enumerate()),
    ):
        expected = [math.comb(3, k) * 0.3**k * 0.7 ** (3 - k) for k in range(4)]
        assert [posterior.marginal()[k] for k in range(4)] == pytest.approx(expected)
    assert infer(agent.slow, engine=Enumerate()).marginal()[True] == pytest.approx(0.3)
    assert agent.heads(5) in range(6)


def test_programs_and_posteriors_can_be_copied_and_pickled() -> None:
    posterior = infer(coin, engine=SMC(20), seed=0)
    assert pickle.loads(pickle.dumps(coin)) is coin is copy.deepcopy(coin)
    for again in (pickle.loads(pickle.dumps(posterior)), copy.deepcopy(posterior)):
        assert again.log_evidence == posterior.log_evidence
        assert again.marginal() == posterior.marginal()
