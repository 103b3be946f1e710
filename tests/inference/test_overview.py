"""`Posterior.summary` and `Posterior.interval`, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lmppl import Bernoulli, Categorical, Uniform, deterministic, observe, program, sample
from lmppl.errors import BadArgument
from lmppl.inference import SMC, Enumerate, Forward, Importance, infer
from lmppl.inference.results.overview import ROWS, quantile


@program
def measured() -> str:
    x = sample("x", Categorical({0.5: 1, 1.5: 2, 4.5: 1}))
    sample("n", Uniform(range(20)))
    late = x > 1 and sample("late", Bernoulli(0.5))
    observe("seen", Bernoulli(0.8 if x > 1 else 0.4), True)
    return "late" if late else "early"


def test_numbers_have_moments_and_quantiles_and_others_their_best_value() -> None:
    """P(x | seen) = (1, 4, 2) / 7."""
    table = infer(measured, engine=Enumerate()).summary()
    x, n = table.numbers
    mean = (0.5 + 4 * 1.5 + 2 * 4.5) / 7
    sd = math.sqrt((0.5**2 + 4 * 1.5**2 + 2 * 4.5**2) / 7 - mean**2)
    assert (x.site, x.se, x.quantiles) == ("x", 0.0, (0.5, 1.5, 4.5))
    assert [x.mean, x.sd] == pytest.approx([mean, sd])
    assert (n.site, n.quantiles) == ("n", (0.0, 9.0, 18.0))
    result, late = table.values
    assert (result.site, result.best, result.different) == ("result", "early", 2)
    assert result.p == pytest.approx(4 / 7)
    assert (late.site, late.different) == ("late", 3)  # None counts
    assert late.p == pytest.approx(3 / 7)
    assert "seen" not in str(table)


def test_the_text_says_what_was_run_and_how_far_to_trust_it() -> None:
    post = infer(measured, engine=SMC(40), seed=3)
    lines = str(post.summary()).splitlines()
    assert lines[0] == "SMC(particles=40), seed=3"
    assert f"ESS {post.ess:.1f} of 40" in lines[1] and "log evidence" in lines[1]
    assert lines[3].split()[:2] == ["site", "mean"] and lines[4].startswith("x ")
    assert str(infer(measured, engine=Enumerate()).summary()).splitlines()[1].count("exact") == 1


def test_a_single_run_has_no_errors_and_a_dead_posterior_no_rows() -> None:
    one = infer(measured, engine=Forward(1)).summary()
    assert all(math.isnan(se) for se in (one.numbers[0].se, one.values[0].se))
    assert "nan" not in str(one).split("\n", 2)[2]
    dead = infer(measured, engine=SMC(4), observations={"x": 7.0}, on_dead="return").summary()
    assert not dead.numbers and not dead.values and "warning: every particle" in str(dead)


def test_many_sites_are_cut_and_counted() -> None:
    @program
    def long() -> None:
        for i in range(ROWS + 5):
            deterministic("d", str(i))

    assert str(infer(long, engine=Forward(1)).summary()).endswith("… 5 more")


def test_values_without_a_hash_and_numpy_numbers() -> None:
    @program
    def arrays() -> None:
        x = sample("x", Uniform(range(9)))
        deterministic("half", np.float64(x / 2))
        deterministic("both", np.array([x, x]))

    table = infer(arrays, engine=Enumerate()).summary()
    assert [row.site for row in table.numbers] == ["x", "half"]
    assert [row.site for row in table.values] == ["both"]  # nothing was returned
    assert table.numbers[1].mean == pytest.approx(2.0)


def test_quantiles_are_those_of_the_weighted_law() -> None:
    x, w = np.array([5.0, 1.0, 3.0, 9.0]), np.array([0.25, 0.5, 0.25, 0.0])
    assert [quantile(x, w, q) for q in (0.0, 0.5, 0.51, 0.75, 0.76, 1.0)] == [1, 1, 3, 3, 5, 5]


def test_intervals() -> None:
    exact = infer(measured, engine=Enumerate())
    assert exact.interval("n", 0.8) == (1.0, 17.0)
    assert exact.interval(lambda t: 2 * t["x"], 0.5) == (3.0, 9.0)
    drawn = infer(measured, engine=Importance(200), seed=1)
    low, high = drawn.interval("n")
    assert 0 <= low < high <= 19
    with pytest.raises(BadArgument, match="an interval needs numbers"):
        exact.interval()
    with pytest.raises(BadArgument, match="mass must be between 0 and 1"):
        exact.interval("n", 90)


def test_a_misspelt_site_is_found_in_its_scope() -> None:
    @program
    def scoped() -> None:
        for i in range(30):
            sample(f"s{i}", Bernoulli(0.5))

    post = infer(scoped, engine=Forward(2))
    with pytest.raises(BadArgument, match="did you mean 's1'"):
        post.marginal("s_1")
    with pytest.raises(BadArgument, match=r"the sites are: s0, s1, .*… 18 more"):
        post.marginal("weather")


def test_rounding_is_no_interval() -> None:
    @program
    def flat() -> None:
        for _ in range(3):
            sample("x", Bernoulli(0.3))

    assert str(infer(flat, engine=SMC(20)).summary()).splitlines()[1].startswith("log evidence 0, ")


def test_numbers_that_no_array_holds() -> None:
    @program
    def strange() -> int:
        k: int = sample("k", Uniform(range(20)))
        deterministic("late", math.inf if k else 1.5)
        return 10**30 + k

    table = infer(strange, engine=Enumerate()).summary()
    assert (table.values[0].site, table.values[0].different) == ("result", 20)
    late = table.numbers[1]
    assert late.site == "late" and late.mean == math.inf and math.isnan(late.sd)
