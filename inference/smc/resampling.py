"""Resampling schemes: from N weights to N ancestors, without bias.

Common signature: `scheme(weights, key, chance) -> ancestors`, with `weights` [N] summing to 1 and
`ancestors` [N] sorted. All satisfy E[number of offspring of i] = N W_i; an index of weight zero is
never chosen.

| scheme | offspring of i | take it when |
| --- | --- | --- |
| `systematic` (default) | ⌊N W_i⌋ or ⌈N W_i⌉ | you want little noise |
| `stratified` | within 2 of N W_i | you want theory too (Gerber, Chopin and Whiteley, 2019) |
| `residual` | at least ⌊N W_i⌋ | comparing with older work |
| `multinomial` | binomial | you need independent ancestors (conditional SMC) |

Reference: Douc and Cappé, Comparison of resampling schemes for particle filtering (2005).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lmppl.errors import BadArgument
from lmppl.random import Chance, fold, fold_array
from lmppl.types import Floats, Ints, Key, Keys

Scheme = Callable[[Floats, Key, Chance], Ints]


def _keys(key: Key, n: int) -> Keys:
    return fold_array(np.full(n, key, dtype=np.uint64), np.arange(n, dtype=np.uint64))


def _invert(weights: Floats, points: Floats) -> Ints:
    """Index i of the interval (C_{i-1}, C_i] that holds each point; never one of weight zero."""
    cumulative = np.cumsum(weights)
    last = int(np.flatnonzero(weights > 0)[-1])
    at = np.searchsorted(cumulative, points * cumulative[-1], side="left")
    return np.asarray(np.minimum(at, last), dtype=np.int64)


def multinomial(weights: Floats, key: Key, chance: Chance) -> Ints:
    """N independent ancestors, each i with probability W_i."""
    n = len(weights)
    edges = np.cumsum(weights)
    u = chance.offsets(_keys(key, n), [edges / edges[-1]] * n)
    return np.sort(_invert(weights, u))


def stratified(weights: Floats, key: Key, chance: Chance) -> Ints:
    """One point in each stratum ((i, i + 1) / N)."""
    n = len(weights)
    scaled = np.cumsum(weights) / np.sum(weights) * n
    u = chance.offsets(_keys(key, n), [scaled - i for i in range(n)])
    return _invert(weights, (np.arange(n) + u) / n)


def systematic(weights: Floats, key: Key, chance: Chance) -> Ints:
    """The same point in each stratum."""
    n = len(weights)
    scaled = np.cumsum(weights) / np.sum(weights) * n
    u = float(chance.offsets(_keys(key, 1), [np.mod(scaled, 1.0)])[0])
    return _invert(weights, (np.arange(n) + u) / n)


def residual(weights: Floats, key: Key, chance: Chance) -> Ints:
    """⌊N W_i⌋ copies of each, the rest multinomial from the remainders (Liu and Chen, 1998)."""
    n = len(weights)
    expected = weights / np.sum(weights) * n
    # a product such as 3 · (1/3) may fall short of its integer by one rounding
    copies = np.floor(expected + 1e-12 * n).astype(np.int64)
    rest = n - int(copies.sum())
    sure = np.repeat(np.arange(n), copies)
    if rest <= 0:
        return sure[:n]
    left = np.maximum(expected - copies, 0.0)
    edges = np.cumsum(left)
    u = chance.offsets(_keys(fold(key, "residual"), rest), [edges / edges[-1]] * rest)
    return np.sort(np.concatenate([sure, _invert(left, u)]))


SCHEMES: dict[str, Scheme] = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
}


def scheme(name: str | Scheme) -> Scheme:
    """The scheme of a name; a function of the common signature is taken as it is."""
    if callable(name):
        return name
    if not isinstance(name, str) or name not in SCHEMES:
        raise BadArgument(
            f"no resampling scheme is called {name!r}", fix=f"use one of {', '.join(SCHEMES)}"
        )
    return SCHEMES[name]
