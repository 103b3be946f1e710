"""Whole strings drawn at once: the token loop where nobody looks at a string half-way.

`advance` (lm/generate.py) moves `StringState`s, which can be stopped in their middle, forked and
weighed. Most strings are drawn from their first token to their last in one go: then there is no need
of a state for each. `draw_whole` keeps all of a wave in arrays and hands back finished draws.

The draws are those of `advance`, bit for bit: the noise of a token is a function of the key of its
string and its number. Equal short strings of a wave are one object, since texts are values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from lmppl.lm.base import Drawn, LanguageModel
from lmppl.lm.block import Columns, watched
from lmppl.lm.generate import StringLaw, StringState, completes_stop
from lmppl.random import Chance, fold_array
from lmppl.types import Bools, Ids, Ints, Keys
from lmppl.weights import NEG_INF


class Wave(NamedTuple):
    """The strings of a wave."""

    results: list[Any]
    lengths: list[int]
    """Tokens of each, its terminator included."""
    passes: int
    """Batched passes of the model."""


Made: TypeAlias = Callable[[list[int], list[float], float, float, str | None], Any]
"""Makes a draw of (ids, log p of each, log-weight, log q, why it ended)."""

SHARED = 4
"""Strings of at most so many tokens are looked up among their equals."""


def is_whole(law: StringLaw) -> bool:
    """Whether strings of a law need no state: nothing runs beside their tokens."""
    return law.constraint is None and law.potential is None and law.limit != "eos"


def draw_whole(
    lm: LanguageModel,
    law: StringLaw,
    contexts: Sequence[Ids],
    keys: Keys,
    chance: Chance,
    made: Made,
) -> Wave:
    """Draw one string after each context, to its end.

    Args:
        lm: the model.
        law: of all strings; `is_whole` holds for it.
        contexts: token ids before each string [N].
        keys: the key of each string [N].
        chance: who answers the draws.
        made: makes the result of a string.
    """
    n = len(contexts)
    if lm.draws_strings or (lm.bounded and lm.fits(contexts, [law.max_tokens] * n) < n):
        # the token loop is the model's own: a server, or more strings than fit
        states = [StringState(law, c, k) for c, k in zip(contexts, keys.tolist(), strict=True)]
        passes = lm.advance(states, chance, None)
        results = [made(s.ids, s.logps, s.logw, s.logq, s.finish) for s in states]
        return Wave(results, [len(s.ids) for s in states], passes)
    rows = lm.open(contexts)
    noise, laws = keys, [law.token] * n
    record = _Record(lm, law, n)
    while True:
        drawn = rows.draw(fold_array(noise, record.columns.steps), laws, None, chance)
        left, last = record.take(drawn), drawn.tokens
        if left is not None:
            if not len(left):
                break
            rows.select(left)
            noise, laws, last = noise[left], laws[: len(left)], last[left]
        rows.push(last)
    rows.close()
    return Wave(record.results(made), record.lengths.tolist(), record.columns.steps)


class _Record:
    """What has been drawn, by string; `place` says which string a row of the batch is."""

    def __init__(self, lm: LanguageModel, law: StringLaw, n: int) -> None:
        self.lm, self.law = lm, law
        self.lengths = np.full(n, law.max_tokens)
        self.columns = Columns(n, law.max_tokens)
        self._ends = watched(lm, law.stop)
        self._place: Ints = np.arange(n)
        self._why = ["dead" if law.limit == "kill" else "length"] * n

    def take(self, drawn: Drawn) -> Ints | None:
        """Append a token to every row; returns the rows that go on (None: all)."""
        if self.law.target_is_proposal:
            drawn = drawn._replace(logp=drawn.logq)
        new, logp, _ = drawn
        dead: Bools = (new < 0) | (logp == NEG_INF)
        self.columns.append(self._place, drawn, self.law.power)
        asked = np.flatnonzero(self._ends[new] | dead)
        gone = [row for row in asked.tolist() if self._ended(row, int(new[row]), bool(dead[row]))]
        if self.columns.steps == self.law.max_tokens:
            return np.empty(0, dtype=np.int64)
        if not gone:
            return None
        left = np.delete(np.arange(len(new)), gone)
        self._place = self._place[left]
        return left

    def _ended(self, row: int, token: int, dead: bool) -> bool:
        """Whether the newest token of a row, which may end its string, does."""
        i, steps = int(self._place[row]), self.columns.steps
        if dead:
            self._why[i], self.lengths[i] = "dead", steps - 1
            return True
        if token in self.lm.eos_ids:
            self._why[i] = "eos"
        elif self.law.stop and completes_stop(
            self.lm, self.columns.tokens[i, :steps].tolist(), self.law.stop
        ):
            self._why[i] = "stop"
        else:
            return False
        self.lengths[i] = steps
        return True

    def results(self, made: Made) -> list[Any]:
        """A draw of each string; short ones that are equal in all respects share theirs."""
        why, columns = self._why, self.columns
        if "dead" in why:
            columns.logw[[i for i, reason in enumerate(why) if reason == "dead"]] = NEG_INF
        width = int(self.lengths.max(initial=0))
        rows: list[list[int]] = columns.tokens[:, :width].tolist()
        terms: list[list[float]] = columns.logps[:, :width].tolist()
        known: dict[Any, Any] = {}
        out = []
        key: Any
        for ids, logps, w, q, n, reason in zip(
            rows, terms, columns.logw.tolist(), columns.logq.tolist(), self.lengths.tolist(), why,
            strict=True,
        ):  # fmt: skip
            if n == 1 == width:
                key = (ids[0], logps[0], w, q)
            else:
                del ids[n:], logps[n:]
                if n > SHARED:
                    out.append(made(ids, logps, w, q, reason))
                    continue
                key = (*ids, *logps, w, q, reason)
            found = known.get(key)
            if found is None:
                found = known[key] = made(ids, logps, w, q, reason)
            out.append(found)
        return out
