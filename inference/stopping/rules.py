"""Stopping rules: immutable plain data, composed by `&` and `|`, with an explicit state.

    rule = (BetaMajority(0.95) & Threshold("draws", at_least=4)) | Budget(tokens=20_000)
    state = rule.start()
    while not state.update(readings): ...
    state.why

A rule is a pure function `step(data, values) -> (data, why)`: `data` is all that it remembers,
`why` the parts that fired, empty while it goes on. `State` keeps the data between calls. So a rule
may be shared, pickled, written down; it may run inside a program, where a replay repeats it; and the
same update on the same data does the same.

| rule | stops when | reads |
| --- | --- | --- |
| `a & b`, `a | b` | both, either stop at this update | theirs |
| `Consecutive(rule, k)` | `rule` has stopped at k updates in a row | its |
| `Patience(signal, k)` | nothing was better for k updates | one |
| `Threshold(signal, …)` | a signal is at least or at most a number | one |

`criteria` has the Beta majority, slopes, the secretary rule and budgets; `chain` the rules along one
chain of thought.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmppl.arguments import check_integers
from lmppl.errors import BadArgument, excerpt

Values = Mapping[str, Any]
Why = tuple[str, ...]


class Rule(ABC):
    """When to stop."""

    def begin(self) -> Any:
        """What it remembers before the first update: plain data."""
        return None

    @abstractmethod
    def step(self, data: Any, values: Values) -> tuple[Any, Why]:
        """One update: what it remembers now, and why it stops (empty: it does not)."""

    def start(self) -> State:
        """A state before the first update."""
        return State(self, self.begin())

    def __and__(self, other: Rule) -> Rule:
        return And(_parts(And, self) + _parts(And, other))

    def __or__(self, other: Rule) -> Rule:
        return Or(_parts(Or, self) + _parts(Or, other))

    def consecutive(self, k: int) -> Rule:
        """`Consecutive(self, k)`."""
        return Consecutive(self, k)


@dataclass
class State:
    """A rule and what it remembers.

    >>> state = Threshold("draws", at_least=2).start()
    >>> state.update({"draws": 1}), state.update({"draws": 2}), state.why
    (False, True, ('draws >= 2',))
    """

    rule: Rule
    data: Any
    updates: int = 0
    why: Why = field(default=())
    """The parts that fired at the last update."""

    def update(self, values: Values) -> bool:
        """Read the signals; whether to stop now."""
        self.data, self.why = self.rule.step(self.data, values)
        self.updates += 1
        return bool(self.why)


def read(values: Values, name: str, rule: Rule) -> Any:
    """A signal, or an error that says which there are."""
    if name not in values:
        raise BadArgument(
            f"{rule} reads the signal {name!r}, which is not there",
            value=f"the signals are {', '.join(map(str, values)) or 'none'}",
            fix="give prices={model: (read, written)}" if name == "money" else "give it to update",
        )
    return values[name]


def number(values: Values, name: str, rule: Rule) -> float:
    """A signal that is a number."""
    value = read(values, name, rule)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadArgument(f"the signal {name!r} is no number: {excerpt(value)}", where=str(rule))
    return float(value)


def _parts(kind: type[And] | type[Or], rule: Rule) -> tuple[Rule, ...]:
    if not isinstance(rule, Rule):
        raise BadArgument(
            f"& and | join rules, got {excerpt(rule, 40)}",
            fix='write Threshold("ess", at_least=100)',
        )
    return rule.rules if isinstance(rule, kind) else (rule,)


@dataclass(frozen=True)
class And(Rule):
    """Stops at an update at which all parts stop."""

    rules: tuple[Rule, ...]

    def begin(self) -> Any:
        """Of each part."""
        return [r.begin() for r in self.rules]

    def step(self, data: Any, values: Values) -> tuple[Any, Why]:
        """All of them, each with its own memory."""
        stepped = [r.step(d, values) for r, d in zip(self.rules, data, strict=True)]
        why = [w for _, w in stepped]
        return [d for d, _ in stepped], sum(why, ()) if all(why) else ()

    def __str__(self) -> str:
        return " & ".join(f"({r})" if isinstance(r, Or) else str(r) for r in self.rules)


@dataclass(frozen=True)
class Or(Rule):
    """Stops at an update at which a part stops."""

    rules: tuple[Rule, ...]

    def begin(self) -> Any:
        """Of each part."""
        return [r.begin() for r in self.rules]

    def step(self, data: Any, values: Values) -> tuple[Any, Why]:
        """All of them, each with its own memory."""
        stepped = [r.step(d, values) for r, d in zip(self.rules, data, strict=True)]
        return [d for d, _ in stepped], sum((w for _, w in stepped), ())

    def __str__(self) -> str:
        return " | ".join(map(str, self.rules))


@dataclass(frozen=True)
class Consecutive(Rule):
    """Stops when a rule has stopped at k updates in a row."""

    rule: Rule
    k: int

    def __post_init__(self) -> None:
        """Check k."""
        check_integers("Consecutive", k=self.k)

    def begin(self) -> Any:
        """The rule's own memory, and how often in a row."""
        return [self.rule.begin(), 0]

    def step(self, data: Any, values: Values) -> tuple[Any, Why]:
        """Count, or start again."""
        inner, why = self.rule.step(data[0], values)
        row = data[1] + 1 if why else 0
        return [inner, row], (f"{', '.join(why)} ({row} in a row)",) if row >= self.k else ()

    def __str__(self) -> str:
        return f"{self.k} in a row of ({self.rule})"


@dataclass(frozen=True)
class Threshold(Rule):
    """Stops when a signal is at least, or at most, a number; a nan never stops."""

    signal: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        """One bound."""
        if (self.at_least is None) == (self.at_most is None):
            raise BadArgument(
                f"Threshold({self.signal!r}) needs at_least or at_most, and not both",
                fix='write Threshold("certainty", at_least=0.9)',
            )

    def step(self, data: Any, values: Values) -> tuple[Any, Why]:
        """Compare."""
        x = number(values, self.signal, self)
        met = x >= self.at_least if self.at_least is not None else x <= (self.at_most or 0.0)
        return None, (str(self),) if met else ()

    def __str__(self) -> str:
        if self.at_least is not None:
            return f"{self.signal} >= {self.at_least:g}"
        return f"{self.signal} <= {self.at_most:g}"


@dataclass(frozen=True)
class Patience(Rule):
    """Stops when a signal was not better than its best, by more than `delta`, for k updates."""

    signal: str
    k: int
    delta: float = 0.0
    goal: str = "min"

    def __post_init__(self) -> None:
        """Check k and the goal."""
        check_integers("Patience", k=self.k)
        check_goal(self.goal)

    def begin(self) -> Any:
        """The best so far, and the updates since."""
        return [None, 0]

    def step(self, data: Any, values: Values) -> tuple[Any, Why]:
        """A better reading starts the count again."""
        x = number(values, self.signal, self)
        best, since = data
        gain = math.inf if best is None else (best - x if self.goal == "min" else x - best)
        if gain > self.delta and not math.isnan(x):
            return [x, 0], ()
        return [best, since + 1], (str(self),) if since + 1 >= self.k else ()

    def __str__(self) -> str:
        return f"no better {self.signal} for {self.k} updates"


def check_goal(goal: object) -> None:
    """Which readings are better."""
    if goal not in ("min", "max"):
        raise BadArgument(f'goal must be "min" or "max", got {goal!r}')
