"""ARollout, the cheap baseline, and a simulator of factored problems with common random numbers.

ARollout fixes the first action, draws later ones uniformly, and passes marginals of single
variables forward as if they were independent. It plans for an agent that does not react, so its
values are estimates, too low where reacting pays; it takes milliseconds.

Reference: aggregate rollouts: Cui, Khardon, Fern and Tadepalli, Factored MCTS for large scale
stochastic planning (AAAI 2015).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lmppl.inference.planning.factors import Factors
from lmppl.inference.planning.tables import Array

Codes = npt.NDArray[np.intp]
Policy = Callable[[int, Codes], Codes]
"""(t, states [n, N]) -> actions [n]"""


def arollout(problem: Factors, states: Codes, start: int = 0, depth: int | None = None) -> Array:
    """Scores [n, A] of the first actions in states [n, N] at time `start`, `depth` actions deep."""
    n, a = len(states), len(problem.cost)
    stop = problem.horizon if depth is None else min(problem.horizon, start + depth)
    uniform = problem.allowed / problem.allowed.sum()
    moves = [(g.parents, _mixed(uniform, g.table)) for g in problem.factors if g.table is not None]
    gains = [
        (g.parents, _mixed(uniform, g.local[..., None])) for g in problem.factors if g.local.any()
    ]

    def reward(f: list[Array]) -> Array:
        total = sum(x @ u for x, u in zip(f, problem.unary, strict=True))
        for parents, table in gains:
            total = total + _mean(table, [f[p] for p in parents])[..., 0]
        return np.asarray(total)

    # The first state and action are known: what follows is read off
    every, acts = np.repeat(states, a, axis=0), np.tile(np.arange(a), n)
    score = problem.counts[start] * realised(problem, every, acts)
    score -= problem.paid[start] * problem.cost[acts]
    f = _following(problem, every, acts)
    for t in range(start + 1, stop):
        score += problem.counts[t] * reward(f) - problem.paid[t] * (uniform @ problem.cost)
        f = [_mean(table, [f[p] for p in parents]) for parents, table in moves]
    score += problem.counts[stop] * reward(f)
    return np.where(problem.allowed, score.reshape(n, a), -np.inf)


def _mixed(law: Array, table: Array) -> Array:
    """A table [parents…, A, x] under a law over actions."""
    return np.asarray(np.tensordot(law, table, (0, table.ndim - 2)))


def _mean(table: Array, parents: list[Array]) -> Array:
    """Σ over parents of independent laws [n, …] times table [parents…, x]."""
    if not parents:
        return table[None]
    out = parents[0] @ table.reshape(len(table), -1)
    for p in parents[1:]:
        d = p.shape[1]
        out = out.reshape(len(out), d, -1)
        out = sum((p[:, x, None] * out[:, x] for x in range(1, d)), p[:, :1] * out[:, 0])
    return np.asarray(out)


def _following(problem: Factors, states: Codes, actions: Codes) -> list[Array]:
    """The law of every variable after states [n, N] and actions [n]."""
    return [
        g.table[(*(states[:, p] for p in g.parents), actions)]
        for g in problem.factors[: len(problem.sizes)]
        if g.table is not None
    ]


def simulate(
    problem: Factors, states: Codes, uniforms: Array, policy: Policy, first: Codes | None = None
) -> Array:
    """Returns [n] of runs from `states`; equal `uniforms` [n, H, N] are common random numbers.

    `first` [n] are the first actions, where the policy is not to choose them.
    """
    total = np.zeros(len(states))
    for t in range(problem.horizon):
        actions = first if t == 0 and first is not None else policy(t, states)
        total += problem.counts[t] * realised(problem, states, actions) - (
            problem.paid[t] * problem.cost[actions]
        )
        following = np.empty_like(states)
        for i, law in enumerate(_following(problem, states, actions)):
            below = uniforms[:, t, i, None] >= law.cumsum(axis=1)
            following[:, i] = np.minimum(below.sum(axis=1), law.shape[1] - 1)
        states = following
    zero = np.zeros(len(states), np.intp)
    return np.asarray(total + problem.counts[-1] * realised(problem, states, zero))


def realised(problem: Factors, states: Codes, actions: Codes) -> Array:
    """The reward of states and actions, without costs."""
    total = sum(u[states[:, i]] for i, u in enumerate(problem.unary))
    for g in problem.factors:
        total = total + g.local[(*(states[:, p] for p in g.parents), actions)]
    return np.asarray(total)


def reactive(problem: Factors, depth: int = 4) -> Policy:
    """ARollout asked anew in every state: it reacts, though each of its plans does not."""

    def policy(t: int, states: Codes) -> Codes:
        different, back = np.unique(states, axis=0, return_inverse=True)
        found = arollout(problem, different, t, depth).argmax(axis=1)
        return np.asarray(found[back.reshape(-1)])

    return policy
