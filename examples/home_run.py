"""Home Run: a planner over a map of places, with shortcuts that were only imagined.

An agent walked a winding path away from home and kept a map: the places it passed, and the steps
between them. A model of the ground proposes edges between places that were never walked; imagined
walks say how likely each is to come through. The planner weighs a short way that may fail against
the long one that it knows: a small problem whose states are places and whose actions are edges.

Three agents: one retraces its path, one trusts every imagined edge, one plans with the odds.

Reference: de Tinguy et al., Home Run: finding your way home by imagining trajectories (2022).
"""

from __future__ import annotations

import numpy as np

from lmppl.inference.planning import TabularMDP, plan

SIZE, PLACES, FALL = 9, 12, 3.0
"""A failed shortcut costs its length and FALL steps to come back."""
Cell = tuple[int, int]


def ground(rng: np.random.Generator) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """How likely each cell is passable."""
    return np.clip(rng.beta(4, 1, (SIZE, SIZE)), 0.05, 1.0)


def walk(rng: np.random.Generator) -> list[Cell]:
    """Places passed on a path from home that wanders."""
    at, path = (0, 0), [(0, 0)]
    while len(path) < PLACES:
        by = ((0, 1), (1, 0), (0, -1), (-1, 0))[int(rng.integers(4))]
        to = (at[0] + by[0], at[1] + by[1])
        if 0 <= to[0] < SIZE and 0 <= to[1] < SIZE and to not in path:
            path.append(to)
        elif rng.random() < 0.05:
            return walk(rng)  # stuck in a corner
        at = path[-1]
    return path


def between(a: Cell, b: Cell) -> list[Cell]:
    """The cells of a straight way, first along rows and then along columns."""
    rows = [(r, a[1]) for r in range(a[0], b[0], 1 if b[0] > a[0] else -1)]
    columns = [(b[0], c) for c in range(a[1], b[1], 1 if b[1] > a[1] else -1)]
    return [*rows, *columns][1:]


def imagined(
    a: Cell, b: Cell, odds: np.ndarray, rng: np.random.Generator, runs: int = 200
) -> float:
    """The share of imagined walks that come through."""
    cells = between(a, b)
    if not cells:
        return 1.0
    p = np.array([odds[c] for c in cells])
    return float((rng.random((runs, len(cells))) < p).all(axis=1).mean())


def problem(path: list[Cell], chance: np.ndarray, length: np.ndarray) -> TabularMDP:
    """States are places; action j goes to place j: it arrives, or comes back after a fall."""
    n = len(path)
    moves, cost = np.zeros((n, n, n)), np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            moves[i, j, j] += chance[i, j]
            moves[i, j, i] += 1.0 - chance[i, j]
            cost[i, j] = length[i, j] + (1.0 - chance[i, j]) * FALL
    allowed = (chance > 0) & ~np.eye(n, dtype=bool)
    return TabularMDP(n, n, moves, np.zeros(n), action_cost=cost, allowed=allowed, terminal=[0], initial=n - 1)  # fmt: skip


def main(worlds: int = 12) -> None:
    rows = []
    for world in range(worlds):
        rng = np.random.default_rng(world)
        path, odds = walk(rng), ground(rng)
        n = len(path)
        known = np.abs(np.subtract.outer(range(n), range(n))) == 1
        length = np.array(
            [[abs(a[0] - b[0]) + abs(a[1] - b[1]) for b in path] for a in path], float
        )
        near = (length <= 6) & ~known & ~np.eye(n, dtype=bool)
        chance = known.astype(float)
        for i, j in np.argwhere(near & np.tri(n, k=-1, dtype=bool)):
            chance[i, j] = chance[j, i] = imagined(path[i], path[j], odds, rng)
        horizon = 3 * n
        retrace = plan(problem(path, known.astype(float), length), horizon=horizon).value
        mdp = problem(path, chance, length)
        planned = plan(mdp, horizon=horizon)
        # trusting: the shortest way as if every imagined edge came through, on the true odds
        hopeful = plan(problem(path, (chance > 0).astype(float), length), horizon=horizon)
        value = np.zeros(n)
        for t in reversed(range(horizon)):
            law = np.array([list(hopeful.policy(t, i).values()) for i in range(n)])
            q = -mdp.action_cost + mdp.transition @ value
            value = (law * np.where(law > 0, q, 0.0)).sum(axis=1)
            value[0] = 0.0
        rows.append((-retrace, -value[n - 1], -planned.value))
    mean = np.mean(rows, axis=0)
    print(f"steps home from {PLACES} places away, mean of {worlds} worlds")
    for name, steps in zip(("retrace the path", "trust every shortcut", "plan with the odds"), mean, strict=True):  # fmt: skip
        print(f"  {name:<22}{steps:>7.2f}")
    for retraced, trusted, planned_steps in rows:
        assert planned_steps <= min(retraced, trusted) + 1e-9, "the optimum is no worse than either"
        assert retraced == PLACES - 1
    assert mean[2] < mean[0]


if __name__ == "__main__":
    main()
