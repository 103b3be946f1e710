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
) -> Iterator[tuple[int, Any]]:
    """Run many engine runs together; yield (index, result or exception) as they end.

    Args:
        runs: makers of generators; a new one starts when fewer than `concurrency` run. None in
            the place of one says that none is there now: it is asked again after the next batch.
        chance: who answers the draws of model jobs.
        concurrency: how many share a batch at most.
        observer: called with the number of running ones before each batch.
    """
    effects = EffectRunner()
    makers = enumerate(runs)
    clients: dict[int, _Client] = {}
    of_effect: dict[int, _Client] = {}
    requests = _Requests(effects)
    exhausted = False
    context.engines_running += 1
    collector = _Collector()
    collector.pause()
    try:
        while True:
            while not exhausted and len(clients) < concurrency:
                try:
                    index, make = next(makers)
                except StopIteration:
                    exhausted = True
                    break
                if make is None:
                    break
                try:
                    clients[index] = _Client(index, make())
                except Exception as error:  # this question's arguments, not the others'
                    collector.resume()
                    yield index, error
                    collector.pause()
            if not clients:
                return
            for client in list(clients.values()):
                if client.started and not client.completed:
                    continue
                try:
                    if client.started:
                        done, client.completed = client.completed, ()
                        new = client.run.send(done)
                    else:
                        client.started = True
                        new = next(client.run)
                except StopIteration as stop:
                    del clients[client.index]
                    collector.resume()
                    yield client.index, stop.value
                    collector.pause()
                    continue
                except (MemoryError, Suspended):
                    raise
                except Exception as error:
                    del clients[client.index]
                    collector.resume()
                    yield client.index, error
                    collector.pause()
                    continue
                client.waiting += len(new)
                if BESIDE.isdisjoint(map(type, new)):
                    client.asked += new  # type: ignore[arg-type]
                else:
                    for job in new:
                        if type(job) is Effect:
                            of_effect[id(job)] = client
                            effects.submit(job)
                        elif type(job) is Batch and job.beside:
                            client.outside.append(job)
                        else:
                            client.asked.append(job)  # type: ignore[arg-type]
                if not client.waiting:
                    raise Deadlock(
                        "an engine waits, and none of its jobs runs", fix="report this as a bug"
                    )
            collector.sweep()
            requests.send(clients.values())
            asking = [c for c in clients.values() if c.asked]
            if asking:
                if observer is not None:
                    observer(len(clients))
                for client, failure in _run_batch(asking, chance):
                    del clients[client.index]
                    client.run.close()
                    collector.resume()
                    yield client.index, failure
                    collector.pause()
            wait = not asking and bool(clients)
            wait = wait and not any(c.completed or not c.started for c in clients.values())
            while wait or not effects.done.empty():
                wait, done_effect = False, effects.done.get()
                for client, broken in requests.finished(done_effect):
                    if clients.pop(client.index, None) is not None:
                        client.run.close()
                        collector.resume()
                        yield client.index, broken
                        collector.pause()
                _complete(done_effect, of_effect)
    finally:
        collector.resume()
        context.engines_running -= 1
        for client in clients.values():
            client.run.close()
        effects.close()


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


def _complete(job: Job, of_effect: dict[int, _Client]) -> None:
    """Hand a finished effect to the run that waits for it, if it is still there."""
    client = of_effect.pop(id(job), None)
    if client is not None:
        client.waiting -= 1
        client.completed = [*client.completed, job]


def drive(run: Jobs, chance: Chance) -> Any:
    """Run one engine run to its result."""
    for _, result in drive_many([lambda: run], chance, concurrency=1):
        if isinstance(result, BaseException):
            raise result
        return result
    raise Deadlock("an engine run ended without a result")
