"""Rows 33 to 36 of the list of bad input: each with the message a user sees."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmppl import program
from lmppl.data import MOST_PROBLEMS, Question, fits, read_questions
from lmppl.errors import DataError

GOOD = '{"id": "a", "question": "1 + 1?", "answer": "2"}\n'
Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write q.jsonl into the current folder."""
    monkeypatch.chdir(tmp_path)

    def save(content: str | bytes) -> Path:
        Path("q.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)
        return Path("q.jsonl")

    return save


def problems(path: Path, **more: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        read_questions(path, **more)
    return str(caught.value).splitlines()


def test_good_lines(write: Write) -> None:
    path = write(GOOD + '{"id": 7, "question": "é\\ud83d\\ude00", "n": [1.5]}')
    with read_questions(path) as questions:
        assert len(questions) == 2
        assert questions.ids == ["a", 7]
        assert questions[0] == Question("a", {"question": "1 + 1?"}, "2")
        assert questions[1] == Question(7, {"question": "é😀", "n": [1.5]}, None)
        assert questions[1] == list(questions)[1] == questions[0:2][1]
        assert questions.answered == 1
        with pytest.raises(IndexError):
            questions[2]


def test_hash_is_of_the_content(write: Write) -> None:
    def digest(content: str) -> str:
        with read_questions(write(content)) as questions:
            return questions.sha256

    assert digest(GOOD) == digest(GOOD) == hashlib.sha256(GOOD.encode()).hexdigest()
    assert digest(GOOD.replace("1 + 1", "1 + 2")) != digest(GOOD)


BAD = [
    ("trailing comma", '{"id": "b",}', "q.jsonl:2:11: trailing comma"),
    ("trailing comma in a list", '{"id": "b", "x": [1, ]}', "q.jsonl:2:20: trailing comma"),
    ("comma after", '{"id": "b"},', "q.jsonl:2:12: comma after the object: end the line after }"),
    ("two", '{"id": 1}{"id": 2}', "q.jsonl:2:10: more than one value in a line: one object a line"),
    ("empty line", "", "q.jsonl:2: empty line: remove it"),
    ("blank line", " \t", "q.jsonl:2: empty line: remove it"),
    ("cut", '{"id": "b", "x":', "q.jsonl:2:17: the line ends inside the object"),
    ("single quotes", "{'id': 'b'}", "q.jsonl:2:2: JSON strings stand in double quotes"),
    ("no colon", '{"id" 1}', "q.jsonl:2:7: no JSON: expecting ':' delimiter"),
    ("bare word", '{"id": b}', "q.jsonl:2:8: no JSON: expecting value"),
    ("number", "3", "q.jsonl:2:1: expected an object {...}, got 3"),
    (
        "list",
        "[1, 2]",
        "q.jsonl:2:1: expected an object {...}, got [1, 2]: one object a line, no brackets around them",
    ),
    ("array", "[", "q.jsonl:2:1: a JSON array over several lines: one object a line"),
    ("NaN", '{"id": "b", "x": NaN}', "q.jsonl:2: NaN is no JSON number"),
    ("-Infinity", '{"id": "b", "x": -Infinity}', "q.jsonl:2: -Infinity is no JSON number"),
    ("overflow", '{"id": "b", "x": 1e999}', "q.jsonl:2: 1e999 is too large a number"),
    ("digits", '{"id": "b", "x": %s}' % ("1" * 5000), None),
    ("twice", '{"id": "b", "x": 1, "x": 2}', "q.jsonl:2: field 'x' occurs twice"),
    ("deep", '{"id": "b", "x": %s}' % ("[" * 200_000), "q.jsonl:2: nested too deeply"),
    (
        "surrogate",
        '{"id": "b", "x": "\\ud800"}',
        "q.jsonl:2: an escape \\ud800 to \\udfff without its other half",
    ),
    ("no id", '{"question": "?"}', "q.jsonl:2: missing field 'id'"),
    ("id null", '{"id": null}', "q.jsonl:2: id must be a string or an integer, got None"),
    ("id true", '{"id": true}', "q.jsonl:2: id must be a string or an integer, got True"),
    ("id 1.5", '{"id": 1.5}', "q.jsonl:2: id must be a string or an integer, got 1.5"),
    ("id empty", '{"id": ""}', "q.jsonl:2: id must be a string or an integer, got ''"),
    ("id twice", '{"id": "a"}', "q.jsonl:2: id 'a' occurs already in line 1"),
]


@pytest.mark.parametrize(("line", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_line(line: str, message: str | None, write: Write) -> None:
    """One message for the bad line, none for the good ones around it."""
    found = problems(write(GOOD + line + "\n" + GOOD.replace('"a"', '"z"')))
    assert len(found) == 1
    assert found[0].startswith("q.jsonl:2:")
    if message is not None:
        assert found == [message]


def test_numbers_and_their_digits_are_one_name(write: Write) -> None:
    assert problems(write('{"id": 1}\n{"id": "1"}\n')) == [
        "q.jsonl:2: id '1' occurs already in line 1 (written 1 there)"
    ]


def test_encodings(write: Write) -> None:
    assert problems(write(b"\xef\xbb\xbf" + GOOD.encode())) == [
        "q.jsonl:1:1: the file starts with a byte order mark: save it as UTF-8 without BOM"
    ]
    assert problems(write((GOOD * 3).replace("\n", "\r\n"))) == [
        "q.jsonl:1: lines end in CR LF: convert the file, such as by dos2unix"
    ]
    for codec in ("utf-16", "utf-16-le", "utf-32"):
        assert problems(write(GOOD.encode(codec))) == [
            "q.jsonl:1:1: the file is UTF-16 or UTF-32: save it as UTF-8"
        ]
    at = len(GOOD)
    assert problems(write(GOOD.encode() + '{"é": "'.encode() + b'\xff"}')) == [
        f"q.jsonl:2:8: byte {at + 8} of the file is not UTF-8 (0xff)"
    ]


def test_at_most_twenty_lines(write: Write) -> None:
    """One bad line in 10,000 is found; 10,000 bad ones are counted."""
    lines = [f'{{"id": {i}}}\n' for i in range(10_000)]
    lines[7_654] = '{"id": 7654\n'
    assert problems(write("".join(lines))) == ["q.jsonl:7655:12: the line ends inside the object"]
    found = problems(write("{}\n" * 10_000))
    assert found[:2] == ["q.jsonl:1: missing field 'id'", "q.jsonl:2: missing field 'id'"]
    assert found[MOST_PROBLEMS:] == ["q.jsonl: 9,980 more lines are wrong"]


def test_files(write: Write, tmp_path: Path) -> None:
    write(GOOD)
    assert problems(Path("q.json")) == [
        "q.json: no such file or directory",
        "  fix:   did you mean q.jsonl?",
    ]
    assert problems(Path("none/q.jsonl")) == ["none/q.jsonl: no such file or directory"]
    assert problems(Path(".")) == [". is a folder", "  fix:   give a JSON-lines file"]
    assert problems(write("")) == ["q.jsonl: no questions in this file"]


def test_fields_fit_the_program(write: Write) -> None:
    @program
    def solve(question: str, facts: list[str], hint: str = "") -> str:
        return question

    path = write(
        '{"id": 1, "question": "?", "facts": [], "answer": 3}\n'
        '{"id": 2, "qestion": "?", "facts": []}\n'
        '{"id": 3, "question": "?", "facts": [], "zzz": 0}\n'
    )
    assert problems(path, check=fits(solve)) == [
        "q.jsonl:2: missing field 'question'",
        "q.jsonl:2: field 'qestion' is no argument of the program: did you mean 'question'?",
        "q.jsonl:3: field 'zzz' is no argument of the program: it has question, facts, hint",
    ]


def test_signatures() -> None:
    def anything(**fields: Any) -> None: ...
    def position(question: str, /) -> None: ...
    def takes_answer(answer: str) -> None: ...
    def nothing() -> None: ...

    assert fits(anything)({"x": 1}) == []
    assert fits(nothing)({"x": 1}) == ["field 'x' is no argument of the program: it has none"]
    with pytest.raises(DataError, match="argument 'question' of the program takes no name"):
        fits(position)
    with pytest.raises(DataError, match="rename the argument, such as given_answer"):
        fits(takes_answer)


def test_a_file_that_changes_is_noticed(write: Write) -> None:
    path = write(GOOD)
    with read_questions(path) as questions:
        path.write_text("{}" + " " * 100)
        with pytest.raises(DataError, match="changed while it was in use"):
            questions[0]


def test_a_large_file_stays_on_disk(write: Write) -> None:
    """20,000 questions of 1 kB: what is kept is a small part of the file."""
    import tracemalloc

    text = "x" * 1000
    path = write("".join(json.dumps({"id": i, "t": text}) + "\n" for i in range(20_000)))
    tracemalloc.start()
    with read_questions(path) as questions:
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert questions[19_999].id == 19_999
    assert kept < 0.2 * path.stat().st_size
