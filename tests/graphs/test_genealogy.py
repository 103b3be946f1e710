"""Ancestry of a particle run against a walk from child to parent, one particle at a time."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmppl.errors import BadArgument
from lmppl.graphs.genealogy import (
    MOST_COLUMNS,
    ancestors,
    coalescence_time,
    genealogy_svg,
    to_networkx,
    unique_ancestors,
)
from lmppl.types import Ints


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Ints | None], int, list[float]]:
    n = draw(st.integers(1, 6))
    parents = st.lists(st.integers(0, n - 1), min_size=n, max_size=n)
    steps = draw(st.lists(st.one_of(st.none(), parents), max_size=6))
    weights = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=n, max_size=n))
    return [None if s is None else np.array(s, dtype=np.int64) for s in steps], n, weights


def walk(steps: list[Ints | None], particle: int, population: int) -> int:
    """The ancestor in `population` of a final particle, step by step."""
    for step in reversed(steps[population:]):
        particle = particle if step is None else int(step[particle])
    return particle


@given(runs())
def test_ancestors_are_those_of_a_walk(run: tuple[list[Ints | None], int, list[float]]) -> None:
    steps, n, weights = run
    found = ancestors(steps, n)
    assert found.tolist() == [[walk(steps, i, t) for i in range(n)] for t in range(len(steps) + 1)]
    alive = [i for i in range(n) if weights[i] > 0]
    curve = unique_ancestors(steps, n, np.array(weights)).tolist()
    assert curve == [len({walk(steps, i, t) for i in alive}) for t in range(len(steps) + 1)]
    assert curve == sorted(curve), "looking back, lines only ever join"


@given(runs())
def test_coalescence_is_the_most_recent_population_with_one_ancestor(
    run: tuple[list[Ints | None], int, list[float]],
) -> None:
    steps, n, _ = run
    last = len(steps)
    one = [t for t in range(last + 1) if len({walk(steps, i, t) for i in range(n)}) == 1]
    assert coalescence_time(steps, n) == (last - max(one) if one else None)


@given(runs())
def test_the_graph_is_a_forest_with_the_same_ancestors(
    run: tuple[list[Ints | None], int, list[float]],
) -> None:
    networkx = pytest.importorskip("networkx")
    steps, n, weights = run
    graph = to_networkx(steps, n, np.array(weights))
    assert graph.number_of_nodes() == n * (len(steps) + 1)
    assert networkx.is_directed_acyclic_graph(graph)
    assert all(graph.in_degree(node) == (node[0] > 0) for node in graph)
    for i in range(n):
        end = (len(steps), i)
        roots = {(t, k) for t, k in networkx.ancestors(graph, end) | {end} if t == 0}
        assert roots == {(0, walk(steps, i, 0))}
        assert graph.nodes[end]["weight"] == weights[i]
    for t, i in graph:
        below = networkx.descendants(graph, (t, i)) | {(t, i)}
        lives = any(t2 == len(steps) and weights[k] > 0 for t2, k in below)
        assert graph.nodes[t, i]["survives"] == lives


def test_nobody_alive_has_no_ancestor() -> None:
    steps: list[Ints | None] = [np.array([0, 0])]
    assert unique_ancestors(steps, 2, np.zeros(2)).tolist() == [0, 0]
    assert coalescence_time(steps, 2, np.zeros(2)) is None
    assert genealogy_svg(steps, 2, np.zeros(2)).startswith("<svg")


def test_a_run_without_steps_is_its_own_ancestor() -> None:
    assert ancestors([], 3).tolist() == [[0, 1, 2]]
    assert coalescence_time([], 1) == 0


@pytest.mark.parametrize(
    ("steps", "particles", "said"),
    [
        ([np.array([0, 1])], 3, "not 3 integers"),
        ([np.array([0.0, 1.0])], 2, "not 2 integers"),
        ([None, np.array([0, 2])], 2, "barrier 1 is no particle"),
        ([np.array([0, -1])], 2, "no particle"),
        ([], 0, "must be a positive integer"),
    ],
)
def test_bad_parents_are_named(steps: list[Ints | None], particles: int, said: str) -> None:
    with pytest.raises(BadArgument, match=said):
        ancestors(steps, particles)


def test_bad_weights_are_named() -> None:
    with pytest.raises(BadArgument, match="expected 2 weights"):
        unique_ancestors([], 2, np.ones(3))


def random_run(n: int, t: int) -> list[Ints | None]:
    rng = np.random.default_rng(0)
    return [np.sort(rng.integers(0, n, n)) if rng.random() < 0.7 else None for _ in range(t)]


@pytest.mark.parametrize(("n", "t"), [(1, 0), (1, 3), (8, 5), (64, 20), (1000, 200)])
def test_the_picture_is_xml_and_stays_small(n: int, t: int) -> None:
    steps = random_run(n, t)
    svg = genealogy_svg(steps, n, np.full(n, 1 / n))
    root = ET.fromstring(svg)
    assert root.tag == "svg"
    assert {e.tag for e in root.iter()} <= {"svg", "title", "path", "circle", "text"}
    assert len(svg) < 400_000
    assert "script" not in svg and "href" not in svg


def test_lines_of_survivors_are_coloured_by_their_first_ancestor() -> None:
    """0 and 1 descend from 0, 2 from 2; 1 died out, and 2 weighs nothing in the second picture."""
    steps: list[Ints | None] = [np.array([0, 0, 2])]
    both = genealogy_svg(steps, 3, np.array([0.5, 0.25, 0.25]))
    one = genealogy_svg(steps, 3, np.array([0.5, 0.5, 0.0]))
    assert both.count('fill="#4477aa"') == 2 and both.count('fill="#ee6677"') == 1
    assert "#ee6677" not in one
    assert "2 first ancestors left" in both and "1 first ancestors left" in one


def test_thinned_columns_keep_the_lines_exact() -> None:
    """Everybody's parent is the next particle: k barriers back it is the k-th next."""
    n, t = 4, 3 * MOST_COLUMNS
    steps: list[Ints | None] = [np.array([1, 2, 3, 0]) for _ in range(t)]
    path = next(iter(ET.fromstring(genealogy_svg(steps, n)).iter("path"))).attrib["d"]
    lines = [[tuple(map(float, p.split())) for p in m.split("L")] for m in path.split("M") if m]
    xs = sorted({x for line in lines for x, _ in line})
    ys = sorted({y for line in lines for _, y in line})
    kept = np.linspace(0, t, MOST_COLUMNS).round().astype(int)
    assert len(xs) == MOST_COLUMNS and len(ys) == n
    seen = set()
    for (x0, y0), (x1, y1) in lines:
        a, b = kept[xs.index(x0)], kept[xs.index(x1)]
        assert ys.index(y0) == (ys.index(y1) + b - a) % n
        seen.add((x0, y1))
    assert len(seen) == (MOST_COLUMNS - 1) * n
