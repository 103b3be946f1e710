"""Potentials of the text, used on tokens: byte borders, tries, grammars.

A text is bytes; a token is a few of them, and may end in the middle of a character or of a stop
string. `BytePotential` sees bytes and never tokens, so it means the same for every model and every
tokenisation. Its state is one per distinct text, shared by all strings that spell it.

The weights of a whole vocabulary are those of the nodes of a trie: where a beginning of a token is
impossible, every longer token is too, and is not asked.

Where the string has a `stop`, the text is what stands before the first one, and a text that ends in
the beginning of a stop is possible if it is possible without it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lmppl.constraints import KEEP_STATES, ConstraintState, compiled
from lmppl.errors import ConstraintError
from lmppl.grammars import Grammar, grammar_of
from lmppl.lm.base import LanguageModel
from lmppl.lm.once import OncePerModel
from lmppl.token_potentials.base import TokenPotential, TokenState
from lmppl.types import Floats
from lmppl.weights import NEG_INF


class BytePotential(TokenPotential):
    """A function of the bytes of a text.

    Write `prefix_bytes(raw)` and `complete_bytes(raw)`: log-weights, or truth values.
    """

    def prefix_bytes(self, raw: bytes) -> float | bool:
        """log prefix of a text so far; 0 when it is not written."""
        return 0.0

    @abstractmethod
    def complete_bytes(self, raw: bytes) -> float | bool:
        """log complete of a text."""

    def start(self, lm: LanguageModel, stop: tuple[str, ...] = ()) -> TokenState:
        """The empty text."""
        return ByteState(_Texts(self, lm, stop), b"")


class OnText(BytePotential):
    """A function of the finished text, and perhaps one of the text so far.

    Args:
        complete: gives the log-weight of a text, or whether it is allowed.
        prefix: the same for a beginning; it must be 0 (`False`, `-inf`) only where no continuation
            is possible. Half a character at the end is left out.

    >>> from lmppl.lm.table import TableLM
    >>> lm = TableLM(["a", "b", "<eos>"], {(): [0.4, 0.4, 0.2]})
    >>> even = OnText(lambda text: len(text) % 2 == 0)
    >>> even.start(lm).advance(0).log_complete
    -inf
    """

    def __init__(
        self, complete: Callable[[str], Any], prefix: Callable[[str], Any] | None = None
    ) -> None:
        """Keep the functions."""
        self.complete = complete
        self.prefix = prefix

    def prefix_bytes(self, raw: bytes) -> float:
        """Of the whole characters."""
        if self.prefix is None:
            return 0.0
        return self._weight(self.prefix(_whole(raw).decode("utf-8", "replace")), "log prefix")

    def complete_bytes(self, raw: bytes) -> float:
        """Of the text."""
        return self._weight(self.complete(raw.decode("utf-8", "replace")), "log complete")

    def __repr__(self) -> str:
        return f"OnText({getattr(self.complete, '__qualname__', type(self.complete).__name__)})"


def _whole(raw: bytes) -> bytes:
    """The bytes without a character that has only begun."""
    for n in range(1, min(4, len(raw) + 1)):
        lead = raw[-n]
        if lead >= 0xC0:
            needed = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return raw if n >= needed else raw[:-n]
        if lead < 0x80:
            break
    return raw


class _Trie:
    """The tokens of a model by their bytes: node 0 is the root."""

    def __init__(self, lm: LanguageModel) -> None:
        self.children: list[dict[int, int]] = [{}]
        self.tokens: list[list[int]] = [[]]
        """Ids that end at a node; the root holds those without bytes."""
        for v in range(lm.vocab_size):
            if v in lm.eos_ids:
                continue
            node = 0
            for byte in lm.token_bytes(v):
                found = self.children[node].get(byte)
                if found is None:
                    found = self.children[node][byte] = len(self.children)
                    self.children.append({})
                    self.tokens.append([])
                node = found
            self.tokens[node].append(v)


trie_of = OncePerModel(_Trie)
"""The trie of a model's tokens."""


class _Texts:
    """What all states of one start share: the potential, the model, the states by text."""

    def __init__(self, potential: BytePotential, lm: LanguageModel, stop: tuple[str, ...]) -> None:
        self.potential, self.lm = potential, lm
        self.stops = [s.encode() for s in stop]
        self.states: dict[bytes, ByteState] = {}

    def value(self, raw: bytes) -> bytes | None:
        """The text before the first stop; None where there is no stop yet."""
        found = [at for s in self.stops if (at := raw.find(s)) >= 0]
        return raw[: min(found)] if found else None

    def log_prefix(self, raw: bytes) -> float:
        value = self.value(raw)
        if value is not None:
            return self.log_complete(raw)
        w = self.potential._weight(self.potential.prefix_bytes(raw), "log prefix")
        if w == NEG_INF:
            for stop in self.stops:
                for k in range(1, min(len(stop), len(raw) + 1)):
                    if raw.endswith(stop[:k]):  # the stop may have begun: then this is no text
                        w = max(w, self.log_complete(raw[:-k]))
        return w

    def log_complete(self, raw: bytes) -> float:
        value = self.value(raw)
        value = raw if value is None else value
        return self.potential._weight(self.potential.complete_bytes(value), "log complete")


class ByteState(TokenState):
    """A text so far."""

    __slots__ = ("_complete", "_next", "_prefix", "lm", "raw", "texts")

    def __init__(self, texts: _Texts, raw: bytes) -> None:
        """Nothing is computed yet."""
        self.texts, self.raw, self.lm = texts, raw, texts.lm
        self._prefix: float | None = None
        self._complete: float | None = None
        self._next: Floats | None = None

    @property
    def log_prefix(self) -> float:
        """Of the text so far."""
        if self._prefix is None:
            self._prefix = self.texts.log_prefix(self.raw)
        return self._prefix

    @property
    def log_complete(self) -> float:
        """Of the text before the first stop."""
        if self._complete is None:
            self._complete = self.texts.log_complete(self.raw)
        return self._complete

    def advance(self, token: int) -> TokenState:
        """The state of the longer text."""
        raw = self.raw + self.lm.token_bytes(token)
        states = self.texts.states
        found = states.get(raw)
        if found is None:
            if len(states) >= KEEP_STATES:
                states.clear()
            found = states[raw] = ByteState(self.texts, raw)
        return found

    def log_next(self, tokens: Sequence[int] | None = None) -> Floats:
        """By the trie; a few tokens are asked for one by one."""
        if self._next is None:
            if tokens is not None and 4 * len(tokens) < self.lm.vocab_size:
                return super().log_next(tokens)
            self._next = self._by_trie()
        return self._next if tokens is None else self._next[list(tokens)]

    def _by_trie(self) -> Floats:
        out = np.full(self.lm.vocab_size, NEG_INF)
        base = self.log_prefix
        if base == NEG_INF:
            return out
        trie, texts = trie_of(self.lm), self.texts
        out[list(self.lm.eos_ids)] = self.log_complete - base
        out[trie.tokens[0]] = 0.0
        stack = [(node, self.raw + bytes((b,))) for b, node in trie.children[0].items()]
        while stack:
            node, raw = stack.pop()
            w = texts.log_prefix(raw)
            if w == NEG_INF:
                continue
            here = trie.tokens[node]
            if here:
                out[here] = w - base
            stack += [(child, raw + bytes((b,))) for b, child in trie.children[node].items()]
        out.setflags(write=False)
        return out


class Matches(TokenPotential):
    """1 for the texts of a grammar, 0 for all others: `LM(regex=...)` as a potential.

    Args:
        regex: an expression, or a `Grammar`; or one of the others, as in `LM`.
        json_schema: a schema.
        grammar: in Lark syntax.
        choices: a list of texts.
    """

    def __init__(
        self,
        regex: str | Grammar | None = None,
        *,
        json_schema: Any = None,
        grammar: str | Grammar | None = None,
        choices: Sequence[str] | None = None,
    ) -> None:
        """Check the grammar."""
        found = grammar_of(regex, json_schema, grammar, choices)
        if found is None:
            raise ConstraintError("Matches needs a grammar", fix='write Matches(r"[0-9]+")')
        self.grammar = found

    def start(self, lm: LanguageModel, stop: tuple[str, ...] = ()) -> TokenState:
        """The automaton's first state, compiled once per model."""
        return MatchState(lm, compiled(lm, self.grammar, stop).start())

    def __repr__(self) -> str:
        return f"Matches({self.grammar})"


class MatchState(TokenState):
    """A state of the automaton; None when no text of the grammar begins like this."""

    __slots__ = ("automaton", "lm")

    def __init__(self, lm: LanguageModel, automaton: ConstraintState | None) -> None:
        """Keep it."""
        self.lm, self.automaton = lm, automaton

    @property
    def log_prefix(self) -> float:
        """0 while something matches."""
        return NEG_INF if self.automaton is None else 0.0

    @property
    def log_complete(self) -> float:
        """0 where the text matches."""
        return 0.0 if self.automaton is not None and self.automaton.accepting else NEG_INF

    def advance(self, token: int) -> TokenState:
        """Another state, or none."""
        after = None if self.automaton is None else self.automaton.after(token)
        return MatchState(self.lm, after)

    def log_next(self, tokens: Sequence[int] | None = None) -> Floats:
        """The mask; a few tokens are tried one by one, which costs no mask."""
        automaton = self.automaton
        size = self.lm.vocab_size if tokens is None else len(tokens)
        if automaton is None:
            return np.full(size, NEG_INF)
        if tokens is not None and size <= 8 and not automaton.masked:
            return super().log_next(tokens)
        mask = automaton.mask if tokens is None else automaton.mask[list(tokens)]
        return np.where(mask, 0.0, NEG_INF)
