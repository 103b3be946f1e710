"""Sum-product message passing on a factor graph: exact on a tree, an approximation with loops.

    variable to table    m_{v→f}(x) = Σ_{g ∋ v, g ≠ f} m_{g→v}(x)                           (logs)
    table to variable    m_{f→v}(x) = log Σ_{others} exp( table_f + Σ_{u ∈ f, u ≠ v} m_{u→f} )

The evidence of a fixed point is Bethe's: log Z_B = Σ_f (E_b[table_f] + H(b_f)) - Σ_v (d_v - 1) H(b_v),
with d_v the number of tables of v. On a tree it is log Z. With loops it bounds nothing; `converged`
says whether a fixed point was found at all, and damping helps to find one.

Reference: Kschischang, Frey and Loeliger, Factor graphs and the sum-product algorithm (2001);
Yedidia, Freeman and Weiss, Constructing free-energy approximations (2005).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmppl.arguments import check_instances, check_integers, check_numbers
from lmppl.graphs.factors.factor import Factor, FactorGraph, normalized
from lmppl.random import Chance, draw, fold
from lmppl.types import Floats, Key
from lmppl.weights import log_sum

Message = dict[tuple[int, str], Floats]
"""By table and variable."""


@dataclass(frozen=True)
class Loopy:
    """What message passing found."""

    marginals: Mapping[str, Floats]
    """P of each value of each variable."""
    log_z: float
    """Bethe's approximation of the evidence; exact on a tree."""
    converged: bool
    iterations: int
    tree: bool
    """Whether the factor graph has no loop, so that all of this is exact."""
    messages: Message = field(default_factory=dict, repr=False)
    """From each table, by its place among the factors of the graph, to each of its variables."""


def propagate(
    graph: FactorGraph, *, iterations: int = 200, damping: float = 0.0, tolerance: float = 1e-12
) -> Loopy:
    """Pass messages until they stop changing.

    Args:
        graph: the variables and tables.
        iterations: the most passes over all tables.
        damping: the share of the old message that is kept, in [0, 1).
        tolerance: the largest change of a message at which it has converged.

    >>> graph = FactorGraph.of({"a": (0, 1), "b": (0, 1)}, lambda a, b: float(a == b), ("a", "b"))
    >>> found = propagate(graph)
    >>> round(found.log_z, 4), found.tree
    (2.0064, True)
    """
    check_instances("propagate", FactorGraph, "a FactorGraph", graph=graph)
    check_integers("propagate", iterations=iterations)
    check_numbers("propagate", 0.0, below=1.0, damping=damping)
    check_numbers("propagate", 0.0, infinite=True, tolerance=tolerance)
    sizes = graph.sizes
    tables = graph.factors
    near: dict[str, list[int]] = {v: [] for v in sizes}
    for k, f in enumerate(tables):
        for v in f.scope:
            near[v].append(k)
    to_variable: Message = {
        (k, v): np.zeros(sizes[v]) for k, f in enumerate(tables) for v in f.scope
    }
    is_tree = _is_tree(sizes, tables)
    change, done = math.inf, 0
    while change > tolerance and done < iterations:
        change, done = 0.0, done + 1
        # forth and back, so that a chain is done after one iteration
        for k in [*range(len(tables)), *reversed(range(len(tables)))]:
            f = tables[k]
            total = _full(f, k, near, to_variable)
            for i, v in enumerate(f.scope):
                axes = tuple(a for a in range(len(f.scope)) if a != i)
                inward = _inward(v, k, near, to_variable)
                new = _scaled(_minus(log_sum(total, axes), inward, f, i, k, near, to_variable))
                old = to_variable[k, v]
                if damping:
                    new = _scaled(_mixed(old, new, damping))
                change = max(change, _distance(old, new))
                to_variable[k, v] = new
    beliefs = {
        v: normalized(sum((to_variable[k, v] for k in near[v]), np.zeros(sizes[v]))) for v in sizes
    }
    log_z = _bethe(tables, beliefs, near, to_variable)
    return Loopy(beliefs, log_z, change <= tolerance, done, is_tree, to_variable)


def _inward(v: str, k: int, near: Mapping[str, list[int]], messages: Message) -> Floats:
    """What the other tables tell this table of a variable."""
    out: Floats | None = None
    for g in near[v]:
        if g != k:
            out = messages[g, v] if out is None else out + messages[g, v]
    return np.zeros(len(messages[k, v])) if out is None else out


def _full(f: Factor, k: int, near: Mapping[str, list[int]], messages: Message) -> Floats:
    """A table times all that comes in."""
    total = f.table
    for i, v in enumerate(f.scope):
        shape = [1] * len(f.scope)
        shape[i] = -1
        total = total + _inward(v, k, near, messages).reshape(shape)
    return total


def _minus(
    whole: Floats,
    inward: Floats,
    f: Factor,
    axis: int,
    k: int,
    near: Mapping[str, list[int]],
    messages: Message,
) -> Floats:
    """The sum without what came from the variable itself, computed anew where that was zero."""
    if np.isfinite(inward).all():
        return np.asarray(whole - inward, dtype=np.float64)
    total = f.table
    for i, v in enumerate(f.scope):
        if i != axis:
            shape = [1] * len(f.scope)
            shape[i] = -1
            total = total + _inward(v, k, near, messages).reshape(shape)
    return log_sum(total, tuple(a for a in range(len(f.scope)) if a != axis))


def _scaled(message: Floats) -> Floats:
    top = float(message.max())
    return message - top if math.isfinite(top) else message


def _mixed(old: Floats, new: Floats, damping: float) -> Floats:
    both = np.isfinite(old) & np.isfinite(new)
    out = new.copy()
    out[both] = damping * old[both] + (1.0 - damping) * new[both]
    return out


def _distance(old: Floats, new: Floats) -> float:
    return float(np.abs(np.exp(old) - np.exp(new)).max())


def _is_tree(sizes: Mapping[str, int], tables: Sequence[Factor]) -> bool:
    """Whether variables and tables form a forest: no table closes a loop."""
    root = {v: v for v in sizes}

    def find(v: str) -> str:
        while root[v] != v:
            root[v] = root[root[v]]
            v = root[v]
        return v

    for f in tables:
        ends = [find(v) for v in f.scope]
        if len(set(ends)) < len(ends):
            return False
        for e in ends[1:]:
            root[e] = ends[0]
    return True


def _bethe(
    tables: Sequence[Factor],
    beliefs: Mapping[str, Floats],
    near: Mapping[str, list[int]],
    messages: Message,
) -> float:
    terms = []
    for k, f in enumerate(tables):
        b = normalized(_full(f, k, near, messages))
        if not b.any():
            return -math.inf
        alive = b > 0
        terms.append(float((b[alive] * (f.table[alive] - np.log(b[alive]))).sum()))
    for v, b in beliefs.items():
        if not b.any():
            return -math.inf
        entropy = -float((b[b > 0] * np.log(b[b > 0])).sum())
        terms.append((1 - len(near[v])) * entropy)
    return math.fsum(terms)


def guided_draw(
    graph: FactorGraph, found: Loopy, key: Key, chance: Chance
) -> tuple[dict[str, Any], float]:
    """One joint draw, variable by variable, guided by messages, and its log-weight.

    q(v | drawn before) ∝ exp( Σ tables that are complete with v + Σ messages of those that are not )

    The log-weight is log of the product of all tables less log q: proper whatever the messages are,
    and constant where they are exact. A draw that runs into a wall has weight `-inf`.
    """
    at: dict[str, int] = {}
    near: dict[str, list[int]] = {v: [] for v in graph.domains}
    for k, f in enumerate(graph.factors):
        for v in f.scope:
            near[v].append(k)
    log_q = 0.0
    for v, values in graph.domains.items():
        row = np.zeros(len(values))
        for k in near[v]:
            f = graph.factors[k]
            known = {u: at[u] for u in f.scope if u in at}
            complete = len(known) == len(f.scope) - 1
            row = row + (f.given(known).table if complete else found.messages[k, v])
        p = normalized(row)
        if not p.any():
            return {}, -math.inf
        with np.errstate(divide="ignore"):
            at[v] = draw(chance, fold(key, "guided", v), np.log(p))
        log_q += math.log(p[at[v]])
    drawn = {v: graph.domains[v][i] for v, i in at.items()}
    total = [float(f.table[tuple(at[v] for v in f.scope)]) for f in graph.factors]
    return drawn, -math.inf if -math.inf in total else math.fsum(total) - log_q
