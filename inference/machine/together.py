"""Several runs as one: their jobs share batches.

An engine's part that waits for jobs is a generator (`lmppl.inference.machine.population.Jobs`). `together`
runs many of them side by side, as one generator: proposals of many chains, filters of many
parameters. A run goes on as soon as some of its own jobs are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmppl.inference.machine.population import Jobs
from lmppl.jobs import Job


def together(runs: Sequence[Jobs]) -> Jobs:
    """The results of runs, in order; the first exception ends them all.

    >>> def one(x):
    ...     return x
    ...     yield
    >>> run = together([one(1), one(2)])
    >>> try:
    ...     next(run)
    ... except StopIteration as stop:
    ...     print(stop.value)
    [1, 2]
    """
    results: list[Any] = [None] * len(runs)
    owner: dict[int, int] = {}
    new: list[Job] = []

    def go_on(i: int, done: list[Job] | None) -> None:
        try:
            jobs = next(runs[i]) if done is None else runs[i].send(done)
        except StopIteration as stop:
            results[i] = stop.value
            return
        for job in jobs:
            owner[id(job)] = i
            new.append(job)

    try:
        for i in range(len(runs)):
            go_on(i, None)
        while owner:
            asked, new = new, []
            finished = yield asked
            mine: dict[int, list[Job]] = {}
            for job in finished:
                mine.setdefault(owner.pop(id(job)), []).append(job)
            for i, done in mine.items():
                go_on(i, done)
    finally:
        for run in runs:
            run.close()
    return results
