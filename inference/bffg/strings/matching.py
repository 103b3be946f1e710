r"""The automaton of a grammar (a regular expression, a JSON schema, choices), found by asking.

`matching` asks llguidance, which reads the grammar, what may follow a text: two texts after which
the same answers come are one state. Questions are further bytes, and stand in a tree: the answer to one
says which is asked next, down to a state. Where a walk through the automaton and through the grammar
disagree, a state is two, and its place in the tree is taken by a question that tells them apart.

Walks can miss a rare disagreement: a guide is then a worse guide. So a hard rule is for
`LM(regex=...)`, which asks the grammar itself, and this is its guide.

Reference: Angluin, Learning regular sets from queries and counterexamples (1987); Rivest and
Schapire, Inference of finite automata using homing sequences (1993), for the disagreement; Kearns and
Vazirani, An introduction to computational learning theory (1994), for the tree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from lmppl.constraints import ConstraintState, compiled
from lmppl.errors import BadArgument, ConstraintError
from lmppl.grammars import Grammar, grammar_of
from lmppl.inference.bffg.strings.texts import TextAutomaton
from lmppl.lm.table import TableLM

WALKS, STEPS = 100, 100
"""Walks that look for a disagreement, and bytes of each."""
RUNS = "aA0 "
"""Characters whose repetitions are asked for: they tell how much room a text has left."""
PROBES, LONGEST = 200, 12
"""Pieces of the words of a grammar that are asked for, and characters of each."""


def matching(
    regex: str | Grammar | None = None,
    *,
    json_schema: Any = None,
    grammar: str | Grammar | None = None,
    choices: Sequence[str] | None = None,
    most: int = 2000,
) -> TextAutomaton:
    """Texts of a grammar, given as in `LM`.

    Args:
        regex: an expression, or a `Grammar`; or one of the others.
        json_schema: a schema.
        grammar: in Lark syntax.
        choices: a list of texts.
        most: states, above which a grammar is taken to be no regular one.

    >>> digits = matching(r"[0-9]{2}(px)?")
    >>> digits("42px"), digits("42p"), len(digits.accepts)
    (True, False, 6)
    """
    found = grammar_of(regex, json_schema, grammar, choices)
    if found is None:
        raise ConstraintError("matching needs a grammar", fix='write matching(r"[0-9]+")')
    return _learnt(found, most)


@lru_cache(maxsize=64)
def _learnt(grammar: Grammar, most: int) -> TextAutomaton:
    words = {w[i : i + LONGEST] for w in re.findall(r"\w+", grammar.source) for i in range(len(w))}
    probes = sorted(words)[:PROBES] + [c * n for c in RUNS for n in range(2, STEPS)]
    start = compiled(_probing(tuple(dict.fromkeys(probes))), grammar).start()
    learner = _Learner(grammar, most)
    learner.sift(start)
    learner.explore()
    walks = _walks(start, [w.encode() for w in sorted(words)])
    while any([learner.corrected(walk) for walk in walks]):  # all of them, then all again
        pass
    return learner.automaton()


def _probing(probes: tuple[str, ...]) -> TableLM:
    """A model whose tokens are the bytes and the probes: its masks say which of them may follow."""
    tokens = [bytes([b]) for b in range(256)] + [p.encode() for p in probes if len(p) > 1]
    return TableLM(tokens, {(): [1 / len(tokens)] * len(tokens)}, name="bytes")


def _after(state: ConstraintState | None, text: bytes) -> ConstraintState | None:
    for byte in text:
        state = None if state is None else state.after(byte)
    return state


def _answer(state: ConstraintState | None) -> bytes | None:
    """What is seen of a state: whether the text may end here, and which probes may follow."""
    if state is None or not (state.accepting or state.mask.any()):
        return None
    return bytes([state.accepting]) + np.packbits(state.mask).tobytes()


@dataclass
class _Question:
    """An inner node of the tree."""

    text: bytes
    """The bytes that are asked for."""
    below: dict[bytes | None, int | _Question] = field(default_factory=dict)
    """A state, or the next question, by answer."""


class _Walk(NamedTuple):
    """Bytes that the grammar was led through."""

    text: bytes
    answers: list[bytes | None]
    """After each of them."""


class _Learner:
    """The states found so far, and where their bytes lead."""

    def __init__(self, grammar: Grammar, most: int) -> None:
        self.grammar, self.most = grammar, most
        self.states: list[ConstraintState] = []
        """Of the grammar, after the text that led to each."""
        self.rows: list[list[int]] = []
        """[S, 256]; -1 leads to the state of no return."""
        self.tree = _Question(b"")
        self.above: list[_Question] = []
        """The question right above each state."""

    def sift(self, state: ConstraintState | None) -> int:
        """The number of a state of the grammar: perhaps a new one; -1 for that of no return."""
        if state is None or _answer(state) is None:
            return -1
        node: int | _Question = self.tree
        while isinstance(node, _Question):
            above, answer = node, _answer(_after(state, node.text))
            found = above.below.get(answer)
            node = self._add(state, above, answer) if found is None else found
        return node

    def _add(self, state: ConstraintState, above: _Question, answer: bytes | None) -> int:
        number = above.below[answer] = len(self.states)
        if number >= self.most:
            raise BadArgument(
                f"the automaton of this {self.grammar.kind} has more than {self.most:,} states",
                why="a grammar that nests is none, and a long repetition has many",
                fix="write matching(..., most=...) or a simpler rule for the guide",
            )
        self.states.append(state)
        self.above.append(above)
        return number

    def explore(self) -> None:
        """Where the bytes of new states lead, until there are none."""
        while (s := len(self.rows)) < len(self.states):
            self.rows.append([-1] * 256)
            for byte in np.flatnonzero(self.states[s].mask[:256]).tolist():
                self.rows[s][byte] = self.sift(self.states[s].after(byte))

    def corrected(self, walk: _Walk) -> bool:
        """Whether a walk found states that were two: they are now told apart."""
        before = len(self.states)
        while self._disagrees(walk):
            self._split(walk)
        return len(self.states) > before

    def _path(self, text: bytes) -> list[int]:
        path = [0]
        for byte in text:
            path.append(self.rows[path[-1]][byte] if path[-1] >= 0 else -1)
        return path

    def _disagrees(self, walk: _Walk) -> bool:
        found = [None if s < 0 else _answer(self.states[s]) for s in self._path(walk.text)[1:]]
        return found != walk.answers

    def _split(self, walk: _Walk) -> None:
        """Two texts of one state that a rest of the walk is answered otherwise after."""
        path = self._path(walk.text)
        states = [None if s < 0 else self.states[s] for s in path]
        wrong = next(i for i, s in enumerate(states[1:], 1) if _answer(s) != walk.answers[i - 1])
        whole = walk.answers[wrong - 1]
        # the rest of the walk from path[i] on is answered as it was for i = 0, not for i = wrong
        low, high = 0, wrong
        while high - low > 1:
            middle = (low + high) // 2
            if _answer(_after(states[middle], walk.text[middle:wrong])) == whole:
                low = middle
            else:
                high = middle
        old, rest = path[high], _Question(walk.text[high:wrong])
        above = self.above[old]
        place = next(a for a, node in above.below.items() if node == old)
        above.below[place] = rest
        rest.below[_answer(_after(self.states[old], rest.text))] = old
        self.above[old] = rest
        for s, row in enumerate(self.rows):
            for byte in [b for b, to in enumerate(row) if to == old]:
                row[byte] = self.sift(self.states[s].after(byte))
        self.explore()

    def automaton(self) -> TextAutomaton:
        """With the state of no return as the last."""
        table = np.array([*self.rows, [-1] * 256], dtype=np.int64)
        table[table < 0] = len(self.rows)
        accepts = [s.accepting for s in self.states]
        return TextAutomaton(table, np.array([*accepts, False])[:, None])


def _walks(start: ConstraintState, words: list[bytes]) -> list[_Walk]:
    """Random walks through the grammar, some of whose steps are words of it."""
    rng = np.random.default_rng(0)
    walks = []
    for _ in range(WALKS):
        state: ConstraintState | None = start
        walk = _Walk(b"", [])
        while len(walk.text) < STEPS and state is not None:
            allowed = np.flatnonzero(state.mask[:256])
            if not len(allowed):
                break
            step = bytes([int(allowed[rng.integers(len(allowed))])])
            if words and rng.random() < 0.3:
                word = words[rng.integers(len(words))]
                step = step if _after(state, word) is None else word
            for byte in step:
                state = None if state is None else state.after(byte)
                walk.answers.append(_answer(state))
            walk = walk._replace(text=walk.text + step)
        walks.append(walk)
    return walks
