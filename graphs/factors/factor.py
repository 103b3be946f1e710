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

from lmppl.arguments import as_array, as_number, check_instances
from lmppl.distributions import _same
from lmppl.errors import BadArgument, excerpt, items_of
from lmppl.types import Floats
from lmppl.weights import log_sum

Name = str

SCOPE = "the scope of a table is a list of names", 'write ("a", "b")'
VALUES = "the values of a variable are a list", 'write {"a": (0, 1)}'
"""What an error says, and its cure."""


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
        if type(self.scope) is not tuple:
            object.__setattr__(self, "scope", tuple(items_of(self.scope, *SCOPE)))
        if not all(isinstance(v, str) for v in self.scope):
            raise BadArgument(SCOPE[0], value=excerpt(self.scope), fix=SCOPE[1])
        if type(self.table) is not np.ndarray:
            object.__setattr__(self, "table", as_array("Factor", table=self.table))
        if self.table.ndim != len(self.scope) or len(set(self.scope)) < len(self.scope):
            raise BadArgument(
                f"a table of {self.table.ndim} axes for {len(self.scope)} variables {self.scope}",
                fix="give one axis per variable",
            )
        if np.isnan(self.table).any() or (self.table == np.inf).any():
            raise BadArgument(
                f"the table of {self.site or self.scope} holds nan or +inf",
                fix="give log values; -inf where something is impossible",
            )

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
        check_instances(
            "FactorGraph", Mapping, "a mapping from name to values", domains=self.domains
        )
        domains = {v: tuple(items_of(d, *VALUES)) for v, d in self.domains.items()}
        object.__setattr__(self, "domains", domains)
        fix = "write FactorGraph(domains, (Factor(scope, table),))"
        object.__setattr__(self, "factors", tuple(items_of(self.factors, "tables are a list", fix)))
        for f in self.factors:
            check_instances("FactorGraph", Factor, "a Factor", table=f)
            want = tuple(len(self.values(v)) for v in f.scope)
            if f.table.shape != want:
                raise BadArgument(
                    f"the table over {f.scope} has shape {f.table.shape}, its variables {want}",
                    fix="give an axis per variable, with an entry per value",
                )

    @classmethod
    def of(
        cls,
        domains: Mapping[Name, Sequence[Any]],
        function: Callable[..., float],
        scope: Sequence[Name],
    ) -> FactorGraph:
        """One table, filled by a function of the values of its scope."""
        check_instances("FactorGraph.of", Callable, "a function of values", function=function)
        empty = cls(domains, ())  # type: ignore[arg-type]  # lists become tuples
        choices = [empty.values(v) for v in items_of(scope, *SCOPE)]
        table = np.zeros([len(values) for values in choices])
        for index in np.ndindex(*table.shape):
            found = function(*(values[i] for values, i in zip(choices, index, strict=True)))
            table[index] = as_number("FactorGraph.of", value=found)
        return cls(empty.domains, (Factor(tuple(scope), table),))

    def __mul__(self, other: FactorGraph) -> FactorGraph:
        """Both sets of tables; variables of one name must have the same values."""
        check_instances("FactorGraph", FactorGraph, "a FactorGraph", other=other)
        for v in set(self.domains) & set(other.domains):
            if self.domains[v] != other.domains[v]:
                raise BadArgument(
                    f"{v!r} has other values on the two sides",
                    fix="give both the same values in one order, or another name",
                )
        return FactorGraph({**self.domains, **other.domains}, self.factors + other.factors)

    @property
    def sizes(self) -> dict[Name, int]:
        """How many values each variable has."""
        return {v: len(d) for v, d in self.domains.items()}

    def values(self, name: Name) -> tuple[Any, ...]:
        """Those of a variable."""
        if not isinstance(name, str) or name not in self.domains:
            raise BadArgument(
                f"{excerpt(name)} is no variable",
                fix=f"the variables are: {excerpt(list(self.domains))}",
            )
        return self.domains[name]

    def index(self, name: Name, value: Any) -> int:
        """The place of a value among those of its variable."""
        values = self.values(name)
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
        check_instances("given", Mapping, "a mapping from name to value", evidence=evidence)
        at = {v: self.index(v, x) for v, x in evidence.items()}
        rest = {v: d for v, d in self.domains.items() if v not in at}
        return FactorGraph(rest, tuple(f.given(at) for f in self.factors))

    def log_value(self, assignment: Mapping[Name, Any]) -> float:
        """Σ log tables at a value of every variable."""
        check_instances("log_value", Mapping, "a mapping from name to value", assignment=assignment)
        if missing := [v for v in self.domains if v not in assignment]:
            raise BadArgument(
                f"{missing[0]!r} has no value in the assignment", fix="give every variable one"
            )
        at = {v: self.index(v, assignment[v]) for v in self.domains}
        return math.fsum(float(f.table[tuple(at[v] for v in f.scope)]) for f in self.factors)
