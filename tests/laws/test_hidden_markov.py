"""The hidden Markov oracle: log Z by the forward algorithm, against particle filters.

start (.5, .5), A = [[.8, .2], [.3, .7]], E = [[.9, .1], [.2, .8]], seen symbols from
`numpy.random.default_rng(0).integers(0, 2, K)`: log Z = -11.620 (K = 20), -70.64 (100), -368.8 (500).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lmppl import Categorical, loop, observe, program, sample
from lmppl.inference import SMC, Enumerate, Importance, infer, infer_many

START = (0.5, 0.5)
MOVE = ((0.8, 0.2), (0.3, 0.7))
SHOW = ((0.9, 0.1), (0.2, 0.8))
ORACLE = {20: -11.620, 100: -70.64, 500: -368.8}


def seen(k: int) -> list[int]:
    return [int(v) for v in np.random.default_rng(0).integers(0, 2, k)]


def forward(data: list[int]) -> float:
    """log Z."""
    alpha = np.array(START)
    log_z = 0.0
    for t, symbol in enumerate(data):
        if t:
            alpha = alpha @ np.array(MOVE)
        alpha = alpha * np.array(SHOW)[:, symbol]
        log_z += math.log(alpha.sum())
        alpha = alpha / alpha.sum()
    return log_z


@program
def sites(data: list[int]) -> Any:
    s = -1
    for symbol in data:
        s = sample("s", Categorical([0, 1], START if s < 0 else MOVE[s]))
        observe("o", Categorical([0, 1], SHOW[s]), symbol)
    return s


@program
def carried(data: list[int]) -> Any:
    def step(s: int, t: int) -> int:
        now: int = sample("s", Categorical([0, 1], START if s < 0 else MOVE[s]))
        observe("o", Categorical([0, 1], SHOW[now]), data[t])
        return now

    return loop(step, -1, n=len(data))


@pytest.mark.parametrize("k", ORACLE)
def test_forward_algorithm_is_the_oracle(k: int) -> None:
    assert abs(forward(seen(k)) - ORACLE[k]) < 0.05


@pytest.mark.parametrize("program_of", [sites, carried], ids=["sites", "loop"])
def test_enumeration_is_the_forward_algorithm(program_of: Any) -> None:
    for k in (1, 2, 6):
        post = infer(program_of, seen(k), engine=Enumerate())
        assert abs(post.log_evidence - forward(seen(k))) <= 1e-12


@pytest.mark.parametrize("resample_at", ["site", "factor"])
@pytest.mark.parametrize("program_of", [sites, carried], ids=["sites", "loop"])
def test_twenty_steps(program_of: Any, resample_at: str) -> None:
    """N = 1000, K = 20: log Ẑ within 0.6 of log Z.

    The standard deviation of log Ẑ is 0.12 here (12 runs), so chance fails this once in 1e6.
    """
    post = infer(program_of, seen(20), engine=SMC(particles=1000, resample_at=resample_at), seed=7)
    assert abs(post.log_evidence - forward(seen(20))) < 0.6


def test_mean_of_small_runs() -> None:
    """Six steps, N = 8, 600 runs: Ẑ / Z is 1 within 4.89 standard errors (1e-6)."""
    z = math.exp(forward(seen(6)))
    posts = infer_many(carried, [(seen(6),)] * 600, engine=SMC(particles=8, always=True), seed=1)
    ratio = np.array([math.exp(p.log_evidence) / z for p in posts])
    assert abs(ratio.mean() - 1.0) < 4.89 * ratio.std(ddof=1) / math.sqrt(len(ratio))


def test_both_forms_are_one_law() -> None:
    """Addresses differ, so draws do; without resampling both are importance sampling of one γ."""
    for program_of in (sites, carried):
        post = infer(program_of, seen(3), engine=Importance(particles=4000), seed=0)
        low, high = post.log_evidence_interval(4.89)
        assert low < forward(seen(3)) < high


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("k", [100, 500])
def test_long_chains(k: int) -> None:
    """N = 1000: log Ẑ within 1.5; its standard deviation is 0.12 for K = 100 (four runs)."""
    post = infer(carried, seen(k), engine=SMC(particles=1000, resample_at="factor"), seed=7)
    assert abs(post.log_evidence - forward(seen(k))) < 1.5
