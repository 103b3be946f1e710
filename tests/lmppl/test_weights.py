"""Log-weights: no overflow, no silent nan, and numbers that are checked where they enter."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmppl.errors import BadWeight, NonFiniteWeight
from lmppl.weights import (
    NEG_INF,
    check_log_weight,
    ess,
    log_add,
    log_mean_exp,
    log_sum_exp,
    normalize,
    total,
)

WEIGHTS = st.lists(st.one_of(st.floats(-800, 800), st.just(NEG_INF)), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("lw", "want"),
    [
        ([], NEG_INF),
        ([NEG_INF], NEG_INF),
        ([NEG_INF, NEG_INF], NEG_INF),
        ([0.0], 0.0),
        ([0.0, NEG_INF], 0.0),
        ([1000.0, 1000.0], 1000.0 + math.log(2)),
        ([-1000.0, -1000.0], -1000.0 + math.log(2)),
        ([-1e300, 0.0], 0.0),
    ],
)
def test_log_sum_exp(lw: list[float], want: float) -> None:
    assert log_sum_exp(lw) == pytest.approx(want, abs=1e-12)


def test_mean_divides_by_all_particles_dead_ones_too() -> None:
    assert log_mean_exp([0.0, NEG_INF, NEG_INF, NEG_INF]) == pytest.approx(math.log(0.25))
    assert log_mean_exp([]) == NEG_INF


def test_probabilities_below_the_smallest_float_survive() -> None:
    """The product of 7,073 probabilities of 0.9 is 0 in linear space."""
    logp = total([math.log(0.9)] * 7073)
    assert 0.9**7073 == 0.0
    assert logp == pytest.approx(7073 * math.log(0.9), rel=1e-14)
    assert normalize([logp, logp + math.log(3)]).tolist() == pytest.approx([0.25, 0.75])


def test_total_is_correctly_rounded() -> None:
    terms = [1e16, 1.0, -1e16, 1e-3] * 1000
    assert total(terms) == pytest.approx(1001.0, rel=1e-15)
    assert total([1.0, NEG_INF, 2.0]) == NEG_INF
    assert total([]) == 0.0


@pytest.mark.parametrize(
    ("lw", "size"),
    [
        ([0.0] * 7, 7.0),
        ([0.0, NEG_INF, NEG_INF], 1.0),
        ([NEG_INF] * 3, 0.0),
        ([], 0.0),
        ([math.log(0.75), math.log(0.25)], 1.6),
        ([1e308, 1e308], 2.0),
    ],
)
def test_effective_sample_size(lw: list[float], size: float) -> None:
    assert ess(lw) == pytest.approx(size)


def test_normalize_of_the_dead_is_zero_not_nan() -> None:
    assert normalize([NEG_INF, NEG_INF]).tolist() == [0.0, 0.0]
    assert normalize([]).tolist() == []


@settings(max_examples=60)
@given(WEIGHTS)
def test_weights_are_a_distribution_or_zero(lw: list[float]) -> None:
    w = normalize(lw)
    assert np.isfinite(w).all() and (w >= 0).all()
    assert w.sum() == pytest.approx(1.0 if max(lw) > NEG_INF else 0.0)
    assert ess(lw) <= len(lw) + 1e-9
    one = NEG_INF
    for x in lw:
        one = log_add(one, x)
    assert one == pytest.approx(log_sum_exp(lw), abs=1e-9)


class Scalar:
    """What torch and JAX give: an object with `item`."""

    shape = ()

    def __init__(self, value: Any, *, requires_grad: bool = False) -> None:
        self.value = value
        self.requires_grad = requires_grad

    def item(self) -> Any:
        return self.value


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (0.5, 0.5),
        (-3, -3.0),
        (True, 0.0),
        (False, NEG_INF),
        (np.bool_(True), 0.0),
        (np.bool_(False), NEG_INF),
        (NEG_INF, NEG_INF),
        (np.float32(-0.5), -0.5),
        (np.int64(2), 2.0),
        (np.array(-1.5), -1.5),
        (np.array(True), 0.0),
        (np.array(False), NEG_INF),
        (Scalar(-2.0), -2.0),
        (Scalar(False), NEG_INF),
        (-(10**400), NEG_INF),
    ],
)
def test_numbers_that_are_log_weights(value: object, want: float) -> None:
    got = check_log_weight(value, site="f")
    assert type(got) is float and got == want


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        np.float64("nan"),
        np.array(math.inf),
        Scalar(math.nan),
        10**400,
    ],
)
def test_nan_and_infinity_name_their_site(value: object) -> None:
    with pytest.raises(NonFiniteWeight, match=r"site 'plan\[2\]/polite': log guide is (nan|inf)"):
        check_log_weight(value, site="plan[2]/polite", term="log guide")


@pytest.mark.parametrize(
    "value",
    [
        None,
        "0.5",
        "nan",
        [0.5],
        (1.0, 2.0),
        {},
        np.zeros(3),
        np.zeros((1, 1)),
        1j,
        np.array(1j),
        np.array("x"),
        Decimal("0.1"),
        Scalar(1.0, requires_grad=True),
        object(),
        print,
    ],
)
def test_what_is_no_number_is_refused_as_a_type_error(value: object) -> None:
    with pytest.raises(BadWeight) as raised:
        check_log_weight(value, site="f")
    assert isinstance(raised.value, TypeError)
    assert "site 'f'" in str(raised.value) and "fix:" in str(raised.value)
