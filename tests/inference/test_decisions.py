"""Decisions: equivalences, errors, ties, risks, what is lost, and merges."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from lmppl import Categorical, factor, program, sample
from lmppl.errors import BadArgument
from lmppl.inference import Enumerate, Importance, Marginal, Posterior, infer
from lmppl.inference.results.decisions import (
    DECISIONS,
    Decision,
    argmax,
    decide,
    majority,
    minimum_risk,
    top,
    vote,
)
from lmppl.inference.results.decisions import sample as drawn
from lmppl.inference.results.merging import merge, merge_answers
from lmppl.inference.results.tally import tally
from lmppl.lm.table import TableLM
from lmppl.testing import outcomes

WORDS = {"a": 0.5, "A": 0.2, "b": 0.2, "c": 0.1}


@program
def tilted() -> Any:
    """Answers of unequal weight: γ(c) is the largest, though c is drawn least."""
    x = sample("x", Categorical(WORDS))
    factor("tilt", {"a": 0.0, "A": -1.0, "b": 0.5, "c": 2.5}[x])
    return x


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    return infer(tilted, engine=Importance(400), seed=3)


def test_key_and_same_agree_and_keep_drops(posterior: Posterior) -> None:
    by_key = tally(posterior, key=str.lower)
    by_same = tally(posterior, same=lambda a, b: a.lower() == b.lower())
    assert by_key == by_same
    assert set(by_key.members[by_key.answers.index("a")]) == {"a", "A"}
    exact = tally(infer(tilted, engine=Enumerate()), key=str.lower)
    z = {"a": 0.5 + 0.2 / math.e, "b": 0.2 * math.exp(0.5), "c": 0.1 * math.exp(2.5)}
    for answer, mass, se in zip(exact.answers, exact.mass, exact.se, strict=True):
        assert abs(mass - z[answer] / sum(z.values())) < 1e-12 and se == 0.0
    kept = tally(infer(tilted, engine=Enumerate()), keep=lambda a: a != "c")
    total = 0.5 + 0.2 / math.e + 0.2 * math.exp(0.5)
    assert abs(kept.mass[0] - 0.5 / total) < 1e-12
    assert abs(kept.dropped - z["c"] / sum(z.values())) < 1e-12
    assert math.isclose(sum(kept.mass), 1.0)


def test_same_is_closed_transitively_in_any_order() -> None:
    """1 ~ 2 and 2 ~ 3, so that all are one class, although 1 and 3 are not the same."""
    near = lambda a, b: abs(a - b) <= 1  # noqa: E731
    for order in itertools.permutations([1, 2, 3, 7]):
        t = tally(list(order), same=near)
        assert t.mass == (0.75, 0.25) and t.answers == (1, 7)


def test_every_decision_is_independent_of_order(posterior: Posterior) -> None:
    rng = np.random.default_rng(0)
    options: dict[str, dict[str, Any]] = {
        "argmax": {"score": "weight"},
        "minimum_risk": {"loss": lambda a, b: abs(ord(a) - ord(b))},
    }
    for name in DECISIONS:
        first = decide(posterior, name, **options.get(name, {}))
        for _ in range(3):
            order = rng.permutation(len(posterior))
            shuffled = Posterior(
                [posterior.traces[i] for i in order],
                posterior.log_weights[order],
                posterior.log_evidence,
            )
            again = decide(shuffled, name, **options.get(name, {}))
            assert again.answer == first.answer and again.mass == pytest.approx(first.mass, 1e-12)


def test_errors_are_those_of_the_marginal(posterior: Posterior) -> None:
    table = posterior.marginal()
    t = tally(posterior)
    assert dict(t.table) == pytest.approx(dict(table))
    assert t.table.se == pytest.approx(table.se)
    d = vote(posterior)
    assert d.answer == table.best and d.se == pytest.approx(table.se[d.answer])
    assert d.lost == pytest.approx(1 - d.mass) and d.risk == pytest.approx(1 - d.mass)
    plain = vote(["x"] * 3 + ["y"])
    assert plain.se == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert vote(Marginal({"x": 0.6, "y": 0.4}, {"x": 0.1, "y": 0.1})).se == 0.1
    assert math.isnan(vote({"x": 0.6, "y": 0.4}).se)


def test_standard_error_covers_after_a_drop() -> None:
    """The error of a ratio: over 60 runs, (estimate - truth) / se has standard deviation 1."""
    truth = tally(infer(tilted, engine=Enumerate()), keep=lambda a: a != "A").mass[0]
    z = []
    for seed in range(60):
        d = vote(infer(tilted, engine=Importance(150), seed=seed), keep=lambda a: a != "A")
        at = d.table
        z.append((at["c"] - truth) / at.se["c"])
    # the standard deviation of 60 such numbers is off by 1/√120 = .091; 4.9 of them
    assert abs(np.std(z) - 1.0) < 0.45 and abs(np.mean(z)) < 4.9 / math.sqrt(60)


def test_argmax_needs_a_score_and_votes_differ() -> None:
    post = infer(tilted, engine=Importance(400), seed=3)
    with pytest.raises(TypeError):
        argmax(post)  # type: ignore[call-arg]
    with pytest.raises(BadArgument, match="score of argmax must be"):
        argmax(post, score="odds")
    assert argmax(post, score="weight").answer == "c"
    assert argmax(post, score="joint").answer == "c"
    loud = argmax(post, score=lambda t: 1.0 if t["x"] == "A" else 0.0)
    assert loud.answer == "A" and loud.mass < 0.1
    assert loud.ignored == pytest.approx(1 - loud.mass)
    assert majority(post).answer == "a" and vote(post).answer == "c"
    assert majority(post).ignored > 0.3
    assert majority(["a", "a", "b"]).ignored == pytest.approx(0.0)
    with pytest.raises(BadArgument, match="needs the traces"):
        argmax(["a"], score="weight")  # type: ignore[arg-type]


def test_ties_are_drawn_by_key() -> None:
    """Each of three tied answers in a third of the seeds (z-test at 1e-6)."""
    n = 1500
    seen = [majority(["x", "y", "z"], seed=s) for s in range(n)]
    assert all(d.tied == 3 for d in seen)
    assert majority(["x", "y", "z"], seed=5) == majority(["z", "y", "x"], seed=5)
    for answer in "xyz":
        share = sum(d.answer == answer for d in seen) / n
        assert abs(share - 1 / 3) < 4.89 * math.sqrt(2 / 9 / n)


def test_sample_has_the_law(posterior: Posterior) -> None:
    n = 800
    law = tally(posterior, key=str.lower)
    seen = [drawn(posterior, key=str.lower, seed=s).answer for s in range(n)]
    for answer, p in zip(law.answers, law.mass, strict=True):
        assert abs(seen.count(answer) / n - p) < 4.89 * math.sqrt(p * (1 - p) / n)


def test_minimum_risk() -> None:
    """Squared loss is minimised next to the mean, absolute loss at the median, 0-1 loss by vote."""
    numbers = {0: 0.4, 8: 0.3, 10: 0.3}
    assert vote(numbers).answer == 0
    assert minimum_risk(numbers, loss=lambda a, b: abs(a - b)).answer == 8
    squared = minimum_risk(numbers, loss=lambda a, b: (a - b) ** 2)
    assert squared.answer == 8 and squared.risk == pytest.approx(0.4 * 64 + 0.3 * 4)
    zero_one = minimum_risk(numbers, loss=lambda a, b: float(a != b))
    assert zero_one.answer == 0 and zero_one.risk == pytest.approx(0.6)
    liked = minimum_risk(numbers, similarity=lambda a, b: -abs(a - b))
    assert liked.answer == 8
    assert minimum_risk(numbers, loss=lambda a, b: abs(a - b), most=1).answer == 0
    with pytest.raises(BadArgument, match="a loss or a similarity"):
        minimum_risk(numbers)


def test_risk_has_an_error() -> None:
    @program
    def number() -> Any:
        x = sample("x", Categorical({0: 0.2, 1: 0.5, 2: 0.3}))
        factor("tilt", 0.3 * x)
        return x

    def lose(a: int, b: int) -> float:
        return float((a - b) ** 2)

    exact = minimum_risk(infer(number, engine=Enumerate()), loss=lose)
    assert exact.answer == 1 and exact.risk_se == 0.0
    z = []
    for seed in range(60):
        found = minimum_risk(infer(number, engine=Importance(150), seed=seed), loss=lose)
        assert found.answer == 1
        z.append((found.risk - exact.risk) / found.risk_se)
    assert abs(np.std(z) - 1.0) < 4.9 / math.sqrt(120)


def test_top() -> None:
    best = top({"a": 0.5, "b": 0.3, "c": 0.2}, 2)
    assert [d.answer for d in best] == ["a", "b"] and best[1].lost == pytest.approx(0.7)
    assert len(top(["a"], 5)) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vote([]), "no answer"),
        (lambda: vote([None], keep=lambda a: a is not None), "no answer"),
        (lambda: vote("answer"), "got str"),
        (lambda: vote({"a": math.nan}), "finite"),
        (lambda: vote({"a": 0.0}), "not all zero"),
        (lambda: vote(["a"], of="x"), "needs a posterior"),
        (lambda: vote(["a"], key=str, same=lambda a, b: True), "two ways"),
        (lambda: decide(["a"], "oracle"), "no decision"),
        (lambda: top(["a"], 0), "positive integer"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        call()


def test_unhashable_answers_count_by_their_repr() -> None:
    assert vote([[1], [1], [2]]).answer == [1]


# -- merges ------------------------------------------------------------------------------------

AB = TableLM(["a", "b", "<eos>"], {(): [0.5, 0.3, 0.2], (0,): [0.1, 0.2, 0.7], (1,): [0.3, 0.1, 0.6]})  # fmt: skip


def terse(question: str, rows: Any) -> str:
    return f"{question}{rows[0][0]}"


def plain(answer: Any) -> str:
    return str(answer)


def test_merge_draws_from_the_models_law() -> None:
    """By enumeration: P(answer) ∝ p(answer, end | prompt), over what was shown."""
    table = {"a": 0.6, "b": 0.3, "zz": 0.1}

    def law(chance: Any) -> Any:
        prompt, options = terse("", [("a", 0.6)]), {0: "a", 1: "b"}
        return infer(
            merge_answers, prompt, options, 1, engine=Importance(1), lm=AB, chance=chance
        ).traces[0].result  # fmt: skip

    found: dict[Any, float] = {}
    for p, value in outcomes(law):
        found[value] = found.get(value, 0.0) + p
    # after a: a, end .1 · .7 and b, end .2 · .6
    assert found[0] == pytest.approx(0.07 / 0.19, abs=1e-12)
    assert found[1] == pytest.approx(0.12 / 0.19, abs=1e-12)
    d = merge(table, lm=AB, prompt=terse, surface=plain, most=2, seed=1)
    assert d.answer in ("a", "b") and d.mass == table[d.answer]
    assert d.ignored == pytest.approx(0.1)
    assert d.posterior is not None and d.posterior.ledger.calls == 2
    n = 600
    share = np.mean(
        [merge(table, lm=AB, prompt=terse, surface=plain, most=2, seed=s).answer == "b" for s in range(n)]
    )  # fmt: skip
    p = 0.12 / 0.19
    assert abs(share - p) < 4.89 * math.sqrt(p * (1 - p) / n)


def test_free_merge_may_write_a_new_answer() -> None:
    seen = {}
    for s in range(40):
        d = merge({"a": 0.7, "b": 0.3}, lm=AB, free=True, prompt=terse, max_tokens=2, seed=s)
        seen[d.answer] = d.mass
    assert seen["a"] == 0.7 and seen["b"] == 0.3 and seen[""] == 0.0
    cased = merge({"A": 1.0}, lm=AB, free=True, prompt=terse, max_tokens=1, key=str.lower, seed=4)
    assert isinstance(cased, Decision) and cased.mass == float(cased.answer == "a")
