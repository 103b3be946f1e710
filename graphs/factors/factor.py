"""Tables over finite variables, in the log domain, and sets of them.

    p(x) ∝ Π_k exp table_k[x restricted to scope_k]

A `Factor` is one table with an axis per variable of its scope; a `FactorGraph` is a set of them
with the values of each variable. `lmppl.graphs.factors.program_tables` makes one of a program, `BayesNet` of
conditional probability tables; `lmppl.graphs.factors.elimination` and `loopy` compute with it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.distributions import _same
from lmppl.errors import BadArgument, excerpt
from lmppl.types import Floats
from lmppl.weights import log_sum

Name = str


@dataclass(frozen=True, eq=False)
class Factor:
    """A log table over some variables.

    Args:
        scope: the variables, one per axis.
        table: log values, any shape; `-inf` is data.
        site: whose term of the log joint it is.
    """

    scope: tuple[Name, ...]
    table: Floats
    site: str | None = None

    def __post_init__(self) -> None:
        """Check the shape and the numbers."""
        if self.table.ndim != len(self.scope) or len(set(self.scope)) < len(self.scope):
            raise BadArgument(
                f"a table of {self.table.ndim} axes for {len(self.scope)} variables {self.scope}",
                fix="give one axis per variable",
            )
        if np.isnan(self.table).any() or (self.table == np.inf).any():
            raise BadArgument(f"the table of {self.site or self.scope} holds nan or +inf")

    def over(self, scope: Sequence[Name]) -> Floats:
        """The table with the axes of a larger scope, of size 1 where it does not depend on one."""
        place = {v: i for i, v in enumerate(self.scope)}
        order = [place[v] for v in scope if v in place]
        shape = [self.table.shape[place[v]] if v in place else 1 for v in scope]
        return self.table.transpose(order).reshape(shape)

    def given(self, values: Mapping[Name, int]) -> Factor:
        """The table at indices of some variables."""
        index = tuple(values.get(v, slice(None)) for v in self.scope)
        rest = tuple(v for v in self.scope if v not in values)
        return Factor(rest, np.asarray(self.table[index], dtype=np.float64), self.site)


def product(factors: Iterable[Factor], scope: Sequence[Name], sizes: Mapping[Name, int]) -> Factor:
    """The sum of log tables over a scope that holds all of theirs."""
    table = np.zeros([sizes[v] for v in scope])
    for f in factors:
        table = table + f.over(scope)
    return Factor(tuple(scope), table)


def summed(factor: Factor, over: Iterable[Name]) -> Factor:
    """Log Σ exp over some variables."""
    gone = set(over)
    axes = tuple(i for i, v in enumerate(factor.scope) if v in gone)
    rest = tuple(v for v in factor.scope if v not in gone)
    return Factor(rest, log_sum(factor.table, axes))


def maximum(factor: Factor, over: Iterable[Name]) -> Factor:
    """The maximum over some variables."""
    gone = set(over)
    axes = tuple(i for i, v in enumerate(factor.scope) if v in gone)
    rest = tuple(v for v in factor.scope if v not in gone)
    return Factor(rest, np.asarray(factor.table.max(axis=axes), dtype=np.float64))


def normalized(table: Floats) -> Floats:
    """Probabilities of a log table; zeros where nothing has mass."""
    top = table.max() if table.size else -math.inf
    if top == -math.inf:
        return np.zeros_like(table)
    p = np.exp(table - top)
    return np.asarray(p / p.sum(), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class FactorGraph:
    """Finite variables, their values, and tables over them.

    Args:
        domains: the values of each variable.
        factors: the tables.

    >>> graph = FactorGraph.of({"a": (0, 1), "b": (0, 1)}, lambda a, b: -abs(a - b), ("a", "b"))
    >>> graph.sizes
    {'a': 2, 'b': 2}
    """

    domains: Mapping[Name, tuple[Any, ...]]
    factors: tuple[Factor, ...]

    def __post_init__(self) -> None:
        """Check that every axis has as many entries as its variable has values."""
        for f in self.factors:
            wrong = [v for v in f.scope if v not in self.domains]
            if wrong:
                raise BadArgument(
                    f"a table over {wrong[0]!r}, which is no variable",
                    fix=f"the variables are: {excerpt(list(self.domains))}",
                )
            want = tuple(len(self.domains[v]) for v in f.scope)
            if f.table.shape != want:
                raise BadArgument(
                    f"the table over {f.scope} has shape {f.table.shape}, its variables {want}"
                )

    @classmethod
    def of(
        cls,
        domains: Mapping[Name, Sequence[Any]],
        function: Callable[..., float],
        scope: Sequence[Name],
    ) -> FactorGraph:
        """One table, filled by a function of the values of its scope."""
        values = {v: tuple(d) for v, d in domains.items()}
        table = np.zeros([len(values[v]) for v in scope])
        for index in np.ndindex(*table.shape):
            table[index] = function(*(values[v][i] for v, i in zip(scope, index, strict=True)))
        return cls(values, (Factor(tuple(scope), table),))

    def __mul__(self, other: FactorGraph) -> FactorGraph:
        """Both sets of tables; variables of one name must have the same values."""
        for v in set(self.domains) & set(other.domains):
            if self.domains[v] != other.domains[v]:
                raise BadArgument(f"{v!r} has other values on the two sides")
        return FactorGraph({**self.domains, **other.domains}, self.factors + other.factors)

    @property
    def sizes(self) -> dict[Name, int]:
        """How many values each variable has."""
        return {v: len(d) for v, d in self.domains.items()}

    def index(self, name: Name, value: Any) -> int:
        """The place of a value among those of its variable."""
        values = self.domains[name]
        for same in (operator.is_, _same):  # two tokenisations of one text are equal
            for i, known in enumerate(values):
                if same(known, value):
                    return i
        raise BadArgument(
            f"{name!r} has no value {excerpt(value)}",
            fix=f"its values are: {excerpt(list(self.domains[name]))}",
        )

    def given(self, evidence: Mapping[Name, Any]) -> FactorGraph:
        """The tables at values of some variables, which leave the graph."""
        if unknown := [v for v in evidence if v not in self.domains]:
            raise BadArgument(
                f"{unknown[0]!r} is no variable",
                fix=f"the variables are: {excerpt(list(self.domains))}",
            )
        at = {v: self.index(v, x) for v, x in evidence.items()}
        rest = {v: d for v, d in self.domains.items() if v not in at}
        return FactorGraph(rest, tuple(f.given(at) for f in self.factors))

    def log_value(self, assignment: Mapping[Name, Any]) -> float:
        """Σ log tables at a value of every variable."""
        at = {v: self.index(v, assignment[v]) for v in self.domains}
        return math.fsum(float(f.table[tuple(at[v] for v in f.scope)]) for f in self.factors)
