"""Overheads of the language and the engines on a free language model (figures of `make bench`).

Run `python tests/benchmarks/bench_engine.py`. Each figure is the median of five runs in one
process; the cost of one greenlet switch, timed beside it, is the unit to compare machines by.
"""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

from lmppl import LM, Uniform, factor, program, sample
from lmppl.inference import SMC, Importance, infer, tokens
from lmppl.lm.table import TableLM

WORDS = [f"w{i} " for i in range(31)] + ["\n"]
FREE = TableLM(WORDS, {(): [1 / 32] * 32}, order=1, name="free")
REPEATS = 5


def median_seconds(fn: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median wall time of a call, garbage collected before each."""
    times = []
    for _ in range(repeats):
        gc.collect()
        began = time.perf_counter()
        fn()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def switch_microseconds() -> float:
    """One greenlet round trip."""
    from greenlet import getcurrent, greenlet

    def body() -> None:
        hub = getcurrent().parent
        while True:
            hub.switch(1)

    n, glets = 200, [greenlet(body) for _ in range(1000)]
    for g in glets:
        g.switch()
    seconds = median_seconds(lambda: [g.switch() for _ in range(n // 10) for g in glets])
    return seconds / (n // 10 * len(glets)) * 1e6


@program
def sites(k: int) -> int:
    """K one-token strings."""
    for _ in range(k):
        sample("s", LM("a ", max_tokens=1))
    return 0


@program
def weighted(k: int) -> int:
    """K one-token strings, each with a factor."""
    for _ in range(k):
        x = sample("s", LM("a ", max_tokens=1))
        factor("f", 0.1 * (x == "w1 "))
    return 0


@program
def long_string(t: int) -> str:
    """One string of T tokens."""
    return str(sample("s", LM("a ", max_tokens=t)))


@program
def numbers(k: int) -> int:
    """K finite sites without a language model."""
    for _ in range(k):
        sample("n", Uniform([1, 2, 3]))
    return 0


def memory_per_particle(n: int, t: int) -> float:
    """Bytes that a posterior of n particles with a T-token string keeps, per particle."""
    gc.collect()
    tracemalloc.start()
    posterior = infer(long_string, t, engine=Importance(n), lm=FREE, seed=0)
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept / len(posterior)


def main() -> None:
    """Print the table."""
    n, k = 1000, 20
    switch = switch_microseconds()
    rows = [("greenlet switch", switch, "µs", "")]
    run = median_seconds(lambda: infer(sites, k, engine=Importance(n), lm=FREE, seed=0))
    rows.append(("particle-site, free LM, N=1000", run / (n * k) * 1e6, "µs", "≤ 15"))
    run = median_seconds(lambda: infer(numbers, k, engine=Importance(n), seed=0))
    rows.append(("particle-site, finite site, N=1000", run / (n * k) * 1e6, "µs", ""))
    run = median_seconds(lambda: infer(long_string, 256, engine=Importance(256), lm=FREE, seed=0))
    rows.append(("particle-token, free LM, N=256 T=256", run / (256 * 256) * 1e6, "µs", "≤ 10"))
    smc = SMC(particles=256, resample_at=tokens(8), always=True)
    run = median_seconds(lambda: infer(long_string, 256, engine=smc, lm=FREE, seed=0))
    rows.append(("particle-token, resampled each 8 tokens", run / (256 * 256) * 1e6, "µs", ""))
    smc = SMC(particles=n, always=True)
    run = median_seconds(lambda: infer(sites, k, engine=smc, lm=FREE, seed=0))
    rows.append(("1,000 × 20 sites, resampled at each", run, "s", "≤ 1.5"))
    run = median_seconds(
        lambda: infer(weighted, k, engine=SMC(particles=n, always=True), lm=FREE, seed=0)
    )
    rows.append(("the same with a factor after each", run, "s", ""))
    for name, body, always in (
        ("particle filter, N=1000, 50 strings", sites, False),
        ("the same with a factor after each", weighted, False),
        ("the same, resampled 99 times", weighted, True),
    ):
        smc = SMC(particles=n, always=always)
        run = median_seconds(partial(infer, body, 50, engine=smc, lm=FREE, seed=0), 3)
        rows.append((name, run, "s", "≤ 1.5"))
    rows.append(
        ("memory per particle, 1,000 tokens", memory_per_particle(200, 1000) / 1e3, "kB", "≤ 50")
    )
    for name, value, unit, bound in rows:
        print(f"{name:42} {value:9.2f} {unit:3} {bound}")


if __name__ == "__main__":
    main()
