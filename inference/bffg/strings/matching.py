r"""The automaton of a grammar (a regular expression, a JSON schema, choices), found by asking.

`matching` asks llguidance, which reads the grammar, what may follow a text: two texts after which
the same answers come are one state. Which questions are asked grows until walks through the automaton
and through the grammar agree (Angluin, with the refinement of Rivest and Schapire).

Walks can miss a rare disagreement: a guide is then a worse guide. So a hard rule is for
`LM(regex=...)`, which asks the grammar itself, and this is its guide.

Reference: Angluin, Learning regular sets from queries and counterexamples (1987); Rivest and
Schapire, Inference of finite automata using homing sequences (1993).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from lmppl.constraints import ConstraintState, compiled
from lmppl.errors import BadArgument, ConstraintError
from lmppl.grammars import Grammar, grammar_of
from lmppl.inference.bffg.strings.texts import TextAutomaton
from lmppl.lm.table import TableLM
from lmppl.types import Ints

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
    asked = [b""]
    while True:
        texts, table = _states(grammar, start, asked, most)
        more = _disagreement(start, texts, table, [w.encode() for w in sorted(words)])
        if more is None:
            states = [_after(start, text) for text in texts]
            accepts = [s is not None and s.accepting for s in states]
            return TextAutomaton(table, np.array([*accepts, False]))
        asked.append(more)


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


def _states(
    grammar: Grammar, start: ConstraintState, asked: list[bytes], most: int
) -> tuple[list[bytes], Ints]:
    """A text for each state, and the table, whose last row is the state of no return."""

    def signature(state: ConstraintState | None) -> tuple[bytes | None, ...]:
        return tuple(_answer(_after(state, e)) for e in asked)

    number = {signature(start): 0}
    waiting, rows = [(b"", start)], []
    for text, state in waiting:
        row = [-1] * 256
        for byte in np.flatnonzero(state.mask[:256]).tolist():
            after = state.after(byte)
            if _answer(after) is None or after is None:
                continue
            mark = signature(after)
            if mark not in number:
                number[mark] = len(number)
                waiting.append((text + bytes([byte]), after))
                if len(number) > most:
                    raise BadArgument(
                        f"the automaton of this {grammar.kind} has more than {most:,} states",
                        why="a grammar that nests is none, and a long repetition has many",
                        fix="write matching(..., most=...) or a simpler rule for the guide",
                    )
            row[byte] = number[mark]
        rows.append(row)
    table = np.array([*rows, [-1] * 256], dtype=np.int64)
    table[table < 0] = len(rows)
    return [text for text, _ in waiting], table


def _disagreement(
    start: ConstraintState, texts: list[bytes], table: Ints, words: list[bytes]
) -> bytes | None:
    """A question that two texts of one state answer differently; None where no walk finds any."""
    rng = np.random.default_rng(0)
    answers = [*(_answer(_after(start, text)) for text in texts), None]
    for _ in range(WALKS):
        state: ConstraintState | None = start
        walk, at = b"", 0
        while len(walk) < STEPS and state is not None:
            allowed = np.flatnonzero(state.mask[:256])
            if not len(allowed):
                break
            step = bytes([int(rng.choice(allowed))])
            if words and rng.random() < 0.3:
                word = words[rng.integers(len(words))]
                step = step if _after(state, word) is None else word
            for byte in step:
                walk, at = walk + bytes([byte]), int(table[at, byte])
                state = None if state is None else state.after(byte)
                if _answer(state) != answers[at]:
                    return _question(start, texts, table, walk)
    return None


def _question(start: ConstraintState, texts: list[bytes], table: Ints, walk: bytes) -> bytes:
    """The end of a walk that the text of a state answers otherwise than the walk that led there."""
    at, whole = 0, _answer(_after(start, walk))
    for i, byte in enumerate(walk):
        at = int(table[at, byte])
        state = None if at == len(texts) else _after(start, texts[at])
        if _answer(_after(state, walk[i + 1 :])) != whole:
            return walk[i + 1 :]
    return b""
