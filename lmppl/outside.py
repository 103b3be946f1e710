"""Effects beside the scheduler: tools and other code of the outside world.

A blocking function runs on one of `WORKERS` daemon threads, an `async def` one on an event loop of
its own. Every outcome, whatever is raised, arrives in `done`; a time limit counts from the start of
the function, and a thread that outlives it is replaced and never waited for.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from lmppl.context import local
from lmppl.jobs import Effect

WORKERS = 32


class _Call:
    """One run of one effect: settled once, by its result or by its time limit."""

    def __init__(self, job: Effect, runner: EffectRunner) -> None:
        self.job = job
        self.runner = runner
        self.variables = contextvars.copy_context()
        self.settled = False
        self.late = False
        self._began = 0.0
        self._timer: threading.Timer | None = None

    def start(self) -> None:
        """The function starts now."""
        self._began = time.perf_counter()
        if self.job.timeout is not None:
            self._timer = threading.Timer(self.job.timeout, self._give_up)
            self._timer.daemon = True
            self._timer.start()

    def settle(self, value: Any, error: BaseException | None) -> None:
        """Hand the outcome over, unless there is one already."""
        with self.runner.lock:
            if self.settled:
                return
            self.settled = True
            if self.job.ledger is not None:
                self.job.ledger.effect_seconds += time.perf_counter() - self._began
        if self._timer is not None:
            self._timer.cancel()
        self.job.outcome = (value, error)
        self.runner.done.put(self.job)

    def too_late(self) -> TimeoutError:
        return TimeoutError(f"no answer after {self.job.timeout} s")

    def _give_up(self) -> None:
        self.late = True
        self.runner.replace_worker(self)
        self.settle(None, self.too_late())

    def run(self) -> None:
        """On a worker thread."""
        local.effect = f"effect {self.job.site!r}"
        self.start()
        try:
            value = self.variables.run(self.job.fn, *self.job.args, **self.job.kwargs)
            if inspect.isawaitable(value):
                self.runner.on_loop(self.wait(lambda: value), value)
                return
        except BaseException as error:  # the scheduler decides what stops the run
            self.settle(None, error)
        else:
            self.settle(value, None)

    async def wait(self, make: Callable[[], Any]) -> None:
        """On the event loop: await what `make` gives, and hand over whatever comes of it."""
        clock = asyncio.timeout(self.job.timeout)
        try:
            async with clock:
                result = await make()
        except BaseException as error:
            if isinstance(error, TimeoutError) and clock.expired():
                error = self.too_late()
            elif isinstance(error, asyncio.CancelledError):
                error = RuntimeError("the coroutine was cancelled from inside")
            self.settle(None, error)
        else:
            self.settle(result, None)


class EffectRunner:
    """Runs effects; finished ones arrive in `done`."""

    def __init__(self) -> None:
        """Start nothing before the first effect."""
        self.done: queue.SimpleQueue[Effect] = queue.SimpleQueue()
        self.lock = threading.Lock()
        self._tasks: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._workers = self._idle = 0
        self._queued = 0
        """Calls that no worker has taken yet: with `_idle`, changed only under the lock."""
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, job: Effect) -> None:
        """Start an effect."""
        call = _Call(job, self)
        if inspect.iscoroutinefunction(job.fn):
            call.start()
            self.on_loop(call.wait(lambda: job.fn(*job.args, **job.kwargs)))
            return
        with self.lock:
            self._queued += 1
            if self._idle < self._queued and self._workers < WORKERS:
                self._add_worker()
        self._tasks.put(call)

    def replace_worker(self, call: _Call) -> None:
        """A thread does not come back in time: let another one take its place."""
        if not inspect.iscoroutinefunction(call.job.fn):
            with self.lock:
                self._add_worker()

    def _add_worker(self) -> None:
        self._workers += 1
        threading.Thread(target=self._work, name="lmppl-effect", daemon=True).start()

    def _work(self) -> None:
        call: _Call | None = None
        while call is None or not call.late:
            with self.lock:
                self._idle += 1
            call = self._tasks.get()
            with self.lock:
                self._idle -= 1
                self._queued -= call is not None
            if call is None:
                break
            call.run()
        with self.lock:
            self._workers -= 1

    def on_loop(self, coroutine: Any, inner: Any = None) -> None:
        """Schedule a coroutine on the event loop, which starts with the first one.

        `inner` is one that it awaits, made before: closed with it, should it never start.
        """
        with self.lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=_run_loop, args=(self._loop,), name="lmppl-loop", daemon=True
                ).start()
            loop = self._loop
        try:
            loop.call_soon_threadsafe(lambda: _keep(loop.create_task(coroutine), inner))
        except RuntimeError:  # the run is over, and its loop closed
            coroutine.close()
            if inspect.iscoroutine(inner):
                inner.close()

    def close(self) -> None:
        """Start no more; running threads end by themselves, coroutines are cancelled."""
        while not self._tasks.empty():
            self._tasks.get()
        for _ in range(self._workers):
            self._tasks.put(None)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)


_TASKS: set[asyncio.Task[Any]] = set()


def _keep(task: asyncio.Task[Any], inner: Any) -> None:
    """A loop holds its tasks weakly."""
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)
    if inspect.iscoroutine(inner):
        task.add_done_callback(lambda _: inner.close())


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    local.effect = "an async effect"
    asyncio.set_event_loop(loop)
    loop.run_forever()
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()


def run_here(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    timeout: float | None,
    site: str,
) -> Any:
    """Run an effect and wait for it: a plain function in this thread, so that pdb works in it."""
    if timeout is None and not inspect.iscoroutinefunction(fn):
        value = fn(*args, **kwargs)
        if not inspect.isawaitable(value):
            return value
        ready = value

        async def fn() -> Any:
            return await ready

        args, kwargs = (), {}
    runner = EffectRunner()
    try:
        runner.submit(Effect(fn, args, kwargs, timeout, site))
        value, error = runner.done.get().outcome
    finally:
        runner.close()
    if error is not None:
        raise error
    return value
