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
and drawn anew where the law it is drawn from scores no given text (top-p, a regex, a model without
`scores_text`). An inference
inside the program after the barrier is run again: its draws are part of the trace, and proposed
from their own law. Every move leaves γ / Z invariant. Inside a filter, at time t, it leaves the
intermediate target γ_t · h of the unfinished traces invariant, and particles keep their weight w · h:
finished ones stay, since whether they were moved would depend on the other particles.

References: Green, Reversible jump Markov chain Monte Carlo (1995); Wingate, Stuhlmüller and
Goodman, Lightweight implementations of probabilistic programming languages (2011); moves inside
filters, Gilks and Berzuini (2001).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.guide import AnyGuide, Guide
from lmppl.inference.machine.answers import Stop
from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.paths import (
    Given,
    Node,
    Script,
    drawing,
    grown,
    log_gamma,
    root,
    sampled,
    script_of,
)
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.machine.together import together
from lmppl.inference.mcmc.chain import accepts
from lmppl.random import fold
from lmppl.trace import Entry
from lmppl.types import Ints, Key
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
    needs: ClassVar[tuple[str, ...]] = ()
    """What its moves ask of a model beside `logprobs` (`lmppl.lm.needs`)."""

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

    def begin(self, machine: Machine, population: list[Particle]) -> Paths:
        """Follow the particles of a filter, to move them (`SMC(rejuvenate=...)`)."""
        return Paths(self, machine, population)

    def _step(
        self, machine: Machine, now: list[Node], key: Key, barriers: Barriers, guide: Guide | None
    ) -> Jobs:
        script, deaths = script_of(machine), machine.deaths.copy()
        plans: dict[int, Plan] = {}
        runs: dict[int, tuple[Node, Particle]] = {}
        # Propose
        movable = [
            i
            for i, x in enumerate(now)
            if not (x.state.dead or (barriers.until is not None and x.state.finished))
        ]
        found: list[Plan | None] = yield from together(
            [self.plan(machine, now[i], fold(key, "plan", i)) for i in movable]
        )
        for i, plan in zip(movable, found, strict=True):
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
        sound = [
            i
            for i, (_, p) in runs.items()
            if not (p.dead or (barriers.until is not None and p.finished))
        ]
        logs: list[float] = yield from together(
            [self._log_ratio(machine, script, now[i], runs[i][0], plans[i]) for i in sound]
        )
        ratios = dict(zip(sound, logs, strict=True))
        made: dict[int, tuple[Node, Particle]] = {}
        for i, (new, p) in runs.items():
            del script.given[p]
            ratio = ratios.get(i, NEG_INF) + logh.get(i, 0.0)
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
            known = before.get(address) if address in plan.given.values else None
            if known and script.rigid.get(known.fingerprint, False) != (address in fresh):
                return NEG_INF
        back, covered = yield from self.reverse(machine, Move(old, new, plan, before, after))
        if back == NEG_INF:
            return NEG_INF
        forth = plan.log_choice + drawn(new.state, after, start.keys() | used)
        back += drawn(old.state, before, start.keys() | (used & after.keys()) | set(covered))
        return log_gamma(new.state) - log_gamma(old.state) + back - forth


def _moves(at: Node, p: Particle, barriers: Barriers) -> bool:
    return not p.finished and (barriers.until is None or at.depth < barriers.until)


def drawn(p: Particle, sites: Mapping[str, Entry], kept: Collection[str]) -> float:
    """Σ log q of what was drawn and is not kept."""
    total = sum(e.logq for a, e in sites.items() if a not in kept)
    return float(total) + sum(job.state.logq for job in drawing(p))


class Paths:
    """The paths of a filter's population, which moves them at its barriers."""

    def __init__(
        self, proposal: Proposal, machine: Machine, population: Sequence[Particle]
    ) -> None:
        """They start at the root."""
        self.proposal = proposal
        self.machine = machine
        self.nodes = [root(machine, p.key) for p in population]
        script_of(machine)  # it must know the laws of all sites

    def grow(self, population: list[Particle]) -> None:
        """Note where every particle is, at a barrier."""
        for i, p in enumerate(population):
            if not self.nodes[i].state.finished:
                self.nodes[i] = grown(self.machine, p, self.nodes[i])

    def move(
        self, population: list[Particle], ancestors: Ints | None, key: Key, stop: Stop, limit: int | None,
        until: int, guide: Guide | None,
    ) -> Jobs:  # fmt: skip
        """Move the unfinished ones, each with its weight times guide kept."""
        if ancestors is not None:
            self.nodes = [self.nodes[a] for a in ancestors.tolist()]
        before = np.zeros(len(population))
        if guide is not None:
            before = yield from guide.log_h(self.machine, population)
        self.nodes, runners, _ = yield from self.proposal.move(
            self.machine, self.nodes, key, Barriers(stop, limit, until), guide
        )
        moved = [p if q is None else q for p, q in zip(population, runners, strict=True)]
        after = np.zeros(len(population))
        if guide is not None:
            after = yield from guide.log_h(self.machine, moved)
        gains = (before - after).tolist()
        for old, new, gain in zip(population, moved, gains, strict=True):
            if new is not old:
                # log_weight counts half-drawn strings beside logw
                new.logw += old.log_weight + gain - new.log_weight
                new.eve = old.eve
                old.strand.kill()
        return moved
