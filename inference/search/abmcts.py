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

Draws of a trial have one stream of numbers, keyed by the trial, that is read in the order of the
descent. Time and memory of a trial grow with the depth of the tree and with the children that it
passes, not with its size. Reference: Inoue et al., Wider or deeper?, 2503.04412 (2025).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmppl.inference.search.allocator import GRAIN, GRAIN2, Stats, quantum
from lmppl.inference.search.draws import betas, polar
from lmppl.inference.search.priors import NIX2, BetaPrior, Relative, check_prior
from lmppl.inference.search.results import Grown, ResultTree
from lmppl.random import fold, fold_array
from lmppl.types import Floats, Key

BLOCK = 8
"""Trials whose numbers are made together."""
WIDTH = 64
"""Numbers of a trial that are made ahead; more once descents need more."""


class ABMCTS_A(ResultTree):  # noqa: N801
    """AB-MCTS-A.

    Args:
        actions: names of what can make a child.
        prior: `NIX2(...)` for any scores, `BetaPrior(...)` for scores in [0, 1], `Relative(...)` in
            units of the scores so far.
        seed: all draws are functions of it.
        virtual: what an outstanding trial counts as: "mean" so far, or a number.
        choose: how actions are chosen: "thompson", "ucb" or "stack".
        prune: leave subtrees out whose scores are nearly all equal.

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
        prior: NIX2 | BetaPrior | Relative = NIX2(),  # noqa: B008
        seed: int = 0,
        virtual: str | float = "mean",
        choose: str = "thompson",
        prune: bool = False,
    ) -> None:
        """A root without children."""
        super().__init__(actions, seed=seed, virtual=virtual, choose=choose, prune=prune)
        check_prior(prior)
        self.prior = prior
        self._best: int | None = None
        self._width = WIDTH
        self._block: tuple[int, int] = (-1, 0)
        """Which trials have their numbers in `_ahead`, and how many each."""
        self._keys: list[Key] = []
        self._ahead: tuple[Floats, Floats] | None = None
        self._row = 0
        self._read = 0
        """How many numbers of its stream the descent has read."""

    def _unit(self) -> bool:
        return isinstance(self.prior, BetaPrior)

    def _prior(self) -> int:
        p = self.prior
        if isinstance(p, Relative):
            return 0
        return quantum(p.m if isinstance(p, NIX2) else p.a / (p.a + p.b))

    def _learn(self, id: int, node: int, action: str, score: int) -> None:
        super()._learn(id, node, action, score)
        self._best = score if self._best is None else max(self._best, score)

    def _law(self, stats: Stats) -> tuple[float, float, float]:
        """Location, scale · √df and -2 / df of a t; a and b; or what `_relative` needs."""
        p = self.prior
        n, s1 = stats.n, stats.s1
        if isinstance(p, BetaPrior):
            total = s1 * GRAIN
            return max(p.a + total, p.a), max(p.b + n - total, p.b), 0.0
        if isinstance(p, Relative):
            return stats.moments()
        m, kappa, nu, tau2 = p
        if not n:
            return m, math.sqrt(nu * tau2 / kappa), -2.0 / nu
        mean = s1 / n * GRAIN
        more, df = kappa + n, nu + n
        square = nu * tau2 + (n * stats.s2 - s1 * s1) / n * GRAIN2
        square += n * kappa * (m - mean) ** 2 / more
        return (kappa * m + n * mean) / more, math.sqrt(square / more), -2.0 / df

    def _relative(self, prior: NIX2, n: Any, mean: Any, spread: Any) -> tuple[Any, Any, Any]:
        """Location, scale · √df and -2 / df in units of the scores so far, for numbers or arrays."""
        _, _, around = self.total.moments()
        unit = math.sqrt(around / max(self.total.n, 1)) or 1.0
        mean = (mean - (self._best or 0) * GRAIN) / unit
        m, kappa, nu, tau2 = prior
        more = kappa + n
        square = nu * tau2 + spread / unit**2 + n * kappa * (m - mean) ** 2 / more
        return (kappa * m + n * mean) / more, np.sqrt(square / more), -2.0 / (nu + n)

    def _begin(self, id: int) -> Key:
        block, self._row = divmod(id, BLOCK)
        while self._width < self._read:
            self._width *= 2
        self._read = 0
        if self._block[0] != block:
            first = block * BLOCK
            self._keys = [super(ABMCTS_A, self)._begin(i) for i in range(first, first + BLOCK)]
            self._block = block, 0
            if not isinstance(self.prior, BetaPrior):
                self._ahead = polar(np.array(self._keys, dtype=np.uint64), 0, self._width)
                self._block = block, self._width
        return self._keys[self._row]

    def _numbers(self, key: Key, n: int) -> tuple[Floats, Floats]:
        """The next numbers of the trial's stream."""
        start = self._read
        self._read = end = start + n
        if end > self._block[1] or self._ahead is None:
            logs, cosines = polar(np.array([key], dtype=np.uint64), start, n)
            return logs[0], cosines[0]
        logs, cosines = self._ahead
        return logs[self._row, start:end], cosines[self._row, start:end]

    def _pick(self, at: int, node: Grown, key: Key) -> int | None:
        fresh = node.fresh
        if fresh is None or fresh[0] != node.version:
            self._refresh(node)
            new = self._law(node.gen) if fresh is None else fresh[1]
            fresh = node.fresh = (node.version, new, self._law(node.cont))
        _, new, old = fresh
        n, prior = len(node.children), self.prior
        drawn: Floats | None = None
        if isinstance(prior, BetaPrior):
            both = self._betas(node, new, old, key)
            gen, cont, drawn = both[0], both[1], both[2:]
        else:
            if isinstance(prior, Relative):
                new, old = self._relative(prior.gen, *new), self._relative(prior.cont, *old)
            logs, cosines = self._numbers(key, 2)
            gen = _student(new, logs.item(0), cosines.item(0))
            cont = _student(old, logs.item(1), cosines.item(1))
        if gen >= cont:
            return None
        may = self._open(node)
        if may is not None and not any(may):
            return None
        if n == 1:
            return 0
        if drawn is None:
            logs, cosines = self._numbers(key, n)
            loc, scale, c = node.laws[:, :n]
            if isinstance(prior, Relative):
                loc, scale, c = self._relative(prior.child, loc, scale, c)
            drawn = np.sqrt(np.expm1(c * logs))
            drawn *= cosines
            drawn *= scale
            drawn += loc
        if may is not None:
            drawn = np.where(may, drawn, -np.inf)
        return int(drawn.argmax())

    def _betas(self, node: Grown, new: Any, old: Any, key: Key) -> Floats:
        n = len(node.children) + 2
        a = np.concatenate([[new[0], old[0]], node.laws[0, : n - 2]])
        b = np.concatenate([[new[1], old[1]], node.laws[1, : n - 2]])
        counters = np.arange(self._read, self._read + n, dtype=np.uint64)
        self._read += n
        return betas(fold_array(np.full(n, key, dtype=np.uint64), counters), a, b)

    def _arms(self, arms: list[Stats], key: Key) -> Sequence[float]:
        laws = [self._law(a) for a in arms]
        if isinstance(self.prior, Relative):
            laws = [self._relative(self.prior.action, *law) for law in laws]
        if isinstance(self.prior, BetaPrior):
            keys = np.array([fold(key, i) for i in range(len(arms))], dtype=np.uint64)
            a, b, _ = np.array(laws).T
            return betas(keys, a, b).tolist()  # type: ignore[no-any-return]
        logs, cosines = polar(np.array([key], dtype=np.uint64), 0, len(arms))
        return [
            _student(law, u, v)
            for law, u, v in zip(laws, logs[0].tolist(), cosines[0].tolist(), strict=True)
        ]


def _student(law: tuple[float, float, float], log_u: float, cosine: float) -> float:
    """A draw from its location, scale · √df and -2 / df."""
    loc, scale, c = law
    return loc + scale * math.sqrt(math.expm1(c * log_u)) * cosine
