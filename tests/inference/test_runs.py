"""Run folders and run loops: nothing finished is lost, nothing is done twice, nothing depends on order."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lmppl import LM, effect, factor, program, sample
from lmppl.data import Question
from lmppl.errors import AllParticlesDead, BadArgument
from lmppl.inference.questions.rundir import (
    CONFIG,
    LOCK,
    RESULTS,
    OutOfSpace,
    RunDirectory,
    RunError,
    key,
    read_results,
)
from lmppl.inference.questions.runs import (
    Event,
    Task,
    agrees,
    compare,
    one_line,
    pending,
    run_tasks,
    summarise,
)
from lmppl.inference.specs import parse_engine
from lmppl.lm.table import TableLM
from lmppl.records import ResultRecord

TOY = TableLM(["a", "b", "c", "\n"], {(): [0.4, 0.3, 0.2, 0.1]})


@program
def toy(text: str, bias: float = 0.0) -> str:
    drawn = sample("drawn", LM(text, max_tokens=3, stop="\n"))
    factor("length", bias * len(drawn))
    return str(drawn)[:1]


@program
def fragile(text: str) -> str:
    drawn = sample("drawn", LM(text, max_tokens=1))
    if text == "dead":
        factor("never", float("-inf"))
    if text == "error":
        raise RuntimeError("broken\nin two lines")
    return str(drawn)


def questions(n: int, start: int = 0) -> list[Question]:
    return [
        Question(f"q{i}", {"text": "abc"[i % 3], "bias": 0.2 * (i % 4)}, "a")
        for i in range(start, n)
    ]


def task(
    asked: Sequence[Question], engine: str = "smc:particles=4", fn: Callable[..., Any] = toy
) -> Task:
    return Task(fn, "toy", parse_engine(engine), asked)


def found(folder: RunDirectory) -> list[ResultRecord]:
    return read_results(folder.path)[0]


def without_time(folder: RunDirectory) -> dict[Any, dict[str, Any]]:
    """What must be equal: all but seconds and the batches that were shared."""
    exclude = {"seconds", "ledger"}
    return {key(r): r.model_dump(mode="json", exclude=exclude) for r in found(folder)}


def full(path: Path, n: int = 12, **options: Any) -> dict[Any, dict[str, Any]]:
    with RunDirectory(path) as folder:
        folder.freeze({"seed": 0}, {})
        run_tasks([task(questions(n))], folder, lm=TOY, **options)
        return without_time(folder)


# -- the loop -----------------------------------------------------------------------------------


def test_results_depend_on_seed_and_id_alone(tmp_path: Path) -> None:
    """Not on batch, order, or which other questions are there."""
    reference = full(tmp_path / "a")
    assert len(reference) == 12
    assert full(tmp_path / "b", concurrency=1) == reference
    assert full(tmp_path / "c", seed=1) != reference
    with RunDirectory(tmp_path / "d") as folder:
        run_tasks([task(questions(12)[::-3])], folder, lm=TOY)
        few = without_time(folder)
    assert len(few) == 4
    assert all(reference[name] == row for name, row in few.items())


def test_resume_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    """Stopped after each number of results."""
    reference = full(tmp_path / "whole")

    class Stop(Exception):
        pass

    for cut in range(12):
        path = tmp_path / f"cut{cut}"
        with RunDirectory(path) as folder:
            folder.freeze({"seed": 0}, {})

            def stop(event: Event, cut: int = cut, folder: RunDirectory = folder) -> None:
                if event.record is not None and len(folder.done) > cut:
                    raise Stop

            with pytest.raises(Stop):
                run_tasks([task(questions(12))], folder, lm=TOY, concurrency=3, notify=stop)
        with RunDirectory(path, resume=True) as folder:
            assert len(folder.done) == cut + 1
            before = without_time(folder)
            run_tasks([task(questions(12))], folder, lm=TOY)
            assert without_time(folder) == reference
            assert before.items() <= reference.items()
        assert len((path / RESULTS).read_text().splitlines()) == 12


def test_engines_side_by_side(tmp_path: Path) -> None:
    events: list[Event] = []
    engines = ["greedy", "forward:particles=4", "smc:particles=4"]
    with RunDirectory(tmp_path / "run") as folder:
        tasks = [task(questions(6), engine) for engine in engines]
        run_tasks(iter(tasks), folder, lm=TOY, notify=events.append)
        records = found(folder)
        assert all(not pending(t, folder) for t in tasks)
    assert sum(e.record is not None for e in events) == 18
    assert any(e.record is None and e.running == 6 for e in events)
    summaries = summarise(records)
    assert [s.engine for s in summaries] == engines
    assert [s.questions for s in summaries] == [6, 6, 6]
    assert summaries[0].right == 6  # greedy takes "a" always
    assert summaries[0].accuracy == 1.0
    assert summaries[2].tokens > summaries[0].tokens > 0
    pair = compare(records, "toy", engines[2], engines[0])
    assert (pair.n, pair.wins) == (6, 0)
    assert pair.losses == 6 - summaries[2].right
    assert compare(records, None, engines[2], engines[0]) == pair
    assert compare(records, "other", engines[2], engines[0]).n == 0


def test_an_error_ends_its_question_alone(tmp_path: Path) -> None:
    names = ["a", "error", "dead", "b"]
    asked = [Question(n, {"text": n}, "a") for n in names]
    with RunDirectory(tmp_path / "run") as folder:
        run_tasks([task(asked, fn=fragile)], folder, lm=TOY)
        by = {r.id: r for r in found(folder)}
        assert [by[n].error is None for n in names] == [True, False, False, True]
        error, dead = by["error"], by["dead"]
        assert error.error is not None and "broken in two lines" in error.error
        assert dead.error is not None
        assert dead.error.startswith("AllParticlesDead: all 4 particles have weight zero")
        assert "never (4)" in dead.error
        assert dead.answer is None and dead.correct is False and dead.tokens_out == 4
        assert dead.log_evidence == float("-inf")
        (summary,) = summarise(found(folder))
        assert (summary.questions, summary.failed, summary.answered) == (4, 2, 4)
        assert pending(task(asked, fn=fragile), folder) == []
        assert pending(task(asked, fn=fragile), folder, retry_failed=True) == [1, 2]


def test_failed_questions_can_be_asked_again(tmp_path: Path) -> None:
    broken = [True]

    def tool() -> str:
        if broken[0]:
            raise ConnectionError("no network")
        return "a"

    @program
    def remote(text: str) -> str:
        return str(effect("tool", tool))

    asked = [Question(1, {"text": "x"}, "a")]
    with RunDirectory(tmp_path / "run") as folder:
        run_tasks([task(asked, "forward:particles=1", remote)], folder)
        assert found(folder)[0].error is not None
        broken[0] = False
        run_tasks([task(asked, "forward:particles=1", remote)], folder)
        assert found(folder)[0].error is not None
        run_tasks([task(asked, "forward:particles=1", remote)], folder, retry_failed=True)
        assert found(folder)[0].correct is True
    assert len((tmp_path / "run" / RESULTS).read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("answer", "expected", "same"),
    [
        ("42", 42, True),
        (42.0, "42", True),
        ("7.50", "7.5", True),
        (" 3 Lamps,\n Friday", "3 lamps, friday", True),
        ("3 lamps", "3 lamps, friday", False),
        (True, True, True),
        (True, "true", True),
        (True, 1, False),
        ("", "", True),
        (None, None, False),
        (None, "None", False),
        (9007199254740993, 9007199254740992, False),
        ("nan", float("nan"), True),
        ("snan", 1, False),
        ("1e999999999", 1, False),
        ([1, "A"], [1.0, "a"], True),
        ([1], [1, 2], False),
        ([1], 1, False),
        ({"n": 1}, {"n": "1"}, True),
        ({"n": 1}, {"m": 1}, False),
    ],
)
def test_agrees(answer: Any, expected: Any, same: bool) -> None:
    assert agrees(answer, expected) is same


def test_one_line() -> None:
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    error = AllParticlesDead({"x": 2}, particles=2)
    assert one_line(error).startswith(
        "AllParticlesDead: all 2 particles have weight zero; where: killed at: x (2); fix: use more"
    )
    assert "\n" not in one_line(BadArgument("x", fix="a\nb"))


# -- the folder ---------------------------------------------------------------------------------


def record(i: int, engine: str = "e") -> ResultRecord:
    return ResultRecord(
        id=i, program="p", engine=engine, answer=f"é{i}", log_evidence=float("-inf")
    )


def test_a_result_is_on_the_disk_when_append_returns(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "r") as folder:
        for i in range(3):
            folder.append(record(i))
            assert read_results(tmp_path / "r")[0][-1] == record(i)
    line = json.loads((tmp_path / "r" / RESULTS).read_text("utf-8").splitlines()[0])
    assert line["log_evidence"] == {"$f": "-inf"}


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with RunDirectory(path) as folder:
        folder.freeze({"seed": 0}, {})
    with pytest.raises(RunError, match="holds a run already\n.*--resume"):
        RunDirectory(path)
    with RunDirectory(path, resume=True) as folder:
        folder.same({"seed": 0})
        folder.freeze({"seed": 0}, {})
        with pytest.raises(RunError, match="was started differently: seed: 0 became 1\n") as caught:
            folder.freeze({"seed": 1}, {})
        assert "--fork" in caught.value.fields["fix"]
        with pytest.raises(RunError, match=r'engines: null became \["x"\]; seed: 0 became 2'):
            folder.same({"engines": ["x"], "seed": 2})


def test_a_folder_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="is not empty, and holds no run"):
        RunDirectory(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["thesis.tex"]
    with pytest.raises(RunError, match="cannot write to .*thesis.tex.*: (file exists|not a dir)"):
        RunDirectory(tmp_path / "thesis.tex")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / RESULTS).write_text("{}\n")
    with pytest.raises(RunError, match=f"has results and no {CONFIG}"):
        RunDirectory(tmp_path / "r", resume=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot write to .*: permission denied"):
        RunDirectory(tmp_path / "r")


def test_nothing_stays_of_a_run_that_did_not_begin(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).exists()
    assert list(tmp_path.iterdir()) == []


def test_two_writers(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "r") as folder:
        folder.freeze({}, {})
        with pytest.raises(RunError, match=f"is in use by process {os.getpid()}\n"):
            RunDirectory(tmp_path / "r", resume=True)
    with RunDirectory(tmp_path / "r", resume=True):
        pass


def test_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RunError, match="its file system has no locks"):
        RunDirectory(tmp_path / "r")


@pytest.mark.parametrize("fails_at", range(3))
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_disk_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, fails_at: int
) -> None:
    """A line that could not be written leaves nothing behind; the run goes on later."""
    with RunDirectory(tmp_path / "r") as folder:
        folder.freeze({}, {})
        for i in range(fails_at):
            folder.append(record(i))
        real = os.write

        def full_disk(handle: int, data: bytes = b"") -> int:
            if call == "write" and len(data) > 10:
                return real(handle, data[:10])  # a short write first
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, full_disk)
            with pytest.raises(OutOfSpace, match=f"the {fails_at} results before") as caught:
                folder.append(record(fails_at))
        assert "no space left on device" in str(caught.value)
        assert len(folder.done) == fails_at
        folder.append(record(fails_at))
    records, torn = read_results(tmp_path / "r")
    assert [r.id for r in records] == list(range(fails_at + 1))
    assert torn == 0


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs(tmp_path)
    values = list(found)
    values[4] = 0  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(values))
    with pytest.raises(RunError, match="the disk is full"):
        RunDirectory(tmp_path / "r")


def test_a_file_cut_at_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest valid prefix is kept, the rest is moved aside, and writing goes on."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # 1,000 files
    source = tmp_path / "source"
    with RunDirectory(source) as folder:
        folder.freeze({}, {})
        for i in range(3):
            folder.append(record(i))
    whole = (source / RESULTS).read_bytes()
    config = (source / CONFIG).read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    path = tmp_path / "cut"
    for cut in range(len(whole)):
        path.mkdir(exist_ok=True)
        for file in path.iterdir():
            file.unlink()
        (path / CONFIG).write_bytes(config)
        (path / RESULTS).write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends)
        with RunDirectory(path, resume=True) as folder:
            assert [r.id for r in found(folder)] == list(range(kept))
            folder.append(record(9))
        tail = whole[ends[kept - 1] if kept else 0 : cut]
        torn = path / f"{RESULTS}.torn-1"
        assert torn.exists() == bool(tail)
        if tail:
            assert torn.read_bytes() == tail
        assert [r.id for r in read_results(path)[0]] == [*range(kept), 9]


def test_damage_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with RunDirectory(path) as folder:
        folder.freeze({}, {})
        for i in range(3):
            folder.append(record(i))
    lines = (path / RESULTS).read_bytes().splitlines(keepends=True)
    (path / RESULTS).write_bytes(lines[0] + b"\0" * 20 + b"\n" + lines[2])
    with pytest.raises(RunError, match=r"results\.jsonl:2: the line is damaged") as caught:
        RunDirectory(path, resume=True)
    assert "remove the line" in str(caught.value)
    (path / RESULTS).write_bytes(lines[0] + b"\0" * 20 + b"\n" + b"{}\n")  # nothing valid follows
    with RunDirectory(path, resume=True) as folder:
        assert [r.id for r in found(folder)] == [0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json is damaged"),
        ("[]", "config.json is damaged"),
        ('{"format": 1}', "config.json is damaged"),
        ('{"format": 99, "identity": {}}', "has format 99, this version of lmppl reads 1"),
    ],
)
def test_bad_config(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / CONFIG).write_text(content)
    with pytest.raises(RunError, match=message):
        RunDirectory(tmp_path, resume=True)
    assert not (tmp_path / RESULTS).exists()
