"""A tree of results: what AB-MCTS-A, AB-MCTS-M and their baseline share."""

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
from lmppl.types import Floats, Key, Keys

NO_IDS: Keys = np.zeros(0, dtype=np.uint64)
NO_LAWS: Floats = np.zeros((0, 3))


class Grown:
    """A result in the tree."""

    __slots__ = (
        "action", "children", "cont", "expected", "gen", "ids", "laws", "own", "parent", "version"
    )  # fmt: skip

    def __init__(self, parent: int, action: str) -> None:
        """Without scores and children."""
        self.parent = parent
        self.action = action
        self.own = Stats()
        """The scores of its subtree, its own included."""
        self.gen = Stats()
        self.cont = Stats()
        self.children: list[int] = []
        """In the order of their numbers."""
        self.ids: Keys = NO_IDS
        self.laws: Floats = NO_LAWS
        """The posterior of each child [capacity, 3], as `_law` gives it."""
        self.expected: dict[int, int] = {}
        """Virtual scores of the children that are on their way."""
        self.version = 0

    def add(self, child: int, law: tuple[float, float, float]) -> None:
        """A new child; the arrays double, so that adding costs O(1) on the whole."""
        n = len(self.children)
        if n == len(self.ids):
            room = max(4, 2 * n)
            ids, laws = np.zeros(room, dtype=np.uint64), np.zeros((room, 3))
            ids[:n], laws[:n] = self.ids[:n], self.laws[:n]
            self.ids, self.laws = ids, laws
        at = bisect_left(self.children, child)
        if at < n:
            self.ids[at + 1 : n + 1] = self.ids[at:n].copy()
            self.laws[at + 1 : n + 1] = self.laws[at:n].copy()
        self.children.insert(at, child)
        self.ids[at] = child
        self.laws[at] = law


class ResultTree(Allocator):
    """What AB-MCTS-A and AB-MCTS-M share: the tree, its bookkeeping, and the choice of actions."""

    def __init__(
        self, actions: Sequence[str] = ("",), *, seed: int = 0, virtual: str | float = "mean"
    ) -> None:
        """A root without children."""
        super().__init__(seed, virtual)
        if isinstance(actions, str) or not actions or len(set(actions)) != len(actions):
            raise BadArgument(
                f"actions must be different names, got {actions!r}",
                fix='write actions=("small", "large")',
            )
        self.actions = tuple(actions)
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
        key = fold(self.seed, "trial", id)
        at = 0
        while True:
            node = self.nodes[at]
            pick = self._pick(at, node, fold(key, at)) if node.children else None
            if pick is None:
                return at, self._act(fold(key, "action"))
            at = node.children[pick]

    def _learn(self, id: int, node: int, action: str, score: int) -> None:
        new = Grown(node, action)
        new.own.add(score)
        self.nodes[id] = new
        parent = self.nodes[node]
        parent.add(id, self._law(new.own))
        parent.gen.add(score)
        parent.version += 1
        if action in self.arms:
            self.arms[action].add(score)
        self._climb(node, score, 1)

    def _expect(self, id: int, node: int, lie: int, sign: int) -> None:
        parent = self.nodes[node]
        parent.gen.add(lie, sign)
        parent.version += 1
        if sign > 0:
            parent.expected[id] = lie
        else:
            parent.expected.pop(id)
        self._climb(node, lie, sign)

    def _climb(self, at: int, score: int, sign: int) -> None:
        """Count a score at every edge from a node up to the root."""
        while at:
            node = self.nodes[at]
            node.own.add(score, sign)
            above = self.nodes[node.parent]
            above.laws[bisect_left(above.children, at)] = self._law(node.own)
            above.cont.add(score, sign)
            above.version += 1
            at = node.parent

    def _origin(self, id: int) -> tuple[int, str]:
        return self.nodes[id].parent, self.nodes[id].action

    def _state_of(self, node: int) -> Any:
        return self.states.get(node)

    def _keep(self, id: int, state: Any) -> None:
        self.states[id] = state

    def _act(self, key: Key) -> str:
        if len(self.actions) == 1:
            return self.actions[0]
        drawn = self._arms([self.arms[a] for a in self.actions], key)
        return self.actions[max(range(len(drawn)), key=drawn.__getitem__)]

    @abstractmethod
    def _pick(self, at: int, node: Grown, key: Key) -> int | None:
        """The position of the child to go to, or None for GEN."""

    @abstractmethod
    def _law(self, stats: Stats) -> tuple[float, float, float]:
        """What a draw of a child needs."""

    @abstractmethod
    def _arms(self, arms: list[Stats], key: Key) -> Sequence[float]:
        """A Thompson draw of each action."""
