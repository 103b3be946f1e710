"""The rows that closed batches leave behind, within a budget of bytes.

The batch that was closed last *rests*: as long as nobody asks for anything else, it is as it was. A
resampling inside strings closes a batch and opens some of the same rows again; they are then told by
their tokens, and go on where they stood (`take_up`). Any other question settles it: its rows are
entered in the index, where every context can find the longest prefix that was computed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from lmppl.lm.prefix import PrefixIndex
from lmppl.lm.torch.cache import pages_of
from lmppl.lm.torch.prefill import Retained
from lmppl.types import Ids

MOST = 128
"""Batches that are retained at most: batches that share their pages cost memory for their keys."""


R = TypeVar("R")


class RetainedRows(Generic[R]):
    """Least-recently-used retention of closed batches.

    The newest batch is always kept, whatever its size: its memory was in use a moment ago, and a
    resample is a close followed by an open of the same rows. Pages that several batches point to
    are counted once.
    """

    def __init__(self, budget: int) -> None:
        """Keep at most `budget` bytes (and the newest batch)."""
        self.budget = budget
        self._index: PrefixIndex[Retained] = PrefixIndex()
        self._resting: tuple[R, dict[Ids, int], Callable[[], None]] | None = None
        self._held: OrderedDict[int, Retained] = OrderedDict()
        self._bytes: dict[int, int] = {}
        """Scores of each batch."""

    @property
    def index(self) -> PrefixIndex[Retained]:
        """The rows by their tokens."""
        self._settle()
        return self._index

    def __len__(self) -> int:
        """Number of retained batches."""
        self._settle()
        return len(self._held)

    def rest(self, batch: R, contexts: Sequence[Ids], settle: Callable[[], None]) -> None:
        """A batch is closed; `settle` adds it. Row r holds the tokens of the r-th context."""
        self._settle()
        if self.budget > 0:
            self._resting = batch, {c: r for r, c in enumerate(contexts)}, settle

    def take_up(self, contexts: Sequence[Ids]) -> tuple[R, list[int]] | None:
        """The resting batch, and which of its rows these are, if it has them all."""
        if self._resting is None:
            return None
        batch, rows, _ = self._resting
        try:
            found = [rows[c] for c in contexts]
        except KeyError:
            return None
        self._resting = None
        return batch, found

    def _settle(self) -> None:
        if self._resting is not None:
            settle, self._resting = self._resting[2], None
            settle()

    @property
    def nbytes(self) -> int:
        """Memory held: keys, values and scores."""
        self._settle()
        pages = pages_of(r.block for r in self._held.values())
        return sum(self._bytes.values()) + sum(p.nbytes for p in pages)

    def add(self, retained: Retained, keys: Iterable[bytes]) -> None:
        """Retain a batch whose row r holds the tokens of the r-th key."""
        self._settle()
        if self.budget <= 0:
            return
        retained.number = self._index.add(retained, keys)
        self._held[retained.number] = retained
        scores = 0 if retained.logits is None else retained.logits.scores.nbytes
        self._bytes[retained.number] = scores
        while len(self._held) > 1 and (len(self._held) > MOST or self.nbytes > self.budget):
            self.remove(next(iter(self._held.values())))

    def touch(self, retained: Retained) -> None:
        """Mark as used just now."""
        if retained.number in self._held:
            self._held.move_to_end(retained.number)

    def remove(self, retained: Retained) -> None:
        """Forget a batch."""
        if self._held.pop(retained.number, None) is not None:
            del self._bytes[retained.number]
            self._index.remove(retained.number)

    def clear(self) -> None:
        """Forget all."""
        self._resting = None
        for retained in list(self._held.values()):
            self.remove(retained)
