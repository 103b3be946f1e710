"""Beams that are ranked inside strings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lmppl import LM, factor, program, sample
from lmppl.errors import AllParticlesDead, BadArgument
from lmppl.inference import Beam, Enumerate, Found, infer, tokens
from lmppl.lm.table import TableLM

WORDS = ["a", "b", "c", "<eos>"]


def model(seed: int) -> TableLM:
    rng = np.random.default_rng(seed)
    rows: dict[tuple[int, ...], list[float]] = {(): [0.4, 0.3, 0.3, 0.0]}
    rows |= {(i,): [*(0.75 * rng.dirichlet(np.full(3, 0.7))), 0.25] for i in range(3)}
    return TableLM(WORDS, rows, name=f"words{seed}")


@program
def text() -> Any:
    x = sample("x", LM("", max_tokens=3))
    y = sample("y", LM(x, max_tokens=1))
    factor("ends in c", 0.0 if y.endswith("c") else -1.5)
    return x + y


@pytest.mark.parametrize("k", [1, 2, 3])
def test_it_finds_the_best_and_bounds_the_evidence(k: int) -> None:
    """Against enumeration: log Σ γ of what was found is below log Z, each weight is γ; the exact MAP
    on at least half of ten models (children are drawn, so there is no promise: 8, 5 and 6)."""
    hits = 0
    for seed in range(10):
        lm = model(seed)
        exact = infer(text, engine=Enumerate(), lm=lm)
        best = max(t.log_joint for t in exact.traces)
        post = infer(text, engine=Beam(width=24, expand=12, at=tokens(k)), lm=lm, seed=seed)
        assert isinstance(post, Found) and post.log_evidence <= exact.log_evidence + 1e-9
        table = {t.result: 0.0 for t in exact.traces}
        for trace, w in zip(post.traces, post.log_weights, strict=True):
            assert trace.result in table and w == pytest.approx(trace.log_joint, abs=1e-9)
        assert len({(t["x"], t["y"]) for t in post.traces}) == len(post)
        hits += abs(post.map().log_joint - best) < 1e-9
    assert hits >= 5


def test_a_guide_is_asked_about_half_strings() -> None:
    """The guide likes an a at every place: it sees prefixes of 1, 2, 3, … tokens."""
    seen: set[int] = set()

    def likes_a(trace: Any) -> float:
        so_far = "".join(map(str, [*(e.value for e in trace.sites if e.op == "sample")]))
        so_far += "".join(map(str, (trace.so_far(a) for a in trace.partial)))
        seen.add(len(so_far))
        return math.log(0.01 + so_far.count("a") / max(len(so_far), 1))

    @program
    def one() -> Any:
        return sample("x", LM("", max_tokens=4))

    engine = Beam(width=12, expand=8, rank="guide", guide=likes_a, at=tokens(1))
    post = infer(one, engine=engine, lm=model(1), seed=0)
    assert isinstance(post, Found)
    assert {1, 2, 3} <= seen
    assert set(str(post.best)) == {"a"}


def test_seeds_repeat() -> None:
    engine = Beam(width=24, expand=12, at=tokens(1), temperature=0.5)
    post, again, other = (infer(text, engine=engine, lm=model(3), seed=s) for s in (5, 5, 6))
    assert [t.result for t in post.traces] == [t.result for t in again.traces]
    assert [t.result for t in post.traces] != [t.result for t in other.traces]


def test_an_impossible_program_is_dead() -> None:
    @program
    def never() -> Any:
        x = sample("x", LM("", max_tokens=2))
        factor("never", -math.inf)
        return x

    with pytest.raises(AllParticlesDead, match="killed at: never"):
        infer(never, engine=Beam(width=3, at=tokens(1)), lm=model(0))


@pytest.mark.parametrize(
    "more", [{"at": 3}, {"at": tokens(1), "groups": 2}, {"at": tokens(1), "children": "all"}]
)
def test_arguments(more: Any) -> None:
    with pytest.raises(BadArgument, match="at"):
        Beam(width=4, **more)
