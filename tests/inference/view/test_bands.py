"""Numbers as answers of a picture: intervals that lose nothing and stand in their order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from lmppl import Uniform, program, sample
from lmppl.inference import SMC, Enumerate, Posterior, infer
from lmppl.inference.results.summary import hashable
from lmppl.inference.view.bands import Bands, bands_of, in_order, named_answers
from lmppl.inference.view.landscape import landscape
from lmppl.inference.view.state import run_state


@program
def level(scale: float, many: int = 40) -> float:
    """(k + ½) · scale for k = 0 … many - 1."""
    k: int = sample("k", Uniform(range(many)))
    return (k + 0.5) * scale


@pytest.mark.parametrize("scale", [0.001, 0.3, 1.0, 7.0, 4e6, -2.5])
def test_intervals_hold_the_whole_law_in_order(scale: float) -> None:
    post = infer(level, scale, engine=Enumerate())
    found, name = named_answers(post)
    listed = in_order(found, name)
    assert 4 <= len(listed) <= 12
    assert math.fsum(p for _, p in listed) == pytest.approx(1.0)
    for trace in post.traces:
        low, high = ends(name(trace.result))
        assert low <= trace.result * (1 + 1e-12) and trace.result < high
    inner = [ends(v) for v, _ in listed]
    assert all(a[1] == b[0] for a, b in zip(inner, inner[1:], strict=False))


def ends(name: str) -> tuple[float, float]:
    first, _, last = name.partition(" to ")
    if not last:
        where, edge = name.split()
        return (-math.inf, float(edge)) if where == "below" else (float(edge), math.inf)
    return float(first), float(last)


def test_what_repeats_or_is_no_fraction_is_an_answer_of_its_own() -> None:
    few = infer(level, 1.0, 10, engine=Enumerate())
    assert bands_of(few) is None and named_answers(few)[1] is hashable
    for results in ([*range(40)], ["a"] * 40, [None] * 40, [math.inf, *np.arange(0.5, 39.5)]):
        assert bands_of(of(results)) is None
    assert bands_of(of([1.5] * 39 + [7.5])) is None
    assert Bands(1.0, 0, 4)(None) is None


def test_numpy_numbers_fall_into_intervals_too() -> None:
    post = of([np.float32(k + 0.5) for k in range(40)])
    found, name = named_answers(post)
    assert math.fsum(p for _, p in in_order(found, name)) == pytest.approx(1.0)
    assert Bands(1.0, 0, 4)(math.inf) == math.inf


def of(results: Sequence[object]) -> Posterior:
    post = infer(level, 1.0, engine=Enumerate())
    for trace, result in zip(post.traces, results, strict=True):
        trace.result = result
    return post


def test_reports_and_landscapes_use_them() -> None:
    post = infer(level, 1.0, engine=SMC(60), seed=1)
    state = run_state(post)
    names = [state["strings"][text] for text, _, _ in state["answers"]]
    assert len(names) < 12 and math.fsum(p for _, p, _ in state["answers"]) == pytest.approx(
        1, abs=1e-3
    )
    for trace, k in zip(post.traces, state["particles"]["answer"], strict=True):
        low, high = ends(names[k])
        assert low <= trace.result < high
    assert set(landscape(post).answers) <= set(names)
    assert " to " in post._repr_html_()
