"""Inference inside a program: what an inner run inherits, and how its jobs travel outwards.

An inner run is a part of the outer particle: it draws by the outer chance, with keys of its own
(the outer particle's key, the scope, the place among the inner runs of that scope), asks the same
models where it names none, and its jobs join the outer batch. Once finished it is one entry of the
outer tape. Plugging its evidence into `factor` keeps the outer target exact, since E[Ẑ] = Z holds
for every inner run; plugging in its averages is nested Monte Carlo, biased for finite particles.
"""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from typing import Any

from lmppl.context import AwaitedSteps, Context, local
from lmppl.eager import EagerContext
from lmppl.handlers import using
from lmppl.inference.machine.population import Jobs
from lmppl.inference.machine.scheduler import drive
from lmppl.inference.results.posterior import Posterior
from lmppl.messages import Message
from lmppl.primitives import Thunks
from lmppl.random import Chance, fold
from lmppl.strands import FrameContext
from lmppl.types import Key


def inherited(outer: Context | None) -> tuple[dict[str, Any], Chance | None, Key]:
    """Models, chance and root key of an inner run; of a run that is not nested, none of them."""
    if isinstance(outer, FrameContext):
        launch = outer.strand.launch
        models, chance, root = dict(launch.models), launch.chance, outer.strand.key
    elif isinstance(outer, EagerContext):
        models, chance, root = dict(outer.env.models), outer.env.chance, outer.key
    else:
        return dict(local.models), None, 0
    for handler in outer.handlers:
        if isinstance(handler, using):
            models.update(handler.models)
    # two inner runs of one scope must not share their draws
    place = outer.counts.get(f"{outer.scope}infer", 0)
    return models, chance, fold(root, "infer", outer.scope, place)


def run_eager(outer: EagerContext, run: Jobs, chance: Chance) -> Posterior:
    """Drive an inner run at once, inside a plain call."""
    address = outer.address("infer")
    base = outer.mark()
    posterior: Posterior = run_alone(run, chance)
    outer.fold(base, "call", address, posterior)
    return posterior


def run_alone(run: Jobs, chance: Chance) -> Posterior:
    """Drive a run by a scheduler of its own, outside of any program's context."""
    before, local.active = local.active, None
    try:
        posterior: Posterior = drive(run, chance)
    finally:
        local.active = before
    return posterior


def run_nested(outer: FrameContext, run: Jobs) -> Posterior:
    """Drive an inner run through the outer frame: its jobs travel in the outer batch."""
    address = outer.address("infer")
    posterior: Posterior = outer.run(address, _nested(outer, address, run))
    return posterior


def await_nested(outer: FrameContext, run: Jobs) -> Awaitable[Posterior]:
    """`run_nested` for an `async def` program."""
    address = outer.address("infer")
    return AwaitedSteps(outer, address, _nested(outer, address, run))


def _nested(outer: FrameContext, address: str, run: Jobs) -> Thunks:
    """The steps of an inner run: each asks the outer engine for some jobs."""
    finished = outer.skip("call", address)
    if finished is not None:
        return finished.value
    base = outer.mark()
    before = local.active
    jobs, posterior = _advance(run, None, before)
    while posterior is None:
        message = Message("jobs", "jobs", f"{address}/jobs", value=jobs)
        outcomes = yield partial(outer.perform, message)
        for job, outcome in zip(jobs, outcomes, strict=True):
            job.restore(outcome)
        jobs, posterior = _advance(run, jobs, before)
    outer.fold(base, "call", address, posterior)
    return posterior


def _advance(run: Jobs, done: Any, outer: Any) -> tuple[Any, Posterior | None]:
    """One step of an inner run, outside of the outer program's context."""
    local.active = None
    try:
        return (next(run) if done is None else run.send(done)), None
    except StopIteration as stop:
        return None, stop.value
    finally:
        local.active = outer
