"""String guides against the enumeration of all strings (acceptance test A11)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

from lmppl.errors import BadArgument  # noqa: E402
from lmppl.inference.bffg import (  # noqa: E402
    HMM,
    Clusters,
    HMMAutomaton,
    automaton,
    fit_hmm,
    fit_ngram,
    guided_strings,
)
from lmppl.lm.table import TableLM  # noqa: E402

V, T, EOS = 6, 7, 5
P_C = 0.013181588109037681


def rule(state: str, v: int) -> str:
    """Contains 0 1, then never 3, ends by EOS; nothing but EOS after EOS."""
    if state in ("dead", "end"):
        return state if v == EOS else "dead"
    if v == EOS:
        return "end" if state == "found" else "dead"
    if state == "found":
        return "dead" if v == 3 else "found"
    if state == "zero" and v == 1:
        return "found"
    return "zero" if v == 0 else "none"


RULE = automaton(rule, "none", V)
ACCEPT = RULE.terminal(lambda s: s == "end")


class Toy:
    """The order-3 model of A11, and all its strings, level by level."""

    def __init__(self) -> None:
        self.W = 1.3 * np.random.default_rng(11).normal(size=(7, 7, 7, 6))

    def log_probs(self, prefixes: Any) -> Any:
        n, t = prefixes.shape
        padded = np.concatenate([np.full((n, 3), 6), prefixes], axis=1)[:, -3:]
        logits = self.W[padded[:, 0], padded[:, 1], padded[:, 2]].copy()
        logits[:, EOS] += -2 + 0.35 * t
        logits -= np.logaddexp.reduce(logits, axis=1)[:, None]
        if t:
            over = prefixes[:, -1] == EOS
            logits[over] = -np.inf
            logits[over, EOS] = 0.0
        return logits


@pytest.fixture(scope="module")
def strings() -> tuple[Any, Any]:
    """All strings of positive probability, and log p."""
    toy, x, lp = Toy(), np.zeros((1, 0), dtype=int), np.zeros(1)
    for _ in range(T):
        rows = lp[:, None] + toy.log_probs(x)
        at, v = np.nonzero(np.isfinite(rows))
        x, lp = np.concatenate([x[at], v[:, None]], axis=1), rows[at, v]
    return x, lp


def random_hmm(seed: int, states: int = 3) -> HMM:
    rng = np.random.default_rng(seed)
    ones = np.ones(states)
    B = rng.dirichlet(np.ones(V), states)
    return HMM(rng.dirichlet(ones), rng.dirichlet(ones, states), B)


def final(x: Any) -> Any:
    s = np.zeros(len(x), dtype=int)
    for t in range(x.shape[1]):
        s = RULE.delta[s, x[:, t]]
    return s


def proposal_and_weight(guide: HMMAutomaton, x: Any, rare: float = 0.0) -> tuple[Any, Any]:
    """log q and log W of every string, as the sampler has them without resampling."""
    toy, at = Toy(), guide.start(len(x))
    log_q, log_w = np.zeros(len(x)), guide.log_g(at)
    used = log_w.copy()
    with np.errstate(invalid="ignore"):
        for t in range(T):
            log_p = toy.log_probs(x[:, :t])
            following = guide.log_among(at, log_p >= np.log(rare)) if rare else guide.log_next(at)
            logits = log_p + following
            total = np.logaddexp.reduce(logits, axis=1)
            row = np.arange(len(x)), x[:, t]
            log_w, log_q = log_w + total - used, log_q + logits[row] - total
            used = following[row]
            at = guide.advance(at, x[:, t])
    dead = np.isnan(log_q) | np.isnan(log_w)
    return np.where(dead, -np.inf, log_q), np.where(dead, 0.0, log_w)


def test_the_toy_is_the_one_of_the_specification(strings: Any) -> None:
    x, lp = strings
    assert len(x) == 97656 and np.exp(lp).sum() == pytest.approx(1, abs=1e-12)
    assert (np.exp(lp) * ACCEPT[final(x)]).sum() == pytest.approx(P_C, rel=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_any_surrogate_and_any_terminal_weights_are_exact(strings: Any, seed: int) -> None:
    """Σ q W = Σ p τ, and q W = p τ string by string (total variation 0)."""
    x, lp = strings
    tau = ACCEPT if seed == 0 else np.random.default_rng(seed).uniform(0, 2, len(RULE.states))
    guide = HMMAutomaton(random_hmm(seed), RULE, T, tau)
    log_q, log_w = proposal_and_weight(guide, x)
    target = np.exp(lp) * tau[final(x)]
    found = np.exp(log_q + log_w)
    assert found.sum() == pytest.approx(target.sum(), rel=1e-10)
    assert 0.5 * np.abs(found / found.sum() - target / target.sum()).sum() < 1e-10
    if seed == 0:
        unweighted = 0.5 * np.abs(np.exp(log_q) - target / target.sum()).sum()
        assert unweighted > 0.3  # without weights the constraint holds, and the law is wrong


@pytest.mark.parametrize("rare", [0.2, 1.1])
def test_rare_tokens_may_be_guided_by_their_class(strings: Any, rare: float) -> None:
    """Which tokens are looked at depends on the model's law: no class mean changes the target."""
    x, lp = strings
    guide = HMMAutomaton(random_hmm(0), RULE, T, ACCEPT)
    log_q, log_w = proposal_and_weight(guide, x, rare)
    found, target = np.exp(log_q + log_w), np.exp(lp) * ACCEPT[final(x)]
    assert found.sum() == pytest.approx(P_C, rel=1e-10)
    assert 0.5 * np.abs(found / found.sum() - target / target.sum()).sum() < 1e-10
    at = guide.of([0, 2])
    whole, some = (
        guide.log_next(at),
        guide.log_among(at, np.array([[1, 0, 0, 1, 0, 0]], dtype=bool)),
    )
    assert np.allclose(some[0, [0, 3]], whole[0, [0, 3]], atol=1e-12)
    p, g = (at.phi @ guide.hmm.B)[0], np.exp(whole[0])
    for c in np.unique(guide.dfa.of):
        own = np.flatnonzero(guide.dfa.of == c)
        others = np.setdiff1d(own, [0, 3])
        mean = (p * g)[own].sum() / p[own].sum()
        assert np.allclose(np.exp(some[0, others]), mean, atol=1e-12)
    assert len(np.unique(guide.dfa.of)) < V  # some class has several tokens


def test_the_guide_is_harmonic_and_its_evidence_is_that_of_the_surrogate() -> None:
    hmm = random_hmm(2)
    tau = np.random.default_rng(3).uniform(0, 2, len(RULE.states))
    guide = HMMAutomaton(hmm, RULE, T, tau)
    x = np.stack(np.meshgrid(*[np.arange(V)] * 4, indexing="ij"), -1).reshape(-1, 4)
    short = HMMAutomaton(hmm, RULE, 4, tau)
    f = np.tile(hmm.start, (len(x), 1))
    like = np.ones(len(x))
    for t in range(4):
        f = f * hmm.B[:, x[:, t]].T
        like *= f.sum(1)
        f = f / f.sum(1, keepdims=True) @ hmm.A
    assert float(short.log_g(short.start())[0]) == pytest.approx(
        np.log((like * tau[final(x)]).sum()), abs=1e-12
    )
    at = guide.of([0, 1, 2])
    p = at.phi @ hmm.B
    assert (p * np.exp(guide.log_next(at))).sum() == pytest.approx(
        np.exp(guide.log_g(at)[0]), rel=1e-12
    )
    for v in range(V):
        one = guide.log_g(guide.advance(at, np.array([v])))[0]
        assert one == pytest.approx(guide.log_next(at)[0, v], rel=1e-10) or one == -np.inf


def test_a_mutant_that_finds_its_denominator_anew_is_rejected(strings: Any) -> None:
    """A guide clipped at the next token: dividing by g of the prefix is not what was multiplied."""
    x, lp = strings
    guide = HMMAutomaton(random_hmm(0), RULE, T, ACCEPT)
    whole = guide.log_next

    class Clipped(HMMAutomaton):
        def log_next(self, at: Any) -> Any:
            found = whole(at)
            return found if at.t == T - 1 else np.maximum(found, np.log(0.02))

    clipped = Clipped(random_hmm(0), RULE, T, ACCEPT)
    log_q, log_w = proposal_and_weight(clipped, x)
    assert np.exp(log_q + log_w).sum() == pytest.approx(P_C, rel=1e-10)
    toy, at = Toy(), clipped.start(len(x))
    log_q, log_w = np.zeros(len(x)), clipped.log_g(at)
    with np.errstate(invalid="ignore"):
        for t in range(T):
            logits = toy.log_probs(x[:, :t]) + clipped.log_next(at)
            total = np.logaddexp.reduce(logits, axis=1)
            log_w = log_w + total - clipped.log_g(at)
            log_q = log_q + logits[np.arange(len(x)), x[:, t]] - total
            at = clipped.advance(at, x[:, t])
    broken = np.exp(log_q + log_w)
    assert abs(broken[np.isfinite(broken)].sum() / P_C - 1) > 0.05


def test_classes_of_tokens_equal_the_dense_sum() -> None:
    rng = np.random.default_rng(4)
    B = rng.dirichlet(np.ones(300), 8)
    hmm = HMM(rng.dirichlet(np.ones(8)), rng.dirichlet(np.ones(8), 8), B)
    dfa = automaton(lambda s, v: min(9, s + (v % 3 == 0) + 2 * (v == 7)), 0, 300)
    guide = HMMAutomaton(hmm, dfa, 12, dfa.terminal(lambda s: s))
    at = guide.start(5)
    for _ in range(3):
        at = guide.advance(at, rng.integers(0, 300, 5))
    n = 12 - at.t - 1
    # two classes by products, and one token by itself
    assert sorted(np.bincount(dfa.of).tolist()) == [1, 100, 199]
    assert [part for _, part in guide.kinds.large] == [slice(0, 199), slice(199, 299)]
    to = dfa.delta[at.s]
    dense = np.einsum("nh,hv,hnv->nv", at.phi, hmm.B, guide.u[n][:, to])
    dense = np.log(dense / (at.phi @ hmm.B)) + guide.scales[n][to]
    assert np.allclose(guide.log_next(at), dense, atol=1e-12)
    single = HMMAutomaton(hmm._replace(B=B.astype(np.float32)), dfa, 12, dfa.terminal(lambda s: s))
    assert single.log_next(at).dtype == np.float32
    assert np.allclose(single.log_next(at), dense, atol=1e-5)
    rows, some = np.repeat(np.arange(5), 7), rng.integers(0, 300, 35)
    assert np.allclose(guide.log_some(at, rows, some), dense[rows, some], atol=1e-12)
    twice = at.select(np.array([3, 1, 3, 3]))
    assert np.allclose(guide.log_next(twice), dense[[3, 1, 3, 3]], atol=1e-12)
    for _ in range(9):  # g is an expectation of τ ≤ 9, in float32 as well
        assert (single.log_next(at) <= np.log(9) + 1e-5).all()
        at = single.advance(at, rng.integers(0, 300, 5))


def test_a_rule_that_is_hardly_ever_met_underflows_nowhere() -> None:
    """P(at least 150 rare tokens of 200) is about 1e-556, and the guide knows it by heart."""
    rare, T, k = 1e-4, 200, 150
    flat = HMM(np.ones(1), np.ones((1, 1)), np.array([[1 - rare, rare]]))
    dfa = automaton(lambda s, v: min(k, s + v), 0, 2)
    guide = HMMAutomaton(flat, dfa, T, dfa.terminal(lambda s: float(s == k)))
    n = np.arange(k, T + 1)
    terms = [math.lgamma(T + 1) - math.lgamma(i + 1) - math.lgamma(T - i + 1) for i in n]
    exact = np.logaddexp.reduce(terms + n * np.log(rare) + (T - n) * np.log1p(-rare))
    assert exact < -1200 and guide.log_g(guide.start())[0] == pytest.approx(exact, rel=1e-12)
    assert np.isfinite(guide.log_next(guide.start())).all()


def test_what_is_no_filter_says_so() -> None:
    flat = HMM(np.ones(1), np.ones((1, 1)), np.full((1, V), 1 / V))
    for more, match in (
        ((flat, RULE, 2, ACCEPT), "the automaton gives no string of 2 tokens"),
        ((flat._replace(B=np.eye(V)[:1]), RULE, T, ACCEPT), "the surrogate gives no string"),
        ((flat, RULE, T, ACCEPT[:-1]), "one per automaton state"),
        ((flat, RULE, T, ACCEPT - 1), "non-negative"),
        ((flat, RULE, 0, ACCEPT), "horizon must be a positive number"),
        ((flat._replace(B=np.full((1, 3), 1 / 3)), RULE, T, ACCEPT), "an automaton of 6 tokens"),
    ):
        with pytest.raises(BadArgument, match=match):
            HMMAutomaton(*more)


def test_a_fitted_surrogate_guides_better_than_masking(strings: Any) -> None:
    """ESS / N without resampling: at least 0.2 where masking alone has 0.043."""
    x, lp = strings
    rng = np.random.default_rng(0)
    drawn = x[rng.choice(len(x), 3000, p=np.exp(lp) / np.exp(lp).sum())]
    sizes = {}
    one = np.ones(1)
    masks = HMM(one, one[None], np.full((1, V), 1 / V))
    for name, hmm in (("fitted", fit_hmm(drawn, 4, V, 30)), ("flat", masks)):
        log_q, log_w = proposal_and_weight(HMMAutomaton(hmm, RULE, T, ACCEPT), x)
        q, w = np.exp(log_q), np.exp(log_w)
        assert (q * w).sum() == pytest.approx(P_C, rel=1e-10)
        sizes[name] = (q * w).sum() ** 2 / (q * w * w).sum()
    assert sizes["fitted"] > 0.2 and sizes["fitted"] > sizes["flat"]


def test_clusters_of_tokens_equal_the_dense_table() -> None:
    """B(z, v) = B(z, k) e(v | k), written out, gives the same filter."""
    rng = np.random.default_rng(7)
    of, H, K = rng.integers(0, 9, 120), 5, 9
    share = rng.uniform(0.1, 1, 120)
    share /= np.bincount(of, share)[of]
    start, A = rng.dirichlet(np.ones(H)), rng.dirichlet(np.ones(H), H)
    B = rng.dirichlet(np.ones(K), H)
    dfa = automaton(lambda s, v: min(5, s + (v % 7 == 0)), 0, 120)
    tau = dfa.terminal(lambda s: float(s > 2))
    small = HMMAutomaton(HMM(start, A, B, Clusters(of, share)), dfa, 6, tau)
    dense = HMMAutomaton(HMM(start, A, B[:, of] * share), dfa, 6, tau)
    a, b = small.start(4), dense.start(4)
    for _ in range(4):
        assert np.allclose(small.log_g(a), dense.log_g(b), atol=1e-12)
        assert np.allclose(small.log_next(a), dense.log_next(b), atol=1e-12)
        tokens = rng.integers(0, 120, 4)
        a, b = small.advance(a, tokens), dense.advance(b, tokens)


def test_an_ngram_of_the_order_of_the_model_is_the_model(strings: Any) -> None:
    """Counted on all strings, weighted by p: 4-grams are nearly the toy itself, 2-grams are not."""
    x, lp = strings
    ok, sizes = x[ACCEPT[final(x)] > 0], {}
    for order in (2, 4):
        hmm = fit_ngram(x, order, V, 1e-4, weights=np.exp(lp))
        log_q, log_w = proposal_and_weight(HMMAutomaton(hmm, RULE, T, ACCEPT), ok)
        q, w = np.exp(log_q), np.exp(log_w)
        assert (q * w).sum() == pytest.approx(P_C, rel=1e-10)
        sizes[order] = (q * w).sum() ** 2 / (q * w * w).sum()
    assert 0.2 < sizes[2] < 0.3 and sizes[4] > 0.9


def test_expectation_maximisation_raises_the_likelihood(strings: Any) -> None:
    x, lp = strings
    rng = np.random.default_rng(1)
    drawn = x[rng.choice(len(x), 3000, p=np.exp(lp) / np.exp(lp).sum())]

    def log_likelihood(hmm: HMM) -> float:
        f, total = np.tile(hmm.start, (len(drawn), 1)), 0.0
        for t in range(T):
            f = f * hmm.B[:, drawn[:, t]].T
            total += float(np.log(f.sum(1)).sum())
            f = f / f.sum(1, keepdims=True) @ hmm.A
        return total

    levels = [log_likelihood(fit_hmm(drawn, 4, V, n)) for n in (1, 3, 10, 30)]
    assert (np.diff(levels) > 0).all()


def test_strings_that_have_ended_or_died_ask_the_model_no_more() -> None:
    lm = TableLM(["a", "b", "<eos>"], {(): [0.4, 0.3, 0.3]})
    dfa = automaton(lambda s, v: s + "ab."[v] if len(s) < 6 else s, "", 3)
    tau = dfa.terminal(lambda s: float("a" in s))
    flat = HMM(np.ones(1), np.ones((1, 1)), np.full((1, 3), 1 / 3))
    before = lm.usage.computed_tokens
    out = guided_strings(lm, (), HMMAutomaton(flat, dfa, 6, tau), 50, 0, resample=0.0, end=2)
    going = np.cumprod(out.tokens[:, :5] != 2, axis=1)
    assert lm.usage.computed_tokens - before == going.sum() < 50 * 5
    assert out.sizes.shape == (6,) and (out.sizes > 0).all()


def test_the_sampler_on_a_table_model() -> None:
    """E[Ẑ] = P(C) by z-test (1e-6) over 400 runs of 6, resampled when ESS < 0.8 N."""
    rng = np.random.default_rng(5)
    table: Any = {(i,): rng.dirichlet(np.ones(V)) for i in range(V)}
    table[()] = rng.dirichlet(np.ones(V))
    lm = TableLM(["a", "b", "c", "d", "e", "<eos>"], table)
    x, lp = np.zeros((1, 0), dtype=int), np.zeros(1)
    for _ in range(4):
        rows = lm.open([tuple(r) for r in x]).log_probs().copy()
        if x.shape[1]:
            over = x[:, -1] == EOS
            rows[over] = np.where(np.arange(V) == EOS, 0.0, -np.inf)
        at, v = np.nonzero(np.isfinite(rows))
        x, lp = np.concatenate([x[at], v[:, None]], axis=1), lp[at] + rows[at, v]
    truth = (np.exp(lp) * ACCEPT[final(x)]).sum()
    guide = HMMAutomaton(random_hmm(6), RULE, 4, ACCEPT)
    z = []
    for key in range(400):
        rare = 0.15 * (key % 2)  # half of the runs guide rare tokens by their class
        out = guided_strings(lm, (), guide, 6, key, resample=0.8, end=EOS, rare=rare)
        assert ACCEPT[final(out.tokens)][np.isfinite(out.log_weights)].all()
        z.append(np.exp(out.log_evidence) / truth)
    assert abs(np.mean(z) - 1) < 4.9 * np.std(z) / np.sqrt(len(z))
