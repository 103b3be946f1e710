"""The command line: what it answers, what it says to mistakes, and what a kill leaves behind."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lmppl.cli import cli
from lmppl.commands.console import Progress, clean, show_table

TABLE = {"tokens": ["a", "b", "c", "\n"], "table": {"": [0.4, 0.3, 0.2, 0.1]}}
PROGRAM = """
import time
from lmppl import LM, effect, factor, program, sample

@program
def toy(text, bias=0.0, wait=0.0):
    drawn = sample("drawn", LM(text, max_tokens=3, stop="\\n"))
    factor("length", bias * len(drawn))
    effect("wait", time.sleep, wait)
    return drawn[:1]
"""
RUN = ["run", "toy.py", "--data", "q.jsonl", "--lm", "table:toy.json", "--out", "out"]
Invoke = Callable[..., Result]


def write_questions(n: int, **fields: Any) -> None:
    rows = [
        {"id": f"q{i}", "text": "abc"[i % 3], "bias": 0.2 * (i % 4), "answer": "a", **fields}
        for i in range(n)
    ]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a program, a table, and twelve questions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("toy.py").write_text(PROGRAM)
    Path("toy.json").write_text(json.dumps(TABLE))
    write_questions(12)
    return tmp_path


@pytest.fixture
def invoke() -> Invoke:
    """Run a command in this process."""

    def run(*args: str) -> Result:
        return CliRunner().invoke(cli, list(args), prog_name="lmppl")

    return run


def results(out: str = "out") -> dict[Any, dict[str, Any]]:
    """What a run has found, without what depends on time and on shared batches."""
    rows = [json.loads(line) for line in (Path(out) / "results.jsonl").read_text().splitlines()]
    names = [(r["id"], r["engine"]) for r in rows]
    assert len(set(names)) == len(names), "a question was answered twice"
    for row in rows:
        row.pop("seconds")
        row.pop("ledger", None)
    return dict(zip(names, rows, strict=True))


# -- what it answers ----------------------------------------------------------------------------


def test_run(invoke: Invoke) -> None:
    done = invoke(*RUN, "--engine", "greedy", "--engine", "smc:particles=4")
    assert done.exit_code == 0, done.output
    assert re.search(r"greedy +12 +0 +12 +1\.000 +0\.75[78] to 1\.000 +\d+", done.stdout)
    assert "smc:particles=4 against greedy on 12 questions of toy: " in done.stdout
    assert "results: out/results.jsonl\nreport:  out/report.html\n" in done.stdout
    assert "24/24 answers" in done.stderr
    rows = results()
    assert len(rows) == 24
    row = rows["q3", "smc:particles=4"]
    assert (row["program"], row["gold"], row["particles"]) == ("toy", "a", 4)
    assert row["question"] == {"text": "a", "bias": pytest.approx(0.6), "wait": None} or row[
        "question"
    ] == {"text": "a", "bias": pytest.approx(0.6)}
    assert sum(p for _, p, _ in row["posterior"]) == pytest.approx(1.0)
    assert "<html" in Path("out/report.html").read_text()
    config = json.loads(Path("out/config.json").read_text())
    assert config["identity"]["engines"] == ["greedy", "smc:particles=4"]
    assert config["identity"]["models"]["default"].startswith("table:")
    assert config["versions"]["lmppl-lang"]


def test_results_do_not_depend_on_batches(invoke: Invoke) -> None:
    invoke(*RUN)
    assert invoke(*RUN[:-1], "one", "--concurrency", "1").exit_code == 0
    assert invoke(*RUN[:-1], "seed", "--seed", "1").exit_code == 0
    assert invoke(*RUN[:-1], "eager", "--driver", "eager").exit_code == 0
    assert results() == results("one") == results("eager") != results("seed")


def test_json(invoke: Invoke) -> None:
    done = invoke(*RUN, "--json", "--limit", "5")
    found = json.loads(done.stdout)
    assert found["exit_code"] == done.exit_code == 0
    assert (found["answered"], found["interrupted"], found["failed"]) == (5, False, [])
    (engine,) = found["engines"]
    assert engine["engine"] == "smc:particles=16"
    assert engine["questions"] == 5
    assert engine["interval"][0] <= engine["accuracy"] <= engine["interval"][1]
    assert len(results()) == 5


def test_without_answers(invoke: Invoke) -> None:
    write_questions(3, answer=None)
    done = invoke(*RUN)
    assert done.exit_code == 0
    assert "accuracy" not in done.stdout
    assert results()["q0", "smc:particles=16"]["correct"] is None


def test_failed_questions(invoke: Invoke) -> None:
    Path("toy.py").write_text(PROGRAM + '    if text == "b":\n        raise OSError(text)\n')
    Path("toy.py").write_text(PROGRAM.replace("    return", '    1 / (text != "b")\n    return'))
    done = invoke(*RUN)
    assert done.exit_code == 1
    assert re.search(r"smc:particles=16 +12 +4 ", done.stdout)
    assert "failed: q1 (smc:particles=16): SiteError: " in done.stdout
    assert "ZeroDivisionError" in done.stdout
    assert "failed: 1 more, see the results" in done.stdout
    assert "Traceback" not in done.output
    assert sum(row["error"] is not None for row in results().values()) == 4
    debug = invoke(*RUN[:-1], "debug", "--debug")
    assert debug.exit_code == 1
    assert "Traceback" in debug.stderr
    kill = invoke(*RUN[:-1], "kill", "--on-error", "kill")
    assert "all 16 particles have weight zero" in kill.stdout


def test_program_files(invoke: Invoke) -> None:
    """A name after the colon, several programs, and a helper beside the program."""
    Path("helper.py").write_text("def first(text):\n    return text[:1]\n")
    Path("two.py").write_text(
        PROGRAM.replace("drawn[:1]", "first(drawn)") + "\nfrom helper import first\n"
        "\n@program\ndef other(text, bias):\n    return text\n"
    )
    two = ["run", "two.py:toy", *RUN[2:]]
    assert invoke(*two).exit_code == 0
    invoke(*RUN[:-1], "plain")
    assert {k: v["answer"] for k, v in results().items()} == {
        k: v["answer"] for k, v in results("plain").items()
    }
    Path("helper.py").write_text("def first(text):\n    return text[-1:]\n")
    sys.modules.pop("helper")
    changed = invoke(*two, "--resume")
    assert changed.exit_code == 2
    assert "out was started differently: program: toy " in changed.stderr


def test_no_model_is_loaded_when_nothing_is_left(invoke: Invoke) -> None:
    invoke(*RUN)
    Path("toy.json").unlink()
    assert invoke(*RUN, "--resume").exit_code == 0


def test_resume_and_fork(invoke: Invoke) -> None:
    invoke(*RUN[:-1], "whole")
    assert invoke(*RUN, "--limit", "4").exit_code == 0
    assert invoke(*RUN).exit_code == 2
    resumed = invoke(*RUN, "--resume")
    assert resumed.exit_code == 0
    assert "8/8 answers" in resumed.stderr
    assert results() == results("whole")
    fork = invoke(*RUN, "--fork", "--seed", "1")
    assert fork.exit_code == 0
    assert "out stays as it is; out-2 starts anew, nothing is reused" in fork.stderr
    assert results("out-2") != results()


def test_show(invoke: Invoke) -> None:
    invoke(*RUN)
    Path("out/report.html").unlink()
    shown = invoke("show", "out")
    assert shown.exit_code == 0
    assert re.search(r"smc:particles=16 +12 +0 ", shown.stdout)
    assert Path("out/report.html").exists()
    assert json.loads(invoke("show", "out", "--json").stdout)["engines"][0]["questions"] == 12


def test_check(invoke: Invoke) -> None:
    fine = invoke("check", "toy.py", "--lm", "table:toy.json", "--data", "q.jsonl")
    assert fine.exit_code == 0
    assert fine.stdout.startswith("toy: ok\n  checked: ")
    Path("bad.py").write_text(
        "import random\nfrom lmppl import Uniform, program, sample\n\n@program\ndef bad():\n"
        "    x = random.random()\n    return sample('y', Uniform([x, 2.0]))\n"
    )
    bad = invoke("check", "bad.py", "--lm", "none")
    assert bad.exit_code == 1
    assert "the random module was used between 'the start' and 'y'" in bad.stdout


def test_models(invoke: Invoke) -> None:
    shown = invoke("models")
    assert shown.exit_code == 0
    assert re.search(r"smollm2 +(yes|no) +SmolLM2-135M-Instruct", shown.stdout)
    assert "table:FILE.json" in shown.stdout
    assert "hf download OWNER/NAME" in shown.stdout
    assert json.loads(invoke("models", "--json").stdout)[0]["name"] == "smollm2"


def test_help_needs_nothing_heavy() -> None:
    script = "import sys; from lmppl.cli import cli; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "lmppl.cli" in loaded
    assert not loaded & {"torch", "rich", "pydantic", "lmppl.inference", "lmppl.commands.run"}


# -- what it says to mistakes -------------------------------------------------------------------

MISTAKES: list[tuple[list[str], str]] = [
    ([], "Usage: lmppl [OPTIONS] COMMAND [ARGS]..."),
    (["rnu"], "error: no command 'rnu'; did you mean 'run'? (see lmppl --help)"),
    (
        [*RUN, "--enigne", "smc"],
        "error: No such option '--enigne'. Did you mean '--engine'? (see lmppl run --help)",
    ),
    (
        [*RUN, "--engine", "scm"],
        "error: there is no engine 'scm'; fix: did you mean 'smc'? the engines are ",
    ),
    (
        [*RUN, "--engine", "smc:particle=4"],
        "error: engine smc has no argument 'particle'; fix: did you mean 'particles'? it takes ",
    ),
    (
        [*RUN, "--engine", "smc", "--engine", "smc:particles=16"],
        "error: engine smc:particles=16 is given twice; fix: leave one out",
    ),
    ([*RUN, "--seed", "one"], "error: Invalid value for '--seed': 'one' is not a valid integer."),
    ([*RUN, "--concurrency", "0"], "error: Invalid value for '--concurrency': 0 is not in the"),
    (["run", "toy.py", "--out", "out"], "error: Missing option '--data'. (see lmppl run --help)"),
    (
        ["run", "toyy.py", *RUN[2:]],
        "error: toyy.py: no such file; fix: did you mean toy.py?",
    ),
    (["run", "toy.py:toi", *RUN[2:]], "error: toy.py has no 'toi'; fix: did you mean 'toy'?"),
    (
        ["run", "two.py", *RUN[2:]],
        "error: two.py has 2 programs (two.py:f, two.py:g); fix: name one",
    ),
    (
        ["run", "none.py", *RUN[2:]],
        "error: none.py has 0 programs (none); fix: decorate a function",
    ),
    (["run", "syntax.py", *RUN[2:]], "error: syntax.py:1:5: invalid syntax"),
    (
        ["run", "raises.py", *RUN[2:]],
        "error: raises.py:2: importing it raised NameError: name 'y' is not defined",
    ),
    (["run", "exits.py", *RUN[2:]], "error: exits.py:1: importing it raised SystemExit: 3"),
    (["run", "toy.json", *RUN[2:]], "error: toy.json is no Python file; fix: give a file whose"),
    (
        [*RUN, "--data", "p.jsonl"],
        "error: p.jsonl: no such file or directory; fix: did you mean q.jsonl?",
    ),
    ([*RUN, "--data", "comma.jsonl"], "error: comma.jsonl:1:29: trailing comma"),
    ([*RUN, "--data", "field.jsonl"], "error: field.jsonl:1: missing field 'text'"),
    (
        [*RUN, "--data", "id.jsonl"],
        "error: id.jsonl:2: id '1' occurs already in line 1 (written 1 there)",
    ),
    ([*RUN, "--lm", "judge=x", "--lm", "y"], "error: two language models are called 'default': "),
    (
        [*RUN[:5], "table:no.json", *RUN[6:]],
        "error: no language model 'table:no.json'; where: looked for no.json; fix: give the path",
    ),
    (
        [*RUN[:5], "nosuch", *RUN[6:]],
        "error: no language model 'nosuch'; where: looked for a folder nosuch; ",
    ),
    ([*RUN[:-1], "toy.py"], "error: cannot write to toy.py: file exists; fix: name another --out"),
    ([*RUN[:-1], "."], "error: . is not empty, and holds no run; fix: name another --out"),
    (
        [*RUN, "--resume", "--fork"],
        "error: --resume goes on with a run and --fork starts a new one",
    ),
    (["show", "nowhere"], "error: nowhere is no run folder"),
    (
        ["check", "toy.py", "--lm", "none"],
        "error: toy.py: missing field 'text': give a question by --data (see lmppl check --help)",
    ),
]


@pytest.mark.parametrize(("args", "message"), MISTAKES, ids=[" ".join(a[-2:]) for a, _ in MISTAKES])
def test_mistakes(
    args: list[str], message: str, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, exit code 2, no folder, and no model loaded before data and program are right."""
    pytest.importorskip("torch")  # without it, a model that is not here is another message
    two = PROGRAM.split("@program")[0] + "@program\ndef f(): ...\n@program\ndef g(): ...\n"
    Path("two.py").write_text(two)
    Path("none.py").write_text("def f(): ...\n")
    Path("syntax.py").write_text("def (:\n")
    Path("raises.py").write_text("x = 1\nx = y\n")
    Path("exits.py").write_text("raise SystemExit(3)\n")
    Path("comma.jsonl").write_text('{"id": "q", "text": "abcdef",}\n')
    Path("field.jsonl").write_text('{"id": "q", "txt": "abcdef"}\n')
    Path("id.jsonl").write_text('{"id": 1, "text": "a"}\n{"id": "1", "text": "a"}\n')
    if "no.json" not in message and "nosuch" not in message:

        def refuse(*_: Any, **__: Any) -> None:
            pytest.fail("a model was loaded")

        monkeypatch.setattr("lmppl.lm.load.load", refuse)
    before = sorted(os.listdir())
    done = invoke(*args)
    assert done.exit_code == 2, done.output
    assert done.stdout == "" or done.stdout.startswith("Usage")
    lines = done.stderr.splitlines() or done.stdout.splitlines()
    assert lines[0].startswith(message)
    if "field.jsonl" not in args and message.startswith("error"):
        assert len(lines) == 1, lines
    assert "Traceback" not in done.output
    assert [f for f in sorted(os.listdir()) if f != "__pycache__"] == before


def test_all_bad_lines_before_anything_runs(invoke: Invoke) -> None:
    rows = Path("q.jsonl").read_text().splitlines()
    for i in (3, 5, 8):
        rows[i] = rows[i].replace("text", "txet")
    Path("q.jsonl").write_text("\n".join(rows) + "\n")
    done = invoke(*RUN)
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert [line.split(":")[2] for line in lines] == ["4", "4", "6", "6", "9", "9"]
    assert lines[1] == (
        "error: q.jsonl:4: field 'txet' is no argument of the program: did you mean 'text'?"
    )


def test_a_changed_run_is_refused(invoke: Invoke) -> None:
    invoke(*RUN, "--limit", "3")
    before = Path("out/results.jsonl").read_bytes()

    def refused(*args: str) -> str:
        done = invoke(*RUN, *args, "--resume")
        assert done.exit_code == 2
        (line,) = done.stderr.splitlines()
        found = re.fullmatch(r"error: out was started differently: (.*?); why: .*", line)
        assert found, line
        return found[1]

    assert refused("--seed", "7") == "seed: 0 became 7"
    assert refused("--engine", "greedy") == 'engines: ["smc:particles=16"] became ["greedy"]'
    assert refused("--on-error", "kill") == "on_error: raise became kill"
    Path("toy.json").write_text(json.dumps({**TABLE, "table": {"": [0.3, 0.4, 0.2, 0.1]}}))
    assert re.fullmatch(
        r'models: \{"default": "table:\w+"\} became \{"default": "table:\w+"\}', refused()
    )
    Path("toy.json").write_text(json.dumps(TABLE))
    write_questions(13)
    assert re.fullmatch(r"data: \w{16} became \w{16}", refused())
    write_questions(12)
    Path("toy.py").write_text(PROGRAM.replace("[:1]", "[:2]"))
    assert re.fullmatch(r"program: toy \w{16} became toy \w{16}", refused())
    Path("toy.py").write_text(PROGRAM)
    assert Path("out/results.jsonl").read_bytes() == before
    assert invoke(*RUN, "--resume").exit_code == 0


def test_a_defect_is_told_as_one(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("inner")

    monkeypatch.setattr("lmppl.commands.run.run_tasks", broken)
    done = invoke(*RUN)
    assert done.exit_code == 70
    assert done.stderr == (
        "error: defect of lmppl: KeyError: 'inner'\n"
        "error: run it again with --debug and report the traceback\n"
    )
    assert "Traceback" in invoke(*RUN, "--resume", "--debug").stderr


def test_a_full_disk_can_be_resumed(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmppl.inference.questions.rundir import OutOfSpace, RunDirectory

    invoke(*RUN[:-1], "whole")
    append = RunDirectory.append

    def full(folder: RunDirectory, record: Any) -> None:
        if len(folder.done) == 5:
            raise OutOfSpace("out/results.jsonl: no space left on device", fix="make room")
        append(folder, record)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append", full)
        done = invoke(*RUN)
    assert done.exit_code == 75
    assert done.stderr.splitlines()[-1] == (
        "error: out/results.jsonl: no space left on device; fix: make room"
    )
    assert len(results()) == 5
    assert invoke(*RUN, "--resume").exit_code == 0
    assert results() == results("whole")


# -- what it shows ------------------------------------------------------------------------------


def test_escape_sequences_are_shown_and_not_obeyed(invoke: Invoke) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\u202e\r[bold red]x[/]"
    assert clean(evil) == "\\x1b[2J\\x1b]0;owned\\x07\\u202e [bold red]x[/]"
    assert clean("é😀 日本") == "é😀 日本"
    assert clean("x" * 50, 10) == "x" * 9 + "…"
    row = {"id": f"{evil}", "text": "a"}
    Path("q.jsonl").write_text(json.dumps(row) + "\n")
    Path("toy.py").write_text(PROGRAM.replace("return drawn", f"raise OSError({evil!r})"))
    done = invoke(*RUN)
    assert done.exit_code == 1
    shown = done.output.replace("\n", "")
    assert shown.isprintable(), shown
    assert "failed: \\x1b[2J" in shown and "[bold red]x[/]" in shown


def test_tables_read_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("[red]name[/]", "n"), [("[bold]x[/] :smile:", "1")], title="[t]")
    shown = capsys.readouterr().out
    assert "[bold]x[/] :smile:" in shown and "[t]" in shown and "[red]name[/]" in shown


class Terminal(io.StringIO):
    """What rich takes for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("no_color", [False, True])
def test_the_bar_of_a_terminal(no_color: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    screen, computed = Terminal(), iter(range(0, 10**9, 1000))
    with Progress(4, lambda: next(computed), screen) as bar:
        bar.beat("smc")
        for i in range(3):
            bar.advance("smc", failed=i == 0)
    shown = screen.getvalue()
    assert "3/4" in shown
    assert re.search(r"1 failed · [\d,]+ tokens/s · [\d,.]+ answers/min · [\d.]+ s left", shown)
    assert bool(re.search(r"\x1b\[[\d;]*3[0-9;]*m", shown)) is not no_color  # colours


def test_plain_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    screen = io.StringIO()
    with Progress(4, lambda: int(clock[0] * 100), screen) as bar:
        for _ in range(4):
            clock[0] += 3
            bar.beat("smc")
            clock[0] += 3
            bar.advance("smc", failed=False)
    assert screen.getvalue().splitlines() == [
        "1/4 answers · smc · 100 tokens/s · 10.0 answers/min · 18 s left",
        "2/4 answers · smc · 100 tokens/s · 10.0 answers/min · 12 s left",
        "3/4 answers · smc · 100 tokens/s · 10.0 answers/min · 6.0 s left",
        "4/4 answers · smc · 100 tokens/s · 10.0 answers/min · 24 s",
        "4/4 answers · 100 tokens/s · 10.0 answers/min · 24 s",
    ]


# -- what a kill leaves behind ------------------------------------------------------------------


def start(*args: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lmppl", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def wait_for(running: subprocess.Popen[str], lines: int, out: str = "out") -> None:
    """Until so many results are there."""
    path = Path(out) / "results.jsonl"
    until = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_an_interrupt_keeps_every_finished_question(number: signal.Signals, invoke: Invoke) -> None:
    write_questions(20, wait=0.05)
    slow = [*RUN, "--concurrency", "2"]
    running = start(*slow)
    wait_for(running, 3)
    running.send_signal(number)
    stdout, stderr = running.communicate(timeout=10)
    assert running.returncode == 130, stderr
    kept = results()
    assert 3 <= len(kept) < 20
    assert stderr.splitlines()[-1] == (
        f"interrupted: {len(kept)} results are kept in out; "
        "go on with the same command and --resume"
    )
    assert re.search(rf"smc:particles=16 +{len(kept)} ", stdout)
    assert invoke(*slow, "--resume").exit_code == 0
    assert invoke(*RUN[:-1], "whole").exit_code == 0
    assert results() == results("whole")


def test_an_interrupt_does_not_wait_for_a_tool() -> None:
    write_questions(2, wait=60)
    running = start(*RUN, "--engine", "forward:particles=2")
    until = time.monotonic() + 60
    while not Path("out/config.json").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(0.5)
    began = time.monotonic()
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=10)
    assert running.returncode == 130
    assert time.monotonic() - began < 5


def test_a_second_interrupt_ends_at_once() -> None:
    """Even where the program catches the first one and goes on."""
    Path("toy.py").write_text(
        PROGRAM.replace(
            "    return",
            "    import pathlib\n    while True:\n        try:\n"
            "            pathlib.Path('there').touch()\n            time.sleep(9)\n"
            "        except BaseException:\n            pathlib.Path('caught').touch()\n    return",
        )
    )
    running = start(*RUN, "--engine", "forward:particles=1")
    for mark in ("there", "caught"):
        until = time.monotonic() + 60
        while not Path(mark).exists():
            assert running.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
    running.communicate(timeout=5)
    assert running.returncode == 130


@pytest.mark.parametrize("kills", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_kill_9_and_resume(kills: int, invoke: Invoke) -> None:
    """Killed at different times: nothing seen is lost, nothing is there twice."""
    write_questions(6 * kills, wait=0.04)
    seen: dict[Any, Any] = {}
    for kill in range(kills):
        running = start(*RUN, "--resume", "--concurrency", "3")
        wait_for(running, len(seen) + 1 + kill % 3)
        time.sleep(0.007 * (kill % 11))
        running.kill()
        running.communicate()
        text = Path("out/results.jsonl").read_text()
        complete = text[: text.rfind("\n") + 1]
        rows = [json.loads(line) for line in complete.splitlines()]
        found = {r["id"]: (r["answer"], r["posterior"]) for r in rows}
        assert len(found) == len(rows)
        assert all(found[name] == row for name, row in seen.items())
        seen = found
    assert invoke(*RUN, "--resume").exit_code == 0
    assert invoke(*RUN[:-1], "whole").exit_code == 0
    assert results() == results("whole")


def test_two_processes_on_one_run(invoke: Invoke) -> None:
    write_questions(20, wait=0.2)
    running = start(*RUN, "--concurrency", "1")
    wait_for(running, 1)
    second = invoke(*RUN, "--resume")
    running.kill()
    running.communicate()
    assert second.exit_code == 2
    assert second.stderr.startswith(f"error: out is in use by process {running.pid}; fix: ")


def test_a_reader_that_goes_away() -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "lmppl", *RUN], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stdout is not None
    running.stdout.close()
    _, stderr = running.communicate(timeout=60)
    assert b"Traceback" not in stderr
    assert b"defect" not in stderr
    assert len(results()) == 12
