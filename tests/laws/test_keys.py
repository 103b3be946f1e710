"""Keyed randomness: a draw is a function of what is drawn, never of when or beside what."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lmppl import LM, factor, program, sample
from lmppl.inference import SMC, Importance, Posterior, infer, infer_many, tokens
from lmppl.random import GumbelMax
from lmppl.testing import check_keys


def tapes(post: Posterior) -> list[Any]:
    """All that was drawn and how it was weighed, bit by bit."""
    found = []
    for trace, weight in zip(post.traces, post.log_weights.tolist(), strict=True):
        sites: list[Any] = []
        for e in trace.sites:
            if e.op != "jobs":
                ids = getattr(e.value, "token_ids", None)
                sites.append(
                    (e.op, e.address, repr(e.value), None if ids is None else ids.tolist())
                )
                sites.append((e.logp, e.logq, e.logw))
        found.append((sites, weight, repr(trace.result)))
    return [post.log_evidence, *found]


ENGINES = (
    Importance(particles=5),
    SMC(particles=5, always=True),
    SMC(particles=5, always=True, resampling="multinomial", resample_at=tokens(1)),
)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_same_tapes_under_every_driver(case: Any, engine: Any, async_programs: ModuleType) -> None:
    twin = next(c for c in async_programs.CASES if c.name == case.name)
    if case.name == "impossible":
        pytest.skip("no particle lives to have a tape")

    def run(chosen: Any, driver: str) -> list[Any]:
        return tapes(
            infer(chosen.program, *chosen.args, engine=engine, lm=chosen.lm, seed=4,
                  driver=driver, on_dead="return")
        )  # fmt: skip

    expected = run(case, "greenlet")
    assert run(case, "greenlet") == expected
    assert run(case, "eager") == expected
    for driver in ("greenlet", "eager", "coroutine"):
        assert run(twin, driver) == expected


@program
def story(start: str) -> Any:
    x = sample("x", LM(start, max_tokens=3))
    factor("long", 0.5 * len(x))
    y = sample("y", LM(x, max_tokens=2, temperature=1.4))
    factor("even", -0.5 * (len(y) % 2))
    return x, y


QUESTIONS = ["", "a", "b", "ab", "ba", "aa"]


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize("concurrency", [1, 2, 3, 64])
def test_questions_do_not_depend_on_their_batch(
    programs: ModuleType, engine: Any, concurrency: int
) -> None:
    """Any concurrency, any order, alone or together: the tapes of a question are the same."""
    options: dict[str, Any] = {"engine": engine, "lm": programs.AB, "seed": 9}
    alone = [
        infer_many(story, [q], ids=[q or "nothing"], concurrency=1, **options)[0] for q in QUESTIONS
    ]
    order = [3, 0, 5, 1, 4, 2]
    together = infer_many(
        story, [QUESTIONS[i] for i in order], ids=[QUESTIONS[i] or "nothing" for i in order],
        concurrency=concurrency, **options,
    )  # fmt: skip
    for i, post in zip(order, together, strict=True):
        assert tapes(post) == tapes(alone[i])


def test_one_seed_fixes_everything(programs: ModuleType) -> None:
    """Also what stands around the run: global generators and hash order play no part."""
    engine = SMC(particles=6, always=True)
    first = infer(story, "a", engine=engine, lm=programs.AB, seed=1)
    random.seed(99)
    np.random.seed(99)
    random.random()
    again = infer(story, "a", engine=engine, lm=programs.AB, seed=1)
    other = infer(story, "a", engine=engine, lm=programs.AB, seed=2)
    assert tapes(first) == tapes(again)
    assert tapes(first) != tapes(other)


@pytest.mark.parametrize("engine", [Importance, SMC], ids=["importance", "smc"])
def test_more_particles_keep_the_first_ones(programs: ModuleType, engine: Any) -> None:
    """Before the first resampling, N = 8 equals the first 8 of N = 16."""
    options = {} if engine is Importance else {"ess_threshold": 0.0}
    few = infer(story, "", engine=engine(particles=8, **options), lm=programs.AB, seed=5)
    many = infer(story, "", engine=engine(particles=16, **options), lm=programs.AB, seed=5)
    assert tapes(few)[1:] == tapes(many)[1:9]


def test_until_the_first_resampling_smc_draws_as_importance(programs: ModuleType) -> None:
    first = infer(story, "", engine=Importance(particles=6), lm=programs.AB, seed=5)
    resampled = infer(story, "", engine=SMC(particles=6, always=True), lm=programs.AB, seed=5)
    ancestors = resampled.history.ancestors[0] if resampled.history is not None else None
    assert ancestors is not None
    drawn = [t["x"] for t in first.traces]
    assert {t["x"] for t in resampled.traces} <= set(drawn)
    assert [drawn[a] for a in ancestors] != []


def test_offspring_draw_differently(programs: ModuleType) -> None:
    """Twelve copies of one particle go twelve ways: as many values as independent draws have."""

    @program
    def copies() -> Any:
        sample("x", LM("", max_tokens=1))
        factor("same", 0.0)
        return sample("y", LM("a", max_tokens=6))

    def first_only(weights: Any, key: int, chance: Any) -> Any:
        return np.zeros(len(weights), dtype=np.int64)

    post = infer(
        copies,
        engine=SMC(particles=12, always=True, resampling=first_only, resample_at="factor"),
        lm=programs.AB,
        seed=0,
    )
    assert post.unique_ancestors == 1
    assert len({t["x"] for t in post.traces}) == 1
    independent = {
        t["y"] for t in infer(copies, engine=Importance(12), lm=programs.AB, seed=0).traces
    }
    assert len({t["y"] for t in post.traces}) >= max(2, len(independent) - 3)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_no_key_is_used_twice(case: Any, engine: Any) -> None:
    assert check_keys(case.program, *case.args, engine=engine, lm=case.lm) >= 5


def test_no_key_is_used_twice_among_questions(programs: ModuleType) -> None:
    """Different questions of one call, and different seeds, have different keys."""
    seen: list[int] = []

    class Noting(GumbelMax):
        def categorical(self, keys: Any, log_weights: Any) -> Any:
            seen.extend(keys.tolist())
            return super().categorical(keys, log_weights)

    for seed in (0, 1):
        infer_many(
            story, QUESTIONS, engine=Importance(particles=3), lm=programs.AB, seed=seed,
            chance=Noting(),
        )  # fmt: skip
    assert len(seen) == len(set(seen)) > 50
