"""A learned twist as a token-level potential: tokens are drawn from q ∝ p ψ.

    prefix(x_1…x_t) = ψ(x_1…x_t)        complete(x) = 1

The target stays what it was. As a guide a twist says when to resample; drawn from, it also removes
the chance of the next token, and with ψ = h* every weight is Z. ψ is asked for every token of the
vocabulary, which wants a small one; with a large one twist a backward filter of
`lmppl.inference.bffg`.

Reference: Zhao, Brekelmans, Makhzani and Grosse (2024), the twist-induced proposal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmppl.inference.guide import Guide
from lmppl.inference.learning.prefixes import half_drawn, is_half_drawn
from lmppl.inference.learning.twists import Twist
from lmppl.lm.base import LanguageModel
from lmppl.token_potentials import TokenPotential, TokenState
from lmppl.trace import Trace
from lmppl.types import Floats, Ids


class TwistPotential(TokenPotential):
    """`LM(prompt, potential=drawn)` and `SMC(guide=drawn.guide)`, drawn = TwistPotential(twist, "x").

    Args:
        twist: its features look at one string alone.
        at: the address of that string.
    """

    def __init__(self, twist: Twist, at: str) -> None:
        """Keep both."""
        self.twist, self.at = twist, at

    @property
    def guide(self) -> Guide:
        """ψ where the string is not half drawn: there it is a part of the string's weight."""
        at = self.at

        def elsewhere(traces: Sequence[Trace]) -> Floats:
            inside = [is_half_drawn(t, at) and bool(t.partial[at].ids) for t in traces]
            return np.where(inside, 0.0, self.twist.log_psi(traces))

        return Guide(elsewhere, batched=True, name=f"learned twist around {at}")

    def start(self, lm: LanguageModel, stop: tuple[str, ...] = ()) -> TokenState:
        """The empty string."""
        return _State(self, lm, ())

    def log_psi(self, lm: LanguageModel, strings: Sequence[Ids]) -> Floats:
        """log ψ of strings that are being drawn [n]."""
        return self.twist.log_psi([half_drawn(Trace(None), self.at, ids, lm) for ids in strings])

    def __repr__(self) -> str:
        return f"TwistPotential({self.at})"


class _State(TokenState):
    __slots__ = ("_prefix", "ids", "lm", "potential")

    def __init__(
        self, potential: TwistPotential, lm: LanguageModel, ids: Ids, prefix: float | None = None
    ) -> None:
        self.potential, self.lm, self.ids, self._prefix = potential, lm, ids, prefix

    @property
    def log_prefix(self) -> float:
        if self._prefix is None:
            self._prefix = float(self.potential.log_psi(self.lm, [self.ids])[0])
        return self._prefix

    @property
    def log_complete(self) -> float:
        return 0.0

    def advance(self, token: int) -> TokenState:
        return _State(self.potential, self.lm, (*self.ids, token))

    def log_next(self, tokens: Sequence[int] | None = None) -> Floats:
        """All at once."""
        ids = range(self.lm.vocab_size) if tokens is None else tokens
        out = self.potential.log_psi(self.lm, [(*self.ids, v) for v in ids])
        out[[v in self.lm.eos_ids for v in ids]] = 0.0
        return np.asarray(out - self.log_prefix)
