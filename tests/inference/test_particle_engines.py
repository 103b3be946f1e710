"""The other particle engines are properly weighted, by exhaustion, and refuse what is wrong."""

from __future__ import annotations

import math
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lmppl import LM, Bernoulli, Categorical, factor, param, program, sample
from lmppl.errors import BadArgument, LmpplError
from lmppl.inference import (
    SMC,
    Block,
    Cascade,
    Engine,
    Importance,
    MetropolisHastings,
    ParallelTempering,
    ParticleGibbs,
    ParticleMarginalMH,
    SingleSite,
    Suffix,
    Temper,
    WithoutReplacement,
    infer,
    tokens,
)
from lmppl.inference.smc.without_replacement import keep
from lmppl.lm.base import Capabilities
from lmppl.lm.table import TableLM
from lmppl.testing import LawBroken, assert_properly_weighted, check_keys, outcomes

ATOL = 1e-10


def weigh(programs: ModuleType, name: str, engine: Engine, most: int = 20_000) -> Any:
    case = next(c for c in programs.CASES if c.name == name)
    return assert_properly_weighted(
        case.program, *case.args, engine=engine, lm=case.lm, exact=case.by_hand(), atol=ATOL,
        most=most,
    )  # fmt: skip


# -- chains that start at a filter are properly weighted with its evidence ------------------------

CHAINS: tuple[Engine, ...] = (
    ParticleGibbs(particles=2, sweeps=1),
    ParticleGibbs(particles=2, sweeps=1, resample_at=tokens(1), resampling="systematic"),
    ParticleGibbs(particles=2, sweeps=1, resample_at="factor", ancestor_sampling=True),
    MetropolisHastings(steps=1, particles=1, proposal=SingleSite(steps=2)),
    MetropolisHastings(steps=1, particles=2, proposal=Suffix(), chains=1),
)


@pytest.mark.parametrize("engine", CHAINS, ids=repr)
@pytest.mark.parametrize("name", ["calculator", "chosen", "listed_proposal", "regexed", "observed"])
def test_chains(programs: ModuleType, name: str, engine: Engine) -> None:
    weigh(programs, name, engine)


@program
def linked() -> Any:
    """The second string has the first one as its context."""
    x = sample("x", LM("", max_tokens=1))
    y = sample("y", LM(x, max_tokens=1))
    factor("like", 0.8 * (x == y))
    return x, y


@pytest.mark.parametrize("proposal", [SingleSite(), Suffix()], ids=repr)
def test_chains_of_a_model_that_scores_no_text(proposal: Any) -> None:
    """What it could not score in another context is drawn anew."""
    lm = TableLM.random(["a", "b", "<eos>"], seed=5)
    lm.capabilities = Capabilities(scores_text=False, empty_context=True)
    words = ["a", "b", ""]
    first, *later = lm.open([(), (0,), (1,), ()]).log_probs()
    exact = {
        (x, y): math.exp(first[u] + later[u][v] + 0.8 * (x == y))
        for u, x in enumerate(words)
        for v, y in enumerate(words)
    }
    engine = MetropolisHastings(steps=1, particles=1, proposal=proposal)
    assert_properly_weighted(linked, engine=engine, lm=lm, exact=exact, atol=ATOL)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("engine", CHAINS, ids=repr)
@pytest.mark.parametrize("name", ["branching", "cascade", "early_return", "handled", "hidden_loop"])
def test_chains_on_more(programs: ModuleType, name: str, engine: Engine) -> None:
    weigh(programs, name, engine, most=200_000)


@pytest.mark.parametrize("site,name", [("x", "observed"), ("n", "calculator"), ("x", "derived")])
def test_particle_marginal(programs: ModuleType, site: str, name: str) -> None:
    weigh(programs, name, ParticleMarginalMH([site], steps=1, starts=1, particles=2))


@pytest.mark.slow
def test_particle_marginal_with_noise(programs: ModuleType) -> None:
    """The filter has a site of its own, so that Ẑ varies."""
    engine = ParticleMarginalMH(["x"], steps=1, starts=1, particles=2, ess_threshold=0.0)
    weigh(programs, "soft", engine)


@program
def wander(theta: dict[str, Any]) -> None:
    sample("n", Categorical({1: 0.2, 2: 0.5, 3: 0.3} if theta["n"] != 2 else {1: 0.6, 3: 0.4}))


def test_particle_marginal_with_a_proposal(programs: ModuleType) -> None:
    weigh(programs, "calculator", ParticleMarginalMH(["n"], 1, wander, starts=1, particles=1))


def test_marginal_chains_side_by_side(programs: ModuleType) -> None:
    engine = ParticleMarginalMH(["n"], 1, wander, starts=1, particles=1, chains=2)
    weigh(programs, "calculator", engine)


@program
def flips() -> bool:
    p = param("p", 0.5)
    heads = sample("heads", Bernoulli(p))
    factor("bias", 0.0 if heads else -1.0)
    return bool(heads)


PRIOR_P = {0.2: 0.5, 0.5: 0.3, 0.9: 0.2}


@program
def prior_of_p() -> None:
    sample("p", Categorical(PRIOR_P))


@program
def next_p(theta: dict[str, Any]) -> None:
    sample("p", Categorical({0.2: 0.6, 0.5: 0.2, 0.9: 0.2} if theta["p"] > 0.3 else PRIOR_P))


@pytest.mark.parametrize("proposal", [None, next_p])
def test_parameters_with_a_prior_by_exhaustion(proposal: Any) -> None:
    """Σ P(run) Ẑ f(p, heads) = Σ p(θ) γ(heads; θ) f, over every outcome of the engine's draws."""
    engine = ParticleMarginalMH(
        ["p"], steps=1, proposal=proposal, prior=prior_of_p, starts=1, particles=2
    )
    found: dict[Any, float] = {}

    def run(chance: Any) -> Any:
        return infer(flips, engine=engine, chance=chance)

    for probability, post in outcomes(run):
        (trace,) = post.traces
        at = (trace["p"], trace["heads"])
        found[at] = found.get(at, 0.0) + probability * math.exp(post.log_evidence)
    for p, prior in PRIOR_P.items():
        assert found[p, True] == pytest.approx(prior * p, abs=ATOL)
        assert found[p, False] == pytest.approx(prior * (1 - p) * math.exp(-1), abs=ATOL)


def test_parameters_that_do_not_exist() -> None:
    engine = ParticleMarginalMH(["q"], steps=1, prior=prior_of_p, particles=2)
    with pytest.raises(BadArgument, match="must sample the sites"):
        infer(flips, engine=engine)

    @program
    def prior_of_q() -> None:
        sample("q", Categorical(PRIOR_P))

    with pytest.raises(BadArgument, match="no param site q"):
        infer(flips, engine=ParticleMarginalMH(["q"], steps=1, prior=prior_of_q, particles=2))


@program
def two_words() -> str:
    first = sample("first", LM("a", max_tokens=2))
    factor("long", 0.5 * len(first))
    return str(first)


@program
def revise(trace: Any) -> None:
    sample("first", LM("b" + str(trace["first"]), max_tokens=2))


@program
def theta_first() -> str:
    word = sample("word", LM("a", max_tokens=2))
    more = sample("more", LM(word, max_tokens=2))
    factor("long", 0.5 * len(more))
    return str(more)


def test_more_chains_change_nothing_in_the_first() -> None:
    lm = TableLM.random(["a", "b", "<eos>"], seed=1)
    one, three = (
        infer(theta_first, engine=ParticleMarginalMH(["word"], 6, particles=2, chains=c), lm=lm)
        for c in (1, 3)
    )
    assert [t.result for t in three.traces[:6]] == [t.result for t in one.traces]


@pytest.mark.parametrize(
    "fn,engine",
    [
        (two_words, lambda c: MetropolisHastings(steps=20, proposal=Block(revise), chains=c)),
        (theta_first, lambda c: ParticleMarginalMH(["word"], 20, particles=4, chains=c)),
    ],
    ids=["block", "marginal"],
)
def test_chains_share_their_batches(fn: Any, engine: Any) -> None:
    """Eight chains ask eight times as much, in hardly more passes than one."""
    lm = TableLM.random(["a", "b", "<eos>"], seed=1)
    one, eight = (infer(fn, engine=engine(c), lm=lm, seed=0).ledger for c in (1, 8))
    costs = [next(iter(ledger.models.values())) for ledger in (one, eight)]
    assert costs[1].calls > 4 * costs[0].calls
    assert costs[1].passes < 2 * costs[0].passes


# -- moves inside a filter ------------------------------------------------------------------------

MOVED: tuple[Engine, ...] = (
    SMC(2, ess_threshold=1.0, resample_at="factor", rejuvenate=SingleSite()),
    SMC(2, ess_threshold=1.0, resample_at="factor", rejuvenate=Suffix()),
    SMC(1, always=True, rejuvenate=SingleSite(steps=2)),
    SMC(1, always=True, rejuvenate=Suffix(), resample_at=tokens(1)),
)


@pytest.mark.parametrize("engine", MOVED, ids=repr)
@pytest.mark.parametrize("name", ["calculator", "chosen", "listed_proposal"])
def test_rejuvenation(programs: ModuleType, name: str, engine: Engine) -> None:
    weigh(programs, name, engine)


def test_rejuvenation_with_a_guide(programs: ModuleType) -> None:
    for proposal in (SingleSite(), Suffix()):
        engine = SMC(1, always=True, rejuvenate=proposal, guide=programs.rough)
        weigh(programs, "calculator", engine)


@program
def rewritten(trace: Any) -> None:
    """A language model proposes the string anew, by what it is now."""
    sample("x", LM(trace["x"], max_tokens=1, temperature=1.5))


@pytest.mark.parametrize("at", ["factor", pytest.param("site", marks=pytest.mark.slow)])
def test_rejuvenation_by_a_language_model(programs: ModuleType, at: str) -> None:
    engine = SMC(1, always=True, resample_at=at, rejuvenate=Block(rewritten))
    weigh(programs, "soft", engine)


def test_rewriting_without_its_way_back_is_rejected(
    programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Block.reverse

    def free(self: Any, machine: Any, move: Any) -> Any:
        _, covered = yield from real(self, machine, move)
        return move.plan.log_choice, covered

    monkeypatch.setattr(Block, "reverse", free)
    engine = SMC(1, always=True, resample_at="factor", rejuvenate=Block(rewritten))
    with pytest.raises(LawBroken, match="not properly weighted"):
        weigh(programs, "soft", engine)


# -- tempering, cascade, without replacement -------------------------------------------------------


@pytest.mark.parametrize("rule", ["ess", "entropy", "base"])
def test_tempered_resampling(programs: ModuleType, rule: str) -> None:
    temper = Temper(rule, steps=20, ess_threshold=1.0, early_phase=1.0)
    for name in ("hidden_loop", "early_return", "soft"):
        engine = SMC(2, ess_threshold=1.0, resample_at="factor", temper=temper)
        weigh(programs, name, engine)


def test_published_tempering_is_biased(programs: ModuleType) -> None:
    temper = Temper(steps=20, ess_threshold=1.0, early_phase=1.0, biased=True)
    with pytest.raises(LawBroken, match="not properly weighted"):
        weigh(programs, "hidden_loop", SMC(2, ess_threshold=1.0, temper=temper))


NAMES = ("early_return", "branching", "calculator", "hard", "hidden_loop", "forced_end", "plated")


@pytest.mark.parametrize("name", NAMES)
def test_cascade(programs: ModuleType, name: str) -> None:
    weigh(programs, name, Cascade(2))
    weigh(programs, name, Cascade(2, chunk=1))
    if name in ("calculator", "forced_end", "early_return"):
        weigh(programs, name, Cascade(2, resample_at=tokens(1), guide=programs.rough))


@pytest.mark.parametrize("most", [1, 2])
def test_bounded_cascade(programs: ModuleType, most: int) -> None:
    weigh(programs, "early_return", Cascade(2, most=most))


@pytest.mark.parametrize("name", [*NAMES, "recursion", "random_loop", "impossible", "twin_tokens"])
def test_without_replacement(programs: ModuleType, name: str) -> None:
    weigh(programs, name, WithoutReplacement(1))
    weigh(programs, name, WithoutReplacement(2))
    weigh(programs, name, WithoutReplacement(3, guide=programs.rough))


def test_without_replacement_is_exact_with_room(programs: ModuleType) -> None:
    found = weigh(programs, "soft", WithoutReplacement(1000))
    assert found.outcomes == 1


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_kept_points_are_unbiased(n: int) -> None:
    """E[1(kept) / π] = 1 for each, and n of them are kept when there are as many."""
    for w in ([0.4, 0.3, 0.2, 0.05, 0.05], [1.0] * 6, [0.97, 0.01, 0.01, 0.01], [0.5, 0.5, 1e-12]):
        v = np.log(np.array(w))
        total = np.zeros(len(w))
        for probability, log_pi in outcomes(partial(keep, v, n, 3)):
            stays = np.isfinite(log_pi)
            assert stays.sum() == min(n, len(w))
            total[stays] += probability / np.exp(log_pi[stays])
        assert np.abs(np.array(w) * (total - 1.0)).max() < 1e-9


# -- nested inference ------------------------------------------------------------------------------


@program
def inner() -> Any:
    heads = sample("heads", Bernoulli(0.5))
    factor("liked", 0.8 if heads else -0.2)
    return heads


@program
def outer() -> Any:
    x = sample("x", Bernoulli(0.3))
    if x:
        found = infer(inner, engine=Importance(1))
        factor("evidence", found.log_evidence)
    factor("w", 0.4 if x else 0.0)
    return x


@pytest.mark.parametrize(
    "engine",
    [
        SMC(2, ess_threshold=1.0),
        ParticleGibbs(2, sweeps=1, resample_at="factor"),
        MetropolisHastings(1, particles=1),
        MetropolisHastings(1, particles=1, proposal=Suffix()),
    ],
    ids=repr,
)
def test_nested_inference_is_properly_weighted(engine: Engine) -> None:
    """The draws of an inner run are part of the reference: it keeps its estimate of the evidence."""
    z = 0.5 * math.exp(0.8) + 0.5 * math.exp(-0.2)
    exact = {True: 0.3 * z * math.exp(0.4), False: 0.7}
    assert_properly_weighted(outer, engine=engine, exact=exact, atol=ATOL)


# -- keys, refusals, posteriors --------------------------------------------------------------------


@pytest.mark.parametrize(
    "engine",
    [
        ParticleGibbs(3, sweeps=3, always=True, ancestor_sampling=True),
        ParallelTempering(particles=3, sweeps=3, always=True),
        MetropolisHastings(20, particles=2, chains=2),
        SMC(3, always=True, rejuvenate=SingleSite(steps=2)),
        Cascade(4),
        WithoutReplacement(3),
        ParticleMarginalMH(["x"], 5, particles=3),
    ],
    ids=repr,
)
def test_keys_are_used_once(programs: ModuleType, engine: Engine) -> None:
    assert check_keys(programs.soft, engine=engine, lm=programs.AB) > 0


def test_a_chain_is_a_function_of_its_seed(programs: ModuleType) -> None:
    engine = ParticleGibbs(4, sweeps=20)
    one, two, three = (
        infer(programs.soft, engine=engine, lm=programs.AB, seed=s) for s in (1, 1, 2)
    )
    results = [[t.result for t in p.traces] for p in (one, two, three)]
    assert results[0] == results[1] != results[2]
    assert 1.0 <= one.ess <= len(one) == 20
    assert 0.0 < one.marginal().se[one.marginal().best] < 0.5


def test_acceptance_is_reported(programs: ModuleType) -> None:
    post: Any = infer(
        programs.soft, engine=MetropolisHastings(60, burn_in=10, chains=2), lm=programs.AB
    )
    assert len(post) == 100
    assert 0.0 < post.acceptance["SingleSite"] <= 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParticleGibbs(1), "at least 2 particles"),
        (lambda: ParticleGibbs(4, resampling="none"), "no resampling scheme"),
        (lambda: ParticleGibbs(4, sweeps=5, burn_in=5), "sweeps must be"),
        (lambda: ParticleGibbs(4, ancestor_sampling=True, resampling="systematic"), "ancestor"),
        (lambda: ParallelTempering((1.0, 3.0)), "temperatures must fall"),
        (lambda: MetropolisHastings(0), "steps must be"),
        (lambda: MetropolisHastings(5, proposal=lambda t: t), "is none"),  # type: ignore[arg-type]
        (lambda: SMC(4, rejuvenate=3), "moves no particles"),  # type: ignore[arg-type]
        (lambda: Temper("hot"), "no rule"),
        (lambda: ParticleMarginalMH("theta"), "list of different names"),
        (lambda: Block("x"), "needs a program"),  # type: ignore[arg-type]
        (lambda: Cascade(4, most=-1), "most must be"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        make()


def test_single_site_refuses_halves_of_strings(programs: ModuleType) -> None:
    engine = SMC(4, resample_at=tokens(1), rejuvenate=SingleSite())
    with pytest.raises(BadArgument, match="barriers inside strings"):
        infer(programs.one_site, engine=engine, lm=programs.AB)


def test_a_start_must_be_possible(programs: ModuleType) -> None:
    for start in ({"x": "a"}, {"x": "a", "y": "a", "z": "a"}):
        with pytest.raises(BadArgument, match="cannot start"):
            infer(programs.soft, engine=ParticleGibbs(2, start=start), lm=programs.AB)


def test_a_start_inside_strings_has_tokens(programs: ModuleType) -> None:
    inside = ParticleGibbs(2, sweeps=1, resample_at=tokens(1), start={"x": "a", "y": "a"})
    with pytest.raises(BadArgument, match="a text without tokens"):
        infer(programs.soft, engine=inside, lm=programs.AB)
    trace = infer(programs.soft, engine=SMC(4), lm=programs.AB, seed=1).traces[0]
    start = {a: trace[a] for a in ("x", "y")}
    again = ParticleGibbs(2, sweeps=1, resample_at=tokens(1), start=start, ess_threshold=0.0)
    assert len(infer(programs.soft, engine=again, lm=programs.AB, seed=1)) == 1


def test_ancestor_sampling_names_what_it_cannot_score(programs: ModuleType) -> None:
    @program
    def masked() -> Any:
        x = sample("x", LM("", max_tokens=1))
        factor("w", 0.3 * len(x))
        return sample("y", LM(x, regex="a|b", max_tokens=2))

    engine = ParticleGibbs(4, sweeps=4, ancestor_sampling=True, always=True)
    with pytest.raises(LmpplError, match="cannot be kept in another context"):
        infer(masked, engine=engine, lm=programs.AB)
