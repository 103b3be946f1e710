"""Exact sums over finite variables: elimination along an order, and a tree of cliques for all at once.

Eliminating v multiplies the tables that hold it and sums v out:

    m_v(C_v without v) = log Σ_v exp Σ_{tables with v} table          C_v: v and its neighbours

The cost is the largest clique C_v, so the order matters: the one of `elimination_order` takes next
the variable that adds the fewest new neighbour pairs (min-fill). A second pass from the last
clique back to the first gives every marginal; drawing backwards gives exact joint draws; with max
in place of Σ it gives the most probable assignment.

Reference: Zhang and Poole, A simple approach to Bayesian network computations (1994); Dechter,
Bucket elimination (1999); Kjærulff, Triangulation of graphs (1990).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.arguments import check_instances, check_integers, check_seed
from lmppl.errors import BadArgument, LmpplError, excerpt, items_of
from lmppl.graphs.factors.factor import Factor, FactorGraph, maximum, normalized, product, summed
from lmppl.random import Chance, GumbelMax, draw, fold
from lmppl.types import Floats

MOST_ENTRIES = 1 << 22
"""The largest table that is made: 32 MB."""
ORDER = (
    "an order of elimination names every variable once",
    'write order=["a", "b"], or leave it out',
)


class TooWide(LmpplError):
    """The largest clique of an elimination has too many entries."""


def _too_wide(what: str, entries: int, most: int) -> TooWide:
    return TooWide(
        f"{what} has {entries:,} entries",
        why=f"at most {most:,} are allowed, and the cost grows with it",
        fix="use loopy propagation, another engine, or a larger most=",
    )


def _check(caller: str, graph: Any, most: Any) -> None:
    check_instances(caller, FactorGraph, "a FactorGraph", graph=graph)
    check_integers(caller, most=most)


def elimination_order(
    scopes: Iterable[Sequence[str]],
    sizes: Mapping[str, int],
    *,
    last: Iterable[str] = (),
) -> tuple[list[str], int]:
    """A min-fill order of all variables, and the number of entries of its largest clique.

    Args:
        scopes: those of the tables.
        sizes: the number of values of each variable.
        last: variables that are eliminated after all others.

    >>> elimination_order([("a", "b"), ("b", "c")], {"a": 2, "b": 3, "c": 2})
    (['a', 'b', 'c'], 6)
    """
    near: dict[str, set[str]] = {v: set() for v in sizes}
    for scope in scopes:
        for u in scope:
            near[u].update(w for w in scope if w != u)
    late = set(last)
    order: list[str] = []
    widest = 1
    place = {v: i for i, v in enumerate(sizes)}

    def cost(v: str) -> tuple[bool, int, int, int]:
        return v in late, _fill(v, near), _entries(v, near, sizes), place[v]

    now = {v: cost(v) for v in sizes}
    heap = [(c, v) for v, c in now.items()]
    heapq.heapify(heap)
    while heap:
        c, v = heapq.heappop(heap)
        if now.get(v) != c:
            continue  # its neighbours have changed since
        widest = max(widest, c[2])
        around = near.pop(v)
        del now[v]
        order.append(v)
        for u in around:
            near[u] |= around - {u}
            near[u].discard(v)
        touched = around.union(*(near[u] for u in around)) if c[1] else around
        for u in touched:
            now[u] = cost(u)
            heapq.heappush(heap, (now[u], u))
    return order, widest


def _fill(v: str, near: Mapping[str, set[str]]) -> int:
    return sum(b not in near[a] for a, b in itertools.combinations(near[v], 2))


def _entries(v: str, near: Mapping[str, set[str]], sizes: Mapping[str, int]) -> int:
    return sizes[v] * math.prod(sizes[u] for u in near[v])


@dataclass(frozen=True, eq=False)
class _Clique:
    """The variable that it eliminates, first in its scope; the sum of its tables, and its message."""

    variable: str
    table: Factor
    message: Factor


class CliqueTree:
    """A factor graph summed along an order; it answers any number of questions.

    Args:
        graph: the variables and tables.
        order: of elimination; min-fill when left out.
        most: the most entries of a clique.

    Raises:
        TooWide: the largest clique has more.

    >>> graph = FactorGraph.of({"a": (0, 1), "b": (0, 1)}, lambda a, b: float(a == b), ("a", "b"))
    >>> tree = CliqueTree(graph)
    >>> round(tree.log_z, 4), tree.marginal("a").tolist()
    (2.0064, [0.5, 0.5])
    """

    def __init__(
        self,
        graph: FactorGraph,
        order: Sequence[str] | None = None,
        *,
        most: int = MOST_ENTRIES,
    ) -> None:
        """Pass messages from the first clique to the last."""
        _check("CliqueTree", graph, most)
        self.graph = graph
        sizes = graph.sizes
        scopes = [f.scope for f in graph.factors]
        found, widest = elimination_order(scopes, sizes)
        self.order = found if order is None else items_of(order, *ORDER)
        if order is not None and sorted(self.order, key=repr) != sorted(sizes, key=repr):
            raise BadArgument(ORDER[0], value=excerpt(self.order), fix=ORDER[1])
        if order is None and widest > most:
            raise _too_wide("the largest clique of the graph", widest, most)
        place = {v: i for i, v in enumerate(self.order)}
        buckets: list[list[Factor]] = [[] for _ in self.order]
        self.constant: list[float] = []
        for f in graph.factors:
            self._put(f, place, buckets)
        self.cliques: list[_Clique] = []
        for v, bucket in zip(self.order, buckets, strict=True):
            rest = sorted({u for f in bucket for u in f.scope} - {v}, key=place.__getitem__)
            entries = sizes[v] * math.prod(sizes[u] for u in rest)
            if entries > most:
                raise _too_wide(f"the clique of {v!r}", entries, most)
            table = product(bucket, (v, *rest), sizes)
            message = summed(table, (v,))
            self.cliques.append(_Clique(v, table, message))
            self._put(message, place, buckets)
        self.log_z = math.fsum(self.constant) if -math.inf not in self.constant else -math.inf
        """Log Σ over all assignments of the product."""
        self._beliefs: dict[str, Factor] | None = None

    def _put(self, f: Factor, place: Mapping[str, int], buckets: list[list[Factor]]) -> None:
        if f.scope:
            buckets[min(place[v] for v in f.scope)].append(f)
        else:
            self.constant.append(float(f.table))

    @property
    def width(self) -> int:
        """The treewidth of its order: variables in the largest clique, less one."""
        return max((len(c.table.scope) for c in self.cliques), default=1) - 1

    @property
    def entries(self) -> int:
        """Of the largest clique."""
        return max((c.table.table.size for c in self.cliques), default=1)

    # -- all marginals -----------------------------------------------------------------------

    @property
    def beliefs(self) -> dict[str, Factor]:
        """Per clique, by its variable: the log of its joint marginal, times Z."""
        if self._beliefs is None:
            home = {c.variable: c for c in self.cliques}
            place = {v: i for i, v in enumerate(self.order)}
            found: dict[str, Factor] = {}
            for c in reversed(self.cliques):
                if not c.message.scope:
                    found[c.variable] = c.table
                    continue
                parent = min(c.message.scope, key=place.__getitem__)
                above = found[home[parent].variable]
                gone = [u for u in above.scope if u not in c.message.scope]
                outer = summed(above, gone)
                # what the rest of the tree says: without what this clique has told it
                ratio = _without(outer.over(c.message.scope), c.message.table)
                down = Factor(c.message.scope, ratio)
                found[c.variable] = Factor(c.table.scope, c.table.table + down.over(c.table.scope))
            self._beliefs = found
        return self._beliefs

    def marginal(self, name: str) -> Floats:
        """P(name = its k-th value) [K]; zeros when nothing has mass."""
        self.graph.values(name)
        belief = self.beliefs[name]
        if self.log_z == -math.inf:
            return np.zeros(self.graph.sizes[name])
        return normalized(summed(belief, belief.scope[1:]).table)

    def joint(self, names: Sequence[str]) -> Floats:
        """P over several variables, an axis each."""
        names = items_of(
            names, "the joint is of a list of variables", 'write tree.joint(["a", "b"])'
        )
        for name in names:
            self.graph.values(name)
        if self.log_z == -math.inf:
            return np.zeros([self.graph.sizes[v] for v in names])
        for belief in self.beliefs.values():
            if set(names) <= set(belief.scope):
                inner = summed(belief, [v for v in belief.scope if v not in names])
                return normalized(inner.over(names))
        kept, _ = eliminate(self.graph, names)
        return normalized(kept.table)

    # -- assignments -------------------------------------------------------------------------

    def draw(self, key: int, chance: Chance | None = None) -> dict[str, Any]:
        """One exact joint draw, backwards along the order, as a function of the key."""
        own = fold(check_seed(key), "eliminated")
        return self._backward(lambda v, row: draw(chance or GumbelMax(), fold(own, v), row))

    def _backward(self, pick: Any) -> dict[str, Any]:
        if self.log_z == -math.inf:
            raise LmpplError(
                "nothing can be drawn: every assignment has probability zero",
                fix="look at tree.log_z first; it is -inf",
            )
        at: dict[str, int] = {}
        for c in reversed(self.cliques):
            row = c.table.given({u: at[u] for u in c.table.scope[1:]}).table
            at[c.variable] = int(pick(c.variable, row))
        return {v: self.graph.domains[v][at[v]] for v in self.graph.domains}


def _without(whole: Floats, part: Floats) -> Floats:
    """Log (whole / part), with 0 / 0 = 0."""
    with np.errstate(invalid="ignore"):
        out = whole - part
    return np.asarray(np.where(np.isneginf(whole), -np.inf, out), dtype=np.float64)


def eliminate(
    graph: FactorGraph, keep: Sequence[str], *, most: int = MOST_ENTRIES
) -> tuple[Factor, int]:
    """The log of Σ over all variables but `keep`, and the largest clique on the way.

    >>> graph = FactorGraph.of({"a": (0, 1), "b": (0, 1)}, lambda a, b: 0.0, ("a", "b"))
    >>> eliminate(graph, ["a"])[0].table.round(4).tolist()
    [0.6931, 0.6931]
    """
    _check("eliminate", graph, most)
    keep = items_of(keep, "eliminate keeps a list of variables", 'write eliminate(graph, ["a"])')
    for name in keep:
        graph.values(name)
    sizes = graph.sizes
    order, widest = elimination_order(
        [*(f.scope for f in graph.factors), tuple(keep)], sizes, last=keep
    )
    if widest > most:
        raise _too_wide("the largest clique", widest, most)
    live = list(graph.factors)
    for v in order[: len(order) - len(keep)]:
        mine = [f for f in live if v in f.scope]
        live = [f for f in live if v not in f.scope]
        scope = sorted({u for f in mine for u in f.scope} | {v})
        live.append(summed(product(mine, scope, sizes), (v,)))
    return product(live, keep, sizes), widest


def most_probable(graph: FactorGraph, *, most: int = MOST_ENTRIES) -> tuple[dict[str, Any], float]:
    """The assignment of the largest product, and its log (Viterbi on a chain)."""
    _check("most_probable", graph, most)
    sizes = graph.sizes
    order, widest = elimination_order([f.scope for f in graph.factors], sizes)
    if widest > most:
        raise _too_wide("the largest clique", widest, most)
    live = list(graph.factors)
    tables: list[tuple[str, Factor]] = []
    for v in order:
        mine = [f for f in live if v in f.scope]
        live = [f for f in live if v not in f.scope]
        scope = (v, *sorted({u for f in mine for u in f.scope} - {v}))
        table = product(mine, scope, sizes)
        tables.append((v, table))
        live.append(maximum(table, (v,)))
    at: dict[str, int] = {}
    for v, table in reversed(tables):
        at[v] = int(np.argmax(table.given({u: at[u] for u in table.scope[1:]}).table))
    best = math.fsum(float(f.table) for f in live)
    return {v: graph.domains[v][at[v]] for v in graph.domains}, best
