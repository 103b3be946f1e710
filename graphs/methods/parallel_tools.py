"""Divide, then aggregate: rounds of tool calls side by side; and trees of calls turned into DAGs.

    divide_then_aggregate(question, think, tools)

A round is a thought, the calls it asks for, run together, and their results joined; the next round
reads them. `tree_to_dag` finds the parallel plan in a sequential trace (a depth-first search that
called one tool after another): u -> v iff v reads a value that u made. No dependency is lost and
the critical path is never longer, since every edge was an order of the trace.

Reference: Zhu et al., Divide-Then-Aggregate: An efficient tool learning method via parallel tool
invocation (ACL 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from lmppl.arguments import check_integers
from lmppl.errors import BadArgument, GraphError
from lmppl.graphs.methods.tools import use
from lmppl.graphs.thoughts.graph import graph
from lmppl.graphs.thoughts.node import Node, NodeFailed, Spawn


class Call(NamedTuple):
    """A tool call: of a round, or of a trace."""

    tool: str
    args: tuple[Any, ...] = ()


class Result(NamedTuple):
    """A call and what came of it; `value` is a `Failed` where it failed."""

    call: Call
    value: Any


Tools = Mapping[str, Callable[..., Any]]
Think = Callable[[Any, tuple[tuple[Result, ...], ...]], Any]
"""think(question, rounds so far) -> a sequence of `Call`s, or the answer (anything else)."""


def divide_then_aggregate(
    question: Any,
    think: Think,
    tools: Tools,
    *,
    rounds: int = 5,
    retries: int = 1,
    name: str = "dta",
) -> Any:
    """The answer, and the rounds before it are nodes; inside a program.

    A call of an unknown tool, with arguments it does not take, or that raises, has a `Failed` as
    its value, and the next thought sees it. Without an answer after `rounds` rounds: `Failed`.
    """
    check_integers("divide_then_aggregate", rounds=rounds)

    def turn(t: int, past: tuple[tuple[Result, ...], ...]) -> Any:
        found = think(question, past)
        if not _is_calls(found):
            return found
        if t == rounds:
            raise NodeFailed(f"no answer after {rounds} rounds")
        calls = [Call(c[0], tuple(c[1])) for c in found]
        nodes = [
            Node(
                f"r{t}.c{i}",
                partial(run_call, tools, c),
                retries=retries,
                kind="call",
                on_failure="skip",
            )  # fmt: skip
            for i, c in enumerate(calls)
        ]

        def join(*values: Any) -> Any:
            now = tuple(Result(c, v) for c, v in zip(calls, values, strict=True))
            return turn(t + 1, (*past, now))

        more = Node(f"thought{t + 1}", join, tuple(n.name for n in nodes), tolerant=True,
                    kind="thought", on_failure="skip")  # fmt: skip
        return Spawn([*nodes, more], becomes=more.name)

    start = Node("thought0", lambda: turn(0, ()), on_failure="skip")
    return graph(name, [start])["thought0"]


def _is_calls(found: Any) -> bool:
    return (
        isinstance(found, Sequence)
        and not isinstance(found, str)
        and len(found) > 0
        and all(isinstance(c, tuple) and len(c) == 2 and isinstance(c[0], str) for c in found)
    )


def run_call(tools: Tools, call: Call) -> Any:
    """One call, as a site named after its tool.

    Raises:
        NodeFailed: an unknown tool, or what the tool raised.
    """
    if call.tool not in tools:
        raise NodeFailed(f"no tool is called {call.tool!r}; there are {', '.join(sorted(tools))}")
    return use("tool", tools[call.tool], *call.args)


# -- from a trace of calls to a DAG ----------------------------------------------------------------


class Traced(NamedTuple):
    """A call of a sequential trace: which values it reads, and its result."""

    name: str
    call: Call
    reads: tuple[str, ...] = ()
    """Names of earlier calls whose results are among its arguments."""


class Ref(NamedTuple):
    """In the arguments of a traced call: the result of another."""

    name: str


def traced(name: str, tool: str, *args: Any) -> Traced:
    """A call whose `Ref` arguments say what it reads.

    >>> traced("b", "add", Ref("a"), 1).reads
    ('a',)
    """
    reads = tuple(dict.fromkeys(a.name for a in args if isinstance(a, Ref)))
    return Traced(name, Call(tool, args), reads)


def tree_to_dag(trace: Iterable[Traced], kept: Iterable[str] | None = None) -> list[Traced]:
    """The calls that matter, each with exactly the calls it reads as its parents.

    Args:
        trace: the calls in the order in which the search made them, dead ends included.
        kept: the calls whose results are used in the end; all when left out. What they do not
            depend on is left away.

    Raises:
        GraphError: a call reads a later one, or one that is not there.
    """
    calls = list(trace)
    seen: dict[str, Traced] = {}
    for c in calls:
        if c.name in seen:
            raise GraphError(f"two calls of the trace are named {c.name!r}")
        for r in c.reads:
            if r not in seen:
                raise GraphError(f"call {c.name!r} reads {r!r}, which is no earlier call")
        seen[c.name] = c
    if kept is None:
        return calls
    todo, needed = list(kept), set(kept)
    if unknown := needed - set(seen):
        raise BadArgument(f"no call of the trace is named {min(unknown)!r}")
    while todo:
        for r in seen[todo.pop()].reads:
            if r not in needed:
                needed.add(r)
                todo.append(r)
    return [c for c in calls if c.name in needed]


def run_dag(calls: Sequence[Traced], tools: Tools, *, name: str = "calls") -> Mapping[str, Any]:
    """Execute a DAG of calls, each when what it reads is there; inside a program."""

    def node(c: Traced) -> Node:
        def run(*values: Any) -> Any:
            known = dict(zip(c.reads, values, strict=True))
            args = tuple(known[a.name] if isinstance(a, Ref) else a for a in c.call.args)
            return run_call(tools, Call(c.call.tool, args))

        return Node(c.name, run, c.reads, kind="call", on_failure="skip")

    found: Mapping[str, Any] = graph(name, [node(c) for c in calls])
    return found


def reduced(calls: Sequence[Traced]) -> list[Traced]:
    """The transitive reduction, for drawing only: edges that a longer path implies are left out."""
    above: dict[str, set[str]] = {}
    out = []
    for c in calls:
        far = set().union(*(above[r] for r in c.reads)) if c.reads else set()
        above[c.name] = far | set(c.reads)
        out.append(c._replace(reads=tuple(r for r in c.reads if r not in far)))
    return out


def depth(calls: Sequence[Traced]) -> int:
    """Rounds of a DAG of calls: those of its longest path."""
    level: dict[str, int] = {}
    for c in calls:
        level[c.name] = 1 + max((level[r] for r in c.reads), default=0)
    return max(level.values(), default=0)
