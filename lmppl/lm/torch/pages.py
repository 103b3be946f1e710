"""Keys and values in pages: the memory that page tables (`torch/cache`) point into.

    Pages   U rows of L slots: keys and values [U, kv_heads, L, d] of every layer

A row of pages holds a run of consecutive tokens of one lineage. Rows are filled from the left and
only ever appended to, by one batch at a time (`writer`); what is written stays, so any number of
batches may read it. `fill[u]` is how many slots of row u are written: who holds a row up to its
fill may go on writing it, everybody else begins new pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmppl.lm.torch.transfer import as_index, to_device
from lmppl.types import Ints

PAGE = 8
"""Slots of the smallest pages: a fork copies at most so many of a row's newest tokens."""


class Shape(NamedTuple):
    """What one layer keeps of a token."""

    heads: int
    key: int
    value: int


@dataclass(eq=False, frozen=True)
class Layout:
    """What a model keeps of a token, layer by layer."""

    shapes: tuple[Shape, ...]
    dtype: torch.dtype
    device: torch.device

    @cached_property
    def uniform(self) -> bool:
        """Whether all keys and values have one shape, so that one tensor can hold all layers."""
        return (
            len({(s.heads, s.key) for s in self.shapes} | {(s[0], s[2]) for s in self.shapes}) == 1
        )

    @cached_property
    def token_bytes(self) -> int:
        """Memory of one slot."""
        return sum(s.heads * (s.key + s.value) for s in self.shapes) * self.dtype.itemsize

    def zeros(self, rows: int, room: int) -> Pages:
        """Empty pages (zeros, since slots beyond a fill are multiplied by a weight of 0)."""

        def made(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=self.dtype, device=self.device)

        if self.uniform:
            heads, size, _ = self.shapes[0]
            number = 2 * len(self.shapes)
            tensors = [made(number, rows, heads, room, size)]
        else:
            tensors = [
                made(rows, s.heads, room, size) for s in self.shapes for size in (s.key, s.value)
            ]
        return Pages(self, tensors, np.zeros(rows, dtype=np.int64))


@dataclass(eq=False)
class Pages:
    """U rows of L slots."""

    layout: Layout
    tensors: list[Tensor]
    """One [2 · layers, U, kv_heads, L, d], or one [U, kv_heads, L, d] for each key and value."""
    fill: Ints
    """Slots written of each row [U]."""
    writer: object | None = None
    """The batch that may append; None: nobody does at present."""

    def __post_init__(self) -> None:
        """Find the keys and values of each layer."""
        flat = list(self.tensors[0].unbind(0)) if self.layout.uniform else self.tensors
        self.keys: list[Tensor] = list(flat[0::2])
        self.values: list[Tensor] = list(flat[1::2])

    @property
    def rows(self) -> int:
        """U."""
        return len(self.fill)

    @property
    def room(self) -> int:
        """L, slots per row."""
        return int(self.tensors[0].shape[-2])

    @property
    def nbytes(self) -> int:
        """Memory."""
        return self.rows * self.room * self.layout.token_bytes

    def copy(self, rows: Ints, used: int, room: int) -> Pages:
        """New pages with the first `used` slots of these rows, and room for more."""
        index = as_index(rows, self.layout.device)
        fill = np.minimum(self.fill[rows], used)
        if room <= self.room:  # what lies beyond a fill is finite, and never read
            tensors = [t[..., :room, :].index_select(t.ndim - 4, index) for t in self.tensors]
            return Pages(self.layout, tensors, fill)
        out = self.layout.zeros(len(rows), room)
        out.fill = fill
        if used:
            for new, old in zip(out.tensors, self.tensors, strict=True):
                new[..., :used, :] = old[..., :used, :].index_select(old.ndim - 4, index)
        return out

    def put(self, to: Ints, at: int, source: Pages, rows: Ints, used: int) -> None:
        """Copy the first `used` slots of rows of other pages to slots `at` onwards of ours."""
        where = as_index(to, self.layout.device)
        index = as_index(rows, self.layout.device)
        for new, old in zip(self.tensors, source.tensors, strict=True):
            piece = old[..., :used, :].index_select(old.ndim - 4, index)
            new[..., at : at + used, :].index_copy_(new.ndim - 4, where, piece)

    def put_one(self, to: Ints, at: Ints, source: Pages, rows: Ints, slots: Ints) -> None:
        """Copy one slot of each of some rows of other pages: slots[n] of rows[n] to at[n] of to[n]."""
        device = self.layout.device
        owner, slot, theirs, place = to_device(np.stack([to, at, rows, slots]), device)
        for new, old in zip(self.tensors, source.tensors, strict=True):
            new[..., owner, :, slot, :] = old[..., theirs, :, place, :]
