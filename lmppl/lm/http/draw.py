"""Strings drawn by a server's own loop, all at once, each read here as it was drawn.

The server gets a context, a seed and the ends; what comes back is read token by token, as the token
loop of `lm/generate.py` would have read it. A string that ends earlier than the server thought is
cut there, one that the server ended elsewhere is asked for its rest: the law is the model's, whoever
draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lmppl.lm.generate import StringState, end_ids
from lmppl.lm.http.dialects import Ask, Reply
from lmppl.lm.http.errors import BadResponse
from lmppl.random import fold
from lmppl.types import Ids

if TYPE_CHECKING:
    from lmppl.lm.http import HTTPLM

CHUNK = 16
"""Tokens of one request where a stop text must be looked for here."""


class Came(NamedTuple):
    """What a server drew for one string."""

    state: StringState
    tokens: Ids
    logps: tuple[float, ...]
    """As it reported them."""


def continue_strings(
    lm: HTTPLM, states: Sequence[StringState], greedy: bool, limit: int | None
) -> int:
    """Rounds of requests until every string has ended or grown by `limit`; how many there were.

    What has come is kept in the states when another request fails, so it is not paid again.
    """
    goal = {id(s): s.law.max_tokens for s in states}
    if limit is not None:
        goal = {id(s): min(s.law.max_tokens, len(s.ids) + limit) for s in states}
    rounds = 0
    while True:
        live = [s for s in states if s.finish is None and len(s.ids) < goal[id(s)]]
        if not live:
            break
        asks = [_asked(lm, s, goal[id(s)] - len(s.ids), greedy) for s in live]
        replies, failure = lm.try_all(asks)
        came = [
            _read(lm, s, ask, reply)
            for s, ask, reply in zip(live, asks, replies, strict=True)
            if reply is not None
        ]
        for one, logps in zip(came, _targets(lm, came), strict=True):
            _extend(lm, one, logps)
        rounds += 1
        if failure is not None:
            raise failure
    _end(lm, states)
    return rounds


def _asked(lm: HTTPLM, s: StringState, most: int, greedy: bool) -> Ask:
    stop, token = s.law.stop, s.law.token
    bare = lm.probed.meaning == "none"
    return Ask(
        prompt=(*s.context, *s.ids),
        most=min(most, CHUNK) if stop and not lm.dialect.stops and not bare else most,
        seed=fold(s.key, len(s.ids), "http") & ((1 << lm.dialect.seed_bits) - 1),
        temperature=0.0 if greedy else token.temperature,
        top_p=1.0 if greedy else token.top_p,
        top_k=1 if greedy else token.top_k,
        stop=stop if lm.dialect.stops or bare else (),
        ends=tuple(sorted(lm.eos_ids)),
    )


def _read(lm: HTTPLM, s: StringState, ask: Ask, reply: Reply) -> Came:
    """The tokens of a reply; of a bare text its canonical ones, and an end."""
    if not reply.logps:
        tokens = reply.tokens or lm.encode(reply.text or "")
        if not reply.tokens and reply.why != "length":
            tokens += lm.encode(s.law.stop[0]) if s.law.stop else tuple(lm.eos_ids)[:1]
        return Came(s, tokens, (0.0,) * len(tokens))
    logps = list(reply.logps)
    if reply.gaps:
        rows = lm.rows_of([(*ask.prompt, *reply.tokens[:at]) for at in reply.gaps])
        for at, row in zip(reply.gaps, rows, strict=True):
            logps[at] = float(row[reply.tokens[at]])
    return Came(s, reply.tokens, tuple(logps))


def _targets(lm: HTTPLM, came: Sequence[Came]) -> list[tuple[float, ...]]:
    """Log p of each token: as reported, or scored where what was reported is log q."""
    out = [one.logps for one in came]
    if lm.probed.meaning != "processed" or not lm.probed.scores:
        return out
    other = [i for i, one in enumerate(came) if one.state.law.token.settings()]
    found = lm.plain_scores(
        [(*came[i].state.context, *came[i].state.ids) for i in other],
        [came[i].tokens for i in other],
        [None] * len(other),
    )
    for i, row in zip(other, found, strict=True):
        out[i] = tuple(row.tolist())
    return out


def _extend(lm: HTTPLM, came: Came, targets: Sequence[float]) -> None:
    s = came.state
    if not came.tokens:
        raise BadResponse(
            "the server drew no token", fix="nothing of it is used; look at the server's log"
        )
    for token, logp, logq in zip(came.tokens, targets, came.logps, strict=True):
        s.extend(lm, token, logp, logq)
        if s.finish is not None or s.awaits_end:
            return


def _end(lm: HTTPLM, states: Sequence[StringState]) -> None:
    """limit="eos": give the strings that are full the mass of their ends."""
    full = [s for s in states if s.awaits_end]
    if not full:
        return
    masses = lm.score(
        [(*s.context, *s.ids) for s in full],
        [()] * len(full),
        [end_ids(lm, s.law.stop) for s in full],
        [s.law.target_temperature for s in full],
    )
    for s, mass in zip(full, masses, strict=True):
        s.finish_length(float(mass[0]))
