"""Wider or deeper by expected improvement: a fresh result, or one more step from the best.

    fresh    r ~ N(μ, σ²),               from the scores of fresh results
    deeper   r - r(parent) ~ N(μ, σ²),   from what steps have added to where they began

Both have the normal-inverse-χ² model. With the mean m and the standard deviation s of the next
result, and z = (m - best) / s, a trial is worth

    EI = E max(0, r - best) = s (z Φ(z) + φ(z)),

and the larger one is tried. Outstanding trials share what their arm is worth. AB-MCTS compares mean
scores instead: a step that spoils the best result a little scores better than most fresh ones, and
yet improves nothing; this needs fewer results to see that.

Reference: Jones, Schonlau and Welch, Efficient global optimization of expensive black-box
functions (1998); the predictive Student's t is taken for a normal of its variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lmppl.errors import BadArgument
from lmppl.inference.search.allocator import GRAIN, Stats
from lmppl.inference.search.draws import student
from lmppl.inference.search.priors import NIX2
from lmppl.inference.search.results import Grown, ResultTree
from lmppl.types import Key


class WiderDeeper(ResultTree):
    """Fresh results or steps from the best.

    Args:
        actions: names of what can make a result.
        fresh: the prior of the scores of fresh results; ν above 2, that a variance exists.
        deeper: the prior of what a step adds.
        seed: the draws of actions are functions of it.

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
        fresh: NIX2 = NIX2(0.0, 0.1, 2.5, 0.3),  # noqa: B008
        deeper: NIX2 = NIX2(0.1, 0.5, 4.0, 0.01),  # noqa: B008
        seed: int = 0,
    ) -> None:
        """Nothing tried."""
        super().__init__(actions, seed=seed)
        if min(fresh.nu, deeper.nu) <= 2:
            raise BadArgument(
                "WiderDeeper: ν of a prior must be above 2",
                value=repr((fresh, deeper)),
                why="with fewer degrees of freedom a result has no variance",
                fix="write fresh=NIX2(0.0, 0.1, 2.5, 0.3)",
            )
        self.fresh, self.deeper = fresh, deeper
        self._scores, self._gains = Stats(), Stats()
        self._best = 0
        """The number of the best result, the earlier one of equal scores."""

    def _decide(self, id: int) -> tuple[int, str]:
        action = self._act(self._begin(id))
        if not self.told:
            return 0, action
        best = self.told[self._best] * GRAIN
        out = sum(node > 0 for node, _, _ in self.pending.values())
        fresh = improvement(self.fresh, self._scores, best) / (1 + len(self.pending) - out)
        deeper = improvement(self.deeper, self._gains, 0.0) / (1 + out)
        return (0 if fresh >= deeper else self._best), action

    def _learn(self, id: int, node: int, action: str, score: int) -> None:
        super()._learn(id, node, action, score)
        if node:
            self._gains.add(score - self.told[node])
        else:
            self._scores.add(score)
        if not self._best or (-score, id) < (-self.told[self._best], self._best):
            self._best = id

    def _climb(self, at: int, score: int, sign: int) -> None:
        """Nothing is kept of subtrees."""

    def _law(self, stats: Stats) -> tuple[float, float, float]:
        return NIX2().posterior(*stats.moments())

    def _pick(self, at: int, node: Grown, key: Key) -> int | None:
        return None

    def _arms(self, arms: list[Stats], key: Key) -> Sequence[float]:
        laws = [self._law(stats) for stats in arms]
        return [m + scale * student(key, arm, df) for arm, (m, scale, df) in enumerate(laws)]


def improvement(prior: NIX2, stats: Stats, best: float) -> float:
    """E max(0, r - best) of the next r."""
    n, mean, spread = stats.moments()
    m, scale, df = prior.posterior(n, mean, spread)
    s = scale * math.sqrt((prior.kappa + n + 1) * df / (df - 2))
    z = (m - best) / s
    cumulative = 0.5 * (1.0 + math.erf(z / math.sqrt(2.0)))
    return s * (z * cumulative + math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi))
