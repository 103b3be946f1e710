"""Surrogates of a language model: hidden Markov models of token strings.

    P(x_1 … x_T) = Σ_z γ(z_1) B(z_1, x_1) Π_t A(z_t, z_{t+1}) B(z_{t+1}, x_{t+1})

A large vocabulary is emitted in two steps, B(z, v) = B(z, k) e(v | k), k the *cluster* of v: then
tables and costs have the size of the clusters, and tokens that were never written have their share.

`fit_hmm` (baum_welch.py) and `fit_ngram` (ngram.py) fit them to strings, `distil` to a model. None
need be good: a surrogate decides how long sampling takes, never what it converges to.

Reference: Baum, Petrie, Soules and Weiss (1970); as surrogates of language models Zhang, Dang, Peng
and Van den Broeck, Tractable control for autoregressive language generation (2023).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lmppl.errors import BadArgument
from lmppl.types import Floats, Ints


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


def symbols(
    strings: Ints, tokens: int, weights: Floats | None, clusters: Clusters | None
) -> tuple[Ints, int, Floats]:
    """Checked data of a fit: symbols [M, T] (clusters, or tokens), their number, weights [M]."""
    x = np.asarray(strings, dtype=np.int64)
    if x.ndim != 2 or not x.size or x.min() < 0 or x.max() >= tokens:
        raise BadArgument(
            f"strings must be token ids below {tokens} in an array [M, T], got {x.dtype} {x.shape}",
            fix="pad shorter strings by an end token, as bffg.written does",
        )
    w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (len(x),) or not (w >= 0).all() or not w.any():
        raise BadArgument(
            f"weights must be {len(x)} non-negative numbers, not all zero",
            value=repr(w.tolist())[:80],
            fix="give one number per string, or leave them out",
        )
    if clusters is None:
        return x, tokens, w
    if len(clusters.of) != tokens:
        raise BadArgument(
            f"clusters of {len(clusters.of)} tokens, and the vocabulary has {tokens}",
            fix="write tokens=lm.vocab_size, and clusters of the same model",
        )
    return clusters.of[x], int(clusters.of.max()) + 1, w
