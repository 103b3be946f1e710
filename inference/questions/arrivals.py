"""Questions that arrive one by one, while others run: each joins the next batch.

    with Arrivals(program, engine=SMC(16), lm="smollm2") as line:
        future = line.submit({"question": "..."})      # from any thread
        posterior = future.result()

One thread runs them all through the scheduler, so that questions of many callers share the batches
of the language model, and a question that comes in the middle of another's inference waits for one
batch and not for its end. The randomness of a question is a function of its seed alone.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, Self

from lmppl.errors import BadArgument
from lmppl.inference.base import Engine
from lmppl.inference.calls import _prepare, as_engine
from lmppl.inference.machine.population import Jobs
from lmppl.inference.machine.scheduler import drive_many
from lmppl.inference.results.posterior import Posterior
from lmppl.lm.load import as_models
from lmppl.random import GumbelMax


class Busy(BadArgument):
    """More questions wait than there is room for."""


class _Asked(NamedTuple):
    kwargs: Mapping[str, Any]
    seed: int
    future: Future[Posterior]


class Arrivals:
    """A thread that answers questions of one program.

    Args:
        program: as in `infer`.
        engine: of every question.
        lm: as in `infer`.
        concurrency: questions that share a batch at most.
        waiting: questions that may wait for their turn; one more is `Busy`.
        options: those of `infer`, the same for every question.
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        engine: Engine | None = None,
        lm: Any = None,
        concurrency: int = 16,
        waiting: int = 256,
        **options: Any,
    ) -> None:
        """Start the thread."""
        self.engine = as_engine(engine)
        self._program = program
        self._options = {**options, "lm": as_models(lm), "engine": self.engine}
        self._concurrency = concurrency
        self._queue: queue.Queue[_Asked | None] = queue.Queue(waiting)
        self._running: dict[int, Future[Posterior]] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="lmppl-arrivals", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, kwargs: Mapping[str, Any], *, seed: int = 0) -> Future[Posterior]:
        """Answer a question; the future has its posterior, or the error in its place.

        Raises:
            Busy: too many wait.
        """
        future: Future[Posterior] = Future()
        try:
            self._queue.put_nowait(_Asked(kwargs, seed, future))
        except queue.Full:
            raise Busy(
                f"{self._queue.maxsize} questions wait already",
                fix="ask again later, or run another server beside this one",
            ) from None
        return future

    @property
    def running(self) -> int:
        """Questions that share batches now."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Questions that wait for their turn."""
        return self._queue.qsize()

    def close(self) -> None:
        """Answer no more: what runs ends, what waits is cancelled."""
        self._closing = True
        while True:
            try:
                asked = self._queue.get_nowait()
            except queue.Empty:
                break
            if asked is not None:
                asked.future.cancel()
        self._queue.put(None)
        self._thread.join(60)

    # -- on the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            try:
                stream = drive_many(
                    self._arriving(),
                    self.engine.chance(GumbelMax()),
                    concurrency=self._concurrency,
                )
                for index, outcome in stream:
                    self._settle(self._running.pop(index), outcome)
            except BaseException as error:  # of all that run: a model that is down, no memory
                for future in self._running.values():
                    self._settle(future, error)
                self._running.clear()

    @staticmethod
    def _settle(future: Future[Posterior], outcome: Any) -> None:
        if future.cancelled():
            return
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def _arriving(self) -> Iterator[Callable[[], Jobs] | None]:
        """Makers of runs; None where nothing waits and something runs."""
        index = 0
        while True:
            try:
                asked = self._queue.get(block=not self._running)
            except queue.Empty:
                index += 1
                yield None
                continue
            if asked is None:
                return
            if not asked.future.set_running_or_notify_cancel():
                continue
            self._running[index] = asked.future
            index += 1
            yield self._maker(asked)

    def _maker(self, asked: _Asked) -> Callable[[], Jobs]:
        def start() -> Jobs:
            given = {**self._options, "kwargs": dict(asked.kwargs), "seed": asked.seed}
            run, _ = _prepare(self._program, (), given)
            return run

        return start
