"""A plan as a DAG, run with tools: what is ready runs, and every few levels the plan is revised.

    run_plan(plan, act, revise=..., every=2)

A step runs as soon as the steps it reads have ended. After every `every` levels `revise` sees all
results and the steps that have not started, and returns the steps to go on with: pending ones may
be changed, dropped or added, finished ones stay. A step that fails for good is planned anew by
`repair`, with the results it would have read: its ancestors do not run again.

Reference: Qin et al., Flash-Searcher: Fast and effective web agents via DAG-based parallel
execution (2025).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from lmppl.errors import GraphError
from lmppl.graphs.methods.proposals import Task
from lmppl.graphs.thoughts.budget import Budget
from lmppl.graphs.thoughts.checks import check_given
from lmppl.graphs.thoughts.graph import Thoughts, graph
from lmppl.graphs.thoughts.node import Failed, Node, Spawn


class Step(NamedTuple):
    """One step of a plan."""

    name: str
    what: Any
    after: tuple[str, ...] = ()


Act = Callable[..., Any]
"""act(what, *results of the steps it reads); may contain sites, effects and `use`."""
Revise = Callable[[Mapping[str, Any], Sequence[Step]], Iterable[Step]]


def steps_of(tasks: Iterable[Task]) -> tuple[Step, ...]:
    """The steps of parsed tasks, named `s1`, `s2` and so on.

    >>> steps_of([Task("find A"), Task("compare", (1,))])
    (Step(name='s1', what='find A', after=()), Step(name='s2', what='compare', after=('s1',)))
    """
    return tuple(
        Step(f"s{i}", t.text, tuple(f"s{n}" for n in t.after)) for i, t in enumerate(tasks, 1)
    )


def run_plan(
    plan: Iterable[Step],
    act: Act,
    *,
    revise: Revise | None = None,
    every: int = 2,
    repair: Callable[[Any, str, tuple[Any, ...]], Any] | None = None,
    retries: int = 0,
    most_rounds: int = 8,
    budget: Budget | None = None,
    name: str = "plan",
) -> Thoughts:
    """The results of all steps by name; inside a program.

    Args:
        plan: the steps, in any order.
        act: does one step.
        revise: the new pending steps, of all results and the old ones.
        every: after how many levels.
        repair: `repair(what, reason, results read)` -> another way to do a failed step: anything
            `act` understands.
        retries: more attempts of a step before that.
        most_rounds: revisions at most.
        budget: limits of the graph.
        name: the scope.
    """
    steps = tuple(Step(*s) for s in plan)
    make = partial(_node, act, repair, retries)
    check_given([make(s) for s in steps], ())
    if revise is None:
        return graph(name, [make(s) for s in steps], budget=budget)  # type: ignore[no-any-return]

    def go_on(t: int, done: tuple[str, ...], pending: tuple[Step, ...], *results: Any) -> Any:
        if t > 0 and t <= most_rounds:
            known = dict(zip(done, results, strict=True))
            pending = tuple(Step(*s) for s in revise(known, pending))
            _check_revised(pending, done)
        now, later = _levels(pending, set(done), every if t < most_rounds else len(pending))
        if not now:
            return t
        names = (*done, *(s.name for s in now))
        again = Node(f"revise{t + 1}", partial(go_on, t + 1, names, later), names, kind="plan",
                     tolerant=True)  # fmt: skip
        return Spawn([*(make(s) for s in now), again], value=t)

    first = Node("revise0", lambda: go_on(0, (), steps), kind="plan")
    return graph(name, [first], budget=budget)  # type: ignore[no-any-return]


def _node(
    act: Act, repair: Callable[[Any, str, tuple[Any, ...]], Any] | None, retries: int, step: Step
) -> Node:
    def again(failed: Failed, *read: Any) -> Any:
        if repair is None:
            return None
        other = repair(step.what, failed.reason, read)
        new = Node(f"{step.name}.again", partial(act, other), step.after, retries, kind="step",
                   on_failure="skip")  # fmt: skip
        return Spawn([new], becomes=new.name)

    return Node(
        step.name, partial(act, step.what), step.after, retries=retries, kind="step",
        replan=again if repair is not None else None, on_failure="skip",
    )  # fmt: skip


def _check_revised(pending: Sequence[Step], done: Sequence[str]) -> None:
    names = {s.name for s in pending}
    if again := sorted(names & set(done)):
        raise GraphError(
            f"the revised plan has a step {again[0]!r} that has ended",
            fix="give steps that are done again a new name",
        )
    for s in pending:
        for parent in s.after:
            if parent not in names and parent not in done:
                raise GraphError(f"step {s.name!r} of the revised plan reads {parent!r}, no step")


def _levels(
    pending: Sequence[Step], done: set[str], levels: int
) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """The steps of the next levels, and the rest."""
    now: list[Step] = []
    left = list(pending)
    for _ in range(levels):
        ready = [s for s in left if all(p in done for p in s.after)]
        if not ready:
            break
        now += ready
        left = [s for s in left if s not in ready]
        done = done | {s.name for s in ready}
    return tuple(now), tuple(left)
