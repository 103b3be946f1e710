"""What a thought graph did, as plain data: its nodes, their texts, parents, weights and costs.

`thought_graphs(trace)` reads them from a trace, of a posterior in memory or of a saved one: each
graph stands there as a derived value at its own address.

| of a graph | |
| --- | --- |
| `total(w)` | Σ w(v), the cost of the sequential program |
| `critical(w)` | max over paths of Σ w(v), the cost when every node starts once its parents end |
| `critical_path(w)` | the nodes of such a path |
| `rounds`, `sequential_rounds` | the two for w = strings drawn or scored one after another |
| `speedup(w)` | total / critical, what parallel hardware can gain at most |
| `to_networkx()` | a networkx DiGraph, to draw it |

Inside a node what it does in parallel itself (a plate, a graph) counts by its own critical path.

Reference: Blumofe and Leiserson, Scheduling multithreaded computations by work stealing (1999):
work and span.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lmppl.arguments import check_instances
from lmppl.errors import BadArgument, GraphError, excerpt

FORMAT = "thoughts"
"""The key of a recorded graph that tells it from any other derived value."""
STATUSES = ("done", "expanded", "failed", "replaced", "skipped", "cancelled", "unneeded")


@dataclass(frozen=True)
class NodeRecord:
    """One node of a thought graph.

    Costs are those of every attempt, whatever came of it; a node that was cancelled has none in a
    trace (the ledger has them).
    """

    id: str
    text: str
    """Its value as text."""
    parents: tuple[str, ...] = ()
    kind: str = "thought"
    status: str = "done"
    """One of `STATUSES`."""
    spawned_by: str | None = None
    becomes: str | None = None
    """The node whose value is taken for this one's: of an expansion, of a new plan."""
    reason: str | None = None
    """Why it failed, was skipped or was refused."""
    attempts: int = 1
    weight: float = 0.0
    """Σ log-weights of its sites."""
    logp: float = 0.0
    """Σ log-probabilities of its samples and observations."""
    calls: int = 0
    """Strings drawn or scored."""
    tokens: int = 0
    """Tokens drawn."""
    effects: int = 0
    span_calls: int = 0
    """`calls` on the longest path inside it."""
    span_tokens: int = 0


Weight = Callable[[NodeRecord], float]


@dataclass(frozen=True)
class GraphRecord:
    """A thought graph after its run."""

    name: str
    nodes: tuple[NodeRecord, ...]

    def __getitem__(self, node: str) -> NodeRecord:
        """The node of this id."""
        for found in self.nodes:
            if found.id == node:
                return found
        known = excerpt([n.id for n in self.nodes])
        raise BadArgument(f"the graph has no node {excerpt(node)}", fix=f"its nodes are: {known}")

    @property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """(parent, child) pairs."""
        return tuple((p, n.id) for n in self.nodes for p in n.parents)

    def total(self, weight: Weight) -> float:
        """Σ weight over the nodes."""
        check_instances("total", Callable, "a function of a node", weight=weight)
        return sum(weight(n) for n in self.nodes)

    def critical_path(self, weight: Weight) -> tuple[str, ...]:
        """The nodes of the heaviest path, first to last."""
        best, via = _longest(self.nodes, weight)
        at = max(best, key=lambda step: best[step], default=None)
        path: list[str] = []
        while at is not None:
            if not at[1]:
                path.append(at[0])
            at = via[at]
        return tuple(reversed(path))

    def critical(self, weight: Weight) -> float:
        """The weight of the heaviest path."""
        check_instances("critical", Callable, "a function of a node", weight=weight)
        return max(_longest(self.nodes, weight)[0].values(), default=0.0)

    @property
    def total_tokens(self) -> int:
        """Tokens drawn."""
        return int(self.total(lambda n: n.tokens))

    @property
    def critical_tokens(self) -> int:
        """Tokens drawn one after another, when everything else runs beside them."""
        return int(self.critical(lambda n: n.span_tokens))

    @property
    def sequential_rounds(self) -> int:
        """Strings drawn or scored: the batches of the sequential program."""
        return int(self.total(lambda n: n.calls))

    @property
    def rounds(self) -> int:
        """Batches of the graph: strings on its longest path."""
        return int(self.critical(lambda n: n.span_calls))

    @property
    def speedup(self) -> float:
        """The bound total / critical, in tokens."""
        return self.total_tokens / self.critical_tokens if self.critical_tokens else 1.0

    def to_networkx(self) -> Any:
        """The graph as a `networkx.DiGraph`, for `render` and for networkx.

        An edge points from the node whose value was read (through `becomes`) to its reader, and
        from a node to those that it made. Node data are the fields of `NodeRecord`, with `kind` as
        in `graph_of`: "latent" where strings were drawn, "effect", or "deterministic"; that of the
        record is `role`.
        """
        import networkx

        by_id = {n.id: n for n in self.nodes}
        found = networkx.DiGraph(program=self.name, plates={}, returns=[])
        for node in self.nodes:
            kind = "latent" if node.calls else "effect" if node.effects else "deterministic"
            data = asdict(node)
            data.update(role=node.kind, kind=kind, law=node.text or node.status, plates=())
            found.add_node(node.id, **data)
        for node in self.nodes:
            if node.spawned_by in by_id:
                found.add_edge(node.spawned_by, node.id, via="control")
            for name in node.parents:
                seen = by_id.get(name)
                while seen is not None and seen.becomes in by_id:
                    seen = by_id[str(seen.becomes)]
                if seen is not None and seen.status not in ("cancelled", "unneeded"):
                    found.add_edge(seen.id, node.id, via="value")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"name": self.name, "nodes": [asdict(n) for n in self.nodes]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> GraphRecord:
        """What `to_dict` wrote."""
        try:
            nodes = tuple(_node(n) for n in value["nodes"])
            return cls(str(value["name"]), nodes)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise BadArgument(
                "this is no recorded thought graph",
                value=excerpt(value),
                fix="give what GraphRecord.to_dict() made",
            ) from error


def _node(value: Mapping[str, Any]) -> NodeRecord:
    known = {f.name for f in fields(NodeRecord)}
    given = {k: v for k, v in value.items() if k in known}
    return NodeRecord(**{**given, "parents": tuple(given.get("parents", ()))})


Step = tuple[str, bool]
"""A node, and whether its value is meant: its own end comes first where it becomes another."""


def _longest(
    nodes: Iterable[NodeRecord], weight: Weight
) -> tuple[dict[Step, float], dict[Step, Step | None]]:
    """For each step the weight of the heaviest path to it, and the step before it there."""
    by_id = {n.id: n for n in nodes}
    gone = {n.id for n in nodes if n.status in ("cancelled", "unneeded")}

    def before(step: Step) -> list[Step]:
        node = by_id[step[0]]
        if step[1]:
            more = [] if node.becomes not in by_id else [(str(node.becomes), True)]
            return [(node.id, False), *more]
        made = [] if node.spawned_by not in by_id else [(str(node.spawned_by), False)]
        return made + [(p, True) for p in node.parents if p in by_id and p not in gone]

    best: dict[Step, float] = {}
    via: dict[Step, Step | None] = {}
    entered: set[Step] = set()
    for node in by_id:
        stack: list[Step] = [(node, True)]
        while stack:
            step = stack[-1]
            if step in best:
                stack.pop()
                continue
            missing = [s for s in before(step) if s not in best]
            if missing:
                if step in entered:
                    raise GraphError(f"node {step[0]!r} waits for itself")
                entered.add(step)
                stack += missing
                continue
            last = max(before(step), key=lambda s: best[s], default=None)
            own = 0.0 if step[1] else weight(by_id[step[0]])
            best[step], via[step] = own + (0.0 if last is None else best[last]), last
            stack.pop()
    return best, via


def shown(value: Any) -> str:
    """The value of a node as text."""
    if isinstance(value, str):
        return str(value)
    return "" if value is None else excerpt(value, 2000)


def is_recorded(value: Any) -> bool:
    """Whether a derived value is a recorded graph."""
    return isinstance(value, Mapping) and FORMAT in value and "nodes" in value


def thought_graphs(trace: Any) -> tuple[GraphRecord, ...]:
    """The thought graphs of a trace, in the order in which they ended: inner ones first."""
    sites = getattr(trace, "sites", None)
    if sites is None:
        raise BadArgument(
            "thought_graphs reads a trace",
            value=excerpt(trace, 60),
            fix="write thought_graphs(posterior.traces[0])",
        )
    return tuple(
        GraphRecord.from_dict({"name": e.address, "nodes": e.value["nodes"]})
        for e in sites
        if e.op == "deterministic" and is_recorded(e.value)
    )


def thought_graph(trace: Any, name: str | None = None) -> GraphRecord:
    """One thought graph of a trace: the outermost last one, or that of an address."""
    found = thought_graphs(trace)
    for graph in reversed(found):
        if name is None or graph.name == name:
            return graph
    raise BadArgument(
        "the trace has no thought graph" + ("" if name is None else f" at {name!r}"),
        value=excerpt([g.name for g in found]),
        fix='write graph("plan", nodes) in the program, and give its address',
    )
