"""Hidden Markov surrogates by expectation maximisation, in JAX.

The expected numbers of starts, steps and emissions of the strings, given all their symbols, are found
by a forward and a backward pass, and normalised. The likelihood of the strings rises with each step,

    A(z, z') ∝ Σ_t P(z_t = z, z_{t+1} = z' | x)        B(z, v) ∝ Σ_{t: x_t = v} P(z_t = z | x).

Reference: Baum, Petrie, Soules and Weiss (1970).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmppl.inference.bffg.strings.hmm import HMM, Clusters, symbols
from lmppl.types import Floats, Ints

ROOM = 1 << 25
"""Numbers of a forward pass that are kept at once: more strings are counted in parts."""


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

    >>> hmm = fit_hmm(np.array([[0, 1, 0, 1], [1, 0, 1, 0]]), 2, 2, 50)
    >>> hmm.A.round(2).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    x, K, w = symbols(strings, tokens, weights, clusters)
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


def _rows(a: Any) -> Floats:
    """Normalised."""
    return np.asarray(a / a.sum(-1, keepdims=True))
