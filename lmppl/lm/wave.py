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

from lmppl.lm.base import LanguageModel
from lmppl.lm.block import FIRST, watched
from lmppl.lm.generate import StringLaw, StringState, completes_stop
from lmppl.random import Chance, fold_array
from lmppl.types import Bools, Floats, Ids, Ints
from lmppl.weights import NEG_INF


class Wave(NamedTuple):
    """The strings of a wave."""

    results: list[Any]
    lengths: list[int]
    """Tokens of each, its terminator included."""
    passes: int
    """Batched passes of the model."""


Made: TypeAlias = Callable[[list[int], list[float], float, float, str], Any]
"""Makes a draw of (ids, log p of each, log-weight, log q, why it ended)."""

SHARED = 4
"""Strings of at most so many tokens are looked up among their equals."""


def is_whole(law: StringLaw) -> bool:
    """Whether strings of a law need no state: nothing runs beside their tokens."""
    return law.constraint is None and law.limit != "eos"


def draw_whole(
    lm: LanguageModel,
    law: StringLaw,
    contexts: Sequence[Ids],
    keys: Sequence[int],
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
    if lm.draws_strings:
        return _drawn_elsewhere(lm, law, contexts, keys, chance, made)
    n, most = len(contexts), law.max_tokens
    rows = lm.open(contexts)
    noise = np.array(keys, dtype=np.uint64)
    place: Ints | None = None
    """Of each row that is left, its string; None while all are."""
    laws = [law.token] * n
    ends = watched(lm, law.stop)
    tokens = np.empty((n, min(most, FIRST)), dtype=np.int64)
    logps = np.empty(tokens.shape)
    logw, logq = np.zeros(n), np.zeros(n)
    lengths = np.full(n, most)
    why = ["length"] * n
    if law.limit == "kill":
        why = ["dead"] * n
    for step in range(most):
        drawn = rows.draw(fold_array(noise, step), laws, None, chance)
        new, logp, logq_new = drawn
        if law.target_is_proposal:
            logp = logq_new
        if step == tokens.shape[1]:
            tokens = np.concatenate([tokens, np.empty_like(tokens)], axis=1)
            logps = np.concatenate([logps, np.empty_like(logps)], axis=1)
        at: Any = slice(None) if place is None else place
        tokens[at, step], logps[at, step] = new, logp
        dead = (new < 0) | (logp == NEG_INF)
        with np.errstate(invalid="ignore"):  # of dead rows, which weigh nothing
            logw[at] += law.power * logp - logq_new
            logq[at] += logq_new
        look: Bools = ends[new] | dead
        if step + 1 == most:
            asked = np.flatnonzero(look)
            _close(lm, law, asked.tolist(), new, dead, tokens, step, place, lengths, why)
            break
        if look.any():
            asked = np.flatnonzero(look)
            gone = _close(lm, law, asked.tolist(), new, dead, tokens, step, place, lengths, why)
            if gone:
                keep = np.ones(len(new), dtype=bool)
                keep[gone] = False
                left = np.flatnonzero(keep)
                if not len(left):
                    break
                rows.select(left)
                new, noise = new[left], noise[left]
                place = left if place is None else place[left]
                laws = laws[: len(left)]
        rows.push(new)
    rows.close()
    for i, reason in enumerate(why):
        if reason == "dead":
            logw[i] = NEG_INF
    results = _results(tokens, logps, logw, logq, lengths, why, made)
    return Wave(results, lengths.tolist(), step + 1)


def _drawn_elsewhere(
    lm: LanguageModel,
    law: StringLaw,
    contexts: Sequence[Ids],
    keys: Sequence[int],
    chance: Chance,
    made: Made,
) -> Wave:
    """The same where the token loop is the server's."""
    states = [StringState(law, c, k) for c, k in zip(contexts, keys, strict=True)]
    passes = lm.advance(states, chance, None)
    results = [made(s.ids, s.logps, s.logw, s.logq, s.finish) for s in states]
    return Wave(results, [len(s.ids) for s in states], passes)


def _close(
    lm: LanguageModel,
    law: StringLaw,
    asked: Sequence[int],
    new: Ints,
    dead: Bools,
    tokens: Ints,
    step: int,
    place: Ints | None,
    lengths: Ints,
    why: list[str],
) -> list[int]:
    """Of the rows that may have ended with their newest token, those that have."""
    gone = []
    for row in asked:
        i = row if place is None else int(place[row])
        if dead[row]:
            why[i], lengths[i] = "dead", step
        elif int(new[row]) in lm.eos_ids:
            why[i], lengths[i] = "eos", step + 1
        elif law.stop and completes_stop(lm, tokens[i, : step + 1].tolist(), law.stop):
            why[i], lengths[i] = "stop", step + 1
        else:
            continue
        gone.append(row)
    return gone


def _results(
    tokens: Ints,
    logps: Floats,
    logw: Floats,
    logq: Floats,
    lengths: Ints,
    why: Sequence[str],
    made: Made,
) -> list[Any]:
    width = int(lengths.max(initial=0))
    rows: list[list[int]] = tokens[:, :width].tolist()
    terms: list[list[float]] = logps[:, :width].tolist()
    weights, chances = logw.tolist(), logq.tolist()
    if width == 1 and "dead" not in why:
        # labels and letters: one object for each, and no list is cut
        seen: dict[tuple[int, float, float], Any] = {}
        out = []
        for (token,), (logp,), w, q, reason in zip(rows, terms, weights, chances, why, strict=True):
            found = seen.get((token, logp, q))
            if found is None:
                found = seen[token, logp, q] = made([token], [logp], w, q, reason)
            out.append(found)
        return out
    known: dict[tuple[tuple[int, ...], tuple[float, ...], float], Any] = {}
    out = []
    for ids, parts, w, q, n, reason in zip(
        rows, terms, weights, chances, lengths.tolist(), why, strict=True
    ):
        if n < width:
            del ids[n:], parts[n:]
        if n > SHARED or reason == "dead":
            out.append(made(ids, parts, w, q, reason))
            continue
        key = (tuple(ids), tuple(parts), q)
        found = known.get(key)
        if found is None:
            found = known[key] = made(ids, parts, w, q, reason)
        out.append(found)
    return out
