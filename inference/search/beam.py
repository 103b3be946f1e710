"""Beam search over programs, and diverse verifier tree search (independent subtrees).

    beam = {root}
    until all of the beam is finished:
        grow the unfinished nodes of the beam, width · expand children in all     # one wave
        beam = the `width` best of the children and the finished nodes            # by priority

The priority is log g + log h (`rank="joint"`), or the guide alone (`rank="guide"`, where a process
reward model decides and the language model's own probability does not). A wave costs the same
however few nodes are in the beam, so budgets can be compared. With `groups` the beam splits into
subtrees that keep width / groups nodes each and never compete: DVTS. With `temperature` T > 0 the
kept nodes are drawn without replacement with probability ∝ exp(priority / T): stochastic beams.

References: Lowerre, The Harpy speech recognition system (1976); beam search over steps with a
process reward model, Snell et al., Scaling LLM test-time compute (2024); DVTS, Beeching, Tunstall
and Rush, Scaling test-time compute with open models (2024), with subtrees of one node each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.arguments import check_integers, check_numbers
from lmppl.errors import BadArgument
from lmppl.inference.base import Engine
from lmppl.inference.guide import AnyGuide
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.search.found import LAW, of_nodes
from lmppl.inference.search.nodes import Node, Request, check_search
from lmppl.inference.search.token_beam import token_beam
from lmppl.inference.search.tree import Tree
from lmppl.inference.smc.particle_filter import tokens
from lmppl.random import draw, fold


@dataclass(frozen=True)
class Beam(Engine):
    """Beam search.

    Args:
        width: nodes that are kept.
        expand: children of each, where they are drawn; listed sites give all of theirs.
        groups: independent subtrees; divides `width`.
        rank: "joint" (log g + log h) or "guide" (log h alone).
        temperature: 0 keeps the best; above, nodes are drawn.
        children: "auto", "all" or "sample"; see `lmppl.inference.search.tree`.
        guide: a `Guide`, or a function that gives log h of a partial trace.
        actions: ways to draw, by name; each child takes the next one in turn.
        at: `tokens(k)` ranks the beam every k tokens inside strings too; see
            `lmppl.inference.search.token_beam`.

    >>> from lmppl import Categorical, factor, program, sample
    >>> from lmppl.inference import infer
    >>> @program
    ... def two():
    ...     a = sample("a", Categorical({"x": 0.6, "y": 0.4}))
    ...     b = sample("b", Categorical({"x": 0.5, "y": 0.5}))
    ...     factor("twin", 2.0 if a == b == "y" else 0.0)
    ...     return a + b
    >>> infer(two, engine=Beam(width=2)).best, infer(two, engine=Beam(width=1)).best
    ('yy', 'xx')
    """

    width: int = 4
    expand: int = 4
    groups: int = 1
    rank: str = "joint"
    temperature: float = 0.0
    children: str = "auto"
    guide: AnyGuide | None = None
    actions: Mapping[str, Any] | None = None
    at: tokens | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        name = type(self).__name__
        check_integers(name, width=self.width, expand=self.expand, groups=self.groups)
        check_search(name, self.rank, self.children, self.guide, self.actions)
        check_numbers(name, 0.0, temperature=self.temperature)
        if self.width % self.groups:
            raise BadArgument(
                f"{name}: {self.groups} groups do not divide width={self.width}",
                fix="write width=8, groups=4: two nodes in each subtree",
            )
        if self.at is not None and not isinstance(self.at, tokens):
            raise BadArgument(f"{name}: at must be tokens(k), got {self.at!r}", fix="at=tokens(8)")
        if self.at is not None and (self.groups > 1 or self.actions or self.children == "all"):
            raise BadArgument(
                f"{name}: at=tokens(k) with groups, actions or listed children",
                why="half-drawn strings are drawn from one model, and are too many to list",
                fix="leave at= out, or groups=, actions= and children=",
            )

    def target(self, program: Any = None) -> str:
        """What is returned."""
        by = "log g + log h" if self.rank == "joint" else "log h"
        return f"beam search for the largest {by}; {LAW}"

    def run(self, machine: Machine) -> Jobs:
        """Waves of the module's first lines."""
        if self.at is not None:
            return (yield from token_beam(self, machine, self.at.k))
        joint = self.rank == "joint"
        tree = Tree(machine, self.guide, self.children, self.actions, everywhere=not joint)
        beams = [[(yield from tree.root())]]
        complete = True
        step = 0
        while any(not n.finished for beam in beams for n in beam):
            open_ones = [n for beam in beams for n in beam if not n.finished]
            requests = _requests(open_ones, self.width * self.expand, tree)
            grown = yield from tree.grow(requests)
            below: dict[int, list[Node]] = {}
            for r, children in zip(requests, grown, strict=True):
                below.setdefault(id(r.node), []).extend(children)
            complete = complete and tree.listed_all
            pools = [[c for n in beam for c in below.get(id(n), [n])] for beam in beams]
            if len(pools) < self.groups and len(pools[0]) >= self.groups:
                # Split: ranked, so that every subtree starts from one of the best
                ranked = sorted(pools[0], key=self._order)
                pools = [ranked[i :: self.groups] for i in range(self.groups)]
            beams = []
            for group, pool in enumerate(pools):
                kept = self._keep(machine, pool, self.width // len(pools), step, group)
                beams.append(kept)
                chosen = {id(n) for n in kept}
                lost = [n for n in pool if id(n) not in chosen]
                complete = complete and all(n.finished for n in lost)
                tree.drop(lost)
            step += 1
        tree.close()
        return of_nodes(
            machine,
            self,
            tree.finished,
            scores=None if joint else [n.log_h for n in tree.finished],
            expansions=tree.expansions,
            nodes=tree.grown,
            complete=complete and bool(tree.finished),
        )

    def _value(self, n: Node) -> float:
        return n.priority if self.rank == "joint" else n.log_h

    def _order(self, n: Node) -> tuple[float, float, int]:
        return -self._value(n), -n.log_g, n.key

    def _keep(
        self, machine: Machine, pool: list[Node], size: int, step: int, group: int
    ) -> list[Node]:
        pool = sorted(pool, key=self._order)
        if self.temperature == 0.0 or len(pool) <= size:
            return pool[:size]
        logits = np.array([self._value(n) for n in pool]) / self.temperature
        kept = []
        for i in range(size):
            key = fold(machine.key, "beam", step, group, i)
            pick = draw(machine.env.chance, key, logits)
            logits[pick] = -np.inf
            kept.append(pool[pick])
        return kept


@dataclass(frozen=True)
class DVTS(Beam):
    """Diverse verifier tree search: `Beam` in independent subtrees of one node each."""

    groups: int = 4


def _requests(nodes: list[Node], total: int, tree: Tree) -> list[Request]:
    """Share `total` children among nodes; each child takes the next action."""
    names = list(tree.actions or [None])
    requests = []
    for i, n in enumerate(nodes):
        k = total // len(nodes) + (i < total % len(nodes))
        for a, name in enumerate(names):
            share = k // len(names) + (a < k % len(names))
            if share:
                requests.append(Request(n, share, name))
    return requests
