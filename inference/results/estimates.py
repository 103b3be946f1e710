"""Numbers with their errors: what a `Posterior` answers with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lmppl.arguments import as_number, check_instances


class Estimate(NamedTuple):
    """A number with its standard error."""

    value: float
    se: float


class Interval(NamedTuple):
    """A two-sided interval."""

    low: float
    high: float


class Marginal(dict[Any, float]):
    """P(value), largest first; `se` has the standard error of each.

    >>> Marginal({"a": 0.75, "b": 0.25}, {"a": 0.1, "b": 0.1}).best
    'a'
    """

    def __init__(self, probabilities: dict[Any, float], se: dict[Any, float]) -> None:
        """Sort by probability, ties by how the value is shown."""
        ranked = sorted(probabilities.items(), key=lambda kv: (-kv[1], repr(kv[0])))
        super().__init__(ranked)
        self.se = se

    @property
    def best(self) -> Any:
        """The most probable value."""
        return next(iter(self))

    @property
    def entropy(self) -> float:
        """-Σ p log p, in nats."""
        return -math.fsum(p * math.log(p) for p in self.values() if p > 0)

    def total_variation(self, other: Mapping[Any, float]) -> float:
        """½ Σ |P(v) - Q(v)| with another distribution, such as the exact one: 0 equal, 1 disjoint.

        >>> Marginal({"a": 0.75, "b": 0.25}, {}).total_variation({"a": 0.5, "c": 0.5})
        0.5
        """
        check_instances("total_variation", Mapping, "a mapping from value to P", other=other)
        q = {v: as_number("total_variation", P=p) for v, p in other.items()}
        return 0.5 * math.fsum(abs(self.get(v, 0.0) - q.get(v, 0.0)) for v in {*self, *q})

    def __str__(self) -> str:
        rows = [f"{p:7.4f}{self._error(v)}  {v!r:.80}" for v, p in self.items()]
        return "\n".join(rows[:20] + ([f"… {len(rows) - 20} more"] if len(rows) > 20 else []))

    def _error(self, value: Any) -> str:
        se = self.se.get(value, math.nan)
        return "" if math.isnan(se) else f" ± {se:.4f}"

    def _repr_html_(self) -> str:
        from lmppl.html import bar, text

        rows = "".join(
            f"<tr><td>{bar(p)}</td><td>{p:.4f}</td><td>{self._error(v)}</td><td>{text(v)}</td></tr>"
            for v, p in list(self.items())[:50]
        )
        return f"<table>{rows}</table>"
