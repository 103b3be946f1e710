"""The report of a posterior: complete, self-contained, with the numbers of the posterior."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest

from lmppl import LM, Bernoulli, Uniform, observe, program, sample
from lmppl.errors import BadArgument
from lmppl.graphs import Node, graph
from lmppl.inference import (
    SMC,
    Beam,
    Cascade,
    Enumerate,
    Greedy,
    Importance,
    ParallelTempering,
    ParticleGibbs,
    Posterior,
    WithoutReplacement,
    infer,
)
from lmppl.inference.search.found import Found
from lmppl.inference.view.page import report_page, script
from lmppl.lm.table import TableLM
from lmppl.trace import Entry, Trace


@program
def coins() -> Any:
    a, b = sample("a", Uniform([0, 1])), sample("b", Uniform([0, 1]))
    observe("sum", Bernoulli(0.9 if a + b == 1 else 0.1), True)
    return a


@program
def planned() -> str:
    def ask() -> str:
        return str(sample("said", LM("say ", max_tokens=3, stop="\n")))

    def join(a: str, b: str) -> str:
        return f"{a}|{b}"

    found = graph("plan", [Node("a", ask), Node("b", ask), Node("both", join, parents=("a", "b"))])
    return "yes" if "yes" in found["both"] else "no"


@pytest.fixture(scope="module")
def posterior(reports: ModuleType) -> Posterior:
    return cast("Posterior", reports.walked())


def test_a_report_is_one_file_that_fetches_nothing(
    reports: ModuleType, posterior: Posterior, tmp_path: Path
) -> None:
    posterior.report(tmp_path / "run.html", title="Up or down?")
    page = (tmp_path / "run.html").read_text("utf-8")
    found = reports.Markup(page)
    assert (
        "default-src 'none'" in found.policy and "unsafe-inline'; base-uri 'none'" in found.policy
    )
    (island, _), (ours, code) = found.scripts
    assert island["type"] == "application/json" and ours == {}
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in found.policy and code == script()
    assert set(re.findall(r"https?://[^\s\"'<)]*", page)) <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in page and "url(#" not in page.replace("url(#lmppl-arrow)", "")
    assert list(tmp_path.iterdir()) == [tmp_path / "run.html"]


def test_the_state_has_the_numbers_of_the_posterior(
    reports: ModuleType, posterior: Posterior
) -> None:
    state = reports.state_of(report_page(posterior))
    strings, nodes, history = state["strings"], state["nodes"], posterior.history
    assert history is not None and len(history.heads) == len(history.ess) - 1
    rows = {strings[text]: p for text, p, _ in state["answers"]}
    for value, p in posterior.marginal().items():
        assert rows[value] == pytest.approx(p, abs=1e-4)
    parent = [i - up for i, up in enumerate(nodes["up"])]
    for leaf, trace, weight in zip(
        state["particles"]["leaf"], posterior.traces, state["particles"]["lw"], strict=True
    ):
        told = []
        while leaf:
            op, address = state["sites"][nodes["site"][leaf]]
            told.append((op, address, strings[nodes["text"][leaf]]))
            leaf = parent[leaf]
        shown = [(e.op, e.address, e.value if isinstance(e.value, str) else repr(e.value)) for e in trace.sites]  # fmt: skip
        assert told[::-1] == shown
        assert weight == pytest.approx(
            posterior.log_weights[posterior.traces.index(trace)], rel=1e-4
        )
    for t, step in enumerate(state["steps"]):
        assert step["ess"] == pytest.approx(history.ess[t], rel=1e-3)
        assert ("parents" in step) == (history.ancestors[t] is not None)
        assert len(step["at"]) == len(step["lw"]) == 30
    tokens = sum(row[3] for row in state["costs"])
    assert tokens == posterior.ledger.tokens_out == state["tokens"][1]
    assert ["step0", "step1"] in state["edges"]


def test_those_that_died_out_are_told(reports: ModuleType, posterior: Posterior) -> None:
    """Nodes of the tree that no final particle descends from: what resampling left behind."""
    state = reports.state_of(report_page(posterior, graph=False, land=False))
    parent = [i - up for i, up in enumerate(state["nodes"]["up"])]
    alive = {0}
    for leaf in state["particles"]["leaf"]:
        while leaf not in alive:
            alive.add(leaf)
            leaf = parent[leaf]
    dead = set(range(len(parent))) - alive
    assert dead and {n for step in state["steps"] for n in step["at"]} >= {
        d for d in dead if d not in parent
    }


@pytest.mark.parametrize("engine", [Importance(5), Enumerate(), Greedy(), SMC(1)], ids=repr)
def test_every_engine_has_a_report(reports: ModuleType, engine: Any) -> None:
    state = reports.state_of(report_page(infer(coins, engine=engine, seed=0)))
    assert state["answers"] and state["landscape"] is not None
    assert len(state["particles"]["leaf"]) == state["size"]


@pytest.mark.parametrize(
    "engine",
    [
        Cascade(8),
        WithoutReplacement(6),
        ParticleGibbs(5, sweeps=7, always=True),
        ParallelTempering((2.0, 1.0), particles=3, sweeps=3, always=True),
    ],
    ids=lambda e: type(e).__name__,
)
def test_every_engine_with_barriers_tells_of_them(
    reports: ModuleType, tmp_path: Path, engine: Any
) -> None:
    lm = TableLM(["up ", "down ", "<eos>"], {(): [0.4, 0.4, 0.2]})
    post = infer(short, engine=engine, lm=lm, seed=2)
    state = reports.state_of(report_page(post, land=False))
    steps, last = state["steps"], state["last"]
    history = post.history
    assert history is not None and state["told"] and len(steps) == len(history.ess) > 2
    chain = "Gibbs" in repr(engine) or "Tempering" in repr(engine)
    assert (last is not None) == bool(state["whose"]) == chain
    end = last or state["particles"]
    assert steps[-1]["at"] == end["leaf"] and math.fsum(end["w"]) == pytest.approx(1, abs=1e-3)
    for step, after in zip(steps, steps[1:], strict=False):
        assert len(step["lw"]) == len(step["at"]) == step["n"]
        parents = step.get("parents", range(step["n"]))
        assert len(parents) == after["n"] and max(parents) < step["n"]
    assert any("parents" in step for step in steps)
    assert len(state["particles"]["leaf"]) == len(post)
    post.save(tmp_path / "p.jsonl")
    loaded = reports.state_of(report_page(Posterior.load(tmp_path / "p.jsonl"), land=False))
    assert [s["ess"] for s in loaded["steps"]] == [s["ess"] for s in steps]
    assert loaded["whose"] == state["whose"] and loaded["told"] is not chain


@program
def short() -> str:
    """At most three words, each heard."""
    told = ""
    while told.count(" ") < 3:
        word = sample(f"word{told.count(' ')}", LM("go", max_tokens=1))
        observe(f"heard{told.count(' ')}", Bernoulli(0.8 if "up" in word else 0.3), True)
        if not word:
            break
        told += word
    return told


def test_a_dead_population_has_a_report(reports: ModuleType) -> None:
    @program
    def never() -> int:
        observe("impossible <b>", Bernoulli(0.0), True)
        return 1

    dead = infer(never, engine=SMC(4), on_dead="return")
    state = reports.state_of(report_page(dead))
    assert state["dead"] and state["deaths"] == [["impossible <b>", 4]] and state["answers"] == []


def test_a_loaded_posterior_has_a_report(
    reports: ModuleType, posterior: Posterior, tmp_path: Path
) -> None:
    posterior.save(tmp_path / "p.jsonl")
    loaded = reports.state_of(report_page(Posterior.load(tmp_path / "p.jsonl")))
    before = reports.state_of(report_page(posterior))
    assert loaded["answers"] and loaded["costs"] == before["costs"] and loaded["edges"] == []
    assert [s["lw"] for s in loaded["steps"]] == [s["lw"] for s in before["steps"]]
    assert "is not known" in loaded["graph_note"]


def test_recorded_thought_graphs_are_told(reports: ModuleType) -> None:
    post = infer(planned, engine=SMC(4), lm=reports.UP_DOWN, seed=0)
    state = reports.state_of(report_page(post))
    (first, *_) = state["graphs"].values()
    names = [state["strings"][row[0]] for row in first["rows"]]
    assert names == ["a", "b", "both"] and first["rows"][2][2] == [0, 1]
    assert first["totals"][0] >= first["totals"][1] > 0, "tokens, and those on the critical path"


def test_long_texts_are_cut_and_the_page_keeps_to_its_limit(reports: ModuleType) -> None:
    noise = np.random.default_rng(0)
    big = "x" * 50_000_000
    words = ["".join(map(chr, noise.integers(97, 123, 3000))) for _ in range(400)]
    traces = [Trace(Entry(None, "sample", "t", w), w) for w in [big, *words]]
    page = report_page(Posterior(traces, np.zeros(401), 0.0), limit=400_000, land=False)
    assert len(page) < 400_000
    state = reports.state_of(page)
    assert state["cut"] and max(map(len, state["strings"])) <= state["cut"] + 2


def test_many_particles_are_told_by_the_heaviest(reports: ModuleType) -> None:
    many = infer(coins, engine=Importance(4500), seed=0)
    state = reports.state_of(report_page(many, land=False))
    assert len(state["particles"]["leaf"]) == 4000 and state["size"] == 4500
    left = set(range(4500)) - set(state["particles"]["index"])
    assert max(many.weights[list(left)]) <= min(many.weights[state["particles"]["index"]])


def test_wrong_options_are_named(posterior: Posterior) -> None:
    with pytest.raises(BadArgument, match="limit must be an integer of at least 100000"):
        report_page(posterior, limit=10)


def test_what_a_search_gave_up_is_told(reports: ModuleType) -> None:
    found = infer(reports.walk, 2, engine=Beam(width=2, expand=3), lm=reports.UP_DOWN, seed=0)
    state = reports.state_of(report_page(found, graph=False, land=False))
    parent = [i - up for i, up in enumerate(state["nodes"]["up"])]
    alive = {0}
    for leaf in state["particles"]["leaf"]:
        while leaf not in alive:
            alive.add(leaf)
            leaf = parent[leaf]
    texts = [state["strings"][t] for t in state["nodes"]["text"]]
    assert isinstance(found, Found) and found.nodes > len(found) and len(parent) > len(alive)
    assert {texts[n] for n in set(range(len(parent))) - alive} - {"True", ""}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of ArviZ and matplotlib are theirs
def test_the_plots_of_arviz_are_pictures_in_the_page(reports: ModuleType) -> None:
    pytest.importorskip("arviz")
    pytest.importorskip("matplotlib")

    @program
    def named() -> Any:
        return sample("<b>side", Uniform(["<i>heads", "tails"])), sample("n", Uniform([1, 2, 3]))

    page = report_page(infer(named, engine=SMC(50), seed=0), arviz=True)
    found = reports.Markup(page)
    assert page.count('<img class="shot"') == 2 and "img-src data:;" in found.policy
    assert "<b>side_code: 0 = <i>heads, 1 = tails" in "".join(found.texts)
    assert "img-src" not in reports.Markup(report_page(infer(named, engine=SMC(5), seed=0))).policy
