"""The attention of a pass: new tokens over trunks and tails, written for any transformers model.

transformers runs the network. `SlotCache` is the cache object it writes to, `attend` is the
attention function it calls (registered as "lmppl"), and a `Pass` tells both which rows are being
computed. Attention over a trunk is one matrix product for all rows of its segment, since its keys
are the same for each; one softmax over both parts keeps it exact.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lmppl.lm.torch_cache import SPARE, Block, Segment

NAME = "lmppl"
UNKNOWN = ("s_aux", "position_bias")
"""Arguments of attention functions that change the scores in ways `attend` does not know."""


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
        """Find the slots to write, once for all layers."""
        starts = self.block.lens[self.lo : self.hi]
        self.slots = int(starts.max()) + self.width
        self.first = int(starts[0])
        self.aligned = bool((starts == self.first).all())
        self.starts = starts
        where = torch.from_numpy(np.ascontiguousarray(starts)).to(self.device)
        self.own = where[:, None] + torch.arange(self.width, device=self.device)
        """Slot of each new token [b, Q]."""
        offsets = torch.from_numpy(self.block.offsets[self.lo : self.hi]).to(self.device)
        self.positions = self.own + offsets[:, None]
        self.rows = torch.arange(self.hi - self.lo, device=self.device)[:, None]
        self.segments = [
            Segment(s.trunk, max(s.lo, self.lo) - self.lo, min(s.hi, self.hi) - self.lo)
            for s in self.block.segments
            if s.hi > self.lo and s.lo < self.hi
        ]
        self.heard: dict[int, int] = {}
        """The sliding window that each layer attended with (0: none)."""
        self._bias: dict[tuple[int, int, torch.dtype], Tensor | None] = {}

    def used(self, s: Segment) -> int:
        """Tail slots that the rows of a segment use."""
        return int(self.starts[s.lo : s.hi].max()) + self.width

    def bias(self, s: Segment, window: int, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores [b, 1, Q, P + slots]: 0 where visible, else -inf; or None.

        None means that every query sees everything, as in a step of rows of equal length.
        """
        key = (s.lo, window, dtype)
        if key not in self._bias:
            self._bias[key] = self._make_bias(s, window, dtype)
        return self._bias[key]

    def _make_bias(self, s: Segment, window: int, dtype: torch.dtype) -> Tensor | None:
        slots = self.used(s)
        starts = self.starts[s.lo : s.hi]
        bounded = 0 < window < s.trunk.length + slots
        if self.width == 1 and not bounded and bool((starts == starts[0]).all()):
            return None
        own = self.own[s.lo : s.hi, :, None]
        place = torch.arange(-s.trunk.length, slots, device=self.device)
        seen = place <= own
        if bounded:
            seen &= place > own - window
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
        """Length so far (of some row); positions are given explicitly."""
        return int(self.current.block.offsets[self.current.lo]) + self.current.first

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """The same."""
        return self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Sizes for mask making, which `attend` does itself."""
        return self.get_seq_length(layer_idx) + query_length, 0

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
    """Attention of new tokens [b, heads, Q, d]; the result is [b, Q, heads, d]."""
    current = ACTIVE.current
    if current is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out
    for name in UNKNOWN:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    window, cap = int(kwargs.get("sliding_window") or 0), kwargs.get("softcap")
    layer = int(module.layer_idx)
    current.heard[layer] = window
    over = _over_many if current.width > 1 and cap is None else _over
    results = []
    for s in current.segments:
        part, used = slice(s.lo, s.hi), current.used(s)
        bias = current.bias(s, window, query.dtype)
        keys, values = key[part, :, :used], value[part, :, :used]
        results.append(over(s, layer, query[part], keys, values, bias, scale, cap))
    result = results[0] if len(results) == 1 else torch.cat(results)
    return result.transpose(1, 2), None


def _over_many(
    s: Segment,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scale: float,
    cap: float | None,
) -> Tensor:
    """Many new tokens per row: the fused kernel, on joined trunk and tails."""
    if s.trunk.length:
        batch = len(query)
        key = torch.cat([s.trunk.keys[layer].expand(batch, -1, -1, -1), key], dim=2)
        value = torch.cat([s.trunk.values[layer].expand(batch, -1, -1, -1), value], dim=2)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=bias, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def _over(
    s: Segment,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scale: float,
    cap: float | None,
) -> Tensor:
    """Few new tokens per row: nothing of the size of the cache is copied."""
    batch, heads, width, size = query.shape
    kv, length = key.shape[1], s.trunk.length
    per = heads // kv * width
    """Queries per key-value head."""
    grouped = query.reshape(batch, kv, per, size)
    scores = grouped @ key.transpose(2, 3)
    if length:
        flat = grouped.transpose(0, 1).reshape(kv, batch * per, size)
        shared = flat @ s.trunk.keys[layer][0].transpose(1, 2)
        scores = torch.cat([shared.view(kv, batch, per, length).transpose(0, 1), scores], dim=3)
    scores = scores.mul_(scale)
    if cap is not None:
        scores = scores.div_(cap).tanh_().mul_(cap)
    if bias is not None:
        scores = (scores.view(batch, heads, width, -1) + bias).view(scores.shape)
    weights = torch.softmax(scores, dim=3, dtype=torch.float32).to(value.dtype)
    result = weights[..., length:] @ value
    if length:
        flat = weights[..., :length].transpose(0, 1).reshape(kv, batch * per, length)
        shared = flat @ s.trunk.values[layer][0]
        result = result + shared.view(kv, batch, per, -1).transpose(0, 1)
    return result.reshape(batch, heads, width, -1)


def register() -> None:
    """Make `attend` known to transformers (again and again is fine)."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
