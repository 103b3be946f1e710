"""Map and reduce: one node per item, then a tree of nodes that combine neighbours.

    map_reduce(items, fn, combine, width=2)

`combine` takes up to `width` neighbouring results, in order; a group is combined as soon as it is
complete. The critical path has 1 + ⌈log_width n⌉ nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lmppl.arguments import check_integers
from lmppl.errors import BadArgument
from lmppl.graphs.thoughts.graph import graph
from lmppl.graphs.thoughts.node import Node


def map_reduce(
    items: Sequence[Any],
    fn: Callable[[Any], Any],
    combine: Callable[..., Any],
    *,
    width: int = 2,
    retries: int = 0,
    name: str = "reduce",
) -> Any:
    """The combined result of `fn` over the items; inside a program.

    >>> from lmppl import program
    >>> program(lambda: map_reduce("abcde", str.upper, lambda *parts: "".join(parts)))()
    'ABCDE'
    """
    check_integers("map_reduce", 2, width=width)
    if not items:
        raise BadArgument("map_reduce needs at least one item", fix="handle the empty list before")
    nodes = [
        Node(f"map{i}", partial(fn, item), retries=retries, kind="map")
        for i, item in enumerate(items)
    ]
    level, at = 0, [n.name for n in nodes]
    while len(at) > 1:
        groups = [at[i : i + width] for i in range(0, len(at), width)]
        at = []
        for i, group in enumerate(groups):
            if len(group) == 1:
                at.append(group[0])
                continue
            node = Node(f"level{level}.{i}", combine, tuple(group), retries=retries, kind="reduce")
            nodes.append(node)
            at.append(node.name)
        level += 1
    return graph(name, nodes)[at[0]]
