"""Nodes of a search tree: particles that stand before a choice, and what tells them apart."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

from lmppl.arguments import check_known
from lmppl.errors import BadArgument
from lmppl.inference.checks import check_actions
from lmppl.inference.guide import Guide
from lmppl.inference.machine.particles import Particle
from lmppl.strands import Strand
from lmppl.strings import StringDistribution
from lmppl.text import Text
from lmppl.types import Key

WAITING = object()
"""Stands in `Strand.outcomes` of a site that no one has answered."""


class Node:
    """A partial trace in the tree, with its numbers."""

    __slots__ = (
        "action", "born", "children", "depth", "log_g", "log_h", "log_p", "parent", "particle",
        "seen", "stats",
    )  # fmt: skip

    def __init__(self, particle: Particle, parent: Node | None, action: str | None) -> None:
        """A node that nothing is known of yet."""
        self.particle = particle
        self.parent = parent
        self.action = action
        """The name of the action that drew it."""
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.log_g = 0.0
        self.log_h = 0.0
        """log of the guide; 0 for a finished node and where there is none."""
        self.log_p = 0.0
        """log p of the choice that made it, given its parent."""
        self.children: list[Node] = []
        self.born = 0
        """How many child numbers have been given out."""
        self.seen: set[Hashable] = set()
        """The values of its children."""
        self.stats: Any = None
        """What the engine keeps of it."""

    @property
    def finished(self) -> bool:
        """Whether its program has returned."""
        return self.particle.finished

    @property
    def key(self) -> Key:
        """Its randomness, a function of the path to it: breaks ties."""
        return self.particle.key

    @property
    def priority(self) -> float:
        """log g + log h."""
        return self.log_g + self.log_h


class Request(NamedTuple):
    """Children to make: `k` drawn ones, or all where they can be listed."""

    node: Node
    k: int
    action: str | None = None


def waiting(p: Particle) -> list[Strand]:
    """The strands of a particle that wait for a choice, branches of a plate in order."""
    return [leaf for leaf in p.strand.leaves() if leaf.outcomes is WAITING]


def distinct(parent: Node, children: list[Node]) -> list[Node]:
    """Those whose values no sibling has had; the others are dropped."""
    new = []
    for child in children:
        if not child.particle.dead:
            found = _values(child.particle, parent.particle)
            if found in parent.seen:
                child.particle.strand.kill()
                child.particle.dead = True
                continue
            parent.seen.add(found)
        new.append(child)
    return new


def _values(p: Particle, parent: Particle) -> Hashable:
    """What has been answered since the parent, branches of a plate included."""
    found = []
    for leaf, before in zip(p.strand.leaves(), parent.strand.leaves(), strict=False):
        if leaf.head is not before.head and leaf.head is not None:
            m = before.pending
            tokens = m is not None and isinstance(m.dist, StringDistribution)
            found.append((leaf.head.address, same_value(leaf.head.value, tokens)))
    return tuple(found)


def same_value(value: Any, tokens: bool = True) -> Hashable:
    """Equal for equal values; with `tokens`, a text is also its ids, which have their own log p."""
    if isinstance(value, Text):
        ids = value._ids if tokens else None
        return (str(value), None if ids is None else tuple(ids))
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return (type(value).__name__, value)


def check_search(engine: str, rank: str, children: str, guide: Any, actions: Any = None) -> None:
    """The arguments that many search engines share."""
    check_known(engine, ("joint", "guide"), rank=rank)
    check_known(engine, ("auto", "all", "sample"), children=children)
    check_actions(engine, actions)
    Guide.of(guide)
    if rank == "guide" and guide is None:
        raise BadArgument(
            f'{engine}: rank="guide" needs a guide', fix='give guide=, or rank="joint"'
        )
