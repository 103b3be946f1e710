"""`Text`: a string that keeps its tokens and where its parts came from, and never changes."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmppl import Text, prompt
from lmppl.errors import BadArgument
from lmppl.text import Span, concat


def drawn(value: str = "yes", address: str = "answer") -> Text:
    return Text(
        value,
        token_ids=[7, 8],
        token_logprobs=[-0.5, -0.25],
        address=address,
        finish="eos",
        scheme=11,
    )


def test_is_a_str_in_equality_hash_and_use() -> None:
    t = drawn()
    assert t == "yes" and "yes" == t and hash(t) == hash("yes")
    table: dict[str, int] = {t: 1}
    assert table["yes"] == 1 and t in {"yes"} and isinstance(t, str)
    assert f"{t}!" == "yes!" and json.dumps(t) == '"yes"' and repr(t) == "'yes'"
    assert t.upper() == "YES" and "".join([t, t]) == "yesyes"


def test_keeps_how_it_was_drawn() -> None:
    t = drawn()
    assert t.token_ids is not None and t.token_ids.tolist() == [7, 8]
    assert t.token_ids.dtype == np.int32
    assert t.token_logprobs is not None and t.token_logprobs.tolist() == [-0.5, -0.25]
    assert t.log_prob == -0.75 and t.finish == "eos" and t.complete
    assert t.spans == (Span(0, 3, "answer"),)
    assert Text("x").log_prob is None and Text("x").token_ids is None and Text("x").spans == ()
    assert not Text("x", finish="length").complete


@pytest.mark.parametrize(
    "name", ["address", "finish", "scheme", "spans", "_ids", "token_ids", "new"]
)
def test_attributes_cannot_be_set_or_deleted(name: str) -> None:
    t = drawn()
    with pytest.raises(AttributeError, match="immutable|no setter"):
        setattr(t, name, None)
    with pytest.raises(AttributeError):
        delattr(t, name)
    assert t.address == "answer" and t.log_prob == -0.75


def test_its_arrays_cannot_be_written_through() -> None:
    ids = np.array([7, 8], np.int32)
    t = Text("ab", token_ids=ids, token_logprobs=[-1.0, -2.0])
    ids[0] = 99  # the caller's array stays the caller's
    assert t.token_ids is not None and t.token_ids.tolist() == [7, 8]
    for view in (t.token_ids, t.token_logprobs):
        assert view is not None
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1
    long = Text.drawn("x", list(range(500)), [-1.0] * 500, "stop", 0)
    assert long.token_ids is not None and long.token_ids.tolist() == list(range(500))
    with pytest.raises(ValueError, match="read-only"):
        long.token_ids[0] = 1


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))]
)
def test_copies_and_pickles_with_everything(copied: Any) -> None:
    t = drawn() + " and " + drawn("no", "other")
    for one in (drawn(), t, Text.drawn("ab", [1], [-2.0], "length", 3)):
        got = copied(one)
        assert type(got) is Text and got == one
        assert got.address == one.address and got.finish == one.finish
        assert got.spans == one.spans and got.scheme == one.scheme
        assert got.log_prob == one.log_prob
        assert (got.token_ids is None) == (one.token_ids is None)
        with pytest.raises(AttributeError):
            got.address = "elsewhere"


def test_plus_keeps_spans_and_leaves_operands_alone() -> None:
    a, b = drawn("ab", "A"), drawn("cd", "B")
    before = (a.spans, b.spans, str(a), str(b))
    joined = "<" + a + "|" + b + ">"
    assert joined == "<ab|cd>" and type(joined) is Text
    assert joined.spans == (Span(1, 3, "A"), Span(4, 6, "B"))
    assert (a.spans, b.spans, str(a), str(b)) == before
    assert (a + "").spans == a.spans and ("" + a).spans == a.spans
    c = a
    c += "!"
    assert a == "ab" and a.spans == (Span(0, 2, "A"),) and c.spans == (Span(0, 2, "A"),)


@pytest.mark.parametrize("other", [1, None, b"x", ["x"]])
def test_plus_refuses_what_is_no_text(other: Any) -> None:
    with pytest.raises(TypeError):
        drawn() + other
    with pytest.raises(TypeError):
        other + drawn()


@pytest.mark.parametrize(
    ("part", "value", "spans"),
    [
        (slice(None), "x yes no", (Span(2, 5, "A"), Span(6, 8, "B"))),
        (slice(2, 5), "yes", (Span(0, 3, "A"),)),
        (slice(3, 7), "es n", (Span(0, 2, "A"), Span(3, 4, "B"))),
        (slice(-2, None), "no", (Span(0, 2, "B"),)),
        (slice(0, 2), "x ", ()),
        (slice(4, 2), "", ()),
        (slice(None, None, -1), "on sey x", ()),
        (slice(None, None, 2), "xysn", ()),
        (2, "y", (Span(0, 1, "A"),)),
        (-1, "o", (Span(0, 1, "B"),)),
        (0, "x", ()),
    ],
)
def test_slices_keep_spans(part: Any, value: str, spans: tuple[Span, ...]) -> None:
    text = "x " + drawn("yes", "A") + " " + drawn("no", "B")
    got = text[part]
    assert got == value and type(got) is Text and got.spans == spans
    assert text == "x yes no"


def test_index_out_of_range_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        drawn()[3]


def test_strip_keeps_spans() -> None:
    text = "  " + drawn(" yes ", "A") + "\n"
    assert text.strip() == "yes" and text.strip().spans == (Span(0, 3, "A"),)
    assert text.lstrip() == "yes \n" and text.lstrip().spans == (Span(0, 4, "A"),)
    assert text.rstrip() == "   yes" and text.rstrip().spans == (Span(2, 6, "A"),)
    assert drawn("xxaxx", "A").strip("x").spans == (Span(0, 1, "A"),)
    assert drawn("   ", "A").strip() == "" and drawn("   ", "A").strip().spans == ()


def test_what_loses_spans_is_a_plain_string() -> None:
    t = drawn()
    pattern, template = "%s", "{}"
    for lost in (f"{t}", pattern % t, template.format(t), " ".join([t])):
        assert type(lost) is str


@settings(max_examples=50)
@given(st.text(max_size=6), st.text(max_size=6), st.integers(-8, 8), st.integers(-8, 8))
def test_slicing_agrees_with_str(a: str, b: str, i: int, j: int) -> None:
    text = Text(a, address="A") + Text(b, address="B")
    got = text[i:j]
    assert got == (a + b)[i:j]
    for span in got.spans:
        assert 0 <= span.start < span.stop <= len(got)
        assert got[span.start : span.stop] in (a if span.address == "A" else b)
    assert text.strip() == (a + b).strip()


# -- prompt -------------------------------------------------------------------------------------


def test_prompt_keeps_where_each_part_came_from() -> None:
    q, t = drawn("why?", "question"), drawn("since", "thought")
    text = prompt("Q: {q}\n{{note}} {t} {q}!", q=q, t=t)
    assert text == "Q: why?\n{note} since why?!"
    assert text.spans == (
        Span(3, 7, "question"),
        Span(15, 20, "thought"),
        Span(21, 25, "question"),
    )


def test_prompt_inserts_values_as_they_are() -> None:
    assert prompt("{a}", a="{b} {{c}} {0}") == "{b} {{c}} {0}"
    assert prompt("{n} {x} {none}", n=3, x=0.5, none=None) == "3 0.5 None"
    assert prompt("no fields") == "no fields" and prompt("") == ""
    assert type(prompt("no fields")) is Text
    inner = prompt("<{x}>", x=drawn("ab", "A"))
    assert prompt("{i}{i}", i=inner).spans == (Span(1, 3, "A"), Span(5, 7, "A"))


@pytest.mark.parametrize(
    ("template", "values", "message"),
    [
        ("{q", {"q": 1}, "expected '}'"),
        ("}", {}, "Single '}'"),
        ("{}", {}, "not a plain name"),
        ("{0}", {}, "not a plain name"),
        ("{q.real}", {"q": 1}, "not a plain name"),
        ("{q[0]}", {"q": 1}, "not a plain name"),
        ("{q:>10}", {"q": 1}, "not a plain name"),
        ("{q!r}", {"q": 1}, "not a plain name"),
        ("{q}", {}, "has no value"),
        ("hi", {"q": 1, "r": 2}, "q, r have no field"),
    ],
)
def test_prompt_names_its_mistakes(template: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadArgument, match=message) as raised:
        prompt(template, **values)
    assert "fix:" in str(raised.value)


def test_concat_of_nothing_is_empty() -> None:
    assert concat(()) == "" and concat(("", "")).spans == ()
