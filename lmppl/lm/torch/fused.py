"""Single steps of a Llama on a GPU: nine kernels a layer, over the pages themselves, as one graph.

    x ← x + O attend(rotate(QKV norm(x))),    x ← x + D gate(GU norm(x))

The matrices that read the same rows stand in one ([Q; K; V], [G; U]); what is between the products is
in `torch/kernels`. Nothing is copied when rows fork or another batch steps: the pages of a row are
found by a table that is sent with the tokens. A graph is captured for each rounded number of rows
(`torch/buckets`), so a step is one copy to the device and one launch.

Models whose layers are hooked (adapters), or whose heads have other sizes than powers of two, step in
other ways. So does every batch of more than `MOST` columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from lmppl.lm.torch import kernels
from lmppl.lm.torch.buckets import LEAST_ROWS, bucket
from lmppl.lm.torch.cache import Block, Column
from lmppl.lm.torch.captured import Captured, pool_of
from lmppl.lm.torch.llama import Linear, Llama
from lmppl.lm.torch.pages import Layout
from lmppl.lm.torch.transfer import to_device
from lmppl.types import Ints

MOST = 24
"""Columns of a batch that fit in the table."""
WIDTH = kernels.HEAD + kernels.CELL * MOST
BLOCK = 64
"""Slots that are read together."""
BUSY = 1600
"""Programs that fill a GPU: fewer rows split their slots among several."""
LEAST_GROUP = 16
"""Rows of the smallest product of a tensor core."""


class FusedLlama:
    """The steps of one model.

    Args:
        model: its matrices become parts of joined ones, in place; their numbers do not change.
        layout: of its pages.
        budget: bytes that the results of a captured step may take.

    Raises:
        NotImplementedError: the kernels do not know such heads.
    """

    def __init__(self, model: Llama, layout: Layout, budget: int) -> None:
        """Join the matrices."""
        config = model.config
        self.heads, self.kv = config.num_attention_heads, config.num_key_value_heads
        self.size, self.hidden = config.head_dim, config.hidden_size
        self.inner, self.eps = config.intermediate_size, config.rms_norm_eps
        if self.size < LEAST_GROUP or self.size & (self.size - 1):
            raise NotImplementedError(f"heads of size {self.size}")
        self.layout, self.model = layout, model
        self.head = model.lm_head
        self.layers: Sequence[Any] = list(model.model.layers)
        self.qkv, self.gate_up = [], []
        with torch.inference_mode(False):
            for layer in self.layers:
                own, mlp = layer.self_attn, layer.mlp
                self.qkv.append(joined([own.q_proj, own.k_proj, own.v_proj]))
                self.gate_up.append(joined([mlp.gate_proj, mlp.up_proj]))
        self.most = budget // (6 * self.head.weight.shape[0])
        self.steps: dict[int, Step] = {}
        self.pool = pool_of(layout.device)

    def step(self, block: Block, tokens: Ints) -> Tensor | None:
        """Append tokens [B] to all rows of a block; the scores [B, V] after them.

        None, with nothing done, where the batch is too large, or has too many columns.
        """
        size = bucket(len(block), LEAST_ROWS)
        if size > self.most or len(block.columns) >= MOST:
            return None
        rows = np.arange(len(block))
        column = block.column_for(rows, 1, block.fresh_room())
        if size not in self.steps:
            self.steps[size] = Step(self, size)
        scores = self.steps[size].run(table_of(block, column, tokens, size))[: len(block)].clone()
        block.wrote(column, rows, np.ones(len(rows), dtype=np.int64))
        return scores

    # -- the network -------------------------------------------------------------------------

    def compute(self, table: Tensor) -> Tensor:
        """Scores [b, V] in float32 of the rows of a table."""
        model, stack = self.model, self.model.model
        x = embedding(table[:, 0], stack.embed_tokens.weight)
        angles = table[:, 1].float()[:, None] * model.get_buffer("frequencies")
        turn = angles.cos(), angles.sin()
        more: Tensor | None = None
        for n, layer in enumerate(self.layers):
            y = self._norm(x, more, layer.input_layernorm.weight)
            attended = self._attend(self.qkv[n](y), turn, table, n)
            more = layer.self_attn.o_proj(attended)
            y = self._norm(x, more, layer.post_attention_layernorm.weight)
            more = layer.mlp.down_proj(self._gate(self.gate_up[n](y)))
        scores: Tensor = self.head(self._norm(x, more, stack.norm.weight)).float()
        return scores

    def _norm(self, x: Tensor, more: Tensor | None, weight: Tensor) -> Tensor:
        out = torch.empty_like(x)
        size = bucket_of(self.hidden)
        add = more is not None
        kernels.add_norm[(len(x),)](
            x, more if add else x, weight, out, self.eps, self.hidden, ADD=add, SIZE=size,
            num_warps=warps(size),
        )  # fmt: skip
        return out

    def _attend(
        self, qkv: Tensor, turn: tuple[Tensor, Tensor], table: Tensor, layer: int
    ) -> Tensor:
        rows, per = len(qkv), self.heads // self.kv
        q = qkv.new_empty(rows, self.heads * self.size)
        kernels.rotate_store[(rows, self.heads + 2 * self.kv)](
            qkv, q, *turn, table, layer, WIDTH=WIDTH, HEADS=self.heads, KV=self.kv, D=self.size,
            num_warps=1,
        )  # fmt: skip
        out = torch.empty_like(q)
        splits = 1
        while splits < LEAST_GROUP and 2 * splits * rows * self.kv <= BUSY:
            splits *= 2
        parts = tops = sums = out
        if splits > 1:
            parts = q.new_empty((splits, *q.shape), dtype=torch.float32)
            tops = q.new_empty((2, rows, self.heads, splits), dtype=torch.float32)
            tops, sums = tops
        kernels.attend[(rows, self.kv, splits)](
            q, parts, tops, sums, table, layer, self.size**-0.5, WIDTH=WIDTH, FIRST=kernels.HEAD,
            EACH=kernels.CELL, KV=self.kv, PER=per, GROUP=max(LEAST_GROUP, bucket_of(per)), D=self.size,
            BLOCK=BLOCK, SPLITS=splits, num_warps=2,
        )  # fmt: skip
        if splits > 1:
            kernels.merge[(rows * self.heads,)](
                parts, tops, sums, out, PER=per, D=self.size, SPLITS=splits, num_warps=1
            )
        return out

    def _gate(self, both: Tensor) -> Tensor:
        out = both.new_empty(len(both), self.inner)
        size = 1024
        grid = (len(both), -(-self.inner // size))
        kernels.gate[grid](both, out, self.inner, SIZE=size, num_warps=4)
        return out


class Step:
    """The step of one number of rows."""

    def __init__(self, of: FusedLlama, rows: int) -> None:
        """A table of zeros, which has padding alone."""
        self.of, device = of, of.layout.device
        self.table = torch.zeros((rows, WIDTH), dtype=torch.int64, device=device)
        self._scores = Captured(device, of.pool)

    def run(self, table: Ints) -> Tensor:
        """The scores, in memory that the next run writes to again."""
        self.table.copy_(to_device(table, self.table.device))
        return self._scores(lambda: self.of.compute(self.table))


def table_of(block: Block, column: Column, tokens: Ints, rows: int) -> Ints:
    """What the kernels must know of the rows of a block that are about to write a column."""
    table = np.zeros((rows, WIDTH), dtype=np.int64)
    mine = table[: len(block)]
    mine[:, 0], mine[:, 1], mine[:, 2] = tokens, block.lens, len(block.columns)
    kv, size, _ = block.layout.shapes[0]
    item = block.layout.dtype.itemsize
    for c, one in enumerate(block.columns):
        pages = one.pages
        stride, row = pages.rows * kv * pages.room * size, kv * pages.room * size * item
        address = pages.tensors[0].data_ptr() + np.maximum(one.owner, 0) * row
        cell = mine[:, kernels.HEAD + kernels.CELL * c :][:, : kernels.CELL]
        cell[:, 0], cell[:, 1], cell[:, 2], cell[:, 3] = address, one.count, stride, pages.room
        if one is column:
            cell[:, 1] += 1
            mine[:, 3] = address + one.count * (size * item)
            mine[:, 4], mine[:, 5] = stride, pages.room
    return table


def joined(parts: list[Linear]) -> Linear:
    """One product for several over the same rows; the matrices of the parts become views of its own."""
    weights = {"one.weight": torch.cat([p.weight.data for p in parts])}
    biases = [p.bias for p in parts if p.bias is not None]
    if biases:
        weights["one.bias"] = torch.cat([b.data for b in biases])
    out = Linear(weights, "one", bias=bool(biases))
    at = 0
    for part in parts:
        end = at + len(part.weight)
        part.weight = torch.nn.Parameter(out.weight.data[at:end], requires_grad=False)
        at = end
    return out


def bucket_of(count: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << (count - 1).bit_length()


def warps(size: int) -> int:
    """Warps of a program over so many numbers."""
    return max(1, min(8, size // 256))
