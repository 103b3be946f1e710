"""Strings: a hidden Markov surrogate of a language model, times an automaton, as a guide.

The state of the backward table is (hidden state z, automaton state s); terminal weights τ(s) ≥ 0 are
any vector: 0/1 for acceptance, a fused message of a later step, a reward.

    r_0(z, s) = τ(s)       r_n(z, s) = Σ_v B(z, v) u_{n-1}(z, δ(s, v))      u_n = A r_n,  u_0 = r_0
    φ_0 = γ                φ_t ∝ (φ_{t-1} · B(·, x_t)) A                     predictive, for z_{t+1}
    g_t(x_1…x_t)     = Σ_z φ_t(z) r_{T-t}(z, s_t)
    g_{t+1}(x_1…x_t v) = Σ_z φ_t B(z, v) u_{T-t-1}(z, δ(s_t, v)) / Σ_z φ_t B(z, v)

A token is drawn from q(v) ∝ p(v | prefix) g_{t+1}(prefix v), with weight Z_t / g_t that the prefix
alone decides: score, resample, then draw, so that no call of the model is spent on a string about
to die. Weighted strings follow p(x | constraint) whatever the surrogate; unweighted ones do not.

Tokens with the same column of δ form a class, and a class is one matrix product: a step costs
2 N H V, whatever the number of automaton states. Where the surrogate emits K clusters of tokens the
share of a token in its cluster cancels, and a step costs 2 N Q H K and a look-up per token.

Reference: Zhang, Kung, Yoshida, Van den Broeck and Peng, Adaptable logical control for large
language models (2024); the weights are those of van der Meulen and Schauer (2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.bffg.strings.dfa import DFA
from lmppl.inference.bffg.strings.hmm import HMM
from lmppl.inference.bffg.strings.scores import Clustered, Dense, Scores, token_classes
from lmppl.types import Bools, Floats, Ints


class Prefixes(NamedTuple):
    """What the guide knows of N strings of the same length t."""

    phi: Floats
    """φ_t [N, H]."""
    s: Ints
    """Automaton state [N]."""
    t: int

    def select(self, rows: Ints) -> Prefixes:
        """Some of them, or copies."""
        return Prefixes(self.phi[rows], self.s[rows], self.t)


@dataclass(frozen=True, eq=False)
class HMMAutomaton:
    """The guide of the module's first lines.

    Args:
        hmm: the surrogate of the language model.
        dfa: the automaton.
        horizon: T, the length at which τ is applied; shorter strings are padded by an absorbing
            end token.
        terminal: τ [Q].
    """

    hmm: HMM
    dfa: DFA
    horizon: int
    terminal: Floats
    r: Floats = field(init=False, repr=False)
    """r_n, divided by its maximum [T + 1, H, Q]."""
    u: Floats = field(init=False, repr=False)
    scales: Floats = field(init=False, repr=False)
    """Their log scales [T + 1]."""
    reachable: Bools = field(init=False, repr=False)
    """Whether some n tokens lead from a state to a positive weight [T + 1, Q]."""
    scores: Scores = field(init=False, repr=False)
    """How the scores of next tokens are found."""

    def __post_init__(self) -> None:
        """Fill the table backwards."""
        start, A, B, clusters = self.hmm
        H, V = B.shape[0], self.hmm.tokens
        if self.dfa.delta.shape[1] != V or A.shape != (H, H) or start.shape != (H,):
            raise BadArgument(
                f"HMM of {H} states and {V} tokens, automaton of {self.dfa.delta.shape[1]} tokens"
            )
        tau = np.asarray(self.terminal, dtype=np.float64)
        if tau.shape != self.dfa.delta.shape[:1] or (tau < 0).any() or not tau.any():
            raise BadArgument(
                "terminal weights must be one non-negative number per automaton state, not all zero",
                value=repr(tau.tolist())[:80],
            )
        columns, classes = token_classes(self.dfa)
        scores: Scores
        if clusters is None:
            scores = Dense(self.hmm, self.dfa, classes)
            mass = np.stack([B[:, c].sum(1) for c in classes])  # [C, H]
        else:
            scores = Clustered(self.hmm, self.dfa, clusters.of)
            shares = np.zeros((len(classes), B.shape[1]))
            for share, c in zip(shares, classes, strict=True):
                np.add.at(share, clusters.of[c], clusters.share[c])
            mass = shares @ B.T
        Q, T = len(tau), self.horizon
        r, u, scales = np.zeros((T + 1, H, Q)), np.zeros((T + 1, H, Q)), np.zeros(T + 1)
        reachable = np.zeros((T + 1, Q), dtype=bool)
        r[0] = u[0] = tau / tau.max()
        scales[0], reachable[0] = np.log(tau.max()), tau > 0
        for n in range(1, T + 1):
            r[n] = sum(m[:, None] * u[n - 1][:, to] for m, to in zip(mass, columns, strict=True))
            reachable[n] = reachable[n - 1][columns].any(axis=0)
            top = r[n].max()
            if top <= 0:
                raise BadArgument(f"no string of {n} tokens has a positive weight")
            r[n] /= top
            scales[n] = scales[n - 1] + np.log(top)
            u[n] = A @ r[n]
        filled = {"r": r, "u": u, "scales": scales, "reachable": reachable, "scores": scores}
        for name, value in filled.items():
            object.__setattr__(self, name, value)

    def start(self, n: int = 1) -> Prefixes:
        """n empty strings."""
        return Prefixes(np.tile(self.hmm.start, (n, 1)), np.zeros(n, dtype=np.int64), 0)

    def log_g(self, at: Prefixes) -> Floats:
        """log g_t of each [N]."""
        n = self.horizon - at.t
        with np.errstate(divide="ignore"):
            value = np.log(np.einsum("nh,nh->n", at.phi, self.r[n][:, at.s].T))
        found: Floats = value + self.scales[n]
        return found

    def log_next(self, at: Prefixes) -> Floats:
        """log g_{t+1} of each string with each token [N, V]."""
        n = self.horizon - at.t - 1
        if n < 0:
            raise BadArgument(f"strings of {at.t} tokens are at the horizon {self.horizon}")
        found = self.scores(at.phi, at.s, self.u[n], self.r[n].mean(axis=0))
        return np.asarray(found + self.scales[n])

    def advance(self, at: Prefixes, tokens: Ints) -> Prefixes:
        """The strings with one more token each."""
        phi = (at.phi * self.hmm.emission(tokens).T) @ self.hmm.A
        total = phi.sum(1, keepdims=True)
        even = np.full_like(phi, 1.0 / phi.shape[1])
        phi = np.where(total > 0, phi / np.where(total > 0, total, 1.0), even)
        return Prefixes(phi, self.dfa.delta[at.s, tokens], at.t + 1)

    def of(self, tokens: Sequence[int]) -> Prefixes:
        """One string."""
        at = self.start()
        for v in tokens:
            at = self.advance(at, np.array([v]))
        return at
