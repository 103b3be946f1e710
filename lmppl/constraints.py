"""Languages over tokens: which ids may come next, by llguidance.

A constraint is an automaton over *bytes*; `ConstraintState` is one of its states, immutable, so
that a particle forks by copying a reference. States are shared by all particles of a run: one
state (and one mask) per distinct byte prefix.

The mask allows **every** tokenisation of the language, not only the canonical one: by default
llguidance narrows forced bytes to one token, which would silently change the target, so grammars
are compiled with its option `no_forcing`. Tokens that are half a character, or that share their
bytes with another id, are handled as bytes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from lmppl.errors import ConstraintError, excerpt
from lmppl.grammars import Grammar
from lmppl.lm.base import LanguageModel
from lmppl.lm.once import OncePerModel
from lmppl.types import Bools

KEEP_STATES = 4096


class _Vocabulary:
    """A model's tokens in llguidance's form, made once per model.

    256 single-byte tokens are appended, so that any forced bytes can be spelled; they lie beyond
    the model's ids and are cut off every mask.
    """

    def __init__(self, lm: LanguageModel) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        self.size = lm.vocab_size
        words = [lm.token_bytes(i) for i in range(self.size)]
        self.eos = np.array(sorted(lm.eos_ids), dtype=np.int64)
        size, end = self.size, self.size + 256

        class Wrapped:
            eos_token_id = end
            bos_token_id = None
            tokens = [*words, *(bytes([b]) for b in range(256)), b""]
            special_token_ids = [*(i for i, w in enumerate(words) if not w), end]

            def __call__(self, text: bytes | str) -> list[int]:
                raw = text if isinstance(text, bytes) else text.encode()
                return [size + b for b in raw]

        self.tokenizer = LLTokenizer(TokenizerWrapper(Wrapped()))


vocabulary_of = OncePerModel(_Vocabulary)
"""The llguidance view of a model's tokens."""


class Constraint:
    """The texts of a grammar, followed by one of `stop` when it is given.

    Args:
        lm: the model whose tokens are meant.
        grammar: a `Grammar`, or a regular expression in the syntax of Rust's regex crate; it is
            matched against the whole string.
        stop: literal terminators; without them the string ends by an end-of-text token, or as
            soon as no longer string matches.

    Raises:
        ConstraintError: the grammar is not valid.
    """

    def __init__(
        self, lm: LanguageModel, grammar: Grammar | str, stop: tuple[str, ...] = ()
    ) -> None:
        """Compile the grammar."""
        from llguidance import LLMatcher

        self.lm = lm
        found = Grammar.regex(grammar) if isinstance(grammar, str) else grammar
        self.grammar = found
        self.vocabulary = vocabulary_of(lm)
        # alone first: "a)|(b" would become valid, and another language, inside the brackets
        for ends in dict.fromkeys(((), stop)):
            matcher = LLMatcher(self.vocabulary.tokenizer, found.compiled(ends))
            if matcher.is_error():
                raise _invalid(found, str(matcher.get_error()))
        self._states: dict[bytes, ConstraintState] = {}
        self._start = ConstraintState(self, matcher, b"")

    def start(self) -> ConstraintState:
        """The state before any token."""
        return self._start

    def _after(self, state: ConstraintState, token: int) -> ConstraintState | None:
        word = self.lm.token_bytes(token)
        seen = state.consumed + word
        found = self._states.get(seen)
        if found is None:
            if not word or state.matcher.validate_tokens([token]) != 1:
                return None
            matcher = state.matcher.deep_copy()
            matcher.consume_token(token)
            if len(self._states) >= KEEP_STATES:
                self._states.clear()
            found = self._states[seen] = ConstraintState(self, matcher, seen)
        return found


@lru_cache(maxsize=256)
def compiled(lm: LanguageModel, grammar: Grammar, stop: tuple[str, ...] = ()) -> Constraint:
    """The constraint of a grammar, made once per model."""
    return Constraint(lm, grammar, stop)


def _invalid(grammar: Grammar, reported: str) -> ConstraintError:
    lines = reported.strip().splitlines() or ["no reason given"]
    reasons = [line for line in lines if line.startswith("error: ")] or lines
    fixes = {
        "regex": "use the syntax of Rust's regex crate: no look-around, no back-references",
        "grammar": "use llguidance's dialect of Lark: a rule `start`, terminals in capitals",
    }
    return ConstraintError(
        f"this {grammar.kind} is not valid",
        value=excerpt(grammar.source),
        why=reasons[0].removeprefix("error: ")[:200],
        fix=fixes.get(grammar.kind, "simplify the schema: some keywords are not supported"),
    )


class ConstraintState:
    """A state of the automaton: what has been read, what may follow."""

    __slots__ = ("_mask", "accepting", "constraint", "consumed", "finished", "matcher")

    def __init__(self, constraint: Constraint, matcher: Any, consumed: bytes) -> None:
        """Wrap a matcher that nobody else changes."""
        self.constraint = constraint
        self.matcher = matcher
        self.consumed = consumed
        self._mask: Bools | None = None
        self.accepting = bool(matcher.is_accepting())
        """Whether the string may end here."""
        self.finished = bool(matcher.is_stopped())
        """Whether no longer string matches."""

    def advance(self, token: int) -> ConstraintState:
        """The state after an allowed token."""
        found = self.constraint._after(self, token)
        if found is None:
            raise ConstraintError(
                f"token {token} ({self.constraint.lm.token_bytes(token)!r}) does not continue the "
                "constraint",
                value=excerpt(self.consumed),
            )
        return found

    def after(self, token: int) -> ConstraintState | None:
        """The state after a token; None where the token is not allowed."""
        if self._mask is not None and not self._mask[token]:
            return None
        return self.constraint._after(self, token)

    @property
    def masked(self) -> bool:
        """Whether its mask has been computed."""
        return self._mask is not None

    @property
    def mask(self) -> Bools:
        """Allowed ids [V]; the end-of-text ids are allowed where the string may end."""
        if self._mask is None:
            self._mask = self._compute_mask()
        return self._mask

    def _compute_mask(self) -> Bools:
        vocabulary = self.constraint.vocabulary
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        mask = np.unpackbits(bits, bitorder="little")[: vocabulary.size].astype(bool)
        if len(vocabulary.eos):
            mask[vocabulary.eos] = self.accepting
        mask.setflags(write=False)
        return mask
