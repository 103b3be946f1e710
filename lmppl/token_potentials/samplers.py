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

`AWRS` is rejection sampling without replacement (Lipkin et al., Fast controlled generation from
language models with adaptive weighted rejection sampling, 2025). Tokens are drawn from q without
those that were rejected before, until one, x, is allowed; it has the law of q given "allowed". Then
the drawing goes on, from the same rest, until a second one is allowed. With rejected tokens
b_1 … b_n in all, and R_j = 1 - q(b_1) - … - q(b_j),

    W = 1 / Σ_{j=0..n} 1 / R_j .

Proof: let K be the number of rejections before x, and W' = R_K 1(the first draw after x is allowed).
Given x and what was rejected before, the rest holds all of the allowed mass Z, so E[W' | x] = Z.
Given x, the second token and the sequence b, K = k has probability ∝ 1 / R_k, since all other
factors are the same; so E[W' | x, b] = R_n (1 / R_n) / Σ_j 1 / R_j = W. After `tries` rejections the
whole vocabulary is looked at: then Z is known, and by the same argument W = 1 / (1 / Z + Σ_{j<tries}
1 / R_j), before or after x. With `tries=0` this is `Exact`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from lmppl.errors import BadArgument
from lmppl.random import Chance, draw, fold
from lmppl.token_potentials.base import TokenState
from lmppl.types import Floats, Ints, Key, Keys
from lmppl.weights import NEG_INF, exp, log_sum_exp


class Picked(NamedTuple):
    """A token, and log q(x) + log g(x) - log W: the density that it counts as drawn with."""

    token: int
    """-1 when none is possible."""
    logq: float


NONE = Picked(-1, NEG_INF)
LOOKED = 1 << 32
"""Folded into a key for the draw that follows a look at the whole vocabulary."""


@runtime_checkable
class Sampler(Protocol):
    """Draws one token for every string."""

    def draw(
        self,
        logq: Floats,
        warm: Floats | None,
        states: Sequence[TokenState],
        keys: Keys,
        chance: Chance,
    ) -> list[Picked]:
        """Draw.

        Args:
            logq: the proposal [B, V], normalised.
            warm: what to draw from where the proposal's truncation leaves nothing [B, V].
            states: the potential's state of each string.
            keys: one random key per string [B].
            chance: who answers.
        """
        ...


def next_rows(states: Sequence[TokenState]) -> tuple[Floats, Ints]:
    """log g [U, V] of the distinct states, and which of them each state is [B]."""
    place: dict[int, int] = {}
    which = [place.setdefault(id(s), len(place)) for s in states]
    distinct = {id(s): s for s in states}.values()
    return np.stack([s.log_next() for s in distinct]), np.array(which, dtype=np.int64)


@dataclass(frozen=True)
class Exact:
    """Weighs every token, and draws from the normalised product."""

    def draw(
        self,
        logq: Floats,
        warm: Floats | None,
        states: Sequence[TokenState],
        keys: Keys,
        chance: Chance,
    ) -> list[Picked]:
        """One pass over the vocabulary per string."""
        distinct, which = next_rows(states)
        weights = distinct[which]
        tilted = logq + weights
        top = tilted.max(axis=1)
        if warm is not None:
            lost = top == NEG_INF
            tilted[lost] = warm[lost] + weights[lost]
            top = tilted.max(axis=1)
        alive = np.flatnonzero(top > NEG_INF)
        out = [NONE] * len(states)
        if not len(alive):
            return out
        rows = tilted[alive]
        mass = np.exp(rows - top[alive, None]).sum(axis=1)
        rows = rows - (top[alive] + np.log(mass))[:, None]
        tokens = chance.categorical(keys[alive], rows)
        chosen = rows[np.arange(len(rows)), tokens]
        for i, token, density in zip(alive.tolist(), tokens.tolist(), chosen.tolist(), strict=True):
            out[i] = Picked(token, density)
        return out


def _weight(state: TokenState, token: int) -> float:
    return float(state.log_next([token])[0])


@dataclass(frozen=True)
class AWRS:
    """Adaptive weighted rejection sampling: asks the potential for the tokens that are drawn.

    For a potential that allows or forbids; where it also weighs, the weights are multiplied in
    after the draw.

    Args:
        tries: rejections after which the whole vocabulary is looked at; None never does.
    """

    tries: int | None = 64

    def __post_init__(self) -> None:
        """Check the number."""
        n = self.tries
        if not (n is None or (isinstance(n, int) and not isinstance(n, bool) and n >= 0)):
            raise BadArgument(
                f"AWRS(tries=...) is a number of rejections, got {n!r}", fix="write AWRS(tries=64)"
            )

    def draw(
        self,
        logq: Floats,
        warm: Floats | None,
        states: Sequence[TokenState],
        keys: Keys,
        chance: Chance,
    ) -> list[Picked]:
        """One string after the other: each rejects as often as it must."""
        out = []
        for i, (state, key) in enumerate(zip(states, keys.tolist(), strict=True)):
            picked = self._one(logq[i], state, key, chance)
            if picked.token < 0 and warm is not None:  # nothing in the truncated set is allowed
                rest = np.where(logq[i] == NEG_INF, warm[i], NEG_INF)
                total = log_sum_exp(rest)
                if total > NEG_INF:
                    picked = self._one(rest - total, state, fold(key, "warm"), chance)
            out.append(picked)
        return out

    def _one(self, logq: Floats, state: TokenState, key: Key, chance: Chance) -> Picked:
        row = logq.copy()
        rest, inverse = 1.0, 1.0  # R_n, Σ_j 1 / R_j
        n, draws, x = 0, 0, -1
        known: dict[int, float] = {}
        while True:
            if n == self.tries:
                return self._looked(row, logq, state, key, chance, x, inverse - 1.0 / rest)
            if not (row > NEG_INF).any():
                return NONE  # with x chosen, the rest holds x
            v = draw(chance, fold(key, draws), row)
            draws += 1
            g = known.get(v)
            if g is None:
                g = known[v] = _weight(state, v)
            if g > NEG_INF:
                if x >= 0:
                    return Picked(x, float(logq[x]) + float(np.log(inverse)))
                x = v
                continue
            n += 1
            rest -= exp(float(logq[v]))
            row[v] = NEG_INF
            if rest <= 1e-12:  # cancelled: sum what is left
                rest = exp(log_sum_exp(row))
            if rest == 0.0:
                return NONE
            inverse += 1.0 / rest

    def _looked(
        self,
        row: Floats,
        logq: Floats,
        state: TokenState,
        key: Key,
        chance: Chance,
        x: int,
        inverse: float,
    ) -> Picked:
        """After `tries` rejections: the allowed mass is summed."""
        inside = np.where(state.log_next() > NEG_INF, row, NEG_INF)
        z = log_sum_exp(inside)
        if z == NEG_INF:
            return NONE
        if x < 0:
            x = draw(chance, fold(key, LOOKED), inside)
        return Picked(x, float(logq[x]) + float(np.log(exp(-z) + inverse)))


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
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise BadArgument(
                f"TopK needs a positive integer, got {self.k!r}", fix="write TopK(50)"
            )

    def draw(
        self,
        logq: Floats,
        warm: Floats | None,
        states: Sequence[TokenState],
        keys: Keys,
        chance: Chance,
    ) -> list[Picked]:
        """One string after the other."""
        if self.k >= logq.shape[1]:
            return Exact().draw(logq, warm, states, keys, chance)
        best = np.sort(np.argpartition(-logq, self.k - 1, axis=1)[:, : self.k], axis=1)
        out = []
        for i, (state, key) in enumerate(zip(states, keys.tolist(), strict=True)):
            row = logq[i]
            others = row.copy()
            others[best[i]] = NEG_INF
            left = log_sum_exp(others)
            ids = [v for v in best[i].tolist() if row[v] > NEG_INF]
            logs = [float(row[v]) for v in ids]
            if left > NEG_INF:
                ids.append(draw(chance, fold(key, 0), others))
                logs.append(left)
            weights = state.log_next(ids)
            total = np.array(logs) + weights
            mass = log_sum_exp(total)
            if mass > NEG_INF:
                at = draw(chance, fold(key, 1), total - mass)
                v = ids[at]
                out.append(Picked(v, float(row[v]) + float(weights[at]) - mass))
            elif left == NEG_INF and warm is not None:  # truncation left nothing that is allowed
                part = slice(i, i + 1)
                out += Exact().draw(warm[part], None, [state], keys[part], chance)
            else:
                out.append(NONE)
        return out
