"""What Metropolis-Hastings over traces proposes: one site, a suffix, or a block by a program."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lmppl.arguments import check_integers
from lmppl.errors import BadArgument
from lmppl.inference.machine.paths import Given, Node, history, sampled, script_of
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.mcmc.trace_mh import Barriers, Move, Plan, Proposal, drawn
from lmppl.random import draw, fold
from lmppl.trace import Entry, Trace
from lmppl.types import Key
from lmppl.weights import NEG_INF


def _free(sites: Mapping[str, Entry]) -> list[str]:
    """Sites that could have had another value."""
    return [a for a, e in sites.items() if e.logq != 0.0]


def _pick(machine: Machine, key: Key, n: int) -> int:
    return draw(machine.env.chance, key, [0.0] * n)


@dataclass(frozen=True)
class SingleSite(Proposal):
    """Draw one site anew from the law it is drawn from, and keep the rest.

    Args:
        steps: moves of a trace, each with a site of its own.
    """

    steps: int = 1

    def __post_init__(self) -> None:
        """Check the number."""
        check_integers(type(self).__name__, steps=self.steps)

    def plan(self, machine: Machine, x: Node, key: Key) -> Jobs:
        """A site, and the barrier before it."""
        sites = sampled(x.state)
        names = _free(sites)
        if not names:
            return None
        name = names[_pick(machine, fold(key, "site"), len(names))]
        begin = last_without(x, {name})
        given = Given({a: e.value for a, e in sites.items()}, anew=(name,))
        return Plan(begin, given, -math.log(len(names)), name)
        yield

    def reverse(self, machine: Machine, move: Move) -> Jobs:
        """The same site, among those of x'."""
        names = _free(move.after)
        if move.plan.context not in move.plan.given.fresh or move.plan.context not in names:
            return NEG_INF, ()
        return -math.log(len(names)), ()
        yield


@dataclass(frozen=True)
class Suffix(Proposal):
    """Keep the trace up to one of its barriers, and draw the rest anew.

    Args:
        steps: moves of a trace.
    """

    steps: int = 1

    def __post_init__(self) -> None:
        """Check the number."""
        check_integers(type(self).__name__, steps=self.steps)

    def check(self, barriers: Barriers) -> None:
        """It works with all of them."""

    def plan(self, machine: Machine, x: Node, key: Key) -> Jobs:
        """A barrier."""
        if x.depth == 0:
            return None
        depth = _pick(machine, fold(key, "barrier"), x.depth)
        return Plan(history(x)[depth], Given({}), -math.log(x.depth))
        yield

    def reverse(self, machine: Machine, move: Move) -> Jobs:
        """The same barrier, among those of x'."""
        return -math.log(move.new.depth), ()
        yield


@dataclass(frozen=True)
class Block(Proposal):
    """Draw several sites by a program of their own, such as a prompt that revises an answer.

    Args:
        program: takes the present trace; each of its sample sites proposes the value of the site
            of that address. Its draws are scored, so that the way back can be weighed.
        steps: moves of a trace.

    >>> from lmppl import Bernoulli, program, sample
    >>> @program
    ... def flip(trace):
    ...     sample("heads", Bernoulli(0.9 if not trace["heads"] else 0.1))
    >>> Block(flip).steps
    1
    """

    needs: ClassVar[tuple[str, ...]] = ("scores_text",)
    """Texts that it proposes are scored, there and back."""
    program: Callable[[Trace], Any]
    steps: int = 1

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_integers(type(self).__name__, steps=self.steps)
        if not callable(self.program):
            raise BadArgument(
                "Block needs a program of the present trace", fix="write Block(revise)"
            )

    def plan(self, machine: Machine, x: Node, key: Key) -> Jobs:
        """Values, by the program at x."""
        sites = sampled(x.state)
        found: dict[str, Entry] | None = yield from self._propose(machine, x, key, None)
        if not found:
            return None
        begin = last_without(x, found.keys())
        values = {a: e.value for a, e in sites.items()} | {a: e.value for a, e in found.items()}
        return Plan(begin, Given(values), drawn(x.state, found, ()), frozenset(found))

    def reverse(self, machine: Machine, move: Move) -> Jobs:
        """The old values, by the program at x'."""
        old = {a: e.value for a, e in move.before.items()}
        if not move.plan.context <= move.plan.given.used:
            return NEG_INF, ()
        found = yield from self._propose(machine, move.new, fold(machine.key, "reverse"), old)
        if found is None:
            return NEG_INF, ()
        for address in (move.before.keys() & move.after.keys()) - found.keys():
            if not _equal(move.before[address].value, move.after[address].value):
                return NEG_INF, ()
        return sum(e.logq for e in found.values()), frozenset(found)

    def _propose(
        self, machine: Machine, x: Node, key: Key, values: Mapping[str, Any] | None
    ) -> Jobs:
        """The sites of a run of the proposal at x; None where it cannot have these values."""
        inner = Machine(self.program, (x.trace,), {}, machine.env, key)
        inner.ledger = machine.ledger
        inner.launch.models, inner.launch.chance = machine.launch.models, machine.launch.chance
        p = inner.particle(0)
        if values is not None:
            script_of(inner).given[p] = Given(values, strict=True)
        yield from inner.advance([p], "end")
        return None if p.dead else sampled(p)


def _equal(a: Any, b: Any) -> bool:
    return bool(np.all(a == b))


def last_without(x: Node, addresses: Collection[str]) -> Node:
    """The last node of a path before any of some sites."""
    nodes = history(x)
    low, high = 0, len(nodes) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if sampled(nodes[middle].state).keys().isdisjoint(addresses):
            low = middle
        else:
            high = middle - 1
    return nodes[low]
