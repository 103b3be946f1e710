"""Backward filters as guides and proposals: the figures for an order-2 model of 65,536 strings."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from lmppl import Categorical, factor, loop, program, sample
from lmppl.inference import SMC, Guide, infer
from lmppl.trace import Trace
from lmppl.weights import exp

STEPS, SUM = 8, 22
RNG = np.random.default_rng(7)
ORDER2 = RNG.dirichlet([0.5] * 4, size=(4, 4))
"""p(next | two before), four tokens that count 0 to 3."""


@program
def sums(tilt: Any = None) -> Any:
    """The sum of eight tokens; `tilt` is h(t, a, b, total) of a proposal q ∝ p h."""

    def step(carry: tuple[int, int, int], t: int) -> tuple[int, int, int]:
        before, last, total = carry
        p = ORDER2[before, last]
        q = None
        if tilt is not None:
            h = [max(tilt(t + 1, last, k, total + k), 1e-12) for k in range(4)]
            q = Categorical(range(4), (p * h).tolist())
        token = sample("s", Categorical(range(4), p.tolist()), proposal=q)
        return last, token, total + token

    carry = loop(step, (0, 0, 0), n=STEPS)
    factor("sum", carry[2] == SUM)
    return carry[2]


def exact_filter() -> Any:
    """h_t(last two, total) by dynamic programming."""
    h = np.zeros((STEPS + 1, 4, 4, 3 * STEPS + 1))
    h[STEPS, :, :, SUM] = 1.0
    for t in range(STEPS - 1, -1, -1):
        for a, b, s, k in itertools.product(range(4), range(4), range(3 * t + 1), range(4)):
            h[t, a, b, s] += ORDER2[a, b, k] * h[t + 1, b, k, s + k]
    return h


def bigram_filter() -> Any:
    """The same for the bigram model that forgets the token before the last."""
    mean = ORDER2.mean(0)
    h = np.zeros((STEPS + 1, 4, 3 * STEPS + 1))
    h[STEPS, :, SUM] = 1.0
    for t in range(STEPS - 1, -1, -1):
        for b, s, k in itertools.product(range(4), range(3 * t + 1), range(4)):
            h[t, b, s] += mean[b, k] * h[t + 1, k, s + k]
    return h


def steps_taken(trace: Trace) -> list[int]:
    return [e.value for e in trace.sites if e.op == "sample"]


@pytest.mark.slow
def test_backward_filters_as_guides() -> None:
    """A bootstrap filter loses the event; a relaxed backward filter, as guide and as the proposal
    q ∝ p h, keeps most particles; the exact one leaves no variance."""
    h, g = exact_filter(), bigram_filter()

    def exact(t: int, a: int, b: int, total: int) -> float:
        return float(h[t, a, b, total])

    def bigram(t: int, a: int, b: int, total: int) -> float:
        return float(g[t, b, total])

    def guide(filter_: Any) -> Guide:
        def look(trace: Trace) -> float:
            xs = [0, 0, *steps_taken(trace)]
            return float(filter_(len(xs) - 2, xs[-2], xs[-1], sum(xs)))

        return Guide(look, scale="real", floor=1e-12)

    z = float(h[0, 0, 0, 0])
    rows = {
        "bootstrap": (None, None),
        "bigram guide": (guide(bigram), None),
        "bigram guide and proposal": (guide(bigram), bigram),
        "exact guide and proposal": (guide(exact), exact),
    }
    sd: dict[str, float] = {}
    print(f"\nfigure: backward filters, P(event) = {z:.3g}, N = 64, 30 runs")
    for name, (one, tilt) in rows.items():
        engine = SMC(particles=64, guide=one)
        found = [infer(sums, tilt, engine=engine, seed=i, on_dead="return") for i in range(30)]
        ratios = np.array([exp(post.log_evidence) / z for post in found])
        sd[name] = float(ratios.std(ddof=1))
        ess = float(np.mean([post.ess for post in found])) / 64
        print(f"  {name}: ESS/N {ess:.3f}, mean of Z^/Z {ratios.mean():.4f}, its sd {sd[name]:.4f}")
        if tilt is not None:  # false alarms: 1e-6
            assert abs(ratios.mean() - 1.0) < 4.9 * sd[name] / math.sqrt(30) + 1e-9
    assert sd["exact guide and proposal"] < 1e-9
    assert sd["bigram guide and proposal"] < sd["bigram guide"] < sd["bootstrap"]
