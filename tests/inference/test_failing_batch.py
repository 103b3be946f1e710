"""A backend that raises for one question's context: that question fails, and no other.

The questions of a batch are tried one at a time after a failure. What the others get is what they
get without the bad one: the same draws, weights and evidence, bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lmppl import LM, Choice, factor, observe, plate, program, sample
from lmppl.errors import LmpplError
from lmppl.inference import SMC, Importance, Posterior, infer_many, infer_stream, tokens
from lmppl.lm.base import Drawn
from lmppl.lm.table import TableLM, TableRows
from lmppl.random import Chance
from lmppl.types import Bools, Floats, Ids, Keys

TOKENS = ["a", "b", "c", "!", "<eos>"]
TABLE = {(): [0.4, 0.3, 0.15, 0.05, 0.1], (0,): [0.2, 0.5, 0.1, 0.1, 0.1]}
BAD = 3
"""The token whose context the backend cannot take."""


class Broken(Exception):
    """What a backend raises."""


class Failing(TableLM):
    """A table that raises where a context begins with `BAD`: at once, or when the n-th token is due."""

    after = 0

    def open(self, contexts: Sequence[Ids]) -> TableRows:
        rows = super().open(contexts)
        bad = [c for c in contexts if c[:1] == (BAD,)]
        if not bad:
            return rows
        if self.after == 0:
            raise Broken("out of memory")
        draw, left = rows.draw, [self.after]

        def limited(keys: Keys, laws: Any, mask: Bools | None, chance: Chance) -> Drawn:
            left[0] -= 1
            if left[0] < 0:
                raise Broken("out of memory")
            return draw(keys, laws, mask, chance)

        rows.draw = limited  # type: ignore[method-assign]
        return rows

    def score(self, contexts: Sequence[Ids], *rest: Any) -> list[Floats]:
        if any(c[:1] == (BAD,) for c in contexts):
            raise Broken("out of memory")
        return super().score(contexts, *rest)


@program
def story(start: str) -> Any:
    """Draws, scores and branches."""
    x = sample("x", LM(start, max_tokens=4, temperature=1.5))
    factor("soft", 0.3 * len(x))
    parts = plate("part", ("a", start), lambda s: sample("y", LM(s, max_tokens=3)))
    observe("seen", Choice(start, ["a", "b"]), "a")
    return x, *parts


QUESTIONS = ["a", "ab", "!a", "ba", "!", "c"]
ENGINES = (
    Importance(particles=4),
    SMC(particles=4, always=True),
    SMC(particles=4, always=True, resample_at=tokens(2)),
    SMC(particles=4, always=True, resample_at=tokens(3)),
)


def same(a: Posterior, b: Posterior) -> None:
    assert a.log_evidence == b.log_evidence
    np.testing.assert_array_equal(a.log_weights, b.log_weights)
    assert [t.result for t in a.traces] == [t.result for t in b.traces]


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_only_the_question_that_causes_it_fails(engine: Any, after: int) -> None:
    sound, lm = TableLM(TOKENS, TABLE), Failing(TOKENS, TABLE)
    lm.after = after
    expected = infer_many(story, QUESTIONS, engine=engine, lm=sound, seed=2)
    found = infer_many(story, QUESTIONS, engine=engine, lm=lm, seed=2, on_question_error="return")
    for question, wanted, got in zip(QUESTIONS, expected, found, strict=True):
        if question.startswith("!"):
            assert isinstance(got, Broken)
        else:
            assert isinstance(got, Posterior)
            same(wanted, got)


def test_errors_keep_their_kind_and_come_when_all_have_ended() -> None:
    lm = Failing(TOKENS, TABLE)
    with pytest.raises(Broken) as caught:
        infer_many(story, QUESTIONS, engine=ENGINES[0], lm=lm, seed=2)
    results = caught.value.results  # type: ignore[attr-defined]
    kinds = [isinstance(r, Broken) for r in results]
    assert kinds == [q.startswith("!") for q in QUESTIONS]
    assert not isinstance(caught.value, LmpplError)


def test_the_end_of_memory_ends_the_run() -> None:
    """It is nobody's own mistake, and going on would hide it."""

    class Full(Failing):
        def open(self, contexts: Sequence[Ids]) -> TableRows:
            raise MemoryError

    with pytest.raises(MemoryError):
        list(infer_stream(story, QUESTIONS, engine=ENGINES[0], lm=Full(TOKENS, TABLE)))
