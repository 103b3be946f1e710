"""The demonstration on an exact model: its order, its budgets of tokens and seconds, what it says."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lmppl import LM, program, sample
from lmppl.cli import cli
from lmppl.commands.demo import PROGRAMS, SMC

TABLE = {"tokens": ["a", "b", "c", "\n"], "table": {"": [0.4, 0.3, 0.2, 0.1]}}
PROGRAM = """
from lmppl import LM, Choice, observe, program, sample

@program
def {name}(wanted):
    drawn = sample("drawn", LM("a", max_tokens=3, stop="\\n"))
    observe("first", Choice(drawn, ["a", "b", "c"]), wanted)
    return "abc"[(len(drawn) + ord(wanted)) % 3]
"""
Invoke = Callable[..., Result]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """`lmppl demo` with three toy programs of eight questions."""
    monkeypatch.chdir(tmp_path)
    examples = tmp_path / "examples"
    (examples / "data").mkdir(parents=True)
    for source, data in PROGRAMS:
        file, name = source.split(":")
        body = PROGRAM.format(name=name)
        (examples / file).write_text(body)
        rows = [{"id": f"{name}-{i}", "wanted": "abc"[i % 3], "answer": "a"} for i in range(8)]
        (examples / "data" / data).write_text("".join(json.dumps(r) + "\n" for r in rows))
    Path("toy.json").write_text(json.dumps(TABLE))
    monkeypatch.setattr("lmppl.commands.demo.find_examples", lambda: examples)

    def run(*args: str) -> Result:
        return CliRunner().invoke(
            cli, ["demo", "--lm", "table:toy.json", "--out", "out", *args], prog_name="lmppl"
        )

    return run


def rows(out: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(out) / "results.jsonl").read_text().splitlines()]


def test_demo(demo: Invoke) -> None:
    done = demo()
    assert done.exit_code == 0, done.output
    found = rows()
    assert len(found) == 3 * 3 * 8
    assert "72/72 answers" in done.stderr
    for name in ("word_problem", "record", "two_hop"):
        engines = {r["engine"] for r in found if r["program"] == name}
        assert len(engines) == 3
        assert {"greedy", SMC} < engines
        assert re.search(
            rf"{name}: SMC answers \d of 8 right, plain sampling with a majority", done.stdout
        )
    assert "all programs together: SMC answers" in done.stdout
    assert re.search(
        r"such as word_problem-\d: [abc]\n    expected +a\n    greedy +[abc]\n", done.stdout
    )
    assert "report:  out/report.html" in done.stdout
    assert Path("out/report.html").exists()
    summary = json.loads(Path("out/summary.json").read_text())
    assert len(summary["engines"]) == 9
    assert len(summary["findings"]) == 4
    assert not summary["out_of_time"]
    total = sum(f["against_greedy"]["n"] for f in summary["findings"][:3])
    assert total == summary["findings"][3]["against_greedy"]["n"] == 24


def test_other_questions(demo: Invoke, tmp_path: Path) -> None:
    """`--questions` takes a folder of the same file names, and is another run."""
    demo()
    other = tmp_path / "other"
    other.mkdir()
    for source, data in PROGRAMS:
        row = {"id": f"new-{source.split(':')[1]}", "wanted": "b", "answer": "b"}
        (other / data).write_text(json.dumps(row) + "\n")
    done = demo("--questions", str(other))
    assert done.exit_code == 0, done.output
    assert "out holds another run; writing to out-2" in done.stderr
    assert {r["id"] for r in rows("out-2")} == {"new-word_problem", "new-record", "new-two_hop"}
    assert demo("--questions", "absent").exit_code == 2


def test_plain_sampling_has_at_least_the_tokens_of_smc(demo: Invoke) -> None:
    """On the first round, from which its particles are counted, within one particle."""
    demo()
    first = [r for r in rows() if int(r["id"].rsplit("-")[-1]) < 5 and r["program"] == "record"]
    tokens = {"smc": 0, "forward": 0}
    for r in first:
        kind = r["engine"].partition(":")[0]
        if kind in tokens:
            tokens[kind] += r["tokens_in"] + r["tokens_out"]
    assert tokens["smc"] > 1.5 * 16 * 5  # observations cost something here
    assert 0.9 < tokens["forward"] / tokens["smc"] < 1.2


def test_again_and_changed(demo: Invoke) -> None:
    demo()
    before = Path("out/results.jsonl").read_bytes()
    again = demo()
    assert again.exit_code == 0
    assert "out has 72 results of this demonstration already; going on" in again.stderr
    assert Path("out/results.jsonl").read_bytes() == before
    other = demo("--seed", "1")
    assert "out holds another run; writing to out-2" in other.stderr
    assert len(rows("out-2")) == 72


def test_a_cut_run_goes_on_with_the_same_particles(demo: Invoke) -> None:
    demo()
    lines = Path("out/results.jsonl").read_text().splitlines(keepends=True)
    whole = {(r["id"], r["engine"]): r["posterior"] for r in rows()}
    Path("out/results.jsonl").write_text("".join(lines[:40]))
    assert demo().exit_code == 0
    assert {(r["id"], r["engine"]): r["posterior"] for r in rows()} == whole


def test_the_time_is_up(demo: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first round runs whatever the time, and every program has as many answers."""

    class Slow:
        """A clock that goes on by ten seconds whenever the demonstration reads it.

        It starts at the time of day, so that the runner's own clock is never past the end.
        """

        now = time.monotonic()
        strftime, gmtime = staticmethod(time.strftime), staticmethod(time.gmtime)

        def monotonic(self) -> float:
            self.now += 10.0
            return self.now

    monkeypatch.setattr("lmppl.commands.demo.time", Slow())
    done = demo("--seconds", "60")
    assert done.exit_code == 0
    assert "The time was up before all questions were asked; give more by --seconds." in done.stdout
    assert Counter(r["engine"].partition(":")[0] for r in rows()) == {
        "greedy": 24, "smc": 15, "forward": 15,
    }  # fmt: skip
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["out_of_time"]
    assert [s["questions"] for s in summary["engines"]] == [5] * 9


def test_without_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lmppl.commands.demo.__file__", str(tmp_path / "lib" / "lmppl" / "demo.py"))
    done = CliRunner().invoke(cli, ["demo", "--out", "out"])
    assert done.exit_code == 2
    assert done.stderr.startswith(
        "error: the demonstration needs the folder examples/, which the package does not contain; "
    )
    assert done.stderr.endswith("fix: run it in a clone of the repository: make demo\n")
    assert not Path("out").exists()


def test_no_batch_is_begun_after_the_end(tmp_path: Path) -> None:
    """A task that takes too long is cut off: what is finished stays, nothing else runs."""
    from lmppl.commands.run import answer
    from lmppl.data import Question
    from lmppl.inference.questions.rundir import RunDirectory
    from lmppl.inference.questions.runs import Task
    from lmppl.inference.specs import parse_engine
    from lmppl.lm.table import TableLM

    lm = TableLM(TABLE["tokens"], {(): TABLE["table"][""]})  # type: ignore[index,arg-type]

    @program
    def slow(wanted: str) -> str:
        time.sleep(0.05)
        return str(sample("drawn", LM(wanted, max_tokens=1)))

    asked = [Question(i, {"wanted": "a"}) for i in range(40)]
    task = Task(slow, "slow", parse_engine("forward:particles=1"), asked)
    with RunDirectory(tmp_path / "run") as folder:
        folder.freeze({}, {})
        until = time.monotonic() + 0.5
        outcome = answer([task], folder, 40, {"default": lm}, until=until, concurrency=1)
        assert outcome.out_of_time and not outcome.interrupted
        assert 0 < outcome.answered == len(outcome.records) < 40
        rest = answer([task], folder, 40 - outcome.answered, {"default": lm})
        assert not rest.out_of_time
        assert len(rest.records) == 40
