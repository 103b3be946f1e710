"""The nodes of a thought graph, and what a node may return.

    Node("answer", write, parents=("plan", "facts"))      write(plan, facts) -> value

A node sees the values of its declared parents and nothing else, so the law of a graph is

    Π_v p(v | parents of v) · Π factors,

whatever the order in which its nodes run. `fn` may contain sites: it is a part of the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn

from lmppl.arguments import check_integers
from lmppl.errors import BadArgument, GraphError, LmpplError, excerpt, items_of
from lmppl.frames import is_async
from lmppl.values import FrozenDict, freeze

OnFailure = Literal["raise", "skip"]
NODE_NAME = (
    'names are non-empty texts of at most 200 characters without "/", "[", "]" and line breaks'
)


class NodeFailed(Exception):  # noqa: N818  (it is no error of the program: a node says that it failed)
    """Raised by a node's function: this attempt has failed."""


class Failed(NamedTuple):
    """The value of a node that has failed; false."""

    reason: str

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True)
class Spawn:
    """What a node returns to let the graph grow.

    Args:
        nodes: new nodes; their parents may be any nodes of the graph, old or new.
        value: the node's own value.
        becomes: the name of a node whose value is taken for this one's, as soon as it has one:
            whoever reads this node waits for that one. `value` then only counts where a budget
            refuses the new nodes.
        otherwise: a node that takes over where a budget refuses them, in place of `value`; no
            budget refuses it.

    New names must not occur in the graph yet: begin them with the name of the node that makes them.
    """

    nodes: Sequence[Node] = ()
    value: Any = None
    becomes: str | None = None
    otherwise: Node | None = None

    def __post_init__(self) -> None:
        """Check the nodes."""
        object.__setattr__(self, "nodes", as_nodes(self.nodes))
        if self.otherwise is not None:
            as_nodes([self.otherwise])
            if self.becomes is None:
                raise BadArgument(
                    "a Spawn with otherwise= has no becomes=",
                    why="its own value stands whether or not the new nodes may run",
                    fix='write Spawn(nodes, becomes="end", otherwise=Node("short", fn))',
                )


@dataclass(frozen=True)
class Node:
    """One random variable of a thought graph.

    Args:
        name: unique in its graph; the scope of its sites.
        fn: makes its value of those of its parents, in the order of `parents`. It may contain
            sites, return a `Spawn`, or raise `NodeFailed` (or any exception that is not one of
            this package) to say that the attempt failed.
        parents: names of nodes.
        retries: how many more attempts it has. Only this node runs again. The attempts stay in
            the trace, so the law is that of a program that tries again.
        replan: called after the last attempt with (Failed, *values of the parents); it may return
            a value or a `Spawn` whose nodes take over.
        on_failure: what a failure without `replan` does: "raise" ends the run, "skip" fails this
            node and those that need it.
        tolerant: whether it runs although a parent failed; it then reads `Failed` there.
        accept: makes it a choice, without `fn`: its value is that of the first parent, in their
            order, which this function accepts. The parents after that one do not matter.
        speculate: whether a choice runs all its parents at once, and cancels those that turn out
            not to matter; otherwise each is run when those before it were refused.
        kind: what it is called in pictures and reports.
    """

    name: str
    fn: Callable[..., Any] | None = None
    parents: tuple[str, ...] = ()
    retries: int = 0
    replan: Callable[..., Any] | None = None
    on_failure: OnFailure = "raise"
    tolerant: bool = False
    accept: Callable[[Any], bool] | None = None
    speculate: bool = False
    kind: str = "thought"

    def __post_init__(self) -> None:
        """Check everything that can be checked without the graph."""
        name = self.name
        if not isinstance(name, str) or not name or len(name) > 200 or set(name) & set("/[]\r\n\0"):
            raise BadArgument("this is no name of a node", value=excerpt(name), fix=NODE_NAME)
        fix = f'write Node({name!r}, fn, parents=("first", "second"))'
        parents = tuple(items_of(self.parents, f"node {name!r}: parents are names", fix))
        object.__setattr__(self, "parents", parents)
        if not all(isinstance(p, str) for p in parents):
            raise BadArgument(f"node {name!r}: parents are names", value=excerpt(parents), fix=fix)
        if name in parents:
            raise GraphError(f"node {name!r} is its own parent", fix="a retry is retries=1")
        if len(set(parents)) < len(parents):
            twice = next(p for p in parents if parents.count(p) > 1)
            raise GraphError(f"node {name!r} names its parent {twice!r} twice", fix="name it once")
        if (self.fn is None) == (self.accept is None):
            raise BadArgument(f"node {name!r} needs a function, or accept for a choice", fix=fix)
        for what in (self.fn, self.replan, self.accept):
            if what is not None and not callable(what):
                raise BadArgument(
                    f"node {name!r} needs a function, got {type(what).__name__}",
                    value=excerpt(what),
                    fix=fix,
                )
        check_integers(f"node {name!r}", 0, retries=self.retries)
        if self.on_failure not in ("raise", "skip"):
            raise BadArgument(
                f'node {name!r}: on_failure must be "raise" or "skip", got {self.on_failure!r}',
                fix='write on_failure="skip": this node fails, and those that need it',
            )


def first(
    name: str,
    parents: Iterable[str],
    accept: Callable[[Any], bool] = bool,
    *,
    speculate: bool = False,
    on_failure: OnFailure = "skip",
    tolerant: bool = False,
) -> Node:
    """The first parent, in their order, whose value `accept` accepts; the later ones do not matter.

    Each is asked when those before it were refused. With `speculate` all run together, which takes
    fewer rounds and more tokens, and the later ones are cancelled: they leave nothing in the
    trace, as if they had never been asked. Which one wins depends on values and order, never on
    who was faster, so the law is the same. Engines that list values never speculate.
    """
    return Node(
        name, None, tuple(parents), accept=accept, speculate=speculate, on_failure=on_failure,
        tolerant=tolerant, kind="first",
    )  # fmt: skip


class Outcome(NamedTuple):
    """How a node ended."""

    value: Any
    nodes: tuple[Node, ...] = ()
    becomes: str | None = None
    reason: str | None = None
    """Why it failed."""
    attempts: int = 1
    otherwise: Node | None = None
    """What takes over where a budget refuses the nodes."""


class Start(NamedTuple):
    """A node that starts now."""

    node: str
    fn: Callable[..., Any]
    values: tuple[Any, ...]
    scope: str


class Grown(NamedTuple):
    """The value of the tape entry of a graph."""

    values: FrozenDict
    record: FrozenDict


class Runner:
    """What runs in the strand of a node: its attempts, then its new plan."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        """Keep the node."""
        self.node = node

    def __call__(self, values: tuple[Any, ...]) -> Outcome:
        """Try, try again, plan anew."""
        node, fn, tries, reason = self.node, _function(self.node), 0, ""
        last: Exception | None = None
        while tries <= node.retries:
            tries += 1
            try:
                return _outcome(fn(*values), tries)
            except Exception as error:
                reason, last = _reason(node, error), error
        if node.replan is not None:
            try:
                planned = node.replan(Failed(reason), *values)
                return _outcome(planned, tries)._replace(reason=reason)
            except Exception as error:
                reason, last = _reason(node, error), error
        return _given_up(node, reason, tries, last)


class AsyncRunner(Runner):
    """`Runner` of an `async def` node."""

    __slots__ = ()

    async def fn(self, values: tuple[Any, ...]) -> Outcome:
        """Try, try again, plan anew."""
        node, fn, tries, reason = self.node, _function(self.node), 0, ""
        last: Exception | None = None
        while tries <= node.retries:
            tries += 1
            try:
                return _outcome(await fn(*values), tries)
            except Exception as error:
                reason, last = _reason(node, error), error
        if node.replan is not None:
            try:
                planned = node.replan(Failed(reason), *values)
                if is_async(node.replan):
                    planned = await planned
                return _outcome(planned, tries)._replace(reason=reason)
            except Exception as error:
                reason, last = _reason(node, error), error
        return _given_up(node, reason, tries, last)

    def __call__(self, values: tuple[Any, ...]) -> Any:
        """The coroutine."""
        return self.fn(values)


def runner(node: Node) -> Runner:
    """What starts the strand of a node."""
    return AsyncRunner(node) if is_async(node.fn) else Runner(node)


def _function(node: Node) -> Callable[..., Any]:
    if node.fn is None:
        raise GraphError(f"node {node.name!r} has no function")
    return node.fn


def _outcome(value: Any, attempts: int) -> Outcome:
    if isinstance(value, Spawn):
        nodes, becomes = tuple(value.nodes), value.becomes
        return Outcome(freeze(value.value), nodes, becomes, None, attempts, value.otherwise)
    if isinstance(value, Failed):
        raise NodeFailed(value.reason)
    return Outcome(freeze(value), (), None, None, attempts)


def _reason(node: Node, error: Exception) -> str:
    """Why an attempt failed; errors that mean a wrong program go on."""
    if isinstance(error, (LmpplError, MemoryError)):
        raise error
    if isinstance(error, NodeFailed):
        return str(error) or "failed"
    if node.retries == 0 and node.replan is None and node.on_failure == "raise":
        raise error
    return f"{type(error).__name__}: {error}"


def _given_up(node: Node, reason: str, tries: int, error: Exception | None) -> Outcome | NoReturn:
    if node.on_failure == "raise":
        raise GraphError(
            f"node {node.name!r} failed: {reason}",
            value=f"{tries} attempt{'s' if tries > 1 else ''}",
            why="a failed node has no value for those that read it",
            fix='give it retries, replan=, or on_failure="skip"',
        ) from error
    return Outcome(Failed(reason), (), None, reason, tries)


def as_nodes(nodes: Any) -> tuple[Node, ...]:
    """Check a list of nodes."""
    fix = 'write [Node("a", f), Node("b", g, parents=("a",))]'
    listed = tuple(items_of(nodes, "a graph needs a list of nodes", fix))
    for node in listed:
        if not isinstance(node, Node):
            raise BadArgument(
                f"a graph needs nodes, got {type(node).__name__}", value=excerpt(node), fix=fix
            )
    return listed
