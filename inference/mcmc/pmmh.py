"""Particle marginal Metropolis-Hastings: a chain over some sites, the others by a filter.

    θ' ~ q(· | θ);  Ẑ' <- evidence of a particle filter of the program with θ' observed
    accept with probability min(1, Ẑ' q(θ | θ') / (Ẑ q(θ' | θ)))

Ẑ(θ) estimates p(θ) p(data | θ) without bias, and its noise is a part of the state: the old Ẑ is kept,
never estimated anew. So the chain leaves the exact posterior invariant for every number of
particles. It starts at one of `starts` draws of θ, by their weights Ẑ / q, whose mean is the
evidence estimate: with it the chain is properly weighted.

Reference: Andrieu, Doucet and Holenstein, Particle Markov chain Monte Carlo methods (2010); Andrieu
and Roberts, The pseudo-marginal approach (2009).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.base import Engine
from lmppl.inference.guide import AnyGuide
from lmppl.inference.mcmc.chain import accepts, chain_posterior, check_count
from lmppl.inference.paths import Given, root, sampled, script_of
from lmppl.inference.population import Jobs, Machine
from lmppl.inference.posterior import population_posterior
from lmppl.inference.smc.conditional import Swept, sweep
from lmppl.inference.smc.particle_filter import SMC, tokens
from lmppl.random import draw, fold
from lmppl.trace import Trace
from lmppl.types import Key
from lmppl.weights import NEG_INF, log_mean_exp


class _Point(NamedTuple):
    """A state of the chain."""

    theta: dict[str, Any]
    log_z: float
    trace: Trace
    states: list[Any]


@dataclass(frozen=True)
class ParticleMarginalMH(Engine):
    """Particle marginal Metropolis-Hastings.

    Args:
        sites: θ, by address; no other site may be drawn before the last of them.
        steps: of the chain.
        proposal: a program of the present θ (a mapping) whose sample sites are those of θ; their
            prior when left out.
        particles: N of the filter.
        burn_in: how many steps are not kept.
        starts: how many θ are tried for the start.
        resampling, ess_threshold, resample_at, guide, always: as in `SMC`.
    """

    sites: Sequence[str]
    steps: int = 100
    proposal: Callable[[dict[str, Any]], Any] | None = None
    particles: int = 16
    burn_in: int = 0
    starts: int = 8
    resampling: str = "systematic"
    ess_threshold: float = 0.5
    resample_at: str | tokens = "site"
    guide: AnyGuide | None = None
    always: bool = False
    _filter: SMC = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the arguments."""
        if isinstance(self.sites, str) or not self.sites:
            raise BadArgument(
                f"sites must be a list of addresses, got {self.sites!r}",
                fix='write sites=["theta"]',
            )
        check_count("burn_in", self.burn_in, 0)
        check_count("steps", self.steps, self.burn_in + 1)
        check_count("starts", self.starts, 1)
        settings = SMC(
            self.particles, self.resampling, self.ess_threshold, self.resample_at, self.guide,
            self.always,
        )  # fmt: skip
        object.__setattr__(self, "_filter", settings)

    def target(self, program: Any = None) -> str:
        """The law of the chain."""
        return (
            "γ(trace) = Π p(sample) · Π p(observation) · Π exp(factor); the chain over "
            f"{', '.join(self.sites)} leaves γ / Z invariant\n"
            f"filters of {self.particles} particles, {self.steps} steps, {self.burn_in} not kept; Ẑ is "
            f"the mean of {self.starts} starts"
        )

    def run(self, machine: Machine) -> Jobs:
        """Starts, then steps."""
        points, weights = [], []
        for k in range(self.starts):
            key = fold(machine.key, "start", k)
            theta, log_q = yield from self._prior(machine, key)
            point = yield from self._at(machine, theta, key)
            points.append(point)
            weights.append(point.log_z - log_q)
        lw = np.array(weights)
        evidence = log_mean_exp(lw)
        if evidence == NEG_INF:
            return population_posterior(machine, self, points[0].states, NEG_INF)
        x = points[draw(machine.env.chance, fold(machine.key, "path"), lw)]
        traces, accepted = [], 0
        for s in range(self.steps):
            key = fold(machine.key, "step", s)
            theta, forth, back = yield from self._propose(machine, x, key)
            y = yield from self._at(machine, theta, key)
            if accepts(machine, fold(key, "accept"), y.log_z - x.log_z + back - forth):
                x, accepted = y, accepted + 1
            if s >= self.burn_in:
                traces.append(x.trace)
        return chain_posterior(
            machine, self, traces, evidence, acceptance={"theta": accepted / self.steps}
        )

    def _at(self, machine: Machine, theta: dict[str, Any], key: Key) -> Jobs:
        """A filter of the program with θ observed."""
        inner = Machine(
            machine.program, machine.launch.args, machine.launch.kwargs, machine.env,
            fold(key, "filter"), on_error=machine.on_error,
            conditions={**machine.conditions, **theta}, params=machine.params,
        )  # fmt: skip
        inner.launch, inner.ledger, inner.used = machine.launch, machine.ledger, machine.used
        inner.sites, inner.restricted = machine.sites, machine.restricted
        swept: Swept = yield from sweep(inner, self._filter, inner.key)
        log_z = log_mean_exp(swept.lw)
        machine.killed_values.update(inner.killed_values)
        states = [h.state for h in swept.heads]
        if log_z == NEG_INF:
            machine.deaths.update(inner.deaths)
            return _Point(theta, log_z, states[0].trace, states)
        pick = draw(machine.env.chance, fold(key, "path"), swept.lw)
        return _Point(theta, log_z, states[pick].trace, states)

    def _prior(self, machine: Machine, key: Key) -> Jobs:
        """θ as the program draws it, and its log q."""
        wanted = set(self.sites)
        p = machine.fork(
            root(machine, fold(key, "prior")).state, fold(key, "prior"), 0, frames=False
        )
        machine.ignore_weights = True
        while not p.finished and not wanted <= sampled(p).keys():
            yield from machine.advance([p], "site")
        machine.ignore_weights = False
        p.strand.kill()
        found = sampled(p)
        if found.keys() != wanted:
            raise BadArgument(
                f"the sites {', '.join(sorted(wanted))} are not the first ones of the program",
                value=", ".join(found),
                why="their prior is then no product of what they are drawn from",
                fix="name every site that is drawn before the last of them too",
            )
        return {a: e.value for a, e in found.items()}, sum(e.logq for e in found.values())

    def _propose(self, machine: Machine, x: _Point, key: Key) -> Jobs:
        """θ', log q(θ' | θ) and log q(θ | θ')."""
        if self.proposal is None:
            theta, forth = yield from self._prior(machine, key)
            back = yield from self._prior_of(machine, x.theta, key)
            return theta, forth, back
        theta, forth = yield from self._by_program(machine, x.theta, fold(key, "forth"), None)
        _, back = yield from self._by_program(machine, theta, fold(key, "back"), x.theta)
        return theta, forth, back

    def _prior_of(self, machine: Machine, theta: dict[str, Any], key: Key) -> Jobs:
        p = machine.fork(root(machine, key).state, fold(key, "score"), 0, frames=False)
        script_of(machine).given[p] = Given(theta, strict=True)
        machine.ignore_weights = True
        while not p.finished and not theta.keys() <= sampled(p).keys():
            yield from machine.advance([p], "site")
        machine.ignore_weights = False
        p.strand.kill()
        return NEG_INF if p.dead else sum(e.logq for e in sampled(p).values())

    def _by_program(
        self, machine: Machine, at: dict[str, Any], key: Key, values: dict[str, Any] | None
    ) -> Jobs:
        if self.proposal is None:
            raise BadArgument("there is no proposal")
        inner = Machine(self.proposal, (dict(at),), {}, machine.env, key)
        inner.ledger = machine.ledger
        p = inner.particle(0)
        if values is not None:
            script_of(inner).given[p] = Given(values, strict=True)
        yield from inner.advance([p], "end")
        found = sampled(p)
        if not p.dead and found.keys() != set(self.sites):
            raise BadArgument(
                "the proposal must sample the sites of θ and no other",
                value=", ".join(found),
                fix=f"sample {', '.join(self.sites)} in it",
            )
        log_q = NEG_INF if p.dead else sum(e.logq for e in found.values())
        return {a: e.value for a, e in found.items()}, log_q
