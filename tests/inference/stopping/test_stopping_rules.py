"""Signals and rules: formulas, algebra, plain and explicit state, and the defects of a peer."""

from __future__ import annotations

import itertools
import json
import math
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmppl.errors import BadArgument
from lmppl.inference.stopping.chain import (
    LEVELS,
    AnswerWindow,
    EndSignal,
    Momentum,
    convergence,
)
from lmppl.inference.stopping.criteria import BetaMajority, Budget, Secretary, Slope
from lmppl.inference.stopping.rules import And, Consecutive, Or, Patience, Rule, Threshold
from lmppl.inference.stopping.signals import (
    beta_cdf,
    certainty,
    entropy,
    majority_probability,
    money,
    slope,
)
from lmppl.ledger import Ledger

# -- signals -----------------------------------------------------------------------------------


def test_majority_probability_is_a_binomial_sum() -> None:
    """I_½(a, b) of integers is P(Bin(a + b - 1, ½) ≥ a), summed here in integers."""
    for first, second in itertools.product(range(25), repeat=2):
        n = first + second + 1
        exact = sum(math.comb(n, k) for k in range(first + 1)) / 2**n
        assert majority_probability(first, second) == pytest.approx(exact, abs=1e-13)


def test_beta_cdf_between_integers() -> None:
    """Against the integral by the midpoint rule, and symmetric."""
    for a, b in ((1.5, 2.5), (3.2, 1.7), (7.0, 0.8), (40.5, 20.25)):
        norm = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))
        n = 20_000
        for x in (0.2, 0.5, 0.8):
            mids = ((i + 0.5) * x / n for i in range(n))
            area = norm * math.fsum(u ** (a - 1) * (1 - u) ** (b - 1) for u in mids) * x / n
            assert beta_cdf(x, a, b) == pytest.approx(area, abs=2e-6)
            assert beta_cdf(x, a, b) + beta_cdf(1 - x, b, a) == pytest.approx(1.0, abs=1e-13)
    assert majority_probability(5000, 4000) > 1 - 1e-12


def test_numbers() -> None:
    assert entropy([1, 1, 2]) == pytest.approx(1.5 * math.log(2))
    assert certainty([3, 1]) == pytest.approx(
        1 + (0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
    )
    assert certainty([]) == certainty([1]) == 0.0
    assert slope([3.0, 1.0, 2.0]) == pytest.approx(-0.5) and math.isnan(slope([1.0]))
    book = Ledger()
    book.model("m").tokens_in = 1000
    with pytest.raises(BadArgument, match="no price of m"):
        money(book, {})
    assert money(book, {"m": (2.0, 9.0)}) == pytest.approx(0.002)


# -- the algebra ---------------------------------------------------------------------------------

RULES: list[Rule] = [
    Threshold("x", at_least=0.5),
    Consecutive(Threshold("x", at_most=0.5), 2),
    Patience("x", 2),
    Patience("x", 2, goal="max", delta=0.1),
    BetaMajority(0.9),
    Slope("x", 3, at_least=-0.1),
    Secretary(6, "x"),
    Budget(tokens=5, reserve=True),
    AnswerWindow(2),
    EndSignal(),
    Momentum(),
    (Threshold("x", at_least=0.5) & BetaMajority()) | Budget(tokens=9),
    (Patience("x", 1) | Budget(tokens=4)).consecutive(2),
]

readings = st.fixed_dictionaries(
    {
        "x": st.floats(0, 1),
        "counts": st.lists(st.integers(0, 9), max_size=3),
        "answer": st.sampled_from(["", "1", "2", None]),
        "text": st.sampled_from(["so 1", "wait, 1", ""]),
        "tokens": st.integers(0, 12),
        "end_logit": st.floats(-5, 5),
        "max_logit": st.just(5.0),
        "mean_logit": st.just(-5.0),
        "logp": st.floats(-3, 0),
    }
)


@pytest.mark.parametrize("rule", RULES, ids=str)
@settings(max_examples=25)
@given(stream=st.lists(readings, min_size=1, max_size=8))
def test_state_is_plain_data_and_steps_are_pure(rule: Rule, stream: list[dict[str, Any]]) -> None:
    """Through JSON and pickle after each update: the same verdicts as without."""
    straight, carried = rule.start(), rule.begin()
    clone = pickle.loads(pickle.dumps(rule))
    assert clone == rule and hash(clone) == hash(rule)
    for values in stream:
        before = json.dumps(carried)
        after, why = clone.step(carried, values)
        assert json.dumps(carried) == before, "a step changed what it was given"
        assert clone.step(json.loads(before), values) == (after, why)
        assert straight.update(values) == bool(why)
        assert straight.why == why
        straight = pickle.loads(pickle.dumps(straight))
        carried = json.loads(json.dumps(after))


@settings(max_examples=25)
@given(stream=st.lists(readings, min_size=1, max_size=8))
def test_and_or_are_those_of_the_parts(stream: list[dict[str, Any]]) -> None:
    a, b = Patience("x", 2), Consecutive(Threshold("x", at_least=0.3), 2)
    states = [r.start() for r in (a, b, a & b, a | b, b & a, b | a)]
    for values in stream:
        x, y, both, either, both2, either2 = (s.update(values) for s in states)
        assert both == both2 == (x and y)
        assert either == either2 == (x or y)
    assert (a & b & a) == And((a, b, a)) and (a | (b | a)) == Or((a, b, a))


def test_why_names_what_fired() -> None:
    rule = (Threshold("ess", at_least=5) & Threshold("draws", at_least=3)) | Budget(tokens=10)
    state = rule.start()
    assert not state.update({"ess": 6.0, "draws": 2, "tokens": 3})
    assert state.update({"ess": 6.0, "draws": 3, "tokens": 12})
    assert state.why == ("ess >= 5", "draws >= 3", "tokens 12 of 10")
    assert str(rule) == "ess >= 5 & draws >= 3 | budget of 10 tokens"


def test_order_of_counts_does_not_matter() -> None:
    for counts in itertools.permutations([5, 0, 1, 2]):
        assert BetaMajority(0.85).start().update({"counts": counts})
        assert not BetaMajority(0.86).start().update({"counts": counts})


def test_single_rules() -> None:
    def run(rule: Rule, name: str, values: list[Any]) -> list[bool]:
        state = rule.start()
        return [state.update({name: v}) for v in values]

    assert run(Patience("x", 2), "x", [5, 4, 4, 4, 3]) == [False, False, False, True, False]
    assert run(Patience("x", 1, 0.5, "max"), "x", [1, 1.4, 2]) == [False, True, False]
    assert run(Threshold("x", at_least=1).consecutive(2), "x", [1, 0, 1, 1]) == [0, 0, 0, 1]
    assert run(Threshold("x", at_most=0), "x", [math.nan, 0]) == [False, True]
    assert run(Slope("x", 3, at_least=0), "x", [3, 2, 1, 1, 1]) == [0, 0, 0, 0, 1]
    assert run(Budget(tokens=10), "tokens", [4, 8, 12]) == [False, False, True]
    assert run(Budget(tokens=10, reserve=True), "tokens", [4, 8, 12]) == [False, True, True]
    # a level that is met exactly: 3 to 0 is 15/16
    assert run(BetaMajority(0.9375), "counts", [[2], [3]]) == [False, True]
    assert run(BetaMajority(0.5), "counts", [[]]) == [False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Threshold("x"), "at_least or at_most"),
        (lambda: Threshold("x", at_least=1, at_most=2), "not both"),
        (lambda: Budget(), "needs limits"),
        (lambda: BetaMajority(1.0), "level"),
        (lambda: Consecutive(Threshold("x", at_least=1), 0), "k must be a positive integer"),
        (lambda: Patience("x", 1, goal="up"), "goal"),
        (lambda: Threshold("x", at_least=1) & "ess", "join rules"),  # type: ignore[operator]
        (lambda: Threshold("y", at_least=1).start().update({"x": 1}), "the signals are x"),
        (lambda: Budget(money=1).start().update({"x": 1}), "prices="),
        (lambda: Threshold("x", at_least=1).start().update({"x": "a"}), "no number"),
        (lambda: Momentum(alpha=1.0), "alpha"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        call()


# -- the secretary, by enumeration of all orders ---------------------------------------------------


@pytest.mark.parametrize("n", [3, 5, 6, 7])
def test_secretary_over_all_orders(n: int) -> None:
    """P(best) is r/n Σ_{k ≥ r} 1/k for r looked at, and 1/e is within 3 % of the best r."""

    def chance(explore: float) -> tuple[int, float]:
        rule = Secretary(n, "x", explore=explore)
        hits = 0
        for order in itertools.permutations(range(n)):
            state = rule.start()
            stopped = next(x for x in order if state.update({"x": float(x)}))
            hits += stopped == 0
        return rule.first, hits / math.factorial(n)

    def formula(r: int) -> float:
        return 1 / n if r == 0 else r / n * sum(1 / k for k in range(r, n))

    for r in range(n):
        first, p = chance(r / n)
        assert first == r and p == pytest.approx(formula(r), abs=1e-12)
    best = max(formula(r) for r in range(n))
    assert chance(1 / math.e)[1] >= 0.97 * best


# -- along a chain: what a peer does wrong ---------------------------------------------------------


def probes(rule: Rule, *answers: Any, text: str = "") -> bool:
    state = rule.start()
    return [state.update({"answer": a, "text": text}) for a in answers][-1]


def test_different_answers_do_not_stop() -> None:
    assert not probes(AnswerWindow(3), "1", "2", "3")
    assert probes(AnswerWindow(3), "1", "3", "3", "3")


def test_empty_answers_do_not_stop() -> None:
    for empty in ("", " ", "\n", None):
        assert not probes(AnswerWindow(3), *[empty] * 5)
    assert not probes(AnswerWindow(3), "1", "1", "", "1")


def test_hedges_are_whole_words() -> None:
    for text in ("I know: 7", "nothing but", "uphold 7", "awaiting", "another 7"):
        hedged = "but" in text
        assert probes(AnswerWindow(3), *["7"] * 3, text=text) is not hedged
    for text in ("No.", "hmm, 7", "WAIT"):
        assert not probes(AnswerWindow(3), *["7"] * 3, text=text)
    assert probes(convergence(3), *["7"] * 3, text="wait")


def test_levels_of_the_peer() -> None:
    assert {k: w for k, (w, _) in LEVELS.items()} == dict(mild=8, low=5, mid=3, high=2, crazy=2)


def test_end_signal() -> None:
    values = {"end_logit": 1.0, "max_logit": 4.0, "mean_logit": -1.0}
    assert EndSignal(0.6).start().update(values)
    assert not EndSignal(0.59).start().update(values)


def test_momentum_is_corrected_at_the_start() -> None:
    """A chain that is equally sure at every step has no surprise; uncorrected it has one at once."""

    def fired(rule: Momentum, logps: list[float]) -> list[bool]:
        state = rule.start()
        return [state.update({"logp": x}) for x in logps]

    assert not any(fired(Momentum(), [-1.0] * 20))
    assert fired(Momentum(correct=False), [-1.0] * 20)[1]
    assert fired(Momentum(), [-0.2, -0.2, -1.0, -0.2]) == [False, False, True, False]
    # the corrected momentum is the weighted mean of the past
    rule, data = Momentum(alpha=0.5, gamma=0.9), Momentum().begin()
    for x in (-1.0, -2.0, -4.0):
        data, _ = rule.step(data, {"logp": x})
    assert data[0] / (1 - 0.5**3) == pytest.approx((-1 / 8 - 2 / 4 - 4 / 2) / (7 / 8))
