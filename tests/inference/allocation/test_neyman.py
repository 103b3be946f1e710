"""Per-question allocation: the formula, its integers, and what it gains over an even split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmppl.errors import BadArgument
from lmppl.inference.allocation.neyman import largest_remainder, neyman, sampling_variance


@given(
    st.integers(0, 500),
    st.lists(st.floats(0, 10), min_size=1, max_size=12).filter(lambda s: sum(s) > 0.01),
)
def test_largest_remainder(total: int, shares: list[float]) -> None:
    n = largest_remainder(total, shares)
    ideal = total * np.array(shares) / sum(shares)
    assert n.sum() == total and (np.abs(n - ideal) < 1 + 1e-6).all()


def population(clip: float) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    p = np.clip(rng.beta(0.7, 0.7, 2000), clip, 1.0)
    return p, rng.lognormal(0.0, 0.5, 2000)


@pytest.mark.parametrize(
    ("clip", "spec", "low"), [(0.02, 2.17, 1.8), (0.05, 1.67, 1.6), (0.10, 1.53, 1.48)]
)
def test_variance_gain_over_an_even_split(
    clip: float, spec: float, low: float, record_property: Any
) -> None:
    """The ratio of Σ G² / (n p) at 64 samples a question, p clipped from below, G lognormal.

    The figures at .05 and .10 are met; that at .02 is not: 1.88 here with the damping, 1.99 without.
    """
    p, g = population(clip)
    even = sampling_variance(np.full(2000, 64), p, g)
    ours, plain = (
        even / sampling_variance(neyman(64 * 2000, p, g, least=1, alpha=a), p, g)
        for a in (1e-3, 0.0)
    )
    text = f"Neyman gain at p >= {clip}: {ours:.2f}x, undamped {plain:.2f}x (spec {spec}x)"
    record_property("figure", text)
    assert low < ours <= plain < 1.1 * spec


@pytest.mark.parametrize("clip", [0.02, 0.05, 0.10])
def test_integers_are_within_5_percent_of_the_formula(clip: float) -> None:
    """The variance of the integers against that of n = N G/√p / Σ, and against its closed form."""
    p, g = population(clip)
    total = 32 * len(p)
    share = g / np.sqrt(p)
    closed = share.sum() ** 2 / total
    assert sampling_variance(total * share / share.sum(), p, g) == pytest.approx(closed)
    n = neyman(total, p, g, alpha=0.0)
    assert closed <= sampling_variance(n, p, g) <= 1.05 * closed
    if clip >= 0.05:  # below, the damping of the paper costs more than 5 %
        assert sampling_variance(neyman(total, p, g), p, g) <= 1.05 * closed
    # each n_i is its formula, rounded
    assert (np.abs(n - total * share / share.sum()) < 1.0 + 1e-9).all()


def test_no_other_split_of_few_samples_is_better() -> None:
    """All splits of 12 samples over three questions: the rounded formula is within 5 % of the best."""
    p, g = np.array([0.1, 0.4, 0.9]), np.array([1.0, 2.0, 1.0])
    best = min(
        sampling_variance([a, b, 12 - a - b], p, g) for a in range(1, 11) for b in range(1, 12 - a)
    )
    assert sampling_variance(neyman(12, p, g, alpha=0.0), p, g) <= 1.05 * best


def test_hopeless_questions() -> None:
    assert neyman(10, [0.0, 0.5], alpha=0.0).tolist() == [0, 10]
    assert neyman(10, [0.5, 0.5], [0.0, 1.0]).tolist() == [0, 10]
    assert neyman(10, [0.0, 0.5], least=2).tolist() == [2, 8]
    # the damping turns the growth at small p around: p = .001 gets less than p = .05
    damped = neyman(1000, [0.001, 0.05, 0.5])
    assert damped[0] < damped[1] > damped[2]
    assert neyman(1000, [0.001, 0.05, 0.5], alpha=0.0)[0] > 800


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: neyman(10, [0.0]), "no question has a positive p"),
        (lambda: neyman(10, [1.5]), r"\[0, 1\]"),
        (lambda: neyman(10, [0.5], [1.0, 2.0]), "same length"),
        (lambda: neyman(1, [0.5, 0.5], least=1), "less than"),
        (lambda: largest_remainder(3, [0.0]), "not all zero"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        call()
