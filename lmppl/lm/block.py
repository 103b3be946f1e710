"""Strings that advance together, as arrays: the bookkeeping of the token loop.

One row is one unfinished string. A token costs its row a few array operations shared by all rows;
Python looks at a string only when its token may end it: an end-of-text token, a token that holds
the last byte of a stop string, the last token that is allowed, any token under a constraint. What
was drawn is written back to the `StringState`s then, and at the end of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lmppl.lm.base import Drawn, LanguageModel
from lmppl.types import Bools, Ints
from lmppl.weights import NEG_INF

if TYPE_CHECKING:
    from lmppl.lm.generate import StringState

FIRST = 64
"""Tokens that a block has room for before it grows."""


@lru_cache(maxsize=256)
def watched(lm: LanguageModel, stop: tuple[str, ...]) -> Bools:
    """Ids that may end a string [V]: end-of-text, and those with the last byte of a stop string."""
    lasts = [s.encode()[-1:] for s in stop]
    table = np.zeros(lm.vocab_size, dtype=bool)
    table[list(lm.eos_ids)] = True
    if lasts:
        for i in range(lm.vocab_size):
            word = lm.token_bytes(i)
            if word and any(last in word for last in lasts):
                table[i] = True
    table.setflags(write=False)
    return table


class Block:
    """The rows of one run of the token loop.

    `states`, `keys`, `steps` and `laws` are those of the rows that are left, in order.
    """

    def __init__(self, lm: LanguageModel, states: list[StringState], limit: int | None) -> None:
        """Take the numbers of the states over."""
        self.lm = lm
        self.states = states
        self.keys = np.array([s.key for s in states], dtype=np.uint64)
        self.steps = np.array([len(s.ids) for s in states], dtype=np.uint64)
        self.laws = [s.law.token for s in states]
        self.constrained = any(s.automaton is not None for s in states)
        self.last: Ints = np.empty(0, dtype=np.int64)
        """The newest token of each row."""
        self._logw = np.array([s.logw for s in states])
        self._logq = np.array([s.logq for s in states])
        self._left = np.array([s.law.max_tokens - len(s.ids) for s in states])
        self._power = np.array([s.law.power for s in states])
        plain = not any(s.law.target_is_proposal for s in states)
        self._own = None if plain else np.array([s.law.target_is_proposal for s in states])
        self._bound = np.array([s.automaton is not None for s in states])
        groups: dict[tuple[str, ...], int] = {}
        self._group = np.array([groups.setdefault(s.law.stop, len(groups)) for s in states])
        self._watched = [watched(lm, stop) for stop in groups]
        # What was drawn stays where it was written, by the first number of its row
        self._place = np.arange(len(states))
        room = int(self._left.max()) if limit is None else limit
        self._tokens = np.empty((len(states), min(room, FIRST)), dtype=np.int64)
        self._logps = np.empty(self._tokens.shape)
        self._drawn = 0
        self._known: dict[int, int] = {}
        """By place: how many of the drawn tokens its state has."""

    def take(self, drawn: Drawn) -> tuple[Ints | None, bool]:
        """Append a token to every row.

        Returns the rows that go on (None: all), and whether one of them only awaits its end.
        """
        tokens, logp, logq = drawn
        dead = (tokens < 0) | (logp == NEG_INF)
        if self._own is not None:
            logp = np.where(self._own, logq, logp)
        if self._drawn == self._tokens.shape[1]:
            self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)], axis=1)
            self._logps = np.concatenate([self._logps, np.empty_like(self._logps)], axis=1)
        self._tokens[self._place, self._drawn] = tokens
        self._logps[self._place, self._drawn] = logp
        with np.errstate(invalid="ignore"):  # of dead rows, whose weight is set below
            self._logw += self._power * logp - logq
            self._logq += logq
        self._drawn += 1
        self._left -= 1
        self.last = tokens
        look = dead | self._bound | (self._left <= 0)
        if len(self._watched) == 1:
            look |= self._watched[0][tokens]
        else:
            for g, table in enumerate(self._watched):
                look |= (self._group == g) & table[tokens]
        asked = np.flatnonzero(look)
        if not len(asked):
            return None, False
        ending = False
        keep = np.ones(len(tokens), dtype=bool)
        rows = asked.tolist()
        self._write(rows, dead)
        for i in rows:
            s = self.states[i]
            if dead[i]:
                s.kill()
            else:
                s.see(self.lm)
            if s.finish is not None:
                keep[i] = False
            elif s.awaits_end:
                ending = True
        return (None if keep.all() else np.flatnonzero(keep)), ending

    def select(self, rows: Ints) -> None:
        """Go on with these rows alone."""
        self.states = [self.states[i] for i in rows.tolist()]
        self.laws = [self.laws[i] for i in rows.tolist()]
        for name in ("keys", "steps", "last", "_logw", "_logq", "_left", "_power", "_bound"):
            setattr(self, name, getattr(self, name)[rows])
        self._group, self._place = self._group[rows], self._place[rows]
        if self._own is not None:
            self._own = self._own[rows]

    def write(self) -> None:
        """Bring the states of unfinished strings up to date; the others were when they ended."""
        rows = [i for i, s in enumerate(self.states) if s.finish is None]
        if rows:
            self._write(rows, None)

    def _write(self, rows: Sequence[int], dead: Bools | None) -> None:
        """Bring states up to date; a dead row's last token was none."""
        places = self._place[rows]
        tokens = self._tokens[places, : self._drawn].tolist()
        logps = self._logps[places, : self._drawn].tolist()
        logw, logq = self._logw[rows].tolist(), self._logq[rows].tolist()
        for k, (i, place) in enumerate(zip(rows, places.tolist(), strict=True)):
            s = self.states[i]
            at = self._known.get(place, 0)
            end = self._drawn if dead is None or not dead[i] else self._drawn - 1
            if s.ids or at or end < self._drawn:
                s.ids += tokens[k][at:end]
                s.logps += logps[k][at:end]
            else:
                s.ids, s.logps = tokens[k], logps[k]
            s.logw, s.logq = logw[k], logq[k]
            self._known[place] = self._drawn
