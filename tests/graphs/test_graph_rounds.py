"""What a thought graph costs: rounds, the critical path, tokens, and batches that nodes share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lmppl import LM, effect, plate, program, sample
from lmppl.graphs import GraphRecord, Node, graph, thought_graph, thought_graphs
from lmppl.inference import Importance, infer, infer_many
from lmppl.lm.table import TableLM

AB = TableLM(
    ["a", "b", "<eos>"],
    {(): [0.5, 0.3, 0.2], (0,): [0.25, 0.35, 0.4], (1,): [0.6, 0.0, 0.4], (2,): [0.5, 0.3, 0.2]},
    name="ab",
)
Edges = Sequence[Sequence[int]]
DIAMOND: Edges = ((), (0,), (0,), (1, 2))


def write(*read: str) -> Any:
    """A text that depends on the last letter of what it reads."""
    return sample("text", LM("a" + "".join(read), max_tokens=1))


def random_dag(rng: np.random.Generator, n: int) -> Edges:
    """Node j has one or two random earlier parents."""
    some = [rng.choice(j, size=min(j, int(rng.integers(1, 3))), replace=False) for j in range(n)]
    return [tuple(sorted(int(p) for p in parents)) for parents in some]


def nodes_of(edges: Edges, fn: Callable[..., Any] = write) -> list[Node]:
    return [Node(f"n{j}", fn, tuple(f"n{p}" for p in ps)) for j, ps in enumerate(edges)]


@program
def written(edges: Edges) -> Any:
    """A text per node."""
    return len(graph("g", nodes_of(edges)))


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
        run = infer(written, edges, engine=Importance(3), lm=AB)
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
    run = infer(written, edges, engine=Importance(1), lm=AB)
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


def test_questions_and_particles_share_the_batches_of_nodes() -> None:
    before = AB.usage.passes
    runs = infer_many(written, [(DIAMOND,)] * 7, engine=Importance(5), lm=AB)
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
