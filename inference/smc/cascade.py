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
from dataclasses import dataclass

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.base import Engine, check_particles
from lmppl.inference.guide import AnyGuide, Guide
from lmppl.inference.machine.answers import Stop
from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.paths import drawing
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.results.posterior import History, population_posterior
from lmppl.inference.smc.particle_filter import SMC, tokens
from lmppl.random import draw, fold
from lmppl.weights import NEG_INF, log_add, log_sum_exp


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
        check_particles(self.particles)
        SMC(self.particles, resample_at=self.resample_at, guide=self.guide)
        if isinstance(self.most, bool) or not isinstance(self.most, int) or self.most < 0:
            raise BadArgument(f"most must be an integer of at least 0, got {self.most!r}")
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
        live = [(machine.particle(i), 0) for i in range(self.particles)]
        ended: list[Particle] = []
        arrivals: dict[int, tuple[int, float]] = {}
        while live:
            # Propagate
            yield from machine.advance([p for p, _ in live], stop, limit)
            ended += [p for p, _ in live if p.finished]
            going = [(p, t) for p, t in live if not p.finished]
            away = [(p, t) for p, t in going if not inside and any(drawing(p))]
            moving = [(p, t + 1) for p, t in going if inside or not any(drawing(p))]
            logh = np.zeros(len(moving))
            if guide is not None:
                logh = yield from guide.log_h(machine, [p for p, _ in moving])
            # Branch
            live = away
            for (p, t), h in zip(moving, logh.tolist(), strict=True):
                v = p.log_weight + h
                count, total = arrivals.get(t, (0, NEG_INF))
                arrivals[t] = count + 1, log_add(total, v)
                mean = arrivals[t][1] - math.log(count + 1)
                full = len(live) >= bound
                for child in self._children(machine, p, v, mean, t, full):
                    live.append((child, t))
        # A particle that died out at a barrier left its weight to the others in expectation.
        lw = np.array([p.log_weight for p in ended])
        evidence = log_sum_exp(lw) - math.log(self.particles)
        history = History(self.particles)
        history.end(lw, [p.eve for p in ended])
        if not ended:
            ended = [machine.particle(0)]
            machine.kill(ended[0], "a barrier", "no particle had a child")
        return population_posterior(machine, self, ended, evidence, history)

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
