"""`AWRS`: rejection sampling without replacement, properly weighted.

Tokens are drawn from q without those that were rejected before, until one, x, is allowed; it has the
law of q given "allowed". Then the drawing goes on, from the same rest, until a second one is allowed.
With rejected tokens b_1 … b_n in all, and R_j = 1 - q(b_1) - … - q(b_j),

    W = 1 / Σ_{j=0..n} 1 / R_j .

Proof: let K be the number of rejections before x, and W' = R_K 1(the first draw after x is allowed).
Given x and what was rejected before, the rest holds all of the allowed mass Z, so E[W' | x] = Z.
Given x, the second token and the sequence b, K = k has probability ∝ 1 / R_k, since all other
factors are the same; so E[W' | x, b] = R_n (1 / R_n) / Σ_j 1 / R_j = W. After `tries` rejections the
whole vocabulary is looked at: then Z is known, and by the same argument W = 1 / (1 / Z + Σ_{j<tries}
1 / R_j), before or after x. With `tries=0` this is `Exact`.

The strings of a batch draw in rounds. Tokens that were drawn, their log q and the R_j come to the
host; rows do not.

Reference: Lipkin et al., Fast controlled generation from language models with adaptive weighted
rejection sampling (2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lmppl.arguments import check_integers
from lmppl.lm.token_weights import LawWeights, TokenWeights
from lmppl.random import Chance, fold_array, hash_text
from lmppl.token_potentials.base import TokenState
from lmppl.token_potentials.samplers import NONE, Picked, next_rows
from lmppl.types import Keys
from lmppl.weights import NEG_INF, exp

LOOKED = 1 << 32
"""Folded into a key for the draw that follows a look at the whole vocabulary."""


@dataclass
class Rejecting:
    """What `AWRS` knows of one string."""

    row: int
    state: TokenState
    rest: float
    """R_n."""
    inverse: float
    """Σ_{j=0..n} 1 / R_j."""
    rejected: int = 0
    """n."""
    draws: int = 0
    chosen: int = -1
    """x."""
    logq: float = NEG_INF
    """log q(x)."""
    known: dict[int, bool] = field(default_factory=dict)

    def allows(self, token: int) -> bool:
        """Whether the potential does, asked once per token."""
        if token not in self.known:
            self.known[token] = float(self.state.log_next([token])[0]) > NEG_INF
        return self.known[token]


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
        if self.tries is not None:
            check_integers("AWRS", 0, tries=self.tries)

    def draw(
        self, law: LawWeights, states: Sequence[TokenState], keys: Keys, chance: Chance
    ) -> list[Picked]:
        """All strings at once, each rejecting as often as it must."""
        out = self._reject(law.proposal.select(np.arange(len(states))), states, keys, chance)
        lost = np.array([i for i, picked in enumerate(out) if picked.token < 0], dtype=np.int64)
        if law.warm is not None and len(lost):  # nothing in the truncated set is allowed
            rest = law.warm.outside(lost, law.proposal)
            own = fold_array(keys[lost], hash_text("warm"))
            again = self._reject(rest, [states[i] for i in lost.tolist()], own, chance)
            for i, picked in zip(lost.tolist(), again, strict=True):
                out[i] = picked
        return out

    def _reject(
        self, q: TokenWeights, states: Sequence[TokenState], keys: Keys, chance: Chance
    ) -> list[Picked]:
        """A round draws one token for every string that goes on; what is rejected leaves q."""
        out = [NONE] * len(states)
        mass = np.exp(q.log_mass(np.arange(len(states)))).tolist()
        live = [
            Rejecting(b, state, rest, 1.0 / rest)
            for b, (state, rest) in enumerate(zip(states, mass, strict=True))
            if rest > 0.0
        ]
        while live:
            tired = [s for s in live if s.rejected == self.tries]
            if tired:
                self._look(q, tired, keys, chance, out)
                live = [s for s in live if s.rejected != self.tries]
                if not live:
                    break
            rows = np.array([s.row for s in live])
            turn = np.array([s.draws for s in live], dtype=np.uint64)
            tokens, logs, _ = q.draw(rows, fold_array(keys[rows], turn), chance)
            left, refused = [], []
            for s, token, log in zip(live, tokens.tolist(), logs.tolist(), strict=True):
                s.draws += 1
                if not s.allows(token):
                    refused.append((s, token))
                elif s.chosen >= 0:
                    out[s.row] = self._picked(s, s.inverse)
                    continue
                else:
                    s.chosen, s.logq = token, log
                left.append(s)
            live = self._take_out(q, refused, left)
        return out

    def _take_out(
        self, q: TokenWeights, refused: Sequence[tuple[Rejecting, int]], live: list[Rejecting]
    ) -> list[Rejecting]:
        """R of every string without the token that it refused; the strings that have any left."""
        if not refused:
            return live
        rows = np.array([s.row for s, _ in refused])
        q.take_out(rows, np.array([token for _, token in refused]))
        for (s, _), rest in zip(refused, np.exp(q.log_mass(rows)).tolist(), strict=True):
            s.rejected += 1
            s.rest = rest
            s.inverse += 1.0 / rest if rest > 0.0 else 0.0
        return [s for s in live if s.rest > 0.0]

    def _look(
        self, q: TokenWeights, tired: Sequence[Rejecting], keys: Keys, chance: Chance,
        out: list[Picked],
    ) -> None:  # fmt: skip
        """After `tries` rejections: the allowed mass is summed."""
        weights, which = next_rows([s.state for s in tired])
        allowed = np.where(weights > NEG_INF, 0.0, NEG_INF)
        inside = q.tilted(np.array([s.row for s in tired]), allowed, which)
        masses = inside.log_mass(np.arange(len(tired))).tolist()
        fresh = [n for n, s in enumerate(tired) if s.chosen < 0 and masses[n] > NEG_INF]
        if fresh:
            own = fold_array(keys[[tired[n].row for n in fresh]], LOOKED)
            tokens, logs, _ = inside.draw(np.array(fresh), own, chance)
            for n, token, log in zip(fresh, tokens.tolist(), logs.tolist(), strict=True):
                tired[n].chosen, tired[n].logq = token, log
        for s, mass in zip(tired, masses, strict=True):
            if s.chosen >= 0:
                out[s.row] = self._picked(s, exp(-mass) + s.inverse - 1.0 / s.rest)

    def _picked(self, s: Rejecting, inverse: float) -> Picked:
        """x, with 1 / W."""
        return Picked(s.chosen, s.logq + float(np.log(inverse)))
