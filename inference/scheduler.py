"""One batch for everything that waits: particles, plate branches, questions, nested inferences.

Engines are generators that yield jobs. The scheduler runs every generator until it waits; when
nobody runs, all askers are known, and all waiting model jobs become one batch per model and kind.
There are no timers. Effects run beside it, on threads and on one event loop; a batch never waits
for them, their particles join the next one.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from lmppl import context
from lmppl.batches import run_lm_jobs
from lmppl.errors import Deadlock, Suspended
from lmppl.inference.population import Jobs
from lmppl.inference.site_costs import charge_sites
from lmppl.jobs import Effect, Generate, Job, Score
from lmppl.outside import EffectRunner
from lmppl.random import Chance

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
                for job in new:
                    if type(job) is Effect:
                        of_effect[id(job)] = client
                        effects.submit(job)
                    else:
                        client.asked.append(job)  # type: ignore[arg-type]
                if not client.waiting:
                    raise Deadlock(
                        "an engine waits, and none of its jobs runs", fix="report this as a bug"
                    )
            collector.sweep()
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
            elif clients and not any(c.completed or not c.started for c in clients.values()):
                _complete(effects.done.get(), of_effect)
            while not effects.done.empty():
                _complete(effects.done.get(), of_effect)
    finally:
        collector.resume()
        context.engines_running -= 1
        for client in clients.values():
            client.run.close()
        effects.close()


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
    began = time.perf_counter()
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
    charge_sites(batch, time.perf_counter() - began)
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
