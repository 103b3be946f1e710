"""Housekeeping of a page table: few columns, no dead rows, a last page of one's own.

After forks a table points to rows that died, to last pages that others may read too, and to ever
more short columns. `tidy` is called after each fork and does four things:

1. slots of pages that nobody reads are given back, once they are a quarter of the pages;
2. the newest columns, as far as they are shorter than a page, are copied to one page of its own for
   each row, which it may append to (copy on write of the last page);
3. neighbouring columns that fork alike become one (a prompt and what all survivors share of its
   continuation), when the younger one is at least half as long: so each slot is copied O(log) times;
4. more than `MOST` columns are joined where the fewest slots are stored twice by it.

Of N rows resampled for T steps about T + 2 N log N tokens remain (Jacob, Murray and Rubenthaler,
Path storage in the particle filter, 2015); the pages hold at most about twice that.
"""

from __future__ import annotations

import numpy as np

from lmppl.lm.torch.cache import Block, Column
from lmppl.lm.torch.pages import PAGE, Pages
from lmppl.types import Ints

MOST = 12
"""Columns above which neighbours are joined even if that stores slots twice."""
LIVE = 0.75
"""Share of the slots of pages that must be in use."""


def tidy(block: Block) -> None:
    """Bring the table of a batch in order, in place; see the module's first lines."""
    block.columns = [_compacted(block, c) for c in block.columns if c.longest]
    _own_last_page(block)
    _join_alike(block)
    while len(block.columns) > MOST:
        _join_cheapest(block)


def _writable(block: Block, column: Column) -> bool:
    return column.pages.writer is block.token


def _compacted(block: Block, column: Column) -> Column:
    """The column over pages without their dead rows, and without room that nobody will use."""
    live, pages = column.live(), column.pages
    mine = _writable(block, column)
    room = pages.room if mine else column.longest
    if len(live) * room >= LIVE * pages.rows * pages.room:
        return column
    place = np.full(pages.rows, -1, dtype=np.int64)
    place[live] = np.arange(len(live))
    owner = np.where(column.owner >= 0, place[column.owner], -1)
    new = pages.copy(live, column.longest, room)
    new.writer = block.token if mine else None
    return Column(new, owner, column.count)


def _own_last_page(block: Block) -> None:
    """Copy on write: the short newest columns as one page of its own for each row."""
    if block.columns and _writable(block, block.columns[-1]):
        return
    short, total = 0, 0
    for c in reversed(block.columns):
        if c.longest >= PAGE or total + c.longest > 2 * PAGE:
            break
        short, total = short + 1, total + c.longest
    if not short:
        return
    last = block.columns[-1].owner
    block.forking |= len(np.unique(last[last >= 0])) < int((last >= 0).sum())
    columns = block.columns[-short:]
    if short == 1 and bool((columns[0].owner >= 0).all()):
        used = columns[0].longest
        room = min(PAGE, used + 2) if block.forking else 4 * PAGE
        pages = columns[0].pages.copy(columns[0].owner, used, room)
        pages.fill, pages.writer = columns[0].count.copy(), block.token
        block.columns[-1] = Column(pages, np.arange(len(block)), columns[0].count)
        return
    rows = np.arange(len(block))
    lens = sum((c.count for c in columns), start=np.zeros(len(block), dtype=np.int64))
    longest = int(lens.max())
    pages = block.layout.zeros(len(block), longest // PAGE * PAGE + PAGE)
    fill(pages, columns, rows)
    pages.fill = lens.copy()
    pages.writer = block.token
    block.columns[-short:] = [Column(pages, rows.copy(), lens)]


def _join_alike(block: Block) -> None:
    """Neighbours that fork alike become one, when the younger is at least half as long."""
    at = len(block.columns) - 2
    if at >= 0 and _writable(block, block.columns[-1]):
        at -= 1
    while at >= 0:
        a, b = block.columns[at], block.columns[at + 1]
        if 2 * b.longest >= a.longest:
            keys, _ = _pairs(a, b)
            if len(keys) == len(a.live()) == len(b.live()):
                block.columns[at : at + 2] = [_joined(block, a, b)]
        at -= 1


def _join_cheapest(block: Block) -> None:
    """Join the two neighbours for which the fewest slots are then stored."""
    last = len(block.columns) - 1
    if _writable(block, block.columns[-1]):
        last -= 1
    best, where = None, 0
    for at in range(last):
        a, b = block.columns[at], block.columns[at + 1]
        keys, _ = _pairs(a, b)
        slots = len(keys) * (a.longest + b.longest)
        more = 2 * slots - len(a.live()) * a.longest - len(b.live()) * b.longest
        if best is None or more < best:
            best, where = more, at
    a, b = block.columns[where : where + 2]
    block.columns[where : where + 2] = [_joined(block, a, b)]


def _pairs(a: Column, b: Column) -> tuple[Ints, Ints]:
    """The different histories over two columns, by a row that has each, and the history of rows."""
    table = np.stack([a.owner, a.count, b.owner, b.count])
    used = np.flatnonzero((a.owner >= 0) | (b.owner >= 0))
    _, first, inverse = np.unique(table[:, used], axis=1, return_index=True, return_inverse=True)
    order = np.argsort(first)  # in the order of the rows, not of the owners
    rank = np.argsort(order)
    owner = np.full(len(a.owner), -1, dtype=np.int64)
    owner[used] = rank[inverse.reshape(-1)]
    return used[first[order]], owner


def _joined(block: Block, a: Column, b: Column) -> Column:
    """One column with the slots of two."""
    keys, owner = _pairs(a, b)
    count = a.count + b.count
    pages = block.layout.zeros(len(keys), int(count.max()))
    fill(pages, [a, b], keys)
    pages.fill = count[keys]
    return Column(pages, owner, count)


def fill(pages: Pages, columns: list[Column], rows: Ints) -> None:
    """Write what these rows of a table have in these columns into the rows of fresh pages."""
    at = np.zeros(len(rows), dtype=np.int64)
    for c in columns:
        count = c.count[rows]
        for shift in np.unique(at).tolist():
            part = np.flatnonzero((at == shift) & (count > 0))
            if len(part):
                used = int(count[part].max())
                pages.put(part, shift, c.pages, c.owner[rows[part]], used)
        at = at + count
