"""BIRD on worlds whose probabilities are known, its parts by hand, and its questions to a model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest

from lmppl.errors import BadArgument
from lmppl.graphs.bayes_nets.bird import Fitted, both_ways, fit, instances
from lmppl.graphs.bayes_nets.elicitation import (
    Outcomes,
    ask_context,
    ask_labels,
    bird,
    label_law,
    parse_factors,
    said_law,
)
from lmppl.graphs.bayes_nets.labels import LEVELS, label_terms, thresholds
from lmppl.inference import Importance, infer
from lmppl.ledger import Ledger
from lmppl.lm.table import TableLM
from lmppl.types import Floats

J, K = 5, 3
NAMES = {f"f{j}": [f"v{k}" for k in range(K)] for j in range(J)}
GRID = np.array(list(itertools.product(range(K), repeat=J)))
VALUES = np.array(list(LEVELS.values()))


class World(NamedTuple):
    """P(O1 | x) of all 243 instances, and someone who reads probabilities coarsely."""

    p: Floats
    read: Callable[[float], float]

    def truth(self, context: Mapping[str, str]) -> float:
        keep = np.ones(len(GRID), dtype=bool)
        for f, v in context.items():
            keep &= GRID[:, int(f[1])] == int(v[1])
        return float(self.p[keep].mean())


def world(rng: np.random.Generator, noisy_or: bool = False, bias: float = 0.0) -> World:
    if noisy_or:
        stops = rng.uniform(0.2, 1.0, (J, K)) ** 0.5
        p = 1.0 - np.prod([stops[j, GRID[:, j]] for j in range(J)], axis=0)
        p = np.clip(p, 0.01, 0.99)
    else:
        theta = rng.normal(0.0, 1.2, (J, K))
        p = 1.0 / (1.0 + np.exp(-np.sum([theta[j, GRID[:, j]] for j in range(J)], axis=0)))

    def read(q: float) -> float:
        z = math.log(q / (1.0 - q)) + rng.normal() + bias
        return float(VALUES[np.argmin(np.abs(VALUES - 1.0 / (1.0 + math.exp(-z))))])

    return World(p, read)


def trial(seed: int, queries: int = 30, both: bool = False, **kind: Any) -> Floats:
    """Rows of (truth, direct reading, answer, spread)."""
    rng = np.random.default_rng(seed)
    here = world(rng, **kind)
    asked = instances(NAMES, 128, seed)
    truths = np.array([here.truth(x) for x in asked])
    second = both_ways(len(asked)) if both else [False] * len(asked)
    labels = [here.read(q) for q in np.where(second, 1.0 - truths, truths)]
    fitted = fit(NAMES, asked, labels, second=second)
    rows = []
    for _ in range(queries):
        context = {f"f{j}": f"v{rng.integers(K)}" for j in rng.permutation(J)[:2]}
        t = here.truth(context)
        answer = fitted.answer(context)
        rows.append((t, here.read(t), answer.value, answer.spread))
    return np.array(rows)


def calibration_error(p: Floats, t: Floats, bins: int = 10) -> float:
    at = np.minimum((p * bins).astype(int), bins - 1)
    parts = [(at == k) for k in range(bins) if (at == k).any()]
    return float(sum(abs(p[b].mean() - t[b].mean()) * b.mean() for b in parts))


@pytest.mark.parametrize(
    ("noisy_or", "bias"), [(False, 0.0), (True, 0.0), (False, 0.8), (False, -0.8)]
)
def test_better_than_asking_directly(
    noisy_or: bool, bias: float, record_property: Callable[[str, object], None]
) -> None:
    """Mean absolute error at least 30 % lower, calibration error at most 0.05.

    A speaker who leans to high or low words is asked about both outcomes.
    """
    t, direct, value, spread = np.concatenate(
        [trial(seed, both=bias != 0.0, noisy_or=noisy_or, bias=bias) for seed in range(4)]
    ).T
    ours, theirs = np.abs(value - t).mean(), np.abs(direct - t).mean()
    ece = calibration_error(value, t)
    kind = ("noisy or" if noisy_or else "logistic") + (f", lean {bias:+}" if bias else "")
    record_property(
        "figure",
        f"BIRD, {kind} worlds: error {ours:.4f} against {theirs:.4f} asked directly, ECE {ece:.4f}",
    )
    assert ours <= 0.7 * theirs
    assert ece <= 0.05
    if not noisy_or and not bias:  # the spread says how far off it is
        assert 0.6 < math.sqrt(float(np.mean(((value - t) / spread) ** 2))) < 1.6


def test_a_lean_is_found_only_when_both_outcomes_are_asked_about(
    record_property: Callable[[str, object], None],
) -> None:
    """From labels of one outcome it is no other than the factors' own weights."""
    t, direct, value, _ = np.concatenate([trial(seed, bias=0.8) for seed in range(2)]).T
    ours, theirs = np.abs(value - t).mean(), np.abs(direct - t).mean()
    ece = calibration_error(value, t)
    record_property(
        "figure",
        f"BIRD, lean +0.8, one outcome asked: {ours:.4f} against {theirs:.4f}, ECE {ece:.4f}",
    )
    assert 0.05 < ours < theirs
    rng = np.random.default_rng(0)
    here, asked, second = world(rng, bias=0.8), instances(NAMES, 243), both_ways(243)
    truths = np.array([here.truth(x) for x in asked])
    labels = [here.read(q) for q in np.where(second, 1.0 - truths, truths)]
    assert fit(NAMES, asked, labels, second=second).lean == pytest.approx(0.8, abs=0.4)
    assert fit(NAMES, asked, labels).lean == 0.0


def test_labels_about_the_second_outcome_are_those_of_its_complement() -> None:
    """Without a lean, "likely" of one outcome is "unlikely" of the other."""
    asked = instances(NAMES, 40, seed=2)
    rng = np.random.default_rng(2)
    labels = rng.choice(VALUES, 40).tolist()
    one = fit(NAMES, asked, labels)
    other = fit(NAMES, asked, [1.0 - v for v in labels], second=[True] * 40)
    np.testing.assert_allclose(one.mean, other.mean, atol=1e-6)
    assert one.noise == pytest.approx(other.noise, rel=1e-3)


def test_labels_are_a_law_with_right_derivatives() -> None:
    eta, step = np.linspace(-6, 6, 25), 1e-5
    for noise in (0.2, 0.6, 2.0):
        logp, first, second = label_terms(eta, noise)
        np.testing.assert_allclose(np.exp(logp).sum(axis=1), 1.0, atol=1e-12)
        up, down = label_terms(eta + step, noise), label_terms(eta - step, noise)
        np.testing.assert_allclose(first, (up[0] - down[0]) / (2 * step), atol=1e-6)
        np.testing.assert_allclose(second, (up[1] - down[1]) / (2 * step), atol=1e-6)
        assert (second < 0).all()  # log-concave
    assert len(thresholds()) == len(LEVELS) + 1


def simple() -> Fitted:
    factors = {"a": ["x", "y"], "b": ["u", "v", "w"]}
    asked = instances(factors, 6)
    labels = [
        "very likely",
        "likely",
        "equally likely",
        "equally likely",
        "unlikely",
        "very unlikely",
    ]
    return fit(factors, asked, labels, priors={"b": [0.5, 0.25, 0.25]})


def test_missing_factors_are_averaged_by_hand() -> None:
    fitted = simple()
    net = fitted.network(("go", "stay"))
    table = net["outcome"].table[..., 0]
    prior = np.array([0.5, 0.25, 0.25])
    assert fitted.answer({"a": "x", "b": "v"}).value == pytest.approx(table[0, 1])
    assert fitted.answer({"a": "x"}).value == pytest.approx(float(table[0] @ prior))
    assert fitted.answer().value == pytest.approx(float(table.mean(axis=0) @ prior))
    half = {"a": {"x": 0.6}, "b": {"u": 0.2, "w": 0.8}}
    law_a, law_b = np.array([0.8, 0.2]), np.array([0.2, 0.0, 0.8])
    assert fitted.answer(half).value == pytest.approx(float(law_a @ table @ law_b))
    for context in ({}, {"a": "x"}, {"b": "w"}, {"a": "y", "b": "u"}):
        assert net.query("outcome", context)["go"] == pytest.approx(
            fitted.answer(context).value, abs=1e-12
        )
    back = net.query("b", {"outcome": "go"})
    by_hand = prior * table.mean(axis=0)
    assert back["u"] == pytest.approx(float(by_hand[0] / by_hand.sum()), abs=1e-12)
    assert fitted.answer({"a": "x"}).se == 0.0
    assert fitted.weights["a"]["x"] > 0.5 > fitted.weights["a"]["y"]


def test_what_values_are_said_to_speak_for_is_the_start() -> None:
    factors = {"a": ["x", "y"]}
    said = {"a": {"x": "for", "y": "against"}}
    fitted = fit(factors, [], [], speaks=said, scale=1e-3)
    assert fitted.weights["a"]["x"] == pytest.approx(0.75, abs=1e-6)
    assert fitted.weights["a"]["y"] == pytest.approx(0.25, abs=1e-6)


def test_many_factors_are_sampled_with_an_error() -> None:
    factors = {f"f{j}": ["x", "y", "z"] for j in range(10)}
    asked = instances(factors, 40, seed=1)
    assert len({tuple(x.items()) for x in asked}) == 40
    rng = np.random.default_rng(0)
    fitted = fit(factors, asked, rng.choice(VALUES, 40).tolist())
    wide = fitted.answer()
    assert 0 < wide.se < 0.01
    given = {f"f{j}": "x" for j in range(4)}
    assert fitted.answer(given).se == 0.0  # 729 instances are listed
    with pytest.raises(BadArgument, match="settings"):
        fitted.network()


def test_bad_elicitations_are_refused() -> None:
    with pytest.raises(BadArgument, match="different values"):
        fit({"a": ["x", "x"]}, [], [])
    with pytest.raises(BadArgument, match="no factor"):
        instances({}, 3)
    with pytest.raises(BadArgument, match="no value of 'a'"):
        fit({"a": ["x", "y"]}, [{"a": "z"}], ["likely"])
    with pytest.raises(BadArgument, match="no label"):
        fit({"a": ["x", "y"]}, [{"a": "x"}], ["perhaps"])
    with pytest.raises(BadArgument, match="labels"):
        fit({"a": ["x", "y"]}, [{"a": "x"}], [])
    with pytest.raises(BadArgument, match="about O2"):
        fit({"a": ["x", "y"]}, [{"a": "x"}], ["likely"], second=[True, False])
    fitted = simple()
    for context in ({"c": "x"}, {"a": "z"}, {"a": {"x": 0.9, "y": 0.4}}, {"a": {"x": -0.1}}):
        with pytest.raises(BadArgument, match="factor|law over"):
            fitted.answer(context)


# -- questions to a model ------------------------------------------------------------------------

BYTES = TableLM.random(
    [*(bytes([b]) for b in range(32, 127)), b"\n", "<eos>"], seed=3, name="letters"
)
TRIP = Outcomes("How will he get to work?", "by bicycle", "by bus")
FACTORS = {"weather": ("dry", "wet"), "distance": ("near", "far")}


def test_questions_are_one_batch_and_laws() -> None:
    ledger = Ledger()
    asked = instances(FACTORS, 4)
    rows = ask_labels(TRIP, asked, BYTES, ledger=ledger)
    assert rows.shape == (4, 7)
    np.testing.assert_allclose(rows.sum(axis=1), 1.0, atol=1e-12)
    assert ledger.model("letters").passes <= 2 and ledger.model("letters").calls == 28
    law = label_law(TRIP, asked[0])
    for label, p in zip(LEVELS, rows[0], strict=True):
        assert p == pytest.approx(math.exp(law.log_prob(label, lm=BYTES)), abs=1e-12)
    said = ask_context("It rains.", FACTORS, BYTES)
    law = said_law("It rains.", "weather", FACTORS["weather"])
    assert said["weather"]["wet"] == pytest.approx(math.exp(law.log_prob("wet", lm=BYTES)))
    assert 0 < sum(said["distance"].values()) < 1
    answer = fit(FACTORS, asked, rows).answer(said)
    assert 0 < answer.value < 1


def test_the_program_draws_factors_labels_and_entailment() -> None:
    post = infer(
        bird, TRIP, "It rains.", FACTORS, engine=Importance(particles=12), lm=BYTES, seed=1
    )
    assert set(post.marginal()) <= {"by bicycle", "by bus"}
    assert np.ptp(post.log_weights) < 1e-9  # everything is drawn from its own law
    trace = post.traces[0]
    assert "asked[3]/label" in trace and "factor[1]/said" in trace
    proposed = infer(bird, TRIP, "It rains.", engine=Importance(particles=3), lm=BYTES, seed=2)
    texts = [t["factors"] for t, w in zip(proposed.traces, proposed.weights, strict=True) if w > 0]
    assert texts and all(parse_factors(t) for t in texts)
    assert len(set(texts)) > 1  # several lists of factors are several particles


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a b: x | y\nc: u|v | w\n", {"a b": ("x", "y"), "c": ("u", "v", "w")}),
        ("a: x\nb x | y\n: x | y\n\n", {}),
        ("a: x | y\na: u | v\n", {"a": ("x", "y")}),
    ],
)
def test_ill_formed_factors_are_left_out(text: str, found: dict[str, tuple[str, ...]]) -> None:
    assert parse_factors(text) == found


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True])
def test_numpyro_samples_the_posterior_that_fit_approximates(both: bool) -> None:
    """NUTS over θ and the noise: the same probabilities as Laplace's, to 0.05."""
    jax = pytest.importorskip("jax")
    pytest.importorskip("numpyro")
    from numpyro.infer import MCMC, NUTS
    from numpyro.infer.util import log_density

    from lmppl.graphs.bayes_nets.numpyro_bird import elicitation_model

    rng = np.random.default_rng(0)
    here = world(rng)
    asked = instances(NAMES, 64, 0)
    labels = [here.read(here.truth(x)) for x in asked]
    second = both_ways(64) if both else [False] * 64
    fitted = fit(NAMES, asked, labels, second=second)
    model = elicitation_model(NAMES, asked, labels, second=second)
    with jax.enable_x64(True):
        mean = np.append(fitted.mean, fitted.lean) if both else fitted.mean
        thetas = [mean, mean + 0.1]
        at, there = ({"theta": theta, "noise": fitted.noise} for theta in thetas)
        gap = log_density(model, (), {}, at)[0] - log_density(model, (), {}, there)[0]
        settings = np.array([[float(v == a[f]) for f in NAMES for v in NAMES[f]] for a in asked])
        x = settings * np.where(second, -1.0, 1.0)[:, None]
        sd = np.full(len(mean), 1.5)
        if both:
            x, sd[-1] = np.hstack([x, np.ones((64, 1))]), 1.0
        rows = np.array([list(LEVELS.values()).index(v) for v in labels])
        terms = [label_terms(x @ theta, fitted.noise)[0] for theta in thetas]
        prior = [-0.5 * float(((theta / sd) ** 2).sum()) for theta in thetas]
        pick = np.arange(len(rows))
        by_hand = terms[0][pick, rows].sum() - terms[1][pick, rows].sum() + prior[0] - prior[1]
        assert float(gap) == pytest.approx(float(by_hand), abs=1e-8)
        mcmc = MCMC(NUTS(model), num_warmup=300, num_samples=500, progress_bar=False)
        mcmc.run(jax.random.PRNGKey(0))
        theta = np.asarray(mcmc.get_samples()["theta"])[:, : len(fitted.mean)]
    for row in settings[:20]:
        nuts = float((1.0 / (1.0 + np.exp(-theta @ row))).mean())
        context = {
            f: v for k, (f, v) in enumerate((f, v) for f in NAMES for v in NAMES[f]) if row[k]
        }
        assert fitted.answer(context).value == pytest.approx(nuts, abs=0.05)
