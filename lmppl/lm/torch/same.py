"""Deterministic passes: a row's scores are the same bits in any batch, with any history.

Sums of floats depend on their order, and libraries choose the order by the shape of a product: a
row alone and a row among 64 differ in the last bits, which is another token once in many draws.
Here every product has a shape that no neighbour can change:

* linear layers run over tiles of `TILE` rows, the last one filled up;
* attention is one small product per row and query, over the row's own tokens in the order of their
  positions, padded to a multiple of `STEP`; whether a token was computed in a prefill or in a step,
  shared, copied or evicted and computed again makes no difference.

It is for the CPU in float32, and slower: for reproducing a run token by token, and for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from lmppl.lm.torch.attend import Pass

TILE = 16
"""Rows of a product with weights."""
STEP = 64
"""Lengths of attention are padded to multiples of it."""
QUERIES = 64
"""Queries whose keys are gathered at once."""


def tiled(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A product over the rows of x [n, K], `TILE` of them at a time."""
    n = len(x)
    filled = x.new_zeros((max(1, -(-n // TILE)) * TILE, x.shape[1]))
    filled[:n] = x
    return torch.cat([product(filled[lo : lo + TILE]) for lo in range(0, len(filled), TILE)])[:n]


class _Tiled(TorchFunctionMode):
    """Linear layers (and the `addmm` of GPT-2's) in tiles."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is linear and not kwargs.keys() - {"bias"}:
            x, weight = args[0], args[1]
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            out = tiled(lambda part: linear(part, weight, bias), x.reshape(-1, x.shape[-1]))
            return out.view(*x.shape[:-1], len(weight))
        if func is torch.addmm and not kwargs:
            bias, x, weight = args
            return tiled(lambda part: torch.addmm(bias, part, weight), x)
        return func(*args, **kwargs)


@contextmanager
def same_bits(on: bool) -> Iterator[None]:
    """Linear layers in this block do not depend on the batch."""
    if not on:
        yield
        return
    with _Tiled():
        yield


def attend_same(current: Pass, layer: int, query: Tensor, scale: float, window: int) -> Tensor:
    """Attention [b, heads, Q, d] of each query over its row's tokens in their order."""
    batch, heads, width, size = query.shape
    key = torch.cat([p.expanded(p.pages.keys[layer]) for p in current.parts], dim=2)
    value = torch.cat([p.expanded(p.pages.values[layer]) for p in current.parts], dim=2)
    kv = key.shape[1]
    rows, at, lengths, slots = _queries(current)
    out = query.new_empty((batch, width, heads, value.shape[3]))
    asked = query.transpose(1, 2).reshape(batch, width, kv, heads // kv, size)
    for long in np.unique(lengths).tolist():
        mine = np.flatnonzero(lengths == long)
        for lo in range(0, len(mine), QUERIES):
            part = mine[lo : lo + QUERIES]
            r, q = rows[part], at[part]
            index = torch.from_numpy(slots[r][:, :long])
            place = torch.from_numpy(r)[:, None]
            # one layout whatever the number of queries: [n · kv, long, d], contiguous
            keys = key[place, :, index].transpose(1, 2).reshape(len(r) * kv, long, -1).contiguous()
            values = value[place, :, index].transpose(1, 2).reshape(len(r) * kv, long, -1)
            mine_asked = asked[r, q].reshape(len(r) * kv, heads // kv, size).contiguous()
            scores = torch.bmm(mine_asked, keys.transpose(1, 2)).mul_(scale)
            scores = scores.view(len(r), kv, heads // kv, long)
            own = torch.from_numpy(current.own[r, q])[:, None]
            positions = torch.arange(long)
            hidden = positions > own
            if window:
                hidden |= positions <= own - window
            scores = scores.masked_fill_(hidden[:, None, None], -torch.inf)
            weights = torch.softmax(scores, dim=3).view(len(r) * kv, heads // kv, long)
            result = torch.bmm(weights, values.contiguous())
            out[torch.from_numpy(r), torch.from_numpy(q)] = result.reshape(len(r), heads, -1)
    return out.transpose(1, 2)


def _queries(current: Pass) -> tuple[Any, Any, Any, Any]:
    """Row and place of each query, the padded length that it sees, and where positions lie [b, L]."""
    found = current.prepared.get("same")
    if found is None:
        batch, width = current.own.shape
        rows, at = np.divmod(np.arange(batch * width), width)
        lengths = -(-(current.own[rows, at] + 1) // STEP) * STEP
        slots = np.zeros((batch, int(lengths.max())), dtype=np.int64)
        for c, p, start in zip(current.columns, current.parts, current.starts, strict=True):
            count = c.count[current.rows] + (width if c is current.written else 0)
            for b in range(batch):
                n = int(count[b])
                slots[b, start[b] : start[b] + n] = np.arange(p.at, p.at + n)
        found = current.prepared["same"] = (rows, at, lengths, slots)
    return found
