r"""Automata of texts and their logic; `rules` has some to begin with.

    rule = containing(" river") & ~containing("\n") & length(20, 80)
    dfa = rule.over(lm)                         the same rule, read by the tokens of a model
    tau = dfa.terminal(lambda s: s.accepts)

A text is bytes, so a rule means the same for every tokenisation, whole words or halves of them.
Several rules that are to be weighed, not only obeyed, are read side by side:

    dfa = jointly(containing("river"), containing("boat"), containing("fish")).over(lm)
    tau = dfa.terminal(lambda s: 2.0 ** sum(s.holds))

Reference: Moore, Gedanken-experiments on sequential machines (1956), for the fewest states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lmppl.inference.bffg.strings.dfa import DFA
from lmppl.lm.base import LanguageModel
from lmppl.types import Bools, Ints


class TextState(NamedTuple):
    """What a state over tokens stands for."""

    number: int
    """Of the automaton of bytes; -1 where an end-of-text token has come."""
    holds: tuple[bool, ...]
    """Which rules the text so far obeys; none where something follows an end-of-text token."""
    ended: bool
    """Whether an end-of-text token has come, and nothing but it since."""

    @property
    def accepts(self) -> bool:
        """Whether it obeys all of them."""
        return all(self.holds)


@dataclass(frozen=True, eq=False)
class TextAutomaton:
    """A complete automaton over bytes; `&`, `|` and `~` are those of sets of texts.

    >>> from lmppl.inference.bffg import containing
    >>> rule = containing("ab") & ~containing("c")
    >>> rule("xaby"), rule("cab"), rule("a")
    (True, False, False)
    """

    table: Ints
    """[S, 256]; the start is state 0."""
    holds: Bools
    """Which rules a text obeys that ends there [S, R]; one rule, unless made by `jointly`."""

    @property
    def accepts(self) -> Bools:
        """Whether it obeys all of them [S]."""
        return np.asarray(self.holds.all(axis=1))

    def __call__(self, text: str | bytes) -> bool:
        """Whether it accepts a text."""
        s = 0
        for byte in text.encode() if isinstance(text, str) else text:
            s = self.table[s, byte]
        return bool(self.accepts[s])

    def __and__(self, other: TextAutomaton) -> TextAutomaton:
        return _paired(self, other, lambda a, b: (a & b)[:, None])

    def __or__(self, other: TextAutomaton) -> TextAutomaton:
        return _paired(self, other, lambda a, b: (a | b)[:, None])

    def __invert__(self) -> TextAutomaton:
        return TextAutomaton(self.table, ~self.accepts[:, None])

    def over(self, lm: LanguageModel) -> DFA:
        """The automaton over the tokens of a model; its states are `TextState`s.

        End-of-text is absorbing: nothing but itself may follow. Other tokens without bytes change
        nothing.
        """
        # Tokens with equal columns share one, and so do their beginnings: a column is found once.
        columns = [np.arange(len(self.table))]
        number = {columns[0].tobytes(): 0}
        further: dict[tuple[int, int], int] = {}
        of = np.zeros(lm.vocab_size, dtype=np.int64)
        for v in range(lm.vocab_size):
            c = 0
            for byte in lm.token_bytes(v):
                if (c, byte) not in further:
                    column = self.table[columns[c], byte]
                    found = number.setdefault(column.tobytes(), len(columns))
                    if found == len(columns):
                        columns.append(column)
                    further[c, byte] = found
                c = further[c, byte]
            of[v] = c
        of[sorted(lm.eos_ids)] = len(columns)
        used, of = np.unique(of, return_inverse=True)
        return self._ended(np.stack([*columns, columns[0]], axis=1)[:, used], of, bool(lm.eos_ids))

    def _ended(self, table: Ints, of: Ints, ends: bool) -> DFA:
        """With the states behind the end of the text, whose class is the last one."""
        S, C = table.shape
        marks, mark = np.unique(self.holds, axis=0, return_inverse=True)
        after = S + np.arange(len(marks))
        whole = np.full((S + len(marks) + 1, C), S + len(marks))
        whole[:S] = table
        if ends:
            whole[:S, -1], whole[after, -1] = after[mark.reshape(-1)], after
        states = [TextState(s, tuple(h), False) for s, h in enumerate(self.holds.tolist())]
        states += [TextState(-1, tuple(h), True) for h in marks.tolist()]
        states.append(TextState(-1, (False,) * self.holds.shape[1], False))
        return DFA(whole, of, tuple(states))


def jointly(*rules: TextAutomaton) -> TextAutomaton:
    """Several rules read side by side, for weights τ of which of them hold.

    >>> from lmppl.inference.bffg import containing
    >>> both = jointly(containing("a"), containing("b"))
    >>> len(both.table), both("ab"), both("b")
    (4, True, False)
    """
    found, *rest = rules
    for rule in rest:
        found = _paired(found, rule, None)
    return found


def _paired(
    a: TextAutomaton, b: TextAutomaton, join: Callable[[Bools, Bools], Bools] | None
) -> TextAutomaton:
    """The automaton of pairs that can be reached; the rules of both are kept, or joined to one."""
    number = {(0, 0): 0}
    rows, waiting = [], [(0, 0)]
    for s, t in waiting:
        row = list(zip(a.table[s].tolist(), b.table[t].tolist(), strict=True))
        for pair in row:
            if pair not in number:
                number[pair] = len(number)
                waiting.append(pair)
        rows.append([number[pair] for pair in row])
    s, t = np.array(waiting).T
    if join is None:
        holds = np.concatenate([a.holds[s], b.holds[t]], axis=1)
    else:
        holds = join(a.accepts[s], b.accepts[t])
    return fewest(np.array(rows, dtype=np.int64), holds)


def fewest(table: Ints, holds: Bools) -> TextAutomaton:
    """The automaton without states that no text tells apart: blocks are split until none differs."""
    columns = np.unique(table, axis=1)  # bytes that lead alike from every state are one
    block = np.unique(holds, axis=0, return_inverse=True)[1].reshape(-1)
    count = 0
    while count < int(block.max()) + 1:
        count = int(block.max()) + 1
        now = np.column_stack([block, block[columns]])
        block = np.unique(now, axis=0, return_inverse=True)[1].reshape(-1)
    one = np.unique(block, return_index=True)[1]  # a state of each block
    to = block[table[one]]
    order = [int(block[0])]
    for b in order:
        order += sorted(set(to[b].tolist()).difference(order))
    place = np.zeros(count, dtype=np.int64)
    place[order] = np.arange(len(order))
    return TextAutomaton(place[to[order]], holds[one[order]])
