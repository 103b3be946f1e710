"""The order of a graph: levels of nodes, and runs of levels that are alike.

Nodes of one level do not depend on one another: those of the same kind and number of parents form
a bucket, handled at once by `vmap`. Consecutive levels with the same buckets form a run, handled by
one body under `scan`, so that compilation hardly grows with the graph. In a run every level of a
bucket is as wide as the widest; lanes too many are padding, whose results go nowhere.

    tree of 8,191 nodes     13 levels       three runs: the root, 7 narrow levels, 5 wide ones
    lattice of 32 x 32      63 levels       three: the root, its two children, the rest
    chain of n nodes        n levels        two runs: the root, and the rest

With adaptive colliders the parent of a collider that comes last in the order waits for the others,
since its guide reads their states: it moves below them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmppl.errors import BadArgument
from lmppl.types import Ints

WASTE = 4.0
"""A run has at most so many lanes for each of its nodes: padding costs time, a body compilation."""


class Lanes(NamedTuple):
    """Where the nodes of a bucket are, over the levels t of its run and its lanes b."""

    nodes: Ints
    """[t, b]; of padding, a node of the first level of the run, whose parents are known."""
    parents: Ints
    """[t, b, p]"""
    slots: Ints
    """Positions among all nodes of the kind [t, b], which is where their noise is."""
    into: Ints
    """Where results go [t, b]: the node; of padding the number of nodes, which is no node."""
    colliders: tuple[tuple[Ints, Ints], ...]
    """For each of `Bucket.late`: the collider [t, b], and its parents [t, b, q]."""


class Bucket(NamedTuple):
    """Nodes of one run that one function handles.

    Args:
        kind: of the nodes.
        p: how many parents each has.
        last: which of them is drawn last, at an adaptive collider; -1 elsewhere.
        late: of the colliders whose last parent these nodes are: kind, which parent, of how many.
        lanes: where the nodes are.
    """

    kind: str
    p: int
    last: int
    late: tuple[tuple[str, int, int], ...]
    lanes: Lanes


Run = tuple[Bucket, ...]
_Key = tuple[str, int, int, tuple[tuple[str, int, int], ...]]
_Level = dict[_Key, list[int]]


def schedule(
    parents: Sequence[tuple[int, ...]], kinds: Sequence[str], adaptive: bool
) -> tuple[Run, ...]:
    """Runs, from the roots down."""
    order, depth = _sorted(parents)
    last: dict[int, int] = {}
    late: dict[int, list[int]] = {}
    if adaptive:
        place = np.argsort(order)
        waits = [list(pa) for pa in parents]
        for s, pa in enumerate(parents):
            if len(pa) > 1:
                last[s] = max(range(len(pa)), key=lambda i, pa=pa: int(place[pa[i]]))  # type: ignore[misc]
                u = pa[last[s]]
                late.setdefault(u, []).append(s)
                waits[u] += [v for v in pa if v != u]
        # an order of the graph is one of the waits too, so that they add no cycle
        depth = _sorted(waits)[1]
    levels: list[_Level] = [{} for _ in range(max(depth, default=-1) + 1)]
    for s, pa in enumerate(parents):
        after = tuple((kinds[c], last[c], len(parents[c])) for c in late.get(s, ()))
        levels[depth[s]].setdefault((kinds[s], len(pa), last.get(s, -1), after), []).append(s)
    slots = _slots(kinds)
    return tuple(
        tuple(_bucket(run, key, parents, slots, late) for key in run[0]) for run in _runs(levels)
    )


def _sorted(parents: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """An order in which parents come first, and the level of each node."""
    children: list[list[int]] = [[] for _ in parents]
    for s, pa in enumerate(parents):
        for u in pa:
            children[u].append(s)
    missing = [len(pa) for pa in parents]
    order = [s for s, count in enumerate(missing) if not count]
    depth = [0] * len(parents)
    for s in order:  # grows while it is read
        for t in children[s]:
            depth[t] = max(depth[t], depth[s] + 1)
            missing[t] -= 1
            if not missing[t]:
                order.append(t)
    if len(order) < len(parents):
        stuck = [s for s, count in enumerate(missing) if count]
        raise BadArgument(f"the graph has a cycle through nodes {stuck[:10]}")
    return order, depth


def _slots(kinds: Sequence[str]) -> list[int]:
    """The position of each node among those of its kind."""
    seen: dict[str, int] = {}
    found = []
    for kind in kinds:
        found.append(seen.get(kind, 0))
        seen[kind] = found[-1] + 1
    return found


def _runs(levels: Sequence[_Level]) -> list[list[_Level]]:
    """Levels in groups, as long as no bucket is new and padding stays below `WASTE`."""
    runs: list[list[_Level]] = []
    width: dict[_Key, int] = {}
    nodes = 0
    for level in levels:
        sizes = {key: len(members) for key, members in level.items()}
        wider = {key: max(w, sizes.get(key, 0)) for key, w in width.items()}
        total = nodes + sum(sizes.values())
        length = len(runs[-1]) + 1 if runs else 1
        if runs and sizes.keys() <= width.keys() and length * sum(wider.values()) <= WASTE * total:
            runs[-1].append(level)
            width, nodes = wider, total
        else:
            runs.append([level])
            width, nodes = sizes, sum(sizes.values())
    return runs


def _bucket(
    run: Sequence[_Level],
    key: _Key,
    parents: Sequence[tuple[int, ...]],
    slots: Sequence[int],
    late: dict[int, list[int]],
) -> Bucket:
    kind, p, last, after = key
    width = max(len(level.get(key, ())) for level in run)
    spare = run[0][key][0]
    nodes = np.full((len(run), width), spare)
    into = np.full((len(run), width), len(parents))
    for t, level in enumerate(run):
        members = level.get(key, [])
        nodes[t, : len(members)] = into[t, : len(members)] = members

    def table(rows: list[tuple[int, ...]], columns: int) -> Ints:
        found: Ints = np.array(rows, dtype=np.int64).reshape(*nodes.shape, columns)
        return found

    flat = nodes.ravel().tolist()
    colliders = []
    for i, (_, _, q) in enumerate(after):
        at = [late[s][i] for s in flat]
        colliders.append((np.array(at).reshape(nodes.shape), table([parents[c] for c in at], q)))
    lanes = Lanes(
        nodes,
        table([parents[s] for s in flat], p),
        np.array([slots[s] for s in flat]).reshape(nodes.shape),
        into,
        tuple(colliders),
    )
    return Bucket(kind, p, last, after, lanes)
