"""From contexts to a page table: what is retained is pointed to, what is shared is computed once.

1. Every context points to the pages of the retained row that shares the longest prefix with it.
2. The beginning that all contexts share is computed once, then the beginnings of groups that share
   more (the particles of one question, the options of one choice), one row per group.
3. The rest of each context is computed row by row, rows of similar lengths in one padded pass, cut
   along their length where a pass would exceed its size (chunked prefill).

Between these levels nothing is copied: rows fork by their page tables (`torch/cache`). Next-token
scores are wanted at some positions of each context; the network's head runs at those alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor

from lmppl.lm.prefix import Match, PrefixIndex, common, group, key_of
from lmppl.lm.torch.cache import Block
from lmppl.lm.torch.draw import Logits
from lmppl.lm.torch.pages import Layout
from lmppl.lm.torch.transfer import as_index
from lmppl.types import Ids, Ints

LEAST = 32
"""Token computations that a group must save to be worth a pass of its own."""

Places = list[tuple[int, int]]
"""(sequence, position) of each row of scores."""
Sink = Callable[[Tensor, Places], None]
Forward = Callable[[Block, Ints, Sequence[Ids], Sequence[Sequence[int]], int], Tensor]
"""forward(block, rows, tokens, wanted offsets per row, room) -> scores [n, V], rows in order."""


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


class Source(NamedTuple):
    """A row whose first `known` tokens a sequence begins with; no block when there are none."""

    block: Block | None
    row: int
    known: int


@dataclass(eq=False)
class Prefill:
    """One batch on its way: unique sequences in sorted order.

    Args:
        seqs: the sequences, sorted, without duplicates.
        needs: for each, the first position whose next-token scores are wanted (its length when
            none are).
        index: the retained rows.
        forward: runs the network.
        sink: takes the scores as they come.
        limits: sizes of one pass.
        layout: of the pages.
    """

    seqs: Sequence[Ids]
    needs: Sequence[int]
    index: PrefixIndex[Retained]
    forward: Forward
    sink: Sink
    limits: Limits
    layout: Layout
    keys: list[bytes] = field(default_factory=list)
    matches: list[Match[Retained] | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Look every sequence up among the retained rows."""
        self.keys = [key_of(s) for s in self.seqs]
        self.matches = [self.index.find(k) for k in self.keys]

    def run(self) -> tuple[Block, Ints]:
        """The computed batch, and for each of its rows the sequence that it holds."""
        self.sources = [
            Source(None, 0, 0)
            if m is None
            else Source(m.owner.block, m.row, min(m.shared, self.needs[u]))
            for u, m in enumerate(self.matches)
        ]
        if len(self.seqs) > 1:
            self._base()
            self._heads()
        block, order = self._assemble(self.sources)
        jobs = [Job((u,), self.sources[u].known, len(self.seqs[u])) for u in order.tolist()]
        self._compute(block, jobs)
        return block, order

    # -- what is shared ----------------------------------------------------------------------

    def _base(self) -> None:
        """Compute what all sequences begin with once, unless a retained row has it."""
        shared = common(self.keys[0], self.keys[-1])
        behind = [u for u, s in enumerate(self.sources) if s.known < shared]
        if shared < LEAST or len(behind) < 2:
            return
        bound = min(shared, *(self.needs[u] for u in behind))
        best = max(self.sources, key=lambda s: min(s.known, bound))
        known = min(best.known, bound)
        block, _ = self._assemble([best._replace(known=known)])
        self._compute(block, [Job(tuple(behind), known, shared)])
        block.release()
        for u in behind:
            self.sources[u] = Source(block, 0, shared)

    def _heads(self) -> None:
        """Compute once, one row per group, what the sequences of each group share."""
        starts = [s.known for s in self.sources]
        groups = [g for g in group(self.keys, starts, LEAST) if g.stop > g.start]
        if not groups:
            return
        heads = [
            max((self.sources[u] for u in g.members), key=lambda s: s.known)._replace(known=g.start)
            for g in groups
        ]
        block, order = self._assemble(heads)
        jobs = [Job(groups[n].members, groups[n].start, groups[n].stop) for n in order.tolist()]
        self._compute(block, jobs)
        block.release()
        for row, n in enumerate(order.tolist()):
            for u in groups[n].members:
                if self.sources[u].known < groups[n].stop:
                    self.sources[u] = Source(block, row, groups[n].stop)

    def _assemble(self, sources: Sequence[Source]) -> tuple[Block, Ints]:
        """One table with a row per source, and which source each row is; nothing is copied."""
        blocks: dict[int, Block] = {}
        members: dict[int, list[int]] = {}
        for n, s in enumerate(sources):
            key = id(s.block) if s.block is not None and s.known else 0
            members.setdefault(key, []).append(n)
            if key and s.block is not None:
                blocks[key] = s.block
        tables, order = [], []
        for key, mine in members.items():
            if not key:
                tables.append(Block.empty(self.layout, len(mine)))
            else:
                mine.sort(key=lambda n: sources[n].row)
                rows = np.array([sources[n].row for n in mine], dtype=np.int64)
                lens = np.array([sources[n].known for n in mine], dtype=np.int64)
                tables.append(blocks[key].take(rows, lens))
            order += mine
        return Block.stack(tables), np.array(order, dtype=np.int64)

    # -- passes ------------------------------------------------------------------------------

    def _compute(self, block: Block, jobs: Sequence[Job]) -> None:
        """Compute one job per row; rows of similar lengths share a pass."""
        left = [r for r, job in enumerate(jobs) if job.stop > job.start]
        left.sort(key=lambda r: jobs[r].stop - jobs[r].start)
        lo = 0
        while lo < len(left):
            hi, real, width = lo, 0, 0
            while hi < len(left):
                own = jobs[left[hi]].stop - jobs[left[hi]].start
                padded = own * (hi + 1 - lo)  # sorted: the newest is the widest
                full = padded > self.limits.tokens
                if hi > lo and (full or padded - real - own > self.limits.waste):
                    break
                hi, real, width = hi + 1, real + own, own
            rows = sorted(left[lo:hi])
            self._run(block, rows, [jobs[r] for r in rows], width)
            lo = hi

    def _run(self, block: Block, rows: Sequence[int], jobs: Sequence[Job], width: int) -> None:
        """Some rows, cut along their length where they exceed the size of a pass."""
        room = max(1, self.limits.tokens // len(jobs))
        wants = max(j.stop - max(j.start, min(self.needs[v] for v in j.members)) for j in jobs)
        if wants * len(jobs) > self.limits.scores:
            room = min(room, max(1, self.limits.scores // len(jobs)))
        at = [job.start for job in jobs]
        while True:
            going = [i for i, job in enumerate(jobs) if at[i] < job.stop]
            if not going:
                return
            places: list[tuple[list[int], int]] = []
            wanted: list[list[int]] = []
            tokens: list[Ids] = []
            for i in range(len(jobs)):
                job, end = jobs[i], min(jobs[i].stop, at[i] + room)
                here = []
                for position in range(max(at[i], min(self.needs[v] for v in job.members)), end):
                    takers = [v for v in job.members if self.needs[v] <= position]
                    if takers:
                        here.append(position - at[i])
                        places.append((takers, position))
                wanted.append(here)
                tokens.append(self.seqs[job.members[0]][at[i] : end])
                at[i] = end
            scores = self.forward(block, np.array(rows, dtype=np.int64), tokens, wanted, width)
            if places:
                self._deliver(scores, places)

    def _deliver(self, scores: Tensor, places: Sequence[tuple[list[int], int]]) -> None:
        index = [n for n, (takers, _) in enumerate(places) for _ in takers]
        flat = [(u, position) for takers, position in places for u in takers]
        if len(index) != len(places):
            scores = scores.index_select(
                0, as_index(np.array(index, dtype=np.int64), scores.device)
            )
        self.sink(scores, flat)
