"""Continuous batching: more strings than fit in memory go through one running batch.

    advance_queue(lm, states, chance, limit)     as `lm.generate.advance`, for any number of strings

As many strings run as `lm.fits` says. When strings end, their rows leave, and the next ones of the
queue join in the middle of the generation of the others. A draw is a function of the key of its
string and its own tokens, so the strings are those that one large batch would have drawn.

The strings that joined together form a cohort: its bookkeeping is a `Block`. A new cohort is let in
when an `EIGHTH` of the batch is free, so there are never many.

Reference: Yu et al., Orca: a distributed serving system for transformer-based generative models
(OSDI 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmppl.lm.base import Drawn, LanguageModel, Rows
from lmppl.lm.block import Block
from lmppl.lm.generate import StringState, force_ends, masks_of
from lmppl.random import Chance, fold_array
from lmppl.types import Bools, Ints

EIGHTH = 1 / 8
"""Share of the first cohort that must have left before others join."""


def advance_queue(
    lm: LanguageModel, states: Sequence[StringState], chance: Chance, limit: int | None = None
) -> int:
    """Advance unfinished strings in place, as many at a time as fit; see the module's first lines.

    Args:
        lm: a model whose rows can `join`.
        states: the strings, in the order in which they are let in.
        chance: who answers the draws.
        limit: tokens of each string at most; None goes to their ends.

    Returns:
        The number of batched passes.
    """
    queue = list(states)
    first = max(1, lm.fits([s.prefix for s in queue], [s.left(limit) for s in queue]))
    running = _Running(lm, lm.open([s.prefix for s in queue[:first]]), limit)
    running.add(queue[:first])
    queue = queue[first:]
    passes = 0
    while running.cohorts or queue:
        new = queue[: running.room(queue, max(1, int(first * EIGHTH)))]
        if new:
            running.join(new)
            queue = queue[len(new) :]
        running.step(chance)
        passes += 1
    running.rows.close()
    return passes


class _Running:
    """The running batch: its rows are those of the cohorts, one after the other."""

    def __init__(self, lm: LanguageModel, rows: Rows, limit: int | None) -> None:
        self.lm, self.rows, self.limit = lm, rows, limit
        self.cohorts: list[Block] = []
        self.drawn: list[int] = []
        """Tokens that each cohort has drawn."""

    @property
    def states(self) -> list[StringState]:
        return [s for block in self.cohorts for s in block.states]

    def room(self, queue: Sequence[StringState], least: int) -> int:
        """How many of the queue may join now: none before `least` fit."""
        if not queue:
            return 0
        growth = sum(s.left(self.limit) for s in self.states)
        running = self.rows if self.cohorts else None
        ahead = queue[: 8 * least]
        found = self.lm.fits(
            [s.prefix for s in ahead], [s.left(self.limit) for s in ahead], running, growth
        )
        if not self.cohorts:
            return max(1, found)
        return found if found >= min(least, len(queue)) else 0

    def add(self, states: Sequence[StringState]) -> None:
        self.cohorts.append(Block(self.lm, list(states), self.limit))
        self.drawn.append(0)

    def join(self, states: Sequence[StringState]) -> None:
        contexts = [s.prefix for s in states]
        if self.cohorts:
            self.rows.join(contexts)
        else:
            self.rows.close()
            self.rows = self.lm.open(contexts)
        self.add(states)

    def step(self, chance: Chance) -> None:
        """One token for every row."""
        blocks = self.cohorts
        mask: Bools | None = None
        hopeless: Sequence[int] = ()
        if any(b.constrained for b in blocks):
            mask, hopeless = masks_of(self.lm, self.states)
        keys = np.concatenate([fold_array(b.keys, b.steps) for b in blocks])
        laws = [law for b in blocks for law in b.laws]
        drawn = self.rows.draw(keys, laws, mask, chance)
        for i in hopeless:
            drawn.tokens[i] = -1
        kept, ending, lo = [], False, 0
        for n, block in enumerate(blocks):
            hi = lo + len(block.states)
            keep, ends = block.take(
                Drawn(drawn.tokens[lo:hi], drawn.logp[lo:hi], drawn.logq[lo:hi])
            )
            ending |= ends
            self.drawn[n] += 1
            if keep is None:
                keep = np.arange(hi - lo)
            if self.drawn[n] == self.limit and not ends:
                block.write()
                keep = keep[:0]
            kept.append(keep + lo)
            lo = hi
        self._leave(kept)
        if not self.cohorts:
            return
        self.rows.push(np.concatenate([b.last for b in self.cohorts]))
        if ending:
            self._force_ends()
        for block in self.cohorts:
            block.steps += np.uint64(1)

    def _leave(self, kept: Sequence[Ints]) -> None:
        """Go on with these rows; `kept` lists them by cohort, numbered through."""
        total = sum(len(b.states) for b in self.cohorts)
        rows = np.concatenate(kept)
        lo = 0
        for block, keep in zip(self.cohorts, kept, strict=True):
            n = len(block.states)
            if len(keep) < n:
                block.select(keep - lo)
            lo += n
        alive = [n for n, block in enumerate(self.cohorts) if block.states]
        self.cohorts = [self.cohorts[n] for n in alive]
        self.drawn = [self.drawn[n] for n in alive]
        if 0 < len(rows) < total:
            self.rows.select(rows)

    def _force_ends(self) -> None:
        """Strings that are full end by the mass of their ends."""
        force_ends(self.lm, self.rows, self.states)
        kept, lo = [], 0
        for n, block in enumerate(self.cohorts):
            left = [i for i, s in enumerate(block.states) if s.finish is None]
            if self.drawn[n] == self.limit:
                block.write()
                left = []
            kept.append(np.array(left, dtype=np.int64) + lo)
            lo += len(block.states)
        self._leave(kept)
