"""How often the 95 % interval of the log-evidence holds the truth, on a long chain.

Run `python tests/benchmarks/bench_intervals.py [--runs 1000] [--steps 30] [--particles 64]`.

The model is the hidden Markov chain of `tests/laws/test_hidden_markov.py`; the truth is that of the
forward algorithm. The filter is written in numpy, so that a thousand runs take seconds; the errors
are those that `Posterior.log_evidence_se` gives for its weights, history and ancestors. "se / sd" is
the root mean square of the stated errors over the standard deviation of the estimates: 1 is right,
above is too careful.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np

from lmppl.inference.questions.compare import wilson
from lmppl.inference.results.history import History
from lmppl.inference.results.posterior import Posterior
from lmppl.trace import Trace
from lmppl.types import Floats, Ints
from lmppl.weights import ess, log_mean_exp

START = (0.5, 0.5)
MOVE = ((0.8, 0.2), (0.3, 0.7))
SHOW = ((0.9, 0.1), (0.2, 0.8))


def truth(data: list[int]) -> float:
    """log Z by the forward algorithm."""
    alpha, total = np.array(START), 0.0
    for t, symbol in enumerate(data):
        alpha = (alpha @ np.array(MOVE) if t else alpha) * np.array(SHOW)[:, symbol]
        total += math.log(alpha.sum())
        alpha = alpha / alpha.sum()
    return total


def ancestors_of(w: Floats, scheme: str, rng: np.random.Generator) -> Ints:
    """Systematic or multinomial resampling."""
    n = len(w)
    if scheme == "multinomial":
        return rng.choice(n, n, p=w)
    points = (np.arange(n) + rng.random()) / n
    return np.minimum(np.searchsorted(np.cumsum(w), points, side="right"), n - 1)


def run(data: list[int], n: int, scheme: str, threshold: float, seed: int) -> Posterior:
    """A bootstrap filter that resamples when ESS < threshold N."""
    rng = np.random.default_rng(seed)
    move, show = np.array(MOVE), np.array(SHOW)
    state = rng.integers(0, 2, n)
    eves = np.arange(n)
    lw = np.zeros(n)
    history = History(n)
    for t, symbol in enumerate(data):
        if t:
            state = (rng.random(n) < move[state, 1]).astype(np.int64)
        lw = lw + np.log(show[state, symbol])
        if t == len(data) - 1:
            break
        size, parents = ess(lw), None
        if size < threshold * n:
            level = log_mean_exp(lw)
            w = np.exp(lw - lw.max())
            parents = ancestors_of(w / w.sum(), scheme, rng)
            state, eves, lw = state[parents], eves[parents], np.full(n, level)
        history.record(size, log_mean_exp(lw), parents, eves.tolist())
    history.end(lw, eves.tolist())
    traces = [Trace(None, s) for s in state.tolist()]
    return Posterior(traces, lw, log_mean_exp(lw), history=history, eves=eves.tolist())


def main() -> None:
    """One line per filter."""
    options = argparse.ArgumentParser()
    options.add_argument("--runs", type=int, default=1000)
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--particles", type=int, default=64)
    o = options.parse_args()
    data = [int(v) for v in np.random.default_rng(0).integers(0, 2, o.steps)]
    exact = truth(data)
    print(f"{o.steps} steps, {o.particles} particles, {o.runs} runs, log Z = {exact:.4f}")
    for name, scheme, threshold in (
        ("systematic, ESS < N/2", "systematic", 0.5),
        ("systematic, every step", "systematic", 2.0),
        ("multinomial, ESS < N/2", "multinomial", 0.5),
        ("multinomial, every step", "multinomial", 2.0),
        ("importance", "systematic", 0.0),
    ):
        began = time.perf_counter()
        found = [run(data, o.particles, scheme, threshold, seed) for seed in range(o.runs)]
        z = np.array([p.log_evidence for p in found])
        se = np.array([p.log_evidence_se for p in found])
        hits = int((np.abs(z - exact) <= 1.96 * se).sum())
        low, high = wilson(hits, o.runs)
        sd = float(z.std(ddof=1))
        eves = float(np.mean([p.unique_ancestors for p in found]))
        print(
            f"{name:24} coverage {hits / o.runs:.3f} ({low:.3f} to {high:.3f})  "
            f"bias of log Z {z.mean() - exact:+.3f}  mean Z^/Z {np.exp(z - exact).mean():.3f}  sd {sd:.3f}  "
            f"se / sd {math.sqrt(float(np.mean(se**2))) / sd:.2f}  first ancestors {eves:.1f}  "
            f"{time.perf_counter() - began:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
