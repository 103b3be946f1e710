"""Which earlier computation serves a new context: longest common prefixes of token sequences.

Token sequences are compared as big-endian bytes, whose order is the order of the tokens. In a
sorted list the entry that shares the longest prefix with a key is a neighbour of the place where
the key would stand, so one bisection finds it among all retained rows. Keys are whole prefixes,
never suffixes: equal endings of different prompts have nothing in common.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from lmppl.types import Ids

WORD = 4
"""Bytes per token id in a key."""

T = TypeVar("T")


def key_of(ids: Sequence[int]) -> bytes:
    """The token ids as bytes that sort like them."""
    return np.asarray(ids, dtype=">u4").tobytes()


def common(a: bytes, b: bytes) -> int:
    """Length in tokens of the longest common prefix of two keys."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n // WORD
    x = np.frombuffer(a, dtype=">u4", count=n // WORD)
    y = np.frombuffer(b, dtype=">u4", count=n // WORD)
    return int((x != y).argmax())


class Match(NamedTuple, Generic[T]):
    """An entry and how many tokens it shares with the question."""

    owner: T
    row: int
    shared: int
    length: int
    """Tokens of the entry itself."""


class PrefixIndex(Generic[T]):
    """Sorted keys of rows, each with its owner (a retained batch) and row number."""

    def __init__(self) -> None:
        """Start empty."""
        self._keys: list[tuple[bytes, int, int]] = []
        self._owners: dict[int, T] = {}
        self._next = 0

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._keys)

    def add(self, owner: T, keys: Iterable[bytes]) -> int:
        """Enter the rows of an owner; returns the number to remove it by."""
        number = self._next
        self._next += 1
        self._owners[number] = owner
        seen: set[bytes] = set()
        for row, key in enumerate(keys):
            if key not in seen:
                seen.add(key)
                bisect.insort(self._keys, (key, number, row))
        return number

    def remove(self, number: int) -> None:
        """Forget an owner and its rows."""
        del self._owners[number]
        self._keys = [entry for entry in self._keys if entry[1] != number]

    def find(self, key: bytes) -> Match[T] | None:
        """The entry with the longest common prefix (the latest among equals), or None."""
        at = bisect.bisect_left(self._keys, (key, 1 << 62, 0))
        best: Match[T] | None = None
        for entry in self._keys[max(0, at - 1) : at + 1]:
            shared = common(key, entry[0])
            if shared and (best is None or shared > best.shared):
                owner = self._owners[entry[1]]
                best = Match(owner, entry[2], shared, len(entry[0]) // WORD)
        return best


class Group(NamedTuple):
    """Neighbouring sequences whose common beginning is worth computing once."""

    members: tuple[int, ...]
    start: int
    stop: int
    """Positions start … stop - 1 are computed once for all members."""


def group(keys: Sequence[bytes], starts: Sequence[int], least: int) -> list[Group]:
    """Cut sorted keys into groups, each sharing at least `least` token computations.

    `starts[u]` is how far sequence u is known already. A group that saves nothing has one member
    and start = stop = its own start.
    """
    out: list[Group] = []
    lo = 0
    while lo < len(keys):
        hi, stop, saved, start = lo + 1, starts[lo], 0, starts[lo]
        shared, total = len(keys[lo]) // WORD, starts[lo]
        while hi < len(keys):
            shared = min(shared, common(keys[hi - 1], keys[hi]))
            total += starts[hi]
            base = min(start, starts[hi])
            gain = (hi + 1 - lo) * shared - total - (shared - base)
            if gain <= 0 or gain < saved:
                break
            hi, stop, saved, start = hi + 1, shared, gain, base
        if saved < least:
            hi, start, stop = lo + 1, starts[lo], starts[lo]
        out.append(Group(tuple(range(lo, hi)), start, stop))
        lo = hi
    return out


def as_key_matrix(contexts: Sequence[Ids], spare: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids as a padded big-endian matrix [B, longest + spare], and the lengths [B]."""
    lens = np.array([len(c) for c in contexts], dtype=np.int64)
    ids = np.zeros((len(contexts), int(lens.max(initial=0)) + spare), dtype=">u4")
    for b, context in enumerate(contexts):
        ids[b, : len(context)] = context
    return ids, lens
