"""Sequential runs: Wald's identity and proper weights by enumeration, pooling, why they stopped."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest

from lmppl import LM, Bernoulli, Categorical, factor, observe, program, sample
from lmppl.errors import BadArgument
from lmppl.inference import (
    SMC,
    Beam,
    Enumerate,
    Forward,
    Importance,
    Posterior,
    infer,
    infer_many,
)
from lmppl.inference.mcmc.particle_gibbs import ParticleGibbs
from lmppl.inference.results.pooling import pool
from lmppl.inference.stopping.criteria import BetaMajority, Budget
from lmppl.inference.stopping.rules import Rule, Threshold
from lmppl.inference.stopping.sequential import LIMIT, Adaptive, Pooled, Sequential, Stopped
from lmppl.inference.stopping.signals import SIGNALS, Readings, majority_probability
from lmppl.lm.table import TableLM
from lmppl.testing import LawBroken, assert_properly_weighted, check_keys, enumerate_exact, outcomes
from lmppl.weights import exp

AB = TableLM(["a", "b", "<eos>"], {(): [0.5, 0.3, 0.2], (0,): [0.1, 0.2, 0.7]})
NEVER = Threshold("draws", at_least=10**6)


@program
def weighted() -> Any:
    """Unequal weights, and a value that is impossible."""
    x = sample("x", LM("", max_tokens=1))
    factor("tilt", {"a": 0.4, "b": -0.7, "": -0.1}[x])
    observe("seen", Bernoulli(0.0 if x == "" else 0.5), True)
    return x


@program
def coin(p: float = 0.9) -> Any:
    return sample("x", Bernoulli(p))


@program
def hidden(p: float = 0.3) -> Any:
    x = sample("x", Bernoulli(p))
    observe("y", Bernoulli(0.8 if x else 0.4), True)
    return x


def end(posterior: Any) -> Stopped:
    """How a sequential run ended."""
    if not isinstance(posterior, Pooled):
        raise TypeError(f"{posterior} is of no sequential run")
    return posterior.stopped


@pytest.mark.parametrize(
    "inner", [Importance(1), Importance(2), SMC(2, ess_threshold=0.85)], ids=repr
)
def test_a_fixed_number_of_batches_is_properly_weighted(inner: Any) -> None:
    engine = Sequential(inner, NEVER, most=2)
    found = assert_properly_weighted(weighted, engine=engine, lm=AB, atol=1e-10)
    assert found.error < 1e-12


def equal_runs(parts: Any) -> Any:
    """A wrong pool: every run counts the same, whatever its evidence."""
    pooled = pool(parts)
    lw = np.concatenate([np.log(np.maximum(p.weights, 1e-300)) for p in parts])
    return Posterior(pooled.traces, lw, pooled.log_evidence)


def mean_of_logs(parts: Any) -> Any:
    """A wrong pool: the mean of log-evidences, which is below the log of their mean."""
    pooled = pool(parts)
    pooled.log_evidence = float(np.mean([max(p.log_evidence, -700.0) for p in parts]))
    return pooled


@pytest.mark.parametrize("wrong", [equal_runs, mean_of_logs])
def test_wrong_pools_are_rejected(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmppl.inference.stopping.sequential.pool", wrong)
    with pytest.raises(LawBroken):
        assert_properly_weighted(
            weighted, engine=Sequential(Importance(1), NEVER, most=2), lm=AB, atol=1e-10
        )


def test_batches_that_share_keys_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmppl.inference.stopping.sequential.fold", lambda key, *data: key)
    with pytest.raises(LawBroken, match="random key again"):
        check_keys(weighted, engine=Sequential(Importance(2), NEVER, most=2), lm=AB)


@pytest.mark.parametrize(
    "rule",
    [
        BetaMajority(0.7),
        Threshold("log_evidence", at_least=-0.6),
        Threshold("ess", at_least=2.0) | Threshold("entropy", at_most=0.1),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 2])
def test_walds_identity(rule: Rule, batch: int) -> None:
    """E[n Ẑ W(x)] = E[n] γ(x), whatever the rule looks at; and Ẑ itself is biased by one of them."""
    engine = Sequential(Importance(batch), rule, most=4 // batch)

    def run(chance: Any) -> Any:
        return infer(weighted, engine=engine, lm=AB, chance=chance, on_dead="return")

    gamma = enumerate_exact(weighted, lm=AB)
    found: dict[Any, float] = {}
    draws = evidence = 0.0
    seen = set()
    for p, post in outcomes(run):
        n = len(post)
        seen.add(n)
        draws += p * n
        evidence += p * exp(post.log_evidence)
        for trace, w in zip(post.traces, post.weights.tolist(), strict=True):
            if w > 0.0:
                found[trace.result] = found.get(trace.result, 0.0) + p * n * w * exp(
                    post.log_evidence
                )
    assert len(seen) > 1, "the rule never had a choice"
    for x, g in gamma.items():
        assert abs(found.get(x, 0.0) - draws * g) < 1e-10
    if batch == 1 and "log_evidence" in str(rule):
        assert abs(evidence / gamma.z - 1.0) > 0.01, "optional stopping does bias the estimate"


def test_keys_are_all_different() -> None:
    assert check_keys(weighted, engine=Sequential(Importance(3), NEVER, most=4), lm=AB) > 0


def test_the_first_batch_is_the_engine_itself() -> None:
    alone = infer(weighted, engine=SMC(8), lm=AB, seed=5)
    once = infer(weighted, engine=Sequential(SMC(8), NEVER, most=1), lm=AB, seed=5)
    assert [t.result for t in once.traces] == [t.result for t in alone.traces]
    assert once.log_evidence == pytest.approx(alone.log_evidence, abs=1e-12)
    assert once.weights == pytest.approx(alone.weights, abs=1e-12)
    assert once.ledger.tokens == alone.ledger.tokens
    assert once.log_evidence_se == pytest.approx(alone.log_evidence_se)


def test_pooled_particles_are_one_run() -> None:
    """Pooled importance runs: the mean of all weights, and the errors of one run of that size."""
    parts = [infer(weighted, engine=Importance(n), lm=AB, seed=n) for n in (3, 5, 40)]
    both = pool(parts)
    lw = np.concatenate([p.log_weights for p in parts])
    w = np.exp(lw)
    assert both.log_evidence == pytest.approx(math.log(w.mean()))
    assert both.weights == pytest.approx(w / w.sum())
    assert both.log_weights == pytest.approx(lw)
    assert len(both) == 48 and both.unique_ancestors == int((w > 0).sum())
    assert both.ledger.calls == sum(p.ledger.calls for p in parts)
    with pytest.raises(BadArgument, match="exact"):
        pool([infer(weighted, engine=Enumerate(), lm=AB)])
    with pytest.raises(BadArgument, match="no posterior"):
        pool([])
    with pytest.raises(BadArgument, match="a search"):
        pool([infer(weighted, engine=Beam(width=1), lm=AB)])
    # what is no evidence has no error, in whatever batches it is drawn
    for n in (1, 3):
        plain = pool([infer(weighted, engine=Forward(n), lm=AB, seed=s) for s in range(4)])
        assert math.isnan(plain.log_evidence_se) and plain.weights == pytest.approx(1 / (4 * n))


def test_chains_can_be_pooled() -> None:
    """Particle Gibbs, each chain weighted by the filter that starts it: E[Ẑ W(x)] = γ(x), z at 1e-6."""
    n, total = 150, []
    gamma = enumerate_exact(hidden)
    for seed in range(n):
        engine = Sequential(ParticleGibbs(particles=2, sweeps=2), NEVER, most=2)
        p = infer(hidden, engine=engine, seed=seed)
        total.append(exp(p.log_evidence) * p.marginal().get(True, 0.0))
    se = np.std(total) / math.sqrt(n)
    assert abs(np.mean(total) - gamma[True]) < 4.89 * se


def test_readings_have_every_signal() -> None:
    post = infer(weighted, engine=Importance(8), lm=AB)
    readings = Readings(post, prices={"ab": (1.0, 1.0), "table": (1.0, 1.0)})
    seen = dict(readings)
    assert set(seen) == set(SIGNALS) and len(readings) == len(SIGNALS)
    assert seen["lead"] == pytest.approx(majority_probability(*seen["counts"][:2]))
    assert math.fsum(seen["counts"]) == pytest.approx(min(post.ess, post.unique_ancestors))
    assert seen["entropy"] == seen["last_entropy"] == pytest.approx(post.marginal().entropy)
    assert "money" not in Readings(post) and "luck" not in readings


@pytest.mark.parametrize("inner", [Importance(10), SMC(10), Importance(1)], ids=repr)
def test_errors_of_a_pool_are_calibrated(inner: Any) -> None:
    """z of 100 pooled runs: standard deviation 1 within 4.9 / √200, as errors of 30 draws are rough."""
    z, marginal = [], []
    truth = infer(hidden, engine=Enumerate())
    most = 30 // inner.particles
    for seed in range(100):
        p = infer(hidden, engine=Sequential(inner, NEVER, most=most), seed=seed)
        z.append((p.log_evidence - truth.log_evidence) / p.log_evidence_se)
        m = p.marginal()
        marginal.append((m[True] - truth.marginal()[True]) / m.se[True])
    for values in (z, marginal):
        assert 0.6 < np.std(values) < 1.4, np.std(values)
        assert abs(np.mean(values)) < 0.5


def test_it_says_why_it_stopped() -> None:
    post = infer(coin, engine=Sequential(Forward(2), BetaMajority(0.95), most=20), seed=1)
    assert end(post).settled and end(post).why[0].startswith("leader")
    assert end(post).draws == len(post) == 2 * end(post).batches
    cut = infer(coin, 0.5, engine=Sequential(Forward(2), NEVER, most=3))
    assert end(cut).why == (LIMIT,) and not end(cut).settled and len(cut) == 6
    assert "E[n Ẑ W(x)] = E[n] γ(x)" in post.target


def test_budget_of_each_kind() -> None:
    lm = AB
    for limit, name in (
        (Budget(tokens=7), "tokens"),
        (Budget(calls=7), "calls"),
        (Budget(money=7e-6), "money"),
    ):
        engine = Sequential(
            Importance(2), limit, prices={"table": (0.0, 1.0)} if name == "money" else None
        )
        post = infer(weighted, engine=engine, lm=lm)
        spent = post.ledger.tokens if name == "tokens" else post.ledger.calls
        assert 7 <= spent <= 8 and end(post).why[0].startswith(name), (name, spent)
    with pytest.raises(BadArgument, match="prices="):
        infer(weighted, engine=Sequential(Importance(2), Budget(money=1.0)), lm=lm)
    slow = infer(weighted, engine=Sequential(Importance(2), Budget(seconds=0.02), most=10_000), lm=lm)  # fmt: skip
    assert 0.02 <= slow.ledger.seconds < 5.0


def test_growth_asks_after_doubling() -> None:
    asked: list[int] = []

    class Spy(Threshold):
        def step(self, data: Any, values: Any) -> Any:
            asked.append(values["draws"])
            return super().step(data, values)

    engine = Sequential(Forward(2), Spy("draws", at_least=100), most=12, growth=2)
    infer(coin, engine=engine)
    assert asked == [2, 4, 8, 16, 24]


def test_batch_resizes_the_engine() -> None:
    assert Sequential(SMC(16, resampling="residual"), NEVER, batch=4).inner == SMC(
        4, resampling="residual"
    )
    with pytest.raises(BadArgument, match="does not have"):
        Sequential(Enumerate(), NEVER, batch=4)
    with pytest.raises(BadArgument, match="growth"):
        Sequential(Forward(2), NEVER, growth=0.5)
    with pytest.raises(BadArgument, match="an engine and a rule"):
        Sequential(BetaMajority())  # type: ignore[arg-type]


def test_equivalence_and_refused_answers() -> None:
    @program
    def messy() -> Any:
        return sample("x", Categorical({"4": 0.3, " 4": 0.3, "4.0": 0.3, "": 0.1}))

    def clean(a: str) -> float:
        return float(a)

    plain = infer(messy, engine=Sequential(Forward(2), BetaMajority(), most=30), seed=2)
    keyed = infer(
        messy,
        engine=Sequential(Forward(2), BetaMajority(), most=30, key=clean, keep=bool),
        seed=2,
    )
    assert end(keyed).settled and len(keyed) < len(plain)


def test_a_program_without_an_answer() -> None:
    """All answers are refused: no rule fires, nothing breaks."""

    @program
    def silent() -> Any:
        sample("x", Bernoulli(0.5))
        return ""

    rule = (
        BetaMajority(0.6) | Threshold("certainty", at_least=0.1) | Threshold("entropy", at_most=1)
    )
    post = infer(silent, engine=Sequential(Forward(2), rule, most=3, keep=bool))
    assert end(post).why == (LIMIT,)
    assert Readings(post, keep=bool)["answer"] is None


def test_dead_batches_count() -> None:
    """A batch without a live particle is a batch of weight zero, not an error."""

    @program
    def rare() -> Any:
        x = sample("x", Bernoulli(0.2))
        factor("hard", x)
        return x

    n, total = 300, 0.0
    for seed in range(n):
        p = infer(
            rare, engine=Sequential(Importance(1), NEVER, most=4), seed=seed, on_dead="return"
        )
        total += math.exp(p.log_evidence)
    assert abs(total / n - 0.2) < 4.89 * math.sqrt(0.2 * 0.8 / (4 * n))


def test_many_questions_and_nesting() -> None:
    engine = Sequential(Forward(2), BetaMajority(0.9), most=30)
    questions = [(0.99,), (0.6,), (0.5,)]
    many = infer_many(coin, questions, engine=engine, seed=4)
    alone = [infer_many(coin, [q], engine=engine, seed=4, ids=[i])[0] for i, q in enumerate(questions)]  # fmt: skip
    assert [len(p) for p in many] == [len(p) for p in alone]
    assert len(many[0]) < len(many[2])

    @program
    def outer() -> Any:
        inner = infer(coin, 0.95, engine=engine)
        return end(inner).draws

    nested = infer(outer, engine=Importance(2))
    assert all(t.result >= 4 for t in nested.traces)


@pytest.mark.parametrize("rule", ["beta", "certainty", "window"])
def test_presets(rule: str) -> None:
    engine = Adaptive(particles=20, rule=rule, level=0.9, batch=4)
    assert pickle.loads(pickle.dumps(engine)) == engine
    sure = infer(coin, 0.999, engine=engine)
    unsure = infer(coin, 0.5, engine=engine, seed=1)
    assert len(sure) == 4 and len(unsure) > 4 and len(unsure) <= 20
    assert sure.engine.startswith("Adaptive(")


def test_doubling_preset() -> None:
    engine = Adaptive(particles=32, level=0.75, batch=2, growth=2)
    sizes = {len(infer(coin, 0.6, engine=engine, seed=s)) for s in range(30)}
    assert sizes <= {2, 4, 8, 16, 32} and len(sizes) > 2
    assert len(infer(coin, 0.5, engine=Adaptive(particles=7, level=0.999, batch=2))) == 6
    assert len(infer(coin, 0.5, engine=Adaptive(particles=1, batch=4))) == 1


@pytest.mark.parametrize("options", [{"rule": "luck"}, {"batch": 0}, {"level": 1.5}])
def test_bad_presets(options: dict[str, Any]) -> None:
    with pytest.raises(BadArgument):
        Adaptive(**options)
