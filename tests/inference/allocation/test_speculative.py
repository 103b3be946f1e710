"""Speculation: by enumeration of its draws the text has exactly the target's law."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lmppl.errors import BadArgument
from lmppl.inference.allocation.speculative import residual, speculate
from lmppl.lm.table import TableLM
from lmppl.testing import outcomes

WORDS = ["a", "b", "<eos>"]
TARGET = TableLM.random(WORDS, seed=1, name="target")
NEAR = TableLM(
    WORDS,
    {(): [0.3, 0.3, 0.4], (0,): [0.6, 0.3, 0.1], (1,): [0.25, 0.5, 0.25]},
    name="near",
)
FAR = TableLM.random(WORDS, seed=5, zeros=0.4, name="far")
"""It cannot say everything that the target can."""
HARD = TableLM.random(WORDS, seed=8, zeros=0.4, name="hard")
"""It cannot say everything that a draft does."""


def law(max_tokens: int, target: TableLM, draft: TableLM, **options: Any) -> dict[str, float]:
    found: dict[str, float] = {}
    for p, out in outcomes(
        lambda chance: speculate(
            "", target=target, draft=draft, max_tokens=max_tokens, chance=chance, **options
        )
    ):
        found[out.text] = found.get(out.text, 0.0) + p
    return found


@pytest.mark.parametrize("candidates", [1, 2])
@pytest.mark.parametrize("ahead", [1, 2])
@pytest.mark.parametrize(
    ("target", "draft"),
    [(TARGET, NEAR), (TARGET, FAR), (HARD, NEAR), (TARGET, TARGET)],
    ids=["near", "far", "hard", "itself"],
)
def test_the_law_is_the_targets(
    target: TableLM, draft: TableLM, ahead: int, candidates: int
) -> None:
    length = 2
    exact = target.enumerate(max_tokens=length)
    found = law(length, target, draft, ahead=ahead, candidates=candidates)
    assert set(found) <= set(exact)
    assert max(abs(exact[t] - found.get(t, 0.0)) for t in exact) < 1e-10


def test_three_tokens() -> None:
    exact = TARGET.enumerate(max_tokens=3)
    found = law(3, TARGET, NEAR, ahead=2)
    assert max(abs(exact[t] - found.get(t, 0.0)) for t in exact) < 1e-10


def test_drawing_from_the_target_instead_of_the_residual_is_wrong() -> None:
    """The check sees the usual mistake: after a refusal a draw from p, not from relu(p - q)."""
    p, q = np.array([0.5, 0.2, 0.3]), np.array([0.2, 0.6, 0.2])
    refused = float(np.maximum(q - p, 0.0).sum())
    right = np.minimum(p, q) + refused * residual(p, q)
    wrong = np.minimum(p, q) + refused * p
    assert np.abs(right - p).max() < 1e-15 and np.abs(wrong - p).max() > 0.05


def test_a_good_draft_saves_passes() -> None:
    """Against itself every draft is kept: 12 tokens in 3 passes of 3 drafts and one more each."""
    endless = TableLM(["a", "b"], {(): [0.5, 0.5], (0,): [0.9, 0.1], (1,): [0.3, 0.7]})
    out = speculate("", target=endless, draft=endless, max_tokens=12, ahead=3)
    assert len(out.ids) == 12 and out.target_passes == 3 and out.accepted == out.drafted == 9
    other = TableLM(["a", "b"], {(): [0.5, 0.5], (0,): [0.1, 0.9], (1,): [0.9, 0.1]})
    passes = {
        candidates: np.mean(
            [
                speculate(
                    "", target=endless, draft=other, max_tokens=12, ahead=3, seed=s,
                    candidates=candidates,
                ).target_passes
                for s in range(40)
            ]
        )
        for candidates in (1, 3)
    }  # fmt: skip
    assert 3 < passes[1] < 12 and 3 < passes[3] < 12


def test_same_seed_same_text() -> None:
    one, two = (speculate("", target=TARGET, draft=NEAR, max_tokens=8, seed=3) for _ in range(2))
    assert one == two


@pytest.mark.parametrize("options", [{"ahead": 0}, {"candidates": 0}, {"max_tokens": 0}])
def test_bad_input(options: dict[str, Any]) -> None:
    with pytest.raises(BadArgument, match="positive"):
        speculate("", target=TARGET, draft=NEAR, **options)
    with pytest.raises(BadArgument, match="other token ids"):
        speculate("", target=TARGET, draft=TableLM(["a", "<eos>"], {(): [0.5, 0.5]}))
