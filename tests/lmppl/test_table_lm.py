"""`TableLM` against sums written by hand, and the defects that it exists to show."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmppl.errors import BadArgument, ModelNotFound, UnsupportedValue
from lmppl.lm.base import TokenLaw
from lmppl.lm.load import as_models, load, shared
from lmppl.lm.table import TableLM, token_law
from lmppl.random import Argmax, GumbelMax, fold_array
from lmppl.weights import NEG_INF

P = {(): [0.5, 0.25, 0.25], (0,): [0.1, 0.6, 0.3], (1,): [0.2, 0.2, 0.6]}
TOY = TableLM(["a", "b", "<eos>"], {**P, (2,): [1.0, 0.0, 0.0]})


def test_enumerate_against_a_sum_by_hand() -> None:
    got = TOY.enumerate(max_tokens=2)
    want = {
        "": 0.25,
        "a": 0.5 * 0.3,
        "b": 0.25 * 0.6,
        "aa": 0.5 * 0.1,
        "ab": 0.5 * 0.6,
        "ba": 0.25 * 0.2,
        "bb": 0.25 * 0.2,
    }
    assert got == pytest.approx(want) and sum(got.values()) == pytest.approx(1.0)
    after_a = TOY.enumerate((0,), max_tokens=1)
    assert after_a == pytest.approx({"a": 0.1, "b": 0.6, "": 0.3})


def test_order_two_reads_two_tokens_back() -> None:
    lm = TableLM(
        ["a", "b", "<eos>"],
        {(): [1, 0, 0], (0,): [0, 1, 0], (0, 1): [0.25, 0, 0.75], (1, 0): [0, 0, 1]},
        order=2,
    )
    assert lm.enumerate(max_tokens=4) == pytest.approx({"ab": 0.75, "aba": 0.25})
    rows = lm.open([(0, 1), (1, 0), (1, 1, 0, 1)])
    np.testing.assert_allclose(
        np.exp(rows.log_probs()), [[0.25, 0.0, 0.75], [0.0, 0.0, 1.0], [0.25, 0.0, 0.75]]
    )


def test_a_missing_history_falls_back_to_its_own_end() -> None:
    lm = TableLM(["a", "b"], {(): [0.5, 0.5], (1,): [0.9, 0.1]}, order=2)
    rows = lm.open([(0, 1), (1, 0), ()])
    np.testing.assert_allclose(np.exp(rows.log_probs()), [[0.9, 0.1], [0.5, 0.5], [0.5, 0.5]])


def test_rows_advance_as_if_opened_anew() -> None:
    lm = TableLM.random(["a", "b", "c", "<eos>"], seed=3, order=2, zeros=0.2)
    rows = lm.open([(), (0,), (1, 2)])
    rows.push(np.array([2, 1, 0]))
    np.testing.assert_array_equal(rows.log_probs(), lm.open([(2,), (0, 1), (1, 2, 0)]).log_probs())
    rows.select(np.array([2, 2, 0]))
    np.testing.assert_array_equal(
        rows.log_probs(), lm.open([(1, 2, 0), (1, 2, 0), (2,)]).log_probs()
    )
    sets = [(0, 1), (3,), ()]
    masses = rows.log_mass(sets, [1.0, 1.0, 1.0])
    p = np.exp(rows.log_probs())
    assert masses.tolist() == pytest.approx([np.log(p[0, :2].sum()), np.log(p[1, 3]), NEG_INF])


def test_score_is_the_chain_rule() -> None:
    rows = TOY.score([(), (0,), ()], [(0, 1), (), (2,)], [(2,), (0, 1), None], [1.0, 1.0, 1.0])
    assert rows[0].tolist() == pytest.approx([math.log(0.5), math.log(0.6), math.log(0.6)])
    assert rows[1].tolist() == pytest.approx([math.log(0.7)])
    assert rows[2].tolist() == pytest.approx([math.log(0.25)])


@pytest.mark.parametrize("temperature", [0.1, 0.7, 2.0])
def test_probabilities_at_a_temperature_sum_to_one(temperature: float) -> None:
    """A peer's log_prob is not normalised at temperatures other than 1."""
    law = TokenLaw(temperature=temperature, target_temperature=temperature)
    logp, logq = token_law(TOY.table, law, None)
    np.testing.assert_allclose(np.exp(logp).sum(axis=1), 1.0, atol=1e-12)
    assert (logp == logq).all()
    scored = TOY.score([()], [(0,)], [None], [temperature])[0]
    assert scored.tolist() == pytest.approx([logp[0, 0]])


def test_the_token_law_by_hand() -> None:
    row = np.log(np.array([[0.4, 0.3, 0.2, 0.1]]))
    top2 = token_law(row, TokenLaw(top_k=2), None)
    np.testing.assert_allclose(np.exp(top2[1]), [[4 / 7, 3 / 7, 0, 0]])
    np.testing.assert_allclose(top2[0], row)
    nucleus = token_law(row, TokenLaw(top_p=0.65), None)[1]
    np.testing.assert_allclose(np.exp(nucleus), [[4 / 7, 3 / 7, 0, 0]])
    mixed = token_law(row, TokenLaw(top_k=1, mixture=0.5), None)[1]
    np.testing.assert_allclose(np.exp(mixed), [[0.7, 0.15, 0.1, 0.05]])
    mask = np.array([[False, True, True, False]])
    np.testing.assert_allclose(np.exp(token_law(row, TokenLaw(), mask)[1]), [[0, 0.6, 0.4, 0]])
    # a truncation that leaves no allowed id falls back to the masked row
    lost = token_law(row, TokenLaw(top_k=1), mask)[1]
    np.testing.assert_allclose(np.exp(lost), [[0, 0.6, 0.4, 0]])
    ties = token_law(np.log(np.full((1, 4), 0.25)), TokenLaw(top_k=2), None)[1]
    np.testing.assert_allclose(np.exp(ties), [[0.5, 0.5, 0, 0]])  # ties by id
    assert TokenLaw(top_p=0.9).truncates and not TokenLaw(top_p=0.9, mixture=0.1).truncates


def test_draws_report_both_laws() -> None:
    rows = TOY.open([()] * 500)
    keys = fold_array(np.full(500, 7, np.uint64), np.arange(500, dtype=np.uint64))
    law = TokenLaw(temperature=0.5)
    drawn = rows.draw(keys, [law] * 500, None, GumbelMax())
    logp, logq = token_law(TOY.table[:1], law, None)
    np.testing.assert_allclose(drawn.logp, logp[0, drawn.tokens])
    np.testing.assert_allclose(drawn.logq, logq[0, drawn.tokens])
    greedy = rows.draw(keys, [TokenLaw()] * 500, None, Argmax())
    assert set(greedy.tokens.tolist()) == {0}


def test_rows_of_different_laws_share_a_batch() -> None:
    laws = [TokenLaw(), TokenLaw(temperature=3.0), TokenLaw(top_k=1)]
    keys = np.array([1, 2, 3], np.uint64)
    together = TOY.open([()] * 3).draw(keys, laws, None, GumbelMax())
    for i, law in enumerate(laws):
        alone = TOY.open([()]).draw(keys[i : i + 1], [law], None, GumbelMax())
        assert alone.tokens[0] == together.tokens[i] and alone.logq[0] == together.logq[i]


def test_a_row_without_an_allowed_token_says_so() -> None:
    mask = np.array([[False, True, False], [True, True, True]])
    drawn = TOY.open([(2,), (2,)]).draw(
        np.array([1, 2], np.uint64), [TokenLaw()] * 2, mask, GumbelMax()
    )
    assert drawn.tokens.tolist() == [-1, 0]
    assert drawn.logq.tolist() == [NEG_INF, 0.0]


# -- bytes --------------------------------------------------------------------------------------


def test_half_characters_two_surfaces_and_merges() -> None:
    euro = "€".encode()
    lm = TableLM(["a", "b", "ab", b"a", euro[:1], euro[1:], "<eos>"], {(): [1 / 7] * 7})
    assert lm.encode("ab") == (2,) and lm.encode("aab") == (0, 2)  # longest match, lower id
    assert lm.encode("€") == (4, 5) and lm.decode((4, 5)) == "€"
    assert lm.decode((4,)) == "\ufffd" and lm.decode((3, 0, 6)) == "aa"
    assert lm.token_bytes(6) == b"" and lm.special_ids == frozenset({6})
    ambiguous = lm.enumerate(max_tokens=2)["ab"]
    assert ambiguous == pytest.approx(3 / 49)  # [ab, eos], and [a, b] with either a
    assert math.isclose(sum(lm.enumerate(max_tokens=2).values()), 1.0)


def test_prompts_are_read_leniently_and_values_strictly() -> None:
    assert TOY.encode("x a?b") == (0, 1) and TOY.context("") == ()
    assert TOY.spell("ab") == (0, 1) and TOY.spell("") == ()
    for text in ("a b", "é", "ab!", "<eos>"):
        with pytest.raises(UnsupportedValue, match="spell"):
            TOY.spell(text)


def test_text_never_becomes_the_end_token() -> None:
    lm = TableLM(["<", "e", "o", "s", ">", "<eos>"], {(): [1 / 6] * 6})
    assert 5 not in lm.encode("<eos>") and lm.decode(lm.encode("<eos>")) == "<eos>"


def test_a_vocabulary_is_known_by_its_bytes() -> None:
    twin = TableLM(["a", "b", "<eos>"], {(): [1, 0, 0]}, name="twin")
    other = TableLM(["a", "c", "<eos>"], {(): [1, 0, 0]})
    assert twin.vocabulary_id == TOY.vocabulary_id != other.vocabulary_id
    assert len({twin.fingerprint, TOY.fingerprint, other.fingerprint}) == 3
    assert TOY.fingerprint == TableLM(["a", "b", "<eos>"], {**P, (2,): [1, 0, 0]}).fingerprint


# -- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "table", "options"),
    [
        (["a", "b"], {(): [0.5, 0.4]}, {}),
        (["a", "b"], {(): [0.5, 0.5, 0.0]}, {}),
        (["a", "b"], {(): [1.5, -0.5]}, {}),
        (["a", "b"], {(): [math.nan, 1.0]}, {}),
        (["a", "b"], {(0,): [0.5, 0.5]}, {}),
        (["a", "b"], {(): [0.5, 0.5], (2,): [0.5, 0.5]}, {}),
        (["a", "b"], {(): [0.5, 0.5], (0, 0): [0.5, 0.5]}, {}),
        (["a", "b"], {(): [0.5, 0.5]}, {"order": 3}),
        ([], {(): []}, {}),
    ],
)
def test_a_table_that_is_none_is_refused(tokens: Any, table: Any, options: Any) -> None:
    with pytest.raises(BadArgument):
        TableLM(tokens, table, **options)


def test_json_and_the_names_that_load(tmp_path: Path) -> None:
    file = tmp_path / "toy.json"
    data = {"tokens": ["a", "<eos>"], "table": {"": [0.5, 0.5], "0": [0.0, 1.0]}, "name": "toy"}
    file.write_text(json.dumps(data))
    lm = load(f"table:{file}")
    assert isinstance(lm, TableLM)
    assert lm.enumerate(max_tokens=3) == pytest.approx({"": 0.5, "a": 0.5}) and lm.name == "toy"
    assert shared(f"table:{file}") is shared(f"table:{file}")
    assert as_models(f"table:{file}")["default"] is shared(f"table:{file}")
    assert as_models(None) == {} and as_models({"judge": lm}) == {"judge": lm}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"tokens": ["a"]}', '{"tokens": ["a"], "table": {"x": [1]}}', "null"],
)
def test_a_broken_file_names_itself(tmp_path: Path, text: str) -> None:
    file = tmp_path / "toy.json"
    file.write_text(text)
    with pytest.raises((ModelNotFound, BadArgument)) as raised:
        load(f"table:{file}")
    assert "toy.json" in str(raised.value) or "row" in str(raised.value)
    assert "fix:" in str(raised.value)


def test_a_missing_file_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="looked for"):
        load(f"table:{tmp_path}/nothing.json")


@pytest.mark.parametrize("lm", [3, object(), [TOY], {1: TOY}, {"judge": 3}])
def test_what_is_no_model_is_refused(lm: Any) -> None:
    with pytest.raises(BadArgument, match="no language model"):
        as_models(lm)
