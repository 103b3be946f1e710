"""The thoughts of a population as one tree: equal beginnings of traces are told once.

Every node is a site with its value; the path from the root to a node is a partial trace. Particles
that were resampled share the nodes of their past, and independent particles that happened to draw
the same values share them too. Node 0 is the empty trace.

    mass(node) = Σ W_i over the final particles i whose trace passes through the node

Nodes that carry no mass were left behind by resampling: a history keeps where every particle stood
at each barrier (`History.heads`).

>>> from lmppl.trace import Entry, Trace
>>> a = Entry(None, "sample", "x", "up", logp=-0.7)
>>> forest = Forest()
>>> forest.add(Trace.of(a)), forest.add(Trace.of(Entry(a, "sample", "y", 1)))
(1, 2)
>>> forest.add(Trace.of(Entry(None, "sample", "x", "up", logp=-0.7))), len(forest)
(1, 3)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmppl.errors import excerpt
from lmppl.graphs.thoughts.record import is_recorded
from lmppl.trace import Entry, Trace
from lmppl.types import Floats

LONGEST = 4_000
"""Characters of a value that are kept."""


class Forest:
    """Nodes by number; parallel lists, the parent of a node comes before it."""

    def __init__(self) -> None:
        """Only the root."""
        self.parents: list[int] = [-1]
        self.entries: list[Entry | None] = [None]
        self.texts: list[str] = [""]
        self.depths: list[int] = [0]
        self._of: dict[tuple[int, str, str, str, float], int] = {}
        self._known: dict[tuple[int, int], int] = {}
        self._stood: dict[int, int] = {}
        self._alive: list[Entry] = []  # identities stay unique while entries live

    def __len__(self) -> int:
        return len(self.parents)

    def add(self, trace: Trace) -> int:
        """The node of a whole trace."""
        at = 0
        for entry in trace.sites:
            if entry.op != "jobs":
                at = self._step(at, entry)
        return at

    def stand(self, head: Entry | None) -> int:
        """The node where the tape that ends in `head` stands; what is known of it is not read."""
        new = []
        entry = head
        while entry is not None and id(entry) not in self._stood:
            if entry.inside is not None:  # its inner entries are part of the path
                return self.add(Trace.of(head))
            new.append(entry)
            entry = entry.prev
        at = 0 if entry is None else self._stood[id(entry)]
        for entry in reversed(new):
            if entry.op not in ("jobs", "loop", "plate"):
                at = self._step(at, entry)
            self._stood[id(entry)] = at
            self._alive.append(entry)
        return at

    def _step(self, at: int, entry: Entry) -> int:
        known = self._known.get((at, id(entry)))
        if known is not None:
            return known
        text = shown(entry.value)
        key = (at, entry.op, entry.address, text, round(entry.logp, 9))
        node = self._of.get(key)
        if node is None:
            node = self._of[key] = len(self.parents)
            self.parents.append(at)
            self.entries.append(entry)
            self.texts.append(text)
            self.depths.append(self.depths[at] + 1)
        self._known[at, id(entry)] = node
        self._alive.append(entry)
        return node

    def path(self, node: int) -> list[int]:
        """The nodes from the first site to `node`."""
        out = []
        while node > 0:
            out.append(node)
            node = self.parents[node]
        out.reverse()
        return out

    def mass(self, leaves: Sequence[int], weights: Floats) -> Floats:
        """Σ weights of the leaves below each node [nodes]; a matrix of weights gives its columns."""
        found = np.zeros((len(self), *np.shape(weights)[1:]))
        np.add.at(found, np.asarray(leaves, dtype=np.int64), weights)
        for node in range(len(self) - 1, 0, -1):
            found[self.parents[node]] += found[node]
        return found


def shown(value: Any) -> str:
    """A value as text: a string itself, six digits of a fraction, anything else its `repr`; cut."""
    if isinstance(value, str):
        text = str(value)
    elif is_recorded(value):
        n = len(value["nodes"])
        return f"a graph of {n:,} {'thought' if n == 1 else 'thoughts'}"
    elif isinstance(value, float):
        return f"{value:.6g}"
    else:
        text = excerpt(value, LONGEST)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … (cut, {len(text):,} characters)"
