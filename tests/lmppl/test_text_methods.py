"""String methods of `Text`: the same strings as `str` gives, and every span where it belongs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmppl import Text
from lmppl.text import Span, concat

LETTERS = st.text("ab \n-", max_size=8)


@st.composite
def marked(draw: Any) -> Text:
    """A text of pieces, every other one from a site."""
    pieces = draw(st.lists(LETTERS, max_size=4))
    return concat(tuple(Text(p, address=f"s{i}") if i % 2 else p for i, p in enumerate(pieces)))


def origins(text: str) -> list[str | None]:
    """By character: the site it came from."""
    out: list[str | None] = [None] * len(text)
    for s in text.spans if isinstance(text, Text) else ():
        for k in range(s.start, s.stop):
            assert out[k] is None, "spans do not overlap"
            out[k] = s.address
    return out


METHODS: list[tuple[str, tuple[Any, ...]]] = [
    ("split", ()),
    ("split", ("-",)),
    ("split", ("ab",)),
    ("split", ("b", 1)),
    ("split", (None, 1)),
    ("rsplit", ("-",)),
    ("rsplit", ("ab", 1)),
    ("rsplit", (None, 1)),
    ("splitlines", ()),
    ("splitlines", (True,)),
    ("partition", ("a",)),
    ("partition", ("ab",)),
    ("rpartition", ("b",)),
    ("rpartition", ("-a",)),
]


@given(marked(), st.sampled_from(METHODS))
def test_parts_keep_the_origin_of_every_character(text: Text, how: tuple[str, Any]) -> None:
    """A character that is its own mark says where each part must have come from."""
    name, args = how
    found = list(getattr(text, name)(*args))
    assert found == list(getattr(str(text), name)(*args))
    # the same cut made on places: each character is replaced by nothing but its index
    whole, at = origins(text), 0
    for part in found:
        starts = [
            k
            for k in range(at, len(text) - len(part) + 1)
            if str(text)[k : k + len(part)] == part and origins(part) == whole[k : k + len(part)]
        ]
        assert starts or not part
        at = starts[0] + len(part) if part else at


@given(marked(), st.sampled_from(["a", "ab", "-", "b-"]), st.sampled_from(["", "x", "ab"]))
def test_replace_keeps_what_stays(text: Text, old: str, new: str) -> None:
    found = text.replace(old, Text(new, address="new"))
    assert found == str(text).replace(old, new) and isinstance(found, Text)
    left = [o for o in origins(found) if o != "new"]
    kept: list[str | None] = []
    k = 0
    while k < len(text):
        if str(text).startswith(old, k):
            k += len(old)
        else:
            kept.append(origins(text)[k])
            k += 1
    assert left == kept
    assert text.replace(old, new, 1) == str(text).replace(old, new, 1)
    assert text.replace("", "x") == str(text).replace("", "x")


def test_join_case_and_affixes() -> None:
    a, b = Text("one", address="a"), Text("two", address="b")
    joined = Text(", ").join([a, "and", b])
    assert joined == "one, and, two"
    assert joined.spans == (Span(0, 3, "a"), Span(10, 13, "b"))
    assert ("say " + a).upper() == "SAY ONE" and ("say " + a).upper().spans == (Span(4, 7, "a"),)
    assert (
        a.title() == "One" and a.capitalize() == "One" and Text("ONE", address="a").lower() == "one"
    )
    assert Text("straße", address="a").upper().spans == ()  # one letter became two
    assert ("say " + a).removeprefix("say ").spans == (Span(0, 3, "a"),)
    assert (a + "!").removesuffix("!").spans == (Span(0, 3, "a"),)
    assert Text("x b", address="a").split("ab") == ["x b"]
    assert ("ß" + a).casefold().spans == () and a.swapcase().spans == (Span(0, 3, "a"),)
    assert a * 2 == 2 * a == "oneone" and (a * 2).spans == (Span(0, 3, "a"), Span(3, 6, "a"))
    assert a.ljust(5, ".") == "one.." and a.ljust(5).spans == (Span(0, 3, "a"),)
    assert a.rjust(5) == "  one" and a.rjust(5).spans == (Span(2, 5, "a"),)
    assert a.rjust(2) == a.ljust(2) == a


@pytest.mark.parametrize("name", ["split", "rsplit", "partition"])
def test_an_empty_separator_is_refused_as_by_str(name: str) -> None:
    with pytest.raises(ValueError, match="empty separator"):
        getattr(Text("a"), name)("")
