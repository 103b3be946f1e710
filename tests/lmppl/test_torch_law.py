"""Engines on `TorchLM` have the law of the untouched model: Ẑ and Ẑ W(x) are unbiased, by z-tests.

The exact numbers are sums over uncached passes of a copy that knows nothing of us, so cache, forks,
masks, samplers, weights and noise are all in the test. Seeds are fixed; each z is passed by chance
once in 1e6. Outcomes too rare for a normal mean are counted together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from lmppl import LM, factor, program, sample  # noqa: E402
from lmppl.inference import SMC, Engine, Importance, infer_many, tokens  # noqa: E402
from lmppl.token_potentials import AWRS  # noqa: E402

ONE_IN_A_MILLION = 4.89
RARE = 0.05
LIKES = 0.9
ENGINES: dict[str, Engine] = {
    "importance": Importance(8),
    "tokens": SMC(8, always=True, resample_at=tokens(1)),
    "multinomial": SMC(8, always=True, resample_at=tokens(1), resampling="multinomial"),
}
SAMPLERS: dict[str, Any] = {"masks": None, "awrs": AWRS(), "few": AWRS(2)}
"""Not `TopK`: here its weights are rare and large, and means of them not normal; exhaustion has it."""


@program
def two(sampler: Any) -> tuple[str, str]:
    """Two strings, the second one after the first."""
    x = str(sample("x", LM("the cat", regex="[ab]{1,2}", max_tokens=2, sampler=sampler)))
    y = str(sample("y", LM(f"the {x}", choices=["a", "b"], max_tokens=1, sampler=sampler)))
    factor("like", LIKES * (x[-1] == y))
    return x, y


def by_hand(pair: Any) -> dict[tuple[str, str], float]:
    """γ of every outcome, by uncached passes."""
    lm = pair.lm
    start, ids = lm.context("the cat"), {c: lm.encode(c)[0] for c in "ab"}
    first, *later = np.exp(pair.rows([start, *((*start, ids[c]) for c in "ab")]))
    second = dict(zip("ab", later, strict=True))
    xs = {c: first[ids[c]] * second[c][list(lm.eos_ids)].sum() for c in "ab"}
    xs |= {c + d: first[ids[c]] * second[c][ids[d]] for c in "ab" for d in "ab"}
    answers = np.exp(pair.rows([lm.context(f"the {x}") for x in xs]))
    return {
        (x, y): p * row[ids[y]] * math.exp(LIKES * (x[-1] == y))
        for (x, p), row in zip(xs.items(), answers, strict=True)
        for y in "ab"
    }


def z_scores(pair: Any, engine: Engine, sampler: Any, runs: int) -> list[float]:
    """Of Ẑ, and of Ẑ W(x) for every outcome x; the rare ones are one."""
    exact = by_hand(pair)
    total = math.fsum(exact.values())
    often = [x for x, mass in exact.items() if mass >= RARE * total]
    place = {x: often.index(x) if x in often else len(often) for x in exact}
    expected = np.zeros(len(often) + 2)
    expected[-1] = total
    for x, mass in exact.items():
        expected[place[x]] += mass
    posteriors = infer_many(
        two, [(sampler,)] * runs, engine=engine, lm=pair.lm, seed=3, on_dead="return"
    )
    found = np.zeros((runs, len(expected)))
    for r, post in enumerate(posteriors):
        z = math.exp(post.log_evidence)
        found[r, -1] = z
        for trace, w in zip(post.traces, post.weights.tolist(), strict=True):
            if w > 0.0:
                found[r, place[trace.result]] += z * w
    found, expected = found[:, expected > 0.0], expected[expected > 0.0]
    errors = found.std(axis=0, ddof=1) / math.sqrt(runs)
    scores: list[float] = ((found.mean(axis=0) - expected) / errors).tolist()
    return scores


@pytest.fixture
def pair(load_file: Callable[[Path], ModuleType], root: Path) -> Any:
    """A tiny random Llama, and its untouched copy."""
    small = load_file(root / "tests" / "lmppl" / "test_torch_lm.py")
    return small.Pair("llama")


def test_smc_has_the_law_of_the_model(pair: Any) -> None:
    scores = z_scores(pair, ENGINES["tokens"], None, 150)
    assert max(map(abs, scores)) < ONE_IN_A_MILLION, scores


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_have_the_law_of_the_model(pair: Any, engine: str, sampler: str) -> None:
    scores = z_scores(pair, ENGINES[engine], SAMPLERS[sampler], 2_000)
    assert max(map(abs, scores)) < ONE_IN_A_MILLION, scores
