"""n-grams as hidden Markov surrogates: the hidden state is what was written last.

    p(v | h) = (c(h, v) + α p(v | h')) / (c(h) + α)

c counts, and h' is the history h without its oldest symbol. The state is known from the string, so
that the filter φ of an n-gram has one entry that is not zero.

Reference: MacKay and Peto, A hierarchical Dirichlet language model (1995).
"""

from __future__ import annotations

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.bffg.strings.hmm import HMM, Clusters, symbols
from lmppl.types import Floats, Ints

MOST = 4096
"""States of an n-gram."""


def fit_ngram(
    strings: Ints,
    order: int,
    tokens: int,
    smoothing: float = 1.0,
    *,
    weights: Floats | None = None,
    clusters: Clusters | None = None,
) -> HMM:
    """An n-gram as a hidden Markov model: its state is what was written last.

    Args:
        strings: token ids [M, T], padded by an end token.
        order: n ≥ 2.
        tokens: V.
        smoothing: α.
        weights: of the strings [M].
        clusters: count clusters of tokens.

    >>> fit_ngram(np.array([[0, 1, 0, 1, 1]]), 2, 2).A.round(2).tolist()
    [[0.14, 0.86], [0.47, 0.53]]
    """
    x, K, w = symbols(strings, tokens, weights, clusters)
    H = sum(K**k for k in range(1, order))
    if order < 2 or not smoothing > 0 or H > MOST:
        raise BadArgument(
            f"an n-gram of order {order} over {K} symbols would have {H:,} states",
            why=f"order ≥ 2, smoothing > 0 and at most {MOST:,} states are needed",
            fix="give fewer clusters, or a smaller order",
        )
    # laws after the last k symbols anywhere [K^k, K], then those of a text's first symbols
    after = [_smoothed(_counted(x, w, K, 0, x.shape[1]), np.full((1, K), 1.0 / K), smoothing)]
    for k in range(1, order):
        after.append(_smoothed(_counted(x, w, K, k, x.shape[1]), after[-1], smoothing))
    laws = [_smoothed(_counted(x, w, K, k, k + 1), after[k], smoothing) for k in range(order - 1)]
    A, B, first = np.zeros((H, H)), np.zeros((H, K)), 0
    for k in range(1, order):
        law, last = (laws[k], False) if k < order - 1 else (after[k], True)
        history = np.arange(K**k)
        to = (
            (history[:, None] * K + np.arange(K)) % K**k
            if last
            else history[:, None] * K + np.arange(K)
        )
        A[first + history[:, None], (first if last else first + K**k) + to] = law
        B[first + history, history % K] = 1.0
        first += K**k
    start = np.zeros(H)
    start[:K] = laws[0][0]
    return HMM(start, A, B, clusters)


def _counted(x: Ints, w: Floats, K: int, k: int, end: int) -> Floats:
    """How often each symbol follows each k symbols, at positions from k to `end` [K^k, K]."""
    count = np.zeros((K**k, K))
    for t in range(k, min(end, x.shape[1])):
        history = np.zeros(len(x), dtype=np.int64)
        for v in x[:, t - k : t].T:
            history = history * K + v
        np.add.at(count, (history, x[:, t]), w)
    return count


def _smoothed(count: Floats, shorter: Floats, smoothing: float) -> Floats:
    """(c + α p(· | shorter)) / (Σ c + α): the shorter history of h drops its oldest symbol."""
    prior = np.tile(shorter, (len(count) // len(shorter), 1))
    return np.asarray((count + smoothing * prior) / (count.sum(1, keepdims=True) + smoothing))
