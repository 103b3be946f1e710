"""Scores of all next tokens under a string guide, dense or by clusters.

    log Σ_z φ(z) B(z, v) u(z, δ(s, v)) - log Σ_z φ(z) B(z, v)      for N strings and V tokens

A token that the surrogate cannot emit has no such ratio: after it all hidden states are as likely.
They are found in the precision of B: a table over a large vocabulary may well be of float32. A guide of
less precision is another guide, and as exact; only its last value, which stands for τ, is rounded.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from lmppl.inference.bffg.strings.dfa import DFA
from lmppl.inference.bffg.strings.hmm import HMM
from lmppl.types import Floats, Ints

SMALL = 64
"""Classes of fewer tokens are not worth a matrix product of their own."""


class Value(NamedTuple):
    """What the states are worth when one token more is written."""

    u: Floats
    """u(z, s), each column over a number of its own [H, Q]."""
    lost: Floats
    """The mean of r(z, s) over z, for a token that cannot be [Q]."""
    scales: Floats
    """Logarithms of these numbers [Q]."""


class Scores(Protocol):
    """How the scores are found."""

    def __call__(self, phi: Floats, s: Ints, value: Value) -> Floats:
        """The scores [N, V].

        Args:
            phi: the filter of each string [N, H].
            s: its automaton state [N].
            value: of the states after the token.
        """


class Dense:
    """A column of B for each token: one product for each large class of tokens."""

    def __init__(self, hmm: HMM, dfa: DFA, classes: list[Ints]) -> None:
        """Sort the columns of B by class, so that a class is a slice."""
        self.delta = dfa.delta
        order = np.concatenate(classes)
        self.place = np.argsort(order)
        self.B = np.ascontiguousarray(hmm.B[:, order])
        large = [c for c in classes if len(c) >= SMALL]
        ends = np.cumsum([len(c) for c in large], dtype=np.int64).tolist()
        self.large = [(int(c[0]), slice(e - len(c), e)) for c, e in zip(large, ends, strict=True)]
        self.rest = slice(ends[-1] if ends else 0, len(order))
        self.small = order[self.rest]

    def __call__(self, phi: Floats, s: Ints, value: Value) -> Floats:
        """Large classes one by one, the other tokens all at once."""
        B = self.B
        phi, u = phi.astype(B.dtype, copy=False), value.u.astype(B.dtype, copy=False)
        seen = phi @ B
        mean = np.empty_like(seen)
        for token, part in self.large:
            np.matmul(phi * u[:, self.delta[s, token]].T, B[:, part], out=mean[:, part])
        to = self.delta[s[:, None], self.small]
        mean[:, self.rest] = np.einsum(
            "nh,hv,hnv->nv", phi, B[:, self.rest], u[:, to], optimize=True
        )
        _log_ratio(mean, seen)
        scales = value.scales.astype(B.dtype, copy=False)
        for token, part in self.large:
            mean[:, part] += scales[self.delta[s, token]][:, None]
        mean[:, self.rest] += scales[to]
        found = mean.take(self.place, axis=1)
        if (seen == 0).any():
            with np.errstate(divide="ignore"):
                lost = (np.log(value.lost) + value.scales)[self.delta[s]]
            found = np.where(seen.take(self.place, axis=1) > 0, found, lost)
        return found


class Clustered:
    """A column of B for each cluster: a table over next states and clusters, then a look-up."""

    def __init__(self, hmm: HMM, dfa: DFA) -> None:
        """The cells of a state are numbered when it is first seen."""
        if hmm.clusters is None:
            raise TypeError("this surrogate emits tokens, not clusters")
        self.B, self.delta, self.of = hmm.B, dfa.delta, hmm.clusters.of
        self.cells: dict[int, tuple[Ints, Ints]] = {}

    def __call__(self, phi: Floats, s: Ints, value: Value) -> Floats:
        """Scores of the cells, read by every token."""
        seen = phi @ self.B
        kind = np.result_type(phi, self.B)
        found = np.empty((len(s), self.delta.shape[1]), dtype=kind)
        for row, f, total, state in zip(found, phi, seen, s.tolist(), strict=True):
            to, cell = self.cells.get(state) or self._number(state)
            mean = (f[:, None] * value.u[:, to]).T @ self.B  # [next states, K]
            _log_ratio(mean, total)
            if (total == 0).any():
                with np.errstate(divide="ignore"):
                    mean = np.where(total > 0, mean, np.log(value.lost[to])[:, None])
            mean += value.scales[to][:, None]
            mean.take(cell, out=row, mode="clip")  # "raise" would copy
        return found

    def _number(self, state: int) -> tuple[Ints, Ints]:
        """The next states of a state, and the cell (next state, cluster) of each token [V]."""
        to, place = np.unique(self.delta[state], return_inverse=True)
        found = self.cells[state] = to, place * self.B.shape[1] + self.of
        return found


def _log_ratio(mean: Floats, seen: Floats) -> None:
    """log (mean / seen) in place of the mean; nan where nothing is seen."""
    with np.errstate(divide="ignore", invalid="ignore"):
        np.divide(mean, seen, out=mean)
        np.log(mean, out=mean)
