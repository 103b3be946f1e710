"""Bounded planners: how far an agent plans, inferred from what it does; reasoning in levels.

An agent that plans by b backups acts by Q_b,

    Q_b(x, a) = Σ_x' P(x'|x, a) [R(x') + γ max_a' Q_{b-1}(x', a')],     Q_0 = 0,

and its goal and its budget are hidden:

    p(goal, b | actions) ∝ p(goal) p(b) Π_t softmax(Q_b(x_t, ·; goal) / α)(a_t).

Budgets that lead to the same choices cannot be told apart, and keep equal mass.

Reference: Jacob, Gupta and Andreas, Modeling boundedly rational agents with latent inference
budgets (2024); levels: Camerer, Ho and Chong, A cognitive hierarchy model of games (2004).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.planning.mdp import TabularMDP
from lmppl.inference.planning.tables import Array, find, numbers, spread

T = TypeVar("T")


def backups(mdp: TabularMDP, reward: Any, iterations: int, discount: float = 0.95) -> Array:
    """Q_b for b = 1 … iterations, [iterations, S, A]; reward [S] on arrival, or [S, A].

    >>> walk = TabularMDP(3, 2, [[[1, 0, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, 1]],
    ...     [[0, 1, 0], [0, 0, 1]]], 0.0)
    >>> backups(walk, [0, 0, 1], 2, 0.5)[:, 0].tolist()
    [[0.0, 0.0], [0.0, 0.5]]
    """
    if iterations < 1 or not 0.0 <= discount <= 1.0:
        raise BadArgument("needs iterations ≥ 1 and 0 ≤ discount ≤ 1")
    s, a = len(mdp.states), len(mdp.actions)
    gain = numbers("reward", reward)
    arrival = gain.shape == (s,)
    here = np.zeros((s, a)) if arrival else spread("reward", gain, (s, a), "[S] or [S, A]")
    there = gain if arrival else np.zeros(s)
    value = np.zeros(s)
    found = []
    for _ in range(iterations):
        q = np.where(mdp.allowed, here + mdp.transition @ (there + discount * value), -np.inf)
        value = q.max(axis=1)
        found.append(q)
    return np.stack(found)


def choice_law(q: Array, temperature: float) -> Array:
    """The law over actions, last axis; temperature 0 shares among the best."""
    top = q.max(axis=-1, keepdims=True)
    if temperature == 0.0:
        best = (q >= top - 1e-12).astype(float)
        return np.asarray(best / best.sum(axis=-1, keepdims=True))
    weights = np.exp((q - top) / temperature)
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def infer_goal_and_budget(
    mdp: TabularMDP,
    trajectory: Sequence[tuple[Any, Any]],
    goals: Mapping[Any, Any],
    budgets: Sequence[int],
    temperature: float,
    *,
    discount: float = 0.95,
    prior: Mapping[tuple[Any, int], float] | None = None,
) -> dict[tuple[Any, int], float]:
    """The posterior of what an agent wants and how far it plans.

    Args:
        mdp: the moves; its own reward plays no part.
        trajectory: (state, action) pairs, by label.
        goals: goal -> reward, [S] on arrival or [S, A].
        budgets: numbers of backups.
        temperature: α of the agent's choices, in units of the reward.
        discount: γ.
        prior: p(goal, budget); uniform when left out.
    """
    if not goals or not budgets or min(budgets) < 1:
        raise BadArgument("needs at least one goal and budgets ≥ 1")
    if not (np.isfinite(temperature) and temperature >= 0.0):
        raise BadArgument(f"temperature must be finite and at least 0, got {temperature!r}")
    at = np.array([mdp.index(x) for x, _ in trajectory], int)
    did = np.array([find("action", a, mdp.actions) for _, a in trajectory], int)
    logs: dict[tuple[Any, int], float] = {}
    for goal, reward in goals.items():
        q = backups(mdp, reward, max(budgets), discount)
        for b in budgets:
            law = choice_law(q[b - 1][at], temperature)[np.arange(len(at)), did]
            weight = 1.0 if prior is None else prior.get((goal, b), 0.0)
            with np.errstate(divide="ignore"):
                logs[goal, b] = float(np.log(weight) + np.log(law).sum())
    top = max(logs.values())
    if top == -np.inf:
        raise BadArgument(
            "no goal and budget explains these actions", fix="use a temperature above 0"
        )
    total = sum(np.exp(v - top) for v in logs.values())
    return {k: float(np.exp(v - top) / total) for k, v in logs.items()}


def level_k(respond: Callable[[T], T], level_0: T, depth: int) -> list[T]:
    """What each level does, from 0 to `depth`: the response to the level below.

    >>> [round(x, 2) for x in level_k(lambda mean: 0.8 * mean, 50.0, 4)]
    [50.0, 40.0, 32.0, 25.6, 20.48]
    """
    if depth < 0:
        raise BadArgument(f"depth must be at least 0, got {depth!r}")
    found = [level_0]
    for _ in range(depth):
        found.append(respond(found[-1]))
    return found
