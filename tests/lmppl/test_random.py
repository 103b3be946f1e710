"""Keyed randomness: known values, laws, and that a draw depends on its own key alone.

Statistical assertions use fixed seeds at a false-alarm rate of 1e-6 each.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmppl.random import (
    BLOCK,
    GOLDEN,
    MASK,
    WIDE,
    Argmax,
    GumbelMax,
    draw,
    fold,
    fold_array,
    gumbels,
    hash_text,
    mix,
    mix_array,
    uniform,
    uniforms,
)

SPLITMIX_1234567 = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]
"""The first outputs of the published generator from state 1234567."""


def chi_square_bound(dof: int, z: float = 4.76) -> float:
    """Upper 1e-6 quantile of chi-square by Wilson and Hilferty's cube."""
    a = 2.0 / (9.0 * dof)
    return dof * (1.0 - a + z * math.sqrt(a)) ** 3


def keys_of(n: int, seed: int = 0) -> NDArray[np.uint64]:
    return fold_array(np.full(n, fold(0, "test", seed), np.uint64), np.arange(n, dtype=np.uint64))


def test_splitmix64_gives_the_published_values() -> None:
    got = [mix(1234567 + (i + 1) * GOLDEN) for i in range(5)]
    assert got == SPLITMIX_1234567


def test_scalar_and_array_forms_agree() -> None:
    raw = [0, 1, 2**63, MASK, 1234567]
    assert mix_array(np.array(raw, np.uint64)).tolist() == [mix(x) for x in raw]
    assert fold_array(np.array(raw, np.uint64), 77).tolist() == [fold(x, 77) for x in raw]
    words = np.array([5, 6, 7, 8, MASK], np.uint64)
    want = [fold(k, int(w)) for k, w in zip(raw, words, strict=True)]
    assert fold_array(np.array(raw, np.uint64), words).tolist() == want
    counters = np.arange(4, dtype=np.uint64)
    many = uniforms(np.full(4, 99, np.uint64), counters)
    assert many.tolist() == [uniform(99, i) for i in range(4)]


def test_negative_words_fold_alike() -> None:
    assert fold_array(np.array([3], np.uint64), -1).tolist() == [fold(3, -1)]


def test_hash_of_text_is_the_same_in_every_process() -> None:
    assert hash_text("lmppl") == 0x7BE2FFC8F9061481  # recorded in another process
    assert hash_text("") != hash_text(" ")
    assert hash_text("\ud800") != hash_text("\ud801")  # lone surrogates are texts too


def test_fold_separates_types_and_orders() -> None:
    seen = {fold(0), fold(0, 1), fold(0, "1"), fold(0, 1, 2), fold(0, 2, 1), fold(1, 0)}
    assert len(seen) == 6


def test_uniforms_stay_inside_the_open_interval() -> None:
    u = uniforms(keys_of(100_000), np.zeros(1, np.uint64))
    assert 0.0 < u.min() and u.max() < 1.0
    top = ((MASK >> 12) + 0.5) * 2.0**-52
    assert 0.0 < 0.5 * 2.0**-52 and top < 1.0
    assert np.isfinite(gumbels(keys_of(100_000), np.zeros(1, np.uint64))).all()


@pytest.mark.parametrize("by", ["key", "counter"])
def test_uniforms_are_uniform(by: str) -> None:
    n, bins = 200_000, 100
    if by == "key":
        u = uniforms(keys_of(n), np.zeros(1, np.uint64))
    else:
        u = uniforms(np.full(n, 42, np.uint64), np.arange(n, dtype=np.uint64))
    counts = np.histogram(u, bins, (0.0, 1.0))[0]
    assert ((counts - n / bins) ** 2 / (n / bins)).sum() < chi_square_bound(bins - 1)


def test_neighbouring_keys_are_independent() -> None:
    u = uniforms(np.arange(200_000, dtype=np.uint64), np.zeros(1, np.uint64))
    pairs = np.histogram2d(u[:-1], u[1:], 10, ((0, 1), (0, 1)))[0].ravel()
    expected = pairs.sum() / 100
    assert ((pairs - expected) ** 2 / expected).sum() < chi_square_bound(99)


@pytest.mark.parametrize("chance", [GumbelMax(), Argmax()])
def test_a_draw_does_not_depend_on_its_batch(chance: Any) -> None:
    rng = np.random.default_rng(0)
    lw = np.log(rng.dirichlet(np.ones(50), size=64))
    keys = keys_of(64)
    together = chance.categorical(keys, lw)
    alone = [int(chance.categorical(keys[i : i + 1], lw[i : i + 1])[0]) for i in range(64)]
    backwards = chance.categorical(keys[::-1], lw[::-1])[::-1]
    assert together.tolist() == alone == backwards.tolist()


def test_scalar_draw_is_the_batched_one() -> None:
    lw = np.log(np.random.default_rng(1).dirichlet(np.ones(9)))
    for key in keys_of(200).tolist():
        batched = int(GumbelMax().categorical(np.array([key], np.uint64), lw[None])[0])
        assert draw(GumbelMax(), key, lw) == batched


def test_gumbel_max_has_the_softmax_law() -> None:
    p = np.array([0.5, 0.2, 0.2, 0.05, 0.05])
    n = 100_000
    picks = GumbelMax().categorical(keys_of(n), np.tile(np.log(p), (n, 1)))
    counts = np.bincount(picks, minlength=5)
    assert ((counts - n * p) ** 2 / (n * p)).sum() < chi_square_bound(4)


def test_a_mask_shifts_nobody() -> None:
    """An entry that is still allowed and was drawn is drawn again."""
    rng = np.random.default_rng(2)
    lw = np.log(rng.dirichlet(np.ones(40), size=500))
    keys = keys_of(500)
    free = GumbelMax().categorical(keys, lw)
    mask = rng.random(lw.shape) < 0.5
    masked = GumbelMax().categorical(keys, np.where(mask, lw, -np.inf))
    kept = mask[np.arange(500), free]
    assert kept.sum() > 100
    assert (masked[kept] == free[kept]).all()
    assert mask[np.arange(500), masked].all()


def test_zero_weights_are_never_drawn() -> None:
    lw = np.full((2000, 7), -np.inf)
    lw[:, 3] = -700.0
    lw[:, 5] = -701.0
    assert set(GumbelMax().categorical(keys_of(2000), lw).tolist()) <= {3, 5}


def test_a_constant_shift_of_log_weights_changes_nothing() -> None:
    lw = np.log(np.random.default_rng(3).dirichlet(np.ones(30), size=100))
    keys = keys_of(100)
    same = GumbelMax().categorical(keys, lw - 1000.0)
    assert (same == GumbelMax().categorical(keys, lw)).all()


def test_two_levels_have_the_softmax_law() -> None:
    """Wide rows: block by its mass, then the entry inside, which is the chain rule of the law."""
    width = WIDE + 300
    rng = np.random.default_rng(4)
    p = rng.dirichlet(np.full(width, 0.05))
    p[BLOCK : 2 * BLOCK] = 0.0  # a block without mass
    p /= p.sum()
    n = 20_000
    with np.errstate(divide="ignore"):
        row = np.log(p)
    picks = np.concatenate(
        [
            GumbelMax().categorical(keys_of(n)[i : i + 500], np.tile(row, (500, 1)))
            for i in range(0, n, 500)
        ]
    )
    counts = np.bincount(picks, minlength=width)
    assert counts[BLOCK : 2 * BLOCK].sum() == 0
    big = p * n >= 20
    observed = np.append(counts[big], counts[~big].sum())
    expected = np.append(n * p[big], n * p[~big].sum())
    dof = len(expected) - 1
    assert dof > 20
    assert ((observed - expected) ** 2 / expected).sum() < chi_square_bound(dof)


def test_two_levels_find_a_single_allowed_entry() -> None:
    for only in (0, BLOCK - 1, BLOCK, WIDE, WIDE + 299):
        lw = np.full((3, WIDE + 300), -np.inf)
        lw[:, only] = -50.0
        assert GumbelMax().categorical(keys_of(3), lw).tolist() == [only] * 3


def test_block_noise_is_not_token_noise() -> None:
    """With one entry per block of equal weight, inner noise must not decide the block."""
    lw = np.full((4000, 4 * BLOCK + 1), -np.inf)
    lw[:, ::BLOCK] = 0.0
    picks = GumbelMax().categorical(keys_of(4000), lw)
    counts = np.bincount(picks // BLOCK, minlength=5)
    assert ((counts - 800) ** 2 / 800).sum() < chi_square_bound(4)


def test_ties_go_to_the_smaller_id() -> None:
    row = np.array([[-1.0, 0.0, 0.0, -3.0]])
    assert Argmax().categorical(keys_of(1), row).tolist() == [1]
    assert Argmax().offsets(keys_of(2)).tolist() == [0.5, 0.5]


def test_offsets_are_one_number_per_key() -> None:
    keys = keys_of(10)
    u = GumbelMax().offsets(keys)
    assert u.tolist() == [uniform(k) for k in keys.tolist()]
    assert len(set(u.tolist())) == 10


@settings(max_examples=40)
@given(
    st.integers(0, MASK),
    st.lists(st.one_of(st.integers(0, 2**40), st.text(max_size=8)), max_size=4),
)
def test_fold_stays_a_64_bit_key(key: int, data: list[Any]) -> None:
    child = fold(key, *data)
    assert 0 <= child <= MASK
    assert child == fold(key, *data)
    assert not data or child != key


@settings(max_examples=40)
@given(st.lists(st.floats(-30, 0), min_size=1, max_size=12), st.integers(0, MASK))
def test_every_draw_has_positive_weight(weights: list[float], key: int) -> None:
    lw = np.array([w if w > -25 else -np.inf for w in weights])
    if np.isfinite(lw).any():
        assert np.isfinite(lw[draw(GumbelMax(), key, lw)])
