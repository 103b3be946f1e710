"""The attention of a pass: new tokens over a page table, written for any transformers model.

transformers runs the network. `PagedCache` is the cache object it writes to, `attend` is the
attention function it calls (registered as "lmppl"), and a `Pass` tells both which rows are computed.

Each column of the table is one batched product. Where several rows read the same row of pages,
their queries stand side by side in it, so shared keys are read once and nothing is copied; one
softmax over all columns keeps the result exact.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lmppl.lm.torch.cache import Block, Column
from lmppl.lm.torch.reading import Reading, reading
from lmppl.lm.torch.transfer import to_device
from lmppl.types import Ints

NAME = "lmppl"
UNKNOWN = ("s_aux", "position_bias")
"""Arguments of attention functions that change the scores in ways `attend` does not know."""
FEW = 8
"""New tokens per row up to which the columns are read in place, not joined."""


class Current(Protocol):
    """What the layers of a model meet during a pass: a `Pass`, or a workspace of `torch/buckets`."""

    heard: dict[int, int]
    """The sliding window that each layer attended with (0: none)."""

    @property
    def width(self) -> int:
        """Q, new tokens per row."""

    @property
    def start(self) -> int:
        """Length of some row so far."""

    @property
    def positions(self) -> Tensor:
        """Of the new tokens [b, Q]."""

    @property
    def gather(self) -> Tensor:
        """Positions of the flattened [b · Q] hidden states whose next-token scores are wanted."""

    @property
    def parts(self) -> Sequence[Reading]:
        """The columns that are read."""

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep the new keys and values [b, kv_heads, Q, d] of a layer."""

    def bias(self, window: int, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores [b, 1, Q, slots]: 0 where visible, else -inf; or None."""


@dataclass(eq=False)
class Pass:
    """One forward pass: tokens [b, Q] appended to some rows of a block."""

    block: Block
    rows: Ints
    """Rows of the block [b]."""
    width: int
    """Q, tokens per row (shorter rows are padded on the right)."""
    room: int
    """Slots of the pages that are begun if there are none to append to."""
    gather: Tensor
    """Positions of the flattened [b · Q] hidden states whose next-token scores are wanted."""
    same: bool = False
    """Whether the results must not depend on the batch (see `torch/same`)."""

    def __post_init__(self) -> None:
        """Find the slots to write and the pages to read, once for all layers."""
        device = self.block.layout.device
        whole = len(self.rows) == len(self.block)
        self.written = self.block.column_for(self.rows, self.width, self.room)
        lens = self.block.lens[self.rows]
        own = lens[:, None] + np.arange(self.width)
        self.own = own
        """Position of each new token [b, Q]."""
        self.positions = to_device(own, device)
        fill, owner = self.written.count[self.rows], self.written.owner[self.rows]
        self.first = int(fill[0])
        self.aligned = bool((fill == self.first).all())
        self.lo = int(owner[0])
        self.straight = bool((owner == np.arange(self.lo, self.lo + len(owner))).all())
        if not (self.aligned and self.straight):
            self.owner = to_device(owner[:, None], device)
            self.slot = to_device(fill[:, None] + np.arange(self.width), device)
        self.columns: list[Column] = []
        self.parts: list[Reading] = []
        self.start = int(lens[0])
        starts = []
        self.total = 0
        for c, start in zip(self.block.columns, self.block.starts, strict=True):
            count = c.count[self.rows]
            used = int(count.max()) + (self.width if c is self.written else 0)
            if not used:
                continue
            self.parts.append(reading(c, self.rows, whole, used, self.total))
            self.columns.append(c)
            starts.append(start[self.rows])
            self.total += used
        self.starts = starts
        """Of each column, the position of its first slot in each row [b]."""
        self.prepared: dict[str, Any] = {}
        """What other ways to attend have prepared for all layers."""
        self.heard: dict[int, int] = {}
        """The sliding window that each layer attended with (0: none)."""
        self._bias: dict[tuple[int, torch.dtype], Tensor | None] = {}

    def bias(self, window: int, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores [b, 1, Q, slots]: 0 where visible, else -inf; or None.

        None means that every query sees everything, as in a step of rows of equal length.
        """
        key = (window, dtype)
        if key not in self._bias:
            self._bias[key] = self._make_bias(window, dtype)
        return self._bias[key]

    def _make_bias(self, window: int, dtype: torch.dtype) -> Tensor | None:
        seen = np.zeros((len(self.rows), self.width, self.total), dtype=bool)
        for c, p, start in zip(self.columns, self.parts, self.starts, strict=True):
            slot = np.arange(p.used)
            end = c.count[self.rows][:, None]
            if c is self.written:
                end = end + np.arange(1, self.width + 1)
            visible = slot < end[:, :, None]
            if window:
                place = start[:, None] + slot
                visible = visible & (place[:, None] > self.own[:, :, None] - window)
            seen[:, :, p.at : p.at + p.used] = visible
        if seen.all():
            return None
        hidden = to_device(~seen, self.positions.device)
        bias = torch.zeros(seen.shape, dtype=dtype, device=hidden.device)
        return bias.masked_fill_(hidden, -torch.inf)[:, None]

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Put new keys and values [b, kv_heads, Q, d] into their slots of pages."""
        pages = self.written.pages
        self._write(key, pages.keys[layer])
        self._write(value, pages.values[layer])

    def _write(self, new: Tensor, into: Tensor) -> None:
        if self.aligned and self.straight:
            hi, end = self.lo + len(self.rows), self.first + self.width
            into[self.lo : hi, :, self.first : end] = new
        else:
            into[self.owner, :, self.slot] = new.transpose(1, 2)

    def done(self, counts: Ints) -> None:
        """The pass is over: these tokens [b] are in the pages."""
        self.block.wrote(self.written, self.rows, counts)


class _Active(threading.local):
    current: Current | None = None


ACTIVE = _Active()
"""The pass of this thread; None while transformers runs on its own."""


class PagedCache:
    """The cache that a transformers model sees during a pass."""

    is_compileable = False
    is_sliding: Sequence[bool] = ()
    is_linear: Sequence[bool] = ()
    is_dummy: Sequence[bool] = ()
    layers: Sequence[Any] = ()

    def __init__(self, current: Current) -> None:
        """Write for this pass."""
        self.current = current

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of one layer; `attend` reads the pages itself."""
        self.current.store(layer_idx, key_states, value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Length so far (of some row); positions are given explicitly."""
        return self.current.start

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
    if isinstance(current, Pass) and current.same:
        if cap is not None:
            raise NotImplementedError("deterministic attention with softcap")
        from lmppl.lm.torch.same import attend_same

        return attend_same(current, layer, query, scale, window).transpose(1, 2), None
    bias = current.bias(window, query.dtype)
    if current.width > FEW and cap is None:
        result = _over_joined(current, layer, query, bias, scale)
    else:
        result = _over_pages(current, layer, query, bias, scale, cap)
    return result.transpose(1, 2), None


def _over_joined(
    current: Current, layer: int, query: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """Many new tokens per row: the fused kernel, on keys and values joined per row."""
    keys = [p.expanded(p.pages.keys[layer]) for p in current.parts]
    values = [p.expanded(p.pages.values[layer]) for p in current.parts]
    key = keys[0] if len(keys) == 1 else torch.cat(keys, dim=2)
    value = values[0] if len(values) == 1 else torch.cat(values, dim=2)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=bias, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def _over_pages(
    current: Current,
    layer: int,
    query: Tensor,
    bias: Tensor | None,
    scale: float,
    cap: float | None,
) -> Tensor:
    """Few new tokens per row: every row of pages is read where it is, once."""
    parts = current.parts
    batch, heads, width, size = query.shape
    first = parts[0].pages
    kv = first.keys[layer].shape[1]
    per = heads // kv * width
    """Queries per key-value head."""
    grouped = query.reshape(batch, kv, per, size)
    found = [p.scores(grouped, p.pages.keys[layer]) for p in parts]
    scores = (found[0] if len(found) == 1 else torch.cat(found, dim=3)).mul_(scale)
    if cap is not None:
        scores = scores.div_(cap).tanh_().mul_(cap)
    if bias is not None:
        scores = scores.reshape(batch, heads, width, -1) + bias
        scores = scores.view(batch, kv, per, -1)
    weights = torch.softmax(scores, dim=3, dtype=torch.float32).to(query.dtype)
    result = None
    for p in parts:
        share = weights if len(parts) == 1 else weights[..., p.at : p.at + p.used]
        result = p.mixed(share, p.pages.values[layer], result)
    if result is None:
        raise RuntimeError("a pass that reads nothing")
    return result.reshape(batch, heads, width, -1)


def register() -> None:
    """Make `attend` known to transformers (again and again is fine)."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
