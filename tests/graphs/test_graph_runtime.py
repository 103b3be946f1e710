"""Thought graphs run in parallel and mean what the sequential program means."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from lmppl import LM, Uniform, call, effect, factor, observe, plate, program, sample
from lmppl.errors import GraphError, SiteError
from lmppl.graphs import (
    Budget,
    Failed,
    GraphRecord,
    Node,
    NodeFailed,
    Spawn,
    first,
    graph,
    thought_graph,
    thought_graphs,
)
from lmppl.inference import SMC, Enumerate, Importance, infer, infer_many, tokens
from lmppl.inference.machine.growing import Growing
from lmppl.lm.table import TableLM
from lmppl.testing import LawBroken, assert_properly_weighted

AB = TableLM(
    ["a", "b", "<eos>"],
    {(): [0.5, 0.3, 0.2], (0,): [0.25, 0.35, 0.4], (1,): [0.6, 0.0, 0.4], (2,): [0.5, 0.3, 0.2]},
    name="ab",
)
Edges = Sequence[Sequence[int]]
DIAMOND: Edges = ((), (0,), (0,), (1, 2))


def write(*read: str) -> Any:
    """A node of every test: a text that depends on the last letter of what it reads."""
    return sample("text", LM("a" + "".join(read), max_tokens=1))


def random_dag(rng: np.random.Generator, n: int) -> Edges:
    """Node j has one or two random earlier parents."""
    some = [rng.choice(j, size=min(j, int(rng.integers(1, 3))), replace=False) for j in range(n)]
    return [tuple(sorted(int(p) for p in parents)) for parents in some]


def nodes_of(edges: Edges, fn: Callable[..., Any] = write) -> list[Node]:
    return [Node(f"n{j}", fn, tuple(f"n{p}" for p in ps)) for j, ps in enumerate(edges)]


@program
def parallel(edges: Edges, weigh: bool = False) -> Any:
    """All nodes, the last ones first: the order in which they are given plays no part."""
    found = graph("g", reversed(nodes_of(edges)))
    texts = tuple(found[f"n{j}"] for j in range(len(edges)))
    if weigh:
        factor("good", 0.7 * sum(t == "a" for t in texts))
    return texts


@program
def sequential(edges: Edges, weigh: bool = False) -> Any:
    """The same, one node after the other, at the same addresses."""

    def body() -> tuple[str, ...]:
        texts: list[str] = []
        for j, parents in enumerate(edges):
            texts.append(call(write, *(texts[p] for p in parents), name=f"n{j}"))
        return tuple(texts)

    texts = call(body, name="g")
    if weigh:
        factor("good", 0.7 * sum(t == "a" for t in texts))
    return texts


# -- the law ------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["greenlet", "eager"])
@pytest.mark.parametrize("edges", [DIAMOND, ((), (), (0, 1), (0,), (2,)), ((),)], ids=str)
def test_law_is_that_of_the_sequential_program(edges: Edges, driver: str) -> None:
    one = infer(parallel, edges, True, engine=Enumerate(), lm=AB, driver=driver)
    other = infer(sequential, edges, True, engine=Enumerate(), lm=AB)
    assert one.log_evidence == pytest.approx(other.log_evidence, abs=1e-10)
    a, b = one.marginal(), other.marginal()
    assert set(a) == set(b)
    assert all(abs(a[v] - b[v]) < 1e-10 for v in b)


@pytest.mark.parametrize("seed", range(12))
def test_bit_equal_to_the_sequential_program(seed: int) -> None:
    """Draws are keyed by address: values and weights agree to the last bit, forks included."""
    edges = random_dag(np.random.default_rng(seed), 12)
    runs = [
        infer(p, edges, True, engine=Importance(5), lm=AB, seed=seed)
        for p in (parallel, sequential)
    ]
    for mine, theirs in zip(*(r.traces for r in runs), strict=True):
        assert mine.result == theirs.result
        for address in (f"g/n{j}/text" for j in range(12)):
            x, y = mine.site(address), theirs.site(address)
            assert (x.value, x.logp, x.logq, x.logw) == (y.value, y.logp, y.logq, y.logw)
            assert x.value.token_ids.tolist() == y.value.token_ids.tolist()
    assert runs[0].log_weights.tolist() == runs[1].log_weights.tolist()


@pytest.mark.slow
def test_total_variation_at_20000_runs() -> None:
    """TV between the drawn joint law of two nodes and the exact one of the sequential program.

    The standard error of a frequency is at most ½ / √R = 0.0035; that the two programs have the
    same draws is tested above.
    """

    def ends(trace: Any) -> Any:
        return trace.result[0], trace.result[3]

    exact = infer(sequential, DIAMOND, engine=Enumerate(), lm=AB).marginal(ends)
    drawn = infer(parallel, DIAMOND, engine=Importance(20_000), lm=AB, seed=3).marginal(ends)
    keys = set(exact) | set(drawn)
    assert 0.5 * sum(abs(drawn.get(k, 0.0) - exact.get(k, 0.0)) for k in keys) <= 0.01


@program
def weighted_inside() -> Any:
    """Nodes that weigh, a node that draws twice, one that spawns: everything SMC forks through."""

    def hint() -> Any:
        text = sample("text", LM("a", max_tokens=1))
        factor("long", 0.5 if text else -0.5)
        return text

    def judge(text: str) -> Any:
        observe("verdict", LM(f"b{text}", max_tokens=1), "a")
        return text

    def plan(text: str) -> Any:
        if text != "a":
            return "done"
        more = Node("plan.more", lambda t: t + sample("again", LM(t, max_tokens=1)), ("hint",))
        return Spawn([more], becomes="plan.more")

    found = graph(
        "g",
        [
            Node("hint", hint),
            Node("judge", judge, ("hint",)),
            Node("plan", plan, ("hint",)),
            Node("both", lambda a, b: f"{a}+{b}", ("judge", "plan")),
        ],
    )
    return found["both"]


@pytest.mark.parametrize("driver", ["greenlet", "eager"])
@pytest.mark.parametrize(
    "engine",
    [
        Importance(2),
        SMC(2, resample_at="site", always=True),
        SMC(2, resample_at="factor", always=True),
        pytest.param(
            SMC(2, resample_at=tokens(1), always=True, resampling="multinomial"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda e: f"{type(e).__name__}-{getattr(e, 'resample_at', '')}",
)
def test_properly_weighted(engine: Any, driver: str) -> None:
    assert_properly_weighted(weighted_inside, engine=engine, lm=AB, driver=driver, atol=1e-10)


def test_engines_agree_on_an_async_program() -> None:
    @program
    async def asynchronous(edges: Edges) -> Any:
        async def node(*read: str) -> Any:
            return await sample("text", LM("a" + "".join(read), max_tokens=1))

        found = await graph("g", nodes_of(edges, node))
        return tuple(found[f"n{j}"] for j in range(len(edges)))

    exact = infer(parallel, DIAMOND, engine=Enumerate(), lm=AB).marginal()
    for driver in ("greenlet", "coroutine", "eager"):
        found = infer(asynchronous, DIAMOND, engine=Enumerate(), lm=AB, driver=driver).marginal()
        assert all(abs(found[v] - exact[v]) < 1e-10 for v in exact)


@pytest.mark.parametrize("driver", ["greenlet", "coroutine", "eager"])
def test_async_nodes_try_again_and_plan_anew(driver: str) -> None:
    @program
    async def asynchronous() -> Any:
        async def picky() -> Any:
            text = await sample("text", LM("a", max_tokens=1))
            if text != "a":
                raise NodeFailed("no a")
            return text

        async def anew(failed: Failed) -> Any:
            return "none"

        return (await graph("g", [Node("n", picky, retries=1, replan=anew)]))["n"]

    found = infer(asynchronous, engine=Enumerate(), lm=AB, driver=driver).marginal()
    assert found["a"] == pytest.approx(0.25 + 0.75 * 0.25, abs=1e-12)


def test_retries_have_the_law_of_a_program_that_tries_again() -> None:
    @program
    def retried() -> Any:
        def picky() -> Any:
            text = write()
            if text == "b":
                raise NodeFailed("b")
            factor("liked", 0.5 * (text == "a"))
            return text

        return graph("g", [Node("n", picky, retries=2, on_failure="skip")])["n"] or "none"

    found = infer(retried, engine=Enumerate(), lm=AB)
    tries = sum(0.35**i for i in range(3))
    mass = {"a": 0.25 * np.exp(0.5) * tries, "none": 0.4 * tries + 0.35**3}
    assert np.exp(found.log_evidence) == pytest.approx(sum(mass.values()), abs=1e-10)
    for value, m in mass.items():
        assert found.marginal()[value] == pytest.approx(m / sum(mass.values()), abs=1e-10)


def test_forks_keep_the_variables_of_their_own_frames() -> None:
    """A fork that starts a node later must not see what the live frame did meanwhile."""

    @program
    def turns() -> Any:
        out: list[str] = []

        def turn() -> int:
            return len(out)  # the frame's own variable: it changes after each graph

        def node() -> Any:
            return f"{turn()}{sample('text', LM('a', max_tokens=1))}"

        def then(text: str) -> Any:
            return f"{turn()}:{text}{sample('more', LM('b', max_tokens=1))}"

        for t in range(3):
            found = graph(f"g{t}", [Node("x", node), Node("y", then, ("x",))])
            factor(f"f{t}", 0.4 * len(found["y"]))
            out.append(found["y"])
        return tuple(out)

    for driver in ("greenlet", "eager"):
        engine = SMC(12, resample_at="site", always=True, resampling="multinomial")
        posterior = infer(turns, engine=engine, lm=AB, seed=1, driver=driver)
        for trace in posterior.traces:
            assert [text[:3] for text in trace.result] == ["0:0", "1:1", "2:2"]


# -- rounds, critical path, tokens ----------------------------------------------------------------


def brute(record: GraphRecord, weight: Callable[[Any], float]) -> float:
    """The heaviest path by trying all of them."""
    by_id = {n.id: n for n in record.nodes}

    def longest(name: str) -> float:
        node = by_id[name]
        return weight(node) + max((longest(p) for p in node.parents), default=0.0)

    return max(longest(n) for n in by_id)


def test_rounds_are_the_batches_of_the_run() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        edges = random_dag(rng, 12)
        before = AB.usage.passes
        run = infer(parallel, edges, engine=Importance(3), lm=AB)
        record = thought_graph(run.traces[0])
        assert record.rounds == AB.usage.passes - before  # every string is one token: one pass
        assert record.rounds == brute(record, lambda n: n.calls)
        assert record.sequential_rounds == 12


def test_rounds_of_random_graphs() -> None:
    """≥ 35 % fewer rounds than the sequential program, over 500 random graphs of 12 nodes."""
    rng = np.random.default_rng(7)
    shares = []
    for _ in range(500):
        edges = random_dag(rng, 12)
        depth: list[int] = []
        for parents in edges:
            depth.append(1 + max((depth[p] for p in parents), default=0))
        shares.append(max(depth) / 12)
    assert np.mean(shares) <= 0.65
    run = infer(parallel, edges, engine=Importance(1), lm=AB)
    assert thought_graph(run.traces[0]).rounds == max(depth)


def test_tokens_are_those_of_the_ledger() -> None:
    @program
    def uneven() -> Any:
        def node(*read: str) -> Any:
            return sample("text", LM("a" + "".join(read), max_tokens=6))

        return graph("g", nodes_of(((), (0,), (0,), (2,), (1, 3), ()), node)).record

    run = infer(uneven, engine=Importance(1), lm=AB, seed=4)
    record = run.traces[0].result
    assert record.total_tokens == run.ledger.tokens_out
    assert record.sequential_rounds == run.ledger.calls == 6
    assert record.critical_tokens == brute(record, lambda n: n.tokens)
    path = record.critical_path(lambda n: n.tokens)
    assert sum(record[n].tokens for n in path) == record.critical_tokens
    assert record.speedup == record.total_tokens / record.critical_tokens
    assert GraphRecord.from_dict(record.to_dict()) == record


def test_nested_graphs_and_plates_count_by_their_own_critical_path() -> None:
    @program
    def nested() -> Any:
        def wide() -> Any:
            return "".join(plate("p", range(5), lambda _: sample("t", LM("a", max_tokens=1))))

        def inner() -> Any:
            return graph("sub", nodes_of(DIAMOND))["n3"]

        outer = [Node("wide", wide), Node("inner", inner), Node("end", write, ("wide", "inner"))]
        return graph("g", outer)["end"]

    run = infer(nested, engine=Importance(1), lm=AB)
    sub, record = thought_graphs(run.traces[0])
    assert (sub.name, record.name) == ("g/inner/sub", "g")
    assert (record["wide"].calls, record["wide"].span_calls) == (5, 1)
    assert (record["inner"].calls, record["inner"].span_calls) == (4, 3)
    assert (record.rounds, record.sequential_rounds) == (4, 10)
    assert record.critical_path(lambda n: n.span_calls) == ("inner", "end")


# -- growth -----------------------------------------------------------------------------------------


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


def alternatives(speculate: bool) -> list[Node]:
    """Three strings of which the first "a" is taken; each weighs, and the second has an ancestor."""

    def weigh(name: str) -> Callable[..., Any]:
        def node(*read: str) -> Any:
            text = write(*read)
            factor("f", 0.9 if text == "b" else -0.4)
            return text

        return node

    return [
        Node("x", weigh("x")),
        Node("before_y", weigh("before_y")),
        Node("y", weigh("y"), ("before_y",)),
        Node("z", weigh("z")),
        first("win", ("x", "y", "z"), lambda text: text == "a", speculate=speculate),
        Node("end", lambda text: text or "none", ("win",), tolerant=True),
    ]


def lazily() -> Any:
    """What a choice means: the next alternative is only asked when the last one was refused."""

    def weigh(name: str, *read: str) -> str:
        text: str = call(write, *read, name=name)
        factor("f", 0.9 if text == "b" else -0.4)
        return text

    if weigh("x") == "a":
        return "a"
    if weigh("y", weigh("before_y")) == "a":
        return "a"
    return "a" if weigh("z") == "a" else "none"


@pytest.mark.parametrize("driver", ["greenlet", "eager"])
@pytest.mark.parametrize("speculate", [False, True])
def test_cancelled_branches_leave_no_weight(driver: str, speculate: bool) -> None:
    """Whatever the schedule, the law is that of the program that asks one after the other."""

    @program
    def together() -> Any:
        return graph("g", alternatives(speculate))["end"]

    exact = infer(program(lazily), engine=Enumerate(), lm=AB)
    found = infer(together, engine=Enumerate(), lm=AB, driver=driver)
    assert found.log_evidence == pytest.approx(exact.log_evidence, abs=1e-10)
    assert all(abs(p - exact.marginal()[v]) < 1e-10 for v, p in found.marginal().items())
    for trace in found.traces:
        record = thought_graph(trace)
        known = {n.id for n in record.nodes if n.status == "done"}
        drawn = {a.split("/")[1] for a in trace if a.endswith("/text")}
        assert drawn == known - {"win", "end"}


@pytest.mark.parametrize("driver", ["greenlet", "eager"])
def test_a_filter_that_cancels_is_properly_weighted(driver: str) -> None:
    """It has resampled by the weight of a node that it then cancels."""

    @program
    def together() -> Any:
        def short(times: int, weigh: float = 0.0) -> str:
            for _ in range(times):
                text = sample("text", LM("b", max_tokens=1))
                factor("f", weigh * len(text))
            return str(text)

        nodes = [
            Node("x", lambda: short(2)),
            Node("z", lambda: short(1, 0.9)),
            first("win", ("x", "z"), lambda text: text == "a", speculate=True),
        ]
        return graph("g", nodes)["win"] or "none"

    engine = SMC(2, resample_at="site", always=True)
    assert_properly_weighted(together, engine=engine, lm=AB, driver=driver, atol=1e-10)


def test_a_mutant_that_keeps_the_weight_of_cancelled_nodes_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def keep(self: Any, p: Any, branches: list[Any], cancelled: frozenset[str]) -> None:
        for branch in [b for b in branches if b.place in cancelled]:
            branch.cancel()
            branches.remove(branch)

    def short(times: int, weigh: float = 0.0) -> str:
        for _ in range(times):
            text = sample("text", LM("b", max_tokens=1))
            factor("f", weigh * len(text))
        return str(text)

    @program
    def together() -> Any:
        nodes = [
            Node("x", lambda: short(2)),
            Node("z", lambda: short(1, 0.9)),
            first("win", ("x", "z"), lambda text: text == "a", speculate=True),
        ]
        return graph("g", nodes)["win"] or "none"

    assert_properly_weighted(together, engine=Importance(1), lm=AB)
    monkeypatch.setattr(Growing, "_cancel", keep)
    with pytest.raises(LawBroken):
        assert_properly_weighted(together, engine=Importance(1), lm=AB)


def test_questions_and_particles_share_the_batches_of_nodes() -> None:
    before = AB.usage.passes
    runs = infer_many(parallel, [(DIAMOND,)] * 7, engine=Importance(5), lm=AB)
    assert AB.usage.passes - before == 3 == thought_graph(runs[0].traces[0]).rounds
    assert sum(run.ledger.calls for run in runs) == 7 * 5 * 4


def test_a_slow_tool_does_not_hold_the_other_nodes() -> None:
    """The strings of a chain of nodes are drawn while the tool of another node still waits."""
    finished = threading.Event()

    def tool() -> bool:
        return finished.wait(20)

    def last(*_: Any) -> str:
        finished.set()
        return "chain"

    @program
    def both() -> Any:
        chain = nodes_of(((), (0,), (1,)))
        nodes = [
            Node("slow", lambda: effect("tool", tool)), *chain, Node("last", last, ("n2",)),
        ]  # fmt: skip
        return graph("g", nodes)["slow"]

    assert infer(both, engine=Importance(1), lm=AB).traces[0].result is True


def test_speculation_takes_fewer_rounds_and_more_tokens() -> None:
    @program
    def together(speculate: bool) -> Any:
        return graph("g", alternatives(speculate))["end"]

    passes, calls = [], []
    for speculate in (False, True):
        before = AB.usage.passes
        run = infer(together, speculate, engine=Importance(200), lm=AB, seed=2)
        passes.append(AB.usage.passes - before)
        calls.append(run.ledger.calls)
        assert sum(n.status == "cancelled" for n in thought_graph(run.traces[0]).nodes) in (0, 3)
    assert passes == [4, 2]
    assert calls[0] < calls[1] <= 800
    one, other = (infer(together, s, engine=Importance(200), lm=AB, seed=2) for s in (False, True))
    assert [t.result for t in one.traces] == [t.result for t in other.traces]
    assert one.log_weights == pytest.approx(other.log_weights, abs=1e-12)


def test_a_cancellable_node_cannot_kill() -> None:
    def hopeless() -> Any:
        factor("no", sample("text", LM("a", max_tokens=1)) == "never")

    nodes = [
        Node("x", lambda: (write(), write())[1]),
        Node("y", hopeless),
        first("win", ("x", "y"), lambda _: True, speculate=True),
    ]
    with pytest.raises(GraphError, match="'y' gives weight zero before it is known"):
        infer(program(lambda: graph("g", nodes)), engine=Importance(4), lm=AB)
    found = infer(program(lambda: graph("g", nodes)["win"]), engine=Enumerate(), lm=AB)
    assert found.log_evidence == pytest.approx(0.0, abs=1e-12)


def test_a_cancelled_node_runs_again_for_a_late_reader() -> None:
    def late(win: str) -> Any:
        return Spawn([Node("late.read", lambda z: f"{win}{z}", ("z",))], becomes="late.read")

    @program
    def woken() -> Any:
        nodes = [
            Node("x", lambda: "a"),
            Node("z", write),
            first("win", ("x", "z")),
            Node("late", late, ("win",)),
        ]
        return graph("g", nodes)["late"]

    found = infer(woken, engine=Enumerate(), lm=AB).marginal()
    assert {v: round(p, 10) for v, p in found.items()} == {"aa": 0.25, "ab": 0.35, "a": 0.4}


def test_only_what_an_output_needs_is_run() -> None:
    @program
    def pruned() -> Any:
        return graph("g", nodes_of(((), (0,), (0,), (2,))), outputs=["n1"])

    run = infer(pruned, engine=Importance(1), lm=AB)
    assert set(run.traces[0].result) == {"n0", "n1"}
    assert [n.status for n in thought_graph(run.traces[0]).nodes] == [
        "done", "done", "unneeded", "unneeded",
    ]  # fmt: skip
    assert run.ledger.calls == 2


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


def test_values_without_sites_and_empty_graphs() -> None:
    @program
    def trivial() -> Any:
        chain = [Node("n0", lambda: 0)]
        chain += [Node(f"n{i}", lambda x: x + 1, (f"n{i - 1}",)) for i in range(1, 3000)]
        return graph("g", chain)["n2999"] + len(graph("none", []))

    assert infer(trivial, engine=Importance(1)).traces[0].result == 2999


def test_numbers_are_nodes_too() -> None:
    @program
    def dice() -> Any:
        nodes = [Node(n, lambda: sample("eyes", Uniform([1, 2]))) for n in "abc"]
        found = graph("g", [*nodes, Node("sum", lambda *x: sum(x), ("a", "b", "c"))])
        return found["sum"]

    found = infer(dice, engine=Enumerate()).marginal()
    exact = [sum(x) for x in itertools.product((1, 2), repeat=3)]
    assert all(abs(found[k] - exact.count(k) / 8) < 1e-12 for k in exact)
