"""What every particle engine tells of its barriers: populations, weights, and descent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lmppl import LM, Bernoulli, Uniform, factor, observe, program, sample
from lmppl.inference import (
    SMC,
    Cascade,
    Importance,
    MetropolisHastings,
    ParallelTempering,
    ParticleGibbs,
    Posterior,
    WithoutReplacement,
    infer,
)
from lmppl.inference.results.history import ROOM, History
from lmppl.lm.table import TableLM
from lmppl.trace import Trace
from lmppl.weights import ess

AB = TableLM(
    ["a", "b", "<eos>"],
    {(): [0.5, 0.3, 0.2], (0,): [0.25, 0.35, 0.4], (1,): [0.6, 0.0, 0.4], (2,): [0.5, 0.3, 0.2]},
)


@program
def uneven() -> str:
    """Particles pass two to five barriers, with weights that differ."""
    told = "a"
    for i in range(sample("turns", Uniform([1, 2, 4]))):
        told += sample(f"t{i}", LM(told, max_tokens=1))
        observe(f"good{i}", Bernoulli(0.2 + 0.6 / (1 + told.count("b"))), True)
        factor(f"long{i}", 0.3 * len(told))
    return told


FIXED = [
    SMC(8, ess_threshold=0.9),
    SMC(4, always=True, resampling="multinomial"),
    Importance(6),
]
GROWING = [
    Cascade(8),
    Cascade(3, most=5),
    WithoutReplacement(5),
    WithoutReplacement(100),
]
CHAINS = [
    ParticleGibbs(4, sweeps=4, always=True),
    ParticleGibbs(4, sweeps=4, always=True, ancestor_sampling=True),
    ParallelTempering((2.0, 1.0), particles=4, sweeps=4, ess_threshold=1.0),
    MetropolisHastings(steps=4, particles=4),
]


def name(engine: Any) -> str:
    return type(engine).__name__


def told(trace: Trace) -> list[tuple[str, Any]]:
    return [(e.address, e.value) for e in trace.sites if e.op != "jobs"]


def history_of(posterior: Posterior) -> History:
    assert posterior.history is not None
    return posterior.history


@pytest.mark.parametrize("engine", [*FIXED, *GROWING, *CHAINS], ids=name)
@pytest.mark.parametrize("seed", range(3))
def test_populations_descend_from_each_other(engine: Any, seed: int) -> None:
    posterior = infer(uneven, engine=engine, lm=AB, seed=seed)
    history = history_of(posterior)
    sizes, last = history.sizes, len(history.ess) - 1
    assert len(history.ancestors) == len(history.eves) == len(history.log_evidence) == last + 1
    assert history.ancestors[last] is None
    end = posterior.traces if history.last is None else history.last.traces
    weights = posterior.log_weights if history.last is None else history.last.log_weights
    assert (history.whose == "") == (history.last is None)
    assert len(end) == len(weights) == sizes[last]
    assert history.ess[last] == pytest.approx(ess(weights))
    for t in range(last):
        lw, here = history.log_weights[t], history.heads[t]
        assert len(lw) == len(here) == sizes[t]
        assert history.ess[t] == pytest.approx(ess(lw))
        parents = history.ancestors[t]
        follow = np.arange(sizes[t]) if parents is None else parents
        assert len(follow) == sizes[t + 1] and 0 <= follow.min() and follow.max() < sizes[t]
        after = (
            [told(Trace.of(h)) for h in history.heads[t + 1]]
            if t + 1 < last
            else [told(trace) for trace in end]
        )
        for child, parent in zip(after, follow.tolist(), strict=True):
            before = told(Trace.of(here[parent]))
            assert child[: len(before)] == before


@pytest.mark.parametrize("engine", GROWING, ids=name)
def test_the_evidence_so_far_ends_as_the_evidence(engine: Any) -> None:
    posterior = infer(uneven, engine=engine, lm=AB, seed=1)
    history = history_of(posterior)
    assert history.log_evidence[-1] == pytest.approx(posterior.log_evidence, abs=1e-12)
    assert not history.fixed
    if isinstance(engine, Cascade):
        assert history.resamplings > 0 and len(set(history.sizes)) > 1


@pytest.mark.parametrize("engine", CHAINS, ids=name)
def test_a_chain_has_the_barriers_of_one_sweep(engine: Any) -> None:
    posterior = infer(uneven, engine=engine, lm=AB, seed=0)
    history = history_of(posterior)
    assert history.whose and history.last is not None
    kept = [told(t) for t in history.last.traces]
    if not isinstance(engine, MetropolisHastings):
        assert any(told(t) in kept for t in posterior.traces)
        assert told(posterior.traces[-1]) in kept or isinstance(engine, ParallelTempering)


def test_a_history_has_limited_room() -> None:
    history = History(ROOM // 2 + 1)
    lw = np.zeros(history.particles)
    for _ in range(3):
        history.add(lw, [None] * len(lw), range(len(lw)), 0.0)
    assert len(history.ess) == 3 and len(history.log_weights) == len(history.heads) == 1


def test_a_saved_history_knows_whose_it_is(tmp_path: Any) -> None:
    for engine in (Cascade(8), ParticleGibbs(4, sweeps=4)):
        history = history_of(infer(uneven, engine=engine, lm=AB, seed=1))
        posterior = infer(uneven, engine=engine, lm=AB, seed=1)
        posterior.save(tmp_path / "p.jsonl")
        loaded = history_of(Posterior.load(tmp_path / "p.jsonl"))
        assert (loaded.whose, loaded.fixed) == (history.whose, history.fixed)
        assert loaded.sizes == history.sizes and loaded.last is None
