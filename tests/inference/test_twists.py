"""Learned guides on an enumerable model: exact for any θ, better after training, bounds on both sides."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

from lmppl import LM, factor, program, sample  # noqa: E402
from lmppl.errors import BadArgument  # noqa: E402
from lmppl.inference import (  # noqa: E402
    SMC,
    BestFirst,
    Guide,
    Importance,
    ParticleGibbs,
    infer,
    tokens,
)
from lmppl.inference.learning import (  # noqa: E402
    Twist,
    TwistPotential,
    evidence_bounds,
    fit_twist,
    learn_twist,
    token_features,
)
from lmppl.inference.learning.prefixes import prefixes  # noqa: E402
from lmppl.lm.table import TableLM  # noqa: E402
from lmppl.testing import assert_properly_weighted, enumerate_exact  # noqa: E402
from lmppl.trace import Trace  # noqa: E402

T = 5
MODEL = TableLM(
    ["a", "b", "c"],
    {(): [0.6, 0.3, 0.1], (0,): [0.7, 0.2, 0.1], (1,): [0.5, 0.1, 0.4], (2,): [0.3, 0.3, 0.4]},
)


def writer(most: int, twist: Twist | None = None) -> Any:
    """Strings with many c, and none of "bb"; log-weights are at most 0."""
    drawn = None if twist is None else TwistPotential(twist, "x")

    @program
    def write() -> str:
        x = sample("x", LM("", max_tokens=most, potential=drawn))
        factor("rule", 1.5 * (x.count("c") - most) if "bb" not in x else False)
        return str(x)

    return write


LAST = token_features("x", 3, T)


def FEATURES(trace: Trace) -> list[float]:  # noqa: N802
    """The last token, the length, how many c, and whether the rule is broken."""
    text = trace.so_far("x") if "x" in trace.partial or "x" in trace else ""
    return [*LAST(trace), text.count("c"), float("bb" in text)]


def random_twist(seed: int, hidden: int) -> Twist:
    rng = np.random.default_rng(seed)
    F = len(FEATURES(Trace(None)))
    if not hidden:
        return Twist(FEATURES, (rng.normal(size=F), rng.normal(size=())))
    W, b, v = rng.normal(size=(F, hidden)), rng.normal(size=hidden), 2 * rng.normal(size=hidden)
    return Twist(FEATURES, (W, b, v, rng.normal(size=())), base=Guide(lambda t: -0.3 * len(t)))


@pytest.mark.parametrize("hidden", [0, 3])
def test_any_twist_leaves_the_weights_exact(hidden: int) -> None:
    """All outcomes of a filter that resamples at every token: E[Ẑ W(x)] = γ(x) to 1e-10."""
    engine = SMC(2, always=True, resample_at=tokens(1), guide=random_twist(hidden, hidden).guide)
    assert_properly_weighted(writer(2), engine=engine, lm=MODEL, atol=1e-10)


@pytest.mark.parametrize("resample_at", ["site", tokens(1)], ids=["site", "tokens"])
def test_any_twist_may_draw_the_tokens(resample_at: Any) -> None:
    """The same with q ∝ p ψ, and a guide that goes on where the string ends."""
    twist = random_twist(2, 0)
    guide = TwistPotential(twist, "x").guide
    engine = SMC(2, always=True, resample_at=resample_at, guide=guide)
    assert_properly_weighted(writer(2, twist), engine=engine, lm=MODEL, atol=1e-10)


@pytest.fixture(scope="module")
def learned() -> dict[str, Any]:
    """A twist by each loss, from filters of 200 and 600 plain runs."""
    found = {}
    for loss in ("ratio", "contrastive"):
        engine = SMC(200, resample_at=tokens(1))
        found[loss] = learn_twist(
            writer(T), features=FEATURES, engine=engine, lm=MODEL, inside=MODEL, runs=600,
            rounds=2 if loss == "ratio" else 1, loss=loss, until="rule",
        )  # fmt: skip
    return found


def test_training_finds_what_is_to_come(learned: dict[str, Any]) -> None:
    """The mean error of log ψ against h*, over the prefixes of plain runs, where it is positive."""
    best = Guide.optimal(writer(T), lm=MODEL)
    post = infer(writer(T), engine=Importance(200), lm=MODEL, seed=9)
    every = [p.trace for t in post.traces for p in prefixes(t, MODEL)]
    alive = [(t, h) for t in every if (h := best(t)) > -8.0]
    truth = np.array([h for _, h in alive])
    untrained = np.abs(truth).mean()
    for loss, twist in learned.items():
        error = np.abs(twist.log_psi([t for t, _ in alive]) - truth).mean()
        assert error < 0.1 * untrained, loss
        assert twist.losses[-1] < twist.losses[0]


def test_the_variance_of_the_evidence_falls(learned: dict[str, Any]) -> None:
    """A guide alone leaves the chance of the last token; a twist that draws leaves what it got wrong."""
    z = enumerate_exact(writer(T), lm=MODEL).z

    def ratios(twist: Twist | None, drawn: bool) -> Any:
        guide = None if twist is None else twist.guide
        if twist is not None and drawn:
            guide = TwistPotential(twist, "x").guide
        engine = SMC(16, resample_at=tokens(1), guide=guide)
        fn = writer(T, twist if drawn else None)
        runs = [infer(fn, engine=engine, lm=MODEL, seed=s) for s in range(60)]
        found = np.exp([p.log_evidence for p in runs]) / z
        # E[Ẑ] = Z by z-test, false alarms 1e-6
        assert abs(found.mean() - 1) < 4.9 * found.std(ddof=1) / math.sqrt(len(found))
        return np.log(found).var()

    plain = ratios(None, False)
    for twist in learned.values():
        assert ratios(twist, False) < 0.85 * plain
        assert ratios(twist, True) < 0.1 * plain


def test_bounds_hold_the_evidence_between_them(learned: dict[str, Any]) -> None:
    """E[log Ẑ] ≤ log Z ≤ E[log Ẑ given a posterior path], closer after training."""
    log_z = math.log(enumerate_exact(writer(T), lm=MODEL).z)
    twist, gaps = learned["ratio"], {}
    for name, fn, guide, bound in (
        ("none", writer(T), None, 0.0),
        ("learned", writer(T, twist), TwistPotential(twist, "x").guide, -2.0),
    ):
        engine = SMC(8, resample_at=tokens(1), guide=guide)
        # with q ∝ p ψ runs have weights near Z; a bound that is too low is an error
        found = evidence_bounds(
            fn, engine=engine, lm=MODEL, runs=30, tries=100_000, log_bound=bound
        )
        assert found.exact
        assert found.lower < log_z + 4.9 * found.lower_se
        assert found.upper > log_z - 4.9 * found.upper_se
        gaps[name] = found.gap
    assert gaps["none"] > 0.5 and gaps["learned"] < 0.3 * gaps["none"]


def test_without_exact_paths_the_bounds_say_so() -> None:
    engine = SMC(8, resample_at=tokens(1))
    found = evidence_bounds(writer(T), engine=engine, lm=MODEL, runs=2, tries=1)
    assert not found.exact and math.isfinite(found.gap)


def test_a_twist_guides_other_engines(learned: dict[str, Any]) -> None:
    guide = learned["ratio"].guide
    for engine in (
        ParticleGibbs(4, sweeps=3, guide=guide, resample_at=tokens(1)),
        BestFirst(guide=guide),
    ):
        assert len(infer(writer(T), engine=engine, lm=MODEL, seed=0)) > 0


def test_what_cannot_be_learnt_says_so() -> None:
    @program
    def never() -> None:
        sample("x", LM("", max_tokens=2))
        factor("no", False)

    dead = infer(never, engine=Importance(4), lm=MODEL, on_dead="return")
    alive = infer(writer(2), engine=Importance(4), lm=MODEL)
    with pytest.raises(BadArgument, match="without weight"):
        fit_twist(dead, alive, FEATURES)
    with pytest.raises(BadArgument, match="loss"):
        fit_twist(alive, alive, FEATURES, loss="hinge")
    with pytest.raises(BadArgument, match="particle filter"):
        learn_twist(writer(2), features=FEATURES, engine=Importance(2), lm=MODEL)  # type: ignore[arg-type]
    with pytest.raises(BadArgument, match="positive weight"):
        evidence_bounds(never, engine=SMC(4), lm=MODEL, runs=2, tries=64)
