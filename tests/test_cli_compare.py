"""`lmppl compare`: sizes from a budget, one table, paired tests, a plot, and going on after a kill."""

from __future__ import annotations

import json
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
from lmppl.inference.questions.budget import Budget, fit_size, parse_budgets, size_of, split_engines
from lmppl.inference.questions.pareto import holm
from lmppl.inference.specs import Spec, parse_engine

TABLE = {"tokens": ["a", "b", "c", "\n"], "table": {"": [0.4, 0.3, 0.2, 0.1]}}
PROGRAM = """
import time
from lmppl import LM, effect, observe, program, sample

@program
def toy(text, wait=0.0):
    drawn = sample("drawn", LM("", max_tokens=1))
    observe("again", LM("", max_tokens=1, end=False), text if drawn == text else "c")
    effect("wait", time.sleep, wait)
    return drawn
"""
COMPARE = ["compare", "toy.py", "--data", "q.jsonl", "--lm", "table:toy.json", "--out", "out"]
Invoke = Callable[..., Result]


def write_questions(n: int, **fields: Any) -> None:
    rows = [{"id": f"q{i}", "text": "ab"[i % 2], "answer": "ab"[i % 2], **fields} for i in range(n)]
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


def results(out: str = "out") -> dict[Any, Any]:
    """What was answered, without what depends on time and shared batches."""
    found = [json.loads(line) for line in (Path(out) / "results.jsonl").read_text().splitlines()]
    names = [(r["id"], r["engine"]) for r in found]
    assert len(set(names)) == len(names), "a question was answered twice"
    return {name: (r["answer"], r["posterior"]) for name, r in zip(names, found, strict=True)}


def test_compare(invoke: Invoke) -> None:
    """`forward` spends one token a run, `smc` two: at 60 tokens, 60 and 30 particles."""
    done = invoke(*COMPARE, "--engines", "greedy,forward,smc:particles=8", "--budget", "tokens=60")
    assert done.exit_code == 0, done.output
    assert "smc:particles=4: 8 tokens a question" in done.stderr
    # P(a) = 0.4 and greedy says a: right on the six questions about a, wrong on those about b
    assert re.search(r"greedy +12 +0 +6 +0\.500 +0\.254 to 0\.746 +1 +1 +1 ", done.stdout)
    assert re.search(r"forward:particles=60 +12 +0 .* 60 +60 +1 ", done.stdout)
    assert re.search(r"smc:particles=30 +12 +0 .* 60 +60 +2 ", done.stdout)
    assert "smc:particles=30: 60 tokens a question, +0% of the budget of 60" in done.stdout
    assert "greedy: has no size: runs as it is" in done.stdout
    assert re.search(
        r"smc:particles=30 against greedy on 12 questions: [+-]\d\.\d{3} \(.*\(Holm\): ",
        done.stdout,
    )
    assert Path("out/pareto.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    report = Path("out/report.html").read_text()
    assert "At equal cost" in report and "<svg" in report and "default-src 'none'" in report
    assert "<script" not in report and "<metadata" not in report
    assert report.count("<style>") == 1
    summary = json.loads(Path("out/compare.json").read_text())
    assert [line["size"] for line in summary["engines"]] == [None, 60, 30]
    assert len(summary["pairs"]) == 3
    config = json.loads(Path("out/config.json").read_text())
    assert config["identity"]["budgets"] == ["tokens=60"]
    assert [s["engine"] for s in config["sizes"]] == [
        "greedy", "forward:particles=60", "smc:particles=30",
    ]  # fmt: skip


def test_several_budgets_and_none(invoke: Invoke) -> None:
    both = ["--engines", "forward", "--engines", "smc", "--budget", "calls=4,20"]
    done = invoke(*COMPARE, *both, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [(e["engine"], e["calls"]) for e in found["engines"]] == [
        ("forward:particles=4", 4), ("forward:particles=20", 20),
        ("smc:particles=2", 4), ("smc:particles=10", 20),
    ]  # fmt: skip
    assert {(p["first"], p["second"]) for p in found["pairs"]} == {
        ("smc:particles=2", "forward:particles=4"), ("smc:particles=10", "forward:particles=20"),
    }  # fmt: skip
    plain = invoke(*COMPARE[:-1], "plain", "--engines", "smc:particles=2,smc:particles=10")
    assert plain.exit_code == 0, plain.output
    assert "choosing" not in plain.stderr
    for name in ("smc:particles=2", "smc:particles=10"):
        assert results("plain")["q3", name] == results()["q3", name]


def test_resume(invoke: Invoke) -> None:
    """The sizes of the first start hold, nothing is answered twice, and the rest is the same."""
    options = ["--engines", "forward,smc", "--budget", "tokens=20", "--concurrency", "4"]
    assert invoke(*COMPARE[:-1], "whole", *options).exit_code == 0
    assert invoke(*COMPARE, *options, "--limit", "5").exit_code == 0
    again = invoke(*COMPARE, *options, "--resume")
    assert again.exit_code == 0, again.output
    assert "14/14 answers" in again.stderr and "choosing" not in again.stderr
    assert results() == results("whole")
    Path("toy.json").unlink()  # nothing is left: no model is loaded
    assert invoke(*COMPARE, *options, "--resume").exit_code == 0
    other = invoke(*COMPARE, *options[:2], "--budget", "tokens=30", "--resume")
    assert other.exit_code == 2
    assert 'budgets: ["tokens=20"] became ["tokens=30"]' in other.stderr


def test_show_reads_a_comparison(invoke: Invoke) -> None:
    invoke(*COMPARE, "--engines", "greedy,smc", "--budget", "tokens=20")
    shown = invoke("show", "out")
    assert shown.exit_code == 0
    assert re.search(r"smc:particles=10 +12 +0 ", shown.stdout)


def test_without_answers(invoke: Invoke) -> None:
    write_questions(3, answer=None)
    done = invoke(*COMPARE, "--engines", "greedy,smc", "--budget", "tokens=20")
    assert done.exit_code == 0, done.output
    assert "no plot: it needs questions with an answer" in done.stdout
    assert "accuracy" not in done.stdout
    assert not Path("out/pareto.png").exists()


def test_failed_questions_count_as_wrong(invoke: Invoke) -> None:
    Path("toy.py").write_text(PROGRAM.replace("    return", '    1 / (text != "b")\n    return'))
    done = invoke(*COMPARE, "--engines", "greedy,smc:particles=20", "--budget", "tokens=40")
    assert done.exit_code == 1
    assert re.search(r"smc:particles=20 +12 +6 ", done.stdout)
    assert "failed: q1 (" in done.stdout


def test_an_engine_that_always_fails_is_on_no_frontier(invoke: Invoke) -> None:
    Path("toy.py").write_text(PROGRAM.replace("    observe(", "    1 / 0\n    observe("))
    done = invoke(*COMPARE, "--engines", "greedy,smc:particles=9", "--budget", "tokens=40")
    assert done.exit_code == 1
    assert "smc:particles=9: every probe failed: runs at the size that was asked" in done.stdout
    assert not any(
        e["frontier"] for e in json.loads(Path("out/compare.json").read_text())["engines"]
    )


def test_without_matplotlib(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = invoke(*COMPARE, "--engines", "greedy,smc", "--budget", "tokens=20")
    assert done.exit_code == 0, done.output
    assert "no plot: matplotlib is not installed" in done.stdout
    assert "At equal cost" in Path("out/report.html").read_text()


MISTAKES: list[tuple[list[str], str]] = [
    (["--engines", "greedy"], "error: Missing option '--out'"),
    (
        ["--out", "o", "--engines", "greedi"],
        "error: there is no engine 'greedi'; fix: did you mean 'greedy'?",
    ),
    (
        ["--out", "o", "--engines", "smc", "--budget", "4000"],
        "error: a budget is tokens=N or calls=N, got '4000'; fix: write --budget tokens=4000",
    ),
    (
        ["--out", "o", "--engines", "smc", "--budget", "tokens=4k"],
        "error: budget 'tokens=4k': '4k' is no positive integer",
    ),
    (
        ["--out", "o", "--engines", "smc,smc:particles=4", "--budget", "tokens=9"],
        "error: smc:particles=16 and smc:particles=4 differ in particles alone, which the budget",
    ),
    (
        ["--out", "o", "--engines", "smc", "--resume", "--fork"],
        "error: --resume goes on with a run and --fork starts a new one",
    ),
]


@pytest.mark.parametrize(("args", "message"), MISTAKES)
def test_mistakes(args: list[str], message: str, invoke: Invoke) -> None:
    """One line, exit code 2, and no folder is made."""
    done = invoke(*COMPARE[:-2], *args)
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith(message)
    assert not Path("o").exists()


def test_a_run_is_no_comparison(invoke: Invoke) -> None:
    assert invoke("run", *COMPARE[1:], "--engine", "greedy").exit_code == 0
    done = invoke(*COMPARE, "--engines", "greedy", "--resume")
    assert done.exit_code == 2
    assert "was started differently" in done.stderr


def test_an_interrupt_keeps_every_finished_question(invoke: Invoke) -> None:
    write_questions(12, wait=0.05)
    options = ["--engines", "greedy,smc", "--budget", "tokens=8", "--concurrency", "2"]
    running = subprocess.Popen(
        [sys.executable, "-m", "lmppl", *COMPARE, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    path, until = Path("out/results.jsonl"), time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < 5:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    stdout, stderr = running.communicate(timeout=20)
    assert running.returncode == 130, stderr
    kept = results()
    assert 5 <= len(kept) < 24
    assert stderr.splitlines()[-1].startswith(f"interrupted: {len(kept)} results are kept in out; ")
    # engines take turns, so what is there is a comparison on nearly the same questions
    by_engine = [sum(name == e for _, name in kept) for e in ("greedy", "smc:particles=4")]
    assert abs(by_engine[0] - by_engine[1]) <= 2
    assert invoke(*COMPARE, *options, "--resume").exit_code == 0
    assert invoke(*COMPARE[:-1], "whole", *options).exit_code == 0
    assert results() == results("whole")


def test_an_interrupt_while_sizes_are_chosen_leaves_nothing(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lmppl.commands.compare.fit_size", stop)
        done = invoke(*COMPARE, "--engines", "smc", "--budget", "tokens=8")
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-1] == "interrupted"
    assert not Path("out").exists()
    assert invoke(*COMPARE, "--engines", "smc", "--budget", "tokens=8").exit_code == 0


# -- sizes --------------------------------------------------------------------------------------


def costs(per_particle: float, fixed: float = 0.0) -> tuple[Callable[[Spec], float], list[int]]:
    """An engine whose spend is known, and the sizes at which it was asked."""
    asked: list[int] = []

    def ask(spec: Spec) -> float:
        found = size_of(spec)
        assert found is not None
        asked.append(found[1])
        return fixed + per_particle * found[1]

    return ask, asked


@pytest.mark.parametrize(
    ("per_particle", "fixed", "amount", "size"),
    [(2.0, 0.0, 100, 50), (3.0, 40.0, 100, 20), (7.0, 0.0, 100, 14), (1.0, 0.0, 1_000_000, 20_000)],
)
def test_a_size_meets_its_budget(per_particle: float, fixed: float, amount: int, size: int) -> None:
    ask, asked = costs(per_particle, fixed)
    found = fit_size(parse_engine("smc"), Budget("tokens", amount), ask)
    assert found.size == size
    assert found.expected == pytest.approx(fixed + per_particle * size)
    assert len(asked) <= 4


def test_what_cannot_meet_its_budget_says_so() -> None:
    above = fit_size(parse_engine("smc"), Budget("tokens", 10), costs(30.0)[0])
    assert (above.size, above.note) == (1, "spends more than the budget even at particles=1")
    constant = fit_size(parse_engine("smc"), Budget("tokens", 100), costs(0.0, 10.0)[0])
    assert constant.note == "its spend does not follow its size"
    broken = fit_size(parse_engine("smc:particles=9"), Budget("tokens", 100), lambda spec: None)
    assert (broken.engine, broken.note[:18]) == ("smc:particles=9", "every probe failed")


def test_the_length_of_a_chain_is_its_size() -> None:
    ask, _ = costs(3.0)
    found = fit_size(parse_engine("particle_gibbs:particles=4"), Budget("tokens", 60), ask)
    assert found.engine == "particle_gibbs:particles=4,sweeps=20"
    # 20 sweeps are fewer than it throws away: it runs at what was asked for
    burn = fit_size(parse_engine("particle_gibbs:burn_in=50"), Budget("tokens", 60), ask)
    assert (burn.size, burn.expected) == (100, 300)
    assert burn.note == "spends more than the budget even at sweeps=100"


def test_lists_of_engines_and_budgets() -> None:
    text = 'smc:particles=8,resample_at=tokens(8),greedy, forward:particles=2,"x"'
    assert split_engines([text, "beam"])[:3] == [
        "smc:particles=8,resample_at=tokens(8)", "greedy", "forward:particles=2",
    ]  # fmt: skip
    assert parse_budgets(["tokens=10", "calls=2"]) == [Budget("tokens", 10), Budget("calls", 2)]
    assert holm([0.5, 0.001, 0.02]) == pytest.approx([0.5, 0.003, 0.04])
