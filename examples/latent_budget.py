"""Latent inference budgets: how far an agent plans, inferred from where it walks.

An agent in a grid with walls plans by b rounds of value iteration and walks by the values that it
has then: a small budget makes it miss what is behind a corner. Both its goal and its budget are
hidden sites,

    p(goal, b | walk) ∝ p(goal) p(b) Π_t π(move_t | place_t; goal, b),

and `Enumerate` gives them exactly. An observer who takes every agent for an unbounded planner reads
the goals of bounded ones worse.

Reference: Jacob, Gupta and Andreas, Modeling boundedly rational agents with latent inference
budgets (2024).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmppl import Categorical, Uniform, observe, program, sample
from lmppl.inference import Enumerate, infer_many

SIZE = 6
BUDGETS = (1, 2, 4, 8, 16)
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
GOALS = tuple((r, c) for r in (0, SIZE - 1) for c in (0, SIZE - 1))
SHARPNESS = 6.0
"""Moves are taken with probability ∝ exp(SHARPNESS · value)."""

Place = tuple[int, int]
Walk = tuple[tuple[Place, int], ...]
Agent = tuple[int, Place, int, tuple[Walk, ...]]


@cache
def walls(grid: int) -> frozenset[Place]:
    """About a quarter of the cells."""
    rng = np.random.default_rng(grid)
    return frozenset(
        (int(r), int(c))
        for r, c in np.argwhere(rng.random((SIZE, SIZE)) < 0.25)
        if (int(r), int(c)) not in GOALS
    )


def step(grid: int, place: Place, move: int) -> Place:
    """Where a move leads; into a wall or over the edge, nowhere."""
    r, c = place[0] + MOVES[move][0], place[1] + MOVES[move][1]
    inside = 0 <= r < SIZE and 0 <= c < SIZE and (r, c) not in walls(grid)
    return (r, c) if inside else place


@cache
def policy(grid: int, goal: Place, budget: int) -> NDArray[np.float64]:
    """π(move | place) [SIZE, SIZE, 4] after `budget` rounds of value iteration, discount 0.9."""
    value = np.zeros((SIZE, SIZE))
    value[goal] = 1.0
    q = np.zeros((SIZE, SIZE, len(MOVES)))
    for _ in range(budget):
        for r in range(SIZE):
            for c in range(SIZE):
                for m in range(len(MOVES)):
                    q[r, c, m] = 0.9 * value[step(grid, (r, c), m)]
        value = q.max(axis=2)
        value[goal] = 1.0
    weights = np.exp(SHARPNESS * q / max(q.max(), 1e-9))
    found: NDArray[np.float64] = weights / weights.sum(axis=2, keepdims=True)
    return found


def move_law(grid: int, place: Place, goal: Place, budget: int) -> Categorical:
    return Categorical(dict(enumerate(policy(grid, goal, budget)[place].tolist())))


@program
def observer(grid: int, walks: tuple[Walk, ...], budgets: tuple[int, ...]) -> tuple[Place, int]:
    """Goal and budget of one agent, from several of its walks."""
    goal = sample("goal", Uniform(GOALS))
    budget = sample("budget", Uniform(budgets))
    for walk in walks:
        for place, move in walk:
            observe("move", move_law(grid, place, goal, budget), move)
    return goal, budget


def walked(
    grid: int, goal: Place, budget: int, rng: np.random.Generator, walks: int
) -> tuple[Walk, ...]:
    """What an agent does from random places, at most 8 moves each time."""
    free = [(r, c) for r in range(SIZE) for c in range(SIZE) if (r, c) not in walls(grid)]
    out = []
    for _ in range(walks):
        place, walk = free[rng.integers(len(free))], []
        for _ in range(8):
            if place == goal:
                break
            move = int(rng.choice(len(MOVES), p=policy(grid, goal, budget)[place]))
            walk.append((place, move))
            place = step(grid, place, move)
        out.append(tuple(walk))
    return tuple(out)


def read(agents: list[Agent], what: int, walks: int, budgets: tuple[int, ...]) -> list[Any]:
    """The most probable goal (0) or budget (1) of each agent."""
    questions = [(grid, seen[:walks], budgets) for grid, _, _, seen in agents]
    found = []
    for post in infer_many(observer, questions, engine=Enumerate()):
        law = post.marginal(lambda trace: trace.result[what])
        found.append(max(law, key=lambda value: law[value]))
    return found


def main(grids: int = 12) -> None:
    rng = np.random.default_rng(0)
    agents = []
    for grid in range(grids):
        for budget in BUDGETS:
            goal = GOALS[rng.integers(len(GOALS))]
            agents.append((grid, goal, budget, walked(grid, goal, budget, rng, 20)))
    budgets = read(agents, 1, 20, BUDGETS)
    bounded = read(agents, 0, 3, BUDGETS)
    unbounded = read(agents, 0, 3, BUDGETS[-1:])

    print(f"{'budget':>8}{'agents':>8}{'budget read':>13}{'within one level':>18}")
    hits = near = 0
    for budget in BUDGETS:
        found = [b for b, agent in zip(budgets, agents, strict=True) if agent[2] == budget]
        right = sum(b == budget for b in found)
        close = sum(abs(BUDGETS.index(b) - BUDGETS.index(budget)) <= 1 for b in found)
        hits, near = hits + right, near + close
        print(f"{budget:>8}{len(found):>8}{right / len(found):>13.3f}{close / len(found):>18.3f}")
    goals = [agent[1] for agent in agents]
    with_b = sum(f == g for f, g in zip(bounded, goals, strict=True)) / len(goals)
    without = sum(f == g for f, g in zip(unbounded, goals, strict=True)) / len(goals)
    print(f"goal read from 3 walks: {with_b:.3f} with a latent budget, {without:.3f} without")
    assert near / len(agents) >= 0.9
    assert hits / len(agents) >= 0.6
    assert with_b > without


if __name__ == "__main__":
    main()
