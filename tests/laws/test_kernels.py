"""C3: the kernels of Markov chains over traces, as matrices, by exhaustion of their randomness.

For every state x of a small program the engine starts at x and makes one sweep (or step), once for
every outcome of its draws: row x of K. Then |π K - π| < 1e-10, rows sum to 1. Toys A and B are those
on which published particle Gibbs samplers are wrong: P(a) = 0.632 and P(long) = 0.75.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lmppl import LM, Bernoulli, Categorical, Uniform, factor, observe, program, sample
from lmppl.inference import Engine, infer, tokens
from lmppl.inference.mcmc import chain, tempering, trace_mh
from lmppl.inference.mcmc.metropolis import MetropolisHastings
from lmppl.inference.mcmc.particle_gibbs import ParticleGibbs
from lmppl.inference.mcmc.proposals import Block, SingleSite, Suffix
from lmppl.inference.mcmc.tempering import ParallelTempering
from lmppl.inference.smc import ancestor, conditional
from lmppl.lm.table import TableLM
from lmppl.testing import enumerate_exact, outcomes
from lmppl.trace import Trace

ATOL = 1e-10
Patch = pytest.MonkeyPatch
State = tuple[tuple[str, Any], ...]


def state(trace: Trace) -> State:
    """All sample sites with their values."""
    return tuple(sorted((e.address, e.value) for e in trace.sites if e.op == "sample"))


def infer_by(fn: Callable[..., Any], engine: Engine, lm: Any, chance: Any) -> Any:
    """One run, its chance given."""
    return infer(fn, engine=engine, lm=lm, chance=chance)


def kernel(
    fn: Callable[..., Any], engine: Callable[[Mapping[str, Any]], Engine], lm: Any = None
) -> tuple[list[State], np.ndarray, np.ndarray]:
    """The states, π and K."""
    law = enumerate_exact(fn, lm=lm, of=state).posterior
    states = [x for x, p in law.items() if p > 0]
    matrix = np.zeros((len(states), len(states)))
    for i, x in enumerate(states):
        start = engine(dict(x))
        for probability, post in outcomes(partial(infer_by, fn, start, lm)):
            matrix[i, states.index(state(post.traces[-1]))] += probability
    return states, np.array([law[x] for x in states]), matrix


def error(
    fn: Callable[..., Any], engine: Callable[[Mapping[str, Any]], Engine], lm: Any = None
) -> float:
    """max |π K - π|, after the rows have been seen to sum to 1."""
    _, pi, matrix = kernel(fn, engine, lm)
    assert np.abs(matrix.sum(axis=1) - 1.0).max() < 1e-12
    return float(np.abs(pi @ matrix - pi).max())


# -- programs ------------------------------------------------------------------------------------


def odds(r: float) -> float:
    return math.log(r / (1.0 - r))


@program
def toy_a() -> Any:
    """Two uniform steps; r(a) = .6, r(b) = .5, r(aa) = .8, else .5: P(aa) = 12 / 19."""
    x = sample("x", Uniform(["a", "b"]))
    factor("first", odds(0.6 if x == "a" else 0.5))
    y = sample("y", Uniform(["a", "b"]))
    factor("second", odds(0.8 if (x, y) == ("a", "a") else 0.5))
    return x + y


@program
def toy_b() -> Any:
    """One step, or four: r = .75 for the short one, the first and the last of the long one."""
    x = sample("x", Uniform(["short", "long"]))
    factor("r1", odds(0.75))
    if x == "long":
        factor("r2", odds(0.5))
        factor("r3", odds(0.5))
        factor("r4", odds(0.75))
    return x


@program
def ragged() -> Any:
    """A site that only some traces have, a proposal, and weights that move."""
    x = sample("x", Categorical({"a": 0.5, "b": 0.3, "c": 0.2}), proposal=Uniform(["a", "b", "c"]))
    factor("w", {"a": 0.3, "b": -0.5, "c": 0.6}[x])
    if x == "c":
        return x
    y = sample("y", Bernoulli(0.3 if x == "a" else 0.8))
    observe("seen", Bernoulli(0.9 if y else 0.4), True)
    return x, y


@program
def straight() -> Any:
    """Two binary sites, the second depends on the first."""
    x = sample("x", Bernoulli(0.4))
    factor("w", 0.9 if x else -0.2)
    y = sample("y", Bernoulli(0.7 if x else 0.2))
    factor("v", -0.8 if y else 0.5)
    return x, y


def gibbs(**settings: Any) -> Callable[[Mapping[str, Any]], Engine]:
    return lambda x: ParticleGibbs(**{"particles": 2, "sweeps": 1, "start": x, **settings})


def mh(proposal: Any) -> Callable[[Mapping[str, Any]], Engine]:
    return lambda x: MetropolisHastings(steps=1, proposal=proposal, start=x)


# -- conditional SMC, particle Gibbs --------------------------------------------------------------

SCHEMES = ("multinomial", "systematic", "stratified", "residual")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("fn", [toy_a, toy_b, ragged, straight], ids=repr)
def test_conditional_smc(fn: Any, scheme: str) -> None:
    assert error(fn, gibbs(resampling=scheme, resample_at="factor", always=True)) < ATOL


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_three_particles(scheme: str) -> None:
    three = gibbs(particles=3, resampling=scheme, resample_at="factor", ess_threshold=0.9)
    assert error(toy_a, three) < ATOL


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_four_particles(scheme: str) -> None:
    """Independent ancestors of three slots at three barriers are too many to list: one barrier."""
    four = gibbs(particles=4, resampling=scheme, resample_at="factor", always=True)
    assert error(toy_b if scheme in ("systematic", "residual") else lean, four) < ATOL


@pytest.mark.parametrize("fn", [toy_a, ragged, straight], ids=str)
def test_adaptive_resampling_at_every_site(fn: Any) -> None:
    assert error(fn, gibbs(ess_threshold=0.95)) < ATOL


@pytest.mark.parametrize("fn", [toy_a, ragged, straight], ids=str)
def test_ancestor_sampling(fn: Any) -> None:
    settings = {"resample_at": "factor", "always": True, "ancestor_sampling": True}
    assert error(fn, gibbs(**settings)) < ATOL


CHAIN = TableLM(
    ["a", "b", "<eos>"], {(): [0.6, 0.4, 0], (0,): [0.3, 0.5, 0.2], (1,): [0.7, 0.3, 0]}
)
"""What follows a token depends on it, and only "a" may be the last one."""


def text_program(**settings: Any) -> Any:
    """One string of at most two tokens, which is weighed inside."""

    @program
    def text() -> str:
        return str(sample("x", LM("", max_tokens=2, **settings)))

    return text


TEXTS = {
    "warm": text_program(temperature=2.0),
    "truncated": text_program(top_k=2, mixture=0.2),
    "masked": text_program(regex="aa|ab|ba"),
    "weighed": text_program(potential=lambda text: -0.9 * text.count("b")),
}


@program
def two_texts() -> Any:
    """A string whose context is the one before."""
    x = sample("x", LM("", max_tokens=2, regex="ab|ba"))
    return x, sample("y", LM(x, max_tokens=1))


INSIDE = {"resample_at": tokens(1), "always": True}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("truncated", "weighed")]


@pytest.mark.parametrize("name", ["warm", "masked", *SLOW])
def test_ancestor_sampling_inside_strings(name: str) -> None:
    """The remaining tokens are scored under each prefix, whatever the law they are drawn from."""
    assert error(TEXTS[name], gibbs(**INSIDE, ancestor_sampling=True), CHAIN) < ATOL


def test_ancestor_sampling_moves_inside_strings() -> None:
    """A first token gives way while the second one is kept: impossible without."""
    states, _, matrix = kernel(TEXTS["masked"], gibbs(**INSIDE, ancestor_sampling=True), CHAIN)
    plain = kernel(TEXTS["masked"], gibbs(**INSIDE), CHAIN)[2]
    old, new = (states.index((("x", text),)) for text in ("ba", "aa"))
    assert matrix[old, new] > plain[old, new] + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2])
def test_ancestor_sampling_across_strings(k: int) -> None:
    settings = {**INSIDE, "resample_at": tokens(k), "ancestor_sampling": True}
    assert error(two_texts, gibbs(**settings), CHAIN) < ATOL


def test_rejects_ancestors_that_do_not_see_what_follows(monkeypatch: Patch) -> None:
    """The reference's ancestor by the weights alone, as if what it does later fitted equally."""
    monkeypatch.setattr(ancestor, "log_ratio", lambda *args: 0.0)
    assert error(TEXTS["warm"], gibbs(**INSIDE, ancestor_sampling=True), CHAIN) > 1e-3


def test_rejects_ancestors_by_what_follows_alone(monkeypatch: Patch) -> None:
    real = conditional.__dict__["draw_ancestor"]

    def forgets(machine: Any, key: int, heads: Any, lw: Any, *rest: Any) -> Any:
        return real(machine, key, heads, np.zeros_like(lw), *rest)

    monkeypatch.setattr(conditional, "draw_ancestor", forgets)
    assert error(TEXTS["masked"], gibbs(**INSIDE, ancestor_sampling=True), CHAIN) > 1e-3


def test_guided() -> None:
    def likes(trace: Trace) -> float:
        return float(0.7 * trace["x"] - 0.1 * len(trace))

    for more in ({}, {"ancestor_sampling": True}):
        settings = {"resample_at": "factor", "always": True, "guide": likes, **more}
        assert error(straight, gibbs(**settings)) < ATOL


def test_strings(programs: ModuleType) -> None:
    assert error(programs.early_return, gibbs(resample_at="factor"), programs.AB) < ATOL


@pytest.mark.parametrize("fn,value,exact", [(toy_a, "aa", 12 / 19), (toy_b, "long", 0.75)])
def test_stationary_law_of_the_toys(fn: Any, value: Any, exact: float) -> None:
    """N = 2: the left eigenvector of K."""
    states, _, matrix = kernel(fn, gibbs(resample_at="factor", always=True))
    power = np.linalg.matrix_power(matrix, 4096)
    chosen = [i for i, x in enumerate(states) if "".join(v for _, v in x) == value]
    assert abs(power[0, chosen].sum() - exact) < ATOL


@pytest.mark.parametrize("particles", [4, pytest.param(16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fn,value,exact", [(toy_a, "aa", 12 / 19), (toy_b, "long", 0.75)])
def test_chains_of_the_toys(fn: Any, value: Any, exact: float, particles: int) -> None:
    """z-test at 1e-6 over independent chains of 12 sweeps; the first 4 are burn-in."""
    engine = ParticleGibbs(particles=particles, sweeps=12, burn_in=4, resample_at="factor")
    runs = [infer(fn, engine=engine, seed=s).marginal().get(value, 0.0) for s in range(60)]
    z = (np.mean(runs) - exact) / (np.std(runs, ddof=1) / math.sqrt(len(runs)))
    assert abs(z) < 4.9


# -- Metropolis-Hastings --------------------------------------------------------------------------


@program
def revise(trace: Trace) -> None:
    """Proposes both sites, by the present ones."""
    x = sample("x", Bernoulli(0.8 if not trace["x"] else 0.3))
    sample("y", Bernoulli(0.6 if x == trace["y"] else 0.1))


@program
def other(trace: Trace) -> None:
    """Proposes the first site alone: others appear, and disappear."""
    sample("x", Categorical({"a": 0.2, "b": 0.5, "c": 0.3}))


@pytest.mark.parametrize("proposal", [SingleSite(), SingleSite(steps=2), Suffix()], ids=str)
@pytest.mark.parametrize("fn", [toy_a, toy_b, ragged, straight], ids=repr)
def test_metropolis_hastings(fn: Any, proposal: Any) -> None:
    _, pi, matrix = kernel(fn, mh(proposal))
    assert np.abs(pi @ matrix - pi).max() < ATOL
    assert (np.diag(matrix) < 1.0).all()  # it moves from everywhere


@pytest.mark.parametrize("fn,by", [(straight, revise), (ragged, other)], ids=str)
def test_block_proposals(fn: Any, by: Any) -> None:
    _, pi, matrix = kernel(fn, mh(Block(by)))
    assert np.abs(pi @ matrix - pi).max() < ATOL
    flow = pi[:, None] * matrix
    assert np.abs(flow - flow.T).max() < ATOL  # detailed balance


def test_single_site_is_reversible(programs: ModuleType) -> None:
    """On strings whose second one depends on the first, and on a trace that is longer than others."""
    for fn, lm in (
        (ragged, None),
        (programs.early_return, programs.AB),
        (programs.soft, programs.AB),
    ):
        _, pi, matrix = kernel(fn, mh(SingleSite()), lm)
        flow = pi[:, None] * matrix
        assert np.abs(flow - flow.T).max() < ATOL
        assert (np.diag(matrix) < 1.0).all()


def test_proposal_temperature_is_scored() -> None:
    """What a text is drawn from is not its target: log q is that of the temperature."""
    lm = TableLM(["a", "b", "<eos>"], {(): [0.5, 0.3, 0.2], (0,): [0.2, 0.4, 0.4]})

    @program
    def warm() -> Any:
        x = sample("x", LM("", max_tokens=1, temperature=2.0))
        y = sample("y", LM(x, max_tokens=1, temperature=0.5))
        factor("w", 0.8 * len(x) - 0.3 * len(y))
        return x, y

    assert error(warm, mh(SingleSite()), lm) < ATOL
    assert error(warm, gibbs(resample_at="factor"), lm) < ATOL


# -- parallel tempering: the product space --------------------------------------------------------


def tempered_error(fn: Any, temperatures: tuple[float, ...] = (3.0, 1.0), **settings: Any) -> float:
    """max |π K - π| of the chains together."""
    gamma = enumerate_exact(fn, of=state)
    prior = {x: 1.0 for x in gamma}
    for x in gamma:
        with_weight = enumerate_exact(fn, of=lambda t: (state(t), round(t.log_weight, 12)))
        prior[x] = next(w for (s, w) in with_weight if s == x)
    laws = []
    for t in temperatures:  # q w^(1/T) = γ w^(1/T - 1)
        law = {x: g * math.exp(prior[x] * (1.0 / t - 1.0)) for x, g in gamma.items()}
        laws.append({x: v / sum(law.values()) for x, v in law.items()})
    states = list(product(gamma, repeat=len(temperatures)))
    pi = np.array([math.prod(law[x] for law, x in zip(laws, s, strict=True)) for s in states])
    after = np.zeros(len(states))
    hot = f"{temperatures[0]:g}"
    for p, s in zip(pi, states, strict=True):
        engine = ParallelTempering(
            temperatures=temperatures, particles=2, sweeps=1, start=[dict(x) for x in s],
            resample_at="factor", **settings,
        )  # fmt: skip
        for probability, post in outcomes(partial(infer_by, fn, engine, None)):
            end = (state(post.chains[hot][0]), state(post.traces[0]))
            after[states.index(end)] += p * probability
    return float(np.abs(after - pi).max())


@program
def lean() -> Any:
    x = sample("x", Bernoulli(0.3))
    factor("w", 1.2 if x else -0.4)
    return x


def test_parallel_tempering() -> None:
    assert tempered_error(lean) < ATOL
    assert tempered_error(toy_b) < ATOL


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_parallel_tempering_of_two_sites() -> None:
    assert tempered_error(toy_a, always=True) < ATOL


@pytest.mark.slow
def test_numbers_of_parallel_tempering() -> None:
    """T = (3, 1), N = 4: toy A .632 and .366 at T = 1 and 3... by z-tests at 1e-6."""
    for fn, value, cold in ((toy_a, "aa", 12 / 19), (toy_b, "long", 0.75)):
        engine = ParallelTempering(particles=4, sweeps=30, burn_in=5, resample_at="factor")
        runs = [infer(fn, engine=engine, seed=s).marginal().get(value, 0.0) for s in range(100)]
        z = (np.mean(runs) - cold) / (np.std(runs, ddof=1) / math.sqrt(len(runs)))
        assert abs(z) < 4.9


# -- mutants --------------------------------------------------------------------------------------


def test_rejects_a_reference_that_is_no_candidate(monkeypatch: Patch) -> None:
    real = conditional.multinomial

    def excluded(weights: Any, key: int, chance: Any) -> Any:
        w = np.where(np.arange(len(weights)) == 0, 0.0, weights)
        return real(w / w.sum() if w.sum() > 0 else weights, key, chance)

    monkeypatch.setitem(conditional.CONDITIONAL, "multinomial", excluded)
    assert error(toy_b, gibbs(particles=3, resample_at="factor", ess_threshold=0.9)) > 1e-3


def test_rejects_plain_systematic_draws(monkeypatch: Patch) -> None:
    """N - 1 systematic draws from all N, beside the kept slot."""

    def plain(weights: Any, key: int, chance: Any) -> Any:
        n = len(weights) - 1
        scaled = np.cumsum(weights) / np.sum(weights) * n
        keys = np.array([key], dtype=np.uint64)
        u = float(chance.offsets(keys, [np.mod(scaled, 1.0)])[0])
        found = np.searchsorted(scaled, np.arange(n) + u, side="right")
        return np.concatenate([[0], np.minimum(found, n)])

    monkeypatch.setitem(conditional.CONDITIONAL, "systematic", plain)
    settings = {"particles": 3, "resampling": "systematic", "resample_at": "factor"}
    assert error(toy_b, gibbs(**settings, always=True)) > 1e-3


@pytest.mark.parametrize("off", [-1, 1])
def test_rejects_the_reference_at_another_time(monkeypatch: Patch, off: int) -> None:
    """The reference competes with the weight it has one barrier before, or after."""
    real = conditional.__dict__["history"]

    def shifted(node: Any) -> Any:
        nodes = real(node)
        last = len(nodes) - 1
        return [
            n._replace(logw=nodes[min(max(i + off, 0), last)].logw) if i < last else n
            for i, n in enumerate(nodes)
        ]

    monkeypatch.setattr(conditional, "history", shifted)
    assert error(straight, gibbs(resample_at="factor", always=True)) > 1e-3


def test_rejects_the_wrong_sign_of_a_swap(monkeypatch: Patch) -> None:
    real = tempering.swap_ratio
    monkeypatch.setattr(tempering, "swap_ratio", lambda *args: -real(*args))
    assert tempered_error(lean) > 1e-3


def test_rejects_a_missing_hastings_term(monkeypatch: Patch) -> None:
    monkeypatch.setattr(trace_mh, "drawn", lambda *args: 0.0)
    assert error(straight, mh(SingleSite())) > 1e-3


def test_rejects_a_missing_number_of_sites(monkeypatch: Patch) -> None:
    from lmppl.inference.mcmc import proposals

    real = SingleSite.reverse

    def uncounted(self: Any, machine: Any, move: Any) -> Any:
        _, covered = yield from real(self, machine, move)
        return move.plan.log_choice, covered

    monkeypatch.setattr(proposals.SingleSite, "reverse", uncounted)
    assert error(ragged, mh(SingleSite())) > 1e-3


def test_rejects_always_accepting(monkeypatch: Patch) -> None:
    monkeypatch.setattr(trace_mh, "accepts", lambda machine, key, ratio: ratio > -math.inf)
    assert error(straight, mh(Suffix())) > 1e-3


# -- the posterior of a chain ---------------------------------------------------------------------


def test_autocorrelation_time_of_a_known_chain() -> None:
    """An AR(1) chain with ρ = 0.8 has τ = 9: n / τ within 15 % at n = 40,000."""
    rng = np.random.default_rng(7)
    x = np.zeros(40_000)
    for t in range(1, len(x)):
        x[t] = 0.8 * x[t - 1] + rng.normal()
    assert 0.85 < chain.chain_ess(x) / (len(x) / 9.0) < 1.15
    assert chain.chain_ess(np.ones(10)) == 10.0
