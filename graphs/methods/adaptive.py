"""Adaptive Graph of Thoughts: tasks in layers, the hard ones as graphs of their own.

    agot(question, steps)         inside a program; the answer

    layer 0:   steps.initial -> tasks
    each task: steps.simple ≥ threshold, or depth = max_depth -> steps.execute
               otherwise -> a nested graph, whose answer is the task's answer
    layer l:   steps.more -> new tasks, or the final answer
    at last:   steps.final

All tasks of a layer, nested ones included, run together: the nodes of a nested graph have the name
of its task before their own. Every step is a node: its sites are part of the program, so any engine
gives a posterior over the answer. The graph is acyclic whatever is proposed; an ill-formed proposal
(`NodeFailed`) costs a retry, and after the last one the question itself is the only task (in a
later layer: the answer is asked for). A task that fails for good has the answer `Failed`. One
budget holds for all nested graphs: a task whose tasks it refuses is answered directly, a layer by
what is known.

`max_depth=0` with one task is chain of thought; one layer without depth is a tree of thoughts.

The check is a probability, `steps.simple` -> P(a direct answer is right), compared with a
threshold that a ledger can choose; a bool counts as 0 or 1.

Reference: Pandey, Ghukasyan, Goktas and Radha, Adaptive Graph of Thoughts (2025); its defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from lmppl.arguments import check_integers, check_numbers
from lmppl.graphs.methods.proposals import Task
from lmppl.graphs.thoughts.budget import Budget
from lmppl.graphs.thoughts.graph import graph
from lmppl.graphs.thoughts.node import Failed, Node, Spawn

Known = Sequence[tuple[Any, Any]]
"""(task, answer) pairs."""
Names = tuple[tuple[str, Any], ...]
"""Nodes, and the task of each."""


class Steps(Protocol):
    """What a solver does; each may contain sites. `known` are tasks with their answers."""

    def initial(self, task: Any, most: int) -> Iterable[Any]:
        """Tasks to begin with: `Task`s, or anything that `execute` understands."""

    def simple(self, task: Any, known: Known, depth: int) -> float:
        """The probability that a direct answer is right."""

    def execute(self, task: Any, known: Known) -> Any:
        """A direct answer, given the answers of the tasks it reads."""

    def more(self, task: Any, known: Known, most: int) -> Iterable[Any] | None:
        """New tasks; None when it is time for the final answer."""

    def final(self, task: Any, known: Known) -> Any:
        """The answer, given those of all tasks."""


@dataclass(frozen=True)
class Limits:
    """How far a graph may grow; the defaults are the paper's."""

    max_depth: int = 1
    max_tasks: int = 3
    """Of one layer; one fewer per depth."""
    max_layers: int = 2
    threshold: float = 0.85
    retries: int = 2

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_integers("Limits", 0, max_depth=self.max_depth, retries=self.retries)
        check_integers("Limits", max_tasks=self.max_tasks, max_layers=self.max_layers)
        check_numbers("Limits", infinite=True, threshold=self.threshold)

    def tasks(self, depth: int) -> int:
        """How many tasks a layer of this depth may have."""
        return max(1, self.max_tasks - depth)


def agot(
    question: Any,
    steps: Steps,
    limits: Limits | None = None,
    *,
    name: str = "agot",
    budget: Budget | None = None,
) -> Any:
    """Answer a question by an adaptive graph of thoughts.

    Args:
        question: what `steps` understands as a task.
        steps: the solver: `LMSteps`, or any object with its methods.
        limits: depth, width, layers, the threshold.
        name: the scope.
        budget: of the graph and all nested ones.

    >>> from lmppl import program
    >>> from lmppl.graphs.methods import agot
    >>> class Halves:
    ...     def initial(self, n, most): return [n // 2, n - n // 2]
    ...     def simple(self, n, known, depth): return float(n < 4)
    ...     def execute(self, n, known): return n
    ...     def more(self, n, known, most): return None
    ...     def final(self, n, known): return sum(answer for _, answer in known)
    >>> program(lambda: agot(13, Halves()))()
    13
    """
    first = _Layers(question, steps, limits or Limits(), 0, "").planner(0, ())
    return graph(name, [first], budget=budget)[first.name]


class _Layers:
    """The nodes of one graph; those of a nested one begin with the name of its task."""

    def __init__(self, task: Any, steps: Steps, limits: Limits, depth: int, prefix: str) -> None:
        self.task, self.steps, self.limits = task, steps, limits
        self.depth, self.prefix = depth, prefix

    def planner(self, layer: int, done: Names) -> Node:
        """The node that makes a layer of what is known; `done` are names and tasks."""
        reads = tuple(name for name, _ in done)
        last = partial(self._last, done)

        def plan(*answers: Any) -> Any:
            if layer >= self.limits.max_layers:
                return last(*answers)
            most = self.limits.tasks(self.depth)
            ask = self.steps.more if layer else None
            known = _known(done, answers)
            found = ask(self.task, known, most) if ask else self.steps.initial(self.task, most)
            tasks = None if found is None else list(found)[:most]
            return last(*answers) if not tasks else self._layer(layer, tasks, done)

        def anew(_: Failed, *answers: Any) -> Any:
            return last(*answers) if layer else self._layer(0, [self.task], done)

        return Node(
            f"{self.prefix}plan{layer}", plan, reads, retries=self.limits.retries, replan=anew,
            on_failure="skip", tolerant=True, kind="plan",
        )  # fmt: skip

    def _last(self, done: Names, *answers: Any) -> Any:
        return self.steps.final(self.task, _known(done, answers))

    def _layer(self, layer: int, tasks: list[Any], done: Names) -> Spawn:
        new: list[Node] = []
        names = list(done)
        for i, task in enumerate(tasks):
            name = f"{self.prefix}task{layer}.{i}"
            after = task.after if isinstance(task, Task) else ()
            reads = [names[n - 1] for n in dict.fromkeys(after) if 1 <= n <= len(names)]
            solve = partial(self._solve, name, task, tuple(reads))
            new.append(self._task(name, solve, reads))
            names.append((name, task))
        planner = self.planner(layer + 1, tuple(names))
        stop = partial(self._last, done) if layer else partial(self._execute, self.task, ())
        instead = self._task(f"{self.prefix}last{layer}", stop, done, tolerant=True)
        return Spawn([*new, planner], becomes=planner.name, otherwise=instead)

    def _task(
        self, name: str, fn: Callable[..., Any], reads: Iterable[tuple[str, Any]],
        tolerant: bool = False,
    ) -> Node:  # fmt: skip
        return Node(
            name, fn, tuple(n for n, _ in reads), retries=self.limits.retries, on_failure="skip",
            tolerant=tolerant, kind="task",
        )  # fmt: skip

    def _solve(self, name: str, task: Any, read: Names, *answers: Any) -> Any:
        known = _known(read, answers)
        if self.depth < self.limits.max_depth:
            simple = float(self.steps.simple(task, known, self.depth))
            if simple < self.limits.threshold:
                inside = _Layers(task, self.steps, self.limits, self.depth + 1, f"{name}.")
                first = inside.planner(0, ())
                direct = partial(self._execute, task, read)
                instead = self._task(f"{name}.direct", direct, read)
                return Spawn([first], becomes=first.name, otherwise=instead)
        return self._execute(task, read, *answers)

    def _execute(self, task: Any, read: Names, *answers: Any) -> Any:
        return self.steps.execute(task, _known(read, answers))


def _known(tasks: Names, answers: Sequence[Any]) -> list[tuple[Any, Any]]:
    return [(task, answer) for (_, task), answer in zip(tasks, answers, strict=True)]
