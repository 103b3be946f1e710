"""Scores of next tokens under a string guide, for N strings at once.

    log Σ_z φ(z) B(z, v) u(z, δ(s, v)) - log Σ_z φ(z) B(z, v)

Tokens of one class and one cluster have the same score: they are one *kind*, and the vocabulary is
looked up only at the end. Where the surrogate emits each token by itself, a token is a kind. Kinds of
a large class are one matrix product, whatever the states of the strings; those of small ones are
weighed once for all strings that stand at the same state.

A kind that the surrogate cannot emit has no such ratio: after it all hidden states are as likely.
Scores have the precision of B: a table over a large vocabulary may well be of float32. A guide of
less precision is another guide, and as exact; the last value, which stands for τ, is no product.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lmppl.inference.bffg.strings.dfa import DFA
from lmppl.inference.bffg.strings.hmm import HMM
from lmppl.types import Floats, Ints

SMALL = 64
"""Classes of fewer kinds are not worth a matrix product of their own."""


class Value(NamedTuple):
    """What the states are worth when one token more is written."""

    u: Floats
    """u(z, s), each column over a number of its own [H, Q]."""
    lost: Floats
    """The mean of r(z, s) over z, for a token that cannot be [Q]."""
    scales: Floats
    """Logarithms of these numbers [Q]."""


class Kinds:
    """Kinds of tokens, and their scores.

    Args:
        emission: what each hidden state emits of each kind [K, H].
        classes: the class of each kind [K].
        of: the kind of each token [V].
        dfa: the automaton.
    """

    def __init__(self, emission: Floats, classes: Ints, of: Ints, dfa: DFA) -> None:
        """Sort the kinds by class, large classes first, so that a class is a slice."""
        sizes = np.bincount(classes, minlength=dfa.table.shape[1])
        order = np.lexsort((classes, -sizes[classes]))
        self.table = dfa.table
        self.emission = np.ascontiguousarray(emission[order])
        self.classes = classes[order]
        self.of = np.argsort(order)[of]
        """The kind of each token, as they are sorted here [V]."""
        large = np.flatnonzero(sizes >= SMALL)
        large = large[np.argsort(-sizes[large], kind="stable")]
        ends = np.cumsum(sizes[large])
        self.large = [
            (c, slice(e - n, e))
            for c, n, e in zip(large.tolist(), sizes[large].tolist(), ends.tolist(), strict=True)
        ]
        self.rest = slice(int(ends[-1]) if len(ends) else 0, len(order))

    @classmethod
    def of_tokens(cls, hmm: HMM, dfa: DFA) -> Kinds:
        """As fine as the surrogate sees them."""
        if hmm.clusters is None:
            return cls(hmm.B.T, dfa.of, np.arange(len(dfa.of)), dfa)
        pairs = np.stack([dfa.of, hmm.clusters.of])
        kinds, of = np.unique(pairs, axis=1, return_inverse=True)
        return cls(hmm.B.T[kinds[1]], kinds[0], of.reshape(-1), dfa)

    @classmethod
    def of_classes(cls, masses: Floats, dfa: DFA) -> Kinds:
        """As coarse as the automaton: the score of a class is the mean over its tokens."""
        return cls(masses, np.arange(len(masses)), dfa.of, dfa)

    def __call__(self, phi: Floats, s: Ints, value: Value) -> Floats:
        """The scores [N, K].

        Args:
            phi: the filter of each string [N, H].
            s: its automaton state [N].
            value: of the states after the token.
        """
        E, N = self.emission, len(s)
        phi = phi.astype(E.dtype, copy=False)
        u, to = value.u.T.astype(E.dtype, copy=False), self.table[s]
        both = np.empty((2 * N, len(E)), dtype=E.dtype)
        seen, mean = both[:N], both[N:]
        for c, part in self.large:
            two = np.concatenate([phi, phi * u[to[:, c]]])
            np.matmul(two, E[part].T, out=both[:, part])
        small, rest = self.classes[self.rest], E[self.rest]
        seen[:, self.rest] = phi @ rest.T
        for state in np.unique(s):
            own = np.flatnonzero(s == state)
            mean[own, self.rest] = phi[own] @ (rest * u[self.table[state, small]]).T
        found = _log_ratio(mean, seen)
        scales = value.scales.astype(E.dtype, copy=False)
        for c, part in self.large:
            found[:, part] += scales[to[:, c]][:, None]
        found[:, self.rest] += scales[to[:, small]]
        if (seen == 0).any():
            found = np.where(seen > 0, found, _log_lost(value)[to[:, self.classes]])
        return found

    def few(self, phi: Floats, s: Ints, value: Value, rows: Ints, tokens: Ints) -> Floats:
        """The scores of some strings, with repeats, and a token of each [n]; see `__call__`."""
        kinds = self.of[tokens]
        to = self.table[s[rows], self.classes[kinds]]
        E = self.emission[kinds]
        phi, u = (a.astype(E.dtype, copy=False) for a in (phi, value.u.T))
        joint = E * phi[rows]
        seen, mean = joint.sum(axis=1), np.einsum("nh,nh->n", joint, u[to])
        scores = _log_ratio(mean, seen) + value.scales.astype(E.dtype, copy=False)[to]
        return np.where(seen > 0, scores, _log_lost(value)[to])


def _log_ratio(mean: Floats, seen: Floats) -> Floats:
    """log (mean / seen) in place of the mean; nan where nothing is seen."""
    with np.errstate(divide="ignore", invalid="ignore"):
        np.divide(mean, seen, out=mean)
        return np.log(mean, out=mean)


def _log_lost(value: Value) -> Floats:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(value.lost) + value.scales)
