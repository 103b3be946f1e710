"""Wider or deeper as a bandit of two arms: a fresh result, or one more step from the best.

The reward of a trial is what it added to the best score of all trials with smaller numbers,
max(0, score - best before). Its mean has the normal-inverse-χ² model for each arm, and the larger
Thompson draw decides. Rewarding the score itself fails on tasks that cannot be refined: a step from
the best scores nearly as well as the best, and never better.

This is the baseline of AB-MCTS for tasks whose refinement does not level off, where averages over
subtrees hide that the newest result is the best one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lmppl.inference.search.allocator import UNIT, Stats
from lmppl.inference.search.draws import student
from lmppl.inference.search.priors import NIX2
from lmppl.inference.search.results import Grown, ResultTree
from lmppl.types import Key

FRESH, DEEPER = 0, 1


class Record:
    """What the results up to one of them have added, by arm, and the best of them."""

    __slots__ = ("best", "gains", "holder", "upto")

    def __init__(self) -> None:
        """No results."""
        self.gains = (Stats(), Stats())
        self.best = self.holder = self.upto = 0

    def copy(self) -> Record:
        """One that goes on by itself."""
        out = Record()
        for mine, theirs in zip(out.gains, self.gains, strict=True):
            mine.n, mine.s1, mine.s2 = theirs.n, theirs.s1, theirs.s2
        out.best, out.holder, out.upto = self.best, self.holder, self.upto
        return out


class WiderDeeper(ResultTree):
    """Fresh results or steps from the best.

    Args:
        actions: names of what can make a result.
        prior: of the mean improvement.
        seed: all draws are functions of it.
        virtual: plays no part here: an outstanding trial adds nothing.

    >>> tree = WiderDeeper(seed=1)
    >>> for _ in range(30):
    ...     (trial,) = tree.ask()
    ...     score = 0.0 if trial.state is None else trial.state + 0.3
    ...     tree.tell(trial.id, score, score)
    >>> tree.top(1)[0][1] > 5
    True
    """

    def __init__(
        self,
        actions: Sequence[str] = ("",),
        *,
        prior: NIX2 = NIX2(0.1, 0.5, 1.0, 0.01),  # noqa: B008
        seed: int = 0,
        virtual: str | float = "mean",
    ) -> None:
        """Nothing tried."""
        super().__init__(actions, seed=seed, virtual=virtual)
        self.prior = prior
        self._settled = Record()
        """The results up to the first one that is outstanding."""
        self._late: set[int] = set()

    def _decide(self, id: int) -> tuple[int, str]:
        key = self._begin(id)
        action = self._act(key)
        if not self.told:
            return 0, action
        while self._settled.upto + 1 in self.told:
            self._count(self._settled, self._settled.upto + 1)
        now = self._settled.copy()
        # a trial before these is not told yet, and may change what they have added
        for i in sorted(i for i in self._late if i > now.upto):
            self._count(now, i)
        self._late = {i for i in self._late if i > self._settled.upto}
        for node, _, _ in self.pending.values():
            now.gains[node > 0].add(0)
        fresh, deeper = (self._draw(s, arm, key) for arm, s in enumerate(now.gains))
        return (0 if fresh >= deeper else now.holder), action

    def _learn(self, id: int, node: int, action: str, score: int) -> None:
        super()._learn(id, node, action, score)
        self._late.add(id)

    def _climb(self, at: int, score: int, sign: int) -> None:
        """Nothing is kept of subtrees: a chain would pay for all of itself with every step."""

    def _count(self, record: Record, id: int) -> None:
        """One more result, in the order of the numbers."""
        q = self.told[id]
        if record.holder:
            record.gains[self.nodes[id].parent > 0].add(max(0, q - record.best))
        if not record.holder or q > record.best:
            record.best, record.holder = q, id
        record.upto = id

    def _draw(self, stats: Stats, counter: int, key: Key) -> float:
        loc, scale, df = self._law(stats)
        return loc + scale * student(key, counter, df)

    def _law(self, stats: Stats) -> tuple[float, float, float]:
        return self.prior.posterior(*stats.moments())

    def _pick(self, at: int, node: Grown, key: Key) -> int | None:
        return None

    def _arms(self, arms: list[Stats], key: Key) -> Sequence[float]:
        return [self._draw(s, arm, key) for arm, s in enumerate(arms)]

    def _prior(self) -> int:
        return round(math.ldexp(self.prior.m, UNIT))
