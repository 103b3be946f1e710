"""C6: resampling schemes are unbiased, never choose a dead particle, and keep their own promises.

Exact by enumeration of their offsets; once more with production randomness at weights too many to
enumerate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lmppl.inference.smc.resampling import SCHEMES, Scheme, multinomial, residual, systematic
from lmppl.random import Chance, GumbelMax, fold
from lmppl.testing import LawBroken, check_resampling, outcomes
from lmppl.types import Floats, Ints, Key

NAMES = sorted(SCHEMES)

VECTORS = {
    "one particle": [1.0],
    "all mass on one": [0.0, 1.0, 0.0],
    "last is dead": [0.6, 0.4, 0.0],
    "first is dead": [0.0, 0.4, 0.6],
    "all equal": [0.25] * 4,
    "thirds": [1 / 3] * 3,
    "underflow": [1e-300, 0.5, 0.5],
    "hardly anything": [1e-16, 1.0 - 1e-16],
    "whole offspring": [0.5, 0.25, 0.25, 0.0],
    "uneven": [0.37, 0.09, 0.31, 0.23],
}


def laws(scheme: Scheme, w: Floats) -> dict[tuple[int, ...], float]:
    """P(number of offspring of each)."""
    out: dict[tuple[int, ...], float] = {}
    for probability, ancestors in outcomes(lambda chance: scheme(w, 3, chance)):
        counts = tuple(np.bincount(ancestors, minlength=len(w)).tolist())
        out[counts] = out.get(counts, 0.0) + probability
    return out


@pytest.mark.parametrize("name", NAMES)
def test_unbiased_by_exhaustion(name: str) -> None:
    check_resampling(SCHEMES[name])


@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("name", NAMES)
def test_degenerate_weights(name: str, vector: str) -> None:
    check_resampling(SCHEMES[name], [VECTORS[vector]])


@pytest.mark.parametrize("vector", VECTORS)
def test_systematic_is_floor_or_ceiling(vector: str) -> None:
    w = np.array(VECTORS[vector])
    expected = len(w) * w / w.sum()
    for counts in laws(systematic, w):
        for n, mean in zip(counts, expected, strict=True):
            assert math.floor(mean + 1e-9) <= n + 1e-9 and n <= math.ceil(mean - 1e-9)


@pytest.mark.parametrize("vector", VECTORS)
def test_stratified_is_within_two(vector: str) -> None:
    w = np.array(VECTORS[vector])
    for counts in laws(SCHEMES["stratified"], w):
        assert (np.abs(np.array(counts) - len(w) * w / w.sum()) < 2).all()


@pytest.mark.parametrize("vector", VECTORS)
def test_residual_keeps_the_whole_part(vector: str) -> None:
    w = np.array(VECTORS[vector])
    for counts in laws(residual, w):
        assert (np.array(counts) >= np.floor(len(w) * w / w.sum() + 1e-9)).all()


def test_multinomial_law() -> None:
    """P(counts) = N! Π W_i^n_i / n_i!, to rounding."""
    w = np.array([0.2, 0.5, 0.3])
    for counts, probability in laws(multinomial, w).items():
        ways = math.factorial(3) / math.prod(map(math.factorial, counts))
        assert abs(probability - ways * math.prod(w**counts)) <= 1e-12


@pytest.mark.parametrize("name", ["multinomial", "residual"])
def test_permuted_weights_permute_the_law(name: str) -> None:
    """These two do not look at the order of particles."""
    w = np.array([0.45, 0.15, 0.4])
    order = [2, 0, 1]
    plain, permuted = laws(SCHEMES[name], w), laws(SCHEMES[name], w[order])
    for counts, probability in plain.items():
        assert abs(permuted[tuple(counts[i] for i in order)] - probability) <= 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_many_particles(name: str) -> None:
    """E[counts] = N W with N = 50 and 5,000 draws; |z| < 6.1 is 1e-9 for one, 5e-8 for all."""
    rng = np.random.default_rng(5)
    w = rng.dirichlet(np.full(50, 0.3))
    w[7] = w[49] = 0.0
    w = w / w.sum()
    counts = np.array(
        [
            np.bincount(SCHEMES[name](w, fold(0, "draw", i), GumbelMax()), minlength=50)
            for i in range(5_000)
        ]
    )
    assert (counts.sum(axis=1) == 50).all()
    assert counts[:, w == 0.0].max() == 0
    sd = counts.std(axis=0, ddof=1)
    gap = counts.mean(axis=0) - 50 * w
    moving = sd > 0
    assert (np.abs(gap[~moving]) < 30 / 5_000).all()  # never chosen: too improbable to be
    assert (np.abs(gap[moving]) < 6.1 * sd[moving] / math.sqrt(5_000)).all()


@pytest.mark.parametrize("name", ["systematic", "stratified", "residual"])
def test_less_variance_than_multinomial(name: str) -> None:
    w = np.array([0.37, 0.09, 0.31, 0.23])

    def variance(scheme: Scheme) -> float:
        law = laws(scheme, w)
        return math.fsum(q * float(((np.array(c) - 4 * w) ** 2).sum()) for c, q in law.items())

    assert variance(SCHEMES[name]) < variance(multinomial)


BROKEN: dict[str, Callable[[Floats, Key, Chance], Any]] = {
    "fixed offset": lambda w, key, chance: systematic(w, key, _Half()),
    "shifted": lambda w, key, chance: (systematic(w, key, chance) + 1) % len(w),
    "too few": lambda w, key, chance: systematic(w, key, chance)[:-1],
    "ignores the weights": lambda w, key, chance: np.arange(len(w)),
}


class _Half:
    def categorical(self, keys: Any, log_weights: Any) -> Ints:
        raise NotImplementedError

    def offsets(self, keys: Any, breakpoints: Any = None) -> Floats:
        return np.full(len(keys), 0.5)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_schemes_are_rejected(name: str) -> None:
    with pytest.raises(LawBroken):
        check_resampling(BROKEN[name])
