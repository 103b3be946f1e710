"""`check(program, *args)`: find what would break under an engine, before it does.

A particle forks by replaying its recorded values, so everything in a program but its sites must be
a function of them. `check` runs two particles and, at every site, makes the frame again by replay
and compares; runs the first one once more, warm; repeats it under every driver; and looks at the
global random states between sites.
"""

from __future__ import annotations

import random as global_random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmppl.batches import run_lm_jobs
from lmppl.context import local
from lmppl.distributions import fingerprint_of
from lmppl.eager import EagerContext
from lmppl.errors import LmpplError, ReplayDivergence
from lmppl.frames import Frame, driver, is_async
from lmppl.jobs import Effect
from lmppl.lm.load import as_models
from lmppl.messages import Message
from lmppl.program import check_program
from lmppl.random import GumbelMax, fold
from lmppl.strands import Launch, Strand
from lmppl.trace import Entry, entries

LONG = 200


@dataclass
class CheckReport:
    """What `check` found."""

    program: str
    checked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems

    def __str__(self) -> str:
        verdict = (
            "ok" if self.ok else f"{len(self.problems)} problem" + "s" * (len(self.problems) > 1)
        )
        lines = [f"{self.program}: {verdict}"]
        lines += [f"  checked: {line}" for line in self.checked]
        lines += [f"  note:    {line}" for line in self.notes]
        lines += [f"  problem: {line}" for line in self.problems]
        return "\n".join(lines)


def check(
    program: Callable[..., Any],
    *args: Any,
    lm: Any = None,
    seed: int = 0,
    kwargs: Mapping[str, Any] | None = None,
) -> CheckReport:
    """Look for non-determinism in a program.

    Args:
        program: the function.
        *args: its arguments.
        kwargs: its keyword arguments.
        lm: its language model.
        seed: the two particles are functions of it.

    >>> from lmppl import Bernoulli, check, sample
    >>> def fine():
    ...     return sample("x", Bernoulli(0.5))
    >>> check(fine).ok
    True
    """
    check_program(program)
    models = as_models(lm) or dict(local.models)
    report = CheckReport(getattr(program, "__name__", repr(program)))
    names = ["greenlet", "eager"] + (["coroutine"] if is_async(program) else [])
    first = fold(0, "check", seed)
    runs: dict[str, list[Entry]] = {}
    plan = [
        ("particle 1", names[0], first),
        ("particle 2", names[0], fold(first, 1)),
        ("warm", names[0], first),
    ]
    plan += [(f"driver {name}", name, first) for name in names[1:]]
    for label, name, key in plan:
        try:
            runs[label] = _run(
                program, args, dict(kwargs or {}), driver(name, program), key, models, report
            )
        except ReplayDivergence as error:
            report.problems.append(
                f"{label}: {str(error).splitlines()[0]} ({error.fields.get('where', '')})"
            )
        except ImportError:
            report.notes.append(f"{label}: not run, greenlet is not installed")
        except LmpplError as error:
            report.problems.append(f"{label}: {str(error).splitlines()[0]}")
        except Exception as error:
            report.problems.append(f"{label}: {type(error).__name__}: {error}")
    reference = runs.get("particle 1")
    if reference is not None:
        report.checked.append(f"{len(reference)} sites, the frame made again by replay at each")
        for label, found in runs.items():
            if label != "particle 1" and not label.startswith("particle"):
                difference = _compare(reference, found)
                if difference:
                    report.problems.append(f"{label} differs from the first run: {difference}")
                else:
                    report.checked.append(f"{label}: the same tape")
        _lint(reference, report)
    report.problems = list(dict.fromkeys(report.problems))
    return report


def _run(
    program: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    frames: type[Frame],
    key: int,
    models: dict[str, Any],
    report: CheckReport,
) -> list[Entry]:
    strand = Strand(Launch(program, args, kwargs, frames))
    strand.launch.models = models
    strand.key = key
    answers = EagerContext(key, models=models)
    answers.handlers = []
    frame = frames(strand)
    message = _watch(frame, None, report, "the start")
    while message is not None:
        entry = _answer(answers, strand, message, key)
        live = _watch(frame, entry, report, entry.address)
        if frames.__name__ == "EagerFrame":
            message = live
            continue
        again = frames(strand)
        replayed = _watch(again, None, report, entry.address)
        _same(live, replayed, entry)
        frame.kill()
        frame, message = again, replayed
    return entries(strand.head)


def _answer(answers: EagerContext, strand: Strand, message: Message, key: int) -> Entry:
    """Answer a message as a plain call would, and put it on the strand's tape."""
    before, local.active = local.active, answers
    answers.head = strand.head
    fingerprint = message.fingerprint()
    try:
        if message.op == "jobs":
            jobs = list(message.value)
            run_lm_jobs([j for j in jobs if not isinstance(j, Effect)], GumbelMax())
            message.value = [j.outcome for j in jobs]
            answers.head = Entry(strand.head, "jobs", message.address, message.value)
        else:
            answers.answer(message)
    finally:
        local.active = before
    entry = answers.head
    if entry is None:
        raise LmpplError(f"site {message.address!r} left no record")
    entry = entry._replace(fingerprint=fingerprint)
    strand.head = entry
    return entry


def _watch(frame: Frame, entry: Entry | None, report: CheckReport, site: str) -> Message | None:
    """Resume, and notice the use of global random states."""
    python, numpy = global_random.getstate(), np.random.get_state()
    message = frame.resume(entry)
    after = "the end" if message is None else repr(message.address)
    if global_random.getstate() != python:
        report.problems.append(
            f"the random module was used between {site!r} and {after}: use sample(...)"
        )
    if not _equal(np.random.get_state(), numpy):
        report.problems.append(
            f"numpy.random was used between {site!r} and {after}: use sample(...)"
        )
    return message


def _equal(a: Any, b: Any) -> bool:
    return bool(a[2] == b[2] and np.array_equal(a[1], b[1]))


def _same(live: Message | None, replayed: Message | None, after: Entry) -> None:
    def show(m: Message | None) -> str:
        return "the end of the program" if m is None else f"{m.op} {m.address!r}"

    if show(live) != show(replayed):
        raise ReplayDivergence(show(live), show(replayed), address=after.address)
    if live is not None and replayed is not None and live.fingerprint() != replayed.fingerprint():
        raise ReplayDivergence(
            f"{show(live)} ({live.fingerprint():016x})",
            f"other arguments ({replayed.fingerprint():016x})",
            address=live.address,
        )


def _compare(a: list[Entry], b: list[Entry]) -> str | None:
    for x, y in zip(a, b, strict=False):
        if (x.op, x.address) != (y.op, y.address):
            return f"{x.op} {x.address!r} became {y.op} {y.address!r}"
        if x.op != "jobs" and fingerprint_of(x.value) != fingerprint_of(y.value):
            return f"{x.address!r} was {x.value!r:.60}, became {y.value!r:.60}"
    return None if len(a) == len(b) else f"{len(a)} sites became {len(b)}"


def _lint(found: list[Entry], report: CheckReport) -> None:
    repeated = sorted({e.address.rpartition("[")[0] for e in found if e.address.endswith("]")})
    if repeated:
        report.notes.append(f"repeated names count up: {', '.join(repeated)} (name[1], name[2], …)")
    if len(found) > LONG and not any("loop[" in e.address or "markov[" in e.address for e in found):
        report.notes.append(
            f"{len(found)} sites without loop(...): a fork replays them all; loop makes it one iteration"
        )
