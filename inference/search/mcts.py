"""Monte Carlo tree search over the choices of a program: UCT and PUCT.

    repeat, `batch` at a time:
        select   from the root, the child of the largest
                 UCT   Q + c √(ln N(parent) / N)                  (Kocsis and Szepesvári, 2006)
                 PUCT  Q + c P(child) √N(parent) / (1 + N)        (Silver et al., 2017)
        expand   an unvisited node gets its children
        simulate draw the rest of the program once, or ask the guide
        back up  N += 1, total += reward, to the root; Q = mean (or the largest) reward

The reward of a finished trace is its likelihood (see `ABMCTS`) unless `score` says otherwise, in
[0, 1]. A path that is being evaluated counts as a loss until its reward is there (virtual loss), so
that a batch spreads. Subtrees that have been visited to their last trace are left out.

Reference: AlphaMath, 2405.03553 (2024), for a value model in the place of rollouts; Hao et al.,
Reasoning with language model is planning with world model, 2305.14992 (2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lmppl.arguments import check_functions, check_integers, check_known, check_numbers
from lmppl.errors import BadArgument
from lmppl.inference.base import Engine
from lmppl.inference.guide import AnyGuide
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.search.found import LAW, found
from lmppl.inference.search.nodes import Node, Request, check_search
from lmppl.inference.search.refine import score_of
from lmppl.inference.search.tree import Tree
from lmppl.trace import Trace


class Visits:
    """What the search keeps of a node."""

    __slots__ = ("best", "closed", "n", "open", "total")

    def __init__(self) -> None:
        """Never visited."""
        self.n = 0
        self.total = 0.0
        self.best = 0.0
        self.open = 0
        """Paths through it that are being evaluated."""
        self.closed = False
        """Whether every trace below has been visited."""


@dataclass(frozen=True)
class MCTS(Engine):
    """Monte Carlo tree search.

    Args:
        simulations: how many in all.
        batch: how many at a time.
        expand: children of a node whose site is not listed.
        exploration: c.
        puct: use the children's own probabilities.
        backup: "mean" or "max".
        rollout: draw the rest of the program; False asks the guide, reward exp(log h) at most 1.
        children: "auto", "all" or "sample"; see `lmppl.inference.search.tree`.
        guide: a `Guide` or a function that gives log h, for `rollout=False`.
        score: the reward of a finished trace.
        actions: ways to draw, by name; each gets `expand` children.
    """

    simulations: int = 64
    batch: int = 4
    expand: int = 4
    exploration: float = math.sqrt(2.0)
    puct: bool = False
    backup: str = "mean"
    rollout: bool = True
    children: str = "auto"
    guide: AnyGuide | None = None
    score: Callable[[Trace], float] | None = None
    actions: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_integers("MCTS", simulations=self.simulations, batch=self.batch, expand=self.expand)
        check_search("MCTS", "joint", self.children, self.guide, self.actions)
        check_numbers("MCTS", 0.0, exploration=self.exploration)
        check_functions("MCTS", score=self.score)
        check_known("MCTS", ("mean", "max"), backup=self.backup)
        if not self.rollout and self.guide is None:
            raise BadArgument("MCTS: rollout=False needs a guide", fix="give guide=")

    def target(self, program: Any = None) -> str:
        """What is returned."""
        return f"Monte Carlo tree search for the largest score; {LAW}"

    def run(self, machine: Machine) -> Jobs:
        """Waves of the module's first lines."""
        tree = Tree(machine, self.guide, self.children, self.actions)
        root = yield from tree.root()
        root.stats = Visits()
        loose: list[Node] = []
        done = 0
        while done < self.simulations and not root.stats.closed:
            leaves: list[Node] = []
            for _ in range(min(self.batch, self.simulations - done)):
                leaf = self._select(root)
                leaves.append(leaf)
                _mark(leaf, 1)
            yield from self._expand(tree, leaves)
            ends = [self._enter(leaf) for leaf in leaves]
            drawn = [n for n in ends if self.rollout and not n.finished]
            numbers = [n.stats.n + sum(m is n for m in drawn[:i]) for i, n in enumerate(drawn)]
            rolled = yield from tree.rollout(drawn, numbers)
            outcome = iter(rolled)
            for leaf, n in zip(leaves, ends, strict=True):
                _mark(leaf, -1)
                if n is not leaf:
                    n.stats.open -= 1
                end = n
                if self.rollout and not n.finished:
                    end = next(outcome)
                    loose.append(end)
                _back_up(n, self._reward(end))
            done += len(leaves)
        tree.close()
        particles = [n.particle for n in tree.finished]
        return found(
            machine,
            self,
            particles,
            [score_of(p.trace, self.score) for p in particles],
            expansions=tree.expansions,
            nodes=tree.grown,
            complete=root.stats.closed and tree.listed_all and bool(particles),
            allocator=root,
        )

    def _select(self, root: Node) -> Node:
        node = root
        while node.children and not node.finished:
            options = [c for c in node.children if not c.particle.dead and not c.stats.closed]
            if not options:
                return node
            node = max(options, key=lambda c: (*self._bound(c), -c.key))
        return node

    def _bound(self, c: Node) -> tuple[float, float]:
        s: Visits = c.stats
        n = s.n + s.open
        above: Visits = c.parent.stats  # type: ignore[union-attr]
        all_of = max(above.n + above.open, 1)
        prior = math.exp(c.log_p)
        if self.puct:
            q = self._value(s, n) if n else 0.0
            return q + self.exploration * prior * math.sqrt(all_of) / (1 + n), prior
        if n == 0:
            return math.inf, prior
        return self._value(s, n) + self.exploration * math.sqrt(math.log(all_of) / n), prior

    def _value(self, s: Visits, n: int) -> float:
        return s.best if self.backup == "max" else s.total / n

    def _expand(self, tree: Tree, leaves: list[Node]) -> Any:
        names = list(self.actions or [None])
        fresh = []
        for leaf in leaves:
            if not leaf.finished and not leaf.born and leaf not in fresh:
                fresh.append(leaf)
        grown = yield from tree.grow([Request(n, self.expand, a) for n in fresh for a in names])
        for children in grown:
            for c in children:
                c.stats = Visits()
        for n in fresh:
            n.children = [c for c in n.children if not c.particle.dead]

    def _enter(self, leaf: Node) -> Node:
        """The child of a new leaf that is tried, or the leaf itself."""
        options = [c for c in leaf.children if not c.stats.closed]
        if leaf.finished or not options:
            return leaf
        child = max(options, key=lambda c: (-c.stats.n - c.stats.open, c.log_p, -c.key))
        child.stats.open += 1
        return child

    def _reward(self, n: Node) -> float:
        if n.particle.dead:
            return 0.0
        if n.finished:
            return score_of(n.particle.trace, self.score)
        return math.exp(min(n.log_h, 0.0))


def _mark(leaf: Node, sign: int) -> None:
    node: Node | None = leaf
    while node is not None:
        node.stats.open += sign
        node = node.parent


def _back_up(end: Node, reward: float) -> None:
    node: Node | None = end
    while node is not None:
        s: Visits = node.stats
        s.n += 1
        s.total += reward
        s.best = max(s.best, reward)
        s.closed = node.finished or (
            node.born > 0 and all(c.particle.dead or c.stats.closed for c in node.children)
        )
        node = node.parent
