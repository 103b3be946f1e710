"""Classes of tokens: those with the same column of δ, between which an automaton sees no difference.

A constraint over a vocabulary of many thousands has few of them, and each of its states has few next
states. So the table of a backward filter needs, for each pair of a state and a next state, the mass
of the tokens that lead from one to the other,

    W(z, s → s') = Σ_{v: δ(s, v) = s'} B(z, v),        r_n(z, s) = Σ_s' W(z, s → s') u_{n-1}(z, s').
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lmppl.inference.bffg.strings.dfa import DFA
from lmppl.inference.bffg.strings.hmm import HMM
from lmppl.types import Floats, Ints


def token_classes(dfa: DFA) -> tuple[Ints, list[Ints]]:
    """The columns of δ that differ [C, Q], and the tokens of each, large classes first.

    >>> dfa = DFA(np.array([[0, 1, 0], [1, 1, 1]]), ("no", "yes"))
    >>> [tokens.tolist() for tokens in token_classes(dfa)[1]]
    [[0, 2], [1]]
    """
    columns, index = np.unique(dfa.delta.T, axis=0, return_inverse=True)
    index = index.reshape(-1)
    tokens = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
    by_size = sorted(range(len(tokens)), key=lambda k: -len(tokens[k]))
    return columns[by_size], [tokens[k] for k in by_size]


class Successors(NamedTuple):
    """Pairs of a state and a next state, by state."""

    to: Ints
    """The next state of each pair [P]."""
    first: Ints
    """The first pair of each state [Q]."""
    mass: Floats
    """W of each pair [P, H]."""

    @property
    def state(self) -> Ints:
        """The state of each pair [P]."""
        sizes = np.diff(self.first, append=len(self.to))
        return np.repeat(np.arange(len(self.first)), sizes)


def successors(hmm: HMM, columns: Ints, classes: list[Ints]) -> Successors:
    """The pairs of an automaton, and what the surrogate emits on the way of each."""
    B, clusters = hmm.B, hmm.clusters
    if clusters is None:
        mass = np.stack([B[:, c].sum(axis=1, dtype=np.float64) for c in classes])  # [C, H]
    else:
        share = np.zeros((len(classes), B.shape[1]))
        for row, c in zip(share, classes, strict=True):
            np.add.at(row, clusters.of[c], clusters.share[c])
        mass = share @ B.T
    to, sums, first = [], [], [0]
    for next_states in columns.T:  # of one state, by class
        order = np.argsort(next_states, kind="stable")
        found, begin = np.unique(next_states[order], return_index=True)
        to.append(found)
        sums.append(np.add.reduceat(mass[order], begin))
        first.append(first[-1] + len(found))
    return Successors(np.concatenate(to), np.array(first[:-1]), np.concatenate(sums))
