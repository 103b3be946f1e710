"""Thought graphs: overhead of a node, rounds of random graphs, and how full their batches are.

Run `python tests/benchmarks/bench_graphs.py [--quick] [--nodes 10000] [--leaves 1000] [--smollm2]`.

Overhead is processor time of a graph whose nodes draw nothing, per node: a frame, the bookkeeping,
the record. A plate of as many empty branches is timed beside it. Leaves that each draw a string are
compared with `infer_many` on as many questions: the same prompts and tokens, in turn, processor
seconds, and the ratio within a round; then its median. The model is a random Llama of 40,000 weights,
beside which every microsecond of the runtime shows; with the flag it is SmolLM2, once, alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from timing import least

from lmppl import LM, plate, program, sample
from lmppl.graphs import Node, graph, thought_graph
from lmppl.inference import Importance, infer, infer_many
from lmppl.lm.table import TableLM

TOWNS = ("Oslo", "Lima", "Bonn", "Rome", "Kyiv", "Cairo", "Quito", "Seoul")


def random_edges(rng: np.random.Generator, n: int) -> list[tuple[str, ...]]:
    """Node j has one or two random earlier parents."""
    out: list[tuple[str, ...]] = []
    for j in range(n):
        k = min(j, int(rng.integers(1, 3)))
        parents = (
            rng.choice(j, size=k, replace=False) if k and j < 64 else rng.integers(0, max(j, 1), k)
        )
        out.append(tuple(sorted({f"n{p}" for p in parents})))
    return out


def nodes_of(edges: Sequence[tuple[str, ...]], fn: Callable[..., Any]) -> list[Node]:
    """Their nodes."""
    return [Node(f"n{j}", fn, parents) for j, parents in enumerate(edges)]


def overhead(nodes: int) -> None:
    """Microseconds a node."""
    rng = np.random.default_rng(0)
    graphs = {
        "random graph": nodes_of(random_edges(rng, nodes), lambda *read: len(read)),
        "leaves": nodes_of([()] * nodes, lambda: 0),
        "chain": nodes_of([(f"n{j - 1}",) if j else () for j in range(nodes)], lambda *x: len(x)),
    }
    print(f"{'':16} {'nodes':>7} {'µs a node':>10}   (goal ≤ 100)")
    for name, listed in graphs.items():
        run = program(lambda listed=listed: len(graph("g", listed)))
        spent = least(partial(infer, run, engine=Importance(1)))
        print(f"{name:16} {nodes:7} {spent / nodes * 1e6:10.1f}")
    empty = program(lambda: len(plate("p", range(nodes), lambda i: 0)))
    spent = least(lambda: infer(empty, engine=Importance(1)))
    print(f"{'(a plate)':16} {nodes:7} {spent / nodes * 1e6:10.1f}")


def rounds(graphs: int) -> None:
    """Batches of random graphs of 12 nodes, against those of the sequential program."""
    lm = TableLM(["a", "<eos>"], {(): [0.5, 0.5]})
    rng = np.random.default_rng(7)
    shares = []
    for _ in range(graphs):
        edges = random_edges(rng, 12)

        def think(*read: str) -> Any:
            return sample("text", LM("a", max_tokens=1))

        run = program(lambda edges=edges: graph("g", nodes_of(edges, think)))
        before = lm.usage.passes
        trace = infer(run, engine=Importance(1), lm=lm).traces[0]
        record = thought_graph(trace)
        if record.rounds != lm.usage.passes - before:
            raise RuntimeError("the critical path is not the number of batches")
        shares.append(record.rounds / record.sequential_rounds)
    saved = 1 - statistics.mean(shares)
    print(f"\n{graphs} random graphs of 12 nodes: {saved:.1%} fewer rounds   (goal ≥ 35 %)")


def model(smollm2: bool) -> Any:
    """SmolLM2, or a small one."""
    if smollm2:
        from lmppl.lm.load import load

        return load("smollm2")
    from lmppl.inference.learning.torch_train import TrainableLM

    return TrainableLM.tiny(name="a small Llama")


def leaves(lm: Any, count: int, tokens: int, turns: int) -> None:
    """Tokens per processor second of independent nodes and of independent questions."""

    def ask(i: int) -> Any:
        town = TOWNS[i % len(TOWNS)]
        return sample("text", LM(f"{town}, fact {i}:", max_tokens=tokens))

    @program
    def question(i: int) -> Any:
        return ask(i)

    @program
    def together(leaves: int) -> Any:
        return len(graph("g", [Node(f"n{i}", partial(ask, i)) for i in range(leaves)]))

    def speed(run: Callable[[], int]) -> tuple[float, float]:
        """Tokens a processor second, and rows of each pass, from an empty cache of prompts."""
        lm.clear_cache()
        passes, began = lm.usage.passes, time.process_time()
        drawn = run()
        return drawn / (time.process_time() - began), drawn / (lm.usage.passes - passes)

    def many() -> int:
        runs = infer_many(question, range(count), engine=Importance(1), lm=lm, concurrency=count)
        return sum(r.ledger.tokens_out for r in runs)

    def one() -> int:
        return infer(together, count, engine=Importance(1), lm=lm).ledger.tokens_out

    print(f"\n{count} leaves of ≤ {tokens} tokens on {lm.name}   (goal: ratio ≥ 0.9)")
    print(f"{'':8} {'graph':>16} {'infer_many':>16}")
    print(f"{'':8} {'tok/s':>8} {'a pass':>7} {'tok/s':>8} {'a pass':>7} {'ratio':>6}")
    ratios = []
    infer(together, 8, engine=Importance(1), lm=lm)  # warm
    for turn in range(turns):
        (a, rows), (b, other) = speed(one), speed(many)
        ratios.append(a / b)
        print(f"turn {turn + 1:3} {a:8.0f} {rows:7.1f} {b:8.0f} {other:7.1f} {a / b:6.2f}")
    print(f"median ratio {statistics.median(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="64 leaves of 8 tokens, 100 graphs")
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--leaves", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--smollm2", action="store_true", help="its leaves alone, once: minutes")
    args = parser.parse_args()
    if not args.smollm2:
        overhead(args.nodes)
        rounds(100 if args.quick else 500)
    count, tokens = (64, 8) if args.quick else (args.leaves, args.tokens)
    leaves(model(args.smollm2), count, tokens, 1 if args.smollm2 else 3)


if __name__ == "__main__":
    main()
