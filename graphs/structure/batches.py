"""Many scores and supports at once: what they ask of a language model is one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lmppl.batches import run_lm_jobs
from lmppl.jobs import Batch, Env, Generate, Score, Shared
from lmppl.ledger import Ledger


def run_steps(steps: Sequence[Any], env: Env, ledger: Ledger) -> list[Any]:
    """The results of steps, in order; the jobs of all of them run together."""
    results = list(steps)
    while True:
        waiting: list[tuple[int, Shared]] = [
            (i, r) for i, r in enumerate(results) if isinstance(r, (Generate, Score, Batch))
        ]
        if not waiting:
            return results
        for _, job in waiting:
            job.ledger = ledger
        run_lm_jobs([job for _, job in waiting], env.chance)
        for i, job in waiting:
            results[i] = job.step()


class Memory:
    """Results by key: what is asked again is not run again.

    >>> memory = Memory(Env(), Ledger())
    >>> memory.all({"a": lambda: 1}), memory.all({"a": lambda: 2, "b": lambda: 3}), memory.misses
    ({'a': 1}, {'a': 1, 'b': 3}, 2)
    """

    def __init__(self, env: Env, ledger: Ledger) -> None:
        """Start empty."""
        self.env = env
        self.ledger = ledger
        self.found: dict[Any, Any] = {}
        self.misses = 0

    def all(self, asked: dict[Any, Callable[[], Any]]) -> dict[Any, Any]:
        """The result for each key; the steps of new keys run together."""
        new = {k: make for k, make in asked.items() if k not in self.found}
        self.misses += len(new)
        results = run_steps([make() for make in new.values()], self.env, self.ledger)
        self.found.update(zip(new, results, strict=True))
        return {k: self.found[k] for k in asked}
