"""The particle cascade: a filter without barriers, which never waits for the slowest particle.

    a particle that reaches barrier t with weight w is the k-th there, W̄ the mean of all k weights
        w < W̄:  one child with probability w / W̄, of weight W̄; else none
        w ≥ W̄:  ⌊w / W̄⌋ or ⌈w / W̄⌉ children, the upper one with the fractional part's probability,
                 each of weight w / (number of children)
    Ẑ = (1 / N) Σ final weights

The sum of the children's weights is w in expectation, whatever W̄ is, as long as W̄ looks at earlier
arrivals and itself alone: E[Ẑ] = Z for every N. No arrival waits for another: a round moves every
live particle by at most `chunk` tokens, and who has arrived goes on while a long string is still
being drawn (calls of tools, `effect`, are waited for). Those that arrive in one round are taken in
the order of the population. The number of particles varies; above `most`, an arrival has at most
one child.

Reference: Paige, Wood, Doucet and Teh, Asynchronous anytime sequential Monte Carlo (2014).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lmppl.arguments import check_integers
from lmppl.inference.base import Engine
from lmppl.inference.checks import check_particles
from lmppl.inference.guide import AnyGuide, Guide
from lmppl.inference.machine.answers import Stop
from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.paths import drawing
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.results.history import History
from lmppl.inference.results.posterior import population_posterior
from lmppl.inference.smc.particle_filter import SMC, tokens
from lmppl.random import draw, fold
from lmppl.trace import Entry
from lmppl.weights import NEG_INF, log_add, log_sum_exp


class Live(NamedTuple):
    """A particle on its way."""

    particle: Particle
    passed: int
    """Barriers."""
    parent: int
    """Which arrival at the last of them it comes from."""


class Arrival(NamedTuple):
    """What a particle was at a barrier."""

    parent: int
    lw: float
    head: Entry | None
    eve: int


@dataclass(frozen=True)
class Cascade(Engine):
    """The particle cascade.

    Args:
        particles: how many start.
        resample_at, guide: as in `SMC`.
        chunk: tokens per round.
        most: live particles above which a particle has at most one child; 0 means 4 N.
    """

    particles: int = 16
    resample_at: str | tokens = "site"
    guide: AnyGuide | None = None
    chunk: int = 16
    most: int = 0

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_particles("Cascade", particles=self.particles)
        SMC(self.particles, resample_at=self.resample_at, guide=self.guide)
        check_integers("Cascade", 0, most=self.most)
        tokens(self.chunk)

    def target(self, program: object = None) -> str:
        """The law of the weighted traces."""
        return (
            "γ(trace) = Π p(sample) · Π p(observation) · Π exp(factor); posterior = γ / Z\n"
            f"Ẑ = Σ final weights / {self.particles}, E[Ẑ] = Z; arrivals at a barrier branch by their "
            "weight against the mean of those before them"
        )

    def run(self, machine: Machine) -> Jobs:
        """Rounds of the module's first lines."""
        inside = isinstance(self.resample_at, tokens)
        limit = self.resample_at.k if isinstance(self.resample_at, tokens) else self.chunk
        stop: Stop = "factor" if self.resample_at == "factor" else "site"
        guide = Guide.of(self.guide)
        bound = self.most or 4 * self.particles
        live = [Live(machine.particle(i), 0, i) for i in range(self.particles)]
        ended: list[Live] = []
        totals: list[float] = []
        arrivals: list[list[Arrival]] = []
        while live:
            # Propagate
            yield from machine.advance([one.particle for one in live], stop, limit)
            ended += [one for one in live if one.particle.finished]
            going = [one for one in live if not one.particle.finished]
            away = [not inside and any(drawing(one.particle)) for one in going]
            moving = [one for one, is_away in zip(going, away, strict=True) if not is_away]
            logh = np.zeros(len(moving))
            if guide is not None:
                logh = yield from guide.log_h(machine, [one.particle for one in moving])
            # Branch
            live = [one for one, is_away in zip(going, away, strict=True) if is_away]
            for (p, t, parent), h in zip(moving, logh.tolist(), strict=True):
                if t == len(arrivals):
                    arrivals.append([])
                    totals.append(NEG_INF)
                v = p.log_weight + h
                arrivals[t].append(Arrival(parent, p.log_weight, p.strand.head, p.eve))
                totals[t] = log_add(totals[t], v)
                place = len(arrivals[t]) - 1
                mean = totals[t] - math.log(place + 1)
                full = len(live) >= bound
                children = self._children(machine, p, v, mean, t + 1, full)
                live += [Live(child, t + 1, place) for child in children]
        # A particle that died out at a barrier left its weight to the others in expectation.
        final = [one.particle for one in ended]
        evidence = log_sum_exp([p.log_weight for p in final]) - math.log(self.particles)
        history = generations(self.particles, arrivals, ended)
        if not final:
            final = [machine.particle(0)]
            machine.kill(final[0], "a barrier", "no particle had a child")
        return population_posterior(machine, self, final, evidence, history)

    def _children(
        self, machine: Machine, p: Particle, v: float, mean: float, t: int, full: bool
    ) -> list[Particle]:
        """The children of an arrival, whose weights sum to its own in expectation."""
        ratio = math.exp(min(v - mean, 700.0))
        key = fold(p.key, "arrival", t)
        whole = 1 if full else math.floor(ratio + 1e-12)
        rest = max(ratio - whole, 0.0)
        if ratio < 1.0 - 1e-12:
            kept = draw(machine.env.chance, key, [math.log1p(-ratio), math.log(ratio)])
            if not kept:
                p.strand.kill()
                return []
            p.logw += mean - v
            return [p]
        if not full and rest > 1e-12:
            whole += draw(machine.env.chance, key, [math.log1p(-rest), math.log(rest)])
        out = []
        for j in range(whole):
            child = machine.fork(p, fold(p.key, "offspring", t, j), p.index, frames=j == whole - 1)
            child.logw -= math.log(whole)
            out.append(child)
        return out


def generations(
    particles: int, arrivals: Sequence[Sequence[Arrival]], ended: Sequence[Live]
) -> History:
    """The populations of a cascade: all who have come to barrier t, or ended before it."""
    history = History(particles)
    done = [Arrival(parent, p.log_weight, p.strand.head, p.eve) for p, _, parent in ended]
    before: dict[int, int] = {}
    for t in range(len(arrivals) + 1 if ended else 0):
        here = list(arrivals[t]) if t < len(arrivals) else []
        parents = [a.parent for a in here]
        places: dict[int, int] = {}
        for i, one in enumerate(ended):
            if one.passed <= t:
                places[i] = len(here)
                here.append(done[i])
                parents.append(before.get(i, one.parent))
        lw = np.array([a.lw for a in here])
        history.add(
            lw,
            [a.head for a in here],
            [a.eve for a in here],
            log_sum_exp(lw) - math.log(particles),
            np.array(parents, dtype=np.int64) if t else None,
        )
        before = places
    return history
