"""Questions from a JSON-lines file, every line checked before anything runs.

A line is one JSON object, UTF-8, ended by a line feed. `id` (a string or an integer, unique) names
the question and is the root of its randomness; `answer`, if there, is the expected answer; all
other fields are keyword arguments of the program.

`read_questions` reads the file once, collects what is wrong with up to 20 lines in one `DataError`
(`file:line:column: what`), and keeps only the ids and where each line starts: a million questions
cost some 100 bytes each. `questions[i]` reads its line again from the same open file.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import math
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, overload

from lmppl.errors import DataError, excerpt

MOST_PROBLEMS = 20
LONGEST_LINE = 200_000_000
"""Bytes; a text of 100 MB in which every character is escaped as two still fits."""
RESERVED = ("id", "answer")

Check = Callable[[Mapping[str, Any]], Sequence[str]]
"""What is wrong with the fields of a question, one text for each problem; see `fits`."""


@dataclass(frozen=True)
class Question:
    """One line of the file."""

    id: int | str
    fields: dict[str, Any]
    """Keyword arguments of the program."""
    answer: Any = None
    """The expected answer; None when there is none."""


class Questions(Sequence[Question]):
    """The lines of a checked file; a question is read when asked for. `close` it, or use `with`."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Empty: `read_questions` fills it."""
        self.name = name
        self.ids: list[int | str] = []
        self.sha256 = ""
        self.answered = 0
        """How many have an expected answer."""
        self._file = file
        self._starts = array("Q")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def head(self, n: int) -> Self:
        """Forget all but the first `n`; their lines were checked with the others."""
        del self._starts[n:], self.ids[n:]
        return self

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> list[Question]: ...
    def __getitem__(self, index: int | slice) -> Question | list[Question]:
        """Read the line again."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        self._file.seek(self._starts[index])
        try:
            return _question(_object(self._file.readline().decode("utf-8")))
        except (_Bad, UnicodeDecodeError) as error:
            raise DataError(
                f"{self.name}: the file changed while it was in use",
                where=f"question {self.ids[index]!r}",
                fix="start again with a file that nobody writes to",
            ) from error


def read_questions(path: str | Path, check: Check | None = None) -> Questions:
    """Read and check a file of questions.

    Args:
        path: the JSON-lines file.
        check: looks at the fields of each question; see `fits`.

    Raises:
        DataError: one line of text for each bad line, at most 20.
    """
    questions = Questions(_open(Path(path)), str(path))
    problems: list[str] = []
    lines_of: dict[str, tuple[int, int | str]] = {}
    digest = hashlib.sha256()
    bad = 0
    for number, start, raw in _lines(questions._file):
        digest.update(raw)
        try:
            question = _question(_object(_text(raw, number, start)))
            _unique(question.id, number, lines_of)
            found = [_Bad(what) for what in check(question.fields)] if check is not None else []
        except _Bad as error:
            found = [error]
        if found:
            bad += 1
            if bad <= MOST_PROBLEMS:
                problems += [f"{questions.name}:{number}:{p}" for p in found]
            if found[0].everywhere:
                break
        elif not problems:
            questions._starts.append(start)
            questions.ids.append(question.id)
            questions.answered += question.answer is not None
    if bad > MOST_PROBLEMS:
        problems.append(f"{questions.name}: {bad - MOST_PROBLEMS:,} more lines are wrong")
    if not problems and not questions.ids:
        problems.append(f"{questions.name}: no questions in this file")
    if problems:
        questions.close()
        raise DataError("\n".join(problems))
    questions.sha256 = digest.hexdigest()
    return questions


def fits(program: Callable[..., Any]) -> Check:
    """A check that the fields of a question are arguments of a program.

    >>> fits(lambda question, hint="": None)({"qestion": "1 + 1?"})
    ["missing field 'question'", "field 'qestion' is no argument of the program: did you mean 'question'?"]
    """
    parameters = inspect.signature(program).parameters.values()
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p.name for p in by_name if p.default is p.empty]
    known = [p.name for p in by_name]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for p in parameters:
        if p.kind is p.POSITIONAL_ONLY and p.default is p.empty:
            raise DataError(
                f"argument {p.name!r} of the program takes no name",
                fix="remove the '/' of its signature: fields are passed by name",
            )
    for name in set(needed) & set(RESERVED):
        raise DataError(
            f"the program has an argument {name!r}, and the field {name!r} is not passed to it",
            fix=f"rename the argument, such as given_{name}, and its field in the data",
        )

    def check(fields: Mapping[str, Any]) -> list[str]:
        found = [f"missing field {n!r}" for n in needed if n not in fields]
        for name in fields:
            if name not in known and not takes_all:
                near = difflib.get_close_matches(name, known, 1)
                hint = (
                    f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
                )
                found.append(f"field {name!r} is no argument of the program: {hint}")
        return found

    return check


# -- one line -----------------------------------------------------------------------------------


class _Bad(Exception):
    """What is wrong with a line, in which column, and whether it is so in every line."""

    def __init__(self, what: str, column: int | None = None, *, everywhere: bool = False) -> None:
        super().__init__(f" {what}" if column is None else f"{column}: {what}")
        self.everywhere = everywhere


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except IsADirectoryError:
        raise DataError(f"{path} is a folder", fix="give a JSON-lines file") from None
    except OSError as error:
        folder = path.parent
        files = [f.name for f in folder.iterdir()] if folder.is_dir() else []
        near = difflib.get_close_matches(path.name, files, 1)
        raise DataError(
            f"{path}: {(error.strerror or str(error)).lower()}",
            fix=f"did you mean {folder / near[0]}?" if near else None,
        ) from None


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Number from 1, first byte, and content of each line."""
    start, number = 0, 0
    while raw := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(raw) > LONGEST_LINE:
            raise DataError(
                f"{file.name}:{number}: the line is longer than {LONGEST_LINE:,} bytes",
                fix="split it, or pass the path of a file and read it in the program by effect(...)",
            )
        yield number, start, raw
        start += len(raw)


def _text(raw: bytes, number: int, start: int) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw[:4]:
        raise _Bad("the file is UTF-16 or UTF-32: save it as UTF-8", 1, everywhere=True)
    if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
        raise _Bad("the file starts with a byte order mark: save it as UTF-8 without BOM", 1)
    if raw.endswith(b"\r\n"):
        raise _Bad("lines end in CR LF: convert the file, such as by dos2unix", everywhere=True)
    try:
        return raw.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode("utf-8", "replace")) + 1
        raise _Bad(
            f"byte {start + error.start:,} of the file is not UTF-8 (0x{raw[error.start]:02x})",
            column,
        ) from None


def _object(line: str) -> dict[str, Any]:
    if not line.strip():
        raise _Bad("empty line: remove it")
    try:
        found = json.loads(
            line, object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_number
        )
    except json.JSONDecodeError as error:
        raise _syntax(line, error) from None
    except RecursionError:
        raise _Bad("nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise _Bad(str(error).split(";")[0].lower()) from None
    if not isinstance(found, dict):
        hint = ": one object a line, no brackets around them" if isinstance(found, list) else ""
        raise _Bad(f"expected an object {{...}}, got {excerpt(found, 40)}{hint}", 1)
    if "\\u" in line:  # half a surrogate pair is JSON, and no text
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _Bad("an escape \\ud800 to \\udfff without its other half") from None
    return found


def _syntax(line: str, error: json.JSONDecodeError) -> _Bad:
    before, after = line[: error.pos].rstrip(), line[error.pos :].lstrip()
    if error.msg == "Extra data":
        if after.startswith(",") and not after[1:].strip():
            return _Bad("comma after the object: end the line after }", error.colno)
        return _Bad("more than one value in a line: one object a line", error.colno)
    comma = re.search(r",\s*$", before + after[:1] if after[:1] == "," else before)
    if comma and after.lstrip(", ")[:1] in ("}", "]"):
        return _Bad("trailing comma", comma.start() + 1)
    if not after.strip():
        if line.strip() == "[":
            return _Bad("a JSON array over several lines: one object a line", 1)
        return _Bad("the line ends inside the object", error.colno)
    if after.startswith("'"):
        return _Bad("JSON strings stand in double quotes", error.colno)
    return _Bad(f"no JSON: {error.msg.lower()}", error.colno)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Bad(f"field {twice!r} occurs twice")
    return found


def _constant(word: str) -> Any:
    raise _Bad(f"{word} is no JSON number")


def _number(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _Bad(f"{digits} is too large a number")
    return value


def _question(found: dict[str, Any]) -> Question:
    if "id" not in found:
        raise _Bad("missing field 'id'")
    name = found["id"]
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        raise _Bad(f"id must be a string or an integer, got {excerpt(name, 40)}")
    fields = {k: v for k, v in found.items() if k not in RESERVED}
    return Question(name, fields, found.get("answer"))


def _unique(name: int | str, number: int, lines_of: dict[str, tuple[int, int | str]]) -> None:
    """`1` and `"1"` are the same name to whoever reads the results."""
    line, before = lines_of.setdefault(str(name), (number, name))
    if line != number:
        same = "" if before == name else f" (written {before!r} there)"
        raise _Bad(f"id {name!r} occurs already in line {line}{same}")
