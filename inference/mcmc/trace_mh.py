"""Metropolis-Hastings over traces, as an engine and as the move of a particle filter.

A proposal makes x' from x by running the program from one of x's barriers with some values kept:

| proposal | what is drawn anew | what is kept |
| --- | --- | --- |
| `SingleSite` | one site, uniform among K(x) | every value whose address exists in both |
| `Suffix` | everything after a barrier, uniform among those of x | the beginning |
| `Block(program)` | the sites that a program `proposal(trace)` samples | as `SingleSite` |

    log α = log γ(x') - log γ(x) + log K(x) - log K(x')
            + Σ log q of x's values that x' does not keep  - Σ log q of those drawn for x'

K counts what the proposal chose among. A kept value is scored where its context may have changed,
and drawn anew where the law it is drawn from scores no given text (top-p, a regex). An inference
inside the program after the barrier is run again: its draws are part of the trace, and proposed
from their own law. Every move leaves γ / Z invariant; inside a filter, at time t, it leaves the
intermediate target γ_t · h invariant, and particles keep their weight w · h.

References: Green, Reversible jump Markov chain Monte Carlo (1995); Wingate, Stuhlmüller and
Goodman, Lightweight implementations of probabilistic programming languages (2011); moves inside
filters, Gilks and Berzuini (2001).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.answers import Stop
from lmppl.inference.guide import AnyGuide, Guide
from lmppl.inference.mcmc.chain import accepts, check_count
from lmppl.inference.particles import Particle
from lmppl.inference.paths import (
    Given,
    Node,
    Script,
    drawing,
    grown,
    history,
    log_gamma,
    sampled,
    script_of,
)
from lmppl.inference.population import Jobs, Machine
from lmppl.random import draw, fold
from lmppl.trace import Entry, Trace
from lmppl.types import Key
from lmppl.weights import NEG_INF


class Barriers(NamedTuple):
    """Where paths have nodes, and how many barriers they have passed."""

    stop: Stop = "site"
    limit: int | None = None
    until: int | None = None
    """None: to the end of the program."""


class Plan(NamedTuple):
    """One proposed run."""

    begin: Node
    """Where it leaves the old path."""
    given: Given
    log_choice: float
    """log probability of what was chosen: the barrier, the site, the proposed values."""
    context: Any = None
    """What the reverse move needs to know."""


class Move(NamedTuple):
    """What a proposal may look at to find the probability of its reverse."""

    old: Node
    new: Node
    plan: Plan
    before: Mapping[str, Entry]
    after: Mapping[str, Entry]


class Proposal:
    """How a chain moves; subclasses are the rows of the table."""

    steps: int

    @abstractmethod
    def plan(self, machine: Machine, x: Node, key: Key) -> Jobs:
        """A `Plan` for a path, or None to stay."""

    @abstractmethod
    def reverse(self, machine: Machine, move: Move) -> Jobs:
        """log probability of choosing the reverse move; -inf where there is none."""

    def check(self, barriers: Barriers) -> None:
        """Refuse barriers that it cannot work with."""
        if barriers.limit is not None:
            raise BadArgument(
                f"{type(self).__name__} with barriers inside strings",
                why="half of a string cannot be scored in another context",
                fix="use Suffix(), or resample_at='site'",
            )

    def move(
        self,
        machine: Machine,
        paths: Sequence[Node],
        key: Key,
        barriers: Barriers,
        guide: AnyGuide | None = None,
    ) -> Jobs:
        """`steps` moves of each path, batched over the paths.

        Returns:
            The new paths, the particles that can go on from them (None where the path is the old
            one), and how many moves were accepted.
        """
        self.check(barriers)
        now, runners = list(paths), [None] * len(paths)
        accepted = 0
        for step in range(self.steps):
            own = fold(key, "move", step)
            found = yield from self._step(machine, now, own, barriers, Guide.of(guide))
            for i, (node, p) in found.items():
                old: Particle | None = runners[i]
                if old is not None:
                    old.strand.kill()
                now[i], runners[i] = node, p
            accepted += len(found)
        return now, runners, accepted

    def _step(
        self, machine: Machine, now: list[Node], key: Key, barriers: Barriers, guide: Guide | None
    ) -> Jobs:
        script, deaths = script_of(machine), machine.deaths.copy()
        plans: dict[int, Plan] = {}
        runs: dict[int, tuple[Node, Particle]] = {}
        # Propose
        for i, x in enumerate(now):
            plan = yield from self.plan(machine, x, fold(key, "plan", i))
            if plan is not None:
                plans[i] = plan
                p = machine.fork(plan.begin.state, fold(key, "run", i), i, frames=False)
                script.given[p] = plan.given
                runs[i] = plan.begin, p
        while moving := [i for i, (at, p) in runs.items() if _moves(at, p, barriers)]:
            yield from machine.advance([runs[i][1] for i in moving], barriers.stop, barriers.limit)
            for i in moving:
                at, p = runs[i]
                runs[i] = grown(machine, p, at), p
        machine.deaths = deaths  # a rejected proposal is no impossible run
        logh = yield from self._guides(machine, now, runs, guide)
        # Accept or reject
        made: dict[int, tuple[Node, Particle]] = {}
        for i, (new, p) in runs.items():
            plan = plans[i]
            del script.given[p]
            ratio = NEG_INF
            if not p.dead:
                ratio = yield from self._log_ratio(machine, script, now[i], new, plan)
                ratio += logh.get(i, 0.0)
            if accepts(machine, fold(key, "accept", i), ratio):
                made[i] = new, p
            else:
                p.strand.kill()
        return made

    def _guides(
        self,
        machine: Machine,
        now: list[Node],
        runs: Mapping[int, tuple[Node, Particle]],
        guide: Guide | None,
    ) -> Jobs:
        """log h(x') - log h(x)."""
        if guide is None:
            return {}
        alive = [i for i, (_, p) in runs.items() if not p.dead]
        new = yield from guide.log_h(machine, [runs[i][0].state for i in alive])
        old = yield from guide.log_h(machine, [now[i].state for i in alive])
        return dict(zip(alive, (new - old).tolist(), strict=True))

    def _log_ratio(
        self, machine: Machine, script: Script, old: Node, new: Node, plan: Plan
    ) -> Jobs:
        before, after, start = sampled(old.state), sampled(new.state), sampled(plan.begin.state)
        used, fresh = plan.given.used, plan.given.fresh
        for address in (used | fresh) - set(plan.given.anew):
            # what its new law cannot score is drawn anew: the way back must agree
            known = before.get(address)
            if known and script.rigid.get(known.fingerprint, False) != (address in fresh):
                return NEG_INF
        back, covered = yield from self.reverse(machine, Move(old, new, plan, before, after))
        if back == NEG_INF:
            return NEG_INF
        forth = plan.log_choice + _drawn(new.state, after, start.keys() | used)
        back += _drawn(old.state, before, start.keys() | (used & after.keys()) | set(covered))
        return log_gamma(new.state) - log_gamma(old.state) + back - forth


def _moves(at: Node, p: Particle, barriers: Barriers) -> bool:
    return not p.finished and (barriers.until is None or at.depth < barriers.until)


def _drawn(p: Particle, sites: Mapping[str, Entry], kept: Collection[str]) -> float:
    """Σ log q of what was drawn and is not kept."""
    total = sum(e.logq for a, e in sites.items() if a not in kept)
    return float(total) + sum(job.state.logq for job in drawing(p))


# -- the proposals -------------------------------------------------------------------------------


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
        check_count("steps", self.steps, 1)

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
        check_count("steps", self.steps, 1)

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

    program: Callable[[Trace], Any]
    steps: int = 1

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_count("steps", self.steps, 1)
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
        return Plan(begin, Given(values), _drawn(x.state, found, ()), frozenset(found))

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
