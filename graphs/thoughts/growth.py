"""The state of a running thought graph: what has ended, what starts next, what no longer matters.

Pure bookkeeping: it runs nothing and draws nothing. Whoever runs the graph (an engine's machine,
or a plain call) asks

    begin()                   -> nodes to start
    ended(node, result, tape) -> nodes to start, nodes to cancel
    finished                  -> whether nothing runs any more
    join(...)                 -> the tape entry of the whole graph

and may `fork` it with its particle. Every decision is a function of values, never of the order in
which nodes end, so that all schedules give one law:

* a node starts when all its parents have values (or one of them has failed, and it is tolerant);
* spawned nodes are adopted as they come; under a budget only when nothing runs, in the order in
  which their makers were made, so that who gets the last of it is not who was faster;
* a node that a choice has passed over is forgotten, whether it had ended or not; should a node
  that is spawned later read it, it runs again, and draws what it drew, since draws are keyed by
  address.

Cost: O(nodes + edges) in total.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lmppl.errors import GraphError
from lmppl.graphs.thoughts.budget import Budget
from lmppl.graphs.thoughts.checks import check_ended, check_given, last_of
from lmppl.graphs.thoughts.cost import Cost, cost_of
from lmppl.graphs.thoughts.node import Failed, Grown, Node, Outcome, Start, runner
from lmppl.graphs.thoughts.record import FORMAT
from lmppl.graphs.thoughts.recording import in_order, record_of
from lmppl.trace import Entry
from lmppl.values import FrozenDict

DORMANT = ("unneeded", "cancelled")
"""Statuses of nodes that do not run, and may be woken by a reader."""
COPIED = (
    "nodes", "status", "values", "missing", "wanted", "maker", "becomes", "reasons", "attempts",
    "costs",
)  # fmt: skip
"""What a fork of a graph has of its own."""


class Growth:
    """The state of one graph in one particle."""

    def __init__(
        self,
        address: str,
        nodes: Sequence[Node],
        options: tuple[Any, ...] = (),
        outputs: Iterable[str] = (),
        budget: Budget | None = None,
    ) -> None:
        """A graph that has not started."""
        self.address = address
        self.given = tuple(nodes)
        self.options = options
        """The handlers around the graph."""
        self.outputs = tuple(outputs)
        self.budget = budget
        self.nodes: dict[str, Node] = {}
        self.status: dict[str, str] = {}
        self.values: dict[str, Any] = {}
        self.missing: dict[str, int] = {}
        """How many parents have no value yet."""
        self.readers: dict[str, list[str]] = {}
        self.wanted: dict[str, int] = {}
        """Why a node matters: its readers, and one more for an output."""
        self.maker: dict[str, str | None] = {}
        self.made: dict[str, list[str]] = {}
        self.becomes: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.attempts: dict[str, int] = {}
        self.costs: dict[str, Cost] = {}
        self.held: list[tuple[str, Outcome]] = []
        self.running = 0
        self.failures = False
        """Whether a node has ever failed."""
        self.speculate = True
        self._starts: list[Start] = []
        self._dropped: set[str] = set()

    def fork(self) -> Growth:
        """A copy for a fork of the particle."""
        new = Growth(self.address, self.given, self.options, self.outputs, self.budget)
        for name in COPIED:
            setattr(new, name, getattr(self, name).copy())
        new.readers = {k: v[:] for k, v in self.readers.items()}
        new.made = {k: v[:] for k, v in self.made.items()}
        new.held = self.held[:]
        new.running, new.speculate, new.failures = self.running, self.speculate, self.failures
        return new

    def certain(self, name: str) -> bool:
        """Whether a node matters whatever the choices will be."""
        todo = [*self.outputs] or last_of(self.given)
        found = set(todo)
        while todo:
            at = todo.pop()
            before = last_of([self.nodes[n] for n in self.made.get(at, ())])
            before += [self.becomes[at]] if at in self.becomes else []
            before += self._asked(self.nodes[at], False) if at in self.nodes else ()
            todo += [p for p in before if p not in found]
            found.update(before)
        return name in found

    # -- for whoever runs it -----------------------------------------------------------------

    def begin(self, speculate: bool = True) -> tuple[list[Start], frozenset[str]]:
        """The nodes that start first; without `speculate`, none that may turn out not to matter."""
        self.speculate = speculate
        self._enter(self.given, None, self.outputs or last_of(self.given))
        return self._told()

    def ended(
        self, name: str, result: Outcome, head: Entry | None
    ) -> tuple[list[Start], frozenset[str]]:
        """What starts, and what is cancelled, because a node has ended with this tape."""
        self.running -= 1
        if head is not None:
            self.costs[name] = cost_of(head)
        if result.attempts > 1:
            self.attempts[name] = result.attempts
        if result.reason is not None:
            self.reasons[name] = result.reason
        if result.becomes is not None:
            self.status[name] = "expanded" if result.reason is None else "replaced"
        else:
            self.status[name] = "failed" if isinstance(result.value, Failed) else "done"
        if result.nodes and self.budget is not None:
            self.held.append((name, result))
        elif result.nodes or result.becomes is not None:
            self._spawn(name, result)
        if result.becomes is None:
            self._settle(name, result.value)
        while self.running == 0 and self.held:
            self._grant()
        return self._told()

    @property
    def finished(self) -> bool:
        """Whether nothing runs."""
        return self.running == 0

    def again(self, name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """How to start a node that has started before."""
        node = self.nodes[name]
        return runner(node), tuple(self.values.get(p) for p in node.parents)

    def rebind(self, fresh: Growth) -> None:
        """Take the functions of the given nodes from another run of the same program."""
        self.given, self.options = fresh.given, fresh.options
        for node in fresh.given:
            self.nodes[node.name] = node

    def join(self, prev: Entry | None, message: Any, branches: Sequence[Any]) -> Entry:
        """The tape entry of the graph, its nodes in the order of the sequential program."""
        stuck = [n for n, s in self.status.items() if s not in DORMANT and n not in self.values]
        check_ended(self.nodes, stuck, self.becomes)
        heads = {b.place: b.head for b in branches}
        order = in_order(self)
        nodes = tuple(record_of(self, name) for name in order)
        values = FrozenDict({n: self.values[n] for n in order if n in self.values})
        grown = Grown(values, FrozenDict({FORMAT: 1, "nodes": nodes}))
        inside = tuple(heads[n] for n in order if n in heads)
        return Entry(
            prev, "plate", self.address, grown, fingerprint=message.fingerprint(), inside=inside
        )

    # -- growing -----------------------------------------------------------------------------

    def _told(self) -> tuple[list[Start], frozenset[str]]:
        starts, self._starts = self._starts, []
        if not self._dropped:
            return starts, frozenset()
        dropped, self._dropped = frozenset(self._dropped), set()
        return starts, dropped

    def _enter(self, nodes: Sequence[Node], maker: str | None, outputs: Iterable[str]) -> None:
        """Take new nodes in, and wake those that an output depends on."""
        for node in nodes:
            self.nodes[node.name], self.maker[node.name] = node, maker
            self.status[node.name] = "unneeded"
        for name in outputs:
            self.wanted[name] = self.wanted.get(name, 0) + 1
            if self.status[name] == "unneeded":
                self._adopt(name)

    def _asked(self, node: Node, speculate: bool) -> tuple[str, ...]:
        """The parents that a node waits for now: of a choice, those up to the first unknown one."""
        if node.accept is None or (speculate and node.speculate):
            return node.parents
        known = 0
        while known < len(node.parents) and node.parents[known] in self.values:
            known += 1
        return node.parents[: known + 1]

    def _adopt(self, first: str) -> None:
        """Let a node wait for its parents, waking those that sleep."""
        todo = [first]
        while todo:
            name = todo.pop()
            node = self.nodes[name]
            self.status[name] = "waiting"
            self.missing[name] = 0
            for p in reversed(self._asked(node, self.speculate)):
                self._read(p, name)
                if p not in self.values:
                    self.missing[name] += 1
                    if self.status.get(p) in DORMANT:
                        self.status[p] = "waking"
                        todo.append(p)
            self._look(name)

    def _read(self, name: str, reader: str) -> None:
        self.readers.setdefault(name, []).append(reader)
        self.wanted[name] = self.wanted.get(name, 0) + 1

    def _look(self, name: str) -> None:
        """Start, skip or decide a waiting node, if its parents allow it."""
        node = self.nodes[name]
        if node.accept is not None:
            self._choose(name, node)
        elif (
            self.failures
            and not node.tolerant
            and any(isinstance(self.values.get(p), Failed) for p in node.parents)
        ):
            self.status[name] = "skipped"
            self._settle(name, Failed("a parent failed"))
        elif self.missing[name] == 0:
            self.status[name] = "running"
            self.running += 1
            values = tuple(self.values[p] for p in node.parents)
            scope = f"{self.address}/{name}/"
            self._starts.append(Start(name, runner(node), values, scope))

    def _choose(self, name: str, node: Node) -> None:
        """The first accepted parent in their order, once those before it are known."""
        if node.accept is None:
            return
        for i, p in enumerate(node.parents):
            if p not in self.values:
                if name not in self.readers.get(p, ()):  # those before it were refused
                    self._read(p, name)
                    if self.status.get(p) in DORMANT:
                        self._adopt(p)
                return
            value = self.values[p]
            if (node.tolerant or not isinstance(value, Failed)) and node.accept(value):
                self.status[name] = "done"
                for later in node.parents[i + 1 :]:
                    self._forget(later, name)
                self._settle(name, value)
                return
        reason = "no alternative was accepted"
        if node.on_failure == "raise":
            raise GraphError(
                f"node {name!r}: {reason}",
                fix='give it on_failure="skip", or a last alternative that is always accepted',
            )
        self.status[name], self.reasons[name] = "failed", reason
        self._settle(name, Failed(reason))

    def _settle(self, first: str, value: Any) -> None:
        """A node has its value: tell all who wait for it."""
        todo = [(first, value)]
        while todo:
            name, value = todo.pop()
            self.values[name] = value
            failed = isinstance(value, Failed)
            self.failures = self.failures or failed
            readers = self.readers.get(name)
            for reader in tuple(readers) if readers else ():
                status = self.status.get(reader)
                if status == "waiting":
                    left = self.missing[reader] = self.missing[reader] - 1
                    if left == 0 or failed or self.nodes[reader].accept is not None:
                        self._look(reader)
                elif status in ("expanded", "replaced") and self.becomes.get(reader) == name:
                    todo.append((reader, value))

    def _spawn(self, name: str, result: Outcome) -> None:
        """Adopt the nodes that a node has made."""
        check_given(result.nodes, ())
        for node in result.nodes:
            if node.name in self.nodes:
                raise GraphError(
                    f"node {name!r} spawns {node.name!r}, and there is one of that name",
                    fix=f"begin the names of its nodes with its own: {name}.{node.name}",
                )
        self.made.setdefault(name, []).extend(n.name for n in result.nodes)
        outputs = [n for n in last_of(result.nodes) if n != result.becomes]
        self._enter(result.nodes, name, outputs)
        if result.becomes is not None:
            self.becomes[name] = result.becomes
            self._read(result.becomes, name)
            if result.becomes in self.values:
                self._settle(name, self.values[result.becomes])
            elif self.status.get(result.becomes) in DORMANT:
                self._adopt(result.becomes)

    def _grant(self) -> None:
        """Under a budget, nothing runs: adopt what was asked for, or refuse it."""
        places = {name: i for i, name in enumerate(self.nodes)}
        held, self.held = sorted(self.held, key=lambda h: places[h[0]]), []
        for name, result in held:
            refusal = self._refusal(name, len(result.nodes))
            if refusal is None:
                self._spawn(name, result)
                continue
            self.reasons[name] = refusal
            if result.otherwise is not None:
                instead = result.otherwise
                self.status[name] = "replaced"
                self._spawn(name, Outcome(None, (instead,), instead.name))
            elif result.becomes is not None:
                self.status[name] = "done" if result.reason is None else "failed"
                lost = result.reason is not None and result.value is None
                self._settle(name, Failed(refusal) if lost else result.value)

    def _refusal(self, name: str, more: int) -> str | None:
        depth, at = 1, self.maker[name]
        while at is not None:
            depth, at = depth + 1, self.maker[at]
        would_be = {
            "nodes": len(self.nodes) + more,
            "depth": depth,
            "tokens": 1 + sum(c.tokens for c in self.costs.values()),
            "calls": 1 + sum(c.calls for c in self.costs.values()),
        }
        return (self.budget or Budget()).refusal(would_be)

    # -- cancelling --------------------------------------------------------------------------

    def _forget(self, name: str, reader: str) -> None:
        """A reader no longer wants a node; without any, it no longer matters."""
        todo = [(name, reader)]
        while todo:
            name, reader = todo.pop()
            readers = self.readers.get(name, [])
            if reader not in readers:
                continue
            readers.remove(reader)
            self.wanted[name] -= 1
            if self.wanted[name] == 0 and self.status.get(name) not in (None, *DORMANT):
                todo += self._drop(name)

    def _drop(self, name: str) -> list[tuple[str, str]]:
        """Cancel a node and those it has made; whom it no longer reads."""
        status = self.status[name]
        if status == "running":
            self.running -= 1
        self.status[name] = "cancelled"
        self._dropped.add(name)
        self._starts = [s for s in self._starts if s.node != name]
        for known in (self.values, self.reasons, self.attempts, self.costs):
            known.pop(name, None)
        self.held = [h for h in self.held if h[0] != name]
        more = [(p, name) for p in self.nodes[name].parents]
        if (other := self.becomes.pop(name, None)) is not None:
            more.append((other, name))
        for child in self.made.pop(name, ()):
            if self.status[child] not in DORMANT:
                more += self._drop(child)
            del self.nodes[child], self.status[child], self.maker[child]
        return more
