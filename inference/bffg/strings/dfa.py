"""Automata over tokens: what a guide knows of a constraint.

    s_0 = start      s_t = δ(s_{t-1}, x_t)      a string of T tokens counts τ(s_T) ≥ 0

τ is any vector: 0/1 for acceptance, a reward, a message of later steps.

Tokens with the same column of δ are a *class*: the automaton sees no difference between them. A rule
over a vocabulary of 50,000 has a few hundred, so δ is kept as a table over classes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np

from lmppl.types import Floats, Ints


class DFA(NamedTuple):
    """A complete automaton over tokens; `DFA.dense` makes one of δ[s, v].

    >>> DFA.dense(np.array([[0, 1, 0], [1, 1, 1]]), ("no", "yes"))
    DFA(table=array([[0, 1],
           [1, 1]]), of=array([0, 1, 0]), states=('no', 'yes'))
    """

    table: Ints
    """The next state of each state and class [Q, C]."""
    of: Ints
    """The class of each token [V]."""
    states: tuple[Any, ...]
    """What the states stand for [Q]; the first is the start."""

    @classmethod
    def dense(cls, delta: Ints, states: tuple[Any, ...]) -> DFA:
        """The automaton of a table over tokens [Q, V]."""
        columns, of = np.unique(np.asarray(delta), axis=1, return_inverse=True)
        return cls(columns, of.reshape(-1), states)

    def after(self, s: Ints | int, tokens: Ints | int) -> Ints:
        """δ(s, v), of numbers or of arrays that go together."""
        found: Ints = self.table[s, self.of[tokens]]
        return found

    @property
    def delta(self) -> Ints:
        """δ[s, v] in full [Q, V]: small automata can afford it."""
        return self.table[:, self.of]

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
    return DFA.dense(np.array(rows, dtype=np.int64), tuple(states))


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
    numbers = np.minimum(np.asarray(counted, dtype=np.int64), most)
    kinds, of = np.unique(np.stack([dfa.of, numbers]), axis=1, return_inverse=True)
    up = np.minimum(n[:, None] + kinds[1], most)  # [most + 1, C]
    table = dfa.table[None][:, :, kinds[0]] + Q * up[:, None, :]  # s with count c is Q c + s
    states = tuple((s, int(c)) for c in n for s in dfa.states)
    return DFA(table.reshape(len(states), -1), of.reshape(-1), states)
