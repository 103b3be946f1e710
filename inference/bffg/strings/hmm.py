"""Surrogates of a language model: hidden Markov models of token strings, fitted in JAX.

    P(x_1 … x_T) = Σ_z γ(z_1) B(z_1, x_1) Π_t A(z_t, z_{t+1}) B(z_{t+1}, x_{t+1})

A large vocabulary is emitted in two steps, B(z, v) = B(z, k) e(v | k), k the *cluster* of v: then
tables and costs have the size of the clusters, and tokens that were never written have their share.

* `fit_hmm`: expectation maximisation (Baum and Welch), the surrogate nearest to what was written;
* `fit_ngram`: z is the last n - 1 tokens (or clusters), with counts smoothed towards the shorter
  history, (c(h, v) + α p(v | h')) / (c(h) + α) (MacKay and Peto, 1995).

Neither need be good: a surrogate decides how long sampling takes, never what it converges to.

Reference: Baum, Petrie, Soules and Weiss (1970); distilled from language models by Zhang, Dang, Peng
and Van den Broeck, Tractable control for autoregressive language generation (2023).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmppl.errors import BadArgument
from lmppl.types import Floats, Ints

ROOM = 1 << 25
"""Numbers of a forward pass that are kept at once: more strings are counted in parts."""
MOST = 4096
"""States of an n-gram."""


class Clusters(NamedTuple):
    """A partition of the vocabulary."""

    of: Ints
    """The cluster of each token [V]."""
    share: Floats
    """e(v | k): adds up to one in each cluster [V]."""


class HMM(NamedTuple):
    """A hidden Markov model of token strings."""

    start: Floats
    """γ [H]."""
    A: Floats
    """A[z, z'] [H, H]."""
    B: Floats
    """B[z, v] [H, V]; with clusters B[z, k] [H, K]."""
    clusters: Clusters | None = None

    @property
    def tokens(self) -> int:
        """V."""
        return self.B.shape[1] if self.clusters is None else len(self.clusters.of)

    def emission(self, tokens: Ints) -> Floats:
        """B of some tokens, up to a factor per token [H, n]."""
        return self.B[:, tokens if self.clusters is None else self.clusters.of[tokens]]


def fit_hmm(
    strings: Ints,
    states: int,
    tokens: int,
    steps: int = 20,
    seed: int = 0,
    pseudocount: float = 1e-3,
    *,
    weights: Floats | None = None,
    clusters: Clusters | None = None,
) -> HMM:
    """Distil a model: expectation maximisation on strings that it wrote.

    Args:
        strings: token ids [M, T], shorter strings padded by an end token.
        states: H.
        tokens: V.
        steps: of expectation maximisation.
        seed: of where it starts.
        pseudocount: keeps every token possible in every state, so that g > 0 wherever it must be.
        weights: of the strings [M]; one each, when left out.
        clusters: emit clusters of tokens.
    """
    x, K, w = _checked(strings, tokens, weights, clusters)
    rng = np.random.default_rng(seed)
    seen = np.bincount(x.ravel(), np.repeat(w, x.shape[1]), minlength=K)
    start = np.full(states, 1.0 / states)
    A = rng.dirichlet(np.ones(states), states)
    B = 0.5 * rng.dirichlet(np.ones(K), states) + 0.5 * seen / seen.sum()
    size = max(1, ROOM // (x.shape[1] * states))
    parts = [(jnp.asarray(x[i : i + size]), w[i : i + size]) for i in range(0, len(x), size)]
    for _ in range(steps):
        each = [_counts(start, A, B, *part) for part in parts]
        first, pair, emit = (
            np.sum([np.asarray(c) for c in n], axis=0, dtype=np.float64)
            for n in zip(*each, strict=True)
        )
        start = _rows(first + pseudocount)
        A = _rows(A * pair + pseudocount)
        B = _rows(emit.T + pseudocount)
    return HMM(start, A, B, clusters)


@jax.jit
def _counts(start: Any, A: Any, B: Any, x: Any, w: Any) -> tuple[Any, Any, Any]:
    """Expected numbers of starts [H], of steps divided by A [H, H], of emissions [K, H]."""
    like = jnp.swapaxes(B.T[x], 0, 1)  # [T, M, H]

    def forward(f: Any, like: Any) -> tuple[Any, Any]:
        f = f * like
        scale = f.sum(1, keepdims=True)
        f = f / scale
        return f @ A, (f, scale)

    def backward(b: Any, at: Any) -> tuple[Any, Any]:
        f, like, scale = at
        before = like * b / scale
        return before @ A.T, (f * b, before)

    _, (f, scale) = jax.lax.scan(forward, jnp.broadcast_to(start, like.shape[1:]), like)
    ones = jnp.ones_like(like[0]) * w[:, None]
    _, (gamma, before) = jax.lax.scan(backward, ones, (f, like, scale), reverse=True)
    pair = jnp.einsum("tmh,tmg->hg", f[:-1], before[1:])
    emit = jnp.zeros(B.T.shape).at[x.T].add(gamma)
    return gamma[0].sum(0), pair, emit


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
    """
    x, K, w = _checked(strings, tokens, weights, clusters)
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


def _rows(a: Any) -> Floats:
    """Normalised."""
    return np.asarray(a / a.sum(-1, keepdims=True))


def _checked(
    strings: Ints, tokens: int, weights: Floats | None, clusters: Clusters | None
) -> tuple[Ints, int, Floats]:
    """Symbols [M, T], how many there are, and the weight of each string."""
    x = np.asarray(strings, dtype=np.int64)
    if x.ndim != 2 or not x.size or x.min() < 0 or x.max() >= tokens:
        raise BadArgument(f"strings must be an array of tokens below {tokens}, of equal length")
    w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (len(x),) or not (w >= 0).all() or not w.any():
        raise BadArgument(f"weights must be {len(x)} non-negative numbers, not all zero")
    if clusters is None:
        return x, tokens, w
    if len(clusters.of) != tokens:
        raise BadArgument(f"clusters of {len(clusters.of)} tokens, and the vocabulary has {tokens}")
    return clusters.of[x], int(clusters.of.max()) + 1, w
