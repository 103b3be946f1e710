"""Strings that do not fit in memory at once: the same strings, through one running batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from lmppl import LM, program, sample  # noqa: E402
from lmppl.constraints import Constraint  # noqa: E402
from lmppl.inference import SMC, Importance, infer  # noqa: E402
from lmppl.inference import tokens as every  # noqa: E402
from lmppl.lm.base import TokenLaw  # noqa: E402
from lmppl.lm.continuous import advance_queue  # noqa: E402
from lmppl.lm.generate import StringLaw, StringState, advance  # noqa: E402
from lmppl.random import GumbelMax, fold  # noqa: E402
from lmppl.types import Ids  # noqa: E402


@pytest.fixture
def pair(load_file: Callable[[Path], ModuleType], root: Path) -> Any:
    """A tiny Llama."""
    small = load_file(root / "tests" / "lmppl" / "test_torch_lm.py")
    return small.Pair("llama")


def strings(laws: list[StringLaw], n: int) -> list[StringState]:
    rng = np.random.default_rng(3)
    prompts: list[Ids] = [tuple(rng.integers(3, 262, int(m)).tolist()) for m in (9, 20, 4)]
    return [StringState(laws[i % len(laws)], prompts[i % 3], fold(11, i)) for i in range(n)]


def outcome(states: list[StringState]) -> list[tuple[Any, ...]]:
    return [
        (tuple(s.ids), s.finish, round(s.logw, 4), round(s.logq, 4), round(s.end_logp, 4))
        for s in states
    ]


def same(states: list[StringState], others: list[StringState]) -> None:
    for a, b in zip(states, others, strict=True):
        assert (a.ids, a.finish) == (b.ids, b.finish)
        for x, y in ((a.logw, b.logw), (a.logq, b.logq), (a.end_logp, b.end_logp)):
            assert x == y or x == pytest.approx(y, abs=1e-4)


LAWS = {
    "prefix": [StringLaw(12, stop=("e",)), StringLaw(5)],
    "eos": [StringLaw(6, limit="eos"), StringLaw(9, stop=("a", "t"), limit="eos")],
    "tempered": [StringLaw(8, token=TokenLaw(temperature=0.5, top_k=9, mixture=0.1))],
}


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("limit", [None, 3])
def test_a_queue_draws_the_same_strings(pair: Any, name: str, limit: int | None) -> None:
    """Memory for about 5 of 30 strings: joins and leaves all the way, equal results."""
    whole = strings(LAWS[name], 30)
    advance(pair.lm, whole, GumbelMax(), limit)
    pair.lm.clear_cache()
    pair.lm.live_bytes = 160 * pair.lm.network.layout.token_bytes
    parts = strings(LAWS[name], 30)
    left = [12 if limit is None else limit] * 30
    assert 1 <= pair.lm.fits([s.context for s in parts], left) < 12
    sizes = watch(pair.lm)
    advance(pair.lm, parts, GumbelMax(), limit)
    same(parts, whole)
    assert 1 < max(sizes) < 30
    if limit is not None:  # what was stopped in the middle goes on
        advance(pair.lm, parts, GumbelMax())
        advance(pair.lm, whole, GumbelMax())
        same(parts, whole)


def watch(lm: Any) -> list[int]:
    """Rows of every pass from now on."""
    sizes: list[int] = []
    lm.network.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return sizes


def test_rows_join_while_others_run(pair: Any) -> None:
    """Passes of 8 rows stay nearly full: a queue is not a sequence of batches."""
    laws = [StringLaw(n) for n in (2, 14, 3, 9, 2, 5, 7, 2)]
    states = strings(laws, 64)
    slots = 8 * (14 + 8) + 33
    pair.lm.live_bytes = slots * pair.lm.network.layout.token_bytes
    passes = advance_queue(pair.lm, states, GumbelMax())
    drawn = sum(len(s.ids) for s in states)
    batches = sum(max(len(s.ids) for s in states[lo : lo + 8]) for lo in range(0, 64, 8))
    assert passes < 0.75 * batches and drawn / passes > 5


def test_constrained_strings_join(pair: Any) -> None:
    lm = pair.lm
    bound = Constraint(lm, "[a-f]{2,9}x")
    laws = [StringLaw(10, constraint=bound), StringLaw(4)]
    whole = strings(laws, 16)
    advance(lm, whole, GumbelMax())
    lm.live_bytes = 120 * lm.network.layout.token_bytes
    parts = strings(laws, 16)
    advance(lm, parts, GumbelMax())
    same(parts, whole)
    assert {s.finish for s in parts[::2]} <= {"constraint", "dead"}


def test_one_string_larger_than_memory_runs_alone(pair: Any) -> None:
    pair.lm.live_bytes = 1
    states = strings([StringLaw(3)], 3)
    advance(pair.lm, states, GumbelMax())
    assert all(s.finish == "length" and len(s.ids) == 3 or s.finish == "eos" for s in states)


@pytest.mark.parametrize("engine", [Importance(24), SMC(24, resample_at=every(2), always=True)])
def test_a_program_larger_than_memory(pair: Any, engine: Any) -> None:
    """The same posterior, trace by trace, whether the particles fit at once or not."""

    @program
    def two() -> str:
        first = sample("first", LM("the cat", max_tokens=6, stop="t"))
        return str(first) + str(sample("second", LM(f"a{first}", max_tokens=4)))

    whole = infer(two, engine=engine, lm=pair.lm, seed=1)
    pair.lm.clear_cache()
    pair.lm.live_bytes = 120 * pair.lm.network.layout.token_bytes
    sizes = watch(pair.lm)
    parts = infer(two, engine=engine, lm=pair.lm, seed=1)
    assert max(sizes) < 24
    assert [t.result for t in parts.traces] == [t.result for t in whole.traces]
    assert parts.log_evidence == pytest.approx(whole.log_evidence, abs=1e-4)
    costs = [p.ledger.models["llama"] for p in (parts, whole)]
    assert costs[0].tokens_out == costs[1].tokens_out and costs[0].passes > costs[1].passes
