"""The token loop under a potential: every token is drawn by a sampler, and weighed.

The proposal is the model's law under the string's settings (temperature, top-p, top-k, mixture); a
sampler of `lmppl.token_potentials` draws from proposal · potential. It gets the rows as `TokenWeights`,
which stay beside the logits. Masks alone do not come here: `lm.generate.advance_rows` applies them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmppl.lm.base import LanguageModel
from lmppl.lm.generate import StringState, force_ends
from lmppl.lm.token_weights import LawWeights
from lmppl.random import Chance, fold_array
from lmppl.token_potentials.samplers import NONE, Exact, Sampler
from lmppl.types import Keys
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
        _draw(lm, live, rows.weights([s.law.token for s in live]), keys, chance)
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


def _draw(
    lm: LanguageModel, live: Sequence[StringState], found: LawWeights, keys: Keys, chance: Chance
) -> None:
    """One token for every string, by strings of equal samplers."""
    groups: dict[Sampler | None, list[int]] = {}
    for i, s in enumerate(live):
        groups.setdefault(s.law.sampler, []).append(i)
    picks = [NONE] * len(live)
    for sampler, members in groups.items():
        at = np.array(members)
        own = found if len(members) == len(live) else found.select(at)
        trackers = [t for i in members if (t := live[i].tracker) is not None]
        drawn = (sampler or Exact()).draw(own, trackers, keys[at], chance)
        for i, picked in zip(members, drawn, strict=True):
            picks[i] = picked
    tokens = np.array([max(picked.token, 0) for picked in picks])
    logps = found.target.at(np.arange(len(live)), tokens).tolist()
    for s, picked, logp in zip(live, picks, logps, strict=True):
        if picked.token < 0 or logp == NEG_INF:
            s.kill()
        else:
            s.extend(lm, picked.token, logp, picked.logq)
