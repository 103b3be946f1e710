"""Scores of all next tokens under a string guide, dense or by clusters.

    log Σ_z φ(z) B(z, v) u(z, δ(s, v)) - log Σ_z φ(z) B(z, v)      for N strings and V tokens

A token that the surrogate cannot emit has no such ratio: after it all hidden states are as likely.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from lmppl.inference.bffg.strings.dfa import DFA
from lmppl.inference.bffg.strings.hmm import HMM
from lmppl.types import Floats, Ints

SMALL = 64
"""Classes of fewer tokens are not worth a matrix product of their own."""


class Scores(Protocol):
    """How the scores are found."""

    def __call__(self, phi: Floats, s: Ints, u: Floats, lost: Floats) -> Floats:
        """The scores [N, V].

        Args:
            phi: the filter of each string [N, H].
            s: its automaton state [N].
            u: of the remaining length [H, Q].
            lost: the value of each next state after a token that cannot be [Q].
        """


def token_classes(dfa: DFA) -> tuple[Ints, list[Ints]]:
    """Tokens with the same column of δ, large classes first: the columns [C, Q], and the tokens."""
    columns, index = np.unique(dfa.delta.T, axis=0, return_inverse=True)
    index = index.reshape(-1)
    tokens = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
    by_size = sorted(range(len(tokens)), key=lambda k: -len(tokens[k]))
    return columns[by_size], [tokens[k] for k in by_size]


def _ratio(mean: Floats, seen: Floats, lost: Callable[[], Floats]) -> Floats:
    """log (mean / seen), and log of what is lost where nothing is seen."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.log(mean / seen)
        if (seen == 0).any():
            value = np.where(seen > 0, value, np.log(lost()))
    return np.asarray(value)


class Dense:
    """A column of B for each token: one product for each large class of tokens."""

    def __init__(self, hmm: HMM, dfa: DFA, classes: list[Ints]) -> None:
        """Sort the columns of B by class, so that a class is a slice."""
        self.delta, self.classes = dfa.delta, classes
        self.order = np.concatenate(classes)
        self.B = hmm.B[:, self.order]

    def __call__(self, phi: Floats, s: Ints, u: Floats, lost: Floats) -> Floats:
        """Large classes one by one, the other tokens all at once."""
        B, done = self.B, 0
        mean = np.empty((len(s), B.shape[1]))
        for c in self.classes:
            if len(c) < SMALL:
                break
            to = self.delta[s, c[0]]
            part = slice(done, done + len(c))
            mean[:, part] = (phi * u[:, to].T) @ B[:, part]
            done += len(c)
        if done < B.shape[1]:
            to = self.delta[s][:, self.order[done:]]
            mean[:, done:] = np.einsum("nh,hv,hnv->nv", phi, B[:, done:], u[:, to], optimize=True)
        out = np.empty_like(mean)
        out[:, self.order] = _ratio(mean, phi @ B, lambda: lost[self.delta[s][:, self.order]])
        return out


class Clustered:
    """A column of B for each cluster: a table over automaton states and clusters, then a look-up."""

    def __init__(self, hmm: HMM, dfa: DFA, of: Ints) -> None:
        """Number the cells (next state, cluster) that a token can lead to [Q, V]."""
        self.B, self.cells = hmm.B, dfa.delta * hmm.B.shape[1] + of

    def __call__(self, phi: Floats, s: Ints, u: Floats, lost: Floats) -> Floats:
        """Scores of the cells [N, Q, K], read by every token."""
        mean = np.matmul((phi[:, :, None] * u).transpose(0, 2, 1), self.B)
        seen = (phi @ self.B)[:, None, :]
        value = _ratio(mean, seen, lambda: lost[None, :, None])
        flat = value.reshape(len(s), -1)
        return np.stack([flat[i][self.cells[state]] for i, state in enumerate(s.tolist())])
