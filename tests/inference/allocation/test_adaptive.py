"""One budget over many questions: its bound, its order, and what it gains at equal cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lmppl import LM, Bernoulli, factor, program, sample
from lmppl.errors import BadArgument
from lmppl.inference import Forward, Importance, infer_many
from lmppl.inference.allocation.adaptive import Allocated, gain, infer_adaptive
from lmppl.inference.questions.compare import paired
from lmppl.inference.stopping.criteria import BetaMajority, Budget
from lmppl.inference.stopping.rules import Threshold
from lmppl.lm.table import TableLM

ONE = TableLM(["a", "<eos>"], {(): [0.5, 0.5]}, name="one")


@program
def asked(p: float) -> Any:
    """One token, then an answer that is right with probability p."""
    sample("thought", LM("", max_tokens=1))
    return sample("answer", Bernoulli(p))


def spread(n: int, seed: int = 0) -> list[float]:
    """Some easy questions, some hard ones."""
    rng = np.random.default_rng(seed)
    return [float(x) for x in np.clip(rng.beta(2.0, 1.2, n), 0.02, 0.98)]


def test_the_budget_is_a_bound() -> None:
    for tokens in (0, 2, 7, 40, 155, 400):
        got = infer_adaptive(
            asked, spread(20), budget=Budget(tokens=tokens), engine=Forward(2), lm=ONE
        )
        assert got.ledger.tokens <= tokens
        if got.why == "budget spent":
            assert tokens - got.ledger.tokens < 2
        assert sum(got.draws) == got.ledger.tokens == got.ledger.calls


def test_settled_questions_get_no_more() -> None:
    got = infer_adaptive(
        asked, [1.0, 0.5, 1.0], budget=Budget(calls=60), engine=Forward(2),
        rule=BetaMajority(0.96), lm=ONE, seed=0,
    )  # fmt: skip
    assert got.draws[0] == got.draws[2] == 4 and got.draws[1] > 8
    assert got.posteriors[0] is not None and got.posteriors[0].stopped.why[0].startswith("leader")
    last = got.posteriors[1]
    assert last is not None and (last.stopped.settled or last.stopped.why == ("budget spent",))
    assert got.settled >= 2


def test_the_first_batch_is_that_of_infer_many() -> None:
    questions = spread(5)
    plain = infer_many(asked, questions, engine=Forward(3), lm=ONE, seed=2)
    once = infer_adaptive(
        asked, questions, budget=Budget(calls=10**6), most=1, engine=Forward(3), lm=ONE, seed=2
    )
    for a, b in zip(plain, once.posteriors, strict=True):
        assert b is not None and [t.result for t in a.traces] == [t.result for t in b.traces]
        assert b.stopped.why == ("most batches",) or b.stopped.settled


@pytest.mark.parametrize("priority", ["unsettled", "gain", lambda r: r["entropy"]])
def test_order_of_questions_does_not_matter(priority: Any) -> None:
    questions, names = spread(9), [f"q{i}" for i in range(9)]

    def run(order: list[int]) -> Allocated:
        return infer_adaptive(
            asked, [questions[i] for i in order], ids=[names[i] for i in order], width=3,
            budget=Budget(tokens=10_000), priority=priority, engine=Forward(2), lm=ONE, most=12,
        )  # fmt: skip

    first, order = run(list(range(9))), [4, 2, 8, 0, 7, 1, 3, 6, 5]
    again = run(order)
    assert [again.draws[order.index(i)] for i in range(9)] == first.draws
    for i in range(9):
        a, b = first.posteriors[i], again.posteriors[order.index(i)]
        assert a is not None and b is not None
        assert [t.result for t in a.traces] == [t.result for t in b.traces]


def test_gain_is_the_expected_rise() -> None:
    """Against a sum over both outcomes by hand, and never negative."""
    assert gain([0], 1) == pytest.approx(0.25)  # from 1/2 to 3/4 in either case
    assert gain([5, 5], 1) == pytest.approx(gain([5, 5], 2), abs=0.05)
    assert gain([9, 8], 4) > gain([9, 4], 4) > gain([20, 0], 4) >= 0.0
    assert gain([3, 0], 1) == pytest.approx(0.0, abs=1e-12)  # one more answer changes no majority


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_it_beats_an_even_split_at_equal_cost(record_property: Any) -> None:
    """720 questions, 6 draws each on average: is the better answer found?

    The first batches are the same draws in both. At these seeds it is better by McNemar's exact test
    at 5 %, and never spends more.
    """

    def found(allocated: Allocated, right: list[bool]) -> list[bool]:
        picks = [None if p is None else p.marginal().best for p in allocated.posteriors]
        return [p is not None and bool(p) == r for p, r in zip(picks, right, strict=True)]

    ours: list[bool] = []
    even: list[bool] = []
    for seed in (1, 2, 3):
        questions = spread(240, seed=seed)
        right = [p > 0.5 for p in questions]
        flat = infer_adaptive(
            asked, questions, rule=Threshold("draws", at_least=6), budget=Budget(tokens=10**6),
            engine=Forward(2), lm=ONE,
        )  # fmt: skip
        spent = flat.ledger.tokens
        got = infer_adaptive(
            asked, questions, budget=Budget(tokens=spent), engine=Forward(2), lm=ONE
        )
        assert got.ledger.tokens <= spent == 6 * 240
        ours += found(got, right)
        even += found(flat, right)
    pair = paired(ours, even)
    record_property(
        "figure",
        f"better answer found at equal tokens: {np.mean(ours):.3f}, even split {np.mean(even):.3f}, "
        f"{pair.wins} to {pair.losses}, p = {pair.p_value:.4f}",
    )
    assert pair.verdict == "better", pair


def test_budget_of_money() -> None:
    got = infer_adaptive(
        asked, spread(6), budget=Budget(money=50e-6), prices={"one": (0.0, 1.0)},
        engine=Forward(2), lm=ONE,
    )  # fmt: skip
    assert 20 < got.ledger.tokens <= 50


def test_dead_batches_and_errors_end_nothing_else() -> None:
    @program
    def fragile(kind: str) -> Any:
        sample("thought", LM("", max_tokens=1))
        x = sample("x", Bernoulli(0.3))
        if kind == "breaks":
            raise ValueError("broken")
        factor("hard", x if kind == "rare" else kind != "impossible")
        return x

    got = infer_adaptive(
        fragile, ["rare", "breaks", "impossible", "fine"], budget=Budget(calls=400), most=20,
        engine=Importance(1), lm=ONE, on_question_error="return",
    )  # fmt: skip
    rare, broken, impossible, fine = got.posteriors
    assert rare is not None and rare.marginal().best is True
    assert broken is None and list(got.errors) == [1]
    assert impossible is not None and impossible.dead
    assert impossible.stopped.why == ("most batches",)
    assert fine is not None and len(fine) >= 4
    with pytest.raises(Exception, match="broken"):
        infer_adaptive(fragile, ["breaks"], budget=Budget(calls=9), lm=ONE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 100}, "must be a Budget"),
        ({"budget": Budget(tokens=9), "priority": "luck"}, "priority"),
        ({"budget": Budget(tokens=9), "ids": ["a", "a"]}, "ids must be different"),
        ({"budget": Budget(tokens=9), "most": 0}, "at least 1"),
        ({"budget": Budget(money=1.0)}, "no price"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        infer_adaptive(asked, [0.5, 0.5], lm=ONE, rule=Threshold("draws", at_least=9), **options)
