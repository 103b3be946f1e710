"""LinUCB: a contextual bandit over strategies, models or prompts.

    A_a = ridge I + Σ x xᵀ      θ_a = A_a⁻¹ Σ r x      ask: argmax_a θ_a · x + c √(xᵀ A_a⁻¹ x)

Ask and tell, batched: a trial that was asked and not yet told narrows the width of its arm, so that
a batch spreads, and leaves θ alone. Sums are kept as integers of 2^-80, so the state after a set of
`tell`s is the same in every order, to the last bit. `state()` is plain data.

References: Li et al., A contextual-bandit approach to personalized news article recommendation
(2010); Desautels, Krause and Burdick, Parallelizing exploration-exploitation tradeoffs (2014).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lmppl.errors import BadArgument, excerpt
from lmppl.types import Floats

UNIT = 40
"""A feature and a reward are integers of 2^-UNIT."""


class Choice(NamedTuple):
    """An arm to pull; tell its reward under `id`."""

    id: int
    arm: str


class LinUCB:
    """A linear bandit with one model an arm.

    Args:
        arms: their names.
        dimension: of a context.
        c: how much a wide estimate is worth.
        ridge: prior precision.

    >>> bandit = LinUCB(["continue", "restart"], dimension=2)
    >>> choice = bandit.ask([1.0, 0.5])
    >>> bandit.tell(choice.id, 0.0)
    >>> bandit.ask([1.0, 0.5]).arm
    'restart'
    """

    def __init__(
        self, arms: Sequence[str], dimension: int, *, c: float = 0.5, ridge: float = 1.0
    ) -> None:
        """Nothing asked, nothing told."""
        if isinstance(arms, str) or len(set(arms)) != len(arms) or not arms:
            raise BadArgument("arms must be different names", value=excerpt(arms))
        if dimension < 1 or not c >= 0.0 or not ridge > 0.0:
            raise BadArgument("dimension and ridge must be positive, c at least 0")
        self.arms, self.dimension, self.c, self.ridge = list(arms), dimension, c, ridge
        d = range(dimension)
        self._gram = {a: [[0] * dimension for _ in d] for a in self.arms}
        self._sums = {a: [0] * dimension for a in self.arms}
        self._pending: dict[int, tuple[str, list[int]]] = {}
        self._told: dict[int, int] = {}
        self.asked = 0

    def scores(self, context: Sequence[float]) -> dict[str, float]:
        """The upper bound of each arm."""
        x = np.array([math.ldexp(v, -UNIT) for v in self._quantised(context)])
        found = {}
        for arm in self.arms:
            inverse = np.linalg.inv(self._precision(arm, ()))
            waiting = [p for a, p in sorted(self._pending.values()) if a == arm]
            width = np.linalg.inv(self._precision(arm, waiting)) if waiting else inverse
            theta = inverse @ np.array([math.ldexp(v, -2 * UNIT) for v in self._sums[arm]])
            found[arm] = float(theta @ x) + self.c * math.sqrt(max(float(x @ width @ x), 0.0))
        return found

    def ask(self, context: Sequence[float]) -> Choice:
        """The arm of the largest upper bound; ties to the first name."""
        scores = self.scores(context)
        arm = max(self.arms, key=lambda a: scores[a])
        self.asked += 1
        self._pending[self.asked] = (arm, self._quantised(context))
        return Choice(self.asked, arm)

    def tell(self, id: int, reward: float) -> None:
        """What an arm gave; the same again changes nothing."""
        r = _quantum(reward)
        if id in self._told:
            if self._told[id] != r:
                raise BadArgument(f"choice {id} was told before, with another reward")
            return
        if id not in self._pending:
            raise BadArgument(f"there is no choice {excerpt(id, 40)}")
        arm, x = self._pending.pop(id)
        self._told[id] = r
        for i, u in enumerate(x):
            self._sums[arm][i] += r * u
            for j, v in enumerate(x):
                self._gram[arm][i][j] += u * v

    def state(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "asked": self.asked,
            "gram": {a: [list(r) for r in self._gram[a]] for a in self.arms},
            "sums": {a: list(self._sums[a]) for a in self.arms},
            "pending": {str(i): [a, list(x)] for i, (a, x) in sorted(self._pending.items())},
            "told": {str(i): r for i, r in sorted(self._told.items())},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take a state over; the settings are those of this object."""
        if set(state["sums"]) != set(self.arms):
            raise BadArgument("the state has other arms", value=excerpt(sorted(state["sums"])))
        self.asked = state["asked"]
        self._gram = {a: [list(r) for r in state["gram"][a]] for a in self.arms}
        self._sums = {a: list(state["sums"][a]) for a in self.arms}
        self._pending = {int(i): (a, list(x)) for i, (a, x) in state["pending"].items()}
        self._told = {int(i): r for i, r in state["told"].items()}

    def _precision(self, arm: str, waiting: Sequence[list[int]]) -> Floats:
        a = self.ridge * np.eye(self.dimension)
        for i in range(self.dimension):
            for j in range(self.dimension):
                exact = self._gram[arm][i][j] + sum(x[i] * x[j] for x in waiting)
                a[i, j] += math.ldexp(exact, -2 * UNIT)
        return a

    def _quantised(self, context: Sequence[float]) -> list[int]:
        if len(context) != self.dimension:
            raise BadArgument(f"a context has {self.dimension} numbers, got {len(context)}")
        return [_quantum(v) for v in context]


def _quantum(value: Any) -> int:
    number = float(value)
    if not abs(number) <= 1e6:
        raise BadArgument(f"{excerpt(value, 40)} is no number between -1e6 and 1e6")
    return round(math.ldexp(number, UNIT))
