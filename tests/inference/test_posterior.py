"""What a `Posterior` says, against exact answers and against many independent runs of itself.

Statistical tests have fixed seeds. Their bounds are set so that a right implementation would fail
with probability below 1e-4 under fresh seeds, and each is shown to reject a wrong one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lmppl import LM, Bernoulli, Categorical, Uniform, factor, observe, program, sample
from lmppl.errors import AllParticlesDead, BadArgument
from lmppl.graphs.genealogy import ancestors
from lmppl.inference import (
    SMC,
    Enumerate,
    Forward,
    Greedy,
    Importance,
    Posterior,
    Rejection,
    infer,
    infer_many,
)
from lmppl.inference.results.estimates import Marginal
from lmppl.inference.results.history import History
from lmppl.lm.table import TableLM
from lmppl.trace import Entry, Trace
from lmppl.types import Floats

RUNS, N = 160, 32


@program
def walk() -> Any:
    """A latent at the start that matters to the end, and noise that is soon forgotten."""
    x = sample("x", Categorical({"a": 0.5, "b": 0.3, "c": 0.2}))
    for _ in range(3):
        y = sample("y", Bernoulli(0.5))
        factor("weigh", {"a": 0.0, "b": -0.4, "c": -0.8}[x] - (0.7 if y else 0.0))
    return x


EXACT = infer(walk, engine=Enumerate())


@pytest.fixture(
    scope="module",
    params=[Importance(N), SMC(N), SMC(N, always=True), SMC(N, resampling="multinomial")],
    ids=["importance", "smc", "always", "multinomial"],
)
def runs(request: pytest.FixtureRequest) -> list[Posterior]:
    """Independent runs of one engine."""
    found: list[Posterior] = infer_many(walk, [()] * RUNS, engine=request.param, seed=11)
    return found


def covered(estimates: Floats, errors: Floats, truth: float) -> float:
    return float(np.mean(np.abs(estimates - truth) <= 1.96 * errors))


# -- estimates against many runs ------------------------------------------------------------------


def test_the_mean_of_many_runs_is_the_exact_answer(runs: list[Posterior]) -> None:
    """z-test at 4.5 standard errors (7e-6, two-sided); the ratio estimate's bias is O(1/N)."""
    p = np.array([r.marginal()["a"] for r in runs])
    z = np.exp(np.array([r.log_evidence for r in runs]) - EXACT.log_evidence)
    bias = 2.0 / N
    assert abs(p.mean() - EXACT.marginal()["a"]) < 4.5 * p.std() / math.sqrt(RUNS) + bias
    assert abs(z.mean() - 1.0) < 4.5 * z.std() / math.sqrt(RUNS)


def test_standard_errors_are_the_spread_of_many_runs(runs: list[Posterior]) -> None:
    """The spread of 160 runs is known to 6 %, and the band is five times that."""
    p = np.array([r.marginal()["a"] for r in runs])
    se = np.array([r.marginal().se["a"] for r in runs])
    ratio = math.sqrt(float(np.nanmean(se**2))) / p.std()
    print(f"se/sd {ratio:.3f}, 95 % interval covers {covered(p, se, EXACT.marginal()['a']):.3f}")
    assert 0.7 < ratio < 1.4
    assert not 0.7 < ratio / 2 < 1.4, "an error half as large is rejected"


def test_expectations_agree_with_marginals(runs: list[Posterior]) -> None:
    for run in runs[:20]:
        value, se = run.expectation(lambda t: float(t["x"] == "a"))
        assert value == pytest.approx(run.marginal("x")["a"], rel=1e-12)
        assert se == pytest.approx(run.marginal().se["a"], rel=1e-9)


def test_the_interval_of_the_log_evidence_covers_it(runs: list[Posterior]) -> None:
    """Nominal 95 %: at most 86 % of 160 has probability 1e-5 under that."""
    hits = [r.log_evidence_interval() for r in runs]
    share = np.mean([i.low <= EXACT.log_evidence <= i.high for i in hits])
    print(f"95 % interval covers {share:.3f}")
    assert share > 0.86
    narrow = [r.log_evidence_interval(1.96 / 4) for r in runs]
    share = np.mean([i.low <= EXACT.log_evidence <= i.high for i in narrow])
    assert share < 0.86, "an interval a quarter as wide is rejected"


def test_rejection_knows_the_error_of_its_evidence() -> None:
    """Its weights are all equal, so the error is of the acceptance rate. Bounds as above."""
    posts = infer_many(walk, [()] * RUNS, engine=Rejection(20), seed=2)
    log_z = np.array([p.log_evidence for p in posts])
    se = np.array([p.log_evidence_se for p in posts])
    assert 0.7 < math.sqrt(float(np.mean(se**2))) / log_z.std() < 1.4
    assert covered(log_z, se, EXACT.log_evidence) > 0.86


@pytest.mark.parametrize("engine", [Forward(8), Greedy()], ids=repr)
def test_baselines_claim_no_error_of_an_evidence_they_do_not_have(engine: Any) -> None:
    assert math.isnan(infer(walk, engine=engine).log_evidence_se)


# -- one posterior, by hand -----------------------------------------------------------------------


def traces(values: list[Any], site: str = "x") -> list[Trace]:
    return [
        Trace(Entry(None, "sample", site, v, logp=-float(i)), result=v)
        for i, v in enumerate(values)
    ]


def by_hand(**more: Any) -> Posterior:
    """Weights 1/8, 1/2, 1/4, 1/8, 0."""
    lw = np.log([1.0, 4.0, 2.0, 1.0, 1e-300])
    lw[4] = -np.inf
    return Posterior(traces(["a", "b", "a", "c", "d"]), lw, 0.25, **more)


def test_weights_marginal_and_ess() -> None:
    post = by_hand()
    assert post.weights.tolist() == pytest.approx([0.125, 0.5, 0.25, 0.125, 0.0])
    assert post.marginal() == pytest.approx({"b": 0.5, "a": 0.375, "c": 0.125})
    assert list(post.marginal("x")) == ["b", "a", "c"], "largest first, nothing of weight zero"
    assert post.marginal(lambda t: t.result < "c") == pytest.approx({True: 0.875, False: 0.125})
    assert post.ess == pytest.approx(1 / (2 * 0.125**2 + 0.5**2 + 0.25**2))
    assert len(post) == 5 and post.unique_ancestors == 4


def test_standard_error_by_hand_without_and_with_families() -> None:
    """Families {0, 1} and {2, 3, 4}; f = 1 for a, mean 3/8."""
    terms = [0.125 * 0.625, -0.5 * 0.375, 0.25 * 0.625, -0.125 * 0.375, 0.0]
    alone = math.sqrt(sum(t * t for t in terms))
    assert by_hand().marginal().se["a"] == pytest.approx(alone)
    groups = (terms[0] + terms[1], terms[2] + terms[3] + terms[4])
    grouped = by_hand(eves=[0, 0, 2, 2, 2]).marginal().se["a"]
    assert grouped == pytest.approx(math.hypot(*groups))


def test_marginal_ranks_and_shows() -> None:
    found = Marginal({"x": 0.25, "y": 0.5, "w": 0.25}, {"x": 0.1, "y": 0.2, "w": 0.1})
    assert list(found) == ["y", "w", "x"] and found.best == "y"
    assert found.entropy == pytest.approx(-0.5 * math.log(0.5) - 0.5 * math.log(0.25))
    assert str(found).splitlines()[0] == " 0.5000 ± 0.2000  'y'"
    many = Marginal({i: 1 / 30 for i in range(30)}, {})
    assert str(many).endswith("… 10 more")


def test_map_is_the_largest_joint_and_never_a_dead_one() -> None:
    post = by_hand()
    assert post.map().result == "a" and post.map() is post.traces[0]
    post.log_weights[0] = -np.inf
    again = Posterior(post.traces, post.log_weights, 0.0)
    assert again.map() is post.traces[1]


def test_samples_follow_the_weights() -> None:
    """Chi-square with 3 degrees of freedom: 23.5 has probability 3e-5."""
    post = by_hand()
    n = 4000
    drawn = post.sample(n, seed=5)
    seen = np.array([sum(t is trace for t in drawn) for trace in post.traces])
    expected = n * post.weights[:4]
    assert seen[4] == 0
    assert float(((seen[:4] - expected) ** 2 / expected).sum()) < 23.5
    uniform = np.full(4, n / 4)
    assert float(((seen[:4] - uniform) ** 2 / uniform).sum()) > 23.5, "equal weights are rejected"
    assert isinstance(post.sample(), Trace)
    assert [id(t) for t in post.sample(5, seed=1)] == [id(t) for t in post.sample(5, seed=1)]


def test_functions_see_only_what_is_alive() -> None:
    post = by_hand()
    seen: list[str] = []
    post.marginal(lambda t: seen.append(t.result))
    assert seen == ["a", "b", "a", "c"]
    value, _ = Posterior(traces([1.0, 3.0, None]), np.array([0.0, 0.0, -np.inf]), 0.0).expectation()
    assert value == 2.0


def test_an_unknown_site_lists_those_there_are() -> None:
    with pytest.raises(BadArgument, match="no trace has a site 'y'\n  fix:   the sites are: x"):
        by_hand().marginal("y")


def test_values_without_a_hash_need_a_function() -> None:
    post = Posterior(traces([np.zeros(2), np.zeros(2)]), np.zeros(2), 0.0)
    with pytest.raises(BadArgument, match="needs hashable values, got ndarray"):
        post.marginal()
    assert post.marginal(lambda t: tuple(t["x"].tolist())).best == (0.0, 0.0)
    assert "array" in repr(post)


def test_a_site_that_some_traces_lack_is_none_there() -> None:
    post = Posterior([*traces(["a"]), *traces(["b"], "y")], np.zeros(2), 0.0)
    assert post.marginal("x") == {"a": 0.5, None: 0.5}


# -- exact posteriors -----------------------------------------------------------------------------


def test_an_exact_posterior_has_no_error() -> None:
    assert set(EXACT.marginal().se.values()) == {0.0}
    assert EXACT.log_evidence_se == 0.0
    assert EXACT.log_evidence_interval().low == EXACT.log_evidence_interval().high
    by_sum = sum(
        p * (0.5 * (1 + math.exp(-0.7)) * math.exp(w)) ** 3
        for p, w in ((0.5, 0.0), (0.3, -0.4), (0.2, -0.8))
    )
    assert EXACT.log_evidence == pytest.approx(math.log(by_sum), rel=1e-12)


def test_a_cut_enumeration_bounds_what_it_lost() -> None:
    cut = infer(walk, engine=Enumerate(min_mass=0.01))
    low, high = cut.log_evidence_interval()
    assert cut.missing > 0 and low < EXACT.log_evidence <= high


# -- ancestors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [SMC(16, always=True), SMC(16, ess_threshold=0.95)], ids=repr)
def test_the_curve_of_ancestors_is_that_of_the_genealogy(engine: SMC) -> None:
    post = infer(walk, engine=engine, seed=4)
    history = post.history
    assert history is not None and history.resamplings > 1
    for t in range(len(history.eves)):
        first = ancestors(history.ancestors[: t + 1], 16)[0]
        assert history.eves[t] == len(set(first.tolist()))
    assert ancestors(history.ancestors, 16)[0].tolist() == post.eves.tolist()
    assert post.unique_ancestors == history.eves[-1]
    assert history.log_evidence[-1] == post.log_evidence
    assert history.ess[-1] == post.ess


# -- what it warns of -----------------------------------------------------------------------------


def test_dead_posteriors_raise_and_name_the_sites() -> None:
    @program
    def contradiction() -> None:
        x = sample("x", Uniform(["p", "q"]))
        observe("first", Uniform(["p"]), x)
        observe("second", Uniform(["q"]), x)

    with pytest.raises(AllParticlesDead) as caught:
        infer(contradiction, engine=Importance(50), seed=0)
    assert "first" in str(caught.value) and "second" in str(caught.value)
    post = infer(contradiction, engine=Importance(50), seed=0, on_dead="return")
    assert post.dead and post.log_evidence == -math.inf and post.ess == 0.0
    assert sum(post.deaths.values()) == 50
    assert "every particle has weight zero" in post.warnings[0]
    start = "Posterior(Importance(particles=50), seed=0: all 50 particles dead at {"
    assert repr(post).startswith(start)
    assert math.isnan(post.log_evidence_se)
    uses: list[Any] = [post.marginal, post.expectation, post.map, post.sample, post.to_arviz]
    for use in uses:
        with pytest.raises(AllParticlesDead, match="first"):
            use()


def test_one_heavy_particle_is_warned_of() -> None:
    @program
    def rare() -> Any:
        x = sample("x", Uniform(list(range(50))))
        factor("exact", 0.0 if x == 7 else -40.0)
        return x

    post = infer(rare, engine=Importance(100), seed=1)
    heavy = sum(t.result == 7 for t in post.traces)
    assert any("one particle carries the posterior" in w for w in post.warnings) == (heavy == 1)
    some = [infer(rare, engine=Importance(60), seed=s) for s in range(12)]
    warned = [any("one particle" in w for w in p.warnings) for p in some]
    assert warned == [p.ess < 2 for p in some] and any(warned) and not all(warned)


def test_a_single_family_is_warned_of_and_has_no_error() -> None:
    @program
    def long() -> Any:
        for _ in range(40):
            x = sample("x", Bernoulli(0.5))
            factor("prefer", 0.0 if x else -1.0)
        return x

    post = infer(long, engine=SMC(4, resampling="multinomial", always=True), seed=0)
    assert post.unique_ancestors == 1
    assert any("all particles descend from one" in w for w in post.warnings)
    assert all(math.isnan(se) for se in post.marginal().se.values())
    assert post.log_evidence_se >= 1.0, "one family is no evidence of precision"


def test_a_proposal_that_cannot_reach_everything_is_warned_of() -> None:
    lm = TableLM(["a", "b", "<eos>"], {(): [0.7, 0.2, 0.1]})

    @program
    def cut() -> Any:
        return sample("text", LM("", max_tokens=2), proposal={"top_p": 0.5})

    post = infer(cut, engine=Importance(4), lm=lm, seed=0)
    assert any("restricted to proposal support at text" in w for w in post.warnings)


def test_a_history_counts_its_resamplings() -> None:
    history = History(2)
    history.record(1.5, -0.1, np.array([0, 0]), [0, 0])
    history.record(2.0, -0.2, None, [0, 0])
    history.end(np.array([0.0, -np.inf]), [0, 0])
    assert history.resamplings == 1 and history.eves == [1, 1, 1] and history.ess[-1] == 1.0


def test_what_an_estimate_of_asks_for() -> None:
    @program
    def pair() -> str:
        first = sample("first", Uniform(["a", "b"]))
        second = sample("second", Categorical({"x": 0.9, "y": 0.1})) if first == "a" else "none"
        return f"{first}{second}"

    exact = infer(pair, engine=Enumerate())
    joint = exact.marginal(["first", "second"])
    assert joint == {("a", "x"): pytest.approx(0.45), ("a", "y"): pytest.approx(0.05),
                     ("b", None): pytest.approx(0.5)}  # fmt: skip
    assert exact.marginal(("first",)) == {("a",): pytest.approx(0.5), ("b",): pytest.approx(0.5)}
    for wrong in ([], ["first", "third"], {"first"}, 3, [3]):
        with pytest.raises(BadArgument, match="the sites are: first, second"):
            exact.marginal(wrong)  # type: ignore[arg-type]
    with pytest.raises(
        BadArgument, match=r"needs numbers\n  where: site 'first'\n  value: \['b', 'a'"
    ):
        exact.expectation("first")
    with pytest.raises(BadArgument, match="n must be an integer of at least 0, got 1.5"):
        exact.sample(1.5)  # type: ignore[arg-type]
    with pytest.raises(BadArgument, match="needs a list of questions, got int"):
        infer_many(pair, 3)  # type: ignore[arg-type]
