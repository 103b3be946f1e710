"""C1: the measure of every fixture program, four ways: by hand, plain calls, enumeration, scores."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest

from lmppl import handlers
from lmppl.inference import Enumerate, infer
from lmppl.testing import enumerate_exact

CLOSE = 1e-12


def gap(found: dict[Any, float], expected: dict[Any, float]) -> float:
    return max(
        (abs(found.get(v, 0.0) - expected.get(v, 0.0)) for v in {**found, **expected}), default=0.0
    )


def enumerated(case: Any, driver: str | None = None) -> dict[Any, float]:
    post = infer(
        case.program, *case.args, engine=Enumerate(), lm=case.lm, driver=driver, on_dead="return"
    )
    out: dict[Any, float] = {}
    for trace, weight in zip(post.traces, post.log_weights.tolist(), strict=True):
        out[trace.result] = out.get(trace.result, 0.0) + math.exp(weight)
    assert abs(math.exp(post.log_evidence) - math.fsum(out.values())) <= CLOSE
    return out


def test_plain_calls_give_the_measure_by_hand(case: Any) -> None:
    assert gap(enumerate_exact(case.program, *case.args, lm=case.lm), case.by_hand()) <= CLOSE


def test_async_programs_mean_the_same(case: Any, async_programs: ModuleType) -> None:
    twin = next(c for c in async_programs.CASES if c.name == case.name)
    assert gap(enumerate_exact(twin.program, *twin.args, lm=twin.lm), case.by_hand()) <= CLOSE


@pytest.mark.parametrize("driver", ["greenlet", "eager"])
def test_enumeration_gives_the_measure_by_hand(case: Any, driver: str) -> None:
    if case.name == "nested":
        pytest.skip("an inner importance sampler is not enumerated by the outer engine")
    assert gap(enumerated(case, driver), case.by_hand()) <= CLOSE


def test_enumeration_of_async_programs(case: Any, async_programs: ModuleType) -> None:
    if case.name == "nested":
        pytest.skip("an inner importance sampler is not enumerated by the outer engine")
    twin = next(c for c in async_programs.CASES if c.name == case.name)
    assert gap(enumerated(twin, "coroutine"), case.by_hand()) <= CLOSE


def test_every_trace_scores_its_own_weight(case: Any) -> None:
    """log γ by `log_density` at the values of a trace = the weight enumeration gave it."""
    if case.name in ("nested", "handled"):
        pytest.skip("its weight contains an estimate, or it hides a site from the values given")
    post = infer(case.program, *case.args, engine=Enumerate(), lm=case.lm, on_dead="return")
    total = 0.0
    for trace, weight in zip(post.traces, post.log_weights.tolist(), strict=True):
        values = {e.address: e.value for e in trace.sites if e.op == "sample"}
        score = handlers.log_density(case.program, values, *case.args, lm=case.lm)
        assert abs(score - weight) <= CLOSE
        assert abs(trace.log_joint - weight) <= CLOSE
        total += math.exp(score)
    assert abs(total - math.fsum(case.by_hand().values())) <= CLOSE


def test_table_lists_its_texts(programs: ModuleType) -> None:
    """`TableLM.enumerate` against a sum over letters."""
    for last in ("", "a", "b"):
        found = programs.AB.enumerate(programs.AB.encode(last), max_tokens=3)
        assert gap(found, programs.gather(programs.strings(last, 3))) <= CLOSE


@pytest.mark.parametrize("name", ["AB", "TWINS", "HALVES", "MERGES"])
def test_tables_add_up(programs: ModuleType, name: str) -> None:
    found = getattr(programs, name).enumerate(max_tokens=3)
    assert abs(math.fsum(found.values()) - 1.0) <= CLOSE
