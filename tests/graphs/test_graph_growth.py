"""Thought graphs that grow: failure and new plans, shared budgets, what cannot run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx
import pytest

from lmppl import LM, call, effect, program, sample
from lmppl.errors import BadArgument, GraphError, SiteError
from lmppl.graphs import (
    Budget,
    Failed,
    Node,
    NodeFailed,
    Spawn,
    dot,
    graph,
    mermaid,
    render_svg,
    thought_graph,
)
from lmppl.inference import Enumerate, Importance, infer
from lmppl.lm.table import TableLM

AB = TableLM(
    ["a", "b", "<eos>"],
    {(): [0.5, 0.3, 0.2], (0,): [0.25, 0.35, 0.4], (1,): [0.6, 0.0, 0.4], (2,): [0.5, 0.3, 0.2]},
    name="ab",
)


def write(*read: str) -> Any:
    """A text that depends on the last letter of what it reads."""
    return sample("text", LM("a" + "".join(read), max_tokens=1))


def test_a_failed_node_is_planned_anew_and_its_ancestors_do_not_run_again() -> None:
    ran: list[str] = []

    def tool(name: str) -> str:
        ran.append(name)
        return name

    def broken(name: str) -> Callable[..., Any]:
        def node(*read: str) -> Any:
            effect("tool", tool, name)
            raise NodeFailed("no such page")

        return node

    def works(name: str) -> Callable[..., Any]:
        return lambda *read: effect("tool", tool, name) + "<" + ",".join(read)

    def replan(failed: Failed, *read: str) -> Any:
        assert failed.reason == "no such page" and read == ("root<",)
        return Spawn([Node("search.again", works("again"), ("root",))], becomes="search.again")

    @program
    def search() -> Any:
        nodes = [
            Node("root", works("root")),
            Node("search", broken("search"), ("root",), retries=1, replan=replan),
            Node("end", works("end"), ("search",)),
        ]
        return graph("g", nodes)["end"]

    run = infer(search, engine=Importance(1), lm=AB)
    assert run.traces[0].result == "end<again<root<"
    assert ran == ["root", "search", "search", "again", "end"]
    record = thought_graph(run.traces[0])
    assert {n.id: n.status for n in record.nodes} == {
        "root": "done", "search": "replaced", "search.again": "done", "end": "done",
    }  # fmt: skip
    assert (record["search"].attempts, record["search"].becomes) == (2, "search.again")
    assert record["search"].effects == 2


def test_a_failure_reaches_descendants_only() -> None:
    def fail() -> Any:
        raise ValueError("unreadable")

    nodes = [
        Node("bad", fail, on_failure="skip"),
        Node("good", lambda: 1),
        Node("below", lambda x: x, ("bad",)),
        Node("beside", lambda x: x + 1, ("good",)),
        Node("all", lambda *found: sum(bool(f) for f in found), ("below", "beside"), tolerant=True),
    ]

    @program
    def partly() -> Any:
        return graph("g", nodes)

    found = infer(partly, engine=Importance(1)).traces[0].result
    assert found["bad"] == Failed("ValueError: unreadable") and not found["below"]
    assert (found["beside"], found["all"]) == (2, 1)
    assert [n.status for n in found.record.nodes] == ["failed", "done", "skipped", "done", "done"]
    with pytest.raises(GraphError, match="node 'bad' failed"):
        infer(program(lambda: graph("g", [Node("bad", fail, retries=2)])), engine=Importance(1))
    with pytest.raises(SiteError, match="ValueError: unreadable"):
        infer(program(lambda: graph("g", [Node("bad", fail)])), engine=Importance(1))


# -- the law of a graph that grows -------------------------------------------------------------------


def splitting(name: str, most: int) -> Callable[[], Any]:
    """A node that splits in two when it has drawn an a; a last one reads both halves."""

    def node() -> Any:
        text = write()
        if text != "a" or most == 0:
            return text
        made = [Node(f"{name}.{i}", splitting(f"{name}.{i}", most - 1)) for i in range(2)]
        end = Node(f"{name}.end", write, tuple(m.name for m in made))
        return Spawn([*made, end], value=text, becomes=end.name)

    return node


@program
def grows(most: int, budget: Budget | None = None) -> Any:
    return graph("g", [Node("r", splitting("r", most))], budget=budget)["r"]


@program
def by_recursion(most: int) -> Any:
    """The same without a graph, at the same addresses."""

    def split(name: str, most: int) -> str:
        text: str = call(write, name=name)
        if text != "a" or most == 0:
            return text
        halves = [split(f"{name}.{i}", most - 1) for i in range(2)]
        end: str = call(write, *halves, name=f"{name}.end")
        return end

    return call(lambda: split("r", most), name="g")


@pytest.mark.parametrize("most", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_graph_that_grows_has_the_law_of_the_recursion(most: int) -> None:
    found, exact = (infer(p, most, engine=Enumerate(), lm=AB) for p in (grows, by_recursion))
    assert len(found) == len(exact)
    assert found.log_evidence == pytest.approx(exact.log_evidence, abs=1e-10)
    assert all(abs(found.marginal()[v] - p) < 1e-10 for v, p in exact.marginal().items())


@pytest.mark.parametrize("seed", range(6))
def test_a_graph_that_grows_is_bit_equal_to_the_recursion(seed: int) -> None:
    one, other = (
        infer(p, 4, engine=Importance(12), lm=AB, seed=seed) for p in (grows, by_recursion)
    )
    sites = [
        {e.address: (e.value, e.logp, e.logw) for e in trace.sites if e.op == "sample"}
        for run in (one, other)
        for trace in run.traces
    ]
    assert sites[:12] == sites[12:] and len({len(s) for s in sites}) > 1
    assert one.log_weights.tolist() == other.log_weights.tolist()


def test_a_record_is_a_graph_that_can_be_drawn() -> None:
    @program
    def planned() -> Any:
        def plan() -> Any:
            parts = [Node(n, write) for n in ("a", "b")]
            end = Node("end", lambda *read: effect("join", "".join, read), ("a", "b"))
            return Spawn([*parts, end], becomes="end")

        return graph("g", [Node("plan", plan), Node("after", lambda x: x, ("plan",))])["after"]

    found = thought_graph(infer(planned, engine=Importance(1), lm=AB).traces[0]).to_networkx()
    assert set(found.edges) == {
        ("plan", "a"), ("plan", "b"), ("plan", "end"), ("a", "end"), ("b", "end"), ("end", "after"),
    }  # fmt: skip
    assert dict(found.nodes(data="kind")) == {
        "plan": "deterministic", "a": "latent", "b": "latent", "end": "effect", "after": "deterministic",
    }  # fmt: skip
    for picture in (render_svg(found), mermaid(found), dot(found)):
        assert all(name in picture for name in found)
    for trace in infer(grows, 3, Budget(nodes=9), engine=Importance(40), lm=AB).traces:
        grown = thought_graph(trace).to_networkx()
        order = {n: i for i, n in enumerate(networkx.topological_sort(grown))}
        assert len(order) == len(thought_graph(trace).nodes)


@pytest.mark.parametrize("budget", [Budget(nodes=5), Budget(calls=3), Budget(depth=1)], ids=str)
def test_who_gets_the_last_of_a_budget_does_not_depend_on_the_schedule(budget: Budget) -> None:
    """All nodes at once, and one after the other."""

    one, other = (
        infer(grows, 4, budget, engine=Importance(60), lm=AB, driver=driver)
        for driver in ("greenlet", "eager")
    )
    assert [t.result for t in one.traces] == [t.result for t in other.traces]
    records = [thought_graph(t) for t in one.traces]
    assert records == [thought_graph(t) for t in other.traces]
    assert any("budget of" in (n.reason or "") for record in records for n in record.nodes)


def test_what_a_budget_refuses_another_node_does() -> None:
    @program
    def cut(budget: Budget | None) -> Any:
        def plan() -> Any:
            long = Node("long", lambda: "long")
            return Spawn([long], becomes="long", otherwise=Node("short", lambda x: x, ("x",)))

        return graph("g", [Node("x", lambda: "short"), Node("plan", plan)], budget=budget)

    full = infer(cut, None, engine=Importance(1)).traces[0].result
    found = infer(cut, Budget(nodes=2), engine=Importance(1)).traces[0].result
    assert full["plan"] == "long" and "short" not in full
    assert found["plan"] == "short" and "long" not in found
    assert (found.record["plan"].status, found.record["plan"].becomes) == ("replaced", "short")
    assert found.record["plan"].reason == "budget of 2 nodes"
    with pytest.raises(BadArgument, match=r"otherwise= has no becomes="):
        Spawn([Node("a", write)], otherwise=Node("b", write))


def test_a_new_plan_that_fails_is_a_failure() -> None:
    def fail(*_: Any) -> Any:
        raise NodeFailed("no way")

    nodes = [Node("a", fail, replan=fail, on_failure="skip"), Node("b", lambda a: a, ("a",))]
    found = infer(program(lambda: graph("g", nodes)), engine=Importance(1)).traces[0].result
    assert found["a"] == Failed("no way") and found.record["b"].status == "skipped"


# -- budgets, and what cannot run --------------------------------------------------------------------


def recursive(name: str, most: int) -> Callable[[], Any]:
    def node() -> Any:
        write()
        if most == 0:
            return 1
        made = [Node(f"{name}.{i}", recursive(f"{name}.{i}", most - 1)) for i in range(2)]
        total = Node(f"{name}.sum", lambda *n: 1 + sum(n), tuple(m.name for m in made))
        return Spawn([*made, total], value=1, becomes=f"{name}.sum")

    return node


@pytest.mark.parametrize(
    ("budget", "expected", "calls"),
    [
        (None, 15, 15),
        (Budget(depth=1), 3, 3),
        (Budget(depth=0), 1, 1),
        (Budget(nodes=10), 7, 7),
        (Budget(nodes=9), 5, 5),
        (Budget(calls=4), 7, 7),
        (Budget(calls=3), 3, 3),
        (Budget(tokens=2), 3, 3),
    ],
    ids=str,
)
def test_budgets_are_shared_and_do_not_depend_on_the_order(
    budget: Budget | None, expected: int, calls: int
) -> None:
    @program
    def tree() -> Any:
        return graph("g", [Node("r", recursive("r", 3))], budget=budget)

    run = infer(tree, engine=Importance(1), lm=AB, seed=1)
    found = run.traces[0].result
    assert found["r"] == expected
    assert run.ledger.calls == calls
    if budget is not None and expected < 15:
        assert any((n.reason or "").startswith("budget of") for n in found.record.nodes)


def test_impossible_graphs_are_refused_before_anything_runs() -> None:
    def run(*nodes: Node, **options: Any) -> None:
        infer(program(lambda: graph("g", nodes, **options)), engine=Importance(1))

    none = lambda *_: 1  # noqa: E731
    with pytest.raises(GraphError, match="cycle: ((a -> b -> a)|(b -> a -> b))"):
        run(Node("a", none, ("b",)), Node("b", none, ("a",)))
    with pytest.raises(GraphError, match="its own parent"):
        Node("a", none, ("a",))
    with pytest.raises(GraphError, match="'b' twice"):
        Node("a", none, ("b", "b"))
    with pytest.raises(GraphError, match="two nodes are called 'a'"):
        run(Node("a", none), Node("a", none))
    with pytest.raises(GraphError, match="waits for 'plam'(.|\n)*did you mean 'plan'"):
        run(Node("plan", none), Node("b", none, ("plam",)))
    with pytest.raises(GraphError, match="spawns 'a', and there is one"):
        run(Node("a", lambda: Spawn([Node("a", none)])))
    with pytest.raises(GraphError, match="cycle"):
        run(Node("a", lambda: Spawn([Node("c", none, ("d",)), Node("d", none, ("c",))])))
    with pytest.raises(GraphError, match="'outputs' waits for 'z'"):
        run(Node("a", none), outputs="z")
