"""Log-weights over the vocabulary, one row per string, kept where the model keeps its scores.

A sampler that looks at a few tokens only (`lmppl.token_potentials.samplers`) asks five things of a
row: its mass, its largest entries, a draw, a draw without what was taken out before, and a product
with a potential. `TokenWeights` answers them beside the logits, so that a handful of numbers per
string reach the host, and never a row. `HostWeights` are the equations, on arrays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmppl.lm.base import TokenLaw
from lmppl.lm.token_law import token_law
from lmppl.random import Chance
from lmppl.types import Floats, Ints, Keys
from lmppl.weights import NEG_INF, log_sum


class TokenWeights(ABC):
    """Log-weights w [B, V]; `rows` [n] says which rows are meant, repeats allowed."""

    width: int
    """V."""

    @abstractmethod
    def select(self, rows: Ints) -> TokenWeights:
        """A copy of these rows."""

    @abstractmethod
    def at(self, rows: Ints, tokens: Ints) -> Floats:
        """w of one token per row [n]."""

    @abstractmethod
    def log_mass(self, rows: Ints) -> Floats:
        """Log Σ_v exp w(v) [n]; `-inf` where no token is left."""

    @abstractmethod
    def largest(self, k: int) -> Ints:
        """The ids of the k largest entries of each row [B, k], by id."""

    @abstractmethod
    def draw(self, rows: Ints, keys: Keys, chance: Chance) -> tuple[Ints, Floats, Floats]:
        """One token v ∝ exp w(v) of each row, w(v) and the log-mass, by one answer of the device.

        Where no token is left they are -1, `-inf` and `-inf`.
        """

    @abstractmethod
    def take_out(self, rows: Ints, tokens: Ints) -> None:
        """Set these entries to `-inf`, in place: of a copy made by `select`."""

    @abstractmethod
    def tilted(self, rows: Ints, weights: Floats, which: Ints) -> TokenWeights:
        """New rows w + weights[which] [n], of weights [U, V] on the host."""

    @abstractmethod
    def outside(self, rows: Ints, other: TokenWeights) -> TokenWeights:
        """New rows [n]: w where the rows of `other`, of the same kind, have `-inf`, else `-inf`."""


class LawWeights(NamedTuple):
    """The normalised rows that draws under a potential start from; see `TokenLaw`."""

    target: TokenWeights
    """log p."""
    proposal: TokenWeights
    """log q, without mask or potential."""
    warm: TokenWeights | None
    """What to draw from where the proposal's truncation leaves nothing; None: it truncates nothing."""

    def select(self, rows: Ints) -> LawWeights:
        """A copy of these rows."""
        warm = None if self.warm is None else self.warm.select(rows)
        return LawWeights(self.target.select(rows), self.proposal.select(rows), warm)


class HostWeights(TokenWeights):
    """Rows in an array."""

    def __init__(self, x: Floats) -> None:
        """Keep the array [B, V]."""
        self.x = x
        self.width = x.shape[1]

    def select(self, rows: Ints) -> HostWeights:
        """See the base class."""
        return HostWeights(self.x[rows])

    def at(self, rows: Ints, tokens: Ints) -> Floats:
        """See the base class."""
        return self.x[rows, tokens]

    def log_mass(self, rows: Ints) -> Floats:
        """See the base class."""
        return log_sum(self.x[rows], (1,))

    def largest(self, k: int) -> Ints:
        """See the base class."""
        if k >= self.width:
            return np.tile(np.arange(self.width), (len(self.x), 1))
        return np.sort(np.argpartition(-self.x, k - 1, axis=1)[:, :k], axis=1)

    def draw(self, rows: Ints, keys: Keys, chance: Chance) -> tuple[Ints, Floats, Floats]:
        """See the base class."""
        part = self.x[rows]
        tokens = np.full(len(part), -1, dtype=np.int64)
        alive = np.flatnonzero((part > NEG_INF).any(axis=1))
        if len(alive):
            tokens[alive] = chance.categorical(keys[alive], part[alive])
        logs = np.where(tokens < 0, NEG_INF, part[np.arange(len(part)), tokens])
        return tokens, logs, log_sum(part, (1,))

    def take_out(self, rows: Ints, tokens: Ints) -> None:
        """See the base class."""
        self.x[rows, tokens] = NEG_INF

    def tilted(self, rows: Ints, weights: Floats, which: Ints) -> HostWeights:
        """See the base class."""
        return HostWeights(self.x[rows] + weights[which])

    def outside(self, rows: Ints, other: TokenWeights) -> HostWeights:
        """See the base class."""
        if not isinstance(other, HostWeights):
            raise TypeError(f"rows on the host beside {type(other).__name__}")
        return HostWeights(np.where(other.x[rows] == NEG_INF, self.x[rows], NEG_INF))


def host_weights(log_model: Floats, laws: Sequence[TokenLaw]) -> LawWeights:
    """The rows of one law per string, from the model's log-probabilities [B, V]."""
    logp, logq, warm = (np.empty_like(log_model) for _ in range(3))
    for law in dict.fromkeys(laws):
        own = np.array([i for i, other in enumerate(laws) if other == law])
        logp[own], logq[own] = token_law(log_model[own], law, None)
        free = law._replace(top_k=0, top_p=1.0)
        warm[own] = token_law(log_model[own], free, None)[1] if law.truncates else logq[own]
    cut = any(law.truncates for law in laws)
    return LawWeights(HostWeights(logp), HostWeights(logq), HostWeights(warm) if cut else None)
