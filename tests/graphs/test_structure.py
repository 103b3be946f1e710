"""The graph of a program, and what it says of independence."""

from __future__ import annotations

import itertools
import math
import random
from types import ModuleType
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmppl import (
    LM,
    Bernoulli,
    Categorical,
    Chat,
    Choice,
    deterministic,
    effect,
    factor,
    handlers,
    observe,
    plate,
    program,
    prompt,
    sample,
)
from lmppl.errors import BadArgument, GraphError
from lmppl.graphs import graph_of
from lmppl.graphs.factors.elimination import CliqueTree
from lmppl.graphs.factors.program_tables import tables_of
from lmppl.graphs.structure.independence import d_separated, markov_blanket, relevant
from lmppl.lm.table import TableLM


def never(*_: Any) -> Any:
    raise RuntimeError("the structure is found before anything is run")


@program
def cascade(question: str) -> Any:
    thought = sample("thought", LM(f"Q: {question}\nThink: ", stop="\n"))
    formula = sample("formula", LM("T: %s\nF:" % thought.strip().upper(), regex=r"[0-9+]+"))  # noqa: UP031
    answer = effect("calculator", never, formula)
    join = sample("summary", LM(" ".join(["Sum up", thought, str(answer)])))
    told = deterministic("told", f"{join}!")
    observe("verdict", Choice("{} Right?".format(told), [" yes", " no"]), " yes")  # noqa: UP032
    sample("aside", Chat([("system", "Be brief."), ("user", prompt("Rate: {t}", t=thought))]))
    return answer


def test_texts_are_traced_through_every_way_of_writing_a_prompt() -> None:
    graph = graph_of(cascade, "why?")
    edges = {(u, v): d["via"] for u, v, d in graph.edges(data=True)}
    assert edges.pop(("thought", "formula")) in ("text", "value")  # upper() changes the text
    assert edges == {
        ("formula", "calculator"): "value",
        ("thought", "summary"): "text",
        ("calculator", "summary"): "text",
        ("summary", "told"): "value",
        ("told", "verdict"): "text",
        ("thought", "aside"): "text",
    }
    kinds = dict(graph.nodes(data="kind"))
    assert kinds == {
        "thought": "latent",
        "formula": "latent",
        "calculator": "effect",
        "summary": "latent",
        "told": "deterministic",
        "verdict": "observed",
        "aside": "latent",
    }
    text = graph.nodes["summary"]["prompt"]
    ((start, stop),) = graph.edges["thought", "summary"]["spans"]
    assert text[start:stop] == "⟨thought⟩"
    assert graph.graph["returns"] == ["calculator"] and graph.graph["untested"] == []
    assert nx.is_directed_acyclic_graph(graph)


def test_spans_kept_by_text_are_used() -> None:
    @program
    def kept() -> Any:
        a = sample("a", Choice("pick", ["x", "y"]))
        return sample("b", LM("a x y: " + a + " and " + a))

    graph = graph_of(kept)
    assert graph.edges["a", "b"]["spans"] == ((7, 8), (13, 14))  # not the x of the template


@program
def branching() -> Any:
    kind = sample("kind", Categorical({"short": 0.5, "long": 0.5}))
    if kind == "long":
        more = sample("more", LM(f"A {kind} one:"))
        return sample("end", LM(f"{more} end"))
    return kind


def test_sites_of_other_branches_are_found() -> None:
    graph = graph_of(branching)
    assert list(graph) == ["kind", "more", "end"]
    assert [graph.nodes[n]["optional"] for n in graph] == [False, True, True]
    assert graph.edges["kind", "more"]["via"] == "control"
    assert graph.edges["more", "end"]["via"] == "text"


def test_a_factor_on_whether_texts_agree_reads_all_of_them() -> None:
    """Placeholders all differ, and one of them changed still differs from the others."""

    @program
    def council() -> None:
        texts = [sample("text", LM("Why?")) for _ in range(3)]
        factor("agree", 1.0 if len(set(texts)) == 1 else 0.0)

    assert set(graph_of(council).pred["agree"]) == {"text", "text[1]", "text[2]"}


def test_a_program_that_parses_takes_values_from_a_trace() -> None:
    @program
    def parsed() -> Any:
        n = sample("n", LM("How many?", max_tokens=2))
        return sample("m", Categorical({"a": float(n), "b": 1.0}))

    with pytest.raises(GraphError, match="ValueError"):
        graph_of(parsed)
    graph = graph_of(parsed, trace={"n": "3"})
    assert list(graph.edges(data="via")) == [("n", "m", "value")]
    lm = TableLM(["1", "2", "<eos>"], {(): [0.5, 0.5, 0.0]})
    with handlers.using(lm=lm):
        found = handlers.trace(handlers.seed(parsed, 0)).get_trace()
    assert list(graph_of(parsed, trace=found).edges) == [("n", "m")]
    with pytest.raises(BadArgument, match="values by site"):
        graph_of(parsed, trace=3)  # type: ignore[arg-type]


def test_a_loop_that_no_value_ends_is_given_up() -> None:
    """On placeholders, or on a value that no model would draw."""

    @program
    def words() -> str:
        told = ""
        while told.count(".") < 2:
            told += sample("word", LM(f"Go on: {told}"))
        return told

    with pytest.raises(GraphError, match="has not ended after 1,000 sites"):
        graph_of(words)
    graph = graph_of(words, trace={"word": "one.", "word[1]": "two."})
    assert list(graph) == ["word", "word[1]"] and ("word", "word[1]") in graph.edges


def test_sites_that_read_each_other_in_turn_are_no_dag() -> None:
    @program
    def turned() -> None:
        first = sample("first", Bernoulli(0.5))
        if first:
            a = sample("a", Bernoulli(0.5))
            sample("b", Bernoulli(0.9 if a else 0.1))
        else:
            b = sample("b", Bernoulli(0.5))
            sample("a", Bernoulli(0.9 if b else 0.1))

    with pytest.raises(GraphError, match="read each other"):
        graph_of(turned)


def test_plates_are_marked() -> None:
    @program
    def plated() -> Any:
        topic = sample("topic", LM("Topic:"))

        def fact(i: int) -> Any:
            text = sample("text", LM(f"Fact {i} on {topic}:"))
            factor("short", -0.1 * len(text))
            return text

        facts = plate("fact", range(3), fact)
        for i in plate("check", range(2)):
            observe("true", Choice(facts[i], [" yes", " no"]), " yes")

    graph = graph_of(plated)
    assert graph.graph["plates"] == {"fact": 3, "check": 2}
    assert graph.nodes["fact[1]/text"]["plates"] == (("fact", 1),)
    assert graph.nodes["check[0]/true"]["plates"] == (("check", 0),)
    assert set(graph.predecessors("check[1]/true")) == {"fact[1]/text"}


def test_every_shipped_program_has_a_graph(case: Any, programs: ModuleType) -> None:
    with handlers.using(lm=case.lm):
        graph = graph_of(case.program, *case.args)
    assert nx.is_directed_acyclic_graph(graph)
    want = {
        "cascade": {("x", "y")},
        "shared_parent": {
            ("root", "left"),
            ("root", "right"),
            ("left", "equal"),
            ("right", "equal"),
        },
        "hidden_loop": {
            ("loop[0]/s", "loop[0]/o"),
            ("loop[0]/s", "loop[1]/s"),
            ("loop[1]/s", "loop[1]/o"),
        },
        "calculator": {("n", "calculator"), ("calculator", "close")},
        "plated": {("leaf[1]/x", "leaf[1]/seen")},
    }
    if case.name in want:
        assert set(graph.edges) == want[case.name]


# -- independence -------------------------------------------------------------------------------


def random_dag(seed: int) -> Any:
    rng = random.Random(seed)
    n = rng.randint(2, 7)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(
        (i, j) for i, j in itertools.combinations(range(n), 2) if rng.random() < 0.4
    )
    return graph


def blocked_on_every_path(graph: Any, x: int, y: int, known: set[int]) -> bool:
    """The definition: no path is active (Pearl, 1988)."""
    for path in nx.all_simple_paths(graph.to_undirected(), x, y):
        active = True
        for a, b, c in zip(path, path[1:], path[2:], strict=False):
            if graph.has_edge(a, b) and graph.has_edge(c, b):
                active &= b in known or bool(nx.descendants(graph, b) & known)
            else:
                active &= b not in known
        if active:
            return False
    return True


@settings(max_examples=200)
@given(st.integers(0, 10**9))
def test_d_separation_is_its_definition_and_the_numbers(seed: int) -> None:
    """On random DAGs: no active path, and with random tables independence of the numbers."""
    graph = random_dag(seed)
    rng = np.random.default_rng(seed)
    n = graph.number_of_nodes()
    joint = np.ones((2,) * n)
    for v in graph:
        parents = sorted(graph.predecessors(v))
        table = rng.dirichlet((1.0, 1.0), (2,) * len(parents))
        shape = [2 if u in (*parents, v) else 1 for u in range(n)]
        joint = joint * table.reshape(shape)
    chance = random.Random(seed)
    x, y = chance.sample(range(n), 2)
    known = {v for v in range(n) if v not in (x, y) and chance.random() < 0.35}
    apart = d_separated(graph, x, y, known)
    assert apart == blocked_on_every_path(graph, x, y, known)
    rest = tuple(v for v in range(n) if v not in (x, y) and v not in known)
    p = joint.sum(axis=rest, keepdims=True)
    gap = p * p.sum(axis=(x, y), keepdims=True) - p.sum(axis=x, keepdims=True) * p.sum(
        axis=y, keepdims=True
    )
    assert (np.abs(gap).max() < 1e-12) == apart
    blanket = markov_blanket(graph, x)
    others = [v for v in graph if v != x and v not in blanket]
    assert all(d_separated(graph, x, v, blanket) for v in others)


def test_data_and_derived_values_are_given() -> None:
    graph = nx.DiGraph([("a", "s"), ("b", "s"), ("s", "c"), ("a", "d")])
    nx.set_node_attributes(graph, {"s": "deterministic", "c": "observed"}, "kind")
    assert not d_separated(graph, "a", "b")  # the observed child couples them
    assert d_separated(graph, "a", "b", data=False)
    assert d_separated(graph, "c", "d", ["a", "b"])  # a and b determine s
    assert d_separated(graph, "c", "a")  # c is data
    assert relevant(graph, "a") == {"a", "b", "s", "c"}  # d is barren
    assert relevant(graph, "d") == {"a", "b", "s", "c", "d"}
    with pytest.raises(BadArgument, match="both sides"):
        d_separated(graph, "a", ["a", "b"])
    with pytest.raises(BadArgument, match="no site"):
        markov_blanket(graph, "z")
    with pytest.raises(BadArgument, match="asked about"):
        d_separated(graph, "a", "b", "a")


# -- tables of programs --------------------------------------------------------------------------


def random_program(seed: int) -> tuple[Any, dict[str, tuple[str, ...]], float]:
    """A program of a random DAG, its true scopes, and its evidence by a plain sum."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 8))
    sizes = [int(k) for k in rng.integers(2, 4, n)]
    parents = [[j for j in range(i) if rng.random() < 0.4][-3:] for i in range(n)]
    tables = [rng.dirichlet(np.ones(sizes[i]), [sizes[j] for j in parents[i]]) for i in range(n)]
    pair = [int(j) for j in rng.permutation(n)[:2]]
    seen = rng.uniform(0.1, 0.9, [sizes[j] for j in pair])

    @program
    def made() -> Any:
        x: list[int] = []
        for i in range(n):
            law = tables[i][tuple(x[j] for j in parents[i])]
            x.append(sample(f"x{i}", Categorical(list(range(sizes[i])), law.tolist())))
        observe("y", Bernoulli(float(seen[x[pair[0]], x[pair[1]]])), True)
        return x[-1]

    total = []
    for x in itertools.product(*(range(k) for k in sizes)):
        p = float(seen[x[pair[0]], x[pair[1]]])
        for i in range(n):
            p *= float(tables[i][tuple(x[j] for j in parents[i])][x[i]])
        total.append(p)
    scopes = {f"x{i}": tuple(f"x{j}" for j in parents[i]) for i in range(n)}
    scopes["y"] = tuple(f"x{j}" for j in sorted(pair))
    return made, scopes, math.log(math.fsum(total))


@settings(max_examples=12)
@given(st.integers(0, 10**9))
def test_tables_of_random_programs(seed: int) -> None:
    """Scopes are the parents that were written, the evidence is the plain sum."""
    made, scopes, log_z = random_program(seed)
    found = tables_of(made, probes=64)
    assert {s: v for s, v in found.scopes.items() if s in scopes} == scopes
    assert CliqueTree(found.graph).log_z == pytest.approx(log_z, abs=1e-10)
    assert nx.is_directed_acyclic_graph(found.to_networkx())


def test_a_dependence_that_shows_in_one_setting_of_many_is_found() -> None:
    """z reads b only where a = 3 and c = 3, one setting in sixteen."""

    @program
    def needle() -> None:
        a, b, c = (sample(v, Categorical([0, 1, 2, 3])) for v in "abc")
        sample("z", Bernoulli(0.1 * (b + 1) if a == 3 and c == 3 else 0.5))

    found = tables_of(needle, exhaustive=0)
    assert not found.proven
    assert found.scopes["z"] == ("a", "b", "c")
    assert tables_of(needle, exhaustive=200).proven


def test_a_prompt_is_scored_once() -> None:
    """Twelve sites in a row: the tables ask for their sum, enumeration for their product."""
    lm = TableLM(["a", "b", "<eos>"], {(): [0.5, 0.3, 0.2], (0,): [0.2, 0.7, 0.1]})

    @program
    def row() -> Any:
        x = ""
        for _ in range(12):
            x = sample("x", Choice(f"{x}", ["a", "b"]))
        return x

    found = tables_of(row, lm=lm)
    assert found.ledger.calls == 2 * 3  # two options after "", "a" and "b"
    tree = CliqueTree(found.graph)
    assert tree.width == 1 and tree.log_z == pytest.approx(0.0, abs=1e-12)
