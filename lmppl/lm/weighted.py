"""The token loop under a potential: every token is drawn by a sampler, and weighed.

The proposal is the model's law under the string's settings (temperature, top-p, top-k, mixture); a
sampler of `lmppl.token_potentials` draws from proposal · potential. The exact one weighs the whole
vocabulary: where the model's rows can (`Rows.tilts`), the weights of each distinct state go to them,
and the product is made and drawn from beside the logits. Samplers that look at a few tokens only take
the rows to the host. Masks alone do not come here: `lm.generate.advance_rows` applies them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmppl.lm.base import LanguageModel, Rows, TokenLaw
from lmppl.lm.generate import StringState, force_ends
from lmppl.lm.table import token_law
from lmppl.random import Chance, fold_array
from lmppl.token_potentials.samplers import Exact, Picked, Sampler, next_rows
from lmppl.types import Floats, Keys
from lmppl.weights import NEG_INF


def advance_weighted(
    lm: LanguageModel, states: Sequence[StringState], chance: Chance, limit: int | None = None
) -> int:
    """Advance unfinished strings in place, as `lm.generate.advance`; returns the number of passes."""
    passes = 0
    queue = list(states)
    while queue:
        many = len(queue)
        if lm.bounded:
            many = max(1, lm.fits([s.prefix for s in queue], [s.left(limit) for s in queue]))
        passes += _advance(lm, queue[:many], chance, limit)
        queue = queue[many:]
    return passes


def _advance(lm: LanguageModel, live: list[StringState], chance: Chance, limit: int | None) -> int:
    rows = lm.open([s.prefix for s in live])
    passes = 0
    while True:
        keys = fold_array(
            np.array([s.key for s in live], dtype=np.uint64),
            np.array([len(s.ids) for s in live], dtype=np.uint64),
        )
        if rows.tilts and all(isinstance(s.law.sampler, Exact | None) for s in live):
            _draw_beside(lm, live, rows, keys, chance)
        else:
            _draw(lm, live, rows.log_probs(), keys, chance)
        passes += 1
        keep = [i for i, s in enumerate(live) if s.finish is None]
        if not keep:
            break
        if len(keep) < len(live):
            rows.select(np.array(keep, dtype=np.int64))
            live = [live[i] for i in keep]
        full = any(s.awaits_end for s in live)
        if passes == limit and not full:
            break
        rows.push(np.array([s.ids[-1] for s in live], dtype=np.int64))
        if full:
            force_ends(lm, rows, live)
            keep = [i for i, s in enumerate(live) if s.finish is None]
            if not keep or passes == limit:
                break
            rows.select(np.array(keep, dtype=np.int64))
            live = [live[i] for i in keep]
    rows.close()
    return passes


def _draw_beside(
    lm: LanguageModel, live: Sequence[StringState], rows: Rows, keys: Keys, chance: Chance
) -> None:
    """One token for every string, each by the exact sampler; no row comes to the host."""
    trackers = [t for s in live if (t := s.tracker) is not None]
    weights, which = next_rows(trackers)
    drawn = rows.draw_tilted(keys, [s.law.token for s in live], weights, which, chance)
    tokens, logps, logqs = (x.tolist() for x in drawn)
    for s, token, logp, logq in zip(live, tokens, logps, logqs, strict=True):
        if token < 0 or logp == NEG_INF:
            s.kill()
        else:
            s.extend(lm, token, logp, logq)


def _draw(
    lm: LanguageModel, live: Sequence[StringState], log_model: Floats, keys: Keys, chance: Chance
) -> None:
    """One token for every string, by strings of equal settings."""
    groups: dict[tuple[TokenLaw, Sampler | None], list[int]] = {}
    for i, s in enumerate(live):
        groups.setdefault((s.law.token, s.law.sampler), []).append(i)
    for (law, sampler), members in groups.items():
        part = log_model if len(members) == len(live) else log_model[members]
        logp, logq = token_law(part, law, None)
        warm = token_law(part, law._replace(top_k=0, top_p=1.0), None)[1] if law.truncates else None
        trackers = [t for i in members if (t := live[i].tracker) is not None]
        found: list[Picked] = (sampler or Exact()).draw(logq, warm, trackers, keys[members], chance)
        for n, (i, picked) in enumerate(zip(members, found, strict=True)):
            s, token = live[i], picked.token
            if token < 0 or logp[n, token] == NEG_INF:
                s.kill()
            else:
                s.extend(lm, token, float(logp[n, token]), picked.logq)
