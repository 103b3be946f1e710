"""The criteria of the literature, as rules.

| rule | stops when | reads |
| --- | --- | --- |
| `BetaMajority(level)` | 1 - I_½(v₁ + 1, v₂ + 1) ≥ level | `counts` |
| `Slope(signal, window, …)` | the slope over the last readings is at least or at most a number | one |
| `Secretary(horizon)` | a reading beats all of the first 1/e of the horizon | one |
| `Budget(…)` | tokens, calls, seconds or money are spent | those |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lmppl.arguments import check_integers, check_numbers
from lmppl.errors import BadArgument
from lmppl.inference.stopping.rules import (
    Rule,
    Values,
    Why,
    check_goal,
    number,
    read,
)
from lmppl.inference.stopping.signals import majority_probability
from lmppl.inference.stopping.signals import slope as slope_of


@dataclass(frozen=True)
class BetaMajority(Rule):
    """Stops when the leading answer is ahead with probability `level`.

        1 - I_½(v₁ + 1, v₂ + 1) ≥ level         v₁ ≥ v₂: counts of the two leading answers

    Under a uniform prior on the share of the first of two answers, the leader at a stop is right
    with probability at least `level`. Reference: Aggarwal et al., Adaptive consistency (2023).
    """

    level: float = 0.95

    def __post_init__(self) -> None:
        """Check the level."""
        check_numbers("BetaMajority", 0.5, below=1.0, level=self.level)

    def step(self, data: Any, values: Values) -> tuple[Any, Why]:
        """The two largest counts, in whatever order they come."""
        counts = sorted(map(float, read(values, "counts", self)), reverse=True)
        ahead, behind = (*counts, 0.0, 0.0)[:2]
        # at an equal count of integers the sum below may miss the level by an ulp
        met = ahead > 0.0 and majority_probability(ahead, behind) >= self.level - 1e-12
        return None, (str(self),) if met else ()

    def __str__(self) -> str:
        return f"leader ahead with probability >= {self.level:g}"


@dataclass(frozen=True)
class Slope(Rule):
    """Stops when the least-squares slope of the last `window` readings is beyond a number.

    `Slope("entropy", 5, at_least=-0.01)`: the entropy of answers falls no more.
    """

    signal: str
    window: int = 5
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        """Check the window and the bound."""
        check_integers("Slope", 2, window=self.window)
        if (self.at_least is None) == (self.at_most is None):
            raise BadArgument(f"Slope({self.signal!r}) needs at_least or at_most, and not both")

    def begin(self) -> Any:
        """The last readings."""
        return []

    def step(self, data: Any, values: Values) -> tuple[Any, Why]:
        """Once the window is full."""
        last = [*data, number(values, self.signal, self)][-self.window :]
        if len(last) < self.window:
            return last, ()
        s = slope_of(last)
        met = s >= self.at_least if self.at_least is not None else s <= (self.at_most or 0.0)
        return last, (str(self),) if met else ()

    def __str__(self) -> str:
        bound = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        return f"slope of {self.signal} over {self.window} {bound}"


@dataclass(frozen=True)
class Secretary(Rule):
    """Stops at the first reading that beats all of the first `explore` of the horizon.

    With readings in random order and explore = 1/e this stops at the best of all with probability
    about 1/e, the most that a rule of ranks can reach. At the horizon it stops anyway.
    References: Lindley (1961); SEAT (2025) uses it on semantic entropies.
    """

    horizon: int
    signal: str = "entropy"
    goal: str = "min"
    explore: float = 1.0 / math.e

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_integers("Secretary", horizon=self.horizon)
        check_goal(self.goal)
        if not 0.0 <= self.explore < 1.0:
            raise BadArgument(f"explore must be in [0, 1), got {self.explore!r}")

    @property
    def first(self) -> int:
        """Readings that are only looked at."""
        return round(self.explore * self.horizon)

    def begin(self) -> Any:
        """The best so far, and how many were read."""
        return [None, 0]

    def step(self, data: Any, values: Values) -> tuple[Any, Why]:
        """Look, then leap."""
        x = number(values, self.signal, self)
        best, n = data
        better = best is None or (x < best if self.goal == "min" else x > best)
        n += 1
        met = (better and n > self.first) or n >= self.horizon
        return [x if better else best, n], (str(self),) if met else ()

    def __str__(self) -> str:
        return f"secretary rule on {self.signal} over {self.horizon}"


@dataclass(frozen=True)
class Budget(Rule):
    """Stops when tokens, calls, seconds or money are spent.

    It looks after the spending, so that what is spent may exceed a limit by one batch. With
    `reserve`, it stops where another batch as dear as the dearest so far would exceed it.
    """

    tokens: float | None = None
    calls: float | None = None
    seconds: float | None = None
    money: float | None = None
    reserve: bool = False

    def __post_init__(self) -> None:
        """At least one limit."""
        limits = self.limits
        if not limits or not all(v >= 0.0 for v in limits.values()):
            raise BadArgument(
                f"Budget needs limits of at least 0, got {limits}",
                fix="write Budget(tokens=20_000)",
            )

    @property
    def limits(self) -> dict[str, float]:
        """By what is counted."""
        return {
            name: limit
            for name in ("tokens", "calls", "seconds", "money")
            if (limit := getattr(self, name)) is not None
        }

    def begin(self) -> Any:
        """Spent so far and the largest step, by what is counted."""
        return {name: [0.0, 0.0] for name in self.limits}

    def step(self, data: Any, values: Values) -> tuple[Any, Why]:
        """Compare each with its limit."""
        spent = {name: number(values, name, self) for name in self.limits}
        after = {n: [x, max(data[n][1], x - data[n][0])] for n, x in spent.items()}
        why = tuple(
            f"{name} {x:g} of {self.limits[name]:g}"
            for name, (x, largest) in after.items()
            if x >= self.limits[name] or (self.reserve and x + largest > self.limits[name])
        )
        return after, why

    def __str__(self) -> str:
        return "budget of " + ", ".join(f"{v:g} {k}" for k, v in self.limits.items())
