"""`lmppl compare` without its options: engines at the same budget per question, in one table.

Sizes are chosen on the first questions (`lmppl.inference.questions.budget`) and written into the
configuration of the run before the first result, so `--resume` goes on with the same ones. Engines
take turns, some questions each, so that an interrupted comparison is still one on equal terms.
Only the roof imports this file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmppl.atomic import write_atomic
from lmppl.commands.console import clean, duration, say, show_table
from lmppl.commands.loading import Loaded, load_models, load_program, parse_models
from lmppl.commands.run import (
    SHOWN_ERRORS,
    Outcome,
    Request,
    answer,
    frozen,
    interruptible,
    open_folder,
    to_json,
    write_report,
)
from lmppl.data import Questions, fits, read_questions
from lmppl.errors import BadArgument
from lmppl.inference.questions.budget import (
    Budget,
    Sized,
    fit_size,
    parse_budgets,
    size_of,
    spender,
    split_engines,
)
from lmppl.inference.questions.pareto import Line, Pair, lines, pairs, plot, section
from lmppl.inference.questions.rundir import RESULTS, RunDirectory
from lmppl.inference.questions.runs import Task, pending
from lmppl.inference.specs import Spec, parse_engine, parse_engines

SUMMARY, PICTURE = "compare.json", "pareto.png"
SHOWN_PAIRS = 15


@dataclass
class Comparison(Request):
    """What a person asked for on the command line."""

    budgets: Sequence[str] = ()
    first: int = 3
    """Questions on which sizes are chosen."""


@dataclass
class Plan:
    """The engines that run, and how long each has taken."""

    sized: list[Sized]
    wall: dict[str, list[float]]
    """(seconds, questions) by engine."""

    def tasks(
        self, loaded: Loaded, questions: Questions, folder: RunDirectory, turn: int, retry: bool
    ) -> Iterator[Task]:
        """Each engine answers a few questions in turn."""
        for start in range(0, len(questions), turn):
            some = questions[start : start + turn]
            for spec in self.specs:
                task = Task(loaded.program, loaded.name, spec, some)
                asked = len(pending(task, folder, retry))
                began = time.monotonic()
                yield task
                if asked:
                    spent = self.wall.setdefault(spec.text, [0.0, 0.0])
                    spent[0] += time.monotonic() - began
                    spent[1] += asked

    @property
    def specs(self) -> list[Spec]:
        """What runs; engines that came out at the same size run once."""
        return [parse_engine(name) for name in dict.fromkeys(s.engine for s in self.sized)]


def compare(request: Comparison) -> int:
    """Answer the questions with every engine and show the comparison; the exit code."""
    asked = parse_engines(split_engines(request.engines))
    budgets = parse_budgets(request.budgets)
    _check_sizes(asked, budgets)
    sources = parse_models(request.models)
    loaded = load_program(request.program)
    with read_questions(request.data, fits(loaded.program)) as questions:
        if request.limit is not None:
            questions.head(request.limit)
        identity: dict[str, Any] = {
            "program": f"{loaded.name} {loaded.sha256[:16]}",
            "data": questions.sha256[:16],
            "engines": [spec.text for spec in asked],
            "budgets": [str(budget) for budget in budgets],
            "first": request.first,
            "seed": request.seed,
            "on_error": request.on_error,
        }
        with open_folder(request) as folder:
            folder.same(identity)
            plan = _known(folder)
            models: dict[str, Any] = {}
            if plan is None or _left(plan, loaded, questions, folder, request.retry_failed):
                models = load_models(sources)
                identity["models"] = {name: m.fingerprint for name, m in models.items()}
                folder.same(identity)
            if plan is None:
                plan = _plan(request, asked, budgets, loaded, questions, models)
                request.engines = [spec.text for spec in plan.specs]
                more = frozen(request, sources, len(questions))
                folder.freeze(identity, {**more, "sizes": [asdict(s) for s in plan.sized]})
            left = _left(plan, loaded, questions, folder, request.retry_failed)
            outcome = answer(
                plan.tasks(loaded, questions, folder, request.concurrency, request.retry_failed),
                folder,
                left,
                models,
                debug=request.debug,
                seed=request.seed,
                concurrency=request.concurrency,
                on_error=request.on_error,
                driver=request.driver,
                retry_failed=request.retry_failed,
            )
    return _finish(outcome, plan, request)


def _check_sizes(asked: Sequence[Spec], budgets: Sequence[Budget]) -> None:
    """Under a budget, two engines that differ in their size alone would be the same one."""
    seen: dict[str, str] = {}
    for spec in asked if budgets else ():
        found = size_of(spec)
        if found is None:
            continue
        name = spec.text.replace(f"{found[0]}={found[1]}", "")
        if name in seen:
            raise BadArgument(
                f"{seen[name]} and {spec.text} differ in {found[0]} alone, which the budget sets",
                fix="leave one out, or leave out --budget to run both at the sizes they name",
            )
        seen[name] = spec.text


def _known(folder: RunDirectory) -> Plan | None:
    """The sizes that this run has begun with, and the times so far."""
    if not folder.config:
        return None
    if "sizes" not in folder.config:  # a run of another command, told apart by its identity
        raise BadArgument(f"{folder.path} holds a run, no comparison", fix="name another --out")
    try:
        wall = json.loads((folder.path / SUMMARY).read_text("utf-8"))["wall"]
    except (OSError, ValueError, KeyError, TypeError):
        wall = {}
    return Plan([Sized(**s) for s in folder.config["sizes"]], dict(wall))


def _left(
    plan: Plan, loaded: Loaded, questions: Questions, folder: RunDirectory, retry: bool
) -> int:
    tasks = (Task(loaded.program, loaded.name, spec, questions) for spec in plan.specs)
    return sum(len(pending(task, folder, retry)) for task in tasks)


def _plan(
    request: Comparison,
    asked: Sequence[Spec],
    budgets: Sequence[Budget],
    loaded: Loaded,
    questions: Questions,
    models: Mapping[str, Any],
) -> Plan:
    """Choose the size of every engine."""
    if not budgets:
        sizes = [(s, size_of(s)) for s in asked]
        return Plan([Sized(s.text, s.text, size=n[1] if n else None) for s, n in sizes], {})
    some = questions[: request.first]
    options = {
        "lm": dict(models) or None, "seed": request.seed, "on_error": request.on_error,
        "driver": request.driver, "concurrency": request.concurrency,
    }  # fmt: skip
    found = []
    with interruptible():
        for spec in asked:
            sized = size_of(spec) is not None
            if sized:
                say(f"choosing the size of {spec.text} on {len(some)} questions")
            probes: dict[str, dict[int, float]] = {}
            for budget in budgets if sized else budgets[:1]:
                ask = spender(loaded.program, some, budget.unit, **options)
                known = probes.setdefault(budget.unit, {})
                found.append(fit_size(spec, budget, ask, say, known))
    return Plan(found, {})


# -- what is shown ------------------------------------------------------------------------------


def _finish(outcome: Outcome, plan: Plan, request: Comparison) -> int:
    found = lines(outcome.records, plan.sized, plan.wall)
    compared = pairs(outcome.records, found)
    picture, missing = "", ""
    png = outcome.path / PICTURE
    if any(line.accuracy is not None and line.tokens for line in found):
        try:
            picture = plot(found, f"{request.program}: tokens against accuracy", png)
        except ModuleNotFoundError:
            missing = "no plot: matplotlib is not installed (pip install matplotlib)"
    else:
        missing = "no plot: it needs questions with an answer, and engines that spend tokens"
    _write(outcome, plan, found, compared)
    if not outcome.interrupted:
        write_report(outcome, f"lmppl compare {request.program}", section(found, compared, picture))
    if request.as_json:
        more = {"pareto": str(png) if picture else None, "summary": str(outcome.path / SUMMARY)}
        print(json.dumps(to_json(outcome) | _content(found, compared) | more, ensure_ascii=False))
    else:
        _show(outcome, found, compared, png if picture else None, missing)
    if outcome.interrupted:
        say(
            f"interrupted: {len(outcome.records):,} results are kept in {outcome.path}; "
            "go on with the same command and --resume"
        )
    return outcome.exit_code


def _content(found: Sequence[Line], compared: Sequence[Pair]) -> dict[str, Any]:
    return {
        "engines": [asdict(line) | {"accuracy": line.accuracy} for line in found],
        "pairs": [pair.to_dict() for pair in compared],
    }


def _write(outcome: Outcome, plan: Plan, found: Sequence[Line], compared: Sequence[Pair]) -> None:
    """compare.json: the numbers of the tables."""
    content = _content(found, compared) | {"wall": plan.wall, "interrupted": outcome.interrupted}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomic(outcome.path / SUMMARY, [text.encode("utf-8", "backslashreplace")])


def _show(
    outcome: Outcome,
    found: Sequence[Line],
    compared: Sequence[Pair],
    png: Path | None,
    missing: str,
) -> None:
    judged = any(line.answered for line in found)
    header = ["engine", "questions", "failed"]
    header += ["right", "accuracy", "95 % interval"] * judged
    header += ["tokens", "calls", "passes", "s/question", "frontier"]
    table = []
    for line in found:
        row: list[object] = [line.engine, line.questions, line.failed]
        if judged and line.interval is not None:
            low, high = line.interval
            row += [line.right, f"{line.accuracy:.3f}", f"{low:.3f} to {high:.3f}"]
        elif judged:
            row += ["-", "-", "-"]
        row += [f"{n:,.0f}" for n in (line.tokens, line.calls, line.passes)]
        row += ["-" if line.seconds is None else f"{line.seconds:.3g}"]
        table.append([*row, "yes" if line.frontier else "no"])
    show_table(header, table)
    for line in found:
        if line.expected is not None and line.budget:
            unit, _, amount = line.budget.partition("=")
            spent = getattr(line, unit)
            off = f"{spent / int(amount) - 1:+.0%} of the budget"
            print(f"{line.engine}: {spent:,.0f} {unit} a question, {off} of {int(amount):,}")
    for line in found:
        if line.note:
            print(f"{line.engine}: {line.note}")
    shown = compared
    if len(compared) > SHOWN_PAIRS:  # the clearest ones
        shown = sorted(compared, key=lambda p: (p.holm, -abs(p.pair.difference)))[:SHOWN_PAIRS]
    for p in shown:
        print(
            f"{p.first} against {p.second} on {p.pair.n:,} questions: {p.pair.difference:+.3f} "
            f"({p.pair.low:+.3f} to {p.pair.high:+.3f}), {p.pair.wins} to {p.pair.losses}, "
            f"p = {p.holm:.2g} (Holm): {p.verdict}"
        )
    if len(compared) > SHOWN_PAIRS:
        print(f"{len(compared) - SHOWN_PAIRS:,} more pairs stand in {SUMMARY} and in the report")
    failed = [r for r in outcome.records if r.error is not None]
    for r in failed[:SHOWN_ERRORS]:
        print(f"failed: {clean(r.id, 60)} ({r.engine}): {clean(r.error, 300)}")
    if len(failed) > SHOWN_ERRORS:
        print(f"failed: {len(failed) - SHOWN_ERRORS:,} more, see the results")
    if outcome.answered:
        print(f"{outcome.answered:,} answers in {duration(outcome.seconds)}")
    print(f"results: {outcome.path / RESULTS}")
    if outcome.report is not None:
        print(f"report:  {outcome.report}")
    if png is not None:
        print(f"plot:    {png}")
    if missing:
        print(missing)
