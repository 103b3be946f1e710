"""From contexts to a batch: what is retained is gathered, what is shared is computed once.

A *trunk* is a prefix that several rows keep in common in memory (see `torch_cache`).

1. A context whose retained row covers that row's trunk keeps the trunk.
2. The others are planned anew, in two levels: the beginning that all of them share, and groups that
   share more (the particles of one question, the options of one choice). Each level is computed
   once, one row per group, and becomes a trunk where it is long enough.
3. The rest of each context is computed row by row, in padded passes.

Every level starts from the longest prefix that a retained row can serve. Next-token scores are
wanted at some positions of each context; the network's head runs at those alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmppl.lm.prefix import Group, Match, PrefixIndex, common, group, key_of
from lmppl.lm.torch_cache import SPARE, Block, Copy, Trunk, copy_rows
from lmppl.lm.torch_draw import Logits
from lmppl.types import Ids, Ints

LEAST = 32
"""Tokens that a trunk must have, and computations that a group must save, to be worth it."""
WORTH = 256
"""Stored tokens that the trunk of a group must save: each trunk is a step of a loop per layer."""

Places = list[tuple[int, int]]
"""(sequence, position) of each row of scores."""
Sink = Callable[[Tensor, Places], None]
Forward = Callable[[Block, int, int, Sequence[Ids], Sequence[Sequence[int]]], Tensor]
"""forward(block, lo, hi, tokens, wanted offsets per row) -> scores [n, V], rows in order."""


@dataclass(eq=False)
class Retained:
    """A closed batch whose rows may serve later contexts."""

    block: Block
    logits: Logits | None
    """Next-token scores after each row, when they were computed."""
    number: int = -1


class Limits(NamedTuple):
    """Sizes of one pass."""

    tokens: int
    """Token positions, padding included."""
    scores: int
    """Positions with scores: each costs V numbers."""
    waste: int
    """Padding that is cheaper than one more pass."""


class Job(NamedTuple):
    """Positions start … stop - 1 of one row, common to its member sequences."""

    members: tuple[int, ...]
    start: int
    stop: int


class _Row(NamedTuple):
    """A row of the final batch: its trunk, and where its tail comes from."""

    seq: int
    trunk: Trunk
    start: int
    """Positions before this one are known."""
    source: Block | None
    row: int


@dataclass(eq=False)
class Prefill:
    """One batch on its way: unique sequences in sorted order.

    Args:
        seqs: the sequences, sorted, without duplicates.
        counts: how many rows of the batch hold each of them.
        needs: for each, the first position whose next-token scores are wanted (its length when
            none are).
        index: the retained rows.
        forward: runs the network.
        sink: takes the scores as they come.
        limits: sizes of one pass.
    """

    seqs: Sequence[Ids]
    counts: Sequence[int]
    needs: Sequence[int]
    index: PrefixIndex[Retained]
    forward: Forward
    sink: Sink
    limits: Limits
    keys: list[bytes] = field(default_factory=list)
    matches: list[Match[Retained] | None] = field(default_factory=list)
    taken: Retained | None = None
    """A retained batch whose tensors the result took over: it must be forgotten."""

    def __post_init__(self) -> None:
        """Look every sequence up among the retained rows."""
        self.keys = [key_of(s) for s in self.seqs]
        self.matches = [self.index.find(k) for k in self.keys]

    def run(self) -> tuple[Block, Ints]:
        """The computed batch, and for each of its rows the sequence that it holds."""
        families: dict[int, list[int]] = {}
        loose = []
        for u, match in enumerate(self.matches):
            trunk = None if match is None else match.owner.block.trunks[match.row]
            if trunk is not None and 0 < trunk.length <= self._known(u):
                families.setdefault(id(trunk), []).append(u)
            else:
                loose.append(u)
        rows = [row for members in families.values() for row in self._keep(members)]
        if loose:
            rows += self._plan(loose)
        block = self._assemble(rows)
        self._compute(block, [Job((r.seq,), r.start, len(self.seqs[r.seq])) for r in rows])
        return block, np.array([r.seq for r in rows], dtype=np.int64)

    def _known(self, u: int) -> int:
        """Positions of a sequence that a retained row can serve."""
        match = self.matches[u]
        return 0 if match is None else min(match.shared, self.needs[u])

    def _source(self, u: int) -> tuple[Block | None, int]:
        match = self.matches[u]
        return (None, 0) if match is None else (match.owner.block, match.row)

    # -- trunks that stay --------------------------------------------------------------------

    def _keep(self, members: Sequence[int]) -> list[_Row]:
        """Rows that keep their trunk, or a longer one when they have grown together."""
        block, row = self._source(members[0])
        if block is None:
            raise RuntimeError("a kept row without a source")
        trunk = block.trunks[row]
        shared = common(self.keys[members[0]], self.keys[members[-1]])
        length = min(shared, min(map(self._known, members)))
        several = sum(self.counts[u] for u in members) > 1
        if several and length - trunk.length >= max(2 * LEAST, trunk.length):
            trunk = block.as_trunk(row, length)
        rows = [_Row(u, trunk, self._known(u), *self._source(u)) for u in members]
        return sorted(rows, key=lambda r: (len(self.seqs[r.seq]) - r.start, r.row))

    # -- new trunks --------------------------------------------------------------------------

    def _plan(self, loose: Sequence[int]) -> list[_Row]:
        """Rows of the contexts that no retained trunk serves."""
        base = self._base(loose)
        starts = [max(base.length, self._known(u)) for u in loose]
        groups = []
        for g in group([self.keys[u] for u in loose], starts, LEAST):
            members = tuple(loose[i] for i in g.members)
            alone = len(members) == 1 and self._worth(members, len(self.seqs[members[0]]), base)
            stop = len(self.seqs[members[0]]) if alone else g.stop
            groups.append(Group(members, g.start, stop))
        groups.sort(key=lambda g: g.stop - g.start)
        heads = self._heads(base, groups)
        rows: list[_Row] = []
        plain: list[_Row] = []
        for n, g in enumerate(groups):
            if self._worth(g.members, g.stop, base):
                trunk = heads.as_trunk(n, g.stop)
                rows += [_Row(u, trunk, g.stop, None, 0) for u in g.members]
            else:
                plain += [_Row(u, base, g.stop, heads, n) for u in g.members]
        return rows + sorted(plain, key=lambda r: (len(self.seqs[r.seq]) - r.start, r.row))

    def _worth(self, members: Sequence[int], length: int, base: Trunk) -> bool:
        """Whether these sequences should have a trunk of this length of their own."""
        own = length - base.length
        return own >= LEAST and own * (sum(self.counts[u] for u in members) - 1) >= WORTH

    def _base(self, loose: Sequence[int]) -> Trunk:
        """What all these contexts begin with, as a trunk; empty when it is too short."""
        shared = common(self.keys[loose[0]], self.keys[loose[-1]])
        if shared < LEAST or sum(self.counts[u] for u in loose) == 1:
            return Trunk()
        bound = min(shared, min(self.needs[u] for u in loose))
        best = max(loose, key=lambda u: min(self._known(u), bound))
        known = min(self._known(best), bound)
        source, row = self._source(best)
        block = Block([Trunk()], np.array([known], dtype=np.int64))
        if source is not None:
            copy_rows(block, [Copy(source, row, 0, known, 0)], shared - known)
        self._compute(block, [Job(tuple(loose), known, shared)])
        return block.as_trunk(0, shared)

    def _heads(self, base: Trunk, groups: Sequence[Group]) -> Block:
        """One row per group, computed up to where its members part."""
        starts = np.array([g.start for g in groups], dtype=np.int64)
        block = Block([base] * len(groups), starts - base.length)
        copies = []
        for n, g in enumerate(groups):
            source, row = self._source(max(g.members, key=self._known))
            if source is not None:
                copies.append(Copy(source, row, base.length, g.start, n))
        copy_rows(block, copies, SPARE)
        self._compute(block, [Job(g.members, g.start, g.stop) for g in groups])
        return block

    # -- the batch ---------------------------------------------------------------------------

    def _assemble(self, rows: Sequence[_Row]) -> Block:
        """The final batch with everything that is known so far."""
        known = np.array([r.start - r.trunk.length for r in rows], dtype=np.int64)
        block = Block([r.trunk for r in rows], known)
        source = rows[0].source
        same = all(r.source is source and r.trunk is _trunk_of(r) for r in rows)
        if source is not None and same and source.keys:
            index = np.array([r.row for r in rows], dtype=np.int64)
            whole = len(index) == len(source.lens) and bool((index == np.arange(len(index))).all())
            if whole:
                block.keys, block.values = source.keys, source.values
                owners = (m.owner for m in self.matches if m is not None)
                self.taken = next((o for o in owners if o.block is source), None)
            else:
                copied = source.select(index, SPARE)
                block.keys, block.values = copied.keys, copied.values
            return block
        copies = [
            Copy(r.source, r.row, r.trunk.length, r.start, n)
            for n, r in enumerate(rows)
            if r.source is not None
        ]
        copy_rows(block, copies, SPARE)
        return block

    # -- passes ------------------------------------------------------------------------------

    def _compute(self, block: Block, jobs: Sequence[Job]) -> None:
        """Compute one job per row; neighbours of similar length share a pass."""
        lo = 0
        while lo < len(jobs):
            if jobs[lo].stop <= jobs[lo].start:
                lo += 1
                continue
            hi, real, width = lo, 0, 0
            while hi < len(jobs):
                own = jobs[hi].stop - jobs[hi].start
                wider = max(width, own)
                padded = wider * (hi + 1 - lo)
                full = padded > self.limits.tokens
                if own <= 0 or (hi > lo and (full or padded - real - own > self.limits.waste)):
                    break
                hi, real, width = hi + 1, real + own, wider
            self._run(block, lo, jobs[lo:hi])
            lo = hi

    def _run(self, block: Block, lo: int, jobs: Sequence[Job]) -> None:
        """A run of rows, cut along their length where it exceeds the size of a pass."""
        room = max(1, self.limits.tokens // len(jobs))
        wants = max(j.stop - max(j.start, min(self.needs[v] for v in j.members)) for j in jobs)
        if wants * len(jobs) > self.limits.scores:
            room = min(room, max(1, self.limits.scores // len(jobs)))
        at = [job.start for job in jobs]
        while any(a < job.stop for a, job in zip(at, jobs, strict=True)):
            ends = [min(job.stop, a + room) for a, job in zip(at, jobs, strict=True)]
            places: list[tuple[list[int], int]] = []
            wanted: list[list[int]] = []
            for a, end, job in zip(at, ends, jobs, strict=True):
                here = []
                for position in range(max(a, min(self.needs[v] for v in job.members)), end):
                    takers = [v for v in job.members if self.needs[v] <= position]
                    if takers:
                        here.append(position - a)
                        places.append((takers, position))
                wanted.append(here)
            tokens = [
                self.seqs[job.members[0]][a:end] for a, end, job in zip(at, ends, jobs, strict=True)
            ]
            scores = self.forward(block, lo, lo + len(jobs), tokens, wanted)
            if places:
                self._deliver(scores, places)
            at = ends

    def _deliver(self, scores: Tensor, places: Sequence[tuple[list[int], int]]) -> None:
        index = [n for n, (takers, _) in enumerate(places) for _ in takers]
        flat = [(u, position) for takers, position in places for u in takers]
        if len(index) != len(places):
            scores = scores.index_select(0, torch.tensor(index, device=scores.device))
        self.sink(scores, flat)


def _trunk_of(row: _Row) -> Trunk | None:
    return None if row.source is None else row.source.trunks[row.row]
