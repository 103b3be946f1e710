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
2 N H V, whatever the number of automaton states.

Reference: Zhang, Kung, Yoshida, Van den Broeck and Peng, Adaptable logical control for large
language models (2024); the weights are those of van der Meulen and Schauer (2020).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.smc.resampling import systematic
from lmppl.lm.base import LanguageModel
from lmppl.random import Chance, GumbelMax, fold, fold_array
from lmppl.types import Floats, Ints, Key
from lmppl.weights import NEG_INF, ess, log_mean_exp, normalize

SMALL = 64
"""Classes of fewer tokens are not worth a matrix product of their own."""


class HMM(NamedTuple):
    """A hidden Markov model of token strings: the surrogate."""

    start: Floats
    """γ [H]."""
    A: Floats
    """A[z, z'] [H, H]."""
    B: Floats
    """B[z, v] [H, V]."""


class DFA(NamedTuple):
    """A complete automaton over tokens."""

    delta: Ints
    """δ[s, v] [Q, V]."""
    states: tuple[Any, ...]
    """What the states stand for [Q]; the first is the start."""

    def terminal(self, weight: Callable[[Any], float]) -> Floats:
        """τ: the weight of each state [Q]."""
        return np.array([float(weight(s)) for s in self.states])


def automaton(step: Callable[[Any, int], Hashable], start: Hashable, tokens: int) -> DFA:
    """The automaton of a function (state, token) -> state, found by search from the start.

    >>> parity = automaton(lambda s, v: (s + v) % 2, 0, 2)
    >>> parity.delta.tolist()
    [[0, 1], [1, 0]]
    """
    states: dict[Hashable, int] = {start: 0}
    rows, waiting = [], [start]
    for s in waiting:
        row = []
        for v in range(tokens):
            to = step(s, v)
            if to not in states:
                states[to] = len(states)
                waiting.append(to)
            row.append(states[to])
        rows.append(row)
    return DFA(np.array(rows, dtype=np.int64), tuple(states))


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
    classes: list[Ints] = field(init=False, repr=False)
    """Tokens with the same column of δ, large classes first."""
    sorted_B: Floats = field(init=False, repr=False)
    """B with its columns in the order of the classes [H, V]: a class is a slice."""

    def __post_init__(self) -> None:
        """Fill the table backwards."""
        start, A, B = self.hmm
        H, V = B.shape
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
        columns, index = np.unique(self.dfa.delta.T, axis=0, return_inverse=True)
        index = index.reshape(-1)
        classes = [np.flatnonzero(index == k) for k in range(len(columns))]
        by_size = sorted(range(len(classes)), key=lambda k: -len(classes[k]))
        classes, columns = [classes[k] for k in by_size], columns[by_size]
        mass = np.stack([B[:, c].sum(1) for c in classes])  # [C, H]
        sorted_B = B[:, np.concatenate(classes)]
        Q, T = len(tau), self.horizon
        r, u, scales = np.zeros((T + 1, H, Q)), np.zeros((T + 1, H, Q)), np.zeros(T + 1)
        r[0] = u[0] = tau / tau.max()
        scales[0] = np.log(tau.max())
        for n in range(1, T + 1):
            r[n] = sum(m[:, None] * u[n - 1][:, to] for m, to in zip(mass, columns, strict=True))
            top = r[n].max()
            if top <= 0:
                raise BadArgument(f"no string of {n} tokens has a positive weight")
            r[n] /= top
            scales[n] = scales[n - 1] + np.log(top)
            u[n] = A @ r[n]
        for name, value in (("r", r), ("u", u), ("scales", scales)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "sorted_B", sorted_B)

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
        u, B = self.u[n], self.sorted_B
        N, V = len(at.s), B.shape[1]
        mean, done = np.empty((N, V)), 0
        # Large classes: one product each
        for c in self.classes:
            if len(c) < SMALL:
                break
            to = self.dfa.delta[at.s, c[0]]
            part = slice(done, done + len(c))
            mean[:, part] = (at.phi * u[:, to].T) @ B[:, part]
            done += len(c)
        # What is left: token by token, all at once
        order = np.concatenate(self.classes)
        if done < V:
            to = self.dfa.delta[at.s][:, order[done:]]
            mean[:, done:] = np.einsum(
                "nh,hv,hnv->nv", at.phi, B[:, done:], u[:, to], optimize=True
            )
        seen = at.phi @ B
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.log(mean / seen)
            if (seen == 0).any():
                # a token that the surrogate cannot emit: what its best hidden state would expect
                best = np.log(u.max(0)[self.dfa.delta[at.s][:, order]])
                value = np.where(seen > 0, value, best)
        out = np.empty_like(value)
        out[:, order] = value
        return np.asarray(out + self.scales[n])

    def advance(self, at: Prefixes, tokens: Ints) -> Prefixes:
        """The strings with one more token each."""
        phi = (at.phi * self.hmm.B[:, tokens].T) @ self.hmm.A
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


class GuidedStrings(NamedTuple):
    """Weighted strings."""

    tokens: Ints
    """[N, T]"""
    log_weights: Floats
    """[N]; the mean of exp is the estimate of Σ_x p(x) τ."""
    log_evidence: float


def guided_strings(
    lm: LanguageModel,
    context: Sequence[int],
    guide: HMMAutomaton,
    n: int,
    key: Key,
    *,
    resample: float = 0.5,
    chance: Chance | None = None,
    end: int | None = None,
) -> GuidedStrings:
    """n strings of a language model under the guide, by SMC over tokens.

    Args:
        lm: any language model; its next-token law, unchanged, is p.
        context: tokens of the prompt.
        guide: the guide; its horizon is the length of the strings.
        n: how many.
        key: all draws are a function of it.
        resample: resample when ESS < resample · n; 0 never does.
        chance: who answers the draws.
        end: the end token: a string that has it continues with it.
    """
    chance = chance or GumbelMax()
    rows = lm.open([tuple(context)] * n)
    try:
        at, level = guide.start(n), 0.0
        used = lw = guide.log_g(at)
        tokens = np.zeros((n, guide.horizon), dtype=np.int64)
        for t in range(guide.horizon):
            log_p = np.array(rows.log_probs(), dtype=np.float64)
            if end is not None and t > 0:
                done = tokens[:, t - 1] == end
                log_p[done] = NEG_INF
                log_p[done, end] = 0.0
            # Score
            following = guide.log_next(at)
            logits = log_p + following
            with np.errstate(invalid="ignore"):
                # over the number that the last step multiplied in, not one found anew
                lw = np.where(
                    np.isfinite(lw), lw + np.logaddexp.reduce(logits, axis=1) - used, NEG_INF
                )
            if not np.isfinite(lw).any():
                return GuidedStrings(tokens, lw, NEG_INF)
            # Resample
            if 0 < ess(lw) < resample * n:
                parents = systematic(normalize(lw), fold(key, "resample", t), chance)
                level += log_mean_exp(lw)
                rows.select(parents)
                at, tokens = at.select(parents), tokens[parents]
                logits, following = logits[parents], following[parents]
                lw = np.zeros(n)
            # Draw
            keys = fold_array(
                np.full(n, fold(key, "token", t), dtype=np.uint64), np.arange(n, dtype=np.uint64)
            )
            dead = ~np.isfinite(lw)
            logits[dead] = 0.0
            drawn = chance.categorical(keys, logits)
            tokens[:, t] = drawn
            used = np.where(dead, 0.0, following[np.arange(n), drawn])
            at = guide.advance(at, drawn)
            rows.push(drawn)
    finally:
        rows.close()
    return GuidedStrings(tokens, lw + level, level + log_mean_exp(lw))


def fit_hmm(
    strings: Ints,
    states: int,
    tokens: int,
    steps: int = 20,
    seed: int = 0,
    pseudocount: float = 1e-3,
) -> HMM:
    """Distil a model: expectation maximisation on strings that it wrote [M, T].

    The pseudocount keeps every token possible in every state, so that g > 0 wherever it must be.
    """
    strings = np.asarray(strings, dtype=np.int64)
    if strings.ndim != 2 or strings.min() < 0 or strings.max() >= tokens:
        raise BadArgument(f"strings must be an array of tokens below {tokens}, of equal length")
    rng = np.random.default_rng(seed)
    start = np.full(states, 1.0 / states)
    A = rng.dirichlet(np.ones(states), states)
    B = 0.5 * rng.dirichlet(np.ones(tokens), states)
    B += 0.5 * np.bincount(strings.ravel(), minlength=tokens) / strings.size
    M, T = strings.shape
    for _ in range(steps):
        like = B.T[strings]  # [M, T, H]
        f, scale = np.zeros((M, T, states)), np.zeros((M, T))
        for t in range(T):
            f[:, t] = (start if t == 0 else f[:, t - 1] @ A) * like[:, t]
            scale[:, t] = f[:, t].sum(1)
            f[:, t] /= scale[:, t, None]
        b = np.ones((M, states))
        pair, emit = np.zeros((states, states)), np.full((states, tokens), pseudocount)
        for t in reversed(range(T)):
            gamma = f[:, t] * b
            np.add.at(emit.T, strings[:, t], gamma)
            back = like[:, t] * b / scale[:, t, None]
            if t > 0:
                pair += f[:, t - 1].T @ back
            b = back @ A.T
        start = gamma.sum(0) + pseudocount
        start /= start.sum()
        A = A * pair + pseudocount
        A /= A.sum(1, keepdims=True)
        B = emit / emit.sum(1, keepdims=True)
    return HMM(start, A, B)
