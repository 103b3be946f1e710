"""From contexts to a batch: what is retained is gathered, what is shared is computed once.

Three levels, each one padded batch of forward passes at most:

1. the **trunk**, the beginning that all contexts share;
2. **groups** of contexts that share more than that (the options of one question);
3. the **rest** of each context.

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
from lmppl.lm.torch_cache import SPARE, Block, Trunk
from lmppl.lm.torch_draw import Logits
from lmppl.types import Ids, Ints

LEAST = 32
"""Token computations that a trunk or a group must save to be worth its own pass."""

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
        single: the caller has one row only, so a trunk would be of no use.
    """

    seqs: Sequence[Ids]
    needs: Sequence[int]
    index: PrefixIndex[Retained]
    forward: Forward
    sink: Sink
    limits: Limits
    single: bool = False
    computed: int = 0
    keys: list[bytes] = field(default_factory=list)
    matches: list[Match[Retained] | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Look every sequence up among the retained rows."""
        self.keys = [key_of(s) for s in self.seqs]
        self.matches = [self.index.find(k) for k in self.keys]

    def run(self) -> tuple[Block, Ints]:
        """The computed batch, and for each of its rows the sequence that it holds."""
        trunk = self._trunk()
        starts = [max(trunk.length, min(self._shared(u), n)) for u, n in enumerate(self.needs)]
        groups = group(self.keys, starts, LEAST)
        shared = any(g.stop > g.start for g in groups)
        if shared:
            groups.sort(key=lambda g: g.stop - g.start)
        else:
            groups.sort(key=lambda g: len(self.seqs[g.members[0]]) - g.stop)
        block = self._gather(trunk, groups)
        rows = [(u, g.stop, n) for n, g in enumerate(groups) for u in g.members]
        if shared:
            self._compute(block, [Job(g.members, g.start, g.stop) for g in groups])
            rows.sort(key=lambda r: len(self.seqs[r[0]]) - r[1])
            block = block.select(np.array([n for _, _, n in rows], dtype=np.int64), SPARE)
        self._compute(block, [Job((u,), start, len(self.seqs[u])) for u, start, _ in rows])
        return block, np.array([u for u, _, _ in rows], dtype=np.int64)

    def _shared(self, u: int) -> int:
        match = self.matches[u]
        return 0 if match is None else match.shared

    # -- level 1 -----------------------------------------------------------------------------

    def _trunk(self) -> Trunk:
        """The trunk of this batch: a retained one, a part of one, or a new one."""
        whole = common(self.keys[0], self.keys[-1])
        bound = min(whole, min(self.needs))
        best = max(range(len(self.seqs)), key=lambda u: min(self._shared(u), bound))
        match = self.matches[best]
        known = min(self._shared(best), bound)
        kept = Trunk()
        if match is not None:
            old = match.owner.block.trunk
            kept = _slice(old, min(old.length, known))
        if self.single or whole - kept.length < LEAST:
            return kept
        block = Block(Trunk(), np.zeros(1, dtype=np.int64))
        if match is not None and known:
            block = _copy([match], known, Trunk(), len(self.seqs[best]) - known)
        members = tuple(range(len(self.seqs)))
        self._compute(block, [Job(members, known, whole)])
        return Trunk(
            [t[:, :, :whole].contiguous() for t in block.keys],
            [t[:, :, :whole].contiguous() for t in block.values],
            whole,
        )

    # -- level 2 -----------------------------------------------------------------------------

    def _gather(self, trunk: Trunk, groups: Sequence[Group]) -> Block:
        """One row per group: the trunk, and what retained rows know beyond it."""
        lens = np.array([g.start - trunk.length for g in groups], dtype=np.int64)
        if not lens.any():
            return Block(trunk, lens)
        picked: list[tuple[int, Match[Retained]]] = []
        for g, one in enumerate(groups):
            match = self.matches[max(one.members, key=self._shared)]
            if lens[g] and match is not None:
                picked.append((g, match))
        owner = picked[0][1].owner
        if len(picked) == len(groups) and all(m.owner is owner for _, m in picked):
            if _same(owner.block.trunk, trunk):
                rows = np.array([m.row for _, m in picked], dtype=np.int64)
                source = Block(trunk, owner.block.lens, owner.block.keys, owner.block.values)
                block = source.select(rows, SPARE)
                block.lens = lens
                return block
        block = _copy(
            [m for _, m in picked], trunk.length, trunk, SPARE, lens, [g for g, _ in picked]
        )
        block.lens = lens
        return block

    # -- passes ------------------------------------------------------------------------------

    def _compute(self, block: Block, jobs: Sequence[Job]) -> None:
        """Compute one job per row; jobs are sorted by length, so neighbours share a pass."""
        lo = 0
        while lo < len(jobs):
            if jobs[lo].stop <= jobs[lo].start:
                lo += 1
                continue
            hi, real = lo, 0
            while hi < len(jobs):
                width = jobs[hi].stop - jobs[hi].start
                padded = width * (hi + 1 - lo)
                full = padded > self.limits.tokens
                if hi > lo and (full or padded - real - width > self.limits.waste):
                    break
                hi, real = hi + 1, real + width
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
                for position in range(a, end):
                    takers = [v for v in job.members if self.needs[v] <= position]
                    if takers:
                        here.append(position - a)
                        places.append((takers, position))
                wanted.append(here)
            tokens = [
                self.seqs[job.members[0]][a:end] for a, end, job in zip(at, ends, jobs, strict=True)
            ]
            scores = self.forward(block, lo, lo + len(jobs), tokens, wanted)
            self.computed += sum(map(len, tokens))
            if places:
                self._deliver(scores, places)
            at = ends

    def _deliver(self, scores: Tensor, places: Sequence[tuple[list[int], int]]) -> None:
        index = [n for n, (takers, _) in enumerate(places) for _ in takers]
        flat = [(u, position) for takers, position in places for u in takers]
        if len(index) != len(places):
            scores = scores.index_select(0, torch.tensor(index, device=scores.device))
        self.sink(scores, flat)


def _same(a: Trunk, b: Trunk) -> bool:
    """Whether two trunks are one (a full slice of a trunk is the trunk itself)."""
    return a is b or a.length == b.length == 0


def _slice(trunk: Trunk, length: int) -> Trunk:
    """The first `length` positions of a trunk; views, no copies."""
    if length == trunk.length:
        return trunk
    if length == 0:
        return Trunk()
    return Trunk(
        [t[:, :, :length] for t in trunk.keys], [t[:, :, :length] for t in trunk.values], length
    )


def _copy(
    matches: Sequence[Match[Retained]],
    length: int,
    trunk: Trunk,
    spare: int,
    lens: Ints | None = None,
    rows: Sequence[int] | None = None,
) -> Block:
    """Tails beyond `trunk` copied from rows of any retained batches.

    Row rows[i] of the result holds positions trunk.length … trunk.length + lens[rows[i]] - 1 of
    matches[i]; without `lens`, one row with the positions 0 … length - 1.
    """
    if lens is None or rows is None:
        lens, rows = np.array([length], dtype=np.int64), [0]
    first = trunk.length
    out = Block(trunk, lens)
    like = matches[0].owner.block
    for part in ("keys", "values"):
        sample = getattr(like, part) or getattr(like.trunk, part)
        for layer, t in enumerate(sample):
            new = t.new_zeros((len(lens), t.shape[1], int(lens.max()) + spare, t.shape[3]))
            for r, match in zip(rows, matches, strict=True):
                _read(match, part, layer, first, first + int(lens[r]), new[r])
            getattr(out, part).append(new)
    return out


def _read(
    match: Match[Retained], part: str, layer: int, start: int, stop: int, out: Tensor
) -> None:
    """Copy positions start … stop - 1 of a retained row to the first slots of `out`."""
    block = match.owner.block
    border = block.trunk.length
    n = 0
    if start < border:
        n = min(stop, border) - start
        out[:, :n] = getattr(block.trunk, part)[layer][0, :, start : start + n]
    if stop > border:
        low = max(start, border) - border
        out[:, n : stop - start] = getattr(block, part)[layer][match.row, :, low : stop - border]
