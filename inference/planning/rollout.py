"""ARollout, the cheap baseline, and a simulator of factored problems with common random numbers.

ARollout fixes the first action, draws later ones uniformly, and passes marginals of single
variables forward as if they were independent. It plans for an agent that does not react, so its
values are estimates, too low where reacting pays; it takes milliseconds.

Reference: aggregate rollouts: Cui, Khardon, Fern and Tadepalli, Factored MCTS for large scale
stochastic planning (AAAI 2015).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    f = [np.repeat(np.eye(s)[states[:, i]], a, axis=0) for i, s in enumerate(problem.sizes)]
    uniform = problem.allowed / problem.allowed.sum()
    first = np.tile(np.eye(a), (n, 1))
    score = np.zeros(n * a)
    for t in range(start, stop):
        law = first if t == start else uniform
        w = problem.counts[t]
        score += w * _state_reward(problem, f, law) - problem.paid[t] * (law @ problem.cost)
        f = [
            _mean(g.table, [f[p] for p in g.parents], law)
            for g in problem.factors[: len(problem.sizes)]
            if g.table is not None
        ]
    score += problem.counts[stop] * _state_reward(problem, f, uniform)
    return np.where(problem.allowed, score.reshape(n, a), -np.inf)


def _state_reward(problem: Factors, f: list[Array], law: Array) -> Array:
    total = sum(x @ u for x, u in zip(f, problem.unary, strict=True))
    for g in problem.factors:
        if g.local.any():
            local = g.local[..., None]
            total = total + _mean(local, [f[p] for p in g.parents], law)[..., 0]
    return np.asarray(total)


def _mean(table: Array, parents: list[Array], law: Array) -> Array:
    """Σ over parents and actions of independent laws [n, …] times table [parents…, A, x]."""
    if law.ndim == 1:
        out: Any = np.tensordot(law, table, (0, table.ndim - 2))
        own = False
        for p in parents:
            out = np.einsum("nx,nx...->n...", p, out) if own else np.tensordot(p, out, (1, 0))
            own = True
        return np.asarray(out) if own else np.broadcast_to(out, (1, *out.shape))
    out = table
    for k, p in enumerate(parents):
        out = np.einsum("nx,nx...->n...", p, out) if k else np.tensordot(p, out, (1, 0))
    return np.asarray(np.einsum("na,nax->nx" if parents else "na,ax->nx", law, out))


def simulate(
    problem: Factors, states: Codes, uniforms: Array, policy: Policy, first: int | None = None
) -> Array:
    """Returns [n] of runs from `states`; equal `uniforms` [n, H, N] are common random numbers."""
    n = len(states)
    rows = np.arange(n)
    total = np.zeros(n)
    for t in range(problem.horizon):
        actions = np.full(n, first) if t == 0 and first is not None else policy(t, states)
        total += problem.counts[t] * realised(problem, states, actions) - (
            problem.paid[t] * problem.cost[actions]
        )
        following = np.empty_like(states)
        for i, g in enumerate(problem.factors[: len(problem.sizes)]):
            if g.table is not None:
                law = g.table[(*(states[:, p] for p in g.parents), actions)]
                below = uniforms[rows, t, i][:, None] >= law.cumsum(axis=1)
                following[:, i] = np.minimum(below.sum(axis=1), law.shape[1] - 1)
        states = following
    zero = np.zeros(n, np.intp)
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
