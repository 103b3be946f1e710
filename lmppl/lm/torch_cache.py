"""Keys and values of a batch: shared trunks, and the rows' own tails.

    trunk   [1, kv_heads, P, d]      a prefix that several rows share, stored and attended to once
    tails   [B, kv_heads, C, d]      what is each row's own: slot s of row b is position P + s

Rows are left-aligned: row b fills slots 0 … len_b - 1 of its tail, so forking is an `index_select`
of the tails, cropping is a smaller length, and rows of different lengths share a batch without
holes. Stale numbers beyond a length are overwritten, never read. Consecutive rows of one trunk form
a segment: the particles of one question, whose prompt is stored once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmppl.types import Ints

SPARE = 32
"""Slots that a new batch has free, so that the first tokens need no new buffers."""


@dataclass(eq=False)
class Trunk:
    """Keys and values of a shared prefix, one tensor [1, kv_heads, P, d] per layer."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    length: int = 0

    @cached_property
    def nbytes(self) -> int:
        """Memory that it holds (asked for only when it is complete)."""
        return sum(t.nbytes for t in (*self.keys, *self.values))


class Segment(NamedTuple):
    """Rows lo … hi - 1 share this trunk."""

    trunk: Trunk
    lo: int
    hi: int


@dataclass(eq=False)
class Block:
    """The keys and values of a batch."""

    trunks: list[Trunk]
    """The trunk of each row [B]."""
    lens: Ints
    """Computed tail length of each row [B]."""
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    """One tensor [B, kv_heads, C, d] per layer; empty as long as no tail was written."""

    def __post_init__(self) -> None:
        """Find the runs of rows that share a trunk."""
        self.segments: list[Segment] = []
        for row, trunk in enumerate(self.trunks):
            if self.segments and self.segments[-1].trunk is trunk:
                self.segments[-1] = self.segments[-1]._replace(hi=row + 1)
            else:
                self.segments.append(Segment(trunk, row, row + 1))
        self.offsets: Ints = np.array([t.length for t in self.trunks], dtype=np.int64)
        """Trunk length of each row [B]."""

    @property
    def capacity(self) -> int:
        """C, slots per row."""
        return int(self.keys[0].shape[2]) if self.keys else 0

    @property
    def tail_bytes(self) -> int:
        """Memory of the tails."""
        return sum(t.nbytes for t in (*self.keys, *self.values))

    def grouped(self, rows: Ints) -> Ints:
        """The order in which these rows stand together by trunk."""
        if len(self.segments) == 1:
            return np.arange(len(rows))
        first: dict[int, int] = {}
        number = [first.setdefault(id(t), len(first)) for t in self.trunks]
        return np.argsort(np.array(number)[rows], kind="stable")

    def select(self, rows: Ints, spare: int = 0) -> Block:
        """A copy of these rows, with `spare` free slots beyond the longest."""
        lens = self.lens[rows]
        out = Block([self.trunks[r] for r in rows.tolist()], lens)
        used = int(lens.max(initial=0))
        if not self.keys or not used:
            return out
        index = torch.from_numpy(np.ascontiguousarray(rows)).to(self.keys[0].device)
        for mine, theirs in ((self.keys, out.keys), (self.values, out.values)):
            for t in mine:
                if spare == 0:
                    theirs.append(t[:, :, :used].index_select(0, index))
                    continue
                new = t.new_zeros((len(rows), t.shape[1], used + spare, t.shape[3]))
                torch.index_select(t[:, :, :used], 0, index, out=new[:, :, :used])
                theirs.append(new)
        return out

    def reserve(self, slots: int) -> None:
        """Make room for `slots` slots per row (grows by half, so appending is amortised)."""
        if not self.keys or slots <= self.capacity:
            return
        room = max(slots, self.capacity + max(SPARE, self.capacity // 2))
        used = int(self.lens.max(initial=0))
        for tensors in (self.keys, self.values):
            for i, t in enumerate(tensors):
                new = t.new_zeros((t.shape[0], t.shape[1], room, t.shape[3]))
                new[:, :, :used] = t[:, :, :used]
                tensors[i] = new

    def as_trunk(self, row: int, length: int) -> Trunk:
        """A new trunk with the first `length` positions of a row."""
        old = self.trunks[row]
        out = Trunk(length=length)
        for part in ("keys", "values"):
            tails, shared, new = getattr(self, part), getattr(old, part), getattr(out, part)
            for layer in range(max(len(tails), len(shared))):
                pieces = []
                if old.length:
                    pieces.append(shared[layer][:, :, :length])
                if length > old.length:
                    pieces.append(tails[layer][row : row + 1, :, : length - old.length])
                new.append(torch.cat(pieces, dim=2).contiguous())
        return out


class Copy(NamedTuple):
    """Positions of a row of `source` that go to the first tail slots of row `to`."""

    source: Block
    row: int
    start: int
    stop: int
    to: int


def copy_rows(block: Block, copies: Sequence[Copy], spare: int) -> None:
    """Fill the tails of a fresh block, vectorised over rows of one source and one shift.

    Row `to` must begin at position `start`: its trunk has that length.
    """
    copies = [c for c in copies if c.stop > c.start]
    if not copies:
        return
    room = max(c.stop - c.start for c in copies) + spare
    like = copies[0].source
    sample = like.trunks[copies[0].row]
    for part in ("keys", "values"):
        for t in getattr(like, part) or getattr(sample, part):
            shape = (len(block.lens), t.shape[1], room, t.shape[3])
            getattr(block, part).append(t.new_zeros(shape))
    runs: dict[tuple[int, int], list[Copy]] = {}
    for c in copies:
        border = c.source.trunks[c.row].length
        if c.start < border:
            _copy_one(block, c)
        else:
            runs.setdefault((id(c.source), c.start - border), []).append(c)
    for (_, shift), run in runs.items():
        source = run[0].source
        longest = max(c.stop - c.start for c in run)
        device = source.keys[0].device
        rows = torch.tensor([c.row for c in run], device=device)
        to = torch.tensor([c.to for c in run], device=device)
        for part in ("keys", "values"):
            for new, t in zip(getattr(block, part), getattr(source, part), strict=True):
                piece = t[:, :, shift : shift + longest]
                new[:, :, : piece.shape[2]].index_copy_(0, to, piece.index_select(0, rows))


def _copy_one(block: Block, c: Copy) -> None:
    """A copy that begins inside the trunk of its source."""
    trunk = c.source.trunks[c.row]
    middle = min(c.stop, trunk.length)
    for part in ("keys", "values"):
        shared, tails = getattr(trunk, part), getattr(c.source, part)
        for layer, new in enumerate(getattr(block, part)):
            out = new[c.to]
            out[:, : middle - c.start] = shared[layer][0, :, c.start : middle]
            if c.stop > middle:
                tail = tails[layer][c.row, :, : c.stop - middle]
                out[:, middle - c.start : c.stop - c.start] = tail
