"""Rows of a transformers model: drawing, pushing and forking beside its keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lmppl.errors import BadArgument, ContextOverflow
from lmppl.lm.base import Drawn, Rows, TokenLaw
from lmppl.lm.token_weights import LawWeights
from lmppl.lm.torch.cache import Block
from lmppl.lm.torch.draw import Logits
from lmppl.lm.torch.native import NativeBlock
from lmppl.lm.torch.prefill import Retained
from lmppl.lm.torch.tidy import tidy
from lmppl.lm.torch.transfer import as_index
from lmppl.lm.torch.weights import law_weights
from lmppl.random import Chance
from lmppl.types import Bools, Floats, Ids, Ints, Keys

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
        at: Ints,
        logits: Logits | None,
        ids: NDArray[np.uint32],
        lens: Ints,
        contexts: Sequence[Ids],
    ) -> None:
        """Rows whose tokens are ids[b, :lens[b]], all computed.

        Row b of the caller is row at[b] of the block: there, rows stand together by lineage.
        """
        self.lm = lm
        self.block = block
        self.at = at
        self.ids = ids
        self.lens = lens
        self.opened = list(contexts)
        """The tokens of each row when it was opened."""
        self.pending = 0
        self.closed = False
        self._inner = logits
        """Scores in the order of the block."""
        self._outer: Logits | None = None
        """Scores in the order of the caller, made when they are asked for."""

    def __len__(self) -> int:
        """B."""
        return len(self.lens)

    def _scores(self) -> Logits:
        """Next-token scores after all pushed tokens, in the caller's order."""
        if self.closed:
            raise BadArgument("these rows are closed", fix="open the contexts again")
        if self._inner is None or self.pending:
            starts = self.lens - self.pending
            rows = np.arange(len(self))
            columns = [self.ids[rows, starts + q] for q in range(self.pending)]
            tokens = np.empty((len(self), self.pending), dtype=np.int64)
            tokens[self.at] = np.stack(columns, axis=1)
            self._inner, self._outer = self.lm.step(self.block, tokens), None
            self.pending = 0
        if self._outer is None:
            self._outer = self._inner
            if not is_identity(self.at, len(self)):
                self._outer = self._inner.select(as_index(self.at, self.lm.device))
        return self._outer

    def draw(
        self, keys: Keys, laws: Sequence[TokenLaw], mask: Bools | None, chance: Chance
    ) -> Drawn:
        """One token per row; see `Rows.draw`."""
        with self.lm.computing():
            return self._scores().draw(keys, laws, mask, chance)

    def weights(self, laws: Sequence[TokenLaw]) -> LawWeights:
        """Rows of log-weights on the device; see `Rows.weights`."""
        with self.lm.computing():
            return law_weights(self._scores(), laws)

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
        """Keep, repeat and reorder rows; rows that leave may serve later prefixes."""
        rows = np.asarray(rows, dtype=np.int64)
        if is_identity(rows, len(self)):
            return
        with self.lm.computing():
            kept = self.at[rows]
            order = np.arange(len(rows))
            if isinstance(self.block, Block):
                dropped = np.setdiff1d(np.arange(len(self)), kept)
                leaving = len(kept) + len(dropped) == len(self)  # not dying in a resample
                if leaving and len(dropped):
                    self._retain(self.block.take(dropped), dropped)
                order = np.argsort(kept, kind="stable")
            inner = kept[order]
            if isinstance(self.block, Block):
                self.block = self.block.take(inner, moving=True)
                tidy(self.block)
            else:
                self.block = self.block.select(inner)
            self.ids, self.lens = self.ids[rows], self.lens[rows]
            self.opened = [self.opened[b] for b in rows.tolist()]
            self.at = np.argsort(order)
            self._outer = None
            if self.pending:
                self._inner = None
            elif self._inner is not None:
                self._inner = self._inner.select(as_index(inner, self.lm.device))

    def join(self, contexts: Sequence[Ids]) -> None:
        """Add rows at these contexts, after those that are here; see `Rows.join`."""
        if not contexts:
            return
        with self.lm.computing():
            self._scores()
            inner = self._inner
            more = self.lm.open(contexts)
            if inner is None or more._inner is None:
                raise BadArgument("these rows have no scores")
            if isinstance(self.block, Block) and isinstance(more.block, Block):
                self.block = Block.stack([self.block, more.block])
                tidy(self.block)
            elif isinstance(self.block, NativeBlock) and isinstance(more.block, NativeBlock):
                self.block = self.block.join(more.block, len(self))
            self._inner, self._outer = Logits.stack([inner, more._inner]), None
            self.at = np.concatenate([self.at, more.at + len(self)])
            wide = max(self.ids.shape[1], more.ids.shape[1])
            self.ids = np.concatenate(
                [np.pad(m, ((0, 0), (0, wide - m.shape[1]))) for m in (self.ids, more.ids)]
            )
            self.lens = np.concatenate([self.lens, more.lens])
            self.opened += more.opened

    def close(self) -> None:
        """Give keys, values and scores to the prefix cache of the model."""
        if self.closed:
            return
        self.closed = True
        if isinstance(self.block, Block) and len(self):
            self.lm.store.rest(self, self._contexts(), self._settle)

    def take_up(self, rows: Sequence[int], contexts: Sequence[Ids]) -> TorchRows:
        """These rows of a batch that rests, which are at these contexts, as a batch that runs."""
        new = TorchRows(self.lm, self.block, self.at, self._inner, self.ids, self.lens, self.opened)
        new._outer, new.pending = self._outer, self.pending
        self._inner = self._outer = None
        index, where = np.unique(rows, return_inverse=True)
        if new.pending and len(index) < len(rows) and not self.lm.network.padded:
            new.select(index)
            new._scores()  # survivors with many copies are computed once
            new.select(where)
        else:
            new.select(np.array(rows, dtype=np.int64))
        new.opened = list(contexts)
        return new

    def _contexts(self) -> list[Ids]:
        """The tokens of each row."""
        new = [
            self.ids[b, len(c) : n].tolist()
            for b, (c, n) in enumerate(zip(self.opened, self.lens.tolist(), strict=True))
        ]
        return [(*c, *more) if more else c for c, more in zip(self.opened, new, strict=True)]

    def _settle(self) -> None:
        """Give keys, values and scores away: this batch is not taken up."""
        if isinstance(self.block, Block):
            self.block.release()
            self._retain(self.block, np.arange(len(self)))
        self._inner = self._outer = None

    def _retain(self, block: Block, inner: Ints) -> None:
        """Retain a block whose rows are these rows of ours (in the order of the block)."""
        outer = np.argsort(self.at)[inner]
        known = block.lens
        keys = [
            self.ids[b, :n].tobytes() for b, n in zip(outer.tolist(), known.tolist(), strict=True)
        ]
        logits = None
        if not self.pending and self._inner is not None:
            logits = self._inner
            if len(inner) < len(self):
                logits = logits.select(as_index(inner, self.lm.device))
        self.lm.store.add(Retained(block, logits), keys)


def is_identity(index: Ints, count: int) -> bool:
    """Whether an index selects all `count` rows in their order."""
    return len(index) == count and bool((index == np.arange(count)).all())
