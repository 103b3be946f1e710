"""AB-MCTS-A: adaptive branching between a fresh answer and the refinement of one, with states.

A tree of results. Every node can give birth to a new child (GEN) for ever. A trial starts at the
root and Thompson-samples its way down:

    at a node: draw the mean of GEN and that of CONT ("all children")
        GEN is larger, or there are no children: refine this node here (a fresh answer at the root)
        else draw the mean of each child, go to the largest

    a score r of a new child c of p: GEN(p) += r, child(c) += r, and for every edge (v, w) above:
        child(w) += r, CONT(v) += r

Scores of an option have the normal-inverse-χ² model, r ~ N(μ, σ²), with m = 0, κ = 1, ν = 1,
τ² = 0.1: κ' = κ + n, ν' = ν + n, m' = (κ m + n r̄) / κ',
ν' τ'² = ν τ² + Σ (r - r̄)² + n κ (m - r̄)² / κ'; marginally μ is Student's t with ν' degrees of
freedom, location m' and scale τ' / √κ'. Or the beta model: a + Σ r, b + Σ (1 - r), a = b = 0.5.

Which action (model, prompt) makes a child is drawn by Thompson sampling over the scores that each
action has had in the whole tree, once GEN has won ("multiarm_bandit_thompson").

    tree = ABMCTS_A(seed=0)
    for trial in tree.ask(8):
        state, score = refine(trial.state)          # trial.state is None for a fresh answer
        tree.tell(trial.id, state, score)

Time and memory of a trial grow with the depth of the tree and with the children that it passes,
not with its size. Reference: Inoue et al., Wider or deeper?, 2503.04412 (2025).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.search.allocator import Stats, quantum
from lmppl.inference.search.draws import betas, student, students
from lmppl.inference.search.results import Grown, ResultTree
from lmppl.random import fold, fold_array
from lmppl.types import Floats, Key, Keys

FEW = 5
"""So few children are drawn one by one."""
GEN, CONT = 1, 2


class NIX2(NamedTuple):
    """The normal-inverse-χ² prior of scores."""

    m: float = 0.0
    kappa: float = 1.0
    nu: float = 1.0
    tau2: float = 0.1

    def posterior(self, n: int, mean: float, spread: float) -> tuple[float, float, float]:
        """Location, scale and degrees of freedom of μ."""
        m, kappa, nu, tau2 = self
        more, df = kappa + n, nu + n
        square = nu * tau2 + spread + n * kappa * (m - mean) ** 2 / more
        return (kappa * m + n * mean) / more, math.sqrt(square / (df * more)), df


class BetaPrior(NamedTuple):
    """The beta prior of scores in [0, 1]."""

    a: float = 0.5
    b: float = 0.5


class ABMCTS_A(ResultTree):  # noqa: N801
    """AB-MCTS-A.

    Args:
        actions: names of what can make a child.
        prior: `NIX2(...)` for any scores, `BetaPrior(...)` for scores in [0, 1].
        seed: all draws are functions of it.
        virtual: what an outstanding trial counts as: "mean" so far, or a number.

    >>> tree = ABMCTS_A(seed=1)
    >>> for _ in range(20):
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
        prior: NIX2 | BetaPrior = NIX2(),  # noqa: B008
        seed: int = 0,
        virtual: str | float = "mean",
    ) -> None:
        """A root without children."""
        super().__init__(actions, seed=seed, virtual=virtual)
        if min(prior[-2:]) <= 0 or (isinstance(prior, NIX2) and prior.kappa <= 0):
            raise BadArgument(f"the parameters of a prior must be positive, got {prior!r}")
        self.prior = prior

    def _unit(self) -> bool:
        return isinstance(self.prior, BetaPrior)

    def _prior(self) -> int:
        p = self.prior
        return quantum(p.m if isinstance(p, NIX2) else p.a / (p.a + p.b))

    def _law(self, stats: Stats) -> tuple[float, float, float]:
        """Location, scale and degrees of freedom; or a and b."""
        p = self.prior
        n, mean, spread = stats.moments()
        if isinstance(p, BetaPrior):
            total = n * mean
            return max(p.a + total, p.a), max(p.b + n - total, p.b), 0.0
        return p.posterior(n, mean, spread)

    def _pick(self, at: int, node: Grown, key: Key) -> int | None:
        gen, cont = self._few((self._law(node.gen), self._law(node.cont)), (GEN, CONT), key)
        if gen >= cont:
            return None
        n = len(node.children)
        if n == 1:
            return 0
        drawn = self._draw(node.laws[:n], node.ids[:n], fold(key, "child"))
        return int(np.argmax(drawn))

    def _arms(self, arms: list[Stats], key: Key) -> Sequence[float]:
        laws = np.array([self._law(a) for a in arms])
        return self._draw(laws, np.arange(len(arms), dtype=np.uint64), key)

    def _draw(self, laws: Floats, ids: Keys, key: Key) -> Sequence[float]:
        """A draw of each mean, keyed by its id."""
        if len(ids) <= FEW:
            return self._few(laws.tolist(), ids.tolist(), key)
        if isinstance(self.prior, NIX2):
            return laws[:, 0] + laws[:, 1] * students(key, ids, laws[:, 2])  # type: ignore[return-value]
        keys = fold_array(np.full(len(ids), key, dtype=np.uint64), ids)
        return betas(keys, laws[:, 0], laws[:, 1])  # type: ignore[return-value]

    def _few(
        self, laws: Sequence[Sequence[float]], ids: Sequence[int], key: Key
    ) -> Sequence[float]:
        if isinstance(self.prior, NIX2):
            return [
                loc + scale * student(key, i, df)
                for (loc, scale, df), i in zip(laws, ids, strict=True)
            ]
        keys = np.array([fold(key, i) for i in ids], dtype=np.uint64)
        a, b, _ = np.array(laws).T
        return betas(keys, a, b)  # type: ignore[return-value]
