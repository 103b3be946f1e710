"""Planning: what a backup, a sweep and a first call cost (figures of `make bench`).

Run `python tests/benchmarks/bench_planning.py`; `--full` for the dense problem of 4,096 states (2 GB).
Ratios are of numbers taken side by side in one process. A first call is one process each, since
the second size of a process finds much of JAX warm; its CPU seconds are shown beside the wall time,
which counts whatever else the machine does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from functools import partial
from typing import Any

import numpy as np
from timing import least

from lmppl.inference.planning import CPT, FactoredMDP, Reward
from lmppl.inference.planning.dp import compiled
from lmppl.inference.planning.factors import factors_of
from lmppl.inference.planning.rollout import arollout
from lmppl.inference.planning.vbp import propagate

WALL = time.perf_counter


def network(n: int, seed: int = 0, k: int = 3, a: int = 10) -> FactoredMDP:
    """N binary variables in a ring, k parents each."""
    rng = np.random.default_rng(seed)
    names = [f"x{i}" for i in range(n)]
    cpts = {
        m: CPT([names[(i + j) % n] for j in range(k)], rng.dirichlet(np.ones(2), (2,) * k + (a,)))
        for i, m in enumerate(names)
    }
    return FactoredMDP(dict.fromkeys(names, 2), a, cpts, [Reward([m], rng.normal(size=2)) for m in names])  # fmt: skip


def dense(states: int, actions: int = 16, horizon: int = 40) -> None:
    """The whole backward sweep against as many bare matrix-vector products."""
    import jax

    ready: Any = jax.block_until_ready
    rng = np.random.default_rng(0)
    table = rng.random((states, actions, states), np.float32)
    table /= table.sum(axis=-1, keepdims=True)
    reward = rng.random((horizon, states, actions), np.float32)
    p = jax.numpy.asarray(table)
    run = compiled(True, True, False)
    given = (p, jax.numpy.asarray(reward), jax.numpy.zeros(states, "float32"), np.ones((states, actions), bool), np.float32(0), np.float32(0))  # fmt: skip
    rows = p.reshape(states * actions, states)

    @jax.jit
    def products(m: Any, v: Any) -> Any:
        def one(x: Any, _: Any) -> Any:
            return (m @ x)[:states], None

        return jax.lax.scan(one, v, None, length=horizon)[0]

    vector = jax.numpy.ones(states, "float32")
    flat = table.reshape(states * actions, states)

    def bare() -> None:
        v = np.ones(states, np.float32)
        for _ in range(horizon):
            v = (flat @ v)[:states]

    ready(run(*given))
    ready(products(rows, vector))
    ours = least(lambda: ready(run(*given)), 3, WALL)
    theirs = least(lambda: ready(products(rows, vector)), 3, WALL)
    plain = least(bare, 3, WALL)
    print(
        f"exact DP, {states:,} states, {actions} actions, {horizon} steps, dense float32: {ours:.3f} s"
    )
    print(f"  {ours / theirs:.2f}x of the same products in JAX ({theirs:.3f} s), "
          f"{ours / plain:.2f}x of numpy's ({plain:.3f} s); bound 1.5x")  # fmt: skip


def first_call(n: int) -> str:
    """Wall and CPU seconds of the first call, in a process of its own."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[2]); import bench_planning as b, jax\n"
        "jax.numpy.zeros(3).block_until_ready(); p = b.factors_of(b.network(int(sys.argv[1])), 10)\n"
        "w, c = time.perf_counter(), time.process_time(); b.propagate(p, sweeps=1, inner=10)\n"
        "print(f'{time.perf_counter() - w:.1f} s ({time.process_time() - c:.1f} s of CPU)')"
    )
    here = __file__.rsplit("/", 1)[0]
    out = subprocess.run([sys.executable, "-c", code, str(n), here], capture_output=True, text=True)
    return out.stdout.strip() or out.stderr.strip().splitlines()[-1]


def sweeps() -> None:
    print("VBP, binary variables, 3 parents, 10 actions, 10 steps, 10 inner iterations")
    print(f"{'N':>4}{'ms per sweep':>14}{'first call':>26}{'ms, ARollout':>14}")
    for n in (10, 20, 40, 80):
        problem, other = factors_of(network(n), 10), factors_of(network(n, 1), 10)
        propagate(problem, sweeps=1, inner=10)
        sweeps = partial(propagate, other, sweeps=10, inner=10, tolerance=1e-15)
        seconds = least(sweeps, 5, WALL) / 10
        start = np.zeros((1, n), np.intp)
        cheap = least(partial(arollout, other, start), 5, WALL)
        print(f"{n:>4}{seconds * 1e3:>14.1f}{first_call(n):>26}{cheap * 1e3:>14.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    dense(4096 if parser.parse_args().full else 1024)
    sweeps()


if __name__ == "__main__":
    main()
