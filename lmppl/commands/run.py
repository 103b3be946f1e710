"""`lmppl run` without its options: load, check everything, answer, show. Only the roof imports it.

The order is the promise: engines, program, data and folder are checked before a model is loaded,
and a model is loaded only when a question is left to answer.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from itertools import combinations
from pathlib import Path
from types import FrameType
from typing import Any

from lmppl.commands.console import Progress, clean, duration, say, show_table
from lmppl.commands.loading import load_models, load_program, parse_models
from lmppl.data import fits, read_questions
from lmppl.inference.questions.rundir import (
    REPORT,
    RESULTS,
    RunDirectory,
    read_config,
    read_results,
)
from lmppl.inference.questions.runs import (
    Event,
    Summary,
    Task,
    compare,
    pending,
    run_tasks,
    summarise,
)
from lmppl.inference.specs import parse_engines
from lmppl.records import ResultRecord

PACKAGES = ("lmppl-lang", "numpy", "greenlet", "llguidance", "torch", "transformers")
SHOWN_ERRORS = 3


@dataclass
class Request:
    """What a person asked for on the command line."""

    program: str
    data: str
    out: str
    engines: Sequence[str] = ("smc",)
    models: Sequence[str] = ()
    seed: int = 0
    resume: bool = False
    fork: bool = False
    retry_failed: bool = False
    concurrency: int = 16
    limit: int | None = None
    on_error: str = "raise"
    driver: str | None = None
    as_json: bool = False
    debug: bool = False
    pages: int = 3
    """Posteriors of each program and engine that get a page of their own."""
    ray: str | None = None
    """Address of a Ray cluster over which the questions are spread."""
    ray_actors: int | None = None


@dataclass
class Outcome:
    """How a run ended."""

    path: Path
    records: list[ResultRecord]
    interrupted: bool = False
    out_of_time: bool = False
    seconds: float = 0.0
    answered: int = 0
    """Questions that ended in this process."""
    report: Path | None = None
    summaries: list[Summary] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 all well, 1 some questions failed, 130 interrupted."""
        if self.interrupted:
            return 130
        return 1 if any(r.error is not None for r in self.records) else 0


def run(request: Request) -> Outcome:
    """Answer the questions of a file."""
    specs = parse_engines(request.engines)
    sources = parse_models(request.models)
    loaded = load_program(request.program)
    with read_questions(request.data, fits(loaded.program)) as questions:
        if request.limit is not None:
            questions.head(request.limit)
        tasks = [Task(loaded.program, loaded.name, spec, questions) for spec in specs]
        identity: dict[str, Any] = {
            "program": f"{loaded.name} {loaded.sha256[:16]}",
            "data": questions.sha256[:16],
            "engines": [spec.text for spec in specs],
            "seed": request.seed,
            "on_error": request.on_error,
        }
        with open_folder(request) as folder, contextlib.ExitStack() as stack:
            folder.same(identity)
            left = sum(len(pending(task, folder, request.retry_failed)) for task in tasks)
            models: dict[str, Any] = {}
            execute: Callable[..., None] = run_tasks
            if left and request.ray is not None:
                from lmppl.commands.ray_runner import crew

                asked = loaded, sources
                actors = stack.enter_context(crew(request.ray, request.ray_actors, *asked))
                execute = actors.run_tasks
                identity["models"] = actors.fingerprints()
            elif left:
                models = load_models(sources)
                identity["models"] = {name: m.fingerprint for name, m in models.items()}
            if left:
                folder.freeze(identity, frozen(request, sources, len(questions)))
            return answer(
                tasks,
                folder,
                left,
                models,
                execute=execute,
                debug=request.debug,
                seed=request.seed,
                concurrency=request.concurrency,
                on_error=request.on_error,
                driver=request.driver,
                retry_failed=request.retry_failed,
                pages=request.pages,
            )


def answer(
    tasks: Iterator[Task] | Sequence[Task],
    folder: RunDirectory,
    total: int,
    models: Mapping[str, Any],
    *,
    execute: Callable[..., None] = run_tasks,
    debug: bool = False,
    until: float = math.inf,
    **options: Any,
) -> Outcome:
    """Run tasks with a progress bar; a first Ctrl-C ends them in order, a second one at once.

    After `until`, on the monotonic clock, no batch is begun any more. `execute` runs them.
    """
    began = time.monotonic()
    interrupted = out_of_time = False
    with Progress(total, lambda: _computed(models)) as bar:

        def notify(event: Event) -> None:
            label = event.task.engine.text
            if event.record is None:
                if time.monotonic() > until:
                    raise _TimeIsUp
                bar.beat(label)
                return
            bar.advance(label, event.record.error is not None)
            if debug and event.error is not None:
                import traceback

                bar.note("".join(traceback.format_exception(event.error)))

        try:
            with interruptible():
                execute(tasks, folder, lm=dict(models) or None, notify=notify, **options)
        except KeyboardInterrupt:
            interrupted = True
        except _TimeIsUp:
            out_of_time = True
    outcome = read_run(folder.path)  # what is shown is what is on the disk
    outcome.interrupted, outcome.out_of_time = interrupted, out_of_time
    outcome.answered, outcome.seconds = bar.done, time.monotonic() - began
    return outcome


class _TimeIsUp(Exception):
    """No batch is begun any more."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt once; a second one ends the process at once."""
    seen = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen > 1:
            os._exit(130)
        raise KeyboardInterrupt

    before: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not in the main thread
                before[number] = signal.signal(number, stop)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _computed(models: Mapping[str, Any]) -> int:
    return sum(m.usage.computed_tokens for m in {id(m): m for m in models.values()}.values())


def open_folder(request: Request) -> RunDirectory:
    """The folder of the run; with --fork, the next free one beside a folder that holds a run."""
    if not request.fork:
        return RunDirectory(request.out, resume=request.resume)
    path, n = Path(request.out), 1
    while path.exists() and any(path.iterdir()):
        n += 1
        path = Path(f"{request.out}-{n}")
    if n > 1:
        say(f"{request.out} stays as it is; {path} starts anew, nothing is reused")
    return RunDirectory(path)


def frozen(request: Request, sources: Mapping[str, str], questions: int) -> dict[str, Any]:
    """What is written beside the identity, for whoever reads the run later."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "program": str(Path(request.program)),
        "data": {"path": request.data, "questions": questions},
        "engines": [repr(spec.engine) for spec in parse_engines(request.engines)],
        "lm": dict(sources),
        "options": {
            "concurrency": request.concurrency,
            "limit": request.limit,
            "driver": request.driver,
        },
        "versions": versions,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


# -- what is shown ------------------------------------------------------------------------------


def read_run(path: str | Path) -> Outcome:
    """What is in the folder of a run."""
    folder = Path(path)
    read_config(folder)
    records, _ = read_results(folder)
    return Outcome(folder, records, summaries=summarise(records))


def write_report(outcome: Outcome, title: str, extra: str = "") -> None:
    """report.html of a run; `extra` is HTML that stands before the summary."""
    from lmppl.inference.view.report import run_report

    path = outcome.path / REPORT
    run_report(outcome.records, path, title, extra)
    outcome.report = path


def show(outcome: Outcome, as_json: bool) -> None:
    """The summary: a table, what failed, where the files are; or all of it as JSON."""
    if as_json:
        print(json.dumps(to_json(outcome), ensure_ascii=False))
    else:
        show_summaries(outcome.summaries)
        for line in comparisons(outcome.records, outcome.summaries):
            print(line)
        failed = [r for r in outcome.records if r.error is not None]
        for r in failed[:SHOWN_ERRORS]:
            print(f"failed: {clean(r.id, 60)} ({r.engine}): {clean(r.error, 300)}")
        if len(failed) > SHOWN_ERRORS:
            print(f"failed: {len(failed) - SHOWN_ERRORS:,} more, see the results")
        warned = [r for r in outcome.records if r.warnings]
        if warned:
            print(
                f"warnings on {len(warned):,} questions, such as: {clean(warned[0].warnings[0], 200)}"
            )
        if outcome.answered:
            print(f"{outcome.answered:,} answers in {duration(outcome.seconds)}")
        print(f"results: {outcome.path / RESULTS}")
        if outcome.report is not None:
            print(f"report:  {outcome.report}")
    if outcome.interrupted:
        say(
            f"interrupted: {len(outcome.records):,} results are kept in {outcome.path}; "
            "go on with the same command and --resume"
        )


def show_summaries(summaries: Sequence[Summary]) -> None:
    """One line for each engine."""
    several = len({s.program for s in summaries}) > 1
    judged = any(s.answered for s in summaries)
    header = ["program"] * several + ["engine", "questions", "failed"]
    header += ["right", "accuracy", "95 % interval"] * judged + ["tokens/question"]
    rows = []
    for s in summaries:
        row: list[object] = [s.program] * several + [s.engine, s.questions, s.failed]
        if judged and s.interval is not None:
            share = s.right / s.answered
            row += [s.right, f"{share:.3f}", f"{s.interval.low:.3f} to {s.interval.high:.3f}"]
        elif judged:
            row += ["-", "-", "-"]
        rows.append([*row, f"{s.tokens:,.0f}"])
    show_table(header, rows)


def comparisons(records: Sequence[ResultRecord], summaries: Sequence[Summary]) -> list[str]:
    """Each engine against those before it, on the questions that both have answered."""
    lines = []
    for program in dict.fromkeys(s.program for s in summaries):
        engines = [s.engine for s in summaries if s.program == program and s.answered]
        for other, engine in combinations(engines, 2):
            pair = compare(records, program, engine, other)
            lines.append(
                f"{engine} against {other} on {pair.n:,} questions of {program}: "
                f"{pair.difference:+.3f} ({pair.low:+.3f} to {pair.high:+.3f}), "
                f"{pair.wins} to {pair.losses}, McNemar p = {pair.p_value:.2g}: {pair.verdict}"
            )
    return lines


def to_json(outcome: Outcome) -> dict[str, Any]:
    """The summary for machines."""
    failed = [r for r in outcome.records if r.error is not None]
    return {
        "run": str(outcome.path),
        "interrupted": outcome.interrupted,
        "exit_code": outcome.exit_code,
        "engines": [s.to_dict() for s in outcome.summaries],
        "failed": [{"id": r.id, "engine": r.engine, "error": r.error} for r in failed[:20]],
        "answered": outcome.answered,
        "seconds": round(outcome.seconds, 3),
        "results": str(outcome.path / RESULTS),
        "report": None if outcome.report is None else str(outcome.report),
    }
