"""Rows of a transformers model: drawing, pushing and forking beside its keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lmppl.errors import BadArgument, ContextOverflow
from lmppl.lm.base import Drawn, Rows, TokenLaw
from lmppl.lm.torch_cache import Block
from lmppl.lm.torch_draw import Logits, as_index
from lmppl.lm.torch_native import NativeBlock
from lmppl.lm.torch_prefill import Retained
from lmppl.random import Chance
from lmppl.types import Bools, Floats, Ints, Keys

if TYPE_CHECKING:
    from lmppl.lm.torch import TorchLM


class TorchRows(Rows):
    """B sequences with their keys, values and next-token scores on the device.

    `push` only notes the tokens; they go through the network when the next scores are asked for.
    So a row that ends costs no last pass, and rows dropped by `select` in between cost nothing.
    """

    def __init__(
        self,
        lm: TorchLM,
        block: Block | NativeBlock,
        logits: Logits | None,
        ids: NDArray[np.uint32],
        lens: Ints,
    ) -> None:
        """Rows whose tokens are ids[b, :lens[b]], all computed."""
        self.lm = lm
        self.block = block
        self.logits = logits
        self.ids = ids
        self.lens = lens
        self.pending = 0
        self.closed = False

    def __len__(self) -> int:
        """B."""
        return len(self.lens)

    def _scores(self) -> Logits:
        """Next-token scores after all pushed tokens."""
        if self.closed:
            raise BadArgument("these rows are closed", fix="open the contexts again")
        if self.logits is None or self.pending:
            width = self.pending
            starts = self.lens - width
            tokens = np.stack(
                [self.ids[np.arange(len(self)), starts + q] for q in range(width)], axis=1
            )
            self.logits = self.lm.step(self.block, tokens.astype(np.int64))
            self.pending = 0
        return self.logits

    def draw(
        self, keys: Keys, laws: Sequence[TokenLaw], mask: Bools | None, chance: Chance
    ) -> Drawn:
        """One token per row; see `Rows.draw`."""
        with self.lm.computing():
            return self._scores().draw(keys, laws, mask, chance)

    def log_mass(self, sets: Sequence[Sequence[int]], temperatures: Sequence[float]) -> Floats:
        """Log Σ over each set; see `Rows.log_mass`."""
        with self.lm.computing():
            return self._scores().log_mass(sets, temperatures)

    def log_probs(self) -> Floats:
        """Whole rows on the host, for tests."""
        with self.lm.computing():
            return self._scores().log_probs()

    def push(self, tokens: Ints) -> None:
        """Append one token to each row."""
        if len(tokens) != len(self):
            raise BadArgument(f"{len(tokens)} tokens for {len(self)} rows")
        if len(tokens) and not (0 <= int(tokens.min()) and int(tokens.max()) < self.lm.vocab_size):
            raise BadArgument(
                f"token ids must lie in 0 … {self.lm.vocab_size - 1}",
                value=str([int(tokens.min()), int(tokens.max())]),
                fix="drop dead rows (token -1) by select before push",
            )
        longest = int(self.lens.max(initial=0)) + 1
        if longest > self.lm.max_context:
            raise ContextOverflow(longest, self.lm.max_context)
        if longest > self.ids.shape[1]:
            room = max(32, self.ids.shape[1] // 2)
            self.ids = np.pad(self.ids, ((0, 0), (0, room)))
        self.ids[np.arange(len(self)), self.lens] = tokens
        self.lens = self.lens + 1
        self.pending += 1

    def select(self, rows: Ints) -> None:
        """Keep, repeat and reorder rows; rows that are dropped may serve later prefixes."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) == len(self) and bool((rows == np.arange(len(self))).all()):
            return
        with self.lm.computing():
            dropped = np.setdiff1d(np.arange(len(self)), rows)
            if len(dropped) and isinstance(self.block, Block):
                self._retain(self.block.select(dropped), dropped)
            self.block = self.block.select(rows, self.lm.spare)
            self.ids, self.lens = self.ids[rows], self.lens[rows]
            if self.pending:
                self.logits = None
            elif self.logits is not None:
                self.logits = self.logits.select(as_index(rows, self.lm.device))

    def close(self) -> None:
        """Give keys, values and scores to the prefix cache of the model."""
        if self.closed:
            return
        self.closed = True
        if len(self) and isinstance(self.block, Block):
            self._retain(self.block, np.arange(len(self)))
        self.logits = None

    def _retain(self, block: Block, rows: Ints) -> None:
        known = block.trunk.length + block.lens
        keys = [
            self.ids[r, :n].tobytes() for r, n in zip(rows.tolist(), known.tolist(), strict=True)
        ]
        logits = None
        if not self.pending and self.logits is not None:
            whole = len(rows) == len(self)
            logits = self.logits if whole else self.logits.select(as_index(rows, self.lm.device))
        self.lm.store.add(Retained(block, logits), keys)
