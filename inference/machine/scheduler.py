"""One batch for everything that waits: particles, plate branches, questions, nested inferences.

Engines are generators that yield jobs. The scheduler runs every generator until it waits; when
nobody runs, all askers are known, and all waiting model jobs become one batch per model and kind.
There are no timers. Effects run beside it, on threads and on one event loop, and so do requests to
reward endpoints; a batch never waits for them, their particles join the next one.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from lmppl import context
from lmppl.batches import call, distinct_inputs, run_lm_jobs, settle
from lmppl.errors import Deadlock, Suspended
from lmppl.inference.machine.population import Jobs
from lmppl.jobs import Batch, Effect, Generate, Job, Score
from lmppl.outside import EffectRunner
from lmppl.random import Chance

BESIDE = {Effect, Batch}
"""Kinds of jobs that may run beside the batches."""
Ended = tuple[int, Any]
"""The index of a run, and its result or exception."""
Maker = tuple[int, Callable[[], Jobs] | None]
"""The index of a run, and what makes it."""
SWEEP = 200_000
"""Objects made since the last sweep after which there is another."""


class _Client:
    """One engine run and the jobs it waits for."""

    def __init__(self, index: int, run: Jobs) -> None:
        self.index = index
        self.run = run
        self.waiting = 0
        self.completed: Sequence[Job] = ()
        self.asked: list[Generate | Score] = []
        """Its model jobs of the next batch."""
        self.outside: list[Batch] = []
        """Those of the next requests beside it."""
        self.started = False


def drive_many(
    runs: Iterable[Callable[[], Jobs] | None],
    chance: Chance,
    *,
    concurrency: int,
    observer: Callable[[int], None] | None = None,
) -> Iterator[Ended]:
    """Run many engine runs together; yield (index, result or exception) as they end.

    Args:
        runs: makers of generators; a new one starts when fewer than `concurrency` run. None in
            the place of one says that none is there now: it is asked again after the next batch.
        chance: who answers the draws of model jobs.
        concurrency: how many share a batch at most.
        observer: called with the number of running ones before each batch.
    """
    running = _Running(chance, observer)
    collector = _Collector()
    context.engines_running += 1
    collector.pause()
    try:
        for ended in running.ends(enumerate(runs), concurrency, collector.sweep):
            collector.resume()
            yield ended
            collector.pause()
    finally:
        collector.resume()
        context.engines_running -= 1
        running.close()


class _Running:
    """The runs that share batches, and what they wait for."""

    def __init__(self, chance: Chance, observer: Callable[[int], None] | None) -> None:
        self.chance = chance
        self.observer = observer
        self.clients: dict[int, _Client] = {}
        self.effects = EffectRunner()
        self.requests = _Requests(self.effects)
        self.exhausted = False
        """Whether there is no further run to start."""
        self._of_effect: dict[int, _Client] = {}

    def ends(
        self, makers: Iterator[Maker], concurrency: int, sweep: Callable[[], None]
    ) -> Iterator[Ended]:
        """Start runs, move those that can move, answer what they ask: until all have ended."""
        while True:
            yield from self._start(makers, concurrency)
            if not self.clients:
                return
            for client in list(self.clients.values()):
                if client.completed or not client.started:
                    yield from self._move(client)
            sweep()
            self.requests.send(self.clients.values())
            asking = [c for c in self.clients.values() if c.asked]
            if asking:
                if self.observer is not None:
                    self.observer(len(self.clients))
                for client, failure in _run_batch(asking, self.chance):
                    yield self._failed(client, failure)
            yield from self._take_effects(wait=not asking)

    def close(self) -> None:
        """End what still runs."""
        for client in self.clients.values():
            client.run.close()
        self.effects.close()

    def _start(self, makers: Iterator[Maker], concurrency: int) -> Iterator[Ended]:
        """New runs, while there is room; the errors of those that cannot be made."""
        while not self.exhausted and len(self.clients) < concurrency:
            try:
                index, make = next(makers)
            except StopIteration:
                self.exhausted = True
                return
            if make is None:
                return
            try:
                self.clients[index] = _Client(index, make())
            except Exception as error:  # this question's arguments, not the others'
                yield index, error

    def _move(self, client: _Client) -> Iterator[Ended]:
        """Run one on until it waits, and hand out its jobs; its end, if it comes to it."""
        try:
            if client.started:
                done, client.completed = client.completed, ()
                new = client.run.send(done)
            else:
                client.started = True
                new = next(client.run)
        except StopIteration as stop:
            del self.clients[client.index]
            yield client.index, stop.value
            return
        except (MemoryError, Suspended):
            raise
        except Exception as error:
            del self.clients[client.index]
            yield client.index, error
            return
        client.waiting += len(new)
        if BESIDE.isdisjoint(map(type, new)):
            client.asked += new  # type: ignore[arg-type]
        else:
            for job in new:
                if type(job) is Effect:
                    self._of_effect[id(job)] = client
                    self.effects.submit(job)
                elif type(job) is Batch and job.beside:
                    client.outside.append(job)
                else:
                    client.asked.append(job)  # type: ignore[arg-type]
        if not client.waiting:
            raise Deadlock("an engine waits, and none of its jobs runs", fix="report this as a bug")

    def _take_effects(self, wait: bool) -> Iterator[Ended]:
        """Hand over what is done beside the batches; the runs that a failed request ends.

        With `wait` nobody has asked a model: when nobody can move either, the next effect is
        waited for.
        """
        clients = self.clients
        wait = wait and bool(clients)
        wait = wait and not any(c.completed or not c.started for c in clients.values())
        while wait or not self.effects.done.empty():
            wait, done = False, self.effects.done.get()
            for client, broken in self.requests.finished(done):
                if client.index in clients:
                    yield self._failed(client, broken)
            owner = self._of_effect.pop(id(done), None)
            if owner is not None:  # else its run has ended meanwhile
                owner.waiting -= 1
                owner.completed = [*owner.completed, done]

    def _failed(self, client: _Client, error: BaseException) -> Ended:
        del self.clients[client.index]
        client.run.close()
        return client.index, error


class _Requests:
    """Calls of functions that wait for the outside world: `Batch` jobs that are `beside`."""

    def __init__(self, effects: EffectRunner) -> None:
        self._effects = effects
        self._sent: dict[int, tuple[Effect, list[tuple[_Client, Batch]], list[int]]] = {}

    def send(self, clients: Iterable[_Client]) -> None:
        """Call each function for all who ask it, a part of the inputs on each thread."""
        groups: dict[Any, list[tuple[_Client, Batch]]] = {}
        for client in clients:
            for job in client.outside:
                groups.setdefault(job.fn, []).append((client, job))
            client.outside = []
        for function, asked in groups.items():
            inputs, rows = distinct_inputs([job for _, job in asked])
            size = asked[0][1].size or len(inputs)
            parts: list[list[tuple[_Client, Batch]]] = [[] for _ in range(0, len(inputs), size)]
            places: list[list[int]] = [[] for _ in parts]
            for one, row in zip(asked, rows, strict=True):
                parts[row // size].append(one)
                places[row // size].append(row % size)
            for n, (part, place) in enumerate(zip(parts, places, strict=True)):
                given = inputs[n * size : (n + 1) * size]
                effect = Effect(call, (function, given), {}, None, "reward")
                self._sent[id(effect)] = effect, part, place
                self._effects.submit(effect)

    def finished(self, effect: Effect) -> list[tuple[_Client, BaseException]]:
        """Hand the outputs over; the runs whose call failed, with the error."""
        found = self._sent.pop(id(effect), None)
        if found is None:
            return []
        _, part, place = found
        outputs, error = effect.outcome
        if error is not None:
            if not isinstance(error, Exception) or isinstance(error, (MemoryError, Suspended)):
                raise error
            return [(c, error) for c in {id(c): c for c, _ in part}.values()]
        settle([job for _, job in part], place, outputs)
        for client, job in part:
            client.waiting -= 1
            client.completed = [*client.completed, job]
        return []


class _Collector:
    """Holds the cycle collector back while particles move, and sweeps between waves instead.

    A wave makes many long-lived objects and hardly a cycle: left alone, a third of its time goes
    into collections that find nothing.
    """

    def __init__(self) -> None:
        self._ours = gc.isenabled()

    def pause(self) -> None:
        if self._ours:
            gc.disable()

    def resume(self) -> None:
        if self._ours:
            gc.enable()

    def sweep(self) -> None:
        if self._ours and gc.get_count()[0] > SWEEP:
            gc.collect(1)


def _run_batch(asking: Sequence[_Client], chance: Chance) -> list[tuple[_Client, Exception]]:
    """Run all model jobs as one batch; those whose jobs fail, with their errors.

    When the batch fails, each question's jobs are run alone: draws are keyed and strings keep what
    they have, so the others go on as if nothing had happened.
    """
    if len(asking) == 1:
        batch = asking[0].asked
    else:
        batch = [job for client in asking for job in client.asked]
    failed: list[tuple[_Client, Exception]] = []
    try:
        run_lm_jobs(batch, chance)
    except (MemoryError, Suspended):
        raise
    except Exception as error:
        for client in asking:
            if len(asking) == 1:
                failed.append((client, error))
                break
            try:
                run_lm_jobs(client.asked, chance)
            except (MemoryError, Suspended):
                raise
            except Exception as own:
                failed.append((client, own))
    for client in asking:
        done, client.asked = client.asked, []
        client.waiting -= len(done)
        client.completed = [*client.completed, *done] if client.completed else done
    return failed


def drive(run: Jobs, chance: Chance) -> Any:
    """Run one engine run to its result."""
    for _, result in drive_many([lambda: run], chance, concurrency=1):
        if isinstance(result, BaseException):
            raise result
        return result
    raise Deadlock("an engine run ended without a result")
