"""`graph`: run a thought graph inside a program.

    graph(name, [Node(...), ...]) -> Thoughts        a mapping from node to value

A graph is a part of the program like a plate: each node is a strand with the scope `name/node/`,
which starts as soon as its parents have ended. All strings that wait, of all nodes, particles and
questions, are one batch. Every engine runs it, so it has a posterior, an evidence and a ledger.

    law: Π_v p(v | parents of v) · Π factors        whatever the schedule

Draws are keyed by address, reads are limited to parents, and the graph grows by values alone: so
the parallel run equals the sequential one bit for bit under one seed (a plain call runs the nodes
one after the other).

References: Pearl, Probabilistic Reasoning in Intelligent Systems (1988), the law; Besta et al.,
Graph of Thoughts (2024); Pandey et al., Adaptive Graph of Thoughts (2025).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lmppl.context import Context, current
from lmppl.graphs.thoughts.budget import Budget
from lmppl.graphs.thoughts.checks import check_given
from lmppl.graphs.thoughts.growth import Growth
from lmppl.graphs.thoughts.node import Grown, Node, as_nodes
from lmppl.graphs.thoughts.record import GraphRecord
from lmppl.messages import Message


class Thoughts(Mapping[str, Any]):
    """The values of the nodes that have one, by name; `Failed` for those that failed."""

    __slots__ = ("_grown", "address")

    def __init__(self, address: str, grown: Grown) -> None:
        """Keep them."""
        self.address = address
        self._grown = grown

    def __getitem__(self, name: str) -> Any:
        return self._grown.values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._grown.values)

    def __len__(self) -> int:
        return len(self._grown.values)

    @property
    def record(self) -> GraphRecord:
        """Status, parents, weight and cost of each node."""
        return GraphRecord.from_dict({"name": self.address, "nodes": self._grown.record["nodes"]})

    def __repr__(self) -> str:
        return f"Thoughts({dict(self)!r:.200})"


class _Recorded(Message):
    """The record of a graph as a derived value: it is a function of sites that replay checks."""

    def fingerprint(self) -> int:
        """Not checked once more."""
        return 0


def graph(
    name: str,
    nodes: Iterable[Node],
    *,
    outputs: Iterable[str] = (),
    budget: Budget | None = None,
) -> Any:
    """Run a thought graph; an `async def` program awaits it.

    Args:
        name: the site's name; nodes have the scope `name/node/`.
        nodes: the nodes to begin with, in any order; their functions may spawn more (`Spawn`).
        outputs: nodes whose values are wanted; what they do not depend on is not run. All nodes
            when left out.
        budget: limits that all nodes share.

    Returns:
        The values of the nodes by name: `Thoughts`.

    Raises:
        GraphError: a cycle, a missing parent, a name that occurs twice, a node that failed.

    >>> from lmppl import Uniform, handlers, program, sample
    >>> from lmppl.graphs import Node, graph
    >>> @program
    ... def two_dice():
    ...     def die():
    ...         return sample("eyes", Uniform([1, 2, 3, 4, 5, 6]))
    ...     found = graph("throw", [
    ...         Node("a", die),
    ...         Node("b", die),
    ...         Node("sum", lambda a, b: a + b, parents=("a", "b")),
    ...     ])
    ...     return found["sum"]
    >>> 2 <= handlers.seed(two_dice, 0)() <= 12
    True
    """
    ctx = current("graph")
    listed = as_nodes(nodes)
    wanted = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    check_given(listed, wanted)
    address = ctx.address(name)
    message = Message("plate", name, address)
    message.args = listed
    message.grow = Growth(address, listed, tuple(ctx.handlers), wanted, budget)
    if ctx.is_async:
        return _run_async(ctx, message)
    return _thoughts(ctx, message, ctx.perform(message))


async def _run_async(ctx: Context, message: Message) -> Thoughts:
    grown = await ctx.perform(message)
    await ctx.perform(_record(message, grown))
    return Thoughts(message.address, grown)


def _record(message: Message, grown: Grown) -> Message:
    return _Recorded("deterministic", message.name, message.address, value=grown.record)


def _thoughts(ctx: Context, message: Message, grown: Grown) -> Thoughts:
    ctx.perform(_record(message, grown))
    return Thoughts(message.address, grown)
