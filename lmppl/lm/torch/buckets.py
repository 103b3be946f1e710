"""Steps in padded shapes: few different ones, so that a GPU can replay a captured graph of each.

A step of a small model on a GPU is hundreds of short kernels, and launching them takes longer than
running them. A CUDA graph launches all of them at once, but has fixed shapes and fixed addresses. So a
step is computed in a **workspace** whose number of rows and whose number of slots are rounded up to a
bucket (4, 6, 8, 12, 16, 24, …, so at most a third is padding):

    keys, values [rows, kv_heads, slots, d] of every layer; the token and the length of each row

Each row has its tokens side by side there, slot = position. What lies beyond its length, and rows
that are padding, are hidden by a bias that is computed from the lengths, on the device.

Pages (`torch/cache`) stay what is true: the workspace is filled from them when another batch steps
than the last one (after a prefill, a fork, a string that ended), and each new token is written back
to them. That fill copies the keys and values of the batch once, shared prefixes for each row that
reads them; it is the price, and pays where launching kernels is what costs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmppl.lm.torch.cache import Block
from lmppl.lm.torch.captured import Captured, pool_of
from lmppl.lm.torch.pages import Layout
from lmppl.lm.torch.reading import Reading
from lmppl.lm.torch.tidy import fill
from lmppl.lm.torch.transfer import to_device
from lmppl.types import Ints

LEAST_ROWS, LEAST_SLOTS = 4, 64

Compute = Callable[["Workspace", Tensor], Tensor]
"""compute(pass, ids [b, 1]) -> next-token scores [b, V]."""


def bucket(count: int, least: int) -> int:
    """The smallest 2^k or 3·2^k that is no less than a count; `least` is a power of two above 2.

    >>> [bucket(n, 4) for n in (1, 5, 7, 12, 13, 64, 65)]
    [4, 6, 8, 12, 16, 64, 96]
    """
    size = least
    while size < count:
        size = size * 4 // 3 if size % 3 == 0 else size * 3 // 2
    return size


class Workspace:
    """One bucket: a pass (`torch/attend.Current`) of one token per row, at fixed addresses."""

    same = False
    width = 1
    start = 0

    def __init__(self, layout: Layout, rows: int, slots: int, pool: Any = None) -> None:
        """Zeros, which hold no batch; `pool`: where a captured graph has its memory."""
        device = layout.device
        self.pages = layout.zeros(rows, slots)
        self.ids = torch.zeros((rows, 1), dtype=torch.int64, device=device)
        self.lens = torch.zeros(rows, dtype=torch.int64, device=device)
        """Tokens of each row before this one; 0 for padding."""
        self.gather = torch.arange(rows, device=device)
        self.slots = torch.arange(slots, device=device)
        self.parts: Sequence[Reading] = [
            Reading(
                self.pages, "slice", used=slots, at=0, batch=rows, everybody=True, lo=0,
                rows=slice(0, rows), owner=self.gather,
            )
        ]  # fmt: skip
        self.heard: dict[int, int] = {}
        self._bias: dict[tuple[int, torch.dtype], Tensor] = {}
        self._held: tuple[object, Ints] | None = None
        self._scores = Captured(device, pool)

    # -- a pass, as the layers see it --------------------------------------------------------

    @property
    def positions(self) -> Tensor:
        """Of the new tokens [b, 1]."""
        return self.lens[:, None]

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Put the new keys and values [b, kv_heads, 1, d] behind those of each row."""
        self.pages.keys[layer][self.gather, :, self.lens] = key[:, :, 0]
        self.pages.values[layer][self.gather, :, self.lens] = value[:, :, 0]

    def bias(self, window: int, dtype: torch.dtype) -> Tensor:
        """What is added to the scores [b, 1, 1, slots]: 0 where visible, else -inf."""
        key = (window, dtype)
        if key not in self._bias:
            hidden = self.slots > self.positions
            if window:
                hidden = hidden | (self.slots <= self.positions - window)
            zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self._bias[key] = zeros.masked_fill_(hidden, -torch.inf)[:, None, None]
        return self._bias[key]

    # -- steps -------------------------------------------------------------------------------

    def step(self, block: Block, tokens: Ints, compute: Compute) -> Tensor:
        """Append tokens [B] to all rows of a block; the scores [B, V] after them."""
        rows, device = np.arange(len(block)), self.ids.device
        if not self._holds(block):
            self.lens.zero_()
            fill(self.pages, block.columns, rows)
        self.ids[: len(rows), 0] = to_device(tokens, device)
        self.lens[: len(rows)] = to_device(block.lens, device)
        scores = self._scores(lambda: self._once(compute))[
            : len(rows)
        ].clone()  # the next step writes to the same place
        column = block.column_for(rows, 1, block.fresh_room())
        owner, slot = column.owner[rows], column.count[rows]
        column.pages.put_one(owner, slot, self.pages, rows, block.lens)
        block.wrote(column, rows, np.ones(len(rows), dtype=np.int64))
        self._held = block.token, block.lens.copy()
        return scores

    def _holds(self, block: Block) -> bool:
        if self._held is None:
            return False
        token, lens = self._held
        return token is block.token and np.array_equal(lens, block.lens)

    def _once(self, compute: Compute) -> Tensor:
        self._bias.clear()  # made anew inside each pass, so that a graph makes it too
        return compute(self, self.ids)


class Buckets:
    """The workspaces of a model, within a budget of bytes; the least recently used goes first."""

    def __init__(self, compute: Compute, layout: Layout, budget: int) -> None:
        """No workspace yet."""
        self.compute, self.layout, self.budget = compute, layout, budget
        self._made: OrderedDict[tuple[int, int], Workspace] = OrderedDict()
        self._pool = pool_of(layout.device)
        """One for all graphs: no two run at once, and their results are copied at once."""

    def __len__(self) -> int:
        """Number of workspaces."""
        return len(self._made)

    def step(self, block: Block, tokens: Ints) -> Tensor | None:
        """Append tokens [B] to all rows of a block; None where its bucket exceeds the budget."""
        longest = int(block.lens.max(initial=0)) + 1
        size = bucket(len(block), LEAST_ROWS), bucket(longest, LEAST_SLOTS)
        if self._bytes(size) > self.budget:
            return None
        work = self._made.get(size)
        if work is None:
            while self._made and sum(map(self._bytes, (*self._made, size))) > self.budget:
                self._made.popitem(last=False)
            work = self._made[size] = Workspace(self.layout, *size, self._pool)
        self._made.move_to_end(size)
        return work.step(block, tokens, self.compute)

    def _bytes(self, size: tuple[int, int]) -> int:
        return size[0] * size[1] * self.layout.token_bytes
