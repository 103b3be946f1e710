"""The batch that was closed last rests: some of its rows go on where they stood, or it is settled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from lmppl import LM, program, sample  # noqa: E402
from lmppl.errors import BadArgument  # noqa: E402
from lmppl.inference import SMC, infer, tokens  # noqa: E402

START = ((5, 6, 7), (5, 6, 8), (9, 9))


@pytest.fixture
def pair(load_file: Callable[[Path], ModuleType], root: Path) -> Any:
    """A tiny random Llama of `test_torch_lm.py`, ours and the untouched one."""
    return load_file(root / "tests" / "lmppl" / "test_torch_lm.py").Pair("llama")


def closed(lm: Any) -> tuple[Any, list[tuple[int, ...]]]:
    """A batch that has drawn two tokens, the last of them not computed, and its contexts."""
    rows = lm.open(START)
    rows.push(np.array([11, 12, 13]))
    rows.log_mass([(5,)] * 3, [1.0] * 3)
    rows.push(np.array([21, 22, 23]))
    rows.close()
    return rows, [(*c, 11 + n, 21 + n) for n, c in enumerate(START)]


@pytest.mark.parametrize("index", ([0, 1, 2], [2, 0, 0], [1], [2, 1, 0, 1]), ids=str)
def test_rows_go_on_where_they_stood(pair: Any, index: list[int]) -> None:
    _, contexts = closed(pair.lm)
    before = pair.lm.usage.computed_tokens
    asked = [contexts[i] for i in index]
    rows = pair.lm.open(asked)
    pair.check(rows, asked)
    assert pair.lm.usage.computed_tokens == before + len(set(index))  # the tokens that were pending
    rows.push(np.arange(30, 30 + len(index)))
    asked = [(*c, 30 + n) for n, c in enumerate(asked)]
    pair.check(rows, asked)
    rows.close()
    again = pair.lm.open(asked[:1])
    pair.check(again, asked[:1])


def test_a_context_that_it_has_not_settles_it(pair: Any) -> None:
    """What was computed still serves, as the longest prefix."""
    _, contexts = closed(pair.lm)
    asked = [contexts[0], (*contexts[1], 3), (9,)]
    rows = pair.lm.open(asked)
    pair.check(rows, asked)
    assert pair.lm.usage.computed_tokens < sum(map(len, START)) + 3 + sum(map(len, asked))


def test_the_old_batch_stays_closed(pair: Any) -> None:
    old, contexts = closed(pair.lm)
    rows = pair.lm.open(contexts)
    old.close()
    with pytest.raises(BadArgument, match="these rows are closed"):
        old.log_probs()
    pair.check(rows, contexts)
    assert len(pair.lm.store) == 0  # it runs again: nothing is retained


def test_what_forgets_forgets_it(pair: Any) -> None:
    _, contexts = closed(pair.lm)
    pair.lm.clear_cache()
    before = pair.lm.usage.computed_tokens
    pair.check(pair.lm.open(contexts), contexts)
    assert pair.lm.usage.computed_tokens >= before + len(set().union(*contexts))
    pair.lm.store.budget = 0
    _, contexts = closed(pair.lm)
    assert pair.lm.store.take_up(contexts) is None


def test_a_scoring_finds_its_rows(pair: Any) -> None:
    _, contexts = closed(pair.lm)
    before = pair.lm.usage.cached_tokens
    pair.lm.score(contexts[:1], [(4, 5)], [None], [1.0])
    assert pair.lm.usage.cached_tokens > before
    assert len(pair.lm.store) >= 1


def test_strings_and_counts_are_those_of_batches_that_are_settled(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @program
    def story() -> str:
        return str(sample("story", LM("the cat", max_tokens=6)))

    def run() -> Any:
        pair.lm.clear_cache()
        pair.lm.usage.passes = pair.lm.usage.computed_tokens = pair.lm.usage.cached_tokens = 0
        post = infer(story, engine=SMC(12, resample_at=tokens(1), always=True), lm=pair.lm, seed=4)
        usage = pair.lm.usage
        return [t.result for t in post.traces], (usage.passes, usage.computed_tokens)

    resting = run()
    monkeypatch.setattr(type(pair.lm.store), "take_up", lambda self, contexts: None)
    texts, counts = run()
    assert resting[0] == texts
    assert resting[1] == counts
