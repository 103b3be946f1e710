"""Tree search with chance nodes, for problems whose states cannot be listed.

From the first state, each simulated run takes in every state the action of the largest

    mean return(a) + c · range · √(log n / n_a),

draws what follows, and ends in a new leaf, whose worth is `leaf(state, left)` or a uniformly random
run. A chance node keeps what it has drawn; with `widening = (k, β)` it may hold ⌈k n^β⌉ different
states and then draws among those, by how often they came. In the limit the values are those of the
optimal policy; at any time they are estimates, and not bounds.

Reference: Kocsis and Szepesvári, Bandit based Monte-Carlo planning (2006); Couëtoux et al.,
Continuous upper confidence trees (2011).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.planning.factors import factors_of
from lmppl.inference.planning.mdp import FactoredMDP, TabularMDP

Leaf = Callable[[Any, int], float]
Step = Callable[[Any, Any, np.random.Generator], tuple[Any, float]]


@dataclass(frozen=True)
class OpenMDP:
    """A problem given by what it does: its states need not be listed.

    Args:
        start: the first state, hashable.
        actions: of a state; an empty sequence where the run ends.
        step: of a state, an action and a generator: the next state and the reward.
    """

    start: Any
    actions: Callable[[Any], Sequence[Any]]
    step: Step


@dataclass
class _Node:
    n: int = 0
    totals: dict[Any, float] = field(default_factory=dict)
    squares: dict[Any, float] = field(default_factory=dict)
    visits: dict[Any, int] = field(default_factory=dict)
    after: dict[Any, dict[Hashable, tuple[_Node, float]]] = field(default_factory=dict)
    counts: dict[Any, dict[Hashable, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Searched:
    """What a search found about the first actions."""

    values: dict[Any, float]
    """Mean return of each."""
    errors: dict[Any, float]
    """Its standard error, as if the returns were independent."""
    visits: dict[Any, int]
    nodes: int


def search(
    world: OpenMDP,
    state: Any,
    horizon: int,
    *,
    simulations: int = 1000,
    exploration: float = 1.0,
    widening: tuple[float, float] | None = None,
    leaf: Leaf | None = None,
    seed: int = 0,
) -> Searched:
    """Simulate from a state.

    Args:
        world: the problem.
        state: where to act.
        horizon: how many actions.
        simulations: how many runs.
        exploration: c, in units of the range of the returns seen.
        widening: (k, β) of progressive widening; every drawn state gets its node when left out.
        leaf: what a new leaf is worth, of the state and the number of actions left.
        seed: of the draws.
    """
    if simulations < 1 or exploration < 0:
        raise BadArgument("needs simulations ≥ 1 and exploration ≥ 0")
    rng = np.random.default_rng(seed)
    root = _Node()
    low, high, nodes = math.inf, -math.inf, 1

    def random_run(at: Any, left: int) -> float:
        total = 0.0
        while left and (acts := world.actions(at)):
            at, gained = world.step(at, acts[int(rng.integers(len(acts)))], rng)
            total, left = total + gained, left - 1
        return total

    def pick(node: _Node, acts: Sequence[Any]) -> Any:
        fresh = [a for a in acts if a not in node.visits]
        if fresh:
            return fresh[int(rng.integers(len(fresh)))]
        span = exploration * max(high - low, 1e-12)
        bonus = math.log(node.n)
        return max(
            acts,
            key=lambda a: (
                node.totals[a] / node.visits[a] + span * math.sqrt(bonus / node.visits[a])
            ),
        )

    def follow(node: _Node, at: Any, action: Any) -> tuple[Any, _Node, float, bool]:
        nonlocal nodes
        after = node.after.setdefault(action, {})
        counts = node.counts.setdefault(action, {})
        n = node.visits.get(action, 0) + 1
        full = widening is not None and len(after) >= math.ceil(widening[0] * n ** widening[1])
        if full:
            known = list(after)
            weights = np.array([counts[k] for k in known], float)
            to = known[int(rng.choice(len(known), p=weights / weights.sum()))]
            gained, new = after[to][1], False
        else:
            to, gained = world.step(at, action, rng)
            new = to not in after
            if new:
                after[to] = (_Node(), gained)
                nodes += 1
            counts[to] = counts.get(to, 0) + 1
        return to, after[to][0], gained, new

    for _ in range(simulations):
        node, at, left = root, state, horizon
        path: list[tuple[_Node, Any, float]] = []
        rest, new = 0.0, False
        while left and not new and (acts := world.actions(at)):
            action = pick(node, acts)
            following, child, gained, new = follow(node, at, action)
            path.append((node, action, gained))
            node, at, left = child, following, left - 1
        if left and new:
            rest = leaf(at, left) if leaf is not None else random_run(at, left)
        for visited, action, gained in reversed(path):
            rest += gained
            visited.n += 1
            visited.visits[action] = visited.visits.get(action, 0) + 1
            visited.totals[action] = visited.totals.get(action, 0.0) + rest
            visited.squares[action] = visited.squares.get(action, 0.0) + rest * rest
        low, high = min(low, rest), max(high, rest)
    if not root.visits:
        raise BadArgument(f"no action can be taken in state {state!r}")
    values = {a: root.totals[a] / n for a, n in root.visits.items()}
    errors = {
        a: math.sqrt(max(root.squares[a] / n - values[a] ** 2, 0.0) / n)
        for a, n in root.visits.items()
    }
    return Searched(values, errors, dict(root.visits), nodes)


def as_world(mdp: TabularMDP | FactoredMDP, horizon: int, state: Any) -> OpenMDP:
    """A listed problem as one that is simulated; states carry the time, the last its final reward."""
    if isinstance(mdp, TabularMDP):
        stages = mdp.stages(horizon)
        cumulative = stages.transition.cumsum(axis=-1)
        start = int(np.argmax(stages.initial if state is None else mdp.law_of(state)))

        def acts(at: tuple[int, int]) -> list[int]:
            t, x = at
            return [] if t == horizon else np.flatnonzero(stages.allowed[x]).tolist()

        def step(
            at: tuple[int, int], a: int, rng: np.random.Generator
        ) -> tuple[tuple[int, int], float]:
            t, x = at
            y = min(int((rng.random() >= cumulative[x, a]).sum()), len(cumulative) - 1)
            last = float(stages.final[y]) if t + 1 == horizon else 0.0
            return (t + 1, y), float(stages.reward[t, x, a]) + last

        return OpenMDP((0, start), acts, step)
    problem = factors_of(mdp, horizon, state)
    first = tuple(int(p.argmax()) for p in problem.initial)
    legal = np.flatnonzero(problem.allowed).tolist()

    def gain(t: int, x: tuple[int, ...], a: int) -> float:
        total = sum(float(u[c]) for u, c in zip(problem.unary, x, strict=True))
        total += sum(float(g.local[(*(x[p] for p in g.parents), a)]) for g in problem.factors)
        return float(problem.counts[t]) * total

    def factored_step(at: Any, a: int, rng: np.random.Generator) -> tuple[Any, float]:
        t, x = at
        following = []
        for g in problem.factors[: len(x)]:
            if g.table is not None:
                law = g.table[(*(x[p] for p in g.parents), a)].cumsum()
                following.append(min(int((rng.random() >= law).sum()), len(law) - 1))
        to = tuple(following)
        last = gain(horizon, to, 0) if t + 1 == horizon else 0.0
        return (t + 1, to), gain(t, x, a) - float(problem.cost[a]) + last

    return OpenMDP((0, first), lambda at: [] if at[0] == horizon else legal, factored_step)
