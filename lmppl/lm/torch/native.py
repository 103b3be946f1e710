"""The slow, correct path: a transformers model with its own attention and its own cache.

For architectures that the pages of `torch/cache` do not describe: recurrent and hybrid states,
attention sinks, position biases, chunked attention. Rows of equal length form a group, so nothing
is padded and no mask is needed; each group has the model's own cache, forked by `reorder_cache`
(the one fork that every kind of cache implements rightly) and never cropped. Models whose cache
cannot be trusted recompute every row from its tokens.

Prefixes are not retained between batches here; equal contexts of one batch are computed once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmppl.lm.torch.transfer import as_index
from lmppl.types import Ids, Ints

Call = Callable[[Tensor, Any, bool], tuple[Tensor, Any]]
"""call(ids [b, Q], cache, last) -> (scores of the last or of all positions, the cache)."""


@dataclass(eq=False)
class _Part:
    """Rows of one length and their cache."""

    rows: Ints
    """Row numbers in the batch."""
    cache: Any
    tokens: Ints
    """All tokens of the rows [b, length]: what a recomputation needs."""


class NativeBlock:
    """The state of a batch as groups of rows of equal length."""

    def __init__(self, call: Call, caching: bool, parts: list[_Part], device: torch.device) -> None:
        """Hold the groups; `start` makes them."""
        self.call = call
        self.caching = caching
        self.parts = parts
        self.device = device

    @classmethod
    def start(
        cls, call: Call, caching: bool, contexts: Sequence[Ids], device: torch.device
    ) -> tuple[NativeBlock, Tensor]:
        """Compute these contexts; their next-token scores [B, V] come along."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for b, context in enumerate(contexts):
            by_length[len(context)].append(b)
        parts = [
            _Part(np.array(rows, dtype=np.int64), None, np.array([contexts[b] for b in rows]))
            for rows in by_length.values()
        ]
        block = cls(call, caching, parts, device)
        return block, block._scatter([block._compute(part, part.tokens) for part in parts])

    def step(self, tokens: Ints) -> Tensor:
        """Append tokens [B, Q]; next-token scores [B, V] of the last."""
        scores = []
        for part in self.parts:
            for column in tokens[part.rows].T:
                part.tokens = np.concatenate([part.tokens, column[:, None]], axis=1)
                out = self._compute(part, part.tokens[:, -1:] if self.caching else part.tokens)
            scores.append(out)
        return self._scatter(scores)

    def select(self, rows: Ints) -> NativeBlock:
        """These rows, in place: the old batch is used up."""
        kept = []
        for part in self.parts:
            where = {int(r): i for i, r in enumerate(part.rows)}
            new = [n for n, r in enumerate(rows.tolist()) if r in where]
            if not new:
                continue
            index = np.array([where[int(rows[n])] for n in new], dtype=np.int64)
            if part.cache is not None:
                part.cache.reorder_cache(as_index(index, self.device))
            kept.append(_Part(np.array(new, dtype=np.int64), part.cache, part.tokens[index]))
        return NativeBlock(self.call, self.caching, kept, self.device)

    def join(self, other: NativeBlock, first: int) -> NativeBlock:
        """These rows and those of another batch, which are numbered from `first` on."""
        moved = [_Part(p.rows + first, p.cache, p.tokens) for p in other.parts]
        return NativeBlock(self.call, self.caching, self.parts + moved, self.device)

    def _compute(self, part: _Part, tokens: Ints) -> Tensor:
        ids = as_index(tokens, self.device)
        scores, cache = self.call(ids, part.cache if self.caching else None, True)
        part.cache = cache if self.caching else None
        return scores

    def _scatter(self, scores: Sequence[Tensor]) -> Tensor:
        order = np.argsort(np.concatenate([part.rows for part in self.parts]))
        return torch.cat(list(scores)).index_select(0, as_index(order, self.device))
