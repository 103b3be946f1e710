"""Best-first search, and A*: the node of the largest log g + log h is grown next.

    queue = {root}
    until `solutions` finished nodes were popped, or the budget is spent:
        pop the largest log g + log h; grow it; push its children

With an **admissible** guide (h at least the largest product that the rest can multiply in: the
backward filter of a relaxed program in the max semiring), listed children and factors that the
guide accounts for, no finished trace can beat the first one popped: it is the exact MAP, and the
next ones are the next best in order (Hart, Nilsson and Raphael, 1968). Without a guide h = 1 bounds
everything while factors are at most 0, and the search is uniform-cost (Dijkstra, 1959).

Ties: a finished node first, then the smaller key, a hash of the path. A wave of more than one node
changes how many are grown, never which trace is the best.

Reference: A*-decoding, 2505.13672 (2025); its heuristic 1 - r of a reward model is no bound.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmppl.arguments import check_integers
from lmppl.inference.base import Engine
from lmppl.inference.guide import AnyGuide, Guide
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.search.found import LAW, of_nodes
from lmppl.inference.search.nodes import Node, Request, check_search
from lmppl.inference.search.tree import Tree
from lmppl.weights import NEG_INF


@dataclass(frozen=True)
class BestFirst(Engine):
    """Best-first search.

    Args:
        expand: children of a node whose site is not listed.
        solutions: finished nodes after which it stops.
        budget: nodes that may be grown.
        wave: nodes that are grown together; 1 grows the fewest.
        children: "auto", "all" or "sample"; see `lmppl.inference.search.tree`.
        guide: a `Guide`, or a function that gives log h of a partial trace.
        actions: ways to draw, by name; each gets `expand` children.

    When the budget ends before a node is finished, the best partial trace is drawn to its end.
    """

    expand: int = 4
    solutions: int = 1
    budget: int = 10_000
    wave: int = 1
    children: str = "auto"
    guide: AnyGuide | None = None
    actions: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        name = type(self).__name__
        check_integers(
            name,
            expand=self.expand,
            solutions=self.solutions,
            budget=self.budget,
            wave=self.wave,
        )
        check_search(name, "joint", self.children, self.guide, self.actions)

    def target(self, program: Any = None) -> str:
        """What is returned."""
        return f"best-first search by log g + log h; {LAW}"

    def run(self, machine: Machine) -> Jobs:
        """The loop of the module's first lines."""
        tree = Tree(machine, self._bound(), self.children, self.actions)
        root = yield from tree.root()
        queue = [(_order(root), root)]
        solved = 0
        listed = True
        names = list(self.actions or [None])
        while queue and solved < self.solutions and tree.expansions < self.budget:
            batch: list[Node] = []
            while queue and len(batch) < min(self.wave, self.budget - tree.expansions):
                if queue[0][1].finished:
                    if batch:
                        break  # what is being grown may hold a better one
                    heapq.heappop(queue)
                    solved += 1
                    if solved == self.solutions:
                        break
                    continue
                batch.append(heapq.heappop(queue)[1])
            if not batch:
                break
            requests = [Request(n, self.expand, name) for n in batch for name in names]
            for children in (yield from tree.grow(requests)):
                for n in children:
                    heapq.heappush(queue, (_order(n), n))
            listed = listed and tree.listed_all
        left = [n for _, n in queue if not n.finished]
        if not tree.finished and left:
            yield from tree.rollout([min(left, key=_order)], [0])
        tree.close()
        return of_nodes(
            machine,
            self,
            tree.finished,
            expansions=tree.expansions,
            nodes=tree.grown,
            upper=self._upper(left) if listed else math.inf,
            complete=listed and not left,
        )

    def _bound(self) -> Guide | None:
        return Guide.of(self.guide)

    def _upper(self, left: list[Node]) -> float:
        return math.inf


@dataclass(frozen=True)
class AStar(BestFirst):
    """A*: best-first search whose guide is a bound, so that the first solution is the exact MAP.

    The guide is at least the largest that the rest of the program can multiply in (`admissible`, or
    a bare function); -inf says that nothing is possible. Without one the bound is 0, right for a
    program whose factors are never positive. For the claim sites must be listed: `children="all"`.

    >>> from lmppl import Categorical, program, sample
    >>> from lmppl.inference import infer
    >>> @program
    ... def walk():
    ...     a = sample("a", Categorical({"x": 0.6, "y": 0.4}))
    ...     return a + sample("b", Categorical({"x": 0.5, "y": 0.5} if a == "x" else {"z": 1.0}))
    >>> infer(walk, engine=AStar()).best
    'yz'
    """

    children: str = "all"

    def target(self, program: Any = None) -> str:
        """What is returned."""
        guide = self._bound()
        sure = guide is None or guide.bounding
        claim = "exactly" if sure else "if this guide, which is not declared admissible, is a bound"
        return f"A*: the trace of the largest γ, {claim}; {LAW}"

    def _bound(self) -> Guide | None:
        """A bare function is a bound because it is given here."""
        if self.guide is None or isinstance(self.guide, Guide):
            return self.guide
        return Guide(self.guide, semiring="max", admissible=True)

    def _upper(self, left: list[Node]) -> float:
        guide = self._bound()
        if guide is not None and not guide.bounding:
            return math.inf
        return max((n.priority for n in left), default=NEG_INF)


def _order(n: Node) -> tuple[float, bool, int]:
    return -n.priority, not n.finished, n.key
