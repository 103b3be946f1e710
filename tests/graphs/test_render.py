"""Pictures: well-formed, escaped, nothing drawn over anything else; Mermaid and DOT."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmppl import LM, Bernoulli, Choice, effect, factor, observe, plate, program, sample
from lmppl.errors import BadArgument
from lmppl.graphs import dot, graph_of, mermaid, render, render_svg
from lmppl.graphs.structure.layout import layered
from lmppl.graphs.structure.render import collapse

SVG = "{http://www.w3.org/2000/svg}"
NASTY = '</title><script>alert("x")</script>&amp; ]]> "; rm'


@program
def checked(question: str) -> Any:
    claim = sample("claim", LM(f"Q: {question}\nClaim:"))
    source = effect("search", len, claim)

    def check(i: int) -> Any:
        vote = sample("vote", Choice(f"{i}: is {claim!r} right, by {source}?", [" yes", " no"]))
        factor("trust", 0.1 if vote == " yes" else -0.3)
        return vote

    votes = plate("judge", range(4), check)
    observe("agreed", Bernoulli(0.9 if votes.count(" yes") > 2 else 0.2), True)
    return claim


def test_a_plate_is_one_box() -> None:
    graph = graph_of(checked, "why?")
    small = collapse(graph)
    assert sorted(small) == ["agreed", "claim", "judge[i]/trust", "judge[i]/vote", "search"]
    svg = render_svg(graph)
    root = ET.fromstring(svg)
    words = [t.text or "" for t in root.iter(f"{SVG}text")]
    assert "judge × 4" in words and "vote" in words and "claim" in words
    assert len(list(root.iter(f"{SVG}ellipse"))) == 3
    whole = ET.fromstring(render_svg(graph, plates=False))
    assert len(list(whole.iter(f"{SVG}ellipse"))) == 2 + 4
    assert [g.get("data-site") for g in whole.iter(f"{SVG}g")][0] == "claim"


def test_texts_of_models_are_escaped_everywhere() -> None:
    graph = nx.DiGraph(program=NASTY, plates={NASTY: 2})
    graph.add_node(NASTY, kind="latent", law=NASTY, prompt=NASTY, value=NASTY)
    graph.add_node(f"{NASTY}[0]/a", kind="effect", law=NASTY, plates=((NASTY, 0),))
    graph.add_node("f", kind="factor")
    graph.add_edge(NASTY, f"{NASTY}[0]/a", via=NASTY)
    graph.add_edge(NASTY, "f")
    for plates in (True, False):
        svg = render_svg(graph, plates=plates, title=NASTY)
        root = ET.fromstring(svg)  # one well-formed element
        assert not list(root.iter("script")) and not list(root.iter(f"{SVG}script"))
        assert "<script" not in svg.lower()
        text = mermaid(graph, plates=plates)
        assert "<" not in text and '"; rm' not in text
        assert '\\"; rm' in dot(graph, plates=plates)


def test_text_forms() -> None:
    graph = graph_of(checked, "why?")
    flow = mermaid(graph)
    assert flow.startswith("flowchart TD\n")
    assert 'subgraph p0["judge × 4"]' in flow and '(["claim"]):::latent' in flow
    assert flow.count("-->") == collapse(graph).number_of_edges()
    lines = dot(graph).splitlines()
    assert lines[0] == "digraph program {" and lines[-1] == "}"
    assert '  "claim" -> "search";' in lines


def test_render_writes_by_ending(tmp_path: Path) -> None:
    graph = graph_of(checked, "why?")
    assert render(graph, tmp_path / "g.svg").read_text("utf-8") == render_svg(graph)
    assert render(graph, tmp_path / "g.mmd").read_text("utf-8") == mermaid(graph)
    assert render(graph, tmp_path / "g.dot").read_text("utf-8") == dot(graph)
    with pytest.raises(BadArgument, match="ending"):
        render(graph, tmp_path / "g.png")
    with pytest.raises(BadArgument, match="ProgramFunction is no graph"):
        render(checked, tmp_path / "p.svg")
    with pytest.raises(BadArgument, match="acyclic"):
        render_svg(nx.DiGraph([(1, 2), (2, 1)]))
    assert ET.fromstring(render_svg(nx.DiGraph())).tag == f"{SVG}svg"


@settings(max_examples=40)
@given(st.integers(0, 10**9))
def test_layout_of_random_graphs(seed: int) -> None:
    """Edges point down, nodes side by side keep their distance, a group's band holds no other."""
    rng = random.Random(seed)
    n = rng.randint(1, 14)
    edges = [(i, j) for j in range(n) for i in range(j) if rng.random() < 2.0 / n]
    widths: dict[Any, float] = {i: rng.uniform(20, 140) for i in range(n)}
    groups: dict[Any, Any] = {i: rng.choice("ab") for i in range(n) if rng.random() < 0.4}
    found = layered(list(range(n)), edges, widths, groups=groups, gap=10.0)
    for u, v in edges:
        ys = [found.at[u][1], *(y for _, y in found.bends.get((u, v), [])), found.at[v][1]]
        assert all(b - a == pytest.approx(84.0) for a, b in zip(ys, ys[1:], strict=False))
    for i in range(n):
        x, y = found.at[i]
        assert 0 <= x - widths[i] / 2 and x + widths[i] / 2 <= found.width and 0 < y < found.height
        for j in range(i):
            if found.at[j][1] == y:
                assert abs(found.at[j][0] - x) >= (widths[i] + widths[j]) / 2 + 10 - 1e-6
    for name in "ab":
        inside = [i for i in range(n) if groups.get(i) == name]
        if inside:
            left = min(found.at[i][0] - widths[i] / 2 for i in inside)
            right = max(found.at[i][0] + widths[i] / 2 for i in inside)
            for i in set(range(n)) - set(inside):
                assert not left < found.at[i][0] < right


def test_the_picture_of_the_page_is_what_its_program_gives(root: Path) -> None:
    """docs/images/word_problem.svg is made by the first block of the page."""
    page = (root / "docs" / "graphs_of_programs.md").read_text("utf-8")
    block = page.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(compile(block, "graphs_of_programs.md", "exec"), names)
    shown = (root / "docs" / "images" / "word_problem.svg").read_text("utf-8")
    assert render_svg(names["graph"]) == shown, "render it again into docs/images"
