"""Scoring given continuations: which positions are needed, and the sums over them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from lmppl.lm.torch.draw import Logits
from lmppl.lm.torch.prefill import Places
from lmppl.lm.torch.transfer import as_index
from lmppl.types import Floats, Ids


class Scoring:
    """A batch of (context, continuation) pairs as unique sequences to compute.

    The last token of a continuation goes through the network only when the mass of an end is asked
    for: its own log-probability is read one position earlier. So options of one token each over
    one context are a single row.
    """

    def __init__(
        self,
        contexts: Sequence[Ids],
        continuations: Sequence[Ids],
        ends: Sequence[Sequence[int] | None],
        temperatures: Sequence[float],
    ) -> None:
        """Find the unique sequences; `seqs` and `needs` go to `Prefill`, `take` is its sink."""
        jobs = []
        for b, (context, tokens, end) in enumerate(zip(contexts, continuations, ends, strict=True)):
            sets = [(t,) for t in tokens] + ([tuple(end)] if end is not None else [])
            if sets:
                jobs.append((context + tokens[: len(sets) - 1], len(context) - 1, b, sets))
        self.seqs = sorted({job[0] for job in jobs})
        place = {s: u for u, s in enumerate(self.seqs)}
        self.needs = [len(s) for s in self.seqs]
        self.asked_tokens = sum(len(job[0]) for job in jobs)
        """Token positions that a scoring without any sharing would compute."""
        self._temperatures = temperatures
        self._asked: dict[tuple[int, int], list[tuple[int, int, tuple[int, ...]]]] = defaultdict(
            list
        )
        self._out = [np.zeros(0) for _ in contexts]
        for seq, first, b, sets in jobs:
            u = place[seq]
            self.needs[u] = min(self.needs[u], first)
            self._out[b] = np.full(len(sets), np.nan)
            for i, one in enumerate(sets):
                self._asked[u, first + i].append((b, i, one))

    def take(self, logits: Logits, places: Places) -> None:
        """Read the wanted log-probabilities off the scores of one pass."""
        asked = [
            (row, *question)
            for row, place in enumerate(places)
            for question in self._asked.get(place, ())
        ]
        if not asked:
            return
        rows = np.array([row for row, _, _, _ in asked], dtype=np.int64)
        if len(rows) != len(logits) or bool((rows != np.arange(len(rows))).any()):
            if all(self._temperatures[b] == 1.0 for _, b, _, _ in asked):
                logits.plain()  # one exp pass serves every question about a row
            logits = logits.select(as_index(rows, logits.scores.device))
        masses = logits.log_mass(
            [one for _, _, _, one in asked], [self._temperatures[b] for _, b, _, _ in asked]
        )
        for (_, b, i, _), mass in zip(asked, masses.tolist(), strict=True):
            self._out[b][i] = mass

    def result(self) -> list[Floats]:
        """One array per pair."""
        return self._out
