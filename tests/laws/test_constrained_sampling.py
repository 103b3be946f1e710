"""Constrained strings have the global posterior, for every sampler and resampling, by exhaustion.

γ(x) = p(x) Φ(x) is summed over token sequences by hand, in plain Python: no engine, no potential of
ours takes part. Every outcome of an engine's own randomness is then run, the rejections of `AWRS`
and the extra token of `TopK` included, and Σ P Ẑ W(x) = γ(x) must hold to 1e-10. The locally masked
law, which is what masks without weights sample, fails.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lmppl import LM, factor, program, sample
from lmppl.inference import SMC, Enumerate, Forward, Importance, infer, tokens
from lmppl.lm.table import TableLM
from lmppl.lm.token_weights import HostWeights, LawWeights, TokenWeights
from lmppl.random import Chance, draw, fold
from lmppl.testing import assert_properly_weighted, outcomes
from lmppl.testing.enumerator import LawBroken
from lmppl.token_potentials import (
    AWRS,
    Canonical,
    Exact,
    Lookahead,
    Matches,
    Normalized,
    OnText,
    Picked,
    TokenState,
    TopK,
)
from lmppl.token_potentials.awrs import Rejecting
from lmppl.types import Floats, Keys
from lmppl.weights import NEG_INF

SMALL = TableLM.random(["a", "b", "<eos>"], seed=3)
MEDIUM = TableLM.random(["a", "b", "ab", "<eos>"], seed=1)
PAIR = TableLM.random(["a", "<eos>"], seed=2)
"""Two tokens: even rejections of two particles have few outcomes."""
PATTERN = "a|ab|ba|aa"
LONGEST = ("ab", "ba", "aa")
"""Texts that no longer one begins with: under a grammar a string ends there by itself."""


def soft(text: str) -> float:
    return -0.7 * text.count("a")


def matches(text: str) -> bool:
    return re.fullmatch(PATTERN, text) is not None


def by_hand(
    lm: TableLM,
    length: int,
    phi: Callable[[tuple[int, ...], str], float],
    longest: Sequence[str] = (),
) -> dict[str, float]:
    """γ of every text of at most `length` tokens, ended early at the `longest`."""
    out: dict[str, float] = {}
    end = lm.vocab_size - 1

    def walk(ids: tuple[int, ...], p: float) -> None:
        row = np.exp(lm.open([ids]).log_probs()[0]).tolist()
        for v in range(lm.vocab_size):
            longer = ids if v == end else (*ids, v)
            text = lm.decode(longer)
            if v == end or len(longer) == length or text in longest:
                out[text] = out.get(text, 0.0) + p * row[v] * phi(longer, text)
            else:
                walk(longer, p * row[v])

    walk((), 1.0)
    return {text: mass for text, mass in out.items() if mass > 0.0}


POTENTIALS: dict[str, tuple[dict[str, Any], Callable[[tuple[int, ...], str], float]]] = {
    "regex": ({"regex": PATTERN}, lambda ids, text: float(matches(text))),
    "choices": ({"choices": ["a", "ab", "ba", "aa"]}, lambda ids, text: float(matches(text))),
    "function": ({"potential": matches}, lambda ids, text: float(matches(text))),
    "soft": (
        {"potential": OnText(soft, soft) * Matches(PATTERN)},
        lambda ids, text: matches(text) * math.exp(soft(text)),
    ),
    "both": (
        {"potential": OnText(soft), "regex": PATTERN},
        lambda ids, text: matches(text) * math.exp(soft(text)),
    ),
    "guided": (
        {"potential": Matches(PATTERN) * Lookahead(lambda text: 0.9 * len(text))},
        lambda ids, text: float(matches(text)),
    ),
    "tempered": (
        {"potential": OnText(soft, soft) ** 0.5},
        lambda ids, text: math.exp(soft(text) / 2),
    ),
    "canonical": (
        {"potential": Canonical()},
        lambda ids, text: float(MEDIUM.encode(text) == ids),
    ),
}
SAMPLERS: dict[str, Any] = {
    "default": None, "exact": Exact(), "awrs0": AWRS(0), "awrs1": AWRS(1), "awrs": AWRS(None),
    "top1": TopK(1),
}  # fmt: skip
ENGINES: dict[str, Any] = {
    "importance": Importance(1),
    "tokens": SMC(2, resample_at=tokens(1), always=True),
    "ess": SMC(2, resample_at=tokens(ess=0.95), ess_threshold=0.0),
    "multinomial": SMC(2, resample_at=tokens(1), resampling="multinomial", always=True),
}


def longest_of(options: dict[str, Any]) -> Sequence[str]:
    return LONGEST if {"regex", "choices"} & set(options) else ()


def constrained(lm: TableLM, options: dict[str, Any], length: int) -> Any:
    @program
    def string() -> str:
        return str(sample("x", LM("", max_tokens=length, **options)))

    return string


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["regex", "soft"])
def test_global_posterior(name: str, sampler: str, engine: str) -> None:
    """Sampler × resampling, two particles."""
    options, phi = POTENTIALS[name]
    lm = PAIR if sampler.startswith("awrs") and engine != "importance" else SMALL
    found = assert_properly_weighted(
        constrained(lm, {**options, "sampler": SAMPLERS[sampler]}, 2),
        engine=ENGINES[engine],
        lm=lm,
        exact=by_hand(lm, 2, phi),
    )
    assert found.error < 1e-12


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", POTENTIALS)
def test_every_potential(name: str, sampler: str) -> None:
    options, phi = POTENTIALS[name]
    drawn = SAMPLERS[sampler]
    length = 2 if sampler in ("awrs", "awrs1") else 3
    assert_properly_weighted(
        constrained(MEDIUM, {**options, "sampler": drawn}, length),
        engine=Importance(1),
        lm=MEDIUM,
        exact=by_hand(MEDIUM, length, phi, longest_of(options)),
    )


@pytest.mark.parametrize("name", POTENTIALS)
def test_enumeration_is_by_hand(name: str) -> None:
    options, phi = POTENTIALS[name]
    found = infer(constrained(MEDIUM, options, 3), engine=Enumerate(), lm=MEDIUM)
    exact = by_hand(MEDIUM, 3, phi, longest_of(options))
    z = math.fsum(exact.values())
    assert math.exp(found.log_evidence) == pytest.approx(z, abs=1e-12)
    marginal = found.marginal()
    assert all(abs(marginal.get(x, 0.0) - m / z) < 1e-12 for x, m in exact.items())


PROPOSALS: list[dict[str, Any]] = [
    {"temperature": 1.7},
    {"temperature": 0.6, "mixture": 0.2, "top_k": 1},
]


@pytest.mark.parametrize("settings", PROPOSALS, ids=["warm", "mixed"])
@pytest.mark.parametrize("sampler", ["default", "awrs1", "top1"])
def test_under_a_proposal(sampler: str, settings: dict[str, Any]) -> None:
    options, phi = POTENTIALS["soft"]
    assert_properly_weighted(
        constrained(SMALL, {**options, **settings, "sampler": SAMPLERS[sampler]}, 2),
        engine=Importance(1),
        lm=SMALL,
        exact=by_hand(SMALL, 2, phi),
    )


@pytest.mark.parametrize("sampler", [None, AWRS(1), AWRS(None), TopK(1)], ids=str)
def test_truncation_never_loses_a_feasible_token(sampler: Any) -> None:
    """top_k=1 leaves "b" alone where the grammar wants "a": the draw falls back."""
    lm = TableLM(["a", "b", "<eos>"], {(): [0.2, 0.7, 0.1]})
    law = {"regex": "a", "top_k": 1, "sampler": sampler}
    assert_properly_weighted(constrained(lm, law, 2), engine=Importance(1), lm=lm, exact={"a": 0.2})


def test_two_sites_and_a_factor() -> None:
    """Weights of a string that has ended, and of one that has not, meet in one population."""
    second = TableLM.random(["a", "b", "<eos>"], seed=9)

    @program
    def two() -> tuple[str, str]:
        x = str(sample("x", LM("", regex="a|b", sampler=TopK(1), max_tokens=1, lm="one")))
        factor("like", 0.5 * (x == "a"))
        y = str(sample("y", LM("", potential=OnText(soft, soft), max_tokens=1, lm="two")))
        return x, y

    exact = {
        (x, y): p * q * math.exp(0.5 * (x == "a"))
        for x, p in by_hand(SMALL, 1, lambda i, t: float(t in ("a", "b"))).items()
        for y, q in by_hand(second, 1, lambda i, t: math.exp(soft(t))).items()
    }
    assert_properly_weighted(
        two,
        engine=SMC(2, resample_at=tokens(1), always=True),
        lm={"one": SMALL, "two": second},
        exact=exact,
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("sampler", [AWRS(1), AWRS(2)], ids=str)
def test_rejection_in_a_population(sampler: Any) -> None:
    options, phi = POTENTIALS["regex"]
    assert_properly_weighted(
        constrained(SMALL, {**options, "sampler": sampler}, 2),
        engine=ENGINES["tokens"],
        lm=SMALL,
        exact=by_hand(SMALL, 2, phi),
    )


# -- one step, and what must be rejected ----------------------------------------------------------


def step_law(sampler: Any, state: TokenState, logq: Floats) -> dict[int, float]:
    """E[W 1(x = v)] / (e^g(v)) of one draw: q(v) 1(allowed), where the sampler is right."""
    found: dict[int, float] = {}

    def run(chance: Chance) -> Picked:
        keys: Keys = np.array([5], dtype=np.uint64)
        q = HostWeights(logq[None, :])
        picked: Picked = sampler.draw(LawWeights(q, q, None), [state], keys, chance)[0]
        return picked

    for p, picked in outcomes(run):
        if picked.token >= 0:
            w = p * math.exp(float(logq[picked.token]) - picked.logq)
            found[picked.token] = found.get(picked.token, 0.0) + w
    return found


FIVE = TableLM.random(["a", "b", "c", "d", "<eos>"], seed=6)


def wrong_by(sampler: Any) -> float:
    state = OnText(lambda text: text in ("a", "d"), lambda text: text in ("", "a", "d")).start(FIVE)
    logq = FIVE.open([()]).log_probs()[0]
    found = step_law(sampler, state, logq)
    return max(
        abs(found.get(v, 0.0) - (math.exp(logq[v]) if v in (0, 3) else 0.0))
        for v in range(FIVE.vocab_size)
    )


@pytest.mark.parametrize(
    "sampler", [Exact(), *map(AWRS, (0, 1, 2, 3, None)), *map(TopK, (1, 2, 4, 9))], ids=str
)
def test_a_step_is_properly_weighted(sampler: Any) -> None:
    assert wrong_by(sampler) < 1e-12


@dataclass(frozen=True)
class Local(Exact):
    """Mutant: masks without weights."""

    def draw(self, law: LawWeights, *rest: Any) -> list[Picked]:
        found = super().draw(law, *rest)
        tokens = np.array([p.token for p in found])
        logs = law.proposal.at(np.arange(len(found)), tokens)
        return [Picked(p.token, float(log)) for p, log in zip(found, logs, strict=True)]


@dataclass(frozen=True)
class OneAccepted(AWRS):
    """Mutant: the weight is what the first phase left."""

    def draw(self, law: LawWeights, *rest: Any) -> list[Picked]:
        state, key, chance = rest[0][0], int(rest[1][0]), rest[2]
        q, left, n = law.proposal.select(ONE), 1.0, 0
        while left > 1e-12:
            keys: Keys = np.array([fold(key, n)], dtype=np.uint64)
            (token,), (log,), _ = q.draw(ONE, keys, chance)
            if state.log_next([int(token)])[0] > NEG_INF:
                return [Picked(int(token), float(log) - math.log(left))]
            left -= math.exp(log)
            q.take_out(ONE, np.array([token]))
            n += 1
        return [Picked(-1, NEG_INF)]


ONE = np.zeros(1, dtype=np.int64)


@dataclass(frozen=True)
class Counted(AWRS):
    """Mutant: 1 / (rejections + 1), the formula of drawing with replacement."""

    def _picked(self, s: Rejecting, inverse: float) -> Picked:
        return Picked(s.chosen, s.logq + math.log(s.rejected + 1))


@dataclass(frozen=True)
class Forgets(AWRS):
    """Mutant: after `tries` the weight is the mass that was summed, also where x came before."""

    def _look(self, q: TokenWeights, tired: Sequence[Rejecting], *rest: Any) -> None:
        for s in tired:
            s.inverse = 1.0 / s.rest
        super()._look(q, tired, *rest)


@dataclass(frozen=True)
class Unweighted(TopK):
    """Mutant: the token beside the best k counts as if it were one of them."""

    def draw(self, law: LawWeights, *rest: Any) -> list[Picked]:
        (states, keys, chance), proposal = rest, law.proposal
        logq = proposal.at(np.repeat(ONE, proposal.width), np.arange(proposal.width))
        best = np.argsort(-logq)[: self.k].tolist()
        others = logq.copy()
        others[best] = NEG_INF
        ids = [*best, draw(chance, fold(int(keys[0]), 0), others)]
        total = logq[ids] + states[0].log_next(ids)
        if not (total > NEG_INF).any():
            return [Picked(-1, NEG_INF)]
        mass = float(np.logaddexp.reduce(total))
        v = ids[draw(chance, fold(int(keys[0]), 1), total - mass)]
        return [Picked(v, float(logq[v]) - mass)]


@pytest.mark.parametrize(
    "sampler", [Local(), OneAccepted(), Counted(), Forgets(1), Forgets(2), Unweighted(2)], ids=str
)
def test_mutants_of_samplers_are_rejected(sampler: Any) -> None:
    assert wrong_by(sampler) > 1e-3


def test_the_locally_masked_law_is_another_one() -> None:
    """Masks alone, as constrained decoding does it, do not sample the posterior."""
    options, phi = POTENTIALS["regex"]
    exact = by_hand(SMALL, 2, phi)
    with pytest.raises(LawBroken):
        assert_properly_weighted(
            constrained(SMALL, options, 2), engine=Forward(1), lm=SMALL, exact=exact
        )


def test_a_guide_that_is_not_cancelled_is_rejected() -> None:
    guide = OnText(lambda text: 0.9 * len(text), lambda text: 0.9 * len(text))
    options, phi = POTENTIALS["regex"]
    with pytest.raises(LawBroken):
        assert_properly_weighted(
            constrained(SMALL, {**options, "potential": guide}, 2),
            engine=SMC(2, resample_at=tokens(1), always=True),
            lm=SMALL,
            exact=by_hand(SMALL, 2, phi),
        )


def test_rejection_looks_at_few_tokens() -> None:
    """What it is for: a potential is asked about the tokens that were drawn."""
    words = [*"abcdefghijklmnopqrstuvwxyz", "<eos>"]
    lm = TableLM(words, {(): [0.9 / 26] * 26 + [0.1]})
    asked: list[str] = []

    def vowels(text: str) -> bool:
        asked.append(text)
        return set(text) <= set("aeiou")

    law = {"potential": OnText(vowels, vowels), "sampler": AWRS(None)}
    found = infer(constrained(lm, law, 1), engine=Importance(1), lm=lm, seed=0)
    assert len(set(asked)) < 26
    runs = [
        math.exp(infer(constrained(lm, law, 1), engine=Importance(50), lm=lm, seed=s).log_evidence)
        for s in range(20)
    ]
    exact = 5 * 0.9 / 26 + 0.1
    error = float(np.std(runs, ddof=1)) / math.sqrt(len(runs))
    assert abs(float(np.mean(runs)) - exact) < 4.9 * error  # a z-test at 1e-6
    assert found.log_evidence < 0.0


def test_normalised_grammar_is_the_uniform_walk() -> None:
    law = {"potential": Normalized(Matches("a*b"))}
    found = by_hand(SMALL, 2, lambda ids, text: {"b": 0.5, "ab": 0.25}.get(text, 0.0))
    # "b" may be followed by nothing but the end; at two tokens the string is cut there
    assert_properly_weighted(
        constrained(SMALL, law, 2), engine=Importance(1), lm=SMALL, exact=found
    )
