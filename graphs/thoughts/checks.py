"""What is wrong with a graph that cannot run, said before it runs or when it is stuck."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from lmppl.errors import GraphError
from lmppl.graphs.thoughts.node import Node


def check_given(nodes: Sequence[Node], outputs: Sequence[str]) -> None:
    """Refuse a graph that cannot run, before it does."""
    by_name: dict[str, Node] = {}
    for node in nodes:
        if node.name in by_name:
            raise GraphError(f"two nodes are called {node.name!r}", fix="rename one")
        by_name[node.name] = node
    for name in outputs:
        if name not in by_name:
            raise missing_parent("outputs", name, by_name)
    left = {n.name: sum(p in by_name for p in n.parents) for n in nodes}
    readers: dict[str, list[str]] = {}
    for node in nodes:
        for p in node.parents:
            readers.setdefault(p, []).append(node.name)
    free = [n for n, k in left.items() if k == 0]
    while free:
        name = free.pop()
        del left[name]
        for reader in readers.get(name, ()):
            left[reader] -= 1
            if left[reader] == 0:
                free.append(reader)
    if left:
        raise cycle(by_name, list(left), {})


def check_ended(
    nodes: Mapping[str, Node], stuck: Sequence[str], becomes: Mapping[str, str]
) -> None:
    """When nothing runs any more, whoever waits would wait for ever."""
    if not stuck:
        return
    for name in stuck:
        for p in (*nodes[name].parents, becomes.get(name)):
            if p is not None and p not in nodes:
                raise missing_parent(name, p, nodes)
    raise cycle(nodes, stuck, becomes)


def cycle(
    nodes: Mapping[str, Node], stuck: Sequence[str], becomes: Mapping[str, str]
) -> GraphError:
    """The error of nodes that wait for each other."""
    return GraphError(
        "the graph has a cycle: " + " -> ".join(cycle_of(nodes, stuck, becomes)),
        why="each of these nodes waits for the one before it",
        fix="take one of the edges out; a step back is a new node with a name of its own",
    )


def missing_parent(name: str, parent: str, nodes: Iterable[str]) -> GraphError:
    """The error of a parent that is no node."""
    near = difflib.get_close_matches(parent, list(nodes), 1)
    return GraphError(
        f"node {name!r} waits for {parent!r}, which is no node of the graph",
        fix=f"did you mean {near[0]!r}?" if near else "add the node, or leave the edge out",
    )


def cycle_of(
    nodes: Mapping[str, Node], stuck: Sequence[str], becomes: Mapping[str, str]
) -> list[str]:
    """A cycle among nodes that wait for each other, its first node twice."""
    inside = set(stuck)
    path, at = [], stuck[0]
    while at not in path:
        path.append(at)
        before = [*nodes[at].parents, *([becomes[at]] if at in becomes else [])]
        waits = [p for p in before if p in inside]
        if not waits:
            return path
        at = waits[0]
    return [*path[path.index(at) :], at][::-1]


def last_of(nodes: Sequence[Node]) -> list[str]:
    """The nodes that none of them reads."""
    read = {p for node in nodes for p in node.parents}
    return [node.name for node in nodes if node.name not in read]
