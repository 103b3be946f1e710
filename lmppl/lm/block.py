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
from lmppl.types import Bools, Floats, Ints
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


class Columns:
    """What strings draw, a column a step: token ids and log p [N, steps], log-weight and log q [N]."""

    def __init__(self, n: int, room: int) -> None:
        """Nothing is drawn; there is room for so many steps before it grows."""
        self.tokens = np.empty((n, min(room, FIRST)), dtype=np.int64)
        self.logps = np.empty(self.tokens.shape)
        self.logw, self.logq = np.zeros(n), np.zeros(n)
        self.steps = 0

    def append(self, at: Ints, drawn: Drawn, power: float | Floats) -> None:
        """A step of the strings `at`; where one died its weight is for the caller to set."""
        if self.steps == self.tokens.shape[1]:
            self.tokens = np.concatenate([self.tokens, np.empty_like(self.tokens)], axis=1)
            self.logps = np.concatenate([self.logps, np.empty_like(self.logps)], axis=1)
        self.tokens[at, self.steps], self.logps[at, self.steps] = drawn.tokens, drawn.logp
        with np.errstate(invalid="ignore"):  # of those that died
            self.logw[at] += power * drawn.logp - drawn.logq
            self.logq[at] += drawn.logq
        self.steps += 1


class Block:
    """The rows of one run of the token loop.

    `states`, `keys`, `steps` and `laws` are those of the rows that are left, in order.
    """

    def __init__(self, lm: LanguageModel, states: list[StringState], limit: int | None) -> None:
        """Take the numbers of the states over."""
        n, law = len(states), states[0].law
        self.lm = lm
        self.states = states
        self.keys = np.array([s.key for s in states], dtype=np.uint64)
        self.steps = np.array([len(s.ids) for s in states], dtype=np.uint64)
        self.last: Ints = np.empty(0, dtype=np.int64)
        """The newest token of each row."""
        laws = None if all([s.law is law for s in states]) else [s.law for s in states]
        """None: one law for all, which is the rule when particles stand at one site."""
        self.laws = [law.token] * n if laws is None else [one.token for one in laws]
        most = law.max_tokens if laws is None else np.array([one.max_tokens for one in laws])
        self._left = most - self.steps.astype(np.int64)
        self._power = np.full(n, law.power)
        own = law.target_is_proposal
        self._own: Bools | None = np.full(n, own) if own else None
        self._bound = np.full(n, law.constraint is not None)
        self._group = np.zeros(n, dtype=np.int64)
        groups = {law.stop: 0}
        if laws is not None:
            self._power = np.array([one.power for one in laws])
            self._own = np.array([one.target_is_proposal for one in laws])
            self._bound = np.array([one.constraint is not None for one in laws])
            self._group = np.array([groups.setdefault(one.stop, len(groups)) for one in laws])
        self.constrained = bool(self._bound.any())
        self._watched = [watched(lm, stop) for stop in groups]
        # What was drawn stays where it was written, by the first number of its row
        self._place = np.arange(n)
        self._columns = Columns(n, int(self._left.max()) if limit is None else limit)
        if self.steps.any():
            self._columns.logw += [s.logw for s in states]
            self._columns.logq += [s.logq for s in states]
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
        self._columns.append(self._place, Drawn(tokens, logp, logq), self._power)
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
        for name in ("keys", "steps", "last", "_left", "_power", "_bound", "_group", "_place"):
            setattr(self, name, getattr(self, name)[rows])
        if self._own is not None:
            self._own = self._own[rows]

    def write(self) -> None:
        """Bring the states of unfinished strings up to date; the others were when they ended."""
        rows = [i for i, s in enumerate(self.states) if s.finish is None]
        if rows:
            self._write(rows, None)

    def _write(self, rows: Sequence[int], dead: Bools | None) -> None:
        """Bring states up to date; a dead row's last token was none."""
        places, columns = self._place[rows], self._columns
        tokens = columns.tokens[places, : columns.steps].tolist()
        logps_of = columns.logps[places, : columns.steps].tolist()
        logw, logq = columns.logw[places].tolist(), columns.logq[places].tolist()
        known = self._known
        for k, (i, place) in enumerate(zip(rows, places.tolist(), strict=True)):
            s = self.states[i]
            at = known.get(place, 0)
            ids, logps = tokens[k], logps_of[k]
            if dead is not None and dead[i]:
                ids.pop()
                logps.pop()
            if at or s.ids:
                s.ids += ids[at:]
                s.logps += logps[at:]
            else:
                s.ids, s.logps = ids, logps
            s.logw, s.logq = logw[k], logq[k]
            known[place] = columns.steps
