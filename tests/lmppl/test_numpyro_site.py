"""NumPyro distributions at a site, against their own log-probabilities and against scipy-free sums.

Statistical assertions use fixed seeds at a false-alarm rate of 1e-6 each.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lmppl import LM, Mixture, observe, program, sample
from lmppl import handlers as H
from lmppl.distributions import as_distribution
from lmppl.errors import NotADistribution, NotFinite, UnsupportedValue
from lmppl.inference import SMC, Enumerate, Importance, infer
from lmppl.jobs import Draw, Env
from lmppl.random import fold
from lmppl.weights import NEG_INF

dist: Any = pytest.importorskip("numpyro.distributions")
ENV = Env()


def wrap(d: Any) -> Any:
    return as_distribution(d, "x")


def normal_logp(x: float, mean: float = 0.0, sd: float = 1.0) -> float:
    return -0.5 * ((x - mean) / sd) ** 2 - math.log(sd * math.sqrt(2 * math.pi))


@pytest.mark.parametrize(
    ("make", "value", "want"),
    [
        (lambda: dist.Normal(1.0, 2.0), 0.5, normal_logp(0.5, 1.0, 2.0)),
        (lambda: dist.Normal(np.zeros(3), 1.0).to_event(1), np.ones(3), 3 * normal_logp(1.0)),
        (lambda: dist.Normal(np.zeros(3), 1.0), np.ones(3), 3 * normal_logp(1.0)),
        (lambda: dist.Bernoulli(0.25), 1, math.log(0.25)),
        (lambda: dist.Categorical(probs=np.array([0.2, 0.3, 0.5])), 2, math.log(0.5)),
        (lambda: dist.Uniform(0.0, 4.0), 3.0, -math.log(4.0)),
        (lambda: dist.Uniform(0.0, 4.0), 5.0, NEG_INF),
        (lambda: dist.HalfNormal(1.0), -1.0, NEG_INF),
        (lambda: dist.Categorical(probs=np.array([0.2, 0.8])), 5, NEG_INF),
        (lambda: dist.Poisson(2.0), 3, 3 * math.log(2.0) - 2.0 - math.log(6.0)),
        (lambda: dist.Exponential(2.0), 0.5, math.log(2.0) - 1.0),
    ],
)
def test_scores_are_the_log_densities(make: Any, value: Any, want: float) -> None:
    assert wrap(make()).score(value, ENV) == pytest.approx(want, abs=1e-5)  # float32


@pytest.mark.parametrize("value", ["text", None, {"a": 1}])
def test_a_value_of_the_wrong_kind_is_named(value: Any) -> None:
    with pytest.raises(UnsupportedValue, match="Normal"):
        wrap(dist.Normal(0.0, 1.0)).score(value, ENV)


def test_values_are_plain_and_cannot_be_changed() -> None:
    number = wrap(dist.Normal(0.0, 1.0)).draw(3, ENV)
    assert type(number) is Draw and type(number.value) is float
    assert number.logp == number.logq == pytest.approx(normal_logp(number.value), abs=1e-5)
    assert type(wrap(dist.Bernoulli(0.5)).draw(3, ENV).value) is int
    vector = wrap(dist.Normal(np.zeros(4), 1.0)).draw(3, ENV).value
    assert isinstance(vector, np.ndarray) and vector.shape == (4,)
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1.0


def test_a_draw_is_a_function_of_its_key() -> None:
    d = wrap(dist.Normal(0.0, 1.0))
    assert d.draw(5, ENV) == d.draw(5, ENV)
    assert d.draw(5, ENV) != d.draw(6, ENV)
    assert d.draw(5, ENV) != d.draw(5 + (1 << 40), ENV)  # all 64 bits count


def test_continuous_draws_have_their_law() -> None:
    d = wrap(dist.Normal(2.0, 3.0))
    x = np.array([d.draw(fold(1, i), ENV).value for i in range(800)])
    assert abs(x.mean() - 2.0) < 4.89 * 3.0 / math.sqrt(800)
    assert abs((x - 2.0).std() / 3.0 - 1.0) < 4.89 / math.sqrt(1600)


def test_finite_ones_are_enumerated_through_the_one_place_of_chance() -> None:
    d = wrap(dist.Categorical(probs=np.array([0.2, 0.0, 0.8])))
    assert [(v, pytest.approx(math.exp(lp), abs=1e-6)) for v, lp in d.support(ENV)] == [
        (0, pytest.approx(0.2, abs=1e-6)),
        (2, pytest.approx(0.8, abs=1e-6)),
    ]
    with pytest.raises(NotFinite, match="Normal"):
        wrap(dist.Normal(0.0, 1.0)).support(ENV)
    with pytest.raises(NotFinite, match="Poisson"):
        wrap(dist.Poisson(1.0)).support(ENV)


def test_fingerprints_see_class_and_parameters() -> None:
    seen = [
        dist.Normal(0.0, 1.0),
        dist.Normal(0.0, 2.0),
        dist.Normal(1.0, 1.0),
        dist.Laplace(0.0, 1.0),
        dist.Bernoulli(0.5),
        dist.Bernoulli(0.25),
        dist.Normal(np.zeros(2), 1.0),
    ]
    assert len({wrap(d).fingerprint for d in seen}) == len(seen)
    assert wrap(dist.Normal(0.0, 1.0)).fingerprint == wrap(dist.Normal(0.0, 1.0)).fingerprint


def test_an_engine_and_a_plain_call_agree() -> None:
    @program
    def model() -> Any:
        x = sample("x", dist.Normal(0.0, 1.0))
        k = sample("k", dist.Categorical(logits=np.zeros(3)))
        observe("y", dist.Normal(x, 0.5), 1.0)
        return x, k

    t = H.trace(H.seed(model, 3)).get_trace()
    again = H.log_density(model, {"x": t["x"], "k": t["k"]})
    want = normal_logp(t["x"]) - math.log(3) + normal_logp(1.0, t["x"], 0.5)
    assert t.log_joint == pytest.approx(want, abs=1e-4) == pytest.approx(again, abs=1e-4)
    # the posterior of x is Normal(0.8, √0.2); 300 particles, five standard errors of an ESS of 80
    post = infer(model, engine=SMC(particles=300), seed=1)
    mean = post.expectation(lambda tr: tr["x"]).value
    assert abs(mean - 0.8) < 5 * math.sqrt(0.2 / 80)
    assert post.log_evidence == pytest.approx(normal_logp(1.0, 0.0, math.sqrt(1.25)), abs=0.35)


def test_a_finite_numpyro_program_is_exact() -> None:
    @program
    def model() -> Any:
        rain = sample("rain", dist.Bernoulli(0.2))
        observe("wet", dist.Bernoulli(0.9 if rain else 0.1), 1)
        return rain

    post = infer(model, engine=Enumerate())
    assert math.exp(post.log_evidence) == pytest.approx(0.26, abs=1e-6)
    assert post.marginal()[1] == pytest.approx(0.18 / 0.26, abs=1e-6)


def test_a_continuous_program_cannot_be_enumerated() -> None:
    @program
    def model() -> Any:
        return sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(NotFinite, match="Normal has no finite support"):
        infer(model, engine=Enumerate())


def test_strings_and_numbers_share_a_program() -> None:
    from lmppl.lm.table import TableLM

    lm = TableLM(["a", "b", "<eos>"], {(): [0.5, 0.25, 0.25]})

    @program
    def model() -> Any:
        word = sample("word", LM("", max_tokens=1))
        observe("size", dist.Normal(float(len(word)), 1.0), 1.0)
        return str(word)

    post = infer(model, engine=Importance(2000), lm=lm, seed=0)
    far, near = math.exp(-0.5), 1.0
    z = 0.25 * far + 0.75 * near
    assert post.marginal()[""] == pytest.approx(0.25 * far / z, abs=4.89 * 0.5 / math.sqrt(2000))


def test_it_can_be_a_component_and_a_proposal() -> None:
    mix = Mixture([dist.Normal(0.0, 1.0), dist.Normal(10.0, 1.0)], [0.25, 0.75])
    want = math.log(0.25 * math.exp(normal_logp(0.0)) + 0.75 * math.exp(normal_logp(0.0, 10.0)))
    step: Any = mix.score(0.0, ENV)
    assert float(step) == pytest.approx(want, abs=1e-5)

    @program
    def model() -> Any:
        return sample("x", dist.Normal(0.0, 1.0), proposal=dist.Normal(0.5, 2.0))

    post = infer(model, engine=Importance(2000), seed=0)
    # weights p / q are below 2.3, their variance below 1.2
    assert math.exp(post.log_evidence) == pytest.approx(1.0, abs=4.89 * 1.1 / math.sqrt(2000))


def test_the_class_itself_is_no_distribution() -> None:
    with pytest.raises(NotADistribution):
        as_distribution(dist.Normal, "x")
