"""What a surrogate emits on the way from a state of an automaton to the next.

Each state has few next states. So the table of a backward filter needs, for each pair of a state and a
next state, the mass of the tokens that lead from one to the other,

    W(z, s → s') = Σ_{v: δ(s, v) = s'} B(z, v),        r_n(z, s) = Σ_s' W(z, s → s') u_{n-1}(z, s').
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lmppl.inference.bffg.strings.dfa import DFA
from lmppl.inference.bffg.strings.hmm import HMM
from lmppl.types import Floats, Ints


def class_masses(hmm: HMM, dfa: DFA) -> Floats:
    """What each hidden state emits of each class of tokens [C, H]."""
    C, clusters = dfa.table.shape[1], hmm.clusters
    if clusters is not None:
        share = np.zeros((C, hmm.B.shape[1]))
        np.add.at(share, (dfa.of, clusters.of), clusters.share)
        return share @ hmm.B.T
    ends = np.cumsum(np.bincount(dfa.of, minlength=C))[:-1]
    classes = np.split(np.argsort(dfa.of, kind="stable"), ends)
    return np.stack([hmm.B[:, c].sum(axis=1, dtype=np.float64) for c in classes])


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


def successors(masses: Floats, dfa: DFA) -> Successors:
    """The pairs of an automaton, from the masses of its classes."""
    to, sums, first = [], [], [0]
    for next_states in dfa.table:  # of one state, by class
        order = np.argsort(next_states, kind="stable")
        found, begin = np.unique(next_states[order], return_index=True)
        to.append(found)
        sums.append(np.add.reduceat(masses[order], begin))
        first.append(first[-1] + len(found))
    return Successors(np.concatenate(to), np.array(first[:-1]), np.concatenate(sums))
