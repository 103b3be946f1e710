"""Drivers: the same tapes however user code is suspended, and what suspension must not break."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest

from lmppl import (
    LM,
    Bernoulli,
    Categorical,
    Delta,
    Uniform,
    call,
    deterministic,
    effect,
    factor,
    loop,
    markov,
    observe,
    plate,
    program,
    sample,
)
from lmppl import handlers as H
from lmppl.context import local
from lmppl.errors import (
    BadArgument,
    BadProgram,
    LmpplWarning,
    NoActiveProgram,
    NotAwaited,
    ReplayDivergence,
    SiteError,
    WrongContext,
)
from lmppl.frames import CoroutineFrame, EagerFrame, GreenletFrame, driver
from lmppl.inference import SMC, Enumerate, Importance, ainfer, infer, tokens
from lmppl.lm.table import TableLM

TOY = TableLM(["a", "b", "<eos>"], {(): [0.4, 0.3, 0.3]}, name="toy")
ALL = ["greenlet", "coroutine", "eager"]
PLAIN = ["greenlet", "eager"]


# -- the same tapes -----------------------------------------------------------------------------


@program
def sync_model(n: int) -> Any:
    total = 0
    for i in range(n):
        x = sample("x", Categorical([0, 1, 2], [3, 2, 1]))
        factor("f", 0.2 * x)
        total += deterministic("d", x * i)
    word = sample("word", LM("a", max_tokens=3, stop="b"))
    both = plate("p", [0, 1], lambda i: sample("z", Bernoulli(0.3 + 0.4 * i)))
    last = loop(lambda c, t: c + sample("y", Uniform([1, 2])), 0, n=2)
    tool = effect("tool", lambda a: a * 2, total)
    observe("o", Bernoulli(0.5 if both[0] else 0.25), True)
    return total, str(word), both, last, tool


@program
async def async_model(n: int) -> Any:
    async def branch(i: int) -> Any:
        return await sample("z", Bernoulli(0.3 + 0.4 * i))

    async def step(c: int, t: int) -> Any:
        return c + await sample("y", Uniform([1, 2]))

    total = 0
    for i in range(n):
        x = await sample("x", Categorical([0, 1, 2], [3, 2, 1]))
        await factor("f", 0.2 * x)
        total += await deterministic("d", x * i)
    word = await sample("word", LM("a", max_tokens=3, stop="b"))
    both = await plate("p", [0, 1], branch)
    last = await loop(step, 0, n=2)
    tool = await effect("tool", lambda a: a * 2, total)
    await observe("o", Bernoulli(0.5 if both[0] else 0.25), True)
    return total, str(word), both, last, tool


@pytest.mark.parametrize(
    "engine",
    [Importance(6), SMC(6, always=True), SMC(6, resample_at=tokens(1), always=True), SMC(6)],
    ids=repr,
)
def test_all_drivers_give_the_same_tapes(engine: Any) -> None:
    runs = [infer(sync_model, 3, engine=engine, lm=TOY, seed=5, driver=d) for d in PLAIN]
    runs += [infer(async_model, 3, engine=engine, lm=TOY, seed=5, driver=d) for d in ALL]
    first = [
        [(e.op, e.address, e.value, e.logp, e.logq, e.logw) for e in t.sites]
        for t in runs[0].traces
    ]
    for run in runs[1:]:
        assert [
            [(e.op, e.address, e.value, e.logp, e.logq, e.logw) for e in t.sites]
            for t in run.traces
        ] == first
        assert run.log_evidence == runs[0].log_evidence
        assert run.values() == runs[0].values()


def test_driver_is_chosen_by_name() -> None:
    assert driver(None, sync_model) is GreenletFrame
    assert driver("eager", sync_model) is EagerFrame
    assert driver("coroutine", async_model) is CoroutineFrame
    with pytest.raises(BadArgument, match="no driver is called 'thread'") as raised:
        infer(sync_model, 1, driver="thread")
    assert "greenlet, coroutine, eager" in str(raised.value)


def test_the_coroutine_driver_refuses_plain_functions() -> None:
    with pytest.raises(BadProgram, match="async def programs only") as raised:
        infer(sync_model, 1, lm=TOY, driver="coroutine")
    assert 'driver="greenlet"' in str(raised.value)


def test_without_greenlet_it_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "greenlet", None)  # import greenlet raises ImportError
    with pytest.raises(ImportError):
        import greenlet  # noqa: F401
    assert driver(None, sync_model) is EagerFrame
    assert driver(None, async_model) is CoroutineFrame
    for model in (sync_model, async_model):
        post = infer(model, 2, engine=SMC(4, always=True), lm=TOY, seed=1)
        assert len(post) == 4
    with pytest.raises(BadArgument, match="greenlet") as raised:
        infer(sync_model, 2, lm=TOY, driver="greenlet")
    assert "pip install" in str(raised.value)


def test_the_package_imports_without_greenlet() -> None:
    code = (
        "import sys; sys.modules['greenlet'] = None\n"
        "from lmppl import program, sample, Uniform\nfrom lmppl.inference import infer, SMC\n"
        "@program\ndef m():\n    return sample('x', Uniform([1, 2]))\n"
        "assert m() in (1, 2)\nprint(len(infer(m, engine=SMC(5))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "5", done.stderr


# -- suspension inside C frames -----------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_sites_inside_sorted_map_and_comprehensions(name: str) -> None:
    @program
    def model() -> Any:
        ranked = sorted("abc", key=lambda c: sample(f"rank {c}", Uniform([1, 2, 3])))
        mapped = list(map(lambda i: sample("m", Bernoulli(0.5)), range(2)))
        compre = {i: sample("c", Bernoulli(0.5)) for i in range(2)}
        first = next(x for x in (sample("g", Uniform([1, 2])) for _ in range(9)) if x)
        best = max([1, 2], key=lambda i: sample("k", Uniform([i])))
        total = sum(sample("s", Delta(i)) for i in range(3))
        return "".join(ranked), tuple(mapped), tuple(compre.values()), first, best, total

    post = infer(model, engine=SMC(20, always=True), seed=0, driver=name)
    for t in post.traces:
        order = sorted("abc", key=lambda c: t[f"rank {c}"])
        assert t.result[0] == "".join(order)
        assert t.result[1] == (t["m"], t["m[1]"]) and t.result[2] == (t["c"], t["c[1]"])
        assert t.result[3:] == (t["g"], 2, 3)
    assert len({t.result[0] for t in post.traces}) > 1


def test_class_bodies_methods_and_deep_calls_are_programs_too() -> None:
    class Bot:
        def __init__(self, p: float) -> None:
            self.p = p

        def ask(self, depth: int) -> Any:
            return self.ask(depth - 1) if depth else sample("x", Bernoulli(self.p))

        def __call__(self) -> Any:
            return self.ask(50), [self.ask(0) for _ in range(2)]

    for name in PLAIN:
        post = infer(Bot(0.3), engine=Enumerate(), driver=name)
        assert post.log_evidence == pytest.approx(0.0) and len(post) == 8
    assert infer(Bot(1.0).ask, 3, engine=Importance(1)).values() == [True]


# -- context variables and threads --------------------------------------------------------------


REQUEST: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")


@pytest.mark.parametrize("name", ALL)
def test_context_variables_are_visible_and_do_not_leak_between_particles(name: str) -> None:
    async def amodel() -> Any:
        before = REQUEST.get()
        x = await sample("x", Uniform(["a", "b", "c"]))
        REQUEST.set(str(x))
        await factor("f", 0.0)
        await sample("y", Bernoulli(0.5))
        return before, str(x), REQUEST.get()

    def model() -> Any:
        before = REQUEST.get()
        x = sample("x", Uniform(["a", "b", "c"]))
        REQUEST.set(str(x))
        factor("f", 0.0)
        sample("y", Bernoulli(0.5))
        return before, str(x), REQUEST.get()

    token = REQUEST.set("outer")
    try:
        fn: Any = amodel if name == "coroutine" else model
        post = infer(fn, engine=Importance(9), driver=name, seed=0)
        assert all(v == ("outer", v[1], v[1]) for v in post.values())
        assert len({v[1] for v in post.values()}) > 1 and REQUEST.get() == "outer"
    finally:
        REQUEST.reset(token)


def test_two_threads_run_two_inferences() -> None:
    found: dict[int, Any] = {}

    def run(i: int) -> None:
        found[i] = infer(sync_model, 3, engine=SMC(8, always=True), lm=TOY, seed=i).values()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i in range(4):
        assert found[i] == infer(sync_model, 3, engine=SMC(8, always=True), lm=TOY, seed=i).values()


def test_a_site_in_another_thread_is_the_wrong_context() -> None:
    @program
    def model() -> Any:
        caught: list[BaseException] = []

        def elsewhere() -> None:
            try:
                sample("x", Delta(1))
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        raise caught[0]

    with pytest.raises(WrongContext, match="while one runs in another thread or task"):
        infer(model, engine=Importance(1))
    with pytest.raises(WrongContext):
        model()
    with pytest.raises(NoActiveProgram):  # a kind of it
        model()


def test_a_site_in_a_foreign_greenlet_is_the_wrong_context() -> None:
    import greenlet

    @program
    def model() -> Any:
        return greenlet.greenlet(lambda: sample("x", Uniform([1, 2]))).switch()

    with pytest.raises(WrongContext, match="another greenlet"):
        infer(model, engine=Importance(2))


def test_inside_an_effect_it_says_which() -> None:
    @program
    def model() -> Any:
        return effect("tool", lambda: sample("x", Delta(1)))

    with pytest.raises(SiteError, match="sample.. was called inside the function of effect 'tool'"):
        infer(model, engine=Importance(1))

    async def tool() -> Any:
        return sample("x", Delta(1))

    with pytest.raises(SiteError, match="inside the function of an async effect"):
        infer(program(lambda: effect("tool", tool)), engine=Importance(1))


# -- killing frames -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["greenlet", "coroutine"])
def test_finally_blocks_and_context_managers_run_on_kill(name: str) -> None:
    log: list[str] = []

    class Held:
        def __enter__(self) -> None:
            log.append("in")

        def __exit__(self, *exc: object) -> None:
            log.append("out")

    async def amodel() -> Any:
        with Held():
            x = await sample("x", Uniform(list(range(8))))
            await factor("f", float(x))
            await sample("y", Bernoulli(0.5))

    def model() -> Any:
        with Held():
            x = sample("x", Uniform(list(range(8))))
            factor("f", float(x))
            sample("y", Bernoulli(0.5))

    infer(amodel if name == "coroutine" else model, engine=SMC(30, always=True), driver=name)
    gc.collect()
    assert log.count("in") == log.count("out") > 30


def test_finally_blocks_run_when_the_run_fails() -> None:
    log: list[str] = []

    @program
    def model(i: int) -> Any:
        try:
            x = sample("x", Uniform([0, 1, 2, 3]))
            sample("y", Bernoulli(0.5))
            if x == 0:
                raise ValueError("no")
        finally:
            log.append("closed")

    with pytest.raises(SiteError):
        infer(model, 1, engine=SMC(40), seed=0)
    assert len(log) == 40  # at once, not at some collection


def test_a_primitive_in_a_finally_block_does_not_revive_the_dead() -> None:
    entered: list[str] = []

    @program
    def model() -> Any:
        try:
            x = sample("x", Bernoulli(0.5))
            factor("f", x)
            return sample("y", Bernoulli(0.5))
        finally:
            entered.append("finally")
            deterministic("closing", 1)

    post = infer(model, engine=SMC(40, always=True), seed=0)
    assert post.log_evidence == pytest.approx(-0.69, abs=0.4)
    assert len(entered) >= 40
    assert not any("closing" in t for t, w in zip(post.traces, post.weights, strict=True) if w == 0)


@pytest.mark.parametrize("name", ["greenlet", "coroutine"])
def test_a_bare_except_that_swallows_the_kill_is_given_up(name: str) -> None:
    """It would catch what unwinds it for ever; its frame is left, with a warning that names it."""

    def model() -> Any:
        x = sample("x", Bernoulli(0.5))
        while True:
            try:
                factor("f", x)
                return sample("y", Bernoulli(0.5))
            except:  # noqa: E722, S110
                pass

    async def amodel() -> Any:
        x = await sample("x", Bernoulli(0.5))
        while True:
            try:
                await factor("f", x)
                return await sample("y", Bernoulli(0.5))
            except:  # noqa: E722, S110
                pass

    with pytest.warns(LmpplWarning, match=r"test_drivers.py:\d+: its frame is left") as caught:
        post = infer(
            amodel if name == "coroutine" else model, engine=Importance(12), driver=name, seed=0
        )
    assert post.deaths == {"f": len(caught)}
    assert 0 < len(caught) < 12
    assert local.active is None


@pytest.mark.parametrize("name", ["greenlet", "coroutine"])
def test_a_process_with_given_up_frames_ends_quietly(name: str) -> None:
    """The end of the interpreter closes what it frees, and such a program would catch that too."""
    code = """
    import warnings
    from lmppl import Bernoulli, factor, program, sample
    from lmppl.inference import Importance, infer

    @program
    async def model():
        x = await sample("x", Bernoulli(0.5))
        while True:
            try:
                await factor("f", x)
                return await sample("y", Bernoulli(0.5))
            except:
                pass

    warnings.simplefilter("ignore")
    print(len(infer(model, engine=Importance(12), driver="NAME")))
    """
    code = code.replace("NAME", name)
    if name == "greenlet":
        code = code.replace("async ", "").replace("await ", "")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "12", "")


def test_a_kill_caught_once_still_ends_the_frame() -> None:
    after: list[int] = []

    @program
    def model() -> Any:
        x = sample("x", Bernoulli(0.5))
        try:
            factor("f", x)
        except BaseException:
            after.append(1)
        sample("y", Bernoulli(0.5))
        after.append(2)
        return x

    post = infer(model, engine=Importance(40), seed=0)
    dead = post.deaths["f"]
    assert after.count(1) == dead > 5 and after.count(2) == 40 - dead
    assert local.active is None


def test_the_eager_driver_names_a_caught_signal() -> None:
    @program
    def last() -> Any:
        try:
            return sample("x", Bernoulli(0.5))
        except BaseException:
            return None

    with pytest.raises(
        BadProgram, match="caught the signal that suspends it at site 'x'"
    ) as raised:
        infer(last, engine=Importance(2), driver="eager")
    assert "test_drivers.py:" in str(raised.value)

    @program
    def other() -> Any:
        try:
            sample("x", Bernoulli(0.5))
        except BaseException:
            raise KeyError("mine") from None

    with pytest.raises(BadProgram, match="caught the signal"):
        infer(other, engine=Importance(2), driver="eager")

    @program
    def harmless() -> Any:
        """The next site raises it again, so nothing goes wrong."""
        try:
            x = sample("x", Bernoulli(0.5))
        except BaseException:
            x = None
        return x, sample("y", Bernoulli(0.5))

    assert None not in [
        x for x, _ in infer(harmless, engine=Importance(9), driver="eager").values()
    ]
    assert (
        infer(harmless, engine=Importance(9), driver="eager").values()
        == infer(harmless, engine=Importance(9)).values()
    )


# -- async programs -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_forgotten_awaits_list_their_sites(name: str) -> None:
    async def sub() -> Any:
        return await sample("s", Delta(1))

    async def step(c: Any, t: int) -> Any:
        return c

    @program
    async def model() -> Any:
        sample("x", Delta(1))
        observe("y", Delta(1), 1)
        factor("z", 0.0)
        call(sub)
        loop(step, 0, n=1)
        markov(step, 0, [1], name="chain")
        plate("p", [1], lambda i: sub())
        effect("e", print)
        return await sample("last", Delta(2))

    with pytest.raises(
        NotAwaited, match="8 sites were never awaited: x, y, z, sub, loop, chain, p, e"
    ):
        infer(model, engine=Importance(1), driver=name)
    plain: Any = model
    with pytest.raises(NotAwaited, match="8 sites were never awaited"):
        plain()


@pytest.mark.parametrize(
    "use",
    [
        lambda v: bool(v),
        lambda v: v == "yes",
        lambda v: v != "yes",
        lambda v: v > 1,
        lambda v: v + "x",
        lambda v: "x" + v,
        lambda v: f"{v}",
        lambda v: v.strip(),
        lambda v: v[0],
        lambda v: len(v),
        lambda v: list(v),
        lambda v: "a" in v,
        lambda v: int(v),
        lambda v: v * 2,
        lambda v: v(),
    ],
)
def test_the_use_of_a_value_that_was_not_awaited_is_an_error(use: Any) -> None:
    """Peers' coroutines are true in every `if`."""

    async def model() -> Any:
        return use(sample("verdict", Delta("no")))

    for run in (program(model), lambda: infer(model, engine=Importance(1))):
        with pytest.raises(NotAwaited, match="1 site was never awaited: verdict"):
            run()


def test_awaiting_twice_is_an_error() -> None:
    async def model() -> Any:
        request = sample("x", Delta(1))
        return await request, await request

    for name in ALL:
        with pytest.raises(BadProgram, match="'x' was awaited twice"):
            infer(model, engine=Importance(1), driver=name)


def test_a_request_kept_from_another_run_is_an_error() -> None:
    kept: list[Any] = []

    async def first() -> Any:
        kept.append(sample("x", Delta(1)))
        return 1

    async def second() -> Any:
        return await kept[0]

    with pytest.raises(NotAwaited):
        infer(first, engine=Importance(1))
    with pytest.raises(WrongContext, match="outside of the run that asked for it"):
        infer(second, engine=Importance(1))


@pytest.mark.parametrize("name", ALL)
def test_foreign_awaitables_are_named(name: str) -> None:
    async def sleeps() -> Any:
        await sample("x", Delta(1))
        await asyncio.sleep(0)

    async def waits() -> Any:
        await sample("x", Delta(1))
        await asyncio.sleep(0.01)

    async def futures() -> Any:
        await asyncio.get_running_loop().create_future()

    for model in (sleeps, waits, futures):
        with pytest.raises(
            BadProgram, match="awaited something that is not of this package"
        ) as raised:
            infer(model, engine=Importance(1), driver=name)
        assert 'await effect("name", async_function, ...)' in str(raised.value)
        plain: Any = program(model)
        with pytest.raises(BadProgram, match="not of this package"):
            plain()

    async def in_a_loop() -> None:
        for model in (sleeps, waits, futures):
            with pytest.raises(BadProgram, match="not of this package"):
                infer(model, engine=Importance(1), driver=name)

    asyncio.run(in_a_loop())


@pytest.mark.parametrize("name", ALL)
def test_async_helpers_and_subprograms(name: str) -> None:
    async def helper() -> Any:
        return await sample("h", Uniform([1, 2]))

    @program
    async def sub(i: int) -> Any:
        return i + await helper()

    @program
    async def model() -> Any:
        return (
            await helper(),
            await sub(10),
            await call(sub, 20),
            await plate("p", [30, 40], sub),
            await plate("q", [50], lambda i: sub(i)),
            await markov(sub_step, 0, [1, 2]),
        )

    async def sub_step(c: int, x: int) -> Any:
        return c + x * await helper()

    t = infer(model, engine=SMC(4, always=True), driver=name).traces[0]
    assert list(t) == [
        "h", "h[1]", "sub/h", "sub", "p[0]/h", "p[1]/h", "q[0]/h", "markov[0]/h", "markov[1]/h",
    ]  # fmt: skip
    assert t.result == (
        t["h"], 10 + t["h[1]"], 20 + t["sub/h"], (30 + t["p[0]/h"], 40 + t["p[1]/h"]),
        (50 + t["q[0]/h"],), t["markov[0]/h"] + 2 * t["markov[1]/h"],
    )  # fmt: skip
    assert isinstance(model(), tuple)


def test_plain_subprograms_of_async_programs() -> None:
    @program
    def plain() -> Any:
        return 1 + sample("x", Uniform([1, 2]))

    @program
    async def model() -> Any:
        first = plain()  # called as it is
        second = await call(plain)
        branches = await plate("p", [0, 1], lambda i: plain())
        y = await sample("y", Delta(0))  # and the colour is async again
        return first, second, branches, y

    for name in PLAIN:
        t = infer(model, engine=SMC(4, always=True), driver=name).traces[0]
        assert t.result == (
            1 + t["x"], 1 + t["plain/x"], (1 + t["p[0]/x"], 1 + t["p[1]/x"]), 0,
        )  # fmt: skip
    assert model()[3] == 0  # type: ignore[index]
    with pytest.raises(BadProgram, match="suspends a plain function under the coroutine driver"):
        infer(model, engine=Importance(1), driver="coroutine")


def test_async_subprograms_of_plain_programs() -> None:
    @program
    async def sub() -> Any:
        return 1 + await sample("x", Uniform([1, 2]))

    @program
    def model() -> Any:
        return call(sub), sub(), plate("p", [0], lambda i: sub()), sample("y", Delta(0))

    for name in PLAIN:
        t = infer(model, engine=SMC(4, always=True), driver=name).traces[0]
        assert t.result == (1 + t["sub/x"], 1 + t["x"], (1 + t["p[0]/x"],), 0)
    assert model()[3] == 0


def test_handlers_around_async_programs() -> None:
    @program
    async def model() -> Any:
        with H.condition(data={"y": True}):
            return await sample("x", Bernoulli(0.25)), await sample("y", Bernoulli(0.5))

    for name in ALL:
        post = infer(H.condition(model, {"x": True}), engine=Enumerate(), driver=name)
        assert post.log_evidence == pytest.approx(-2.0794415)
    assert H.condition(model, {"x": True})()[0] is True


def test_infer_works_in_a_running_event_loop() -> None:
    async def main() -> Any:
        direct = infer(sync_model, 2, engine=SMC(4), lm=TOY, seed=1)
        threaded = await ainfer(sync_model, 2, engine=SMC(4), lm=TOY, seed=1)
        together = await asyncio.gather(
            *(ainfer(sync_model, 2, engine=SMC(4), lm=TOY, seed=i) for i in range(3))
        )
        return direct.values(), threaded.values(), together[1].values()

    a, b, c = asyncio.run(main())
    assert a == b == c


# -- divergence ---------------------------------------------------------------------------------


def test_programs_that_change_on_replay_are_found() -> None:
    clock = iter(range(10**6))

    def other_name() -> Any:
        x = sample("x", Bernoulli(0.5))
        factor("f", 1.0 if x else 0.0)
        y = sample(f"y{next(clock)}", Bernoulli(0.5))
        return y, sample("z", Bernoulli(0.5))

    def other_law() -> Any:
        x = sample("x", Bernoulli(1.0 / (2 + next(clock))))
        factor("f", 1.0 if x else 0.0)
        y = sample("y", Bernoulli(0.5))
        return y, sample("z", Bernoulli(0.5))

    def other_weight() -> Any:
        x = sample("x", Bernoulli(0.5))
        factor("f", 1e-9 * next(clock))
        factor("g", 1.0 if x else 0.0)
        y = sample("y", Bernoulli(0.5))
        return y, sample("z", Bernoulli(0.5))

    def shorter() -> Any:
        x = sample("x", Bernoulli(0.5))
        factor("f", 1.0 if x else 0.0)
        if next(clock) % 7 == 0:
            sample("sometimes", Bernoulli(0.5))
        y = sample("y", Bernoulli(0.5))
        return y, sample("z", Bernoulli(0.5))

    for model, site in (
        (other_name, "y"),
        (other_law, "x"),
        (other_weight, "f"),
        (shorter, "sometimes|y"),
    ):
        for name in PLAIN:
            with pytest.raises(ReplayDivergence, match=f"took another path on replay.*({site})"):
                infer(model, engine=SMC(20, resampling="multinomial", always=True), driver=name)


def test_observations_of_the_run_replay() -> None:
    @program
    def model() -> Any:
        a = sample("a", Bernoulli(0.5))
        factor("f", 0.5 * a)
        b = sample("b", Bernoulli(0.25 if a else 0.5))
        factor("g", 0.25 * b)
        return a

    for name in PLAIN:
        post = infer(
            model,
            engine=SMC(60, resampling="multinomial", always=True),
            observations={"a": True, "b": False},
            driver=name,
        )
        assert post.log_evidence == pytest.approx(-0.6931 - 0.28768 + 0.5, abs=1e-3)


def test_a_condition_of_the_run_does_not_hide_a_divergence() -> None:
    flip = iter([True, False] * 1000)

    @program
    def model() -> Any:
        sample("a", Bernoulli(0.5 if next(flip) else 0.4))
        factor("f", 0.5 * sample("c", Bernoulli(0.5)))
        return sample("b", Bernoulli(0.5))

    with pytest.raises(ReplayDivergence, match="observe 'a'"):
        infer(
            model,
            engine=SMC(21, resampling="multinomial", always=True),
            observations={"a": True},
        )
