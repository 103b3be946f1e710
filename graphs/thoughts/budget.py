"""Limits that all nodes of a growing graph share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from lmppl.arguments import check_integers


@dataclass(frozen=True)
class Budget:
    """Hard limits of a graph: what would go beyond one of them is not spawned.

    Args:
        nodes: how many there are at most, not counting those that take over where more were refused
            (`Spawn.otherwise`).
        depth: how many generations of spawned nodes.
        tokens: tokens drawn after which nothing is spawned any more.
        calls: strings drawn or scored after which nothing is spawned any more.

    Nodes that are given at the start always run. Under a budget a graph grows when nothing of it
    runs, generation by generation, and requests are granted in the order of the nodes that made
    them: who gets the last of it does not depend on who was faster. A graph that a node runs inside
    itself has a budget of its own; its tokens and calls count here once the node has ended.
    """

    nodes: int | None = None
    depth: int | None = None
    tokens: int | None = None
    calls: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        limits = {field.name: getattr(self, field.name) for field in fields(self)}
        check_integers("Budget", 0, **{k: n for k, n in limits.items() if n is not None})

    def refusal(self, would_be: Mapping[str, int]) -> str | None:
        """Which limit would be passed."""
        for name, n in would_be.items():
            limit = getattr(self, name)
            if limit is not None and n > limit:
                return f"budget of {limit} {name}"
        return None
