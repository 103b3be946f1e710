"""A tree of results: what AB-MCTS-A, AB-MCTS-M and their baseline share.

A node keeps three sums: of the scores in its subtree, of its direct children, and its own. What a
draw needs of a child (`_law`) is kept in a row and brought up to date only when a descent passes
the node, so a trial costs one addition per ancestor, and one array operation per node that it
passes, whatever the size of the tree.

Actions: who makes a child, once it is settled where.

    thompson   a draw of each action's mean from its scores in the whole tree
    ucb        mean + √2 √(ln n / n_a), n_a with the outstanding ones; untried ones first
    stack      the action is drawn first, at every node, from its scores below this node; then
               GEN or CONT, and the child, among what this action has made there

Pruning: a subtree of at least 4 scores, 3/4 of which are equal to 1/100, is not entered. Where all
children are like that the node gets a new one. (The published code skips GEN as well when the best
child is pruned; that is not copied.)

Reference: Inoue et al., Wider or deeper?, 2503.04412 (2025), and its released code.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.search.allocator import UNIT, Allocator, Stats
from lmppl.random import fold
from lmppl.types import Floats, Key

NO_ROWS: Floats = np.zeros((3, 0))
CHOICES = ("thompson", "ucb", "stack")
PRUNE_FROM, PRUNE_SHARE = 4, 0.75
CENT = round(math.ldexp(0.01, UNIT))


class Grown:
    """A result in the tree."""

    __slots__ = (
        "action", "children", "counts", "dirty", "expected", "fresh", "gen", "laws", "most",
        "one", "own", "parent", "score", "version",
    )  # fmt: skip

    def __init__(self, parent: int, action: str, score: int | None = None) -> None:
        """A result without children; the root has no score."""
        self.parent = parent
        self.action = action
        self.one = int(score is not None)
        self.score = score or 0
        self.own = Stats()
        """The scores of its subtree, its own included, and virtual ones."""
        self.gen = Stats()
        """Those of its direct children."""
        if score is not None:
            self.own.add(score)
        self.children: list[int] = []
        """In the order of their numbers."""
        self.laws: Floats = NO_ROWS
        """What a draw of each child needs [3, capacity]."""
        self.dirty: set[int] = set()
        """Children whose rows are out of date."""
        self.version = 0
        """Changes with any score below."""
        self.fresh: Any = None
        """What the engine keeps of GEN and CONT, with its version; None once GEN has changed."""
        self.expected: dict[int, int] = {}
        """Virtual scores of the children that are on their way."""
        self.counts: dict[int, int] = {}
        """How many scores of the subtree round to each cent; only if subtrees are pruned."""
        self.most = 0

    @property
    def cont(self) -> Stats:
        """The scores below its children: what going on has brought."""
        out = Stats()
        out.n = self.own.n - self.gen.n - self.one
        out.s1 = self.own.s1 - self.gen.s1 - self.score
        out.s2 = self.own.s2 - self.gen.s2 - self.score * self.score
        return out

    def add(self, child: int) -> None:
        """A new child; the rows double, so that adding costs O(1) on the whole."""
        n = len(self.children)
        if n == self.laws.shape[1]:
            rows = np.zeros((3, max(4, 2 * n)))
            rows[:, :n] = self.laws
            self.laws = rows
        at = bisect_left(self.children, child)
        if at < n:
            self.laws[:, at + 1 : n + 1] = self.laws[:, at:n].copy()
        self.children.insert(at, child)
        self.dirty.add(child)

    def count(self, cent: int) -> None:
        """One more score of the subtree, for pruning."""
        many = self.counts[cent] = self.counts.get(cent, 0) + 1
        self.most = max(self.most, many)

    @property
    def settled(self) -> bool:
        """Whether nearly all scores of the subtree are equal."""
        n = sum(self.counts.values()) if self.most >= PRUNE_FROM * PRUNE_SHARE else 0
        return n >= PRUNE_FROM and self.most >= PRUNE_SHARE * n


class ResultTree(Allocator):
    """What AB-MCTS-A and AB-MCTS-M share: the tree, its bookkeeping, and the choice of actions."""

    def __init__(
        self,
        actions: Sequence[str] = ("",),
        *,
        seed: int = 0,
        virtual: str | float = "mean",
        choose: str = "thompson",
        prune: bool = False,
    ) -> None:
        """A root without children."""
        super().__init__(seed, virtual)
        if isinstance(actions, str) or not actions or len(set(actions)) != len(actions):
            raise BadArgument(
                f"actions must be different names, got {actions!r}",
                fix='write actions=("small", "large")',
            )
        if choose not in CHOICES:
            raise BadArgument(
                f"choose must be one of {', '.join(CHOICES)}, got {choose!r}",
                fix='write choose="thompson"',
            )
        self.actions = tuple(actions)
        self.choose = choose
        self.prune = prune
        self.nodes: dict[int, Grown] = {0: Grown(-1, "")}
        self.states: dict[int, Any] = {}
        """What each trial has made, by its number: not part of `state()`."""
        self.arms = {name: Stats() for name in self.actions}

    def top(self, k: int = 1) -> list[tuple[Any, float]]:
        """The k best (state, score), the earlier one of equal scores first."""
        ranked = sorted(self.told, key=lambda i: (-self.told[i], i))[:k]
        return [(self.states.get(i), math.ldexp(self.told[i], -UNIT)) for i in ranked]

    def depth(self, node: int) -> int:
        """How many refinements a node is from the root."""
        steps = 0
        while node:
            node = self.nodes[node].parent
            steps += 1
        return steps

    # -- the allocator -------------------------------------------------------------------------

    def _decide(self, id: int) -> tuple[int, str]:
        key = self._begin(id)
        if self.choose == "stack" and len(self.actions) > 1:
            return self._descend_by_action(key)
        at = 0
        while True:
            node = self.nodes[at]
            pick = self._pick(at, node, key) if node.children else None
            if pick is None:
                return at, self._act(key)
            at = node.children[pick]

    def _descend_by_action(self, key: Key) -> tuple[int, str]:
        """At every node: which action, then GEN or CONT of it, then which of its children."""
        at = 0
        while True:
            node = self.nodes[at]
            whole, new, old = self._by_action(node)
            here = fold(key, "stack", at)
            drawn = self._arms([whole[a] for a in self.actions], here)
            action = self.actions[max(range(len(drawn)), key=drawn.__getitem__)]
            open_ones = [
                c
                for c in node.children
                if self.nodes[c].action == action and not (self.prune and self.nodes[c].settled)
            ]
            if not open_ones:
                return at, action
            gen, cont = self._arms([new[action], old[action]], fold(here, "gen"))
            if gen >= cont:
                return at, action
            laws = [self.nodes[c].own for c in open_ones]
            drawn = self._arms(laws, fold(here, "child"))
            at = open_ones[max(range(len(drawn)), key=drawn.__getitem__)]

    def _by_action(
        self, node: Grown
    ) -> tuple[dict[str, Stats], dict[str, Stats], dict[str, Stats]]:
        """The scores that each action has below a node: all, of new children, and the rest."""
        whole, new, old = ({a: Stats() for a in self.actions} for _ in range(3))
        for c in node.children:
            child = self.nodes[c]
            q, own = child.score, child.own
            new[child.action].add(q)
            for into, less in ((whole, 0), (old, 1)):
                s = into[child.action]
                s.n += own.n - less
                s.s1 += own.s1 - less * q
                s.s2 += own.s2 - less * q * q
        for c, lie in node.expected.items():
            action = self.pending[c][1]
            whole[action].add(lie)
            new[action].add(lie)
        return whole, new, old

    def _learn(self, id: int, node: int, action: str, score: int) -> None:
        self.nodes[id] = Grown(node, action, score)
        parent = self.nodes[node]
        parent.add(id)
        parent.gen.add(score)
        parent.fresh = None
        if action in self.arms:
            self.arms[action].add(score)
        self._climb(node, score, 1)
        if self.prune:
            cent = (score + CENT // 2) // CENT
            at = id
            while at:
                self.nodes[at].count(cent)
                at = self.nodes[at].parent

    def _expect(self, id: int, node: int, lie: int, sign: int) -> None:
        parent = self.nodes[node]
        parent.gen.add(lie, sign)
        parent.fresh = None
        if sign > 0:
            parent.expected[id] = lie
        else:
            parent.expected.pop(id)
        self._climb(node, lie, sign)

    def _climb(self, at: int, score: int, sign: int) -> None:
        """Count a score at a node and at all above it."""
        nodes = self.nodes
        first, second = sign * score, sign * score * score
        while True:
            node = nodes[at]
            own = node.own
            own.n += sign
            own.s1 += first
            own.s2 += second
            node.version += 1
            if not at:
                return
            up = node.parent
            nodes[up].dirty.add(at)
            at = up

    def _refresh(self, node: Grown) -> None:
        """Bring the rows of a node's children up to date."""
        rows, children = node.laws, node.children
        for c in node.dirty:
            k = bisect_left(children, c)
            rows[0, k], rows[1, k], rows[2, k] = self._law(self.nodes[c].own)
        node.dirty.clear()

    def _open(self, node: Grown) -> list[bool] | None:
        """Which children may be entered; None if all may."""
        if not self.prune:
            return None
        found = [not self.nodes[c].settled for c in node.children]
        return None if all(found) else found

    def _origin(self, id: int) -> tuple[int, str]:
        return self.nodes[id].parent, self.nodes[id].action

    def _state_of(self, node: int) -> Any:
        return self.states.get(node)

    def _keep(self, id: int, state: Any) -> None:
        self.states[id] = state

    def _act(self, key: Key) -> str:
        """The action of a new child."""
        if len(self.actions) == 1:
            return self.actions[0]
        if self.choose == "ucb":
            return self._largest_bound()
        drawn = self._arms([self.arms[a] for a in self.actions], fold(key, "action"))
        return self.actions[max(range(len(drawn)), key=drawn.__getitem__)]

    def _largest_bound(self) -> str:
        """The action of the largest upper confidence bound; the first of equal ones."""
        tried = {a: self.arms[a].n for a in self.actions}
        for _, action, _ in self.pending.values():
            tried[action] += 1
        log_n = math.log(max(sum(tried.values()), 1))

        def bound(a: str) -> float:
            if not tried[a]:
                return math.inf
            return self.arms[a].mean + math.sqrt(2.0 * log_n / tried[a])

        return max(self.actions, key=bound)

    def _begin(self, id: int) -> Key:
        """The key of a trial's draws."""
        return fold(self.seed, "trial", id)

    @abstractmethod
    def _pick(self, at: int, node: Grown, key: Key) -> int | None:
        """The position of the child to go to, or None for GEN."""

    @abstractmethod
    def _law(self, stats: Stats) -> tuple[float, float, float]:
        """What a draw of a child needs."""

    @abstractmethod
    def _arms(self, arms: list[Stats], key: Key) -> Sequence[float]:
        """A Thompson draw of each action."""
