"""Elimination, cliques, draws and loopy propagation against the whole joint table, written down."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmppl.graphs.factors.elimination import (
    CliqueTree,
    TooWide,
    eliminate,
    elimination_order,
    most_probable,
)
from lmppl.graphs.factors.factor import Factor, FactorGraph, normalized
from lmppl.graphs.factors.loopy import propagate
from lmppl.random import GumbelMax
from lmppl.testing import outcomes
from lmppl.types import Floats


def whole(graph: FactorGraph) -> tuple[list[str], Floats]:
    """The joint table, entry by entry, with plain numbers."""
    names = list(graph.domains)
    table = np.zeros([len(graph.domains[v]) for v in names])
    for index in np.ndindex(*table.shape):
        at = dict(zip(names, index, strict=True))
        terms = [float(f.table[tuple(at[v] for v in f.scope)]) for f in graph.factors]
        table[index] = -math.inf if -math.inf in terms else math.fsum(terms)
    return names, table


def log_total(table: Floats) -> float:
    with np.errstate(divide="ignore"):
        return float(np.log(np.exp(table).sum()))


def random_network(seed: int, most: int = 7, zeros: float = 0.15) -> FactorGraph:
    """A random DAG with random conditional tables, some entries zero, and random evidence tables."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, most + 1))
    sizes = rng.integers(1, 4, n)
    names = [f"x{i}" for i in range(n)]
    domains = {v: tuple(range(int(k))) for v, k in zip(names, sizes, strict=True)}
    factors = []
    for i in range(n):
        parents = [j for j in range(i) if rng.random() < 0.45][-3:]
        shape = tuple(int(sizes[j]) for j in (*parents, i))
        table = rng.dirichlet(np.ones(sizes[i]), shape[:-1]) * (rng.random(shape) >= zeros)
        with np.errstate(divide="ignore"):
            factors.append(Factor((*(names[j] for j in parents), names[i]), np.log(table)))
    if rng.random() < 0.7:
        pair = rng.permutation(n)[:2]
        table = rng.normal(size=tuple(int(sizes[j]) for j in pair))
        factors.append(Factor(tuple(names[j] for j in pair), table))
    factors.append(Factor((), np.array(float(rng.normal()))))
    return FactorGraph(domains, tuple(factors))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 10**9))
def test_elimination_is_the_sum_of_the_joint_table(seed: int) -> None:
    """Evidence, every marginal, a joint, evidence given, and the most probable assignment."""
    graph = random_network(seed)
    names, table = whole(graph)
    log_z = log_total(table)
    tree = CliqueTree(graph)
    if log_z == -math.inf:
        assert tree.log_z == -math.inf
        assert not any(tree.marginal(v).any() for v in names)
        return
    assert tree.log_z == pytest.approx(log_z, abs=1e-10)
    p = np.exp(table - log_z)
    for i, v in enumerate(names):
        exact = p.sum(axis=tuple(j for j in range(len(names)) if j != i))
        np.testing.assert_allclose(tree.marginal(v), exact, atol=1e-10)
    pair = names[:: max(1, len(names) - 1)][:2]
    axes = tuple(j for j, v in enumerate(names) if v not in pair)
    np.testing.assert_allclose(tree.joint(pair), p.sum(axis=axes), atol=1e-10)
    kept, _ = eliminate(graph, pair)
    np.testing.assert_allclose(normalized(kept.table), p.sum(axis=axes), atol=1e-10)
    best, log_best = most_probable(graph)
    assert log_best == pytest.approx(float(table.max()), abs=1e-10)
    assert graph.log_value(best) == pytest.approx(float(table.max()), abs=1e-10)
    last = names[-1]
    value = graph.domains[last][int(p.sum(axis=tuple(range(len(names) - 1))).argmax())]
    there = CliqueTree(graph.given({last: value}))
    index = (slice(None),) * (len(names) - 1) + (value,)
    assert there.log_z == pytest.approx(log_total(table[index]), abs=1e-10)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**9))
def test_messages_are_exact_on_trees(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 8))
    sizes = rng.integers(1, 4, n)
    domains = {f"x{i}": tuple(range(int(sizes[i]))) for i in range(n)}
    factors = [Factor(("x0",), rng.normal(size=sizes[0]))]
    for i in range(1, n):
        j = int(rng.integers(0, i))
        table = rng.normal(size=(sizes[j], sizes[i]))
        table[rng.random(table.shape) < 0.1] = -np.inf
        factors.append(Factor((f"x{j}", f"x{i}"), table))
    graph = FactorGraph(domains, tuple(factors))
    found, tree = propagate(graph), CliqueTree(graph)
    assert found.tree
    if tree.log_z == -math.inf:
        return
    assert found.converged
    assert found.log_z == pytest.approx(tree.log_z, abs=1e-9)
    for v in domains:
        np.testing.assert_allclose(found.marginals[v], tree.marginal(v), atol=1e-9)


def ring(n: int, pull: float) -> FactorGraph:
    domains = {f"x{i}": (0, 1) for i in range(n)}
    pairs = [(f"x{i}", f"x{(i + 1) % n}") for i in range(n)]
    table = np.array([[pull, 0.0], [0.0, pull]])
    field = Factor(("x0",), np.array([0.0, 0.4]))
    return FactorGraph(domains, (*(Factor(p, table) for p in pairs), field))


def test_messages_on_a_loop_are_near_and_say_that_it_is_one() -> None:
    graph = ring(6, 0.6)
    found, tree = propagate(graph, damping=0.2), CliqueTree(graph)
    assert found.converged and not found.tree
    assert abs(found.log_z - tree.log_z) < 0.02
    for v in graph.domains:
        assert 0 < np.abs(found.marginals[v] - tree.marginal(v)).max() < 0.02


def test_the_order_keeps_cliques_small() -> None:
    n = 40
    scopes = [(f"x{i}", f"x{i + 1}") for i in range(n)]
    order, widest = elimination_order(scopes, {f"x{i}": 3 for i in range(n + 1)})
    assert widest == 9 and sorted(order) == sorted({v for s in scopes for v in s})
    loops = [*scopes, ("x0", f"x{n}")]
    assert elimination_order(loops, {f"x{i}": 3 for i in range(n + 1)})[1] == 27
    order, _ = elimination_order(scopes, {f"x{i}": 3 for i in range(n + 1)}, last=["x3", "x9"])
    assert set(order[-2:]) == {"x3", "x9"}


def test_a_chain_of_a_thousand_is_exact() -> None:
    """Far more assignments than could be listed: 3^1000."""
    rng = np.random.default_rng(0)
    n = 1000
    tables = [rng.normal(size=(3, 3)) for _ in range(n - 1)]
    graph = FactorGraph(
        {f"x{i}": (0, 1, 2) for i in range(n)},
        tuple(Factor((f"x{i}", f"x{i + 1}"), t) for i, t in enumerate(tables)),
    )
    log_sum = np.zeros(3)
    for t in reversed(tables):
        log_sum = np.logaddexp.reduce(t + log_sum[None, :], axis=1)
    exact = float(np.logaddexp.reduce(log_sum))
    tree = CliqueTree(graph)
    assert tree.width == 1
    assert tree.log_z == pytest.approx(exact, rel=1e-12)
    np.testing.assert_allclose(tree.marginal("x0"), np.exp(log_sum - exact), atol=1e-10)


def test_draws_have_the_law_of_the_table() -> None:
    graph = random_network(12345, most=3, zeros=0.0)
    names, table = whole(graph)
    p = normalized(table)
    found: dict[tuple[int, ...], float] = {}
    for o in outcomes(lambda chance: CliqueTree(graph).draw(7, chance)):
        drawn = tuple(o.value[v] for v in names)
        found[drawn] = found.get(drawn, 0.0) + o.probability
    assert len(names) > 1
    for index in np.ndindex(*p.shape):
        assert found[index] == pytest.approx(float(p[index]), abs=1e-12)
    assert CliqueTree(graph).draw(7) == CliqueTree(graph).draw(7, GumbelMax())


def test_too_wide_is_refused_before_any_table_is_made() -> None:
    names = [f"x{i}" for i in range(30)]
    pairs = [Factor(p, np.zeros((2, 2))) for p in itertools.combinations(names, 2)]
    graph = FactorGraph({v: (0, 1) for v in names}, tuple(pairs))
    with pytest.raises(TooWide, match="1,073,741,824"):
        CliqueTree(graph)
    with pytest.raises(TooWide):
        eliminate(graph, ["x0"])
    with pytest.raises(TooWide):
        most_probable(graph)


def test_bad_tables_are_refused() -> None:
    from lmppl.errors import BadArgument

    with pytest.raises(BadArgument, match="axes"):
        Factor(("a",), np.zeros((2, 2)))
    with pytest.raises(BadArgument, match="nan"):
        Factor(("a",), np.array([np.nan]))
    with pytest.raises(BadArgument, match="no variable"):
        FactorGraph({"a": (0, 1)}, (Factor(("b",), np.zeros(2)),))
    with pytest.raises(BadArgument, match="shape"):
        FactorGraph({"a": (0, 1)}, (Factor(("a",), np.zeros(3)),))
    graph = FactorGraph({"a": (0, True)}, (Factor(("a",), np.zeros(2)),))
    assert graph.index("a", True) == 1 and graph.index("a", 0) == 0
    with pytest.raises(BadArgument, match="no value"):
        graph.index("a", 7)
    with pytest.raises(BadArgument, match="damping"):
        propagate(graph, damping=1.0)
