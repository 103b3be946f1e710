"""Every engine runs a thought graph, and drivers, handlers and saved runs know it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmppl import LM, check, factor, handlers, program, sample
from lmppl.graphs import Node, Spawn, graph, thought_graph
from lmppl.inference import (
    MCTS,
    SMC,
    AStar,
    Beam,
    BestFirst,
    Cascade,
    Enumerate,
    Forward,
    Importance,
    MetropolisHastings,
    ParallelTempering,
    ParticleGibbs,
    Posterior,
    Rejection,
    SingleSite,
    Suffix,
    WithoutReplacement,
    infer,
    infer_many,
)
from lmppl.lm.table import TableLM

AB = TableLM(
    ["a", "b", "<eos>"],
    {(): [0.5, 0.3, 0.2], (0,): [0.25, 0.35, 0.4], (1,): [0.6, 0.0, 0.4], (2,): [0.5, 0.3, 0.2]},
    name="ab",
)


def think(*read: str) -> Any:
    return sample("text", LM("a" + "".join(read), max_tokens=1))


@program
def grows(strength: float = 0.8) -> Any:
    """A diamond whose last node is spawned only after an a."""

    def plan(left: str, right: str) -> Any:
        factor("agree", -strength if left != right else 0.0)
        if left != "a":
            return left or "end"
        more = [Node("plan.more", think, ("root",))]
        return Spawn(more, becomes="plan.more")

    nodes = [
        Node("plan", plan, ("left", "right")),
        Node("root", think),
        Node("left", think, ("root",)),
        Node("right", think, ("root",)),
    ]
    return graph("g", nodes)["plan"] or "nothing"


EXACT = infer(grows, engine=Enumerate(), lm=AB)

SAMPLERS: list[Any] = [
    Importance(1000),
    SMC(1000),
    SMC(1000, resample_at="factor", always=True),
    Rejection(1000),
    Cascade(1000),
    MetropolisHastings(1500, SingleSite(), burn_in=50),
    MetropolisHastings(1000, Suffix(), burn_in=50),
    ParticleGibbs(8, sweeps=150, burn_in=10),
    ParticleGibbs(8, sweeps=150, burn_in=10, ancestor_sampling=True),
    ParallelTempering(particles=4, sweeps=150, burn_in=10),
]


@pytest.mark.slow
@pytest.mark.parametrize("engine", SAMPLERS, ids=lambda e: type(e).__name__)
def test_samplers_agree_with_the_exact_answer(engine: Any) -> None:
    """Five standard errors of 150 independent draws, which all of these are worth at least."""
    found = infer(grows, engine=engine, lm=AB, seed=3).marginal()
    for value, p in EXACT.marginal().items():
        assert abs(found.get(value, 0.0) - p) < 5 * math.sqrt(p * (1 - p) / 150)


@pytest.mark.parametrize("engine", SAMPLERS, ids=lambda e: type(e).__name__)
def test_every_sampler_runs(engine: Any) -> None:
    small = {"particles": 4, "samples": 4, "steps": 12, "sweeps": 2, "burn_in": 0}
    engine = replace(engine, **{k: v for k, v in small.items() if hasattr(engine, k)})
    found = infer(grows, engine=engine, lm=AB, seed=1)
    assert set(found.marginal()) <= set(EXACT.marginal())


def test_exact_engines_and_searches() -> None:
    whole = infer(grows, engine=WithoutReplacement(300), lm=AB)
    assert whole.log_evidence == pytest.approx(EXACT.log_evidence, abs=1e-10)
    best = EXACT.map()
    for engine in (AStar(), BestFirst(expand=9), Beam(width=50, expand=9), MCTS(simulations=300)):
        found = infer(grows, engine=engine, lm=AB, seed=0).map()
        assert found.log_joint == pytest.approx(best.log_joint, abs=1e-9), type(engine).__name__


def test_forward_and_many_questions() -> None:
    assert len(infer(grows, engine=Forward(5), lm=AB)) == 5
    many = infer_many(grows, [(0.0,), (5.0,)], engine=SMC(50), lm=AB)
    alone = [infer(grows, s, engine=Enumerate(), lm=AB) for s in (0.0, 5.0)]
    for run, exact in zip(many, alone, strict=True):
        assert run.log_evidence == pytest.approx(exact.log_evidence, abs=0.5)


def test_handlers_reach_into_nodes() -> None:
    fixed = handlers.condition(grows, {"g/root/text": "b"})
    found = infer(fixed, engine=Enumerate(), lm=AB)
    again = infer(grows, engine=Enumerate(), lm=AB, observations={"g/root/text": "b"})
    assert found.log_evidence == pytest.approx(again.log_evidence, abs=1e-12)
    assert {t["g/root/text"] for t in found.traces} == {"b"}
    seen = handlers.trace(handlers.seed(handlers.using(grows, AB), 4)).get_trace()
    replayed = handlers.trace(handlers.replay(handlers.using(grows, AB), seen)).get_trace()
    assert replayed.result == seen.result
    one, other = thought_graph(replayed), thought_graph(seen)
    assert [(n.id, n.text, n.status, n.logp) for n in one.nodes] == [
        (n.id, n.text, n.status, n.logp) for n in other.nodes
    ]


def test_the_check_of_programs_accepts_graphs() -> None:
    check(grows, lm=AB)


def test_graphs_survive_a_file(tmp_path: Path) -> None:
    run = infer(grows, engine=SMC(20), lm=AB, seed=2)
    run.save(tmp_path / "run.jsonl")
    again = Posterior.load(tmp_path / "run.jsonl")
    for one, other in zip(run.traces, again.traces, strict=True):
        assert thought_graph(one) == thought_graph(other)
        assert thought_graph(other, "g").rounds in (2, 3)
