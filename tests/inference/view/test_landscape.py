"""The landscape of thoughts: distances by hand, curves, the map, and a model as the ruler."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lmppl import LM, Choice, Uniform, observe, program, sample
from lmppl.errors import BadArgument
from lmppl.inference import SMC, Enumerate, infer
from lmppl.inference.view import Forest, by_model, landscape
from lmppl.inference.view.tsne import tsne
from lmppl.lm.table import TableLM


@program
def walk() -> Any:
    a = sample("a", Uniform([0, 1]))
    b = sample("b", Uniform([0, 1]))
    return a + b


def test_distances_are_those_of_the_masses() -> None:
    """Two fair coins: from the start 1/4, 1/2, 1/4; after a = 0 they are 1/2, 1/2, 0."""
    post = infer(walk, engine=Enumerate())
    forest = Forest()
    land = landscape(post, method="pca", forest=forest)
    assert land.answers == (1, 0, 2) and len(land.nodes) == len(forest) == 7
    alpha, prior = 1 / post.ess, np.array([0.5, 0.25, 0.25])
    counts = {(): [0.5, 0.25, 0.25], (0,): [0.25, 0.25, 0], (1,): [0.25, 0, 0.25]}
    for node, row, distances in zip(land.nodes, land.log_probs, land.distances, strict=True):
        values = tuple(forest.entries[n].value for n in forest.path(node))  # type: ignore[union-attr]
        mass = np.array(
            counts[values] if values in counts else [0.25 * (sum(values) == k) for k in (1, 0, 2)]
        )
        expected = np.log((mass + alpha * prior) / (mass.sum() + alpha))
        np.testing.assert_allclose(row, expected, rtol=1e-12)
        np.testing.assert_allclose(distances, -expected / -expected.sum(), rtol=1e-12)
    np.testing.assert_allclose(land.mass[0], 1.0)


def test_curves_of_two_coins() -> None:
    """At the start everybody's nearest answer is 1, which half of the weight ends at."""
    land = landscape(infer(walk, engine=Enumerate()), method="pca")
    assert land.consistency[0] == pytest.approx(0.5) and land.consistency[-1] == pytest.approx(1.0)
    assert land.uncertainty[0] == pytest.approx(1.5), "entropy of 1/2, 1/4, 1/4 in bits"
    assert land.uncertainty[-1] < land.uncertainty[len(land.tau) // 2] < land.uncertainty[0]
    assert np.isnan(land.perplexity).all(), "numbers have no tokens"


def test_perplexity_is_that_of_the_texts() -> None:
    lm = TableLM(["a", "\n"], {(): [0.25, 0.75]})

    @program
    def one() -> Any:
        return sample("t", LM("x", stop="\n", max_tokens=1))

    land = landscape(infer(one, engine=SMC(50), lm=lm, seed=0), method="pca")
    share = dict(zip(land.answers, land.mass[1:], strict=False))
    nats = sum(-m * math.log({"a": 0.25, "": 0.75}[str(v)]) for v, m in share.items())
    assert land.perplexity[-1] == pytest.approx(math.exp(nats), rel=1e-6)
    assert math.isnan(land.perplexity[0])


def test_a_model_is_a_ruler() -> None:
    lm = TableLM(["s", "t", "y", "n"], {(): [0.1, 0.1, 0.5, 0.3], (0,): [0, 0, 0.9, 0.1], (1,): [0, 0, 0, 1.0]})  # fmt: skip

    @program
    def judged() -> Any:
        t = sample("t", Choice("q", ["s", "t"]))
        observe("j", Choice(f"{t}", ["y", "n"]), "n")
        return sample("answer", Uniform(["yes", "no"]))

    post = infer(judged, engine=SMC(60), lm=lm, seed=0)
    forest = Forest()
    land = landscape(
        post,
        score=by_model(lm, lambda trace: str(trace["t"]) if "t" in trace else "q", lambda a: a[0]),
        method="pca",
        forest=forest,
    )
    columns = [land.answers.index(v) for v in ("yes", "no")]
    for node, row in zip(land.nodes, land.log_probs, strict=True):
        values = [forest.texts[n] for n in forest.path(node)]
        p = {"s": (0.9, 0.1), "t": (0.0, 1.0)}[values[0]] if values else (0.5, 0.3)
        expected = [math.log(v) if v else -50.0 for v in p]
        np.testing.assert_allclose(row[columns], expected, atol=1e-9)


def test_a_score_of_a_wrong_shape_is_named() -> None:
    with pytest.raises(BadArgument, match="one row per trace"):
        landscape(infer(walk, engine=Enumerate()), score=lambda traces, answers: np.zeros(3))
    with pytest.raises(BadArgument, match='"tsne" or "pca"'):
        landscape(infer(walk, engine=Enumerate()), method="umap")


def test_states_are_those_of_every_depth() -> None:
    @program
    def long() -> Any:
        return sum(sample(f"d{i}", Uniform([0, 1])) for i in range(8)) % 2

    forest = Forest()
    land = landscape(infer(long, engine=SMC(200), seed=0), most_states=40, forest=forest)
    assert len(land.nodes) == 40
    assert {forest.depths[n] for n in land.nodes} == set(range(9))
    assert np.isfinite(land.xy).all() and np.abs(land.xy).max() <= 1.0


def test_tsne_keeps_neighbours() -> None:
    """Three clusters in ten dimensions: nearest neighbours stay in their cluster, same every time."""
    chance = np.random.default_rng(0)
    centres = np.repeat(np.eye(10)[:3] * 8, 20, axis=0)
    points = centres + chance.normal(size=(60, 10))
    found = tsne(points, points[:, :2], perplexity=10)
    distances = ((found[:, None] - found[None]) ** 2).sum(-1) + np.diag(np.full(60, np.inf))
    assert (np.argmin(distances, axis=1) // 20 == np.arange(60) // 20).all()
    np.testing.assert_array_equal(found, tsne(points, points[:, :2], perplexity=10))
