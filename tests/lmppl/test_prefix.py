"""The prefix index against brute force, and the grouping of shared beginnings."""

from __future__ import annotations

import numpy as np
import pytest

from lmppl.lm.prefix import PrefixIndex, common, group, key_of
from lmppl.types import Ids


def shared_length(a: Ids, b: Ids) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def words(rng: np.random.Generator, count: int) -> list[Ids]:
    """Short sequences over few ids, some of them above 2^16, so that prefixes collide."""
    ids = np.array([0, 1, 255, 256, 70_000])
    return [tuple(ids[rng.integers(0, 5, int(n))].tolist()) for n in rng.integers(1, 7, count)]


def test_common_counts_tokens_not_bytes() -> None:
    assert common(key_of((1, 2, 3)), key_of((1, 2, 4))) == 2
    assert common(key_of((256, 2)), key_of((256 + 1, 2))) == 0
    assert common(key_of((1, 2)), key_of((1, 2, 3))) == 2
    assert common(key_of(()), key_of((1,))) == 0


@pytest.mark.parametrize("seed", range(5))
def test_find_gives_the_longest_prefix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    index: PrefixIndex[str] = PrefixIndex()
    held: dict[int, tuple[str, list[Ids]]] = {}
    for turn in range(60):
        batch = words(rng, 4)
        number = index.add(f"owner {turn}", [key_of(w) for w in batch])
        held[number] = (f"owner {turn}", batch)
        if len(held) > 8:
            gone = int(rng.choice(list(held)))
            index.remove(gone)
            del held[gone]
        for question in words(rng, 5):
            best = max(shared_length(question, w) for _, batch in held.values() for w in batch)
            match = index.find(key_of(question))
            assert (0 if match is None else match.shared) == best
            if match is not None:
                batch = next(b for owner, b in held.values() if owner == match.owner)
                assert match.length == len(batch[match.row])
                assert shared_length(question, batch[match.row]) == best
    assert len(index) <= 4 * len(held)


def test_the_latest_of_equal_rows_is_found() -> None:
    index: PrefixIndex[str] = PrefixIndex()
    for owner in ("old", "new"):
        index.add(owner, [key_of((1, 2))])
    match = index.find(key_of((1, 2)))
    assert match is not None and match.owner == "new"


@pytest.mark.parametrize("seed", range(20))
def test_groups_cover_and_save(seed: int) -> None:
    """Every sequence is in one group, and what a group computes is common to its members."""
    rng = np.random.default_rng(seed)
    heads = words(rng, 3)
    seqs = sorted({heads[int(rng.integers(3))] * 3 + w for w in words(rng, 12)})
    starts = [int(rng.integers(0, len(s) + 1)) for s in seqs]
    least = 6
    groups = group([key_of(s) for s in seqs], starts, least)
    assert [u for g in groups for u in g.members] == list(range(len(seqs)))
    for g in groups:
        first = seqs[g.members[0]]
        assert all(seqs[u][: g.stop] == first[: g.stop] for u in g.members)
        if g.stop > g.start:
            alone = sum(g.stop - starts[u] for u in g.members)
            assert g.start == min(starts[u] for u in g.members)
            assert alone - (g.stop - g.start) >= least
        else:
            assert len(g.members) == 1 and g.start == starts[g.members[0]]
