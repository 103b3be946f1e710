"""The page table of a batch: which pages hold the tokens of which row.

    column c, row b -> row owner[b] of the pages, of which the first count[b] slots are b's

The tokens of a row are those of its columns, one after the other. Rows that share a beginning have
the same owner: a prompt is stored once for all its particles, and attended to once. A fork copies
integers; of keys and values at most the newest `PAGE` slots (copy on write of the last page). Rows
of any lengths and histories stand beside each other, a column that a row does not use has owner -1.

Reference: Kwon et al., Efficient memory management for large language model serving with
PagedAttention (2023). Pages there have one size and are addressed one by one; here the pages of one
age lie together in a tensor, so that attention over them is one batched product.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmppl.lm.torch.pages import PAGE, Layout, Pages
from lmppl.types import Ints

LARGEST = 512
"""Slots that fresh pages have at most."""


@dataclass(eq=False)
class Column:
    """One column of a page table."""

    pages: Pages
    owner: Ints
    """Row of the pages that each row reads [B]; -1: none."""
    count: Ints
    """How many of its slots belong to the row [B]; 0 where the owner is -1."""
    reading: dict[Any, Any] = field(default_factory=dict)
    """What attention over it has prepared (see `torch/attend`); owners never change."""

    @property
    def longest(self) -> int:
        """Slots that some row uses."""
        return int(self.count.max(initial=0))

    def live(self) -> Ints:
        """Rows of the pages that somebody reads."""
        return np.unique(self.owner[self.owner >= 0])


@dataclass(eq=False)
class Block:
    """The page table of B rows."""

    layout: Layout
    lens: Ints
    """Tokens of each row [B]."""
    columns: list[Column] = field(default_factory=list)
    token: object = field(default_factory=object)
    """Who writes, as pages know it (not the block itself: cycles are freed late)."""
    forking: bool = False
    """Whether its last page was copied by a fork: then fresh pages are small."""

    @classmethod
    def empty(cls, layout: Layout, rows: int) -> Block:
        """Rows without a token."""
        return cls(layout, np.zeros(rows, dtype=np.int64))

    def __len__(self) -> int:
        """B."""
        return len(self.lens)

    # -- writing -----------------------------------------------------------------------------

    def column_for(self, rows: Ints, width: int, room: int) -> Column:
        """The last column if these rows may append `width` tokens to it, else a fresh one.

        Args:
            rows: rows of the block that are about to be written.
            width: tokens of the longest.
            room: slots of fresh pages.
        """
        if self.columns:
            last = self.columns[-1]
            if last.pages.writer is self.token and bool((last.owner[rows] >= 0).all()):
                if int(last.count[rows].max()) + width <= last.pages.room:
                    return last
        owner = np.full(len(self), -1, dtype=np.int64)
        owner[rows] = np.arange(len(rows))
        pages = self.layout.zeros(len(rows), max(room, width))
        pages.writer = self.token
        self.columns.append(Column(pages, owner, np.zeros(len(self), dtype=np.int64)))
        return self.columns[-1]

    def wrote(self, column: Column, rows: Ints, counts: Ints) -> None:
        """Note that these rows have appended `counts` tokens to a column."""
        column.count[rows] += counts
        column.pages.fill[column.owner[rows]] += counts
        self.lens[rows] += counts

    def fresh_room(self) -> int:
        """Slots of pages that rows grow into: longer strings get longer pages."""
        if self.forking:
            return PAGE
        return max(4 * PAGE, min(LARGEST, int(self.lens.max(initial=0)) // 2 // PAGE * PAGE))

    def release(self) -> None:
        """Write no more: others may go on with the last pages."""
        if self.columns and self.columns[-1].pages.writer is self.token:
            self.columns[-1].pages.writer = None

    # -- page tables of other rows -----------------------------------------------------------

    def take(self, rows: Ints, lens: Ints | None = None, *, moving: bool = False) -> Block:
        """The page table of these rows, repeats allowed, cut to `lens` tokens; nothing is copied.

        Args:
            rows: rows of this block.
            lens: how many tokens of each to keep; None keeps all.
            moving: whether this block is used up, so that the new one may write in its place.
        """
        kept = self.lens[rows] if lens is None else np.minimum(lens, self.lens[rows])
        left = kept.copy()
        out = Block(self.layout, kept, forking=self.forking)
        for c in self.columns:
            owner, count = c.owner[rows], np.minimum(c.count[rows], left)
            left -= count
            if count.any():
                if lens is not None:
                    owner[count == 0] = -1
                out.columns.append(Column(c.pages, owner, count))
        if out.columns and self.columns and out.columns[-1].pages is self.columns[-1].pages:
            self._hand_over(out, moving)
        return out

    def _hand_over(self, out: Block, moving: bool) -> None:
        """Let a new table append to our last pages where each of its rows stands at their end."""
        last = out.columns[-1]
        pages, owner = last.pages, last.owner
        free = pages.writer is None or (moving and pages.writer is self.token)
        if not free or bool((owner < 0).any()) or len(np.unique(owner)) < len(owner):
            return
        if bool((last.count == pages.fill[owner]).all()) and pages.room > last.longest:
            pages.writer = out.token

    @classmethod
    def stack(cls, blocks: Sequence[Block]) -> Block:
        """One table with the rows of several, in order."""
        if len(blocks) == 1:
            return blocks[0]
        total = sum(map(len, blocks))
        out = cls(blocks[0].layout, np.concatenate([b.lens for b in blocks]))
        out.forking = any(b.forking for b in blocks)
        lo = 0
        for b in blocks:
            b.release()
            for c in b.columns:
                owner = np.full(total, -1, dtype=np.int64)
                count = np.zeros(total, dtype=np.int64)
                owner[lo : lo + len(b)], count[lo : lo + len(b)] = c.owner, c.count
                out.columns.append(Column(c.pages, owner, count))
            lo += len(b)
        out.columns = joined(out.columns)
        return out

    # -- what is held ------------------------------------------------------------------------

    @property
    def starts(self) -> list[Ints]:
        """Of each column, the position of its first slot in each row [B]."""
        at, out = np.zeros(len(self), dtype=np.int64), []
        for c in self.columns:
            out.append(at)
            at = at + c.count
        return out

    @property
    def slots(self) -> int:
        """Slots of all pages that the table points to, written or not."""
        return sum(p.rows * p.room for p in pages_of([self]))

    @property
    def nbytes(self) -> int:
        """Memory of all pages that the table points to."""
        return self.slots * self.layout.token_bytes


def pages_of(blocks: Iterable[Block]) -> list[Pages]:
    """The pages that some of these tables point to, each once."""
    return list({id(c.pages): c.pages for b in blocks for c in b.columns}.values())


def joined(columns: Sequence[Column]) -> list[Column]:
    """Columns over the same pages whose rows are disjoint become one (order is kept per row)."""
    out: list[Column] = []
    for c in columns:
        same = next((o for o in out if o.pages is c.pages), None)
        if same is None or bool(((same.owner >= 0) & (c.owner >= 0)).any()):
            out.append(c)
            continue
        # no row reads both, and between them only columns of other pages: safe where no row of
        # this column reads one of those that stand between
        between = out[out.index(same) + 1 :]
        if any(bool(((b.owner >= 0) & (c.owner >= 0)).any()) for b in between):
            out.append(c)
            continue
        mine = c.owner >= 0
        owner, count = same.owner.copy(), same.count.copy()
        owner[mine], count[mine] = c.owner[mine], c.count[mine]
        out[out.index(same)] = Column(c.pages, owner, count)
    return out
