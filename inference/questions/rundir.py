"""The folder of a run: what was asked, and every result as soon as it is there.

    config.json     what the run is: written once, by rename
    results.jsonl   one `ResultRecord` a line; a line is one write, then fsync; only ever appended to
    .lock           held while a process writes; two processes never share a run
    report.html     the page of the run, written at its end
    reports/        pages of some single posteriors

A run that was killed is opened again: what is finished is known, a line that was cut off by the
kill is moved to `results.jsonl.torn-1`, damage before valid lines is an error. Results are those
of an uninterrupted run, since all randomness is a function of seed and question.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from lmppl.atomic import write_atomic
from lmppl.errors import LmpplError
from lmppl.plainjson import dump
from lmppl.records import ResultRecord

FORMAT = 1
CONFIG, RESULTS, LOCK, REPORT = "config.json", "results.jsonl", ".lock", "report.html"
PAGES = "reports"
"""The folder of the pages of single posteriors."""
ROOM = 1 << 20
"""Bytes that must be free before a run starts."""

Key = tuple[str, str, str]
"""Program, engine and question: what a result is the result of."""


class Brief(NamedTuple):
    """What is remembered of a result that is on the disk."""

    failed: bool
    tokens: int


class RunError(LmpplError):
    """A run folder that cannot be used."""


class OutOfSpace(RunError):
    """A result could not be written; those before it are safe."""


class RunDirectory:
    """An open run folder; use it with `with`, so that its lock is given back.

    Args:
        path: the folder; made when it is not there.
        resume: go on with the run in it. Without it the folder must hold no run.

    Raises:
        RunError: it holds another run, is in use, damaged, or cannot be written.
    """

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        """Make, lock and read; nothing is written yet but the lock."""
        self.path = Path(path)
        self.config: dict[str, Any] = {}
        """What `freeze` wrote, now or when the run began."""
        self.done: dict[Key, Brief] = {}
        """The results so far; `read_results` has all of them."""
        self._results = -1
        self._make()
        self._lock = self._locked()
        try:
            self._read(resume)
        except OSError as error:
            self.close()
            raise _unwritable(self.path, error) from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder back; where nothing was begun, nothing stays behind."""
        if self._lock >= 0 and not self.config and not self.done:
            with contextlib.suppress(OSError):
                (self.path / LOCK).unlink()
                for folder in self._made:
                    folder.rmdir()
        for handle in (self._results, self._lock):
            if handle >= 0:
                os.close(handle)
        self._results = self._lock = -1

    # -- what the run is ---------------------------------------------------------------------

    def same(self, identity: Mapping[str, Any]) -> None:
        """Refuse to go on with another program, model, seed, engine or data.

        Args:
            identity: what must not change, or a part of it.
        """
        old = self.config.get("identity", {})
        differing = [
            f"{name}: {_shown(old.get(name))} became {_shown(value)}"
            for name, value in identity.items()
            if self.config and old.get(name) != json.loads(json.dumps(value))
        ]
        if differing:
            raise RunError(
                f"{self.path} was started differently: {'; '.join(differing)}",
                why="its results would be of two different runs",
                fix="name another --out, or write --fork in place of --resume to start anew beside it",
            )

    def freeze(self, identity: Mapping[str, Any], more: Mapping[str, Any]) -> None:
        """Say once what the run is; on resume, check that it is the same."""
        if self.config:
            self.same(identity)
            return
        self.config = {"format": FORMAT, "identity": dict(identity), **more}
        text = json.dumps(self.config, indent=1, ensure_ascii=False) + "\n"
        write_atomic(self.path / CONFIG, [text.encode("utf-8", "backslashreplace")])

    # -- results -----------------------------------------------------------------------------

    def append(self, record: ResultRecord) -> None:
        """Write a result; when this returns, it is on the disk."""
        line = dump(record.model_dump(mode="json")) + b"\n"
        before = None
        try:
            if self._results < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                self._results = os.open(self.path / RESULTS, flags, 0o666)
            before = os.fstat(self._results).st_size
            done = 0
            while done < len(line):
                done += os.write(self._results, line[done:])
            os.fsync(self._results)
        except OSError as error:
            if before is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._results, before)
            raise OutOfSpace(
                f"{self.path / RESULTS}: {(error.strerror or str(error)).lower()}",
                why=f"the {len(self.done):,} results before this one are safe",
                fix="make room, then run the same command with --resume",
            ) from error
        self.done[key(record)] = brief(record)

    # -- opening -----------------------------------------------------------------------------

    def _make(self) -> None:
        self._made = [f for f in (self.path, *self.path.parents) if not f.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            free = os.statvfs(self.path) if hasattr(os, "statvfs") else None
        except OSError as error:
            raise _unwritable(self.path, error) from None
        if free is not None and free.f_bavail * free.f_frsize < ROOM:
            raise RunError(f"{self.path}: the disk is full", fix="make room, or name another --out")

    def _locked(self) -> int:
        """A descriptor that holds the lock of the folder, with our process id in the file."""
        try:
            handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        try:
            import fcntl
        except ImportError:  # Windows
            return handle
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(handle, 20).decode("ascii", "replace").strip()
            os.close(handle)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise RunError(
                    f"{self.path} is in use by process {owner or 'unknown'}",
                    fix="wait for it, or name another --out",
                ) from None
            raise RunError(
                f"{self.path}: its file system has no locks ({error.strerror})",
                fix="name an --out on a local disk",
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        return handle

    def _read(self, resume: bool) -> None:
        here = {f.name for f in self.path.iterdir()} - {LOCK}
        if RESULTS in here and not (self.path / RESULTS).stat().st_size:
            here.remove(RESULTS)
        if not resume:
            if here & {CONFIG, RESULTS}:
                raise RunError(
                    f"{self.path} holds a run already",
                    fix="add --resume to go on with it, or name another --out",
                )
            if here:
                raise RunError(
                    f"{self.path} is not empty, and holds no run", fix="name another --out"
                )
        if CONFIG in here:
            self.config = read_config(self.path)
        elif RESULTS in here:
            raise RunError(f"{self.path} has results and no {CONFIG}", fix="name another --out")
        records, torn = read_results(self.path)
        self.done = {key(r): brief(r) for r in records}
        if torn:
            self._move(torn)

    def _move(self, torn: int) -> None:
        """Keep the bytes of a cut line beside the results, and cut them off."""
        names = (self.path / f"{RESULTS}.torn-{n}" for n in range(1, 1 << 30))
        kept = next(name for name in names if not name.exists())
        with (self.path / RESULTS).open("r+b") as file:
            file.seek(-torn, os.SEEK_END)
            kept.write_bytes(file.read())
            file.seek(-torn, os.SEEK_END)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())


def key(record: ResultRecord) -> Key:
    """What a result is the result of."""
    return record.program, record.engine, str(record.id)


def page_name(of: Key) -> str:
    """The page of one posterior, relative to the folder of its run.

    >>> page_name(("poem", "smc:particles=16", "q/1"))
    'reports/poem-smc-particles-16-q-1-86917e62.html'
    """
    said = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(of))[:80].strip("-")
    digest = hashlib.sha256("\0".join(of).encode("utf-8", "backslashreplace")).hexdigest()
    return f"{PAGES}/{said}-{digest[:8]}.html"


def brief(record: ResultRecord) -> Brief:
    """What is remembered of a result."""
    return Brief(record.error is not None, record.tokens_in + record.tokens_out)


def read_config(path: Path) -> dict[str, Any]:
    """What a run is.

    Raises:
        RunError: no run, or one of a later version.
    """
    try:
        found = json.loads((path / CONFIG).read_text("utf-8"))
        version = found["format"]
        identity = found["identity"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise RunError(
            f"{path} is no run folder" if missing else f"{path / CONFIG} is damaged"
        ) from None
    if version != FORMAT or not isinstance(identity, dict):
        raise RunError(
            f"{path} has format {version!r}, this version of lmppl reads {FORMAT}",
            fix="use the version that wrote it",
        )
    return dict(found)


def read_results(path: Path) -> tuple[list[ResultRecord], int]:
    """The results of a run, the last one of each question, and how many bytes at the end are a cut line.

    Raises:
        RunError: a damaged line with valid ones after it.
    """
    records: dict[Key, ResultRecord] = {}
    bad: tuple[int, str] | None = None
    torn = 0
    for number, raw in enumerate(_raw_lines(path / RESULTS), 1):
        try:
            if not raw.endswith(b"\n"):
                raise ValueError("it is cut off")
            record = ResultRecord.model_validate(json.loads(raw))
        except ValueError as error:  # of JSON, UTF-8 and pydantic
            bad = bad or (number, str(error).splitlines()[0])
            torn += len(raw)
            continue
        if bad is not None:
            raise RunError(
                f"{path / RESULTS}:{bad[0]}: the line is damaged ({bad[1]})",
                why="valid results follow it, so it was not cut off by a kill",
                fix="remove the line; --resume then answers its question again",
            )
        records[key(record)] = record
    return list(records.values()), torn


def _raw_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        return


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write to {path}: {(error.strerror or str(error)).lower()}",
        fix="name another --out",
    )


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:100]}…"
