"""Ask and tell: who decides what is tried next, apart from how it is tried.

    trials = allocator.ask(8)              # what to try, with a number each
    allocator.tell(trial.id, score)        # in any order, whenever it is done

Three promises make an allocator safe to run beside slow models:

* **Order does not matter.** The state after a set of `tell`s is the same in every order, to the
  last bit: scores are kept as integers of 2^-40, whose sums are exact, and all draws are keyed by
  the number of the trial. Telling the same again changes nothing; telling otherwise is an error.
* **Outstanding trials count.** Until its result is told a trial stands for a *virtual* score (the
  mean so far, or a number), so that a batch spreads instead of repeating itself (Chaslot et al.,
  Parallel Monte-Carlo tree search, 2008; Ginsbourger et al., "constant liar", 2010). It is counted
  when the next trial is decided: asking and telling in turn never pays for it.
* **The state is plain data.** `state()` is a JSON value; `restore(state)` goes on from there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from lmppl.arguments import check_integers
from lmppl.errors import BadArgument, excerpt

UNIT = 40
"""A score is kept as an integer multiple of 2^-UNIT."""
GRAIN, GRAIN2 = 2.0**-UNIT, 2.0 ** (-2 * UNIT)
LARGEST = 1e9


class Trial(NamedTuple):
    """Something to try: work on `node` by `action`, and tell the score under `id`."""

    id: int
    node: int
    action: str
    state: Any = None
    """What was told of `node`; None at the root, where a fresh one is wanted."""


class Stats:
    """Number, sum and sum of squares of scores, exactly: the same in every order."""

    __slots__ = ("n", "s1", "s2")

    def __init__(self) -> None:
        """Of nothing."""
        self.n = self.s1 = self.s2 = 0

    def add(self, q: int, sign: int = 1) -> None:
        """Count a score in, or out."""
        self.n += sign
        self.s1 += sign * q
        self.s2 += sign * q * q

    def moments(self) -> tuple[int, float, float]:
        """Number, mean and Σ (r - mean)²; zeros of nothing."""
        n, s1 = self.n, self.s1
        if not n:
            return 0, 0.0, 0.0
        return n, s1 / n * GRAIN, (n * self.s2 - s1 * s1) / n * GRAIN2

    @property
    def mean(self) -> float:
        """Their mean; 0 of nothing."""
        return self.s1 / self.n * GRAIN if self.n else 0.0


def quantum(score: Any, *, unit: bool = False) -> int:
    """A score as an integer of 2^-UNIT; `unit` insists on [0, 1]."""
    number = float(score) if isinstance(score, (int, float)) else math.nan
    if not abs(number) <= LARGEST or (unit and not 0.0 <= number <= 1.0):
        raise BadArgument(
            f"a score must be a number{' in [0, 1]' if unit else ''}, got {excerpt(score, 40)}",
            fix="scale it, and tell 0 for a trial that failed",
        )
    return round(math.ldexp(number, UNIT))


class Allocator(ABC):
    """Decides what is tried next.

    Args:
        seed: all of its draws are functions of it.
        virtual: what an outstanding trial counts as: "mean" of the scores so far, or a number.
    """

    def __init__(self, seed: int = 0, virtual: str | float = "mean") -> None:
        """Nothing asked, nothing told."""
        if isinstance(virtual, str) and virtual != "mean":
            raise BadArgument(
                f'virtual must be "mean" or a number, got {virtual!r}', fix='write virtual="mean"'
            )
        self.seed = seed
        self.virtual = virtual
        self.asked = 0
        """How many trials were asked for."""
        self.pending: dict[int, tuple[int, str, int]] = {}
        """Outstanding trials: node, action, the integer of the virtual score."""
        self._uncounted: dict[int, None] = {}
        """Outstanding trials whose virtual score is not in the statistics yet."""
        self.told: dict[int, int] = {}
        """The integer of each score."""
        self.total = Stats()

    def ask(self, n: int = 1) -> list[Trial]:
        """What to try next."""
        check_integers("ask", n=n)
        trials = []
        for _ in range(n):
            for id in self._uncounted:
                self._expect(id, self.pending[id][0], self.pending[id][2], 1)
            self._uncounted.clear()
            self.asked += 1
            node, action = self._decide(self.asked)
            if self.virtual == "mean":
                lie = round(math.ldexp(self.total.mean, UNIT)) if self.total.n else self._prior()
            else:
                lie = quantum(self.virtual)
            self.pending[self.asked] = (node, action, lie)
            self._uncounted[self.asked] = None
            trials.append(Trial(self.asked, node, action, self._state_of(node)))
        return trials

    def tell(self, id: int, *result: Any) -> None:
        """What became of a trial: `tell(id, score)`, or `tell(id, state, score)` of a tree."""
        score = quantum(result[-1], unit=self._unit()) if result else None
        if score is None or len(result) > 2:
            raise BadArgument("tell takes a score, or a state and a score", fix="tell(id, 0.5)")
        if id in self.told:
            if self.told[id] != score:
                raise BadArgument(f"trial {id} was told before, with another score")
            return
        if id not in self.pending:
            raise BadArgument(
                f"there is no trial {excerpt(id, 40)}", fix="tell the id of a trial that ask gave"
            )
        node, action, lie = self.pending.pop(id)
        if id in self._uncounted:
            del self._uncounted[id]
        else:
            self._expect(id, node, lie, -1)
        self.told[id] = score
        self.total.add(score)
        self._learn(id, node, action, score)
        if len(result) == 2:
            self._keep(id, result[0])

    def state(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "seed": self.seed,
            "asked": self.asked,
            "pending": {str(i): list(self.pending[i]) for i in sorted(self.pending)},
            "told": {str(i): [*self._origin(i), self.told[i]] for i in sorted(self.told)},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take a state over; the settings are those of this object."""
        if self.asked:
            raise BadArgument("load needs an allocator that was not asked yet")
        self.seed, self.asked = state["seed"], state["asked"]
        for i, (node, action, score) in state["told"].items():
            self.told[int(i)] = score
            self.total.add(score)
            self._learn(int(i), node, action, score)
        for i, (node, action, lie) in state["pending"].items():
            self.pending[int(i)] = (node, action, lie)
            self._uncounted[int(i)] = None

    # -- for the one that decides --------------------------------------------------------------

    @abstractmethod
    def _decide(self, id: int) -> tuple[int, str]:
        """Node and action of a trial."""

    @abstractmethod
    def _learn(self, id: int, node: int, action: str, score: int) -> None:
        """A result; a sum of integers, so that order does not matter."""

    @abstractmethod
    def _expect(self, id: int, node: int, lie: int, sign: int) -> None:
        """Count a virtual score in (1), or out (-1)."""

    @abstractmethod
    def _origin(self, id: int) -> tuple[int, str]:
        """Node and action of a told trial."""

    def _prior(self) -> int:
        """The virtual score before anything is told."""
        return 0

    def _unit(self) -> bool:
        """Whether scores must lie in [0, 1]."""
        return False

    def _state_of(self, node: int) -> Any:
        """What was told of a node."""
        return None

    def _keep(self, id: int, state: Any) -> None:
        """Keep what a trial has made."""
        raise BadArgument("this allocator keeps no states", fix="tell(id, score)")
