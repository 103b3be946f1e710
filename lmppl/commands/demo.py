"""`lmppl demo`: three programs, three engines, one small language model, side by side.

    greedy                   one run, the most probable token everywhere
    forward:particles=N      plain sampling and a majority vote; N so that it spends as many tokens
                             as SMC, rounded up: one of its particles costs what a greedy run does
    smc:particles=8          the posterior: observations count

Tokens are the logical ones of the ledger: prompts and drawn tokens of every particle, and what an
observation scores. After the greedy runs, questions run in rounds, each of a few questions of every
program, so that a budget of seconds cuts all programs alike; a round starts only if the last one
would fit into the time that is left, and one that takes longer is cut off. Engines are compared on
the questions that all have answered.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lmppl.atomic import write_atomic
from lmppl.commands.console import clean, duration, say, show_table
from lmppl.commands.loading import Loaded, load_models, load_program
from lmppl.commands.run import Outcome, answer, show, write_report
from lmppl.data import Question, Questions, fits, read_questions
from lmppl.errors import DataError
from lmppl.inference.questions.compare import Paired
from lmppl.inference.questions.rundir import RunDirectory, RunError
from lmppl.inference.questions.runs import Summary, Task, compare, summarise
from lmppl.inference.specs import parse_engine
from lmppl.records import ResultRecord

PROGRAMS = (
    ("word_problems.py:word_problem", "word_problems.jsonl"),
    ("records.py:record", "records.jsonl"),
    ("two_hop.py:two_hop", "two_hop.jsonl"),
)
GREEDY = "greedy"
SMC = "smc:particles=8"
PARTICLES = 8
ROUND = 5
"""Questions of each program in a round."""
SHOWN = 3
"""Answers of a posterior that are shown."""


class Job(NamedTuple):
    """A program and its questions."""

    loaded: Loaded
    questions: Questions


@dataclass
class Plan:
    """What the demonstration does, round by round."""

    jobs: list[Job]
    folder: RunDirectory
    until: float
    """When no round starts any more, on the monotonic clock."""
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    """Wall time by program and engine."""
    out_of_time: bool = False

    @property
    def rounds(self) -> int:
        """How many rounds all questions need."""
        return math.ceil(max(len(job.questions) for job in self.jobs) / ROUND)

    def tasks(self) -> Iterator[Task]:
        """The tasks in order, as long as there is time."""
        for job in self.jobs:
            yield from self._timed(job, GREEDY, job.questions)
        longest = 0.0
        for n in range(self.rounds):
            began = time.monotonic()
            if n and began + longest > self.until:
                self.out_of_time = True
                return
            for job in self.jobs:
                asked = job.questions[n * ROUND : (n + 1) * ROUND]
                if not asked:
                    continue
                yield from self._timed(job, SMC, asked)
                yield from self._timed(job, self._plain(job), asked)
            longest = max(longest, time.monotonic() - began)

    def _timed(self, job: Job, engine: str, asked: Sequence[Question]) -> Iterator[Task]:
        task = Task(job.loaded.program, job.loaded.name, parse_engine(engine), asked)
        began = time.monotonic()
        yield task
        name = job.loaded.name, engine
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def _plain(self, job: Job) -> str:
        """Plain sampling with as many tokens as SMC took for the first questions of a program."""
        names = [str(name) for name in job.questions.ids[:ROUND]]

        def tokens(engine: str) -> int:
            return sum(self.folder.done[job.loaded.name, engine, name].tokens for name in names)

        n = math.ceil(tokens(SMC) / tokens(GREEDY)) if tokens(GREEDY) else PARTICLES
        return f"forward:particles={max(n, 1)}"


def demo(
    out: str,
    *,
    seconds: float,
    seed: int,
    model: str,
    as_json: bool,
    questions: Path | None = None,
) -> int:
    """Run the demonstration and show what came out; 0 whatever the numbers are.

    The questions are the shipped ones, or those of the same file names in a folder `questions`.
    """
    began = time.monotonic()
    examples = find_examples()
    shelf = questions or examples / "data"
    with ExitStack() as stack:
        jobs = []
        for program, data in PROGRAMS:
            loaded = load_program(str(examples / program))
            asked = read_questions(shelf / data, fits(loaded.program))
            jobs.append(Job(loaded, stack.enter_context(asked)))
        total = 3 * sum(len(job.questions) for job in jobs)
        say(
            f"{total // 3} questions, 3 programs, 3 engines, model {model}; at most {duration(seconds)}"
        )
        models = load_models({"default": model})
        identity = {
            "demo": [
                f"{j.loaded.name} {j.loaded.sha256[:16]} {j.questions.sha256[:16]}" for j in jobs
            ],
            "models": {name: m.fingerprint for name, m in models.items()},
            "engines": [GREEDY, "forward", SMC],
            "seed": seed,
        }
        folder = stack.enter_context(_folder(out, identity))
        folder.freeze(identity, {"started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
        plan = Plan(jobs, folder, began + seconds)
        outcome = answer(
            plan.tasks(), folder, total - len(folder.done), models,
            until=plan.until, seed=seed, concurrency=64, pages=1,
        )  # fmt: skip
        plan.out_of_time |= outcome.out_of_time
        if not outcome.interrupted:
            write_report(outcome, "lmppl demo")
        outcome.records = _complete(outcome.records)
        outcome.summaries = _in_order(outcome.records)
        findings = _findings(outcome)
        if not outcome.interrupted:
            _write(plan, outcome, findings)
        if as_json:
            show(outcome, as_json=True)
        else:
            _show(plan, outcome, findings)
    return outcome.exit_code if outcome.interrupted else 0


def find_examples() -> Path:
    """The folder of the examples: beside the package in the repository, or here."""
    here = [Path(__file__).resolve().parents[2] / "examples", Path.cwd() / "examples"]
    for folder in here:
        if (folder / "data").is_dir():
            return folder
    raise DataError(
        "the demonstration needs the folder examples/, which the package does not contain",
        where=f"looked for {here[0]} and {here[1]}",
        fix="run it in a clone of the repository: make demo",
    )


def _folder(out: str, identity: dict[str, Any]) -> RunDirectory:
    """The run in `out` if it is this one, else the next free folder beside it."""
    path, n = Path(out), 1
    while True:
        folder = RunDirectory(path, resume=True)
        try:
            folder.same(identity)
            if folder.done:
                say(
                    f"{path} has {len(folder.done)} results of this demonstration already; going on"
                )
            return folder
        except RunError:
            folder.close()
        n += 1
        say(f"{path} holds another run; writing to {out}-{n}")
        path = Path(f"{out}-{n}")


# -- what came out ------------------------------------------------------------------------------


class Finding(NamedTuple):
    """SMC against both baselines on one program, or on all of them."""

    program: str
    smc: Summary
    plain: Summary
    greedy: Summary
    against_plain: Paired
    against_greedy: Paired

    @property
    def verdict(self) -> str:
        """In words, whatever it is."""
        ratio = self.plain.tokens / self.smc.tokens if self.smc.tokens else math.nan
        name = "all programs together" if not self.program else self.program
        return (
            f"{name}: SMC answers {self.smc.right} of {self.smc.answered} right, plain sampling "
            f"with a majority vote {self.plain.right} with {ratio:.2f} times its tokens, greedy "
            f"{self.greedy.right}. {_words(self.against_plain, 'plain sampling')}; "
            f"{_words(self.against_greedy, 'greedy')}."
        )


def _words(pair: Paired, other: str) -> str:
    numbers = (
        f"{pair.difference:+.2f}, 95 % {pair.low:+.2f} to {pair.high:+.2f}, "
        f"{pair.wins} to {pair.losses}, p = {pair.p_value:.2g}"
    )
    if pair.verdict == "no clear difference":
        return f"no clear difference from {other} ({numbers})"
    return f"{pair.verdict} than {other} ({numbers})"


def _kind(engine: str) -> str:
    return engine.partition(":")[0]


def _complete(records: Sequence[ResultRecord]) -> list[ResultRecord]:
    """The results of the questions that all three engines have answered."""
    count = Counter((r.program, str(r.id)) for r in records)
    return [r for r in records if count[r.program, str(r.id)] == 3]


def _in_order(records: Sequence[ResultRecord]) -> list[Summary]:
    """Programs in order, and in each greedy, plain sampling, SMC."""
    programs = list(dict.fromkeys(r.program for r in records))
    engines = ["greedy", "forward", "smc"]
    return sorted(
        summarise(records),
        key=lambda s: (programs.index(s.program), engines.index(_kind(s.engine))),
    )


def _findings(outcome: Outcome) -> list[Finding]:
    """One for each program on which all three have answered, and one for all of them."""
    found = []
    for program in dict.fromkeys(s.program for s in outcome.summaries):
        by = {_kind(s.engine): s for s in outcome.summaries if s.program == program}
        if len(by) == 3:
            names = {kind: s.engine for kind, s in by.items()}
            found.append(_finding(outcome.records, program, by, names))
    if len(found) > 1:
        same = [r.model_copy(update={"engine": _kind(r.engine)}) for r in outcome.records]
        pooled = {
            _kind(s.engine): s
            for s in summarise(r.model_copy(update={"program": ""}) for r in same)
        }
        found.append(_finding(same, "", pooled, {kind: kind for kind in pooled}))
    return found


def _finding(
    records: Sequence[ResultRecord], program: str, by: dict[str, Summary], names: dict[str, str]
) -> Finding:
    def against(other: str) -> Paired:
        return compare(records, program or None, names["smc"], names[other])

    return Finding(
        program, by["smc"], by["forward"], by["greedy"], against("forward"), against("greedy")
    )


def _show(plan: Plan, outcome: Outcome, findings: Sequence[Finding]) -> None:
    for program in dict.fromkeys(s.program for s in outcome.summaries):
        rows = []
        for s in outcome.summaries:
            if s.program != program or s.interval is None:
                continue
            wall = plan.seconds.get((program, s.engine))
            rows.append(
                [
                    s.engine, f"{s.right} of {s.answered}", f"{s.right / s.answered:.2f}",
                    f"{s.interval.low:.2f} to {s.interval.high:.2f}", f"{s.tokens:,.0f}",
                    "-" if wall is None else f"{wall / s.questions:.1f}", s.failed,
                ]
            )  # fmt: skip
        header = (
            "engine",
            "right",
            "accuracy",
            "95 % interval",
            "tokens/question",
            "s/question",
            "failed",
        )
        show_table(header, rows, title=program)
        _example(outcome.records, program)
    for finding in findings:
        print(clean(finding.verdict))
    if plan.out_of_time:
        print("The time was up before all questions were asked; give more by --seconds.")
    print(f"{outcome.answered:,} answers in {duration(outcome.seconds)}")
    print(f"results: {outcome.path / 'results.jsonl'}")
    if outcome.report is not None:
        print(f"report:  {outcome.report}")
    if outcome.interrupted:
        say(f"interrupted: {len(outcome.records)} results are kept; the same command goes on")
    sys.stdout.flush()


def _example(records: Sequence[ResultRecord], program: str) -> None:
    """One question with its three answers: one that SMC alone has right, if there is one."""
    by: dict[str, dict[str, ResultRecord]] = {}
    for r in records:
        if r.program == program:
            by.setdefault(str(r.id), {})[_kind(r.engine)] = r
    complete = [q for q in by.values() if len(q) == 3 and q["smc"].error is None]
    if not complete:
        return
    q = max(complete, key=lambda q: bool(q["smc"].correct) - bool(q["greedy"].correct))
    print(f"  such as {clean(q['smc'].id)}: {clean(_asked(q['smc'].question), 400)}")
    print(f"    expected           {clean(q['smc'].gold, 60)}")
    print(f"    greedy             {clean(q['greedy'].answer, 60)}")
    for kind, label in (("forward", "majority vote"), ("smc", "posterior of SMC")):
        for k, (value, p, se) in enumerate(q[kind].posterior[:SHOWN]):
            spread = f" ± {se:.3f}" if math.isfinite(se) else ""
            print(f"    {label if k == 0 else '':<18} {p:.3f}{spread}  {clean(value, 60)}")
    print()


def _asked(question: Any) -> str:
    if isinstance(question, dict):
        return "; ".join(f"{_asked(v)}" for v in question.values())
    if isinstance(question, list):
        return " ".join(map(str, question))
    return str(question)


def _write(plan: Plan, outcome: Outcome, findings: Sequence[Finding]) -> None:
    """summary.json: the numbers of the tables."""
    content = {
        "engines": [
            s.to_dict() | {"wall_seconds": plan.seconds.get((s.program, s.engine))}
            for s in outcome.summaries
        ],
        "findings": [
            {
                "program": f.program or "all",
                "verdict": f.verdict,
                "against_plain": vars(f.against_plain) | {"difference": f.against_plain.difference},
                "against_greedy": vars(f.against_greedy) | {"difference": f.against_greedy.difference},
            }
            for f in findings
        ],
        "out_of_time": plan.out_of_time,
        "seconds": outcome.seconds,
    }  # fmt: skip
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomic(outcome.path / "summary.json", [text.encode()])
