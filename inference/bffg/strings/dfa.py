"""Automata over tokens: what a guide knows of a constraint.

    s_0 = start      s_t = δ(s_{t-1}, x_t)      a string of T tokens counts τ(s_T) ≥ 0

τ is any vector: 0/1 for acceptance, a reward, a message of later steps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np

from lmppl.types import Floats, Ints


class DFA(NamedTuple):
    """A complete automaton over tokens."""

    delta: Ints
    """δ[s, v] [Q, V]."""
    states: tuple[Any, ...]
    """What the states stand for [Q]; the first is the start."""

    def terminal(self, weight: Callable[[Any], float]) -> Floats:
        """τ: the weight of each state [Q]."""
        return np.array([float(weight(s)) for s in self.states])


def automaton(step: Callable[[Any, int], Hashable], start: Hashable, tokens: int) -> DFA:
    """The automaton of a function (state, token) -> state, found by search from the start.

    >>> parity = automaton(lambda s, v: (s + v) % 2, 0, 2)
    >>> parity.delta.tolist()
    [[0, 1], [1, 0]]
    """
    states: dict[Hashable, int] = {start: 0}
    rows, waiting = [], [start]
    for s in waiting:
        row = []
        for v in range(tokens):
            to = step(s, v)
            if to not in states:
                states[to] = len(states)
                waiting.append(to)
            row.append(states[to])
        rows.append(row)
    return DFA(np.array(rows, dtype=np.int64), tuple(states))


def counting(dfa: DFA, most: int, counted: Ints) -> DFA:
    """A DFA that also counts some tokens, up to `most`: its states are pairs (state, count).

    Args:
        dfa: the automaton.
        most: where counting stops; a count of `most` means as many or more.
        counted: which tokens count: a mask, or numbers [V].

    >>> parity = automaton(lambda s, v: (s + v) % 2, 0, 2)
    >>> counting(parity, 2, np.array([1, 1])).states[-1]
    (1, 2)
    """
    Q, n = len(dfa.states), np.arange(most + 1)
    up = np.minimum(n[:, None] + np.asarray(counted, dtype=np.int64), most)  # [most + 1, V]
    delta = dfa.delta[None] + Q * up[:, None, :]  # state s with count c is Q c + s
    return DFA(delta.reshape(Q * (most + 1), -1), tuple((s, int(c)) for c in n for s in dfa.states))
