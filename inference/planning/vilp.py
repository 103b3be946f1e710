"""A linear programme over local marginals that bounds the optimal expected utility from above.

    max Σ_t Σ_e ⟨q_{t,e}, R_e⟩    over q_{t,e}(x_pa, a) ≥ 0, μ_{t,i}, A_t
    Σ_{x_pa∖i, a} q_{t,e} = μ_{t,i},   Σ_{x_pa} q_{t,e} = A_t(a),   μ_{t+1,i} = Σ q_{t,i} P_i

The marginals of every policy are feasible, so the optimum is an upper bound. It is loose where
parents are correlated or one action serves two factors: each may then hold its own joint law. It is
the limit λ → 0 of the concave variational planner, solved by the sparse HiGHS of scipy.

Reference: Lázaro-Gredilla, Ku, Murphy and George, What type of inference is planning? (2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.inference.planning.factors import Factors
from lmppl.inference.planning.lp import highs
from lmppl.inference.planning.tables import Array, Mask

SURE = 1e-7
"""What rounding may take from a probability or a value."""


@dataclass(frozen=True)
class Bound:
    """The optimum of the programme."""

    value: float
    action_probs: Array
    """A_0(a)"""
    action_values: Array
    """A bound with the first action fixed, [A]; -inf where it is not allowed."""
    variables: int


def variables(problem: Factors) -> int:
    """How many the programme has."""
    inside = sum(f.local.size for f in problem.factors) + len(problem.cost)
    return problem.horizon * (inside + sum(problem.sizes)) + sum(
        f.local.size for f in problem.factors
    )


def bound(problem: Factors, every: bool = True) -> Bound:
    """The largest of the programmes with one first action each.

    Args:
        problem: from `factors_of`.
        every: solve the programme of every first action. Otherwise one with a free first action
            comes first: its reduced costs bound all of them, and only those are solved that could
            still be the largest. The answer is the same.
    """
    cost, rows, rhs, acts, total = _programme(problem)
    names = np.arange(len(problem.cost))

    def solve(first: Mask) -> Any:
        upper = np.full(total, np.inf)
        for at in acts:
            upper[at] = np.where(problem.allowed, np.inf, 0.0)
        upper[acts[0]] = np.where(first, upper[acts[0]], 0.0)
        return highs(cost, equal=(rows, rhs), bounds=np.stack([np.zeros(total), upper], axis=1))

    values = np.where(problem.allowed, np.inf, -np.inf)
    solved = ~problem.allowed
    if not every:
        free = solve(problem.allowed)
        values[problem.allowed] = -free.fun - free.lower.marginals[acts[0]][problem.allowed]
        solved |= free.x[acts[0]] > 1.0 - SURE
    while not solved.all() and (every or not solved[values.argmax()]):
        a = int(np.where(solved, -np.inf, values).argmax())
        values[a], solved[a] = -float(solve(names == a).fun), True
    best = float(values.max())
    ties = solved & (values >= best - SURE)
    return Bound(best, ties / ties.sum(), values, total)


def _programme(problem: Factors) -> tuple[Array, Any, Array, list[slice], int]:
    """Costs, equalities, and where A_t stands."""
    from scipy import sparse

    h, a, n = problem.horizon, len(problem.cost), len(problem.sizes)
    at = 0

    def take(size: int) -> slice:
        nonlocal at
        at += size
        return slice(at - size, at)

    q = {(t, e): take(f.local.size) for t in range(h + 1) for e, f in enumerate(problem.factors)}
    mu = {(t, i): take(problem.sizes[i]) for t in range(h + 1) for i in range(n)}
    act = [take(a) for _ in range(h + 1)]
    cost = np.zeros(at)
    rows: list[Any] = []
    columns: list[Any] = []
    data: list[Any] = []
    rhs: list[Array] = []
    count = 0

    def equal(parts: list[tuple[slice, Array]], right: Array) -> None:
        nonlocal count
        for where, block in parts:
            r, c = np.nonzero(block)
            rows.append(r + count)
            columns.append(c + where.start)
            data.append(block[r, c])
        rhs.append(right)
        count += len(right)

    # Sums over all axes but one, as matrices, once for each factor
    sums = []
    for f in problem.factors:
        index = np.indices(f.local.shape).reshape(f.local.ndim, -1)
        sums.append([np.arange(s)[:, None] == index[j] for j, s in enumerate(f.local.shape)])
    for i in range(n):
        equal([(mu[0, i], np.eye(problem.sizes[i]))], problem.initial[i])
    for t in range(h + 1):
        w = problem.counts[t]
        equal([(act[t], np.ones((1, a)))], np.ones(1))
        if t < h:
            cost[act[t]] += problem.paid[t] * problem.cost
        for i in range(n):
            cost[mu[t, i]] -= w * problem.unary[i]
        for e, f in enumerate(problem.factors):
            cost[q[t, e]] -= w * f.local.ravel()
            one = sums[e]
            equal([(q[t, e], 1.0 * one[-1]), (act[t], -np.eye(a))], np.zeros(a))
            for j, i in enumerate(f.parents):
                s = problem.sizes[i]
                equal([(q[t, e], 1.0 * one[j]), (mu[t, i], -np.eye(s))], np.zeros(s))
            if t < h and f.table is not None:
                s = problem.sizes[e]
                moved = f.table.reshape(-1, s).T
                equal([(q[t, e], moved), (mu[t + 1, e], -np.eye(s))], np.zeros(s))
    parts = (np.concatenate(data), (np.concatenate(rows), np.concatenate(columns)))
    matrix = sparse.csr_matrix(parts, shape=(count, at))
    return cost, matrix, np.concatenate(rhs), act[:h], at
