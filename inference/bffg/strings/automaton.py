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
share of a token in its cluster cancels, and a step costs 2 N H K and a look-up per token. Strings
that agree in φ and s, as copies do, are scored once.

Reference: Zhang, Kung, Yoshida, Van den Broeck and Peng, Adaptable logical control for large
language models (2024); the weights are those of van der Meulen and Schauer (2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.bffg.strings.classes import class_masses, successors
from lmppl.inference.bffg.strings.dfa import DFA
from lmppl.inference.bffg.strings.hmm import HMM
from lmppl.inference.bffg.strings.scores import Kinds, Value
from lmppl.types import Bools, Floats, Ints
from lmppl.weights import NEG_INF


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

    @classmethod
    def together(cls, parts: Sequence[Prefixes]) -> Prefixes:
        """Those of several, all of one length."""
        phi, s = (np.concatenate([p[k] for p in parts]) for k in (0, 1))
        return cls(phi, s, parts[0].t)


@dataclass(frozen=True, eq=False)
class HMMAutomaton:
    """The guide of the module's first lines.

    Args:
        hmm: the surrogate of the language model; what it calls impossible is never drawn, so that it
            must have no zeros where the model has none. Fitted ones have none.
        dfa: the automaton.
        horizon: T, the length at which τ is applied; shorter strings are padded by an absorbing
            end token.
        terminal: τ [Q].

    >>> from lmppl.inference.bffg.strings.dfa import automaton
    >>> dfa = automaton(lambda s, v: min(1, s + v), 0, 2)  # token 1 at least once
    >>> even = HMM(np.ones(1), np.ones((1, 1)), np.array([[0.5, 0.5]]))
    >>> guide = HMMAutomaton(even, dfa, 3, dfa.terminal(float))
    >>> np.exp(guide.log_g(guide.start())).round(4).tolist()
    [0.875]
    >>> np.exp(guide.log_next(guide.start())).round(4).tolist()
    [[0.75, 1.0]]
    """

    hmm: HMM
    dfa: DFA
    horizon: int
    terminal: Floats
    r: Floats = field(init=False, repr=False)
    """r_n, each column divided by its maximum [T + 1, H, Q]."""
    u: Floats = field(init=False, repr=False)
    """u_n, over the same numbers [T + 1, H, Q]."""
    scales: Floats = field(init=False, repr=False)
    """Logarithms of these numbers, of each state its own: none underflows [T + 1, Q]."""
    reachable: Bools = field(init=False, repr=False)
    """Whether some n tokens lead from a state to a positive weight [T + 1, Q]."""
    kinds: Kinds = field(init=False, repr=False)
    """Scores of next tokens, one by one or by clusters."""
    classes: Kinds = field(init=False, repr=False)
    """Their means over classes of tokens."""

    def __post_init__(self) -> None:
        """Fill the table backwards."""
        tau, T = self._checked(), self.horizon
        H, Q = len(self.hmm.start), len(tau)
        masses = class_masses(self.hmm, self.dfa)
        pairs = successors(masses, self.dfa)
        to, first = pairs.to, pairs.first
        r, u, scales = np.zeros((T + 1, H, Q)), np.zeros((T + 1, H, Q)), np.zeros((T + 1, Q))
        reachable = np.zeros((T + 1, Q), dtype=bool)
        r[0] = u[0] = reachable[0] = tau > 0
        with np.errstate(divide="ignore"):
            scales[0] = np.log(tau)
            for n in range(1, T + 1):
                level = scales[n - 1][to]
                top = np.maximum.reduceat(level, first)
                level -= np.where(top > NEG_INF, top, 0.0)[pairs.state]
                terms = pairs.mass * u[n - 1].T[to] * np.exp(level)[:, None]
                sums = np.add.reduceat(terms, first).T
                peak = sums.max(axis=0)
                r[n] = sums / np.where(peak > 0, peak, 1.0)
                u[n] = self.hmm.A @ r[n]
                scales[n] = top + np.log(peak)
                reachable[n] = np.logical_or.reduceat(reachable[n - 1][to], first)
        kinds, classes = Kinds.of_tokens(self.hmm, self.dfa), Kinds.of_classes(masses, self.dfa)
        filled = {"r": r, "u": u, "scales": scales, "reachable": reachable}
        for name, value in (filled | {"kinds": kinds, "classes": classes}).items():
            object.__setattr__(self, name, value)
        if self.log_g(self.start())[0] == NEG_INF:
            cause = "surrogate" if reachable[T, 0] else "automaton"
            raise BadArgument(
                f"the {cause} gives no string of {T} tokens a positive weight",
                why="shorter texts count as strings that an end token pads",
                fix="give a longer horizon, other terminal weights, or a surrogate without zeros",
            )

    def _checked(self) -> Floats:
        """τ, if everything fits together."""
        start, A, B, _ = self.hmm
        H, Q, V = B.shape[0], len(self.dfa.table), len(self.dfa.of)
        if V != self.hmm.tokens or A.shape != (H, H) or start.shape != (H,):
            raise BadArgument(
                f"a surrogate of {H} states and {self.hmm.tokens} tokens, with start "
                f"{start.shape} and A {A.shape}, and an automaton of {V} tokens",
                fix="make both over the tokens of one model, with start [H] and A [H, H]",
            )
        tau = np.asarray(self.terminal, dtype=np.float64)
        if tau.shape != (Q,) or not (np.isfinite(tau) & (tau >= 0)).all() or not tau.any():
            raise BadArgument(
                f"terminal must be {Q} non-negative numbers, one per automaton state, not all zero",
                value=repr(tau.tolist())[:80],
                fix="write terminal=dfa.terminal(lambda state: ...)",
            )
        if isinstance(self.horizon, bool) or not self.horizon >= 1:
            raise BadArgument(
                f"horizon must be a positive number of tokens, got {self.horizon!r}",
                fix="give the max_tokens of the string",
            )
        return tau

    def start(self, n: int = 1) -> Prefixes:
        """n empty strings."""
        return Prefixes(np.tile(self.hmm.start, (n, 1)), np.zeros(n, dtype=np.int64), 0)

    def log_g(self, at: Prefixes) -> Floats:
        """log g_t of each [N]."""
        n = self.horizon - at.t
        with np.errstate(divide="ignore"):
            value = np.log(np.einsum("nh,hn->n", at.phi, self.r[n][:, at.s]))
        found: Floats = value + self.scales[n, at.s]
        return found

    def log_next(self, at: Prefixes) -> Floats:
        """log g_{t+1} of each string with each token [N, V]."""
        return self.log_kinds(at).take(self.kinds.of, axis=1)

    def log_some(self, at: Prefixes, rows: Ints, tokens: Ints) -> Floats:
        """log g_{t+1} of some strings, with repeats, with a token each [n]."""
        if not (n := self._left(at)):
            return self._log_last(self.dfa.after(at.s[rows], tokens))
        return self.kinds.few(at.phi, at.s, self._value(n), rows, tokens)

    def log_among(self, at: Prefixes, looked: Bools) -> Floats:
        """Another guide [N, V]: g_{t+1} for the tokens that are looked at, class means for the others.

        It costs what is looked at [N, V], not the vocabulary. Which tokens these are may depend on
        the prefix, on the likeliest of the model for one: in a weight stands what was used.
        """
        found = self.log_kinds(at, coarse=True).take(self.classes.of, axis=1)
        rows, tokens = np.divmod(np.flatnonzero(looked), looked.shape[1])
        found[rows, tokens] = self.log_some(at, rows, tokens)
        return found

    def log_kinds(self, at: Prefixes, *, coarse: bool = False) -> Floats:
        """log g_{t+1} by kinds of tokens [N, K]: token v is of kind `kinds.of[v]`.

        Args:
            at: the strings.
            coarse: the mean over a class of tokens instead; then v is of kind `classes.of[v]`.
        """
        kinds = self.classes if coarse else self.kinds
        if not (n := self._left(at)):
            return self._log_last(self.dfa.table[at.s][:, kinds.classes])
        place: dict[tuple[bytes, int], int] = {}
        pairs = zip(at.phi, at.s.tolist(), strict=True)
        which = np.array([place.setdefault((f.tobytes(), s), len(place)) for f, s in pairs])
        if len(place) == len(which):
            return kinds(at.phi, at.s, self._value(n))
        first = np.unique(which, return_index=True)[1]
        found: Floats = kinds(at.phi[first], at.s[first], self._value(n))[which]
        return found

    def _left(self, at: Prefixes) -> int:
        """n: how many tokens follow the next one."""
        n = self.horizon - at.t - 1
        if n < 0:
            raise BadArgument(
                f"strings of {at.t} tokens are at the horizon {self.horizon} of their guide",
                fix="give HMMAutomaton a horizon of at least max_tokens",
            )
        return n

    def _log_last(self, states: Ints) -> Floats:
        """log τ of the states after the last token."""
        found: Floats = self.scales[0][states]
        return found

    def _value(self, n: int) -> Value:
        return Value(self.u[n], self.r[n].mean(axis=0), self.scales[n])

    def advance(self, at: Prefixes, tokens: Ints) -> Prefixes:
        """The strings with one more token each."""
        phi = (at.phi * self.hmm.emission(tokens).T) @ self.hmm.A
        total = phi.sum(1, keepdims=True)
        even = np.full_like(phi, 1.0 / phi.shape[1])
        phi = np.where(total > 0, phi / np.where(total > 0, total, 1.0), even)
        return Prefixes(phi, self.dfa.after(at.s, tokens), at.t + 1)

    def of(self, tokens: Sequence[int]) -> Prefixes:
        """One string."""
        at = self.start()
        for v in tokens:
            at = self.advance(at, np.array([v]))
        return at
