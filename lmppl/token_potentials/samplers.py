"""How a token is drawn from proposal · potential: properly weighted samplers.

With a proposal q over tokens and the next-token weights g of a potential, a sampler returns a token
x and a weight W ≥ 0 with

    E[ W 1(x = v) ] = q(v) g(v)     for every v,

so the string's weight stays unbiased, whatever the sampler looks at.

| | looks at | W |
| --- | --- | --- |
| `Exact` | every token | Σ_v q(v) g(v) |
| `AWRS` | the tokens it draws | an unbiased estimate of the allowed mass |
| `TopK(k)` | the k likeliest and one more | the sum over those, the one more divided by its chance |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from lmppl.arguments import check_integers
from lmppl.lm.token_weights import LawWeights, TokenWeights
from lmppl.random import Chance, draw, fold, fold_array
from lmppl.token_potentials.base import TokenState, log_rows
from lmppl.types import Floats, Ints, Keys
from lmppl.weights import NEG_INF, log_sum_exp


class Picked(NamedTuple):
    """A token, and log q(x) + log g(x) - log W: the density that it counts as drawn with."""

    token: int
    """-1 when none is possible."""
    logq: float


NONE = Picked(-1, NEG_INF)


@runtime_checkable
class Sampler(Protocol):
    """Draws one token for every string."""

    def draw(
        self, law: LawWeights, states: Sequence[TokenState], keys: Keys, chance: Chance
    ) -> list[Picked]:
        """Draw.

        Args:
            law: log q [B, V], and what takes its place where its truncation leaves nothing.
            states: the potential's state of each string.
            keys: one random key per string [B].
            chance: who answers.
        """
        ...


def next_rows(states: Sequence[TokenState]) -> tuple[Floats, Ints]:
    """log g [U, V] of the distinct states, and which of them each state is [B]."""
    place: dict[int, int] = {}
    which = [place.setdefault(id(s), len(place)) for s in states]
    distinct = list({id(s): s for s in states}.values())
    return log_rows(distinct), np.array(which, dtype=np.int64)


@dataclass(frozen=True)
class Exact:
    """Weighs every token, and draws from the normalised product."""

    def draw(
        self, law: LawWeights, states: Sequence[TokenState], keys: Keys, chance: Chance
    ) -> list[Picked]:
        """One pass over the vocabulary per string."""
        out = [NONE] * len(states)
        weights, which = next_rows(states)
        rows = np.arange(len(states))
        for q in (law.proposal, law.warm):
            if q is not None and len(rows):
                rows = self._from(q, rows, weights, which, keys, chance, out)
        return out

    def _from(
        self, q: TokenWeights, rows: Ints, weights: Floats, which: Ints, keys: Keys,
        chance: Chance, out: list[Picked],
    ) -> Ints:  # fmt: skip
        """Draw from the product for these rows; the rows that it leaves nothing."""
        product = q.tilted(rows, weights, which[rows])
        tokens, logs, masses = product.draw(np.arange(len(rows)), keys[rows], chance)
        drawn = zip(rows.tolist(), tokens.tolist(), logs.tolist(), masses.tolist(), strict=True)
        for i, token, log, mass in drawn:
            if token >= 0:
                out[i] = Picked(token, log - mass)
        return rows[tokens < 0]


@dataclass(frozen=True)
class TopK:
    """Weighs the k likeliest tokens and one of the others, drawn by the proposal.

    The one more counts g(v) · (mass of the others), its weight divided by the chance of being it.

    Args:
        k: how many; of the vocabulary, `Exact`.
    """

    k: int = 50

    def __post_init__(self) -> None:
        """Check k."""
        check_integers("TopK", k=self.k)

    def draw(
        self, law: LawWeights, states: Sequence[TokenState], keys: Keys, chance: Chance
    ) -> list[Picked]:
        """k numbers of each string, and one draw from the others for all."""
        proposal = law.proposal
        if self.k >= proposal.width:
            return Exact().draw(law, states, keys, chance)
        every = np.arange(len(states))
        best = proposal.largest(self.k)
        rows, ids = np.repeat(every, self.k), best.ravel()
        logs = proposal.at(rows, ids).reshape(best.shape)
        others = proposal.select(every)
        others.take_out(rows, ids)
        more, log_more, left = others.draw(every, fold_array(keys, 0), chance)
        out = []
        for b, (state, key) in enumerate(zip(states, keys.tolist(), strict=True)):
            inside = logs[b] > NEG_INF
            looked, q, counted = best[b][inside], logs[b][inside], logs[b][inside]
            if more[b] >= 0:
                looked = np.append(looked, more[b])
                q, counted = np.append(q, log_more[b]), np.append(counted, left[b])
            weights = state.log_next(looked.tolist())
            total = counted + weights
            mass = log_sum_exp(total)
            if mass > NEG_INF:
                at = draw(chance, fold(key, 1), total - mass)
                out.append(Picked(int(looked[at]), float(q[at] + weights[at]) - mass))
            elif more[b] < 0 and law.warm is not None:  # truncation left nothing that is allowed
                out += Exact().draw(law.select(np.array([b])), [state], keys[b : b + 1], chance)
            else:
                out.append(NONE)
        return out
