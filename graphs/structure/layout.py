"""Where the nodes of a drawn DAG stand: layers, few crossings, straight edges.

Nodes stand on layers by their longest path from a root; edges that pass a layer get a bend there;
each layer is ordered by sweeps over the median of the neighbours; coordinates come from
alternating isotonic regressions, which move nodes towards their neighbours and keep their order.
A group (a plate) gets a band of columns of its own, so that its box holds no stranger.

Reference: Sugiyama, Tagawa and Toda, Methods for visual understanding of hierarchical system
structures (1981).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

Node = Hashable
Edge = tuple[Node, Node]
SWEEPS = 12
MOST_BENDS = 3000
"""With more of them, edges that pass a layer are drawn without."""


@dataclass
class Layout:
    """Centres of nodes and bends of edges, in pixels from the top left."""

    width: float
    height: float
    at: dict[Node, tuple[float, float]]
    bends: dict[Edge, list[tuple[float, float]]] = field(default_factory=dict)
    """Of an edge that passes layers: the points between its ends, from the top."""


@dataclass(frozen=True)
class _Bend:
    edge: Edge
    layer: int


def layered(
    nodes: Sequence[Node],
    edges: Sequence[Edge],
    widths: Mapping[Node, float],
    *,
    groups: Mapping[Node, Hashable] | None = None,
    row: float = 84.0,
    gap: float = 22.0,
    margin: float = 26.0,
) -> Layout:
    """Place the nodes of a DAG, given in a topological order.

    Args:
        nodes: in an order in which every edge points forward.
        edges: pairs of them.
        widths: of each node, in pixels.
        groups: the band of a node; those without one share a band.
        row: distance of two layers.
        gap: least distance of two nodes side by side.
        margin: around everything.
    """
    layer = _layers(nodes, edges)
    band = dict(groups or {})
    links: list[tuple[Node, Node]] = []
    chains: dict[Edge, list[Node]] = {}
    every: list[Node] = list(nodes)
    passed = sum(layer[v] - layer[u] - 1 for u, v in edges)
    for u, v in edges:
        if passed > MOST_BENDS and layer[v] - layer[u] > 1:
            continue
        chain: list[Node] = [u]
        for k in range(layer[u] + 1, layer[v]):
            bend = _Bend((u, v), k)
            layer[bend] = k
            every.append(bend)
            if band.get(u) == band.get(v) and u in band:
                band[bend] = band[u]
            chain.append(bend)
        chain.append(v)
        chains[u, v] = chain
        links += list(zip(chain, chain[1:], strict=False))
    size = {n: widths.get(n, 8.0) for n in every}
    names = list(dict.fromkeys(band.get(n) for n in every))
    x: dict[Node, float] = {}
    left = margin
    for name in names:
        inside = [n for n in every if band.get(n) == name]
        own = set(inside)
        near = [(u, v) for u, v in links if u in own and v in own]
        order = _order(inside, near, layer)
        found, width = _columns(order, near, size, gap)
        x.update((n, left + found[n]) for n in inside)
        left += width + (2 * gap if len(names) > 1 else 0.0)
    right = max((x[n] + size[n] / 2 for n in every), default=margin) + margin
    deepest = max(layer.values(), default=0)
    at = {n: (x[n], margin + row / 2 + row * layer[n]) for n in every}
    return Layout(
        right,
        2 * margin + row * (deepest + 1),
        {n: at[n] for n in nodes},
        {e: [at[n] for n in chain[1:-1]] for e, chain in chains.items() if len(chain) > 2},
    )


def _layers(nodes: Sequence[Node], edges: Sequence[Edge]) -> dict[Node, int]:
    """The longest path from a root; a root stands just above its first child."""
    below: dict[Node, list[Node]] = {n: [] for n in nodes}
    layer: dict[Node, int] = dict.fromkeys(nodes, 0)
    for u, v in edges:
        below[u].append(v)
    has_parent = {v for _, v in edges}
    for u in nodes:
        for v in below[u]:
            layer[v] = max(layer[v], layer[u] + 1)
    for u in nodes:
        if below[u] and u not in has_parent:
            layer[u] = min(layer[v] for v in below[u]) - 1
    return layer


def _order(
    nodes: Sequence[Node], links: Sequence[Edge], layer: Mapping[Node, int]
) -> list[list[Node]]:
    """The nodes of each layer from left to right, with few crossings."""
    up: dict[Node, list[Node]] = {n: [] for n in nodes}
    down: dict[Node, list[Node]] = {n: [] for n in nodes}
    for u, v in links:
        down[u].append(v)
        up[v].append(u)
    top = max((layer[n] for n in nodes), default=-1)
    rows: list[list[Node]] = [[n for n in nodes if layer[n] == k] for k in range(top + 1)]
    best, fewest = [list(r) for r in rows], _crossings(rows, down)
    for sweep in range(SWEEPS):
        if fewest == 0:
            break
        around = up if sweep % 2 == 0 else down
        for k in range(1, top + 1) if sweep % 2 == 0 else range(top - 1, -1, -1):
            beside = rows[k - 1] if sweep % 2 == 0 else rows[k + 1]
            place = {n: i for i, n in enumerate(beside)}
            own = {n: float(i) for i, n in enumerate(rows[k])}
            rows[k].sort(key=lambda n: _middle([place[m] for m in around[n]], own[n]))  # noqa: B023
        now = _crossings(rows, down)
        if now < fewest:
            best, fewest = [list(r) for r in rows], now
    return best


def _middle(places: Sequence[float], otherwise: float) -> float:
    return sum(places) / len(places) if places else otherwise


def _crossings(rows: Sequence[Sequence[Node]], down: Mapping[Node, Sequence[Node]]) -> int:
    count = 0
    for above, below in zip(rows, rows[1:], strict=False):
        place = {n: i for i, n in enumerate(below)}
        ends = [p for n in above for p in sorted(place[m] for m in down[n])]
        count += sum(a > b for i, a in enumerate(ends) for b in ends[i + 1 :])
    return count


def _columns(
    rows: Sequence[Sequence[Node]],
    links: Sequence[Edge],
    size: Mapping[Node, float],
    gap: float,
) -> tuple[dict[Node, float], float]:
    """The x of each centre, from 0, and the width of all."""
    beside: dict[Node, list[Node]] = {n: [] for row in rows for n in row}
    for u, v in links:
        beside[u].append(v)
        beside[v].append(u)
    x: dict[Node, float] = {}
    for row in rows:
        at = 0.0
        for n in row:
            x[n] = at + size[n] / 2
            at += size[n] + gap
        shift = (at - gap) / 2
        x.update((n, x[n] - shift) for n in row)
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = [_middle([x[m] for m in beside[n]], x[n]) for n in row]
            x.update(zip(row, _spaced(wanted, [size[n] for n in row], gap), strict=True))
    left = min((x[n] - size[n] / 2 for n in x), default=0.0)
    right = max((x[n] + size[n] / 2 for n in x), default=0.0)
    return {n: v - left for n, v in x.items()}, right - left


def _spaced(wanted: Sequence[float], sizes: Sequence[float], gap: float) -> list[float]:
    """The places nearest to the wanted ones, in least squares, that keep order and distance.

    With the distances subtracted this is isotonic regression: pool adjacent violators.
    """
    offset, total = [], 0.0
    for i, s in enumerate(sizes):
        total += (sizes[i - 1] + s) / 2 + gap if i else 0.0
        offset.append(total)
    pools: list[tuple[float, int]] = []
    for w, o in zip(wanted, offset, strict=True):
        mean, n = w - o, 1
        while pools and pools[-1][0] > mean:
            other, m = pools.pop()
            mean, n = (mean * n + other * m) / (n + m), n + m
        pools.append((mean, n))
    flat = [mean for mean, n in pools for _ in range(n)]
    return [f + o for f, o in zip(flat, offset, strict=True)]
