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

from lmppl.inference.search.abmcts import NIX2
from lmppl.inference.search.allocator import UNIT, Stats
from lmppl.inference.search.draws import student
from lmppl.inference.search.results import Grown, ResultTree
from lmppl.random import fold
from lmppl.types import Key

FRESH, DEEPER = 0, 1


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

    def _decide(self, id: int) -> tuple[int, str]:
        key = fold(self.seed, "trial", id)
        action = self._act(fold(key, "action"))
        if not self.told:
            return 0, action
        gains = (Stats(), Stats())
        best, holder = -math.inf, 0
        for i in sorted(self.told):
            q = self.told[i]
            if holder:
                gains[self.nodes[i].parent > 0].add(max(0, q - int(best)))
            if q > best:
                best, holder = q, i
        for node, _, _ in self.pending.values():
            gains[node > 0].add(0)
        fresh, deeper = (self._draw(s, arm, key) for arm, s in enumerate(gains))
        return (0 if fresh >= deeper else holder), action

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
