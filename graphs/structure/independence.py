"""What says something about what: Markov blankets and d-separation on a program's graph (networkx).

Observed sites, factors and parameters are always given, since a posterior is conditioned on them.
A derived value all of whose parents are given is given too (Geiger, Verma and Pearl, Identifying
independence in Bayesian networks, 1990: D-separation). Independence that the graph does not show
may hold by the numbers; and a missing edge of `graph_of` is a finding of the values it tried.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, cast

from lmppl.arguments import check_instances
from lmppl.errors import BadArgument, excerpt

GIVEN = ("observed", "factor", "param")
"""Kinds that are conditioned on in every posterior."""
Node = Hashable


def _nodes(graph: Any, nodes: Node | Iterable[Node]) -> set[Node]:
    """One node or several, all of them in the graph."""
    check_graph("d-separation", graph)
    if isinstance(nodes, str) or not isinstance(nodes, Iterable) or _is_node(graph, nodes):
        found: set[Node] = {cast(Node, nodes)}
    else:
        found = set(nodes)
    if unknown := [n for n in found if n not in graph]:
        raise BadArgument(
            f"the graph has no site {unknown[0]!r}",
            fix=f"the sites are: {', '.join(str(n) for n in list(graph)[:20])}",
        )
    return found


def _is_node(graph: Any, value: Any) -> bool:
    try:
        return value in graph
    except TypeError:  # a set or a list
        return False


def check_graph(caller: str, graph: Any) -> None:
    """A directed graph of networkx.

    Raises:
        BadArgument: it is something else.
    """
    import networkx

    check_instances(caller, networkx.DiGraph, "a networkx.DiGraph", graph=graph)


def markov_blanket(graph: Any, node: Node) -> set[Node]:
    """Parents, children and the children's other parents: given these, no other site matters.

    >>> import networkx
    >>> sorted(markov_blanket(networkx.DiGraph([("a", "b"), ("b", "c"), ("d", "c"), ("c", "e")]), "b"))
    ['a', 'c', 'd']
    """
    if len(_nodes(graph, node)) != 1 or not _is_node(graph, node):
        raise BadArgument(
            f"a blanket is of one node, got {excerpt(node)}", fix='write markov_blanket(graph, "x")'
        )
    blanket = set(graph.predecessors(node))
    for child in graph.successors(node):
        blanket |= {child, *graph.predecessors(child)}
    return blanket - {node}


def given_by(graph: Any, given: Iterable[Node] = (), *, data: bool = True) -> set[Node]:
    """`given`, what is conditioned on anyway, and every derived value that these determine."""
    known = set(given)
    kinds = dict(graph.nodes(data="kind"))
    if data:
        known |= {n for n, kind in kinds.items() if kind in GIVEN}
    derived = [n for n, kind in kinds.items() if kind == "deterministic"]
    while True:
        more = [n for n in derived if n not in known and known.issuperset(graph.predecessors(n))]
        if not more:
            return known
        known.update(more)


def d_separated(
    graph: Any,
    x: Node | Iterable[Node],
    y: Node | Iterable[Node],
    given: Node | Iterable[Node] = (),
    *,
    data: bool = True,
) -> bool:
    """Whether x and y are independent given `given`, for every choice of the laws.

    Args:
        graph: a DAG.
        x: a site, or several.
        y: a site, or several.
        given: sites whose values are known, besides the data.
        data: whether observed sites and factors are known, as they are in a posterior.

    >>> import networkx
    >>> collider = networkx.DiGraph([("rain", "wet"), ("sprinkler", "wet")])
    >>> d_separated(collider, "rain", "sprinkler"), d_separated(collider, "rain", "sprinkler", "wet")
    (True, False)
    """
    import networkx

    left, right = _nodes(graph, x), _nodes(graph, y)
    if left & right:
        raise BadArgument(
            f"{next(iter(left & right))!r} stands on both sides", fix="give disjoint sets of sites"
        )
    asked = _nodes(graph, given)
    if asked & (left | right):
        raise BadArgument(
            f"{next(iter(asked & (left | right)))!r} is asked about and given",
            fix="leave it out of given",
        )
    known = given_by(graph, asked, data=data)
    left, right = left - known, right - known  # what is known is independent of everything
    return not left or not right or bool(networkx.is_d_separator(graph, left, right, known))


def relevant(graph: Any, targets: Node | Iterable[Node]) -> set[Node]:
    """The sites that the posterior of the targets can depend on: all others may be left out.

    A site that is no ancestor of a target or of data is barren, and one that the data separate
    from the targets says nothing about them (Shachter, Bayes-ball, 1998).
    """
    import networkx

    asked = _nodes(graph, targets)
    known = given_by(graph)
    kept = asked | known
    kept |= {a for n in kept for a in networkx.ancestors(graph, n)}
    small = graph.subgraph(kept)
    out = set(asked)
    for n in kept - asked:
        if n in known:
            near = set(small.predecessors(n)) | {n}
            if any(not _apart(small, p, asked) for p in near - known) or near & asked:
                out.add(n)
        elif not _apart(small, n, asked):
            out.add(n)
    return out


def _apart(graph: Any, node: Node, targets: set[Node]) -> bool:
    return node not in targets and d_separated(graph, node, targets)
