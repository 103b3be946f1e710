"""Keyed randomness: a draw is a function of what is drawn, never of when or beside what.

A key is a 64-bit integer. `fold(key, *data)` derives a child key from integers and strings; the
i-th number of a key is `mix(key + (i + 1) γ)`, the SplitMix64 sequence (Steele, Lea and Flood,
2014) read by counter. So the same (seed, question, lineage, site, step) gives the same number in
any batch, in any order, on any device.

Chance enters in one place, the `Chance` protocol, with two questions:

* `categorical(keys, log_weights)`: one index per row, P(v) ∝ exp(log_weights[v]);
* `offsets(keys, breakpoints)`: one uniform number per key, for resampling.

Production answers by **keyed Gumbel-max**: index = argmax_v (log w_v + G(key, v)). A mask only sets
entries to `-inf` and shifts nobody's noise; nearly equal logits give the same index except near
ties. Wide rows (more than `WIDE` entries) use two levels of Gumbel-max, first over blocks of
`BLOCK` ids by their log-mass and then inside the block: the same law with `V / BLOCK + BLOCK`
numbers in place of `V`. Tests answer by enumeration (`lmppl.testing.Enumerator`).

Reference: Gumbel (1954); Maddison, Tarlow and Minka, A* sampling (2014).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from lmppl.types import Floats, Ints, Key, Keys

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
MUL1 = 0xBF58476D1CE4E5B9
MUL2 = 0x94D049BB133111EB
SHORT = 256
"""Texts up to this length have their hashes cached."""
FEW = 16
"""Single draws among so few are quicker in plain Python."""
WIDE = 1024
BLOCK = 256
BLOCK_STREAM = 0x5851F42D4C957F2D
"""Folded into a key to get the stream of block noise, so that it never meets the token stream."""


def mix(x: int) -> Key:
    """The SplitMix64 finaliser: a bijection of 64-bit integers that spreads every bit."""
    x &= MASK
    x = ((x ^ (x >> 30)) * MUL1) & MASK
    x = ((x ^ (x >> 27)) * MUL2) & MASK
    return x ^ (x >> 31)


def hash_text(text: str) -> int:
    """A 64-bit hash of a string that is the same in every process (blake2b)."""
    return _hash_short(text) if len(text) <= SHORT else _hash(text)


def _hash(text: str) -> int:
    raw = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


_hash_short = lru_cache(maxsize=65536)(_hash)


def fold(key: Key, *data: int | str) -> Key:
    """The child key of `key` for `data`.

    >>> fold(1, "site", 0) == fold(1, "site", 0), fold(1, "site", 0) == fold(1, "site", 1)
    (True, False)
    """
    for item in data:
        word = hash_text(item) if isinstance(item, str) else item
        # mix(mix(key + GOLDEN) ^ (word * MUL2 + GOLDEN)), written out: this runs once per site
        x = (key + GOLDEN) & MASK
        x = ((x ^ (x >> 30)) * MUL1) & MASK
        x = ((x ^ (x >> 27)) * MUL2) & MASK
        x = (x ^ (x >> 31) ^ (word * MUL2 + GOLDEN)) & MASK
        x = ((x ^ (x >> 30)) * MUL1) & MASK
        x = ((x ^ (x >> 27)) * MUL2) & MASK
        key = x ^ (x >> 31)
    return key


def mix_array(x: Keys) -> Keys:
    """`mix` of each element of a uint64 array (arithmetic wraps by design)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MUL1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MUL2)
    return x ^ (x >> np.uint64(31))


def _mix_in_place(x: Keys) -> None:
    """`mix_array` into its argument: for wide arrays, whose copies cost more than the mixing."""
    shifted = np.empty_like(x)
    np.right_shift(x, np.uint64(30), out=shifted)
    x ^= shifted
    x *= np.uint64(MUL1)
    np.right_shift(x, np.uint64(27), out=shifted)
    x ^= shifted
    x *= np.uint64(MUL2)
    np.right_shift(x, np.uint64(31), out=shifted)
    x ^= shifted


def fold_array(keys: Keys, word: int | Keys) -> Keys:
    """`fold(key, word)` of each key, for one integer or one integer per key."""
    if isinstance(word, int):
        salt: Keys | np.uint64 = np.uint64((word * MUL2 + GOLDEN) & MASK)
    else:
        salt = word * np.uint64(MUL2) + np.uint64(GOLDEN)
    return mix_array(mix_array(keys + np.uint64(GOLDEN)) ^ salt)


def uniforms(keys: Keys, counters: Keys) -> Floats:
    """U in the open interval (0, 1), 52 bits, for each (key, counter) after broadcasting."""
    bits = np.asarray(keys + (counters + np.uint64(1)) * np.uint64(GOLDEN))
    _mix_in_place(bits)
    bits >>= np.uint64(12)
    u = bits.astype(np.float64)
    u += 0.5
    u *= 2.0**-52
    return u


def uniform(key: Key, counter: int = 0) -> float:
    """One u in (0, 1): the scalar form of `uniforms`."""
    return ((mix(key + (counter + 1) * GOLDEN) >> 12) + 0.5) * 2.0**-52


def gumbels(keys: Keys, counters: Keys) -> Floats:
    """Standard Gumbel noise G = -log(-log u), finite by construction."""
    g = uniforms(keys, counters)
    np.log(g, out=g)
    np.negative(g, out=g)
    np.log(g, out=g)
    np.negative(g, out=g)
    return g


class Chance(Protocol):
    """The only source of randomness; an engine hands it to everything that draws."""

    def categorical(self, keys: Keys, log_weights: Floats) -> Ints:
        """One index per row of `log_weights` [B, V]; every row has a positive weight."""
        ...

    def offsets(self, keys: Keys, breakpoints: Sequence[Floats] | None = None) -> Floats:
        """A uniform number in (0, 1) for each key [K].

        `breakpoints[k]` promises that the caller's result is constant between consecutive ones,
        so that a test can visit each interval once; None means a continuous draw.
        """
        ...


class GumbelMax:
    """Keyed Gumbel-max: the chance of production runs."""

    def categorical(self, keys: Keys, log_weights: Floats) -> Ints:
        """argmax_v (log w_v + G(key, v)), ties to the smaller id; two levels above `WIDE`."""
        width = log_weights.shape[1]
        if width <= WIDE:
            noisy = gumbels(keys[:, None], np.arange(width, dtype=np.uint64))
            noisy += log_weights
            return np.asarray(noisy.argmax(axis=1), dtype=np.int64)
        rows, blocks = len(log_weights), -(-width // BLOCK)
        padded = np.full((rows, blocks * BLOCK), -np.inf)
        padded[:, :width] = log_weights
        cube = padded.reshape(rows, blocks, BLOCK)
        top = cube.max(axis=2)
        safe = np.where(np.isfinite(top), top, 0.0)
        with np.errstate(divide="ignore"):
            mass = np.log(np.exp(cube - safe[:, :, None]).sum(axis=2)) + safe
        outer = fold_array(keys, BLOCK_STREAM)
        block = (mass + gumbels(outer[:, None], np.arange(blocks, dtype=np.uint64))).argmax(axis=1)
        inside = cube[np.arange(rows), block]
        ids = block[:, None] * BLOCK + np.arange(BLOCK)
        pick = (inside + gumbels(keys[:, None], ids.astype(np.uint64))).argmax(axis=1)
        return np.asarray(block * BLOCK + pick, dtype=np.int64)

    def offsets(self, keys: Keys, breakpoints: Sequence[Floats] | None = None) -> Floats:
        """u of each key."""
        return uniforms(keys, np.zeros(1, dtype=np.uint64))


class Argmax:
    """No chance at all: the heaviest index, and the middle of the unit interval (greedy decoding)."""

    def categorical(self, keys: Keys, log_weights: Floats) -> Ints:
        """argmax_v log w_v, ties to the smaller id."""
        return np.asarray(log_weights.argmax(axis=1), dtype=np.int64)

    def offsets(self, keys: Keys, breakpoints: Sequence[Floats] | None = None) -> Floats:
        """0.5."""
        return np.full(len(keys), 0.5)


def draw(chance: Chance, key: Key, log_weights: Floats | Sequence[float]) -> int:
    """One categorical draw: index v with P(v) ∝ exp(log_weights[v])."""
    if type(chance) is GumbelMax and len(log_weights) <= FEW:
        best, top = 0, -math.inf
        for v, lw in enumerate(log_weights):
            noisy = lw - math.log(-math.log(uniform(key, v)))
            if noisy > top:
                best, top = v, noisy
        return best
    log_weights = np.asarray(log_weights, dtype=np.float64)
    return int(chance.categorical(np.array([key], dtype=np.uint64), log_weights[None, :])[0])
