"""Effects: once per lineage, never on replay, beside the scheduler, and what their failures do."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest

from lmppl import (
    LM,
    Bernoulli,
    Delta,
    Uniform,
    cached,
    effect,
    factor,
    plate,
    program,
    sample,
)
from lmppl import handlers as H
from lmppl.errors import AllParticlesDead, SiteError
from lmppl.inference import SMC, Importance, infer, infer_many
from lmppl.lm.table import TableLM
from lmppl.outside import WORKERS, EffectRunner

TOY = TableLM(["a", "b", "<eos>"], {(): [0.4, 0.3, 0.3]}, name="toy")
DRIVERS = ["greenlet", "eager"]


# -- once per lineage ---------------------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_effect_runs_once_per_lineage_and_never_on_replay(driver: str) -> None:
    ran: Counter[Any] = Counter()

    def tool(x: int) -> int:
        ran[x] += 1
        return x * 10

    @program
    def model() -> Any:
        x = sample("x", Uniform([1, 2, 3]))
        y = effect("tool", tool, x)
        for _ in range(4):
            factor("f", 0.3 * x)  # forks and replays, over and over
        return y

    post = infer(model, engine=SMC(30, always=True), seed=0, driver=driver)
    assert sum(ran.values()) == 30 == post.ledger.effects
    assert all(t["tool"] == t["x"] * 10 for t in post.traces)


def test_offspring_before_the_effect_run_their_own() -> None:
    ran: list[int] = []

    @program
    def model() -> Any:
        x = sample("x", Bernoulli(0.5))
        factor("f", 3.0 * x)
        return x, effect("tool", lambda: ran.append(1) or len(ran))  # type: ignore[func-returns-value]

    post = infer(model, engine=SMC(12, always=True), seed=0)
    assert sorted(n for _, n in post.values()) == list(range(1, 13))


def test_results_are_frozen() -> None:
    @program
    def model() -> Any:
        return effect("tool", lambda: {"xs": [1, {2}], "a": np.array([1.0])})

    for result in (infer(model, engine=Importance(1)).values()[0], model()):
        assert result["xs"] == (1, frozenset({2})) and not result["a"].flags.writeable
        with pytest.raises(TypeError, match="shared by particles"):
            result["xs"] = 1
        with pytest.raises(ValueError, match="read-only"):
            result["a"][0] = 2.0


def test_arguments_arrive_and_names_count() -> None:
    @program
    def model() -> Any:
        a = effect("tool", lambda *args, **kwargs: (args, tuple(kwargs.items())), 1, "b", key=[3])
        b = effect("tool", max, 4, 9)
        return a, b

    for t in (H.trace(model).get_trace(), infer(model, engine=Importance(1)).traces[0]):
        assert t.result == (((1, "b"), (("key", (3,)),)), 9)
        assert [(e.op, e.address) for e in t.sites] == [("effect", "tool"), ("effect", "tool[1]")]
        assert t.log_weight == 0.0


# -- beside the scheduler -----------------------------------------------------------------------


def test_blocking_effects_run_concurrently() -> None:
    """Each waits until all have started: one after the other they would wait for ever."""
    gate = threading.Barrier(8, timeout=20)

    @program
    def model() -> Any:
        return effect("tool", gate.wait)

    assert sorted(infer(model, engine=Importance(8)).values()) == list(range(8))


def test_async_effects_run_concurrently_on_their_own_loop() -> None:
    started = 0
    everyone: Any = None

    async def tool() -> str:
        nonlocal started, everyone
        if everyone is None:
            everyone = asyncio.Event()
        started += 1
        if started == 8:
            everyone.set()
        await asyncio.wait_for(everyone.wait(), 20)
        return threading.current_thread().name

    @program
    def model() -> Any:
        return effect("tool", tool)

    assert infer(model, engine=Importance(8)).values() == ["lmppl-loop"] * 8


def test_a_branch_of_a_plate_does_not_wait_for_a_sibling() -> None:
    gate = threading.Barrier(6, timeout=20)

    @program
    def model() -> Any:
        return plate("p", range(3), lambda i: effect("tool", gate.wait))

    assert len(infer(model, engine=Importance(2)).values()) == 2


def test_strings_are_drawn_while_effects_run() -> None:
    """A batch does not wait for effects; their particles join the next one."""
    release = threading.Event()
    drawn: list[str] = []

    def slow() -> str:
        assert release.wait(20)
        return "slow"

    def note(text: str) -> str:
        drawn.append(text)
        if len(drawn) == 2:
            release.set()  # two strings were drawn meanwhile
        return text

    @program
    def model(i: int) -> Any:
        if i == 0:
            return effect("slow", slow)
        sample("one", LM("", max_tokens=2))
        effect("note", note, "one")
        sample("two", LM("", max_tokens=2))
        return effect("note", note, "two")

    posts = infer_many(model, [0, 1], engine=Importance(1), lm=TOY)
    assert [p.values()[0] for p in posts] == ["slow", "two"] and drawn == ["one", "two"]


def test_draws_do_not_depend_on_how_long_effects_take() -> None:
    def model(jitter: bool) -> Any:
        def tool(i: int) -> int:
            if jitter:
                time.sleep(0.001 * (hash((i, threading.get_ident())) % 5))
            return i

        out = []
        for i in range(3):
            effect("tool", tool, i)
            out.append(str(sample("x", LM("", max_tokens=3))))
            factor("f", 0.3 * len(out[-1]))
        return tuple(out)

    engine = SMC(10, always=True)
    runs = [infer(model, j, engine=engine, lm=TOY, seed=4).values() for j in (False, True, True)]
    assert runs[0] == runs[1] == runs[2]


def test_more_effects_than_threads() -> None:
    @program
    def model() -> Any:
        return effect("tool", lambda: 1)

    before = threading.active_count()
    post = infer(model, engine=Importance(5 * WORKERS))
    assert len(post.values()) == 5 * WORKERS and post.ledger.effects == 5 * WORKERS
    assert threading.active_count() <= before + WORKERS + 1


def test_context_variables_of_the_caller_are_seen() -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    token = request.set("r-1")
    try:
        post = infer(program(lambda: effect("tool", request.get)), engine=Importance(2))
        assert post.values() == ["r-1", "r-1"]
    finally:
        request.reset(token)


def test_the_ledger_counts_effects_and_their_seconds() -> None:
    post = infer(program(lambda: effect("tool", time.sleep, 0.05)), engine=Importance(2))
    assert post.ledger.effects == 2 and 0.09 < post.ledger.effect_seconds < 2.0


# -- failures -----------------------------------------------------------------------------------


def broken(x: Any) -> Any:
    if x:
        raise ConnectionError("the server is away")
    return "fine"


async def abroken(x: Any) -> Any:
    await asyncio.sleep(0)
    return broken(x)


@pytest.mark.parametrize("fn", [broken, abroken])
def test_raise_keeps_what_was_computed(fn: Any) -> None:
    @program
    def model() -> Any:
        x = sample("x", Uniform([0, 0, 0, 1]))
        return effect("tool", fn, x)

    with pytest.raises(
        SiteError, match="the program raised ConnectionError: the server is away"
    ) as raised:
        infer(model, engine=Importance(40), seed=0)
    error = raised.value
    assert isinstance(error.__cause__, ConnectionError) and error.trace["x"] == 1
    assert "site 'tool'" in str(error) and "test_effects.py:" in str(error)
    assert all(t.result == "fine" for t in error.traces)


@pytest.mark.parametrize("fn", [broken, abroken])
@pytest.mark.parametrize("at", ["site", "run"])
def test_kill_conditions_on_success(fn: Any, at: str) -> None:
    @program
    def model() -> Any:
        x = sample("x", Uniform([0, 0, 0, 1]))
        return effect("tool", fn, x, on_error="kill" if at == "site" else None)

    post = infer(model, engine=Importance(400), seed=0, on_error="kill" if at == "run" else "raise")
    assert dict(post.marginal()) == pytest.approx({"fine": 1.0})
    assert np.exp(post.log_evidence) == pytest.approx(0.75, abs=0.11)
    assert post.deaths == {"tool": round(400 * (1 - np.exp(post.log_evidence)))}
    assert "ConnectionError: the server is away" in post.death_examples[0]


def test_when_all_fail_the_error_says_why() -> None:
    @program
    def model() -> Any:
        return effect("tool", broken, 1, on_error="kill")

    with pytest.raises(AllParticlesDead, match=r"tool \(3\)") as raised:
        infer(model, engine=Importance(3))
    assert "the server is away" in str(raised.value)


class Flaky:
    """Fails the first `n` times it is called with an argument."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.calls: Counter[Any] = Counter()
        self.lock = threading.Lock()

    def __call__(self, who: Any) -> Any:
        with self.lock:
            self.calls[who] += 1
            if self.calls[who] <= self.n:
                raise TimeoutError("again")
        return who


@pytest.mark.parametrize("at", ["site", "run"])
def test_retry_asks_again_with_the_same_draws(at: str) -> None:
    flaky = Flaky(2)

    @program
    def model() -> Any:
        x = sample("x", Uniform(list(range(100))))
        got = effect("tool", flaky, x, on_error="retry" if at == "site" else None)
        return x == got

    post = infer(model, engine=Importance(1), seed=3, on_error="retry" if at == "run" else "raise")
    assert post.values() == [True] and list(flaky.calls.values()) == [3]


def test_retries_are_counted_per_effect_and_then_the_runs_policy_holds() -> None:
    @program
    def model(first: Any, second: Any, retries: int) -> Any:
        a = effect("a", first, 1, on_error="retry", retries=retries)
        return a, effect("b", second, 1, on_error="retry", retries=retries)

    assert infer(model, Flaky(2), Flaky(2), 2, engine=Importance(1)).values() == [(1, 1)]
    with pytest.raises(SiteError, match="TimeoutError: again"):
        infer(model, Flaky(0), Flaky(3), 2, engine=Importance(1))
    dead = infer(
        model, Flaky(9), Flaky(0), 1, engine=Importance(1), on_error="kill", on_dead="return"
    )
    assert dead.deaths == {"a": 1}
    one = Flaky(9)
    with pytest.raises(SiteError):
        infer(model, one, one, 0, engine=Importance(1))
    assert one.calls[1] == 1


def test_an_exception_between_sites_is_retried_from_the_tape() -> None:
    tries: list[Any] = []
    tools: list[int] = []

    @program
    def model() -> Any:
        x = sample("x", Uniform(list(range(1000))))
        effect("tool", tools.append, 1)
        tries.append(x)
        if len(tries) < 3:
            raise OSError("transient")
        return x

    post = infer(model, engine=Importance(1), on_error="retry")
    assert len(set(tries)) == 1 and len(tries) == 3 and tools == [1] and post.values() == tries[:1]

    @program
    def always() -> Any:
        raise OSError("for ever")

    with pytest.raises(SiteError, match="for ever"):
        infer(always, engine=Importance(1), on_error="retry")


def test_exceptions_of_the_program_obey_the_policy() -> None:
    @program
    def model() -> Any:
        x = sample("x", Uniform([1, 2]))
        return 1 // (x - 1)

    post = infer(model, engine=Importance(300), seed=0, on_error="kill")
    assert dict(post.marginal()) == pytest.approx({1: 1.0})
    assert np.exp(post.log_evidence) == pytest.approx(0.5, abs=0.15)
    assert "ZeroDivisionError" in post.death_examples[0]


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("where", ["program", "effect", "async effect"])
def test_some_exceptions_are_nobodys_to_handle(exception: type[BaseException], where: str) -> None:
    def raising() -> None:
        raise exception("now")

    async def araising() -> None:
        raise exception("now")

    @program
    def model() -> Any:
        if where == "program":
            raising()
        return effect("tool", raising if where == "effect" else araising, on_error="kill")

    with pytest.raises(exception, match="now"):
        infer(model, engine=Importance(2), on_error="kill")
    with pytest.raises(exception, match="now"):
        infer_many(
            model, [(), ()], engine=Importance(2), on_error="kill", on_question_error="return"
        )


def test_a_coroutine_cancelled_from_inside_is_a_failure_like_others() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    @program
    def model() -> Any:
        return effect("tool", cancelled, on_error="kill")

    assert infer(model, engine=Importance(2), on_dead="return").deaths == {"tool": 2}


# -- time limits --------------------------------------------------------------------------------


def sleepy(x: float) -> str:
    time.sleep(x)
    return "awake"


async def asleepy(x: float) -> str:
    await asyncio.sleep(x)
    return "awake"


@pytest.mark.parametrize("fn", [sleepy, asleepy])
def test_a_time_limit_is_a_failure_by_policy(fn: Any) -> None:
    @program
    def model() -> Any:
        x = sample("x", Uniform([0.0, 3.0]))
        return effect("tool", fn, x, timeout=0.3, on_error="kill")

    began = time.perf_counter()
    post = infer(model, engine=Importance(12), seed=0)
    assert time.perf_counter() - began < 2.5
    assert dict(post.marginal()) == pytest.approx({"awake": 1.0}) and 0 < post.deaths["tool"] < 12
    assert "TimeoutError: no answer after 0.3 s" in post.death_examples[0]


def test_the_limit_counts_from_the_start_of_the_function() -> None:
    """Whoever waits for a thread must not run out of time meanwhile."""
    release = threading.Event()

    def tool(i: int) -> str:
        if i < WORKERS:
            release.wait(20)
        return "done"

    @program
    def model(i: int) -> Any:
        return effect("tool", tool, i, timeout=None if i < WORKERS else 0.5)

    threading.Timer(0.9, release.set).start()
    posts = infer_many(model, list(range(WORKERS + 2)), engine=Importance(1))
    assert [p.values() for p in posts] == [["done"]] * (WORKERS + 2)


def test_threads_that_hang_are_replaced() -> None:
    stuck = threading.Event()

    def hang(i: int) -> str:
        if i < WORKERS + 3:
            stuck.wait(30)
        return "ran"

    @program
    def model(i: int) -> Any:
        return effect("tool", hang, i, timeout=0.2, on_error="kill")

    posts = infer_many(model, list(range(WORKERS + 8)), engine=Importance(1), on_dead="return")
    stuck.set()
    assert [p.dead for p in posts] == [True] * (WORKERS + 3) + [False] * 5


def test_an_effect_that_ignores_its_cancellation_is_given_up() -> None:
    async def stubborn() -> None:
        end = time.perf_counter() + 1.0
        while time.perf_counter() < end:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                pass

    @program
    def model() -> Any:
        return effect("tool", stubborn, timeout=0.1, on_error="kill")

    began = time.perf_counter()
    assert infer(model, engine=Importance(1), on_dead="return").dead
    assert time.perf_counter() - began < 0.9


def test_a_hanging_tool_does_not_keep_the_process_alive() -> None:
    code = """
    import time
    from lmppl import effect, program
    from lmppl.inference import Importance, infer

    @program
    def model():
        return effect("tool", time.sleep, 60, timeout=0.1, on_error="kill")

    print(infer(model, engine=Importance(1), on_dead="return").deaths)
    """
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=40
    )
    assert done.stdout.strip() == "{'tool': 1}" and done.stderr == ""
    assert time.perf_counter() - began < 20


# -- cached -------------------------------------------------------------------------------------


def test_cached_runs_once_for_all_who_wait_and_survives_their_death() -> None:
    ran: list[int] = []
    gate = threading.Event()

    def slow(x: int) -> int:
        ran.append(x)
        gate.wait(0.05)
        return x * 10

    @program
    def model() -> Any:
        x = sample("x", Uniform([1, 2]))
        y = cached("c", slow, x)
        factor("keep", sample("k", Bernoulli(0.5)))
        return x, y, cached("again", slow, x)

    post = infer(model, engine=SMC(40, always=True), seed=0)
    assert sorted(ran) == [1, 2]
    assert all(y == z == 10 * x for x, y, z in set(post.marginal()))


def test_cached_failures_obey_the_policy() -> None:
    @program
    def model() -> Any:
        return cached("c", broken, sample("x", Uniform([0, 1])))

    with pytest.raises(SiteError, match="the server is away"):
        infer(model, engine=Importance(20))
    post = infer(model, engine=Importance(20), on_error="kill", seed=0)
    assert dict(post.marginal()) == pytest.approx({"fine": 1.0}) and post.deaths["c"] > 0


# -- plain calls --------------------------------------------------------------------------------


def test_plain_calls_run_effects_too() -> None:
    flaky = Flaky(2)

    @program
    def model() -> Any:
        return (
            effect("sync", lambda: 1),
            effect("async", asleepy, 0.0),
            effect("lambda of async", lambda: asleepy(0.0)),
            effect("retried", flaky, 7, on_error="retry"),
            effect("timed", sleepy, 0.0, timeout=5.0),
        )

    want = (1, "awake", "awake", 7, "awake")
    assert model() == want

    async def main() -> Any:  # also where an event loop runs
        flaky.calls.clear()
        return model()

    assert asyncio.run(main()) == want
    with pytest.raises(ConnectionError, match="the server is away"):
        program(lambda: effect("tool", broken, 1, on_error="kill"))()
    with pytest.raises(TimeoutError, match="no answer after 0.1 s"):
        program(lambda: effect("tool", sleepy, 2.0, timeout=0.1))()
    with pytest.raises(TimeoutError, match="again"):
        program(lambda: effect("tool", Flaky(9), 1, on_error="retry", retries=1))()


def test_the_runner_ends_its_threads() -> None:
    before = threading.active_count()
    for _ in range(3):
        infer(
            program(lambda: (effect("a", lambda: 1), effect("b", asleepy, 0.0))),
            engine=Importance(4),
        )
    deadline = time.perf_counter() + 5
    while threading.active_count() > before and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
    runner = EffectRunner()
    runner.close()  # nothing was started
    assert threading.active_count() <= before


def test_effects_inside_nested_inference() -> None:
    ran: list[int] = []

    @program
    def inner() -> Any:
        return effect("tool", lambda: ran.append(1) or len(ran))  # type: ignore[func-returns-value]

    @program
    def outer() -> Any:
        got = infer(inner, engine=Importance(2)).values()
        x = sample("x", Bernoulli(0.5))
        factor("f", 2.0 * x)
        sample("y", Delta(1))
        return tuple(got)

    for driver in DRIVERS:
        ran.clear()
        post = infer(outer, engine=SMC(6, always=True), driver=driver, seed=0)
        assert len(ran) == 12 and all(len(v) == 2 for v in post.values())
