"""The backward filter of strings as a guide of SMC, by enumeration and against h*."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

from lmppl import LM, Categorical, factor, loop, program, sample  # noqa: E402
from lmppl.errors import BadArgument  # noqa: E402
from lmppl.inference import SMC, Guide, bffg, infer, tokens  # noqa: E402
from lmppl.lm.table import TableLM  # noqa: E402
from lmppl.testing import assert_properly_weighted, enumerate_exact  # noqa: E402
from lmppl.trace import Trace  # noqa: E402
from lmppl.weights import exp  # noqa: E402

V, T, END = 3, 3, 2
ROWS = {(): [0.4, 0.4, 0.2], (0,): [0.6, 0.1, 0.3], (1,): [0.2, 0.5, 0.3], (2,): [0.4, 0.4, 0.2]}
MODEL = TableLM(["a", "b", "<eos>"], ROWS, name="abc")


def rule(state: str, v: int) -> str:
    """How `ab` turns up, until the end."""
    if state.startswith("end") or v == END:
        return "end, found" if state in ("found", "end, found") else "end"
    return "found" if state == "found" or (state == "a" and v == 1) else "a" if v == 0 else ""


DFA = bffg.automaton(rule, "", V)


def tau(state: str) -> float:
    return 2.0 if "found" in state else 0.3 if state == "end" else 0.05


def hard(state: str) -> float:
    return float("found" in state)


def exact_hmm() -> Any:
    """The model as a hidden Markov model: its state is the token; the end is absorbing."""
    A = np.array([ROWS[(0,)], ROWS[(1,)], [0.0, 0.0, 1.0]])
    return bffg.HMM(np.array(ROWS[()]), A, np.eye(V))


def wrong_hmm(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return bffg.HMM(
        rng.dirichlet(np.ones(2)), rng.dirichlet(np.ones(2), 2), rng.dirichlet(np.ones(V), 2)
    )


def weight_of(ids: Any, weigh: Any) -> float:
    state = ""
    for v in ids:
        state = rule(state, int(v))
    return float(weigh(state))


def writer(weigh: Any, most: int = T) -> Any:
    @program
    def write() -> Any:
        x = sample("x", LM("", max_tokens=most))
        w = weight_of(x.token_ids, weigh)
        factor("rule", math.log(w) if w > 0 else False)
        return str(x)

    return write


def guide_of(hmm: Any, weigh: Any, most: int = T, **more: Any) -> Guide:
    return bffg.string_guide(bffg.HMMAutomaton(hmm, DFA, most, DFA.terminal(weigh)), "x", **more)


GUIDES = {
    "exact": lambda w, n: guide_of(exact_hmm(), w, n, exact=True),
    "wrong": lambda w, n: guide_of(wrong_hmm(), w, n),
    "wrong, until": lambda w, n: guide_of(wrong_hmm(1), w, n, until="rule"),
}


@pytest.mark.parametrize("most", [2, pytest.param(T, marks=pytest.mark.slow)])
@pytest.mark.parametrize("weigh", [tau, hard], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", GUIDES)
def test_no_surrogate_changes_the_posterior(name: str, weigh: Any, most: int) -> None:
    """All outcomes of a filter that resamples at every token: E[Ẑ W(x)] = γ(x) to 1e-10."""
    engine = SMC(2, always=True, resample_at=tokens(1), guide=GUIDES[name](weigh, most))
    assert_properly_weighted(writer(weigh, most), engine=engine, lm=MODEL, atol=1e-10)


def test_with_the_exact_surrogate_the_guide_is_h_star() -> None:
    fn = writer(tau)
    ours, best = guide_of(exact_hmm(), tau, exact=True), Guide.optimal(fn, lm=MODEL)
    wrong = guide_of(wrong_hmm(), tau)
    gaps: list[float] = []
    off: list[float] = []

    def both(trace: Trace) -> float:
        gaps.append(ours(trace) - best(trace))
        off.append(wrong(trace) - best(trace))
        return ours(trace)

    engine = SMC(40, always=True, resample_at=tokens(1), guide=both)
    infer(fn, lm=MODEL, engine=engine, seed=0)
    assert len(gaps) >= 80 and np.abs(gaps).max() < 1e-10
    assert np.abs(off).max() > 0.05


def token_program(filter_: Any) -> Any:
    """Tokens one by one, from q ∝ p g."""

    @program
    def write() -> Any:
        def step(ids: tuple[int, ...], t: int) -> tuple[int, ...]:
            p = np.array(ROWS[ids[-1:]] if END not in ids else [0.0, 0.0, 1.0])
            q = p * np.exp(filter_.log_next(filter_.of(ids))[0])
            v = sample(
                "v",
                Categorical(range(V), p.tolist()),
                proposal=Categorical(range(V), (q / q.sum()).tolist()),
            )
            return (*ids, v)

        ids = loop(step, (), n=T)
        factor("rule", math.log(weight_of(ids, tau)))
        return ids

    return write


def so_far(trace: Trace) -> tuple[tuple[int, ...], bool]:
    ids = tuple(e.value for e in trace.sites if e.op == "sample")
    return ids, len(ids) == T


def test_with_the_exact_surrogate_the_weights_are_constant() -> None:
    """Tokens from q ∝ p g and the guide g: every estimate is Z, every weight the same."""
    spread = {}
    for name, hmm in (("exact", exact_hmm()), ("wrong", wrong_hmm())):
        filter_ = bffg.HMMAutomaton(hmm, DFA, T, DFA.terminal(tau))
        guide = bffg.string_guide(filter_, so_far, until="rule")
        fn = token_program(filter_)
        z = float(np.exp(filter_.log_g(filter_.start())[0])) if name == "exact" else None
        found = [infer(fn, engine=SMC(8, always=True, guide=guide), seed=i) for i in range(5)]
        ratios = np.array([exp(post.log_evidence) for post in found])
        spread[name] = np.ptp(ratios)
        if z is not None:
            assert np.allclose(ratios, z, rtol=1e-10)
            assert z == pytest.approx(enumerate_exact(writer(tau), lm=MODEL).z, rel=1e-10)
            assert all(post.ess == pytest.approx(8, rel=1e-10) for post in found)
    assert spread["exact"] < 1e-12 and spread["wrong"] > 1e-3


def test_what_cannot_guide_says_so() -> None:
    short = bffg.HMMAutomaton(exact_hmm(), DFA, 1, DFA.terminal(tau))
    engine = SMC(4, resample_at=tokens(1), guide=bffg.string_guide(short, "x"))
    with pytest.raises(BadArgument, match="past the horizon 1"):
        infer(writer(tau), lm=MODEL, engine=engine, seed=0)
    with pytest.raises(BadArgument, match="floor"):
        bffg.string_guide(short, "x", floor=0.0)
