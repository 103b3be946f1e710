"""Rounds of parallel answers: what they see, when they stop, what they cost."""

from __future__ import annotations

from typing import Any

import pytest

from lmppl import LM, Categorical, program, sample
from lmppl.errors import BadArgument
from lmppl.inference import infer
from lmppl.inference.forward import Forward
from lmppl.inference.stopping import Budget, Secretary, Threshold
from lmppl.inference.stopping.rounds import Rounded, Rounds
from lmppl.lm.table import TableLM


@program
def agree(right: float, earlier: Any = ()) -> str:
    """Each round follows the last one's votes, pulled to the right answer."""
    share = (2 * right + sum(a == "4" for a in earlier)) / (2 + len(earlier))
    return str(sample("answer", Categorical({"4": share, "5": 1 - share})))


def test_a_round_sees_the_answers_of_the_one_before() -> None:
    seen: list[Any] = []

    @program
    def note(earlier: Any = ()) -> int:
        seen.append(tuple(earlier))
        return len(seen)

    post = infer(note, engine=Rounds(Forward(3), Threshold("batches", at_least=3), most=9))
    assert isinstance(post, Rounded) and post.stopped.batches == 3
    assert seen[:3] == [()] * 3 and seen[3:6] == [(1, 2, 3)] * 3 and seen[6:] == [(4, 5, 6)] * 3
    assert [t.result for t in post.traces] == [7, 8, 9]
    assert [len(r) for r in post.rounds] == [3, 3, 3] and post.stopped.draws == 9


def test_the_rule_reads_one_round_alone() -> None:
    """A unanimous round stops, whatever the rounds before it were."""
    engine = Rounds(Forward(5), Threshold("entropy", at_most=0.0), most=40)
    post = infer(agree, 0.6, engine=engine, seed=3)
    assert isinstance(post, Rounded)
    assert post.stopped.settled
    assert len({t.result for t in post.traces}) == 1
    assert all(len({t.result for t in r.traces}) == 2 for r in post.rounds[:-1])


def test_the_secretary_stops_at_the_first_round_that_agrees_more() -> None:
    """By hand from the rounds: 2 of 6 are looked at, then the first lower entropy, or the last."""
    for seed in range(30):
        engine = Rounds(Forward(6), Secretary(6, explore=1 / 3), most=6)
        post = infer(agree, 0.7, engine=engine, seed=seed)
        assert isinstance(post, Rounded)
        votes = [[t.result for t in r.traces].count("4") for r in post.rounds]
        spread = [abs(v - 3) for v in votes]  # two answers: the entropy falls with it
        best = max(spread[:2])
        due = next((i for i in range(2, len(votes)) if spread[i] > best), len(votes) - 1)
        assert post.stopped.batches == due + 1
        assert due + 1 == 6 or spread[due] > best


def test_the_ledger_counts_all_rounds_and_budgets_stop() -> None:
    lm = TableLM.random(["a", "b", "<eos>"], seed=0)

    @program
    def text(earlier: Any = ()) -> str:
        return str(sample("t", LM("".join(earlier)[:2], max_tokens=2)))

    post = infer(text, engine=Rounds(Forward(4), Budget(calls=11), most=9), lm=lm, seed=0)
    assert isinstance(post, Rounded)
    assert post.stopped.batches == 3
    assert sum(m.calls for m in post.ledger.models.values()) == 12


def test_errors() -> None:
    with pytest.raises(BadArgument, match="an engine and a rule"):
        Rounds(Forward(4), "secretary")  # type: ignore[arg-type]

    @program
    def deaf() -> int:
        return 1

    with pytest.raises(BadArgument, match="earlier"):
        infer(deaf, engine=Rounds())
