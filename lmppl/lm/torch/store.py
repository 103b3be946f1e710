"""The rows that closed batches leave behind, within a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from lmppl.lm.prefix import PrefixIndex
from lmppl.lm.torch.cache import pages_of
from lmppl.lm.torch.prefill import Retained

MOST = 128
"""Batches that are retained at most: batches that share their pages cost memory for their keys."""


class RetainedRows:
    """Least-recently-used retention of closed batches.

    The newest batch is always kept, whatever its size: its memory was in use a moment ago, and a
    resample is a close followed by an open of the same rows. Pages that several batches point to
    are counted once.
    """

    def __init__(self, budget: int) -> None:
        """Keep at most `budget` bytes (and the newest batch)."""
        self.budget = budget
        self.index: PrefixIndex[Retained] = PrefixIndex()
        self._held: OrderedDict[int, Retained] = OrderedDict()
        self._bytes: dict[int, int] = {}
        """Scores of each batch."""

    def __len__(self) -> int:
        """Number of retained batches."""
        return len(self._held)

    @property
    def nbytes(self) -> int:
        """Memory held: keys, values and scores."""
        pages = pages_of(r.block for r in self._held.values())
        return sum(self._bytes.values()) + sum(p.nbytes for p in pages)

    def add(self, retained: Retained, keys: Iterable[bytes]) -> None:
        """Retain a batch whose row r holds the tokens of the r-th key."""
        if self.budget <= 0:
            return
        retained.number = self.index.add(retained, keys)
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
            self.index.remove(retained.number)

    def clear(self) -> None:
        """Forget all."""
        for retained in list(self._held.values()):
            self.remove(retained)
