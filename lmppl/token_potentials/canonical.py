"""Canonical tokens: 1 for the tokens that the tokenizer makes of their own text, 0 for all others.

A model gives some probability to every way of spelling a text, and has learned one. Conditioning on
that one removes what it never saw: prefix zero as soon as no continuation can be canonical, complete
zero unless the whole string is.

How the end of a text is cut may change when the text goes on, its beginning may not. A model says
where that border is: `LanguageModel.settled(text)`. Up to there the tokens of a string are compared
with those of the tokenizer; what has been compared is not looked at again.

Reference: Vieira et al., Language models over canonical byte-pair encodings (2025).
"""

from __future__ import annotations

from lmppl.lm.base import LanguageModel
from lmppl.token_potentials.base import TokenPotential, TokenState
from lmppl.types import Ids
from lmppl.weights import NEG_INF


class Canonical(TokenPotential):
    """1 for canonical token sequences, 0 for others; a `stop` that ends the string counts as text.

    Each token costs a call of the tokenizer, so draw with `AWRS()` or `TopK(k)`.

    >>> from lmppl.lm.table import TableLM
    >>> lm = TableLM(["a", "b", "ab", "<eos>"], {(): [0.25] * 4})
    >>> state = Canonical().start(lm).advance(0).advance(1)       # "a" + "b" is spelled "ab"
    >>> state.log_prefix, state.log_complete
    (-inf, -inf)
    """

    def start(self, lm: LanguageModel, stop: tuple[str, ...] = ()) -> TokenState:
        """Nothing has been read."""
        return CanonicalState(lm, ())


class CanonicalState(TokenState):
    """The tokens that are not settled yet; `None` when a settled one was not canonical."""

    __slots__ = ("_complete", "lm", "open")

    def __init__(self, lm: LanguageModel, tokens: Ids | None) -> None:
        """Settle what can be."""
        self.lm = lm
        self.open = tokens
        self._complete: float | None = None
        if not tokens:
            return
        text = _text(lm, tokens)
        if text is None:
            return
        border = lm.settled(text)
        if not border:
            return
        done = 0
        for own, right in zip(tokens, lm.encode(text), strict=False):
            word = lm.token_bytes(own)
            if done >= border:
                break
            if own != right:
                self.open = None
                return
            done += len(word)
            tokens = tokens[1:]
        self.open = tokens

    @property
    def log_prefix(self) -> float:
        """`-inf` once a settled token is not canonical."""
        return NEG_INF if self.open is None else 0.0

    @property
    def log_complete(self) -> float:
        """Whether the rest is canonical as it stands."""
        if self._complete is None:
            text = None if self.open is None else _text(self.lm, self.open)
            right = text is not None and self.lm.encode(text) == self.open
            self._complete = 0.0 if right else NEG_INF
        return self._complete

    def advance(self, token: int) -> TokenState:
        """With one token more."""
        return CanonicalState(self.lm, None if self.open is None else (*self.open, token))


def _text(lm: LanguageModel, tokens: Ids) -> str | None:
    """What the tokens say; None while a character is half written."""
    try:
        return b"".join(map(lm.token_bytes, tokens)).decode()
    except UnicodeDecodeError:
        return None
