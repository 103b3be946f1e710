"""Rows of a server that gives whole rows: exact, for what its own loop cannot do.

Masks, truncated and tempered laws, enumeration and tests need the next-token law itself. Each new
token costs a row one request and some megabytes of JSON, so this is the slow road; whole strings
under the plain law go by the server's own loop (`http.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmppl.lm.base import Drawn, Rows, TokenLaw
from lmppl.lm.table import tempered, token_law
from lmppl.random import Chance
from lmppl.types import Bools, Floats, Ids, Ints, Keys
from lmppl.weights import NEG_INF

if TYPE_CHECKING:
    from lmppl.lm.http import HTTPLM


class HTTPRows(Rows):
    """Token sequences whose rows are fetched when they are looked at."""

    def __init__(self, lm: HTTPLM, contexts: Sequence[Ids]) -> None:
        """Fetch nothing yet."""
        self.lm = lm
        self.contexts = list(contexts)
        self._rows: Floats | None = None

    def log_probs(self) -> Floats:
        """The rows [B, V]; equal contexts are fetched once."""
        if self._rows is None:
            self._rows = np.stack(self.lm.rows_of(self.contexts))
        return self._rows

    def draw(
        self, keys: Keys, laws: Sequence[TokenLaw], mask: Bools | None, chance: Chance
    ) -> Drawn:
        """Draw here, by the equations of `TokenLaw`."""
        log_model = self.log_probs()
        logp, logq = np.empty_like(log_model), np.empty_like(log_model)
        for law in dict.fromkeys(laws):
            own = np.array([i for i, other in enumerate(laws) if other == law])
            part = None if mask is None else mask[own]
            logp[own], logq[own] = token_law(log_model[own], law, part)
        n = np.arange(len(logq))
        tokens = np.full(len(logq), -1, dtype=np.int64)
        alive = np.flatnonzero((logq > NEG_INF).any(axis=1))
        if len(alive):
            tokens[alive] = chance.categorical(keys[alive], logq[alive])
        dead = tokens < 0
        return Drawn(
            tokens,
            np.where(dead, NEG_INF, logp[n, tokens]),
            np.where(dead, NEG_INF, logq[n, tokens]),
        )

    def log_mass(self, sets: Sequence[Sequence[int]], temperatures: Sequence[float]) -> Floats:
        """Log Σ over each set."""
        out = []
        for row, ids, t in zip(self.log_probs(), sets, temperatures, strict=True):
            part = tempered(row, t)[list(ids)]
            out.append(np.logaddexp.reduce(part) if len(part) else NEG_INF)
        return np.array(out, dtype=np.float64)

    def push(self, tokens: Ints) -> None:
        """Longer sequences."""
        pairs = zip(self.contexts, tokens.tolist(), strict=True)
        self.contexts = [(*c, v) for c, v in pairs]
        self._rows = None

    def select(self, rows: Ints) -> None:
        """Other sequences."""
        self.contexts = [self.contexts[i] for i in rows.tolist()]
        self._rows = None if self._rows is None else self._rows[rows]

    def close(self) -> None:
        """The server keeps its own cache."""
