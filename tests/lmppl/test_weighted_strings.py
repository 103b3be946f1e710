"""The token loop under a potential beside the one under masks: same noise, same strings, same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lmppl
from lmppl import LM, program, sample
from lmppl.inference import SMC, Engine, Importance, infer, tokens
from lmppl.lm.base import LanguageModel
from lmppl.lm.table import TableLM
from lmppl.token_potentials import AWRS, Exact, Matches, OnText, TopK

LETTERS = TableLM.random([*"abcdefgh", "ab", "cd", "<eos>"], seed=11)
ENGINES: list[Engine] = [Importance(16), SMC(16, resample_at=tokens(2), ess_threshold=0.9)]


def run(lm: LanguageModel, engine: Engine, **options: Any) -> Any:
    @program
    def string() -> str:
        return str(sample("x", LM("a", **options)))

    return infer(string, engine=engine, lm=lm, seed=3)


def check_same(lm: LanguageModel, regex: str, atol: float, **options: Any) -> None:
    for engine in ENGINES:
        masks = run(lm, engine, regex=regex, **options)
        exact = run(lm, engine, regex=regex, sampler=Exact(), **options)
        assert [t["x"] for t in masks.traces] == [t["x"] for t in exact.traces]
        np.testing.assert_allclose(masks.log_weights, exact.log_weights, atol=atol)


@pytest.mark.parametrize("limit", ["prefix", "eos", "kill"])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 3}, {"top_p": 0.5}])
def test_exact_is_masking(limit: str, settings: dict[str, Any]) -> None:
    check_same(LETTERS, "[a-d]+", 1e-9, max_tokens=5, limit=limit, **settings)
    if not settings:  # truncation would seldom draw the stop, and every string would die
        check_same(LETTERS, "[a-d]+", 1e-9, max_tokens=5, limit=limit, stop="h")


@pytest.mark.parametrize("sampler", [None, AWRS(), AWRS(2), TopK(3)], ids=str)
def test_a_particle_does_not_depend_on_the_others(sampler: Any) -> None:
    options = {"potential": Matches("[a-d]+") * OnText(len), "sampler": sampler, "max_tokens": 5}
    few, many = (run(LETTERS, Importance(n), **options) for n in (3, 9))
    assert [t["x"] for t in few.traces] == [t["x"] for t in many.traces[:3]]


def test_strings_with_and_without_a_potential_share_a_batch() -> None:
    @program
    def either() -> str:
        law: dict[str, Any] = (
            {"potential": OnText(len)} if sample("k", lmppl.Bernoulli(0.5)) else {}
        )
        return str(sample("x", LM("a", max_tokens=3, **law)))

    post = infer(either, engine=Importance(12), lm=LETTERS, seed=0)
    for trace, weight in zip(post.traces, post.log_weights, strict=True):
        assert (abs(weight) < 1e-12) == (not trace["k"] or trace["x"] == "")


def test_a_bounded_model_takes_them_in_parts() -> None:
    class Bounded(TableLM):
        bounded = True

        def fits(self, contexts: Any, *_: Any, **__: Any) -> int:
            return min(len(contexts), 2)

    lm = Bounded(LETTERS.words[:-1] + ["<eos>"], {(): [1 / 11] * 11})
    free = TableLM(LETTERS.words[:-1] + ["<eos>"], {(): [1 / 11] * 11})
    options = {"potential": OnText(len), "max_tokens": 4}
    one, two = (run(m, Importance(7), **options) for m in (lm, free))
    assert [t["x"] for t in one.traces] == [t["x"] for t in two.traces]


@pytest.mark.slow
def test_exact_is_masking_on_smollm2() -> None:
    lm = lmppl.load("smollm2")
    check_same(lm, r" [A-Z][a-z]+(, [A-Z][a-z]+)?\.", 1e-3, max_tokens=8)


@pytest.mark.slow
def test_json_of_smollm2_is_json() -> None:
    import json

    schema = {"type": "object", "properties": {"color": {"enum": ["red", "green", "blue"]}},
              "required": ["color"], "additionalProperties": False}  # fmt: skip
    for sampler in (None, AWRS()):
        post = run(
            lmppl.load("smollm2"), ENGINES[1], json_schema=schema, sampler=sampler, max_tokens=16
        )
        for text in post.marginal():
            assert json.loads(text)["color"] in ("red", "green", "blue")
