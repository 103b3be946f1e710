"""Keys and values of a batch, written in place, and the attention that reads them.

    trunk   [1, kv_heads, P, d]      the prefix that all rows share, stored and attended to once
    tails   [B, kv_heads, C, d]      what is each row's own: slot s of row b is position P + s

Rows are left-aligned: row b fills slots 0 … len_b - 1, so forking is an `index_select` of the
tails, cropping is a smaller length, and rows of different lengths share a batch without holes. A
mask by lengths hides the rest; stale numbers beyond a length are overwritten, never read.

transformers runs the network. `SlotCache` is the cache object it writes to, `attend` is the
attention function it calls (registered as "lmppl"), and a `Pass` tells both which rows are being
computed. Attention over the trunk is one matrix product for the whole batch, since its keys are
the same for every row; one softmax over both parts keeps it exact.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lmppl.types import Ints

NAME = "lmppl"
SPARE = 32
"""Slots that a new batch has free, so that the first tokens need no new buffers."""


@dataclass(eq=False)
class Trunk:
    """Keys and values of a shared prefix, one tensor [1, kv_heads, P, d] per layer."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    length: int = 0

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""
        return sum(t.nbytes for t in (*self.keys, *self.values))


@dataclass(eq=False)
class Block:
    """The keys and values of a batch: a trunk and the rows' own tails."""

    trunk: Trunk
    lens: Ints
    """Computed tail length of each row [B]."""
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    """One tensor [B, kv_heads, C, d] per layer."""

    @property
    def capacity(self) -> int:
        """C, slots per row."""
        return int(self.keys[0].shape[2]) if self.keys else 0

    @property
    def tail_bytes(self) -> int:
        """Memory of the tails."""
        return sum(t.nbytes for t in (*self.keys, *self.values))

    def select(self, rows: Ints, spare: int = 0) -> Block:
        """A copy of these rows, with `spare` free slots beyond the longest."""
        lens = self.lens[rows]
        used = int(lens.max(initial=0))
        index = torch.from_numpy(np.ascontiguousarray(rows))
        if self.keys:
            index = index.to(self.keys[0].device)
        out = Block(self.trunk, lens)
        for mine, theirs in ((self.keys, out.keys), (self.values, out.values)):
            for t in mine:
                if spare == 0 and used == t.shape[2]:
                    theirs.append(t.index_select(0, index))
                    continue
                new = t.new_zeros((len(rows), t.shape[1], used + spare, t.shape[3]))
                if used:
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


@dataclass(eq=False)
class Pass:
    """One forward pass over consecutive rows of a block, tokens [b, Q] at slots start_b onwards."""

    block: Block
    lo: int
    hi: int
    width: int
    """Q, tokens per row (shorter rows are padded on the right)."""
    device: torch.device
    gather: Tensor
    """Positions of the flattened [b · Q] hidden states whose next-token scores are wanted."""

    def __post_init__(self) -> None:
        """Find the slots to write and the mask, once for all layers."""
        starts = self.block.lens[self.lo : self.hi]
        self.slots = int(starts.max(initial=0)) + self.width
        first = int(starts[0]) if len(starts) else 0
        self.aligned = bool((starts == first).all())
        self.first = first
        self.starts = torch.from_numpy(np.ascontiguousarray(starts)).to(self.device)
        self.own = self.starts[:, None] + torch.arange(self.width, device=self.device)
        """Slot of each new token [b, Q]."""
        self.rows = torch.arange(self.hi - self.lo, device=self.device)[:, None]
        self.heard: dict[int, int] = {}
        """The sliding window that each layer attended with (0: none)."""
        self._bias: dict[tuple[int, torch.dtype], Tensor | None] = {}

    def bias(self, window: int, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores [b, 1, Q, P + slots]: 0 where visible, else -inf; or None.

        None means that every query sees everything, as in a step of rows of equal length.
        """
        key = (window, dtype)
        if key not in self._bias:
            self._bias[key] = self._make_bias(window, dtype)
        return self._bias[key]

    def _make_bias(self, window: int, dtype: torch.dtype) -> Tensor | None:
        trunk = self.block.trunk.length
        bounded = 0 < window < trunk + self.slots
        if self.width == 1 and self.aligned and not bounded:
            return None
        place = torch.arange(-trunk, self.slots, device=self.device)
        seen = place <= self.own[:, :, None]
        if bounded:
            seen &= place > self.own[:, :, None] - window
        bias = torch.zeros(seen.shape, dtype=dtype, device=self.device)
        return bias.masked_fill_(~seen, -torch.inf)[:, None]

    def write(self, new: Tensor, layer: int, tensors: list[Tensor]) -> Tensor:
        """Put new keys or values [b, kv_heads, Q, d] into their slots; the used part comes back."""
        if layer == len(tensors):  # the first pass of a fresh block finds the shapes
            room = self.slots + SPARE
            tensors.append(new.new_zeros((len(self.block.lens), new.shape[1], room, new.shape[3])))
        tail = tensors[layer][self.lo : self.hi]
        if self.aligned:
            tail[:, :, self.first : self.first + self.width] = new
        else:
            tail[self.rows, :, self.own] = new.transpose(1, 2)
        return tail[:, :, : self.slots]


class _Active(threading.local):
    current: Pass | None = None


ACTIVE = _Active()
"""The pass of this thread; None while transformers runs on its own."""


class SlotCache:
    """The cache that a transformers model sees during a pass."""

    is_compileable = False
    is_sliding: Sequence[bool] = ()
    is_linear: Sequence[bool] = ()
    is_dummy: Sequence[bool] = ()
    layers: Sequence[Any] = ()

    def __init__(self, current: Pass) -> None:
        """Write for this pass."""
        self.current = current

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of one layer; the rows' own tails come back."""
        block = self.current.block
        return (
            self.current.write(key_states, layer_idx, block.keys),
            self.current.write(value_states, layer_idx, block.values),
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Length so far (of the longest row); positions are given explicitly."""
        return self.current.block.trunk.length + self.current.slots - self.current.width

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """The same."""
        return self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Sizes for mask making, which `attend` does itself."""
        return self.current.block.trunk.length + self.current.slots, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """No bound."""
        return -1


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of new tokens [b, heads, Q, d] over trunk and tails."""
    current = ACTIVE.current
    if current is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    batch, heads, width, size = query.shape
    groups = heads // key.shape[1]
    scale = size**-0.5 if scaling is None else scaling
    window = int(kwargs.get("sliding_window") or 0)
    cap = kwargs.get("softcap")
    bias = current.bias(window, query.dtype)
    trunk = current.block.trunk
    layer = int(module.layer_idx)
    current.heard[layer] = window
    if width > 1 and cap is None:
        if trunk.length:
            key = torch.cat([trunk.keys[layer].expand(batch, -1, -1, -1), key], dim=2)
            value = torch.cat([trunk.values[layer].expand(batch, -1, -1, -1), value], dim=2)
        result = scaled_dot_product_attention(
            query, key, value, attn_mask=bias, scale=scale, enable_gqa=groups > 1
        )
        return result.transpose(1, 2), None
    kv = key.shape[1]
    grouped = query.reshape(batch, kv, groups * width, size)
    scores = grouped @ key.transpose(2, 3)
    if trunk.length:
        flat = grouped.transpose(0, 1).reshape(kv, batch * groups * width, size)
        shared = flat @ trunk.keys[layer][0].transpose(1, 2)
        shared = shared.view(kv, batch, groups * width, trunk.length).transpose(0, 1)
        scores = torch.cat([shared, scores], dim=3)
    scores = scores.mul_(scale)
    if cap is not None:
        scores = scores.div_(cap).tanh_().mul_(cap)
    if bias is not None:
        scores = (scores.view(batch, heads, width, -1) + bias).view(scores.shape)
    weights = torch.softmax(scores, dim=3, dtype=torch.float32).to(value.dtype)
    result = weights[..., trunk.length :] @ value
    if trunk.length:
        flat = weights[..., : trunk.length].transpose(0, 1)
        flat = flat.reshape(kv, batch * groups * width, trunk.length)
        shared = (flat @ trunk.values[layer][0]).view(kv, batch, groups * width, -1)
        result = result + shared.transpose(0, 1)
    return result.reshape(batch, heads, width, -1).transpose(1, 2), None


def register() -> None:
    """Make `attend` known to transformers (again and again is fine)."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
