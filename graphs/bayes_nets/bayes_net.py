"""Bayesian networks of finite variables: tables in, exact answers out, models for other systems.

    p(x) = Π_v P(x_v | x_parents(v))

The same network is answered here by elimination, is a program of this package (`net.program()`,
for any engine), a Pyro model with enumerated sites (`lmppl.graphs.bayes_nets.pyro_net`), a NumPyro
model (`lmppl.graphs.bayes_nets.numpyro_net`), and a networkx graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmppl.arguments import as_array, check_instances, check_mapping
from lmppl.distributions import Categorical
from lmppl.errors import BadArgument, GraphError, excerpt, items_of
from lmppl.graphs.factors.elimination import MOST_ENTRIES, CliqueTree
from lmppl.graphs.factors.factor import Factor, FactorGraph
from lmppl.primitives import sample
from lmppl.program import ProgramFunction
from lmppl.types import Floats


@dataclass(frozen=True, eq=False)
class Variable:
    """A variable with its table.

    Args:
        name: of the variable, and of its site.
        values: what it can be.
        table: P(value | parents): an axis per parent, in their order, and one for the values.
        parents: names of earlier variables.
    """

    name: str
    values: tuple[Any, ...]
    table: Floats
    parents: tuple[str, ...] = ()

    def __init__(
        self, name: str, values: Sequence[Any], table: Any, parents: Sequence[str] = ()
    ) -> None:
        """Check that every row is a law."""
        check_instances("Variable", str, "a text", name=name)
        fix = f'write Variable({name!r}, ["no", "yes"], [0.8, 0.2])'
        values = items_of(values, f"the values of {name!r} must be a list", fix)
        parents = items_of(parents, f"the parents of {name!r} must be a list of names", fix)
        p = as_array("Variable", table=table).copy()
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "values", tuple(values))
        object.__setattr__(self, "table", p)
        object.__setattr__(self, "parents", tuple(parents))
        if p.ndim != len(self.parents) + 1 or p.shape[-1] != len(self.values):
            raise BadArgument(
                f"the table of {name!r} has shape {p.shape}, with {len(self.parents)} parents and "
                f"{len(self.values)} values",
                fix="give an axis per parent, in their order, and a last one for the values",
            )
        if not (p >= 0).all() or not np.allclose(p.sum(axis=-1), 1.0, atol=1e-9):
            raise BadArgument(
                f"rows of the table of {name!r} are no probabilities",
                value=excerpt(p.tolist()),
                fix="give non-negative numbers with sum 1 along the last axis",
            )


@dataclass(frozen=True, eq=False)
class BayesNet:
    """A Bayesian network.

    Args:
        variables: each behind its parents.

    >>> net = BayesNet([
    ...     Variable("rain", ["no", "yes"], [0.8, 0.2]),
    ...     Variable("wet", ["no", "yes"], [[0.9, 0.1], [0.05, 0.95]], ["rain"]),
    ... ])
    >>> round(net.query("rain", {"wet": "yes"})["yes"], 4)
    0.7037
    """

    variables: Sequence[Variable]
    _by_name: dict[str, Variable] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the order and the shapes."""
        known: dict[str, Variable] = {}
        fix = "write BayesNet([Variable(...), Variable(...)])"
        for v in items_of(self.variables, "a network is a list of variables", fix):
            check_instances("BayesNet", Variable, "a Variable", variable=v)
            if v.name in known:
                raise GraphError(
                    f"two variables are called {v.name!r}", fix="give each a name of its own"
                )
            missing = [p for p in v.parents if p not in known]
            if missing:
                raise GraphError(
                    f"{v.name!r} has the parent {missing[0]!r}, which does not stand before it",
                    why="a Bayesian network has no cycle",
                    fix="list parents before their children",
                )
            want = tuple(len(known[p].values) for p in v.parents)
            if v.table.shape[:-1] != want:
                raise BadArgument(
                    f"the table of {v.name!r} has {v.table.shape[:-1]} rows, its parents {want} values",
                    fix="give a row per value of each parent",
                )
            known[v.name] = v
        object.__setattr__(self, "_by_name", known)

    def __getitem__(self, name: str) -> Variable:
        """The variable of a name."""
        if not isinstance(name, str) or name not in self._by_name:
            raise BadArgument(
                f"the network has no variable {excerpt(name)}",
                fix=f"it has {', '.join(self._by_name)}",
            )
        return self._by_name[name]

    def factors(self) -> FactorGraph:
        """The tables, in the log domain."""
        with np.errstate(divide="ignore"):
            tables = tuple(
                Factor((*v.parents, v.name), np.log(v.table), v.name) for v in self.variables
            )
        return FactorGraph({v.name: v.values for v in self.variables}, tables)

    def query(
        self, of: str, given: Mapping[str, Any] | None = None, *, most: int = MOST_ENTRIES
    ) -> dict[Any, float]:
        """P(of | given), exactly, by elimination.

        Raises:
            BadArgument: what is given has probability zero.
            TooWide: the tables on the way are too large.
        """
        check_mapping("query", given=given)
        evidence = dict(given or {})
        variable = self[of]
        tree = CliqueTree(self.factors().given(evidence), most=most)
        if not np.isfinite(tree.log_z):
            raise BadArgument(
                "what is given has probability zero",
                value=excerpt(evidence),
                fix="give values that can occur together",
            )
        if of in evidence:
            return {v: float(v == evidence[of]) for v in variable.values}
        return dict(zip(variable.values, tree.marginal(of).tolist(), strict=True))

    def log_evidence(self, given: Mapping[str, Any]) -> float:
        """Log P(given)."""
        return CliqueTree(self.factors().given(given)).log_z

    def program(self) -> ProgramFunction[[], dict[str, Any]]:
        """The network as a program: a site per variable; it returns all values by name."""

        def network() -> dict[str, Any]:
            at: dict[str, Any] = {}
            for v in self.variables:
                row = v.table[tuple(self[p].values.index(at[p]) for p in v.parents)]
                at[v.name] = sample(v.name, Categorical(v.values, row.tolist()))
            return at

        return ProgramFunction(network)

    def to_networkx(self) -> Any:
        """The graph of the variables (networkx), for `render_svg` and d-separation."""
        import networkx

        found = networkx.DiGraph(program="a Bayesian network", plates={}, returns=[])
        for v in self.variables:
            found.add_node(v.name, kind="latent", law=f"{len(v.values)} values", plates=())
            found.add_edges_from((p, v.name) for p in v.parents)
        return found
