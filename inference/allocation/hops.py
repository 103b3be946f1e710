"""Routing in hops: a question passes from model to model, each works on what the last one left.

State: the quality class of the work so far. A hop by model m costs c_m and moves class s to s' with
probability T_m(s' | s); stopping pays the quality of s. With H hops at most, by backward induction,

    V_0(s) = q(s)       V_h(s) = max( q(s),  max_m  Σ_s' T_m(s' | s) V_{h-1}(s') - λ c_m )

`plan_hops` is the exact plan, `greedy_hops` looks one hop ahead, `single_model` is the best fixed
chain of one model. HierRouter learns such a policy by policy gradient; here T is a table, estimated
from logged hops by `hop_table`.

Reference: HierRouter, coordinated routing of specialised language models (2025).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lmppl.arguments import check_integers
from lmppl.errors import BadArgument, excerpt
from lmppl.types import Floats, Ints

STOP = -1


@dataclass(frozen=True)
class HopPlan:
    """What to do with h hops left."""

    actions: Ints
    """The model, or `STOP`, by hops left and class [H + 1, S]."""
    values: Floats
    """What it is worth [H + 1, S]."""

    def __call__(self, state: int, hops_left: int) -> int:
        """The model of the next hop, or `STOP`."""
        return int(self.actions[hops_left, state])


def hop_table(
    hops: Iterable[tuple[int, int, int]], models: int, classes: int, *, prior: float = 1.0
) -> Floats:
    """T [models, S, S] from logged (model, class before, class after).

    Args:
        hops: what was observed.
        models: their number.
        classes: S.
        prior: how many hops that change nothing each row starts with.
    """
    counts = np.tile(prior * np.eye(classes), (models, 1, 1))
    for m, before, after in hops:
        counts[m, before, after] += 1.0
    totals = counts.sum(axis=2, keepdims=True)
    if not (totals > 0.0).all():
        raise BadArgument("a class was never left by some model", fix="write prior=1.0")
    return np.asarray(counts / totals, dtype=np.float64)


def plan_hops(
    table: Floats, quality: Floats, costs: Floats, *, hops: int, trade: float = 1.0
) -> HopPlan:
    """The plan of the largest expected quality - λ cost.

    Args:
        table: T_m(s' | s) [models, S, S].
        quality: of each class [S].
        costs: of a hop of each model [models].
        hops: at most so many.
        trade: λ.

    >>> table = np.array([[[0.2, 0.8], [0.0, 1.0]]])
    >>> plan = plan_hops(table, np.array([0.0, 1.0]), np.array([0.3]), hops=2)
    >>> plan(0, 2), plan(1, 2), round(float(plan.values[2, 0]), 3)
    (0, -1, 0.6)
    """
    t, q, c = _checked(table, quality, costs, hops)
    values, actions = [q], [np.full(len(q), STOP)]
    for _ in range(hops):
        best, action = _step(t, c, trade, values[-1], q)
        values.append(best)
        actions.append(action)
    return HopPlan(np.array(actions), np.array(values))


def greedy_hops(
    table: Floats, quality: Floats, costs: Floats, *, hops: int, trade: float = 1.0
) -> HopPlan:
    """Each hop as if it were the last one: what it does, and what that is worth."""
    t, q, c = _checked(table, quality, costs, hops)
    _, action = _step(t, c, trade, q, q)
    return _followed(t, q, c, trade, [action] * hops)


def single_model(
    table: Floats, quality: Floats, costs: Floats, *, hops: int, trade: float = 1.0, start: int = 0
) -> float:
    """The best of the fixed chains: one model, so many hops, whatever comes."""
    t, q, c = _checked(table, quality, costs, hops)
    found = [float(q[start])]
    for m in range(len(t)):
        row = np.eye(len(q))[start]
        for h in range(1, hops + 1):
            row = row @ t[m]
            found.append(float(row @ q) - trade * h * float(c[m]))
    return max(found)


def _step(t: Floats, c: Floats, trade: float, after: Floats, q: Floats) -> tuple[Floats, Ints]:
    worth = t @ after - trade * c[:, None]
    best = worth.argmax(axis=0)
    top = worth[best, np.arange(len(q))]
    stop = q >= top
    return np.where(stop, q, top), np.where(stop, STOP, best)


def _followed(t: Floats, q: Floats, c: Floats, trade: float, policy: list[Ints]) -> HopPlan:
    values, actions = [q], [np.full(len(q), STOP)]
    for action in policy:
        at = np.maximum(action, 0)
        gone = (t[at, np.arange(len(q))] @ values[-1]) - trade * c[at]
        values.append(np.where(action == STOP, q, gone))
        actions.append(action)
    return HopPlan(np.array(actions), np.array(values))


def _checked(
    table: Floats, quality: Floats, costs: Floats, hops: int
) -> tuple[Floats, Floats, Floats]:
    t, q, c = (np.asarray(x, dtype=np.float64) for x in (table, quality, costs))
    if q.ndim != 1 or t.shape != (len(c), len(q), len(q)) or c.ndim != 1:
        raise BadArgument(
            f"a table of shape {t.shape} for {q.shape} qualities and {c.shape} costs",
            fix="give T [models, S, S], quality [S], costs [models]",
        )
    if (t < 0).any() or not np.allclose(t.sum(axis=2), 1.0, atol=1e-9):
        raise BadArgument("the rows of the table must be probabilities", value=excerpt(t))
    check_integers("plan_hops", hops=hops)
    return t, q, c
