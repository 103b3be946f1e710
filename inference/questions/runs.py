"""Answer many questions, keep each result, go on where a run was cut off.

    run_tasks(tasks, folder, lm=..., seed=0)

A task is a program, an engine and questions. All randomness of a question is a function of (seed,
id of the question), so a result does not depend on which other questions are there, on the order,
or on how often the run was interrupted. Who watches gets events; nothing is printed here.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar, overload

from lmppl.data import Question
from lmppl.errors import AllParticlesDead, LmpplError, LmpplWarning
from lmppl.inference.calls import infer_stream
from lmppl.inference.questions.compare import Paired, paired, wilson
from lmppl.inference.questions.rundir import RunDirectory, key, page_name
from lmppl.inference.results.estimates import Interval
from lmppl.inference.results.posterior import Posterior
from lmppl.inference.results.summary import posterior_summary
from lmppl.inference.specs import Spec
from lmppl.records import ResultRecord

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """One program, one engine, some questions."""

    program: Callable[..., Any]
    name: str
    engine: Spec
    questions: Sequence[Question]


class Event(NamedTuple):
    """Something happened: a batch is about to run, or a question has ended."""

    task: Task
    running: int
    """Questions that share batches now."""
    record: ResultRecord | None = None
    error: Exception | None = None


def run_tasks(
    tasks: Iterable[Task],
    folder: RunDirectory,
    *,
    lm: Any = None,
    seed: int = 0,
    concurrency: int = 16,
    on_error: str = "raise",
    driver: str | None = None,
    retry_failed: bool = False,
    notify: Callable[[Event], None] = lambda event: None,
    pages: int = 0,
) -> None:
    """Answer every question that has no result yet, one task after the other.

    An error ends its question alone and is its result.

    Args:
        tasks: what to answer; made one by one, so that a generator can stop early.
        folder: where results go, each as soon as it is there.
        lm: the language model, as in `infer`.
        seed: all randomness is a function of it and of the ids.
        concurrency: how many questions share a batch at most.
        on_error: what an exception inside a particle does, as in `infer`.
        driver: how frames suspend.
        retry_failed: answer questions again whose result is an error.
        notify: called with each event.
        pages: of how many questions of each program and engine the posterior gets a page of its own.
    """
    room: Counter[tuple[str, str]] = Counter()
    options = {
        "concurrency": concurrency, "lm": lm, "seed": seed, "on_error": on_error, "driver": driver,
    }  # fmt: skip
    for task in tasks:
        cell = task.name, task.engine.text

        def keep(record: ResultRecord, posterior: Posterior, cell: tuple[str, str] = cell) -> None:
            if room[cell] < pages and len(posterior) > 1:
                room[cell] += 1
                write_page(folder, record, posterior)

        _run_task(task, folder, pending(task, folder, retry_failed), notify, options, keep)


def _run_task(
    task: Task,
    folder: RunDirectory,
    todo: Sequence[int],
    notify: Callable[[Event], None],
    options: Mapping[str, Any],
    keep: Callable[[ResultRecord, Posterior], None],
) -> None:
    stream = infer_stream(
        task.program,
        _Lazy(todo, lambda i: task.questions[i].fields),
        ids=_Lazy(todo, lambda i: task.questions[i].id),
        observer=lambda running: notify(Event(task, running)),
        engine=task.engine.engine,
        on_dead="return",
        **options,
    )
    try:
        for at, outcome in stream:
            record = record_of(task, task.questions[todo[at]], outcome)
            folder.append(record)
            error = outcome if isinstance(outcome, Exception) else None
            if isinstance(outcome, Posterior):
                keep(record, outcome)
            notify(Event(task, 0, record, error))
    finally:
        close = getattr(stream, "close", None)  # frames unwind now, not at the next collection
        if close is not None:
            close()


def write_page(folder: RunDirectory, record: ResultRecord, posterior: Posterior) -> None:
    """The page of one posterior; where it cannot be made, the run goes on."""
    path = folder.path / page_name(key(record))
    try:
        path.parent.mkdir(exist_ok=True)
        posterior.report(path, title=f"{record.program}: {record.id}")
    except Exception as error:
        said = f"the page of question {record.id!r} was not written: {one_line(error)}"
        warnings.warn(said, LmpplWarning, stacklevel=2)


def pending(task: Task, folder: RunDirectory, retry_failed: bool = False) -> list[int]:
    """Positions of the questions that have no result yet."""
    ids = getattr(task.questions, "ids", None) or [q.id for q in task.questions]
    found = []
    for i, name in enumerate(ids):
        done = folder.done.get((task.name, task.engine.text, str(name)))
        if done is None or (retry_failed and done.failed):
            found.append(i)
    return found


class _Lazy(Sequence[T]):
    """What a function makes of some positions, made when asked for."""

    def __init__(self, positions: Sequence[int], make: Callable[[int], T]) -> None:
        self.positions = positions
        self.make = make

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self.make(i) for i in self.positions[index]]
        return self.make(self.positions[index])


# -- one result ---------------------------------------------------------------------------------


def record_of(task: Task, question: Question, outcome: Posterior | Exception) -> ResultRecord:
    """A posterior, or the error that there is in its place, as a line of the results."""
    fields = question.fields
    asked = {
        "id": question.id,
        "program": task.name,
        "engine": task.engine.text,
        "question": next(iter(fields.values())) if len(fields) == 1 else fields,
        "gold": question.answer,
    }
    error: str | None = None
    summary: dict[str, Any] = {}
    if isinstance(outcome, Exception):
        error = one_line(outcome)
    else:
        summary = posterior_summary(outcome)
        if outcome.dead:
            deaths, examples = outcome.deaths, outcome.death_examples
            error = one_line(AllParticlesDead(deaths, particles=len(outcome), examples=examples))
    answer = summary.get("answer")
    correct = None if question.answer is None else error is None and agrees(answer, question.answer)
    return ResultRecord(**asked, **summary, correct=correct, error=error)


def agrees(answer: Any, expected: Any) -> bool:
    """Whether an answer is the expected one: equal as numbers, or as texts up to case and spaces.

    >>> agrees("42", 42), agrees(" 3 lamps,  Friday", "3 lamps, friday"), agrees("7.0", "7")
    (True, True, True)
    >>> agrees(None, "None"), agrees([1, "a"], ["1", "A"])
    (False, True)
    """
    if answer is None or expected is None:
        return False
    if isinstance(answer, (list, tuple)) and isinstance(expected, (list, tuple)):
        return len(answer) == len(expected) and all(map(agrees, answer, expected))
    if isinstance(answer, dict) and isinstance(expected, dict):
        return answer.keys() == expected.keys() and all(
            agrees(v, expected[k]) for k, v in answer.items()
        )
    texts = [" ".join(str(v).split()).casefold() for v in (answer, expected)]
    try:
        return texts[0] == texts[1] or Decimal(texts[0]) == Decimal(texts[1])
    except ArithmeticError:  # not both are numbers
        return False


def one_line(error: BaseException) -> str:
    """An error as one line: its class, what happened, where, and the cure."""
    if isinstance(error, LmpplError):
        parts = [error.fields["what"]]
        parts += [f"{k}: {v}" for k, v in error.fields.items() if k in ("where", "fix")]
        message = "; ".join(parts)
    else:
        message = str(error)
    return " ".join(f"{type(error).__name__}: {message}".split())


# -- all results --------------------------------------------------------------------------------


@dataclass
class Summary:
    """What one engine did on the questions of one program."""

    program: str
    engine: str
    questions: int = 0
    failed: int = 0
    answered: int = 0
    """Questions with an expected answer."""
    right: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    @property
    def accuracy(self) -> float | None:
        """Share of right answers among questions with an expected one; an error is wrong."""
        return self.right / self.answered if self.answered else None

    @property
    def interval(self) -> Interval | None:
        """Wilson's 95 % interval of the accuracy."""
        return wilson(self.right, self.answered) if self.answered else None

    @property
    def tokens(self) -> float:
        """Per question, in and out."""
        return (self.tokens_in + self.tokens_out) / self.questions if self.questions else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = {k: v for k, v in vars(self).items()}
        return found | {
            "accuracy": self.accuracy,
            "interval": list(self.interval) if self.interval else None,
        }


def summarise(records: Iterable[ResultRecord]) -> list[Summary]:
    """One summary for each program and engine, in the order in which they appear."""
    found: dict[tuple[str, str], Summary] = {}
    for r in records:
        s = found.setdefault((r.program, r.engine), Summary(r.program, r.engine))
        s.questions += 1
        s.failed += r.error is not None
        s.answered += r.correct is not None
        s.right += bool(r.correct)
        s.tokens_in += r.tokens_in
        s.tokens_out += r.tokens_out
    return list(found.values())


def compare(
    records: Iterable[ResultRecord], program: str | None, first: str, second: str
) -> Paired:
    """Two engines on the questions that both have a result and an expected answer for.

    `program` None takes all programs together.
    """
    by_engine: dict[str, dict[tuple[str, str], bool]] = {first: {}, second: {}}
    for r in records:
        if r.engine in by_engine and r.correct is not None and program in (None, r.program):
            by_engine[r.engine][r.program, str(r.id)] = r.correct
    shared = [q for q in by_engine[first] if q in by_engine[second]]
    return paired([by_engine[first][q] for q in shared], [by_engine[second][q] for q in shared])
