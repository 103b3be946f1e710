"""Guides: one object that directs every engine and changes no answer.

A guide is a function of a partial trace, h(prefix) > 0: an estimate of what the rest of the program
will multiply in,

    semiring "sum":   h*(prefix) = E[ Π later weights | prefix ] = Σ_{x ⊇ prefix} γ(x) / γ(prefix)
    semiring "max":   h*(prefix) = max_{x ⊇ prefix} γ(x) / γ(prefix)

Process reward models, value functions, A* heuristics, twists and backward filters are guides. An
engine takes a `Guide` or a bare function `Trace -> log h`; what it may rely on is

1. h is a function of the partial trace: the same trace, the same number, whatever ran before;
2. h is positive for a living particle; h = 0 (`-inf`) only from a guide that is `exact` or
   `admissible`, where it proves that nothing of positive weight follows;
3. h = 1 at the end: a finished particle is not asked.

So particle filters weigh by G_t h_t / h_{t-1} between and by γ at the end: E[Ẑ] = Z for every guide
(Whiteley and Lee, 2014). A* finds the MAP when h ≥ h* in the max semiring (`admissible`).

A guide that calls a language model returns steps (`lmppl.jobs`); `log_h` is a generator that
batches them over the whole population: `logh = yield from guide.log_h(machine, particles)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from lmppl.batches import run_now
from lmppl.errors import BadArgument, LmpplError, excerpt
from lmppl.inference.machine.particles import Particle
from lmppl.jobs import Batch, Effect, Env, Generate, Score
from lmppl.ledger import Ledger
from lmppl.lm.load import load
from lmppl.trace import Entry, Trace, entries
from lmppl.weights import NEG_INF, check_log_weight

if TYPE_CHECKING:
    from lmppl.inference.machine.population import Jobs, Machine

SEMIRINGS = ("sum", "max")
SCALES = ("log", "prob", "real")


@dataclass(frozen=True)
class Guide:
    """A guide with what it declares.

    Args:
        fn: a function of a partial `Trace` (see `Trace.so_far` for a string that is half drawn).
        semiring: what it estimates: "sum" (a filter's twist) or "max" (a heuristic of search).
        scale: of its number: "log" is log h, "prob" is h in [0, 1], "real" is h ≥ 0.
        admissible: whether h is never below h* of the max semiring.
        exact: whether h = h*.
        batched: `fn` takes a list of traces and returns a number for each.
        steps: `fn` takes (trace, env) and returns a number or a job of `lmppl.jobs`.
        floor: what an h below it is raised to: 1e-3 keeps what a reward calls impossible alive, at a
            thousandth. A much smaller one makes rare, huge weights of the guide's mistakes.
        name: for `target()` and errors.

    >>> Guide(lambda trace: 0.25, scale="prob")(Trace(None)) == math.log(0.25)
    True
    """

    fn: Callable[..., Any]
    semiring: str = "sum"
    scale: str = "log"
    admissible: bool = False
    exact: bool = False
    batched: bool = False
    steps: bool = False
    floor: float = 0.0
    name: str = ""

    def __post_init__(self) -> None:
        """Check the declarations."""
        if not callable(self.fn):
            raise BadArgument(
                f"guide must be a function of a partial trace, got {type(self.fn).__name__}",
                fix="write guide=lambda trace: 0.0, a finite log h",
            )
        for name, value, known in (
            ("semiring", self.semiring, SEMIRINGS),
            ("scale", self.scale, SCALES),
        ):
            if value not in known:
                raise BadArgument(
                    f"Guide: {name} must be one of {', '.join(map(repr, known))}, got {value!r}"
                )
        if self.admissible and self.semiring == "sum":
            raise BadArgument(
                'Guide: admissible=True says that h bounds the best completion: semiring="max"',
                fix='write Guide(fn, semiring="max", admissible=True)',
            )
        if self.batched and self.steps:
            raise BadArgument("Guide: batched and steps exclude each other: steps are batched")
        if not (isinstance(self.floor, (int, float)) and 0.0 <= self.floor < math.inf):
            raise BadArgument(
                f"Guide: floor must be a number ≥ 0, got {self.floor!r}", fix="write floor=1e-3"
            )

    # -- constructors ------------------------------------------------------------------------

    @staticmethod
    def of(guide: Any) -> Guide | None:
        """What an engine was given: a `Guide`, a function `Trace -> log h`, or None."""
        return guide if guide is None or isinstance(guide, Guide) else Guide(guide)

    @staticmethod
    def reward(reward: Any, at: Any = None, **options: Any) -> Guide:
        """A process reward model as h: its score of the steps so far, half-drawn ones included."""
        from lmppl.inference.guides import reward_guide

        return reward_guide(reward, at, **options)

    @staticmethod
    def value(value: Any, **options: Any) -> Guide:
        """A `lmppl.potentials.Value` as a guide: its link of its score is h."""
        from lmppl.inference.guides import value_guide

        return value_guide(value, **options)

    @staticmethod
    def optimal(program: Callable[..., Any], *args: Any, **options: Any) -> Guide:
        """h* of a finite program, by enumeration: `exact`, for tests and small problems."""
        from lmppl.inference.guides import optimal_guide

        return optimal_guide(program, *args, **options)

    @staticmethod
    def relaxed(
        program: Callable[..., Any], *args: Any, key: Callable[[Trace], Any], **options: Any
    ) -> Guide:
        """h* that knows only `key(trace)`: the mean (sum) or the largest (max, admissible) of h*."""
        from lmppl.inference.guides import relaxed_guide

        return relaxed_guide(program, *args, key=key, **options)

    # -- evaluation --------------------------------------------------------------------------

    @property
    def bounding(self) -> bool:
        """Whether h = 0 is allowed, because it proves that nothing follows."""
        return self.exact or self.admissible

    def __call__(self, trace: Trace) -> float:
        """log h of one partial trace, its model jobs run at once."""
        if self.batched:
            return self._log(self.fn([trace])[0], trace)
        if not self.steps:
            return self._log(self.fn(trace), trace)
        env = Env(resolve=load)
        return self._log(run_now(self.fn(trace, env), env, Ledger()), trace)

    def log_h(
        self, machine: Machine, particles: Sequence[Particle], *, finished: bool = False
    ) -> Jobs:
        """log h of each particle [N]: a generator, whose jobs are batched with all others.

        Args:
            machine: the run.
            particles: dead ones get 0, and so do finished ones.
            finished: ask for finished ones too, where an engine ranks by the guide alone.
        """
        out = np.zeros(len(particles))
        asked = [i for i, p in enumerate(particles) if not p.dead and (finished or not p.finished)]
        if not asked:
            return out
        traces = [partial_trace(particles[i]) for i in asked]
        if self.batched:
            found = list(self.fn(traces))
            if len(found) != len(traces):
                raise BadArgument(
                    f"guide {self} gave {len(found)} numbers for {len(traces)} traces",
                    fix="return one number per trace, in order",
                )
        elif self.steps:
            found = yield from run_steps(machine, [self.fn(t, machine.env) for t in traces])
        else:
            found = [self.fn(t) for t in traces]
        for i, value, trace in zip(asked, found, traces, strict=True):
            out[i] = self._log(value, trace, particles[i].index)
        return out

    def _log(self, value: Any, trace: Trace, particle: int | None = None) -> float:
        if self.scale == "log":
            logh = check_log_weight(value, site="guide", term="log guide")
        else:
            h = check_log_weight(value, site="guide", term="guide") if value is not True else 1.0
            h = 0.0 if value is False else h
            if h < 0.0 or (self.scale == "prob" and h > 1.0):
                kind = "a probability" if self.scale == "prob" else "a number ≥ 0"
                raise BadArgument(
                    f'guide {self} has scale="{self.scale}" and must return {kind}',
                    where=f"after {list(trace)[-1:] or 'the start'}",
                    value=excerpt(value),
                    fix='write Guide(fn, scale="log") if it returns log h',
                )
            logh = math.log(h) if h > 0.0 else NEG_INF
        if self.floor > 0.0:
            logh = max(logh, math.log(self.floor))
        if logh == NEG_INF and not self.bounding:
            who = "" if particle is None else f"particle {particle}, "
            raise LmpplError(
                "the guide gave zero to a particle that is alive",
                where=f"{who}after {list(trace)[-1:] or 'the start'}",
                why="a guide only directs the search; zero would cut part of the target off and bias the result",
                fix="return a finite number, such as -20.0; use factor(...) in the program to rule something out",
            )
        return logh

    def __str__(self) -> str:
        return self.name or getattr(self.fn, "__name__", type(self.fn).__name__)


AnyGuide: TypeAlias = Guide | Callable[[Trace], float]
"""What the `guide=` of an engine may be."""


def partial_trace(p: Particle) -> Trace:
    """What a guide sees of a particle: its sites, those of running plates, and half-drawn strings."""
    root = p.strand
    trace = Trace(root.head, root.result)
    if root.branches is None and root.job is None:
        return trace
    found: list[Entry] = []
    strands = [root]
    while strands:
        s = strands.pop()
        found += entries(s.head)
        strands += reversed(s.branches or ())
        job, pending = s.job, s.pending
        if isinstance(job, Generate) and pending is not None:
            trace.partial[pending.address] = job.state
            trace.writers[pending.address] = job.lm
    if root.branches is not None:
        trace.put(found)
    return trace


def run_steps(machine: Machine, steps: Sequence[Any]) -> Jobs:
    """Run steps to their results: a generator whose jobs join the shared batches."""
    results: list[Any] = list(steps)
    at: dict[int, int] = {}
    new: list[Any] = []

    def take(i: int, step: Any) -> None:
        if isinstance(step, (Generate, Score, Batch)):
            step.ledger = machine.ledger
            at[id(step)] = i
            new.append(step)
        else:
            results[i] = step

    for i, step in enumerate(steps):
        take(i, step)
    while at:
        done = yield new
        new = []
        for job in done:
            if not isinstance(job, Effect):
                take(at.pop(id(job)), job.step())
    return results
