"""Bayesian networks: elimination, Pyro, NumPyro and this package's own engines agree."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmppl.errors import BadArgument, GraphError
from lmppl.graphs.bayes_nets.bayes_net import BayesNet, Variable
from lmppl.graphs.structure.independence import d_separated
from lmppl.inference import Elimination, Enumerate, infer


def random_net(seed: int, most: int = 6) -> BayesNet:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, most + 1))
    sizes = [int(k) for k in rng.integers(2, 4, n)]
    made = []
    for i in range(n):
        parents = [j for j in range(i) if rng.random() < 0.5][-3:]
        table = rng.dirichlet(np.ones(sizes[i]), [sizes[j] for j in parents])
        names = [f"v{j}" for j in parents]
        made.append(Variable(f"v{i}", [f"{i}{chr(97 + k)}" for k in range(sizes[i])], table, names))
    return BayesNet(made)


def by_hand(net: BayesNet, of: str, given: dict[str, Any]) -> dict[Any, float]:
    found: dict[Any, float] = dict.fromkeys(net[of].values, 0.0)
    for values in itertools.product(*(v.values for v in net.variables)):
        at = dict(zip([v.name for v in net.variables], values, strict=True))
        if all(at[k] == x for k, x in given.items()):
            p = 1.0
            for v in net.variables:
                index = (
                    *(net[u].values.index(at[u]) for u in v.parents),
                    v.values.index(at[v.name]),
                )
                p *= float(v.table[index])
            found[at[of]] += p
    total = sum(found.values())
    return {k: x / total for k, x in found.items()}


@settings(max_examples=40)
@given(st.integers(0, 10**9))
def test_queries_are_the_plain_sum(seed: int) -> None:
    net = random_net(seed)
    last, first = net.variables[-1], net.variables[0]
    given = {last.name: last.values[0]}
    exact = by_hand(net, first.name, given)
    found = net.query(first.name, given)
    for value, p in exact.items():
        assert found[value] == pytest.approx(p, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_pyro_numpyro_and_the_program_agree(seed: int) -> None:
    """Every marginal under evidence, by five ways, to 1e-10."""
    pytest.importorskip("pyro")
    pytest.importorskip("numpyro")
    from lmppl.graphs.bayes_nets.numpyro_net import numpyro_marginals
    from lmppl.graphs.bayes_nets.pyro_net import pyro_marginals

    net = random_net(seed, most=5)
    last = net.variables[-1]
    given = {last.name: last.values[1]}
    pyro, numpyro = pyro_marginals(net, given), numpyro_marginals(net, given)
    listed = infer(net.program(), engine=Enumerate(), observations=given)
    summed = infer(net.program(), engine=Elimination(draws=2), observations=given)
    assert summed.log_evidence == pytest.approx(net.log_evidence(given), abs=1e-10)
    assert listed.log_evidence == pytest.approx(net.log_evidence(given), abs=1e-10)
    for v in net.variables[:-1]:
        exact = net.query(v.name, given)
        for value in v.values:
            for other in (
                pyro[v.name][value],
                numpyro[v.name][value],
                listed.marginal(v.name)[value],
                summed.marginal(v.name)[value],
            ):
                assert other == pytest.approx(exact[value], abs=1e-10)


def test_bad_networks_are_refused() -> None:
    with pytest.raises(BadArgument, match="no probabilities"):
        Variable("a", [0, 1], [0.5, 0.6])
    with pytest.raises(BadArgument, match="shape"):
        Variable("a", [0, 1], [[0.5, 0.5]])
    a = Variable("a", [0, 1], [0.5, 0.5])
    with pytest.raises(GraphError, match="does not stand before"):
        BayesNet([Variable("b", [0, 1], [[0.5, 0.5], [0.1, 0.9]], ["a"]), a])
    with pytest.raises(GraphError, match="two variables"):
        BayesNet([a, a])
    with pytest.raises(BadArgument, match="rows"):
        BayesNet([a, Variable("b", [0, 1], [[0.5, 0.5]] * 3, ["a"])])
    net = BayesNet([a, Variable("b", [0, 1], [[1.0, 0.0], [1.0, 0.0]], ["a"])])
    with pytest.raises(BadArgument, match="probability zero"):
        net.query("a", {"b": 1})
    with pytest.raises(BadArgument, match="no variable"):
        net.query("z")
    assert net.query("a", {"a": 1}) == {0: 0.0, 1: 1.0}
    assert not d_separated(net.to_networkx(), "a", "b")
