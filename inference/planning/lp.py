"""Two linear programmes of the expected utility, by the sparse HiGHS solver of scipy.

Occupancy: max Σ_t ⟨q_t, R_t⟩ + ⟨q_H, final⟩ over q ≥ 0 with
    Σ_a q_0(x, a) = P(x),   Σ_a q_{t+1}(x', a) = Σ_{x, a} q_t(x, a) P(x'|x, a)
Value, its dual: min ⟨P, V_0⟩ with V_t(x) ≥ R_t(x, a) + Σ_x' P(x'|x, a) V_{t+1}(x').

They are the limit λ → 0 of variational planning: the entropy forces the true dynamics and the rest
is linear. A risk-sensitive utility has no such programme.

Reference: Puterman, Markov decision processes (1994), chapter 4; the variational reading:
Lázaro-Gredilla, Ku, Murphy and George, What type of inference is planning? (2024).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lmppl.errors import LmpplError
from lmppl.inference.planning.mdp import Stages
from lmppl.inference.planning.tables import Array


class NotSolved(LmpplError):
    """A linear programme that the solver gave up."""


def occupancy(stages: Stages) -> tuple[float, Array]:
    """The optimal value, and q_t(x, a) as [H, S, A]."""
    from scipy import sparse

    h, s, a = stages.reward.shape
    allowed = stages.allowed.ravel()
    n = int(allowed.sum())
    leave = sparse.csr_matrix(np.kron(np.eye(s), np.ones((1, a)))[:, allowed])
    arrive = sparse.csr_matrix(stages.transition.reshape(s * a, s)[allowed].T)
    grid: list[list[Any]] = [[None] * (h + 1) for _ in range(h + 1)]
    for t in range(h):
        grid[t][t] = leave
        grid[t + 1][t] = -arrive
    grid[h][h] = sparse.identity(s, format="csr")
    rewards = stages.reward.reshape(h, s * a)[:, allowed].ravel()
    found = highs(
        -np.append(rewards, stages.final),
        equal=(sparse.bmat(grid, format="csr"), np.append(stages.initial, np.zeros(h * s))),
        bounds=(0, None),
    )
    q = np.zeros((h, s * a))
    q[:, allowed] = found.x[: h * n].reshape(h, n)
    return -float(found.fun), q.reshape(h, s, a)


def value_programme(stages: Stages) -> tuple[float, Array]:
    """The optimal value, and V_t(x) as [H + 1, S]; unique where the first state's law leads."""
    from scipy import sparse

    h, s, a = stages.reward.shape
    allowed = stages.allowed.ravel()
    leave = sparse.csr_matrix(np.kron(np.eye(s), np.ones((a, 1)))[allowed])
    ahead = sparse.csr_matrix(stages.transition.reshape(s * a, s)[allowed])
    grid: list[list[Any]] = [[None] * (h + 1) for _ in range(h)]
    for t in range(h):
        grid[t][t] = -leave
        grid[t][t + 1] = ahead
    bounds = [(None, None)] * (h * s) + [(float(v), float(v)) for v in stages.final]
    found = highs(
        np.append(stages.initial, np.zeros(h * s)),
        below=(
            sparse.bmat(grid, format="csr"),
            -stages.reward.reshape(h, s * a)[:, allowed].ravel(),
        ),
        bounds=bounds,
    )
    return float(found.fun), found.x.reshape(h + 1, s)


def highs(cost: Array, *, equal: Any = None, below: Any = None, bounds: Any = (0, None)) -> Any:
    """Minimise; a failure is an error with the solver's own message."""
    from scipy.optimize import linprog

    a_eq, b_eq = equal if equal is not None else (None, None)
    a_ub, b_ub = below if below is not None else (None, None)
    found = linprog(cost, A_ub=a_ub, b_ub=b_ub, A_eq=a_eq, b_eq=b_eq, bounds=bounds, method="highs")
    if found.status != 0:
        raise NotSolved(
            f"the linear programme has no answer: {found.message}",
            value=f"{len(cost):,} variables",
            fix='use method="dp" or "rollout"',
        )
    return found
