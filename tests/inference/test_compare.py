"""Intervals and the paired test against published values and their own coverage, enumerated."""

from __future__ import annotations

import math
from itertools import product

import pytest

from lmppl.errors import BadArgument
from lmppl.inference.questions.compare import mcnemar, paired, wilson


def results(both: int, wins: int, losses: int, neither: int) -> tuple[list[bool], list[bool]]:
    cells = [(True, True)] * both + [(True, False)] * wins
    cells += [(False, True)] * losses + [(False, False)] * neither
    return [a for a, _ in cells], [b for _, b in cells]


def test_wilson_published() -> None:
    """Newcombe (1998a), table I: 81/263, 15/148, 0/20, 1/29 by the score method."""
    for right, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(20, 20).high == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_covers() -> None:
    """The mean coverage over p at n = 15 is the level within 2 %."""
    n, covered = 15, 0.0
    grid = [(i + 0.5) / 200 for i in range(200)]
    for p in grid:
        for k in range(n + 1):
            low, high = wilson(k, n)
            if low <= p <= high:
                covered += math.comb(n, k) * p**k * (1 - p) ** (n - k) / len(grid)
    assert 0.93 < covered < 0.97


def test_newcombe_published() -> None:
    """Newcombe (1998), method 10: both, first, second, neither, and the interval."""
    for cells, low, high in [
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((0, 12, 2, 36), 0.0569, 0.3404),  # right and wrong exchanged
        ((54, 0, 0, 0), -0.0664, 0.0664),
        ((0, 0, 0, 54), -0.0664, 0.0664),
    ]:
        pair = paired(*results(*cells))
        assert (pair.low, pair.high) == pytest.approx((low, high), abs=5e-5)


def test_newcombe_covers() -> None:
    """At n = 12, over four laws of the pairs, coverage is at least 93 %."""
    n = 12
    logs = [math.lgamma(k + 1) for k in range(n + 1)]
    for law in [
        (0.4, 0.3, 0.1, 0.2),
        (0.5, 0.05, 0.05, 0.4),
        (0.2, 0.5, 0.1, 0.2),
        (0.7, 0.1, 0.1, 0.1),
    ]:
        truth = law[1] - law[2]
        covered = 0.0
        for a, b, c in product(range(n + 1), repeat=3):
            d = n - a - b - c
            if d < 0:
                continue
            cells = (a, b, c, d)
            log_p = logs[n] + sum(
                k * math.log(q) - logs[k] for k, q in zip(cells, law, strict=True)
            )
            pair = paired(*results(*cells))
            if pair.low <= truth <= pair.high:
                covered += math.exp(log_p)
        assert covered > 0.93, law


def test_mcnemar() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(6, 0) == mcnemar(0, 6) == 2 / 64
    assert mcnemar(7, 2) == pytest.approx(2 * (1 + 9 + 36) / 512)


def test_pairs() -> None:
    pair = paired(*results(3, 4, 1, 2))
    assert (pair.n, pair.wins, pair.losses, pair.difference) == (10, 4, 1, 0.3)
    assert pair.verdict == "no clear difference"
    first, second = results(3, 4, 1, 2)
    swapped = paired(second, first)
    assert swapped.low == pytest.approx(-pair.high)
    assert swapped.high == pytest.approx(-pair.low)
    assert paired(*results(2, 0, 6, 1)).verdict == "worse"
    assert paired(*results(2, 5, 0, 1)).verdict == "no clear difference"
    assert paired([], []).verdict == "no clear difference"
    with pytest.raises(BadArgument, match="3 and 2 results do not pair"):
        paired([True] * 3, [True] * 2)
