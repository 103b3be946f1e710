"""How the rows of a pass read one column of a page table: which product costs least.

Five ways, all with the same result:

* "slice": each row has its own row of pages, in order: one batched product, nothing is moved;
* "one": all rows read one row of pages (a prompt): one product for all queries together;
* "pad": some rows of pages have several readers: the queries are laid out [U, m · per, d], padded
  to the most readers m, and only they are moved;
* "copy": a few rows of pages have very many readers: their keys are copied for each reader.

Rows that read nothing of the column get zeros, which the bias of the pass hides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lmppl.lm.torch.cache import Column
from lmppl.lm.torch.pages import Pages
from lmppl.lm.torch.transfer import as_index
from lmppl.types import Ints

WASTE = 3
"""Padded queries per real one, up to which padding is cheaper than copying keys."""


@dataclass(eq=False)
class Reading:
    """The rows of a pass over the first `used` slots of one column."""

    pages: Pages
    kind: str
    used: int
    at: int
    """First place of the column in the scores of the pass."""
    batch: int
    """Rows of the pass."""
    everybody: bool
    """Whether all of them read the column."""
    lo: int
    """"slice", "one": the first row of the pages."""
    rows: Tensor | slice
    """Rows of the pass that read it."""
    owner: Tensor
    """The row of the pages of each reader [n]."""
    live: Tensor | None = None
    """"pad": the rows of the pages that are read; None: all of them."""
    laid: Tensor | None = None
    """"pad": reader at each place [U · m], any where the place is empty."""
    back: Tensor | None = None
    """"pad": place of each reader [n]."""

    def _readers(self, x: Tensor) -> Tensor:
        if self.everybody:
            return x
        return x[self.rows] if isinstance(self.rows, slice) else x.index_select(0, self.rows)

    def _all(self, x: Tensor) -> Tensor:
        """Readers' results among zeros for the others."""
        if self.everybody:
            return x
        out = x.new_zeros((self.batch, *x.shape[1:]))
        if isinstance(self.rows, slice):
            out[self.rows] = x
            return out
        return out.index_copy_(0, self.rows, x)

    def _rows_of(self, pages: Tensor) -> Tensor:
        """The rows of the pages that the product runs over [U, kv_heads, used, d]."""
        if self.kind == "slice":
            return pages[self.lo : self.lo + len(self.owner), :, : self.used]
        if self.kind == "copy":
            return pages[:, :, : self.used].index_select(0, self.owner)
        if self.live is not None:
            return pages[:, :, : self.used].index_select(0, self.live)
        return pages[:, :, : self.used]

    def _lay(self, x: Tensor) -> Tensor:
        """Readers' rows [n, kv, per, w] side by side [U, kv, m · per, w]."""
        laid = x.index_select(0, self.laid)  # type: ignore[arg-type]
        many = len(laid) // self._count()
        if many == 1:
            return laid
        kv, per, wide = laid.shape[1:]
        return laid.view(-1, many, kv, per, wide).transpose(1, 2).reshape(-1, kv, many * per, wide)

    def _count(self) -> int:
        return self.pages.rows if self.live is None else len(self.live)

    def _unlay(self, x: Tensor, per: int) -> Tensor:
        many = x.shape[2] // per
        if many > 1:
            u, kv, _, wide = x.shape
            x = x.view(u, kv, many, per, wide).transpose(1, 2).reshape(u * many, kv, per, wide)
        return x.index_select(0, self.back)  # type: ignore[arg-type]

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """Products of queries [b, kv, per, d] with keys [U, kv, L, d]: [b, kv, per, used]."""
        return self._all(self._product(self._readers(query), keys, True))

    def mixed(self, weights: Tensor, values: Tensor, so_far: Tensor | None) -> Tensor:
        """Sum of values by weights [b, kv, per, used], added to that of the columns before."""
        out = self._product(self._readers(weights), values, False)
        if so_far is None:
            return self._all(out)
        if self.everybody:
            return so_far.add_(out)
        if isinstance(self.rows, slice):
            so_far[self.rows] += out
            return so_far
        return so_far.index_add_(0, self.rows, out)

    def _product(self, x: Tensor, pages: Tensor, transposed: bool) -> Tensor:
        n, kv, per, wide = x.shape
        if self.kind == "one":
            flat = x.transpose(0, 1).reshape(kv, n * per, wide)
            shared = pages[self.lo, :, : self.used]
            out = flat @ (shared.transpose(1, 2) if transposed else shared)
            return out.view(kv, n, per, -1).transpose(0, 1)
        mine = self._rows_of(pages)
        if transposed:
            mine = mine.transpose(2, 3)
        if self.kind != "pad":
            return x @ mine
        return self._unlay(self._lay(x) @ mine, per)

    def expanded(self, pages: Tensor) -> Tensor:
        """The keys or values of each row of the pass [b, kv_heads, used, d]."""
        if self.kind == "one":
            out = pages[self.lo : self.lo + 1, :, : self.used]
            out = out.expand(len(self.owner), -1, -1, -1)
        elif self.kind == "slice":
            out = self._rows_of(pages)
        else:
            out = pages[:, :, : self.used].index_select(0, self.owner)
        return self._all(out)


def reading(column: Column, rows: Ints, whole: bool, used: int, at: int) -> Reading:
    """How these rows of a table (`whole`: all of them) read the first `used` slots of a column."""
    if whole and "whole" in column.reading:
        found: Reading = column.reading["whole"]
        found.used, found.at = used, at
        return found
    made = _make(column, rows, used, at)
    if whole:
        column.reading["whole"] = made
    return made


def _make(column: Column, rows: Ints, used: int, at: int) -> Reading:
    pages, device = column.pages, column.pages.layout.device

    def index(x: Ints) -> Tensor:
        return as_index(x, device)

    owner = column.owner[rows]
    readers = np.flatnonzero(owner >= 0)
    owner = owner[readers]
    n, lo, first = len(readers), int(owner[0]), int(readers[0])
    straight = bool((readers == np.arange(first, first + n)).all())
    options: dict[str, Any] = {
        "used": used, "at": at, "batch": len(rows), "everybody": n == len(rows), "lo": lo,
        "rows": slice(first, first + n) if straight else index(readers), "owner": index(owner),
    }  # fmt: skip
    if bool((owner == np.arange(lo, lo + n)).all()):
        return Reading(pages, "slice", **options)
    live, which = np.unique(owner, return_inverse=True)
    if len(live) == 1:
        return Reading(pages, "one", **options)
    counts = np.bincount(which)
    many = int(counts.max())
    if many * len(live) > WASTE * n:
        return Reading(pages, "copy", **options)
    if 2 * len(live) < pages.rows:
        options["live"] = index(live)
        height = len(live)
    else:
        which, height = owner, pages.rows
    order = np.argsort(which, kind="stable")
    rank = np.empty(n, dtype=np.int64)
    begins = np.searchsorted(which[order], which[order])
    rank[order] = np.arange(n) - begins
    back = which * many + rank
    laid = np.zeros(height * many, dtype=np.int64)
    laid[back] = np.arange(n)
    return Reading(pages, "pad", **options, laid=index(laid), back=index(back))
