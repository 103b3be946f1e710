"""Arrays of few shapes for the factors of a problem: what compiled message passing reads.

A factor has one row for each assignment of its parents. Factors of like many rows share a group,
padded to the longest; one group of all would do, but a problem with one wide table would then pay
its width in every factor. Messages are small and have one shape for all factors: k parents of d
values, where a dummy variable, the last one, stands for parents that are not there.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.planning.factors import Factor, Factors

WIDEST = 1 << 22
MOST_GROUPS = 3
SAVING = 0.7
"""One more group has to leave this share of the rows at most: each is more to compile and to call."""
NOTHING = -1e30
"""log of the weight of a row that is not there."""


def padded(problem: Factors) -> dict[str, Any]:
    """The arrays of a problem.

    parents [E, k] and child [E], variables; unary and initial [N + 1, d]; groups, of factors that
    follow one another: table [e, r, A, d], local [e, r, A], digits [e, k', r], live [e, r].
    """
    n, d, a = len(problem.sizes), max(problem.sizes), len(problem.cost)
    rows = [int(np.prod(f.local.shape[:-1])) for f in problem.factors]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    cuts = _cuts([rows[i] for i in order])
    if sum((hi - lo) * rows[order[hi - 1]] for lo, hi in cuts) * d * a > WIDEST:
        raise BadArgument(
            f"{len(rows)} factors with up to {max(rows):,} rows of {d} values and {a} actions are "
            "too wide",
            fix='split the widest table, or use method="rollout"',
        )
    k = max(1, *(len(f.parents) for f in problem.factors))
    parents, child = np.full((len(rows), k), n), np.array([min(i, n) for i in order])
    for i, e in enumerate(order):
        parents[i, : len(problem.factors[e].parents)] = problem.factors[e].parents
    small = np.zeros((2, n + 1, d))
    for i, (u, p) in enumerate(zip(problem.unary, problem.initial, strict=True)):
        small[0, i, : len(u)], small[1, i, : len(p)] = u, p
    small[1, n, 0] = 1.0
    return {
        "parents": parents,
        "child": child,
        "groups": [_group([problem.factors[e] for e in order[lo:hi]], a, d) for lo, hi in cuts],
        "unary": small[0],
        "initial": small[1],
        "cost": problem.cost,
        "allowed": problem.allowed.astype(float),
        "counts": problem.counts,
        "paid": np.append(problem.paid, 0.0),
    }


def _group(factors: list[Factor], a: int, d: int) -> dict[str, Any]:
    e, k = len(factors), max(1, *(len(f.parents) for f in factors))
    r = max(int(np.prod(f.local.shape[:-1])) for f in factors)
    table, local = np.zeros((e, r, a, d)), np.zeros((e, r, a))
    table[..., 0] = 1.0
    digits, live = np.zeros((e, k, r), np.int32), np.full((e, r), NOTHING)
    for i, f in enumerate(factors):
        shape = f.local.shape[:-1]
        rows = int(np.prod(shape))
        live[i, :rows] = 0.0
        local[i, :rows] = f.local.reshape(rows, a)
        digits[i, : len(shape), :rows] = np.indices(shape).reshape(len(shape), rows)
        if f.table is not None:
            table[i, :rows] = 0.0
            table[i, :rows, :, : f.table.shape[-1]] = f.table.reshape(rows, a, -1)
    return {"table": table, "local": local, "digits": digits, "live": live}


def _cuts(rows: list[int]) -> list[tuple[int, int]]:
    """Where to cut factors, sorted by their rows, into few groups of little padding."""
    ends = [i for i in range(1, len(rows)) if rows[i] > rows[i - 1]]
    best, least = [(0, len(rows))], len(rows) * rows[-1]
    for more in range(1, MOST_GROUPS):
        found = [
            list(itertools.pairwise((0, *inner, len(rows))))
            for inner in itertools.combinations(ends, more)
        ]
        cost = [sum((hi - lo) * rows[hi - 1] for lo, hi in cuts) for cuts in found]
        if not found or min(cost) > SAVING * least:
            break
        best, least = found[int(np.argmin(cost))], min(cost)
    return best
