"""Tables that a language model fills, proposals, texts as states; the model is a table itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lmppl.errors import BadArgument
from lmppl.inference.planning import CPT, FactoredMDP, Reward, inference_value
from lmppl.inference.planning.language import (
    Interned,
    LanguageCPT,
    fill,
    pad,
    propose,
    text_problem,
)
from lmppl.lm.table import TableLM

# what follows a prompt that ends in its letter
MODEL = TableLM(
    ["a", "b", "c", "x", "y", "\n"],
    {
        (): [0.2, 0.2, 0.2, 0.2, 0.2, 0],
        (3,): [0.5, 0.25, 0.25, 0, 0, 0], (4,): [0.1, 0.1, 0.8, 0, 0, 0],
        (0,): [0, 0, 0, 0.5, 0.5, 0], (1,): [0, 0, 0, 0, 1, 0], (2,): [0, 0, 0, 1, 0, 0],
    },
    order=1, name="letters",
)  # fmt: skip
SURFACES = {"A": "a", "B": "b", "C": "c"}


def test_rows_are_the_model_s_scores_over_the_labels() -> None:
    asked = LanguageCPT(["s"], lambda at, act: str(act), SURFACES)
    found = fill({"s": "ABC"}, ["x", "y"], {"s": asked}, {"s": "A"}, 2, lm=MODEL)
    np.testing.assert_allclose(
        found.transitions["s"].table[1], [[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], atol=1e-12
    )
    assert found.scored == 2 and found.rows == 6
    mdp = FactoredMDP({"s": "ABC"}, ["x", "y"], found.transitions, [Reward(["s"], [0, 0, 1])], timing="successor")  # fmt: skip
    assert inference_value(mdp, 1, risk=0.0) == pytest.approx(0.8)


def test_the_temperature_and_closed_labels() -> None:
    """Two labels of three: normalised over them; at temperature 1/2 squared before."""
    asked = LanguageCPT(["s"], lambda at, act: "x", {"A": "a", "B": "b"}, temperature=0.5)
    found = fill({"s": "AB"}, 1, {"s": asked}, {"s": "A"}, 1, lm=MODEL)
    np.testing.assert_allclose(found.transitions["s"].table[0, 0], [0.8, 0.2], atol=1e-12)
    assert found.temperatures == {"s": 0.5}


def test_only_rows_that_can_be_reached_are_scored() -> None:
    """A clock of ten hours; the text depends on the hour, and three actions see three hours."""
    clock = np.zeros((10, 1, 10))
    clock[np.arange(10), 0, (np.arange(10) + 1) % 10] = 1.0
    prompts: list[Any] = []

    def prompt(at: Any, act: Any) -> str:
        prompts.append(at["hour"])
        return f"{'a' * at['hour']}x"

    tables: dict[str, Any] = {"hour": CPT(["hour"], clock), "word": LanguageCPT(["hour"], prompt, SURFACES)}  # fmt: skip
    memo: Any = {}
    found = fill({"hour": 10, "word": "ABC"}, 1, tables, {"hour": 4, "word": "A"}, 3, lm=MODEL, memo=memo)  # fmt: skip
    assert set(prompts) == {4, 5, 6} and found.scored == 3 and found.rows == 10
    np.testing.assert_allclose(found.transitions["word"].table[0, 0], 1 / 3)
    again = fill({"hour": 10, "word": "ABC"}, 1, tables, {"hour": 4, "word": "A"}, 4, lm=MODEL, memo=memo)  # fmt: skip
    assert again.scored == 1 and len(memo) == 4


def test_labels_without_a_text_are_refused() -> None:
    with pytest.raises(BadArgument, match="one text for each label"):
        fill({"s": "AB"}, 1, {"s": LanguageCPT([], lambda at, act: "x", SURFACES)}, {"s": "A"}, 1, lm=MODEL)  # fmt: skip


def test_proposals_are_brought_to_one_form() -> None:
    model = TableLM(["go", " Go ", "stay", "\n"], {(): [0.3, 0.3, 0.4, 0.0]}, order=1)
    found = propose("", 64, lm=model, max_tokens=1)
    assert set(found.actions) == {"go", "stay"} and sum(found.shares) == pytest.approx(1.0)
    assert found == propose("", 64, lm=model, max_tokens=1)
    assert propose("", 8, lm=model, max_tokens=1, canonical=lambda t: "one").actions == ("one",)


def test_padding() -> None:
    rows, mask = pad([["a", "b"], ["c"]], width=3)
    assert rows == [("a", "b", None), ("c", None, None)]
    assert mask.tolist() == [[True, True, False], [True, False, False]]
    for bad in ([["a"], []], [["a", "b"]]):
        with pytest.raises(BadArgument):
            pad(bad, width=1)


def test_interning() -> None:
    known = Interned()
    assert [known(t) for t in ("a", "b", "a")] == [0, 1, 0] and len(known) == 2


def test_a_graph_of_texts_is_solved_exactly() -> None:
    """Build a word: each action adds a letter, a slip doubles it; the graph is finite."""
    pytest.importorskip("jax")
    from lmppl.inference.planning import plan

    def draw(text: str, action: str, key: int) -> str:
        return text + action * (1 + key % 2)

    def gain(text: str, action: str) -> float:
        return float(text == "ab") if action == "end" else 0.0

    made = text_problem(
        "", lambda t: [] if t.endswith("end") else ["a", "b", "end"], draw, gain, horizon=3, width=8
    )
    found = plan(made.mdp, "", 3)
    law = made.named("", found.action_probs)
    assert law["a"] == 1.0
    first = np.mean([t == "a" for t in [draw("", "a", k) for k in _keys("", 8)]])
    second = np.mean([draw("a", "b", k) == "ab" for k in _keys("a", 8)])
    assert found.value == pytest.approx(first * second)
    assert not plan(made.mdp, "", 3).policy(0, "")[2]


def _keys(text: str, width: int) -> list[int]:
    from lmppl.random import fold, hash_text

    return [fold(0, hash_text(text), k) for k in range(width)]


def test_too_many_texts() -> None:
    with pytest.raises(BadArgument, match="mcts"):
        text_problem("", lambda t: "ab", lambda t, a, k: f"{t}{a}{k % 997}", lambda t, a: 0.0, horizon=9, width=9)  # fmt: skip
