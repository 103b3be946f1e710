r"""Automata of texts: words that must be there, regular expressions, and their logic.

    rule = containing(" river") & ~containing("\n") & matching(regex=r"[a-zA-Z ,.]{20,80}")
    dfa = rule.over(lm)                         the same rule, read by the tokens of a model
    tau = dfa.terminal(lambda s: s.accepts)

A text is bytes, so a rule means the same for every tokenisation, whole words or halves of them.

Reference: Knuth, Morris and Pratt (1977), for words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.bffg.strings.dfa import DFA
from lmppl.lm.base import LanguageModel
from lmppl.types import Bools, Ints


class TextState(NamedTuple):
    """What a state over tokens stands for."""

    number: int
    """Of the automaton of bytes; -1 where something follows an end-of-text token."""
    accepts: bool
    """Whether the text so far is one."""
    ended: bool
    """Whether an end-of-text token has come."""


@dataclass(frozen=True, eq=False)
class TextAutomaton:
    """A complete automaton over bytes; `&`, `|` and `~` are those of sets of texts.

    >>> rule = containing("ab") & ~containing("c")
    >>> rule("xaby"), rule("cab"), rule("a")
    (True, False, False)
    """

    table: Ints
    """[S, 256]; the start is state 0."""
    accepts: Bools
    """[S]"""

    def __call__(self, text: str | bytes) -> bool:
        """Whether it accepts a text."""
        s = 0
        for byte in text.encode() if isinstance(text, str) else text:
            s = self.table[s, byte]
        return bool(self.accepts[s])

    def __and__(self, other: TextAutomaton) -> TextAutomaton:
        return _paired(self, other, np.logical_and)

    def __or__(self, other: TextAutomaton) -> TextAutomaton:
        return _paired(self, other, np.logical_or)

    def __invert__(self) -> TextAutomaton:
        return TextAutomaton(self.table, ~self.accepts)

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
        return self._ended(np.stack([*columns, columns[0]], axis=1)[:, used], of, len(lm.eos_ids))

    def _ended(self, table: Ints, of: Ints, ends: int) -> DFA:
        """With three states behind the end of the text, whose class is the last one."""
        S, C = table.shape
        over, refused, dead = S, S + 1, S + 2
        whole = np.full((S + 3, C), dead)
        whole[:S] = table
        if ends:
            whole[:S, -1] = np.where(self.accepts, over, refused)
            whole[[over, refused], -1] = over, refused
        states = [TextState(s, bool(self.accepts[s]), False) for s in range(S)]
        states += [
            TextState(-1, True, True),
            TextState(-1, False, True),
            TextState(-1, False, False),
        ]
        return DFA(whole, of, tuple(states))


def _paired(a: TextAutomaton, b: TextAutomaton, join: Any) -> TextAutomaton:
    """The automaton of pairs that can be reached."""
    number = {(0, 0): 0}
    rows, waiting = [], [(0, 0)]
    for s, t in waiting:
        row = list(zip(a.table[s].tolist(), b.table[t].tolist(), strict=True))
        for pair in row:
            if pair not in number:
                number[pair] = len(number)
                waiting.append(pair)
        rows.append([number[pair] for pair in row])
    accepts = [bool(join(a.accepts[s], b.accepts[t])) for s, t in waiting]
    return TextAutomaton(np.array(rows, dtype=np.int64), np.array(accepts))


def containing(word: str) -> TextAutomaton:
    """Texts in which a word stands somewhere; a state is how much of it has just been read."""
    raw = word.encode()
    if not raw:
        raise BadArgument("every text contains the empty word", fix="give at least one character")
    n = len(raw)
    table = np.zeros((n + 1, 256), dtype=np.int64)
    shorter = 0  # the longest beginning that is also an end of what was read
    for s, byte in enumerate(raw):
        table[s] = table[shorter] if s else 0
        table[s, byte] = s + 1
        if s:
            shorter = int(table[shorter, byte])
    table[n] = n
    return TextAutomaton(table, np.arange(n + 1) == n)
