"""Graphs of programs: what elimination costs beside enumeration, and what BIRD gains.

python tests/benchmarks/bench_elimination.py
"""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import numpy as np

from lmppl import LM, Bernoulli, Choice, observe, program, sample
from lmppl.graphs import graph_of
from lmppl.graphs.bayes_nets.bird import both_ways, fit, instances
from lmppl.graphs.bayes_nets.labels import LEVELS
from lmppl.inference import Elimination, Enumerate, infer
from lmppl.lm.table import TableLM


@program
def chain(n: int) -> Any:
    x = True
    for _ in range(n):
        x = sample("x", Bernoulli(0.9 if x else 0.3))
    observe("y", Bernoulli(0.8 if x else 0.1), False)
    return x


@program
def words(n: int) -> Any:
    x = ""
    for _ in range(n):
        x = sample("x", Choice(x, ["a", "b"]))
    return x


@program
def prompts(n: int) -> Any:
    said = [sample("x", LM("Begin:"))]
    for i in range(n - 1):
        said.append(sample("x", LM(f"{said[i // 2]} and {said[i]}:")))
    return said[-1]


def timed(engine: Any, fn: Any, n: int, lm: Any = None) -> tuple[float, Any]:
    start = time.perf_counter()
    post = infer(fn, n, engine=engine, lm=lm)
    return time.perf_counter() - start, post


def chains() -> None:
    print("binary chain: seconds          log evidence")
    print(f"{'sites':>6} {'Enumerate':>10} {'Elimination':>12} {'difference':>12}")
    for n in (4, 8, 12):
        a, exact = timed(Enumerate(), chain, n)
        b, summed = timed(Elimination(draws=16), chain, n)
        gap = abs(exact.log_evidence - summed.log_evidence)
        print(f"{n:6d} {a:10.3f} {b:12.3f} {gap:12.1e}")
    for n in (40, 80):
        b, _ = timed(Elimination(draws=16), chain, n)
        print(f"{n:6d} {'-':>10} {b:12.3f}")


def calls() -> None:
    lm = TableLM(["a", "b", "<eos>"], {(): [0.5, 0.3, 0.2], (0,): [0.2, 0.7, 0.1]})
    print("\nchoices in a row: options scored by the model")
    for n in (4, 8):
        _, exact = timed(Enumerate(), words, n, lm)
        _, summed = timed(Elimination(draws=16), words, n, lm)
        print(f"{n:6d} {exact.ledger.calls:10d} {summed.ledger.calls:12d}")


def structure() -> None:
    print("\ngraph_of: seconds, edges found of those written")
    for n in (10, 20, 40):
        start = time.perf_counter()
        graph = graph_of(prompts, n)
        taken = time.perf_counter() - start
        want = {(i // 2, i + 1) for i in range(n - 1)} | {(i, i + 1) for i in range(n - 1)}
        print(f"{n:6d} {taken:10.3f} {graph.number_of_edges():6d} of {len(want)}")


GRID = list(itertools.product(range(3), repeat=5))
VALUES = np.array(list(LEVELS.values()))


def bird_errors(
    seed: int, labels: int = 128, bias: float = 0.0, missing: int = 0, both: bool = False
) -> Any:
    """(truth, direct, answer, spread) of 40 questions that fix two of five factors."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(0.0, 1.2, (5, 3))
    p = np.array([1 / (1 + math.exp(-sum(theta[j, x[j]] for j in range(5)))) for x in GRID])
    names = [f"f{j}" for j in range(5)]

    def truth(context: Any) -> float:
        keep = [all(f"v{x[int(f[1])]}" == v for f, v in context.items()) for x in GRID]
        return float(p[keep].mean())

    def read(q: float) -> float:
        z = math.log(q / (1 - q)) + rng.normal() + bias
        return float(VALUES[np.argmin(np.abs(VALUES - 1 / (1 + math.exp(-z))))])

    factors = {f: ["v0", "v1", "v2"] for f in names[missing:]}
    asked = instances(factors, labels, seed)
    second = both_ways(len(asked)) if both else [False] * len(asked)
    told = [read(1.0 - truth(x) if s else truth(x)) for x, s in zip(asked, second, strict=True)]
    fitted = fit(factors, asked, told, second=second)
    rows = []
    for _ in range(40):
        context = {f"f{j}": f"v{rng.integers(3)}" for j in rng.permutation(5)[:2]}
        t = truth(context)
        answer = fitted.answer({f: v for f, v in context.items() if f in factors})
        rows.append((t, read(t), answer.value, answer.spread))
    return rows


def bird(worlds: int = 12) -> None:
    print("\nBIRD: mean absolute error, calibration error, error in units of the stated spread")
    print(f"{'':26} {'direct':>8} {'BIRD':>8} {'lower by':>9} {'ECE':>7} {'z':>6}")
    kinds: dict[str, dict[str, Any]] = {
        "128 labels": {},
        "32 labels": {"labels": 32},
        "a lean of 0.8": {"bias": 0.8},
        "the same, asked both ways": {"bias": 0.8, "both": True},
        "two factors missing": {"missing": 2},
    }
    for name, kind in kinds.items():
        rows = np.concatenate([bird_errors(seed, **kind) for seed in range(worlds)])
        t, direct, value, spread = rows.T
        a, b = np.abs(direct - t).mean(), np.abs(value - t).mean()
        at = np.minimum((value * 10).astype(int), 9)
        ece = sum(
            abs(value[at == k].mean() - t[at == k].mean()) * (at == k).mean()
            for k in range(10)
            if (at == k).any()
        )
        z = math.sqrt(float(np.mean(((value - t) / spread) ** 2)))
        print(f"{name:26} {a:8.4f} {b:8.4f} {1 - b / a:9.0%} {ece:7.4f} {z:6.2f}")


def main() -> None:
    chains()
    calls()
    structure()
    bird()


if __name__ == "__main__":
    main()
