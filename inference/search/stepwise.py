"""Step-greedy search with backtracking: follow the best child, go back when it disappoints.

    node = root
    until a finished node is reached:
        grow the node; its best child is the candidate, its other children stay open
        if there is no child, or the best open node is better than the candidate by more than
        `margin` and backtracks are left: go back to the best open node
        else: go to the candidate

`margin` = inf is plain step-greedy decoding that only leaves dead ends; `margin` = 0 with many
backtracks is best-first search. Between the two it keeps a chain of thought until the guide says
that an earlier alternative was better. With `rank="guide"` values at different depths compare; log g
falls with depth, so under `rank="joint"` a margin of a few nats is in place.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmppl.arguments import check_integers, check_numbers
from lmppl.inference.base import Engine
from lmppl.inference.guide import AnyGuide
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.search.found import LAW, of_nodes
from lmppl.inference.search.nodes import Node, Request, check_search
from lmppl.inference.search.tree import Tree


@dataclass(frozen=True)
class StepGreedy(Engine):
    """Step-greedy search with backtracking.

    Args:
        expand: candidates of a step whose site is not listed.
        margin: how much better an open node must be.
        backtracks: how often it may go back; leaving a dead end is always allowed.
        rank: "joint" (log g + log h) or "guide" (log h alone).
        children: "auto", "all" or "sample"; see `lmppl.inference.search.tree`.
        guide: a `Guide`, or a function that gives log h of a partial trace.
        actions: ways to draw, by name; each gives `expand` candidates.
    """

    expand: int = 4
    margin: float = math.inf
    backtracks: int = 8
    rank: str = "joint"
    children: str = "auto"
    guide: AnyGuide | None = None
    actions: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_integers("StepGreedy", expand=self.expand)
        check_search("StepGreedy", self.rank, self.children, self.guide, self.actions)
        check_numbers("StepGreedy", 0.0, infinite=True, margin=self.margin)
        check_integers("StepGreedy", 0, backtracks=self.backtracks)

    def target(self, program: Any = None) -> str:
        """What is returned."""
        by = "log g + log h" if self.rank == "joint" else "log h"
        return f"step-greedy search by {by} with backtracking; {LAW}"

    def run(self, machine: Machine) -> Jobs:
        """The loop of the module's first lines."""
        joint = self.rank == "joint"
        tree = Tree(machine, self.guide, self.children, self.actions, everywhere=not joint)

        def order(n: Node) -> tuple[float, float, int]:
            return (-n.priority if joint else -n.log_h), -n.log_g, n.key

        node: Node | None = yield from tree.root()
        names = list(self.actions or [None])
        waiting: list[tuple[tuple[float, float, int], Node]] = []
        left = self.backtracks
        while node is not None and not node.finished:
            grown = yield from tree.grow([Request(node, self.expand, name) for name in names])
            ranked = sorted((c for children in grown for c in children), key=order)
            node = ranked[0] if ranked else None
            for other in ranked[1:]:
                heapq.heappush(waiting, (order(other), other))
            if not waiting:
                continue
            best = waiting[0][1]
            if node is None:
                node = heapq.heappop(waiting)[1]
            elif left and order(node)[0] - order(best)[0] > self.margin:
                left -= 1
                node = heapq.heapreplace(waiting, (order(node), node))[1]
        tree.close()
        return of_nodes(
            machine,
            self,
            tree.finished,
            scores=None if joint else [n.log_h for n in tree.finished],
            expansions=tree.expansions,
            nodes=tree.grown,
        )
