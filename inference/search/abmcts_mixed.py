"""AB-MCTS-M: adaptive branching by a mixed model of the scores below each child.

At a node the groups are its children, each with all scores of its subtree, and GEN is a group that
has no scores yet. Every option gets one draw from its posterior predictive law; the largest is
followed, to GEN (refine this node) or into that child. There is no back-up to GEN: what a new group
may bring follows from how the groups differ. The model and its posterior are those of
`lmppl.inference.search.hierarchical`; there is no Markov chain.

Reference: Inoue et al., Wider or deeper?, 2503.04412 (2025).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmppl.inference.search.allocator import Stats, quantum
from lmppl.inference.search.hierarchical import Groups, Prior, ScalePosterior
from lmppl.inference.search.results import Grown, ResultTree
from lmppl.random import fold
from lmppl.types import Floats, Key

CACHED = 64
"""Posteriors that are kept: memory does not grow with the tree."""


class ABMCTS_M(ResultTree):  # noqa: N801
    """AB-MCTS-M.

    Args:
        actions: names of what can make a child.
        prior: of the mean of all groups, of their spread, and of the spread inside.
        seed: all draws are functions of it.
        virtual: what an outstanding trial counts as: "mean" so far, or a number.
        choose: how actions are chosen: "thompson", "ucb" or "stack".
        prune: leave subtrees out whose scores are nearly all equal.

    >>> tree = ABMCTS_M(seed=1)
    >>> for _ in range(10):
    ...     for trial in tree.ask(2):
    ...         better = 0.1 if trial.state is None else trial.state + 0.1
    ...         tree.tell(trial.id, better, min(better, 1.0))
    >>> round(tree.top(1)[0][1], 1) > 0.3
    True
    """

    def __init__(
        self,
        actions: Sequence[str] = ("",),
        *,
        prior: Prior = Prior(),  # noqa: B008
        seed: int = 0,
        virtual: str | float = "mean",
        choose: str = "thompson",
        prune: bool = False,
    ) -> None:
        """A root without children."""
        super().__init__(actions, seed=seed, virtual=virtual, choose=choose, prune=prune)
        self.prior = prior
        self._fits: dict[int, tuple[int, ScalePosterior]] = {}
        """The posterior of a node, with the version of its scores."""

    def _prior(self) -> int:
        return quantum(self.prior.mean)

    def _law(self, stats: Stats) -> tuple[float, float, float]:
        """Number, mean and spread."""
        n, mean, spread = stats.moments()
        return float(n), mean, spread

    def _pick(self, at: int, node: Grown, key: Key) -> int | None:
        if node.dirty:
            self._refresh(node)
        k = len(node.children)
        laws = node.laws[:, :k]
        fit = self._fit(at, node, laws)
        n, mean = np.append(laws[0], 0.0), np.append(laws[1], 0.0)
        ids = np.array([*node.children, 0], dtype=np.uint64)
        drawn = fit.predict(n, mean, fold(key, at), ids)
        may = self._open(node)
        if may is not None:
            drawn = np.where([*may, True], drawn, -np.inf)
        best = int(np.argmax(drawn))
        return None if best == k else best

    def _fit(self, at: int, node: Grown, laws: Floats) -> ScalePosterior:
        version, fit = self._fits.get(at, (-1, None))
        if fit is None or version != node.version:
            guessed = np.array([[1.0, q * 2.0**-40, 0.0] for q in node.expected.values()])
            rows = np.concatenate([laws.T, guessed.reshape(-1, 3)])
            fit = ScalePosterior(Groups(*rows.T), self.prior)
            if len(self._fits) >= CACHED:
                self._fits.clear()
            self._fits[at] = (node.version, fit)
        return fit

    def _arms(self, arms: list[Stats], key: Key) -> Sequence[float]:
        laws = np.array([self._law(a) for a in arms])
        seen = laws[laws[:, 0] > 0]
        fit = ScalePosterior(Groups(*seen.T), self.prior)
        ids = np.arange(len(arms), dtype=np.uint64)
        return fit.predict(laws[:, 0], laws[:, 1], key, ids).tolist()  # type: ignore[no-any-return]
