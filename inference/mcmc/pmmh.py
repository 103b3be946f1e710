"""Particle marginal Metropolis-Hastings: a chain over some sites, the others by a filter.

    θ' ~ q(· | θ);  Ẑ' <- evidence of a particle filter of the program with θ' observed
    accept with probability min(1, Ẑ' q(θ | θ') / (Ẑ q(θ' | θ)))

Ẑ(θ) estimates p(θ) p(data | θ) without bias, and its noise is a part of the state: the old Ẑ is kept,
never estimated anew. So the chain leaves the exact posterior invariant for every number of
particles. It starts at one of `starts` draws of θ, by their weights Ẑ p / q, whose mean is the
evidence estimate: with it the chain is properly weighted.

θ are sample sites, or `param` sites: these are constants of the program, so `prior=` gives their law
p(θ), and the target is p(θ) γ(trace; θ). Chains run side by side: their proposals and filters share
batches, and so do those of the starts.

Reference: Andrieu, Doucet and Holenstein, Particle Markov chain Monte Carlo methods (2010); Andrieu
and Roberts, The pseudo-marginal approach (2009).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lmppl.arguments import check_functions, check_integers, check_names
from lmppl.errors import BadArgument
from lmppl.inference.base import Engine
from lmppl.inference.guide import AnyGuide
from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.paths import Given, root, sampled, script_of
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.machine.together import together
from lmppl.inference.mcmc.chain import accepts, chain_posterior
from lmppl.inference.results.posterior import population_posterior
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
    """log Ẑ; with a prior of its own, log p(θ) Ẑ."""
    trace: Trace
    states: list[Any]


@dataclass(frozen=True)
class ParticleMarginalMH(Engine):
    """Particle marginal Metropolis-Hastings.

    Args:
        sites: θ, by address; no other site may be drawn before the last of them. With `prior`:
            names of `param` sites.
        steps: of each chain.
        proposal: a program of the present θ (a mapping) whose sample sites are those of θ; their
            prior when left out.
        particles: N of the filter.
        burn_in: how many steps are not kept.
        starts: how many θ are tried for the start.
        resampling, ess_threshold, resample_at, guide, always: as in `SMC`.
        prior: a program without arguments whose sample sites are θ, where θ are `param` sites.
        chains: how many run side by side.
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
    prior: Callable[[], Any] | None = None
    chains: int = 1
    _filter: SMC = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_names("ParticleMarginalMH", sites=self.sites)
        check_functions("ParticleMarginalMH", proposal=self.proposal, prior=self.prior)
        check_integers("ParticleMarginalMH", 0, burn_in=self.burn_in)
        check_integers("ParticleMarginalMH", self.burn_in + 1, steps=self.steps)
        check_integers("ParticleMarginalMH", starts=self.starts)
        check_integers("ParticleMarginalMH", chains=self.chains)
        settings = SMC(
            self.particles, self.resampling, self.ess_threshold, self.resample_at, self.guide,
            self.always,
        )  # fmt: skip
        object.__setattr__(self, "_filter", settings)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of its filters."""
        return self._filter.needs

    def target(self, program: Any = None) -> str:
        """The law of the chain."""
        law = "" if self.prior is None else f"p({', '.join(self.sites)}) · "
        return (
            f"γ(trace) = {law}Π p(sample) · Π p(observation) · Π exp(factor); the chain over "
            f"{', '.join(self.sites)} leaves γ / Z invariant\n"
            f"filters of {self.particles} particles, {self.chains} chains of {self.steps} steps, "
            f"{self.burn_in} not kept; Ẑ is the mean of {self.starts} starts"
        )

    def run(self, machine: Machine) -> Jobs:
        """Starts, then steps."""
        keys = [fold(machine.key, "start", k) for k in range(self.starts)]
        drawn = yield from self._priors(machine, keys)
        points: list[_Point] = yield from together(
            [self._at(machine, theta, key) for (theta, _), key in zip(drawn, keys, strict=True)]
        )
        lw = np.array([y.log_z - log_q for y, (_, log_q) in zip(points, drawn, strict=True)])
        evidence = log_mean_exp(lw)
        if evidence == NEG_INF:
            return population_posterior(machine, self, points[0].states, NEG_INF)
        xs = [
            points[draw(machine.env.chance, _chain(fold(machine.key, "path"), c), lw)]
            for c in range(self.chains)
        ]
        traces: list[list[Trace]] = [[] for _ in xs]
        accepted = 0
        for s in range(self.steps):
            keys = [_chain(fold(machine.key, "step", s), c) for c in range(self.chains)]
            moves = yield from self._propose(machine, xs, keys)
            ys: list[_Point] = yield from together(
                [
                    self._at(machine, theta, key)
                    for (theta, *_), key in zip(moves, keys, strict=True)
                ]
            )
            for c, (y, (_, forth, back)) in enumerate(zip(ys, moves, strict=True)):
                ratio = y.log_z - xs[c].log_z + back - forth
                if accepts(machine, fold(keys[c], "accept"), ratio):
                    xs[c], accepted = y, accepted + 1
                if s >= self.burn_in:
                    traces[c].append(xs[c].trace)
        return chain_posterior(
            machine,
            self,
            [t for chain in traces for t in chain],
            evidence,
            acceptance={"theta": accepted / (self.steps * self.chains)},
            length=self.steps - self.burn_in,
        )

    def _at(self, machine: Machine, theta: dict[str, Any], key: Key) -> Jobs:
        """A filter of the program with θ observed, or as its parameters."""
        log_p, conditions, params = 0.0, machine.conditions, machine.params
        if self.prior is None:
            conditions = {**conditions, **theta}
        else:
            _, _, log_p = yield from self._by_program(machine, self.prior, (), key, theta)
            params = {**params, **theta}
        inner = Machine(
            machine.program, machine.launch.args, machine.launch.kwargs, machine.env,
            fold(key, "filter"), on_error=machine.on_error, conditions=conditions, params=params,
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
        trace = states[pick].trace
        if self.prior is not None:
            self._check_params(trace)
        return _Point(theta, log_z + log_p, trace, states)

    def _check_params(self, trace: Trace) -> None:
        met = {e.address for e in trace.sites if e.op == "param"}
        if not set(self.sites) <= met:
            raise BadArgument(
                f"the program has no param site {', '.join(sorted(set(self.sites) - met))}",
                value=", ".join(sorted(met)),
                fix="name param sites, or leave prior= out for sample sites",
            )

    def _priors(self, machine: Machine, keys: Sequence[Key]) -> Jobs:
        """θ as the program, or `prior`, draws it, and its log q, for each key."""
        if self.prior is not None:
            runs = [self._by_program(machine, self.prior, (), fold(k, "prior"), None) for k in keys]
            return [(theta, log_q) for theta, log_q, _ in (yield from together(runs))]
        wanted = set(self.sites)
        start = root(machine, fold(machine.key, "prior")).state
        particles = [
            machine.fork(start, fold(k, "prior"), i, frames=False) for i, k in enumerate(keys)
        ]
        yield from _until(machine, particles, wanted)
        out = []
        for p in particles:
            found = sampled(p)
            if found.keys() != wanted:
                raise BadArgument(
                    f"the sites {', '.join(sorted(wanted))} are not the first ones of the program",
                    value=", ".join(found),
                    why="their prior is then no product of what they are drawn from",
                    fix="name every site that is drawn before the last of them too",
                )
            out.append(
                ({a: e.value for a, e in found.items()}, sum(e.logq for e in found.values()))
            )
        return out

    def _propose(self, machine: Machine, xs: Sequence[_Point], keys: Sequence[Key]) -> Jobs:
        """θ', log q(θ' | θ) and log q(θ | θ'), for each chain."""
        if self.proposal is None:
            drawn = yield from self._priors(machine, keys)
            backs = yield from self._priors_of(machine, [x.theta for x in xs], keys)
            return [(theta, forth, back) for (theta, forth), back in zip(drawn, backs, strict=True)]
        runs = [
            self._by_program(machine, self.proposal, (dict(x.theta),), fold(k, "forth"), None)
            for x, k in zip(xs, keys, strict=True)
        ]
        drawn = yield from together(runs)
        runs = [
            self._by_program(machine, self.proposal, (dict(theta),), fold(k, "back"), x.theta)
            for (theta, *_), x, k in zip(drawn, xs, keys, strict=True)
        ]
        backs = yield from together(runs)
        return [
            (theta, forth, back)
            for (theta, forth, _), (_, back, _) in zip(drawn, backs, strict=True)
        ]

    def _priors_of(
        self, machine: Machine, thetas: Sequence[dict[str, Any]], keys: Sequence[Key]
    ) -> Jobs:
        if self.prior is not None:
            runs = [
                self._by_program(machine, self.prior, (), fold(k, "score"), theta)
                for theta, k in zip(thetas, keys, strict=True)
            ]
            return [log_q for _, log_q, _ in (yield from together(runs))]
        start, script = root(machine, machine.key).state, script_of(machine)
        particles = []
        for i, (theta, k) in enumerate(zip(thetas, keys, strict=True)):
            p = machine.fork(start, fold(k, "score"), i, frames=False)
            script.given[p] = Given(theta, strict=True)
            particles.append(p)
        yield from _until(machine, particles, set(self.sites))
        return [NEG_INF if p.dead else sum(e.logq for e in sampled(p).values()) for p in particles]

    def _by_program(
        self,
        machine: Machine,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        key: Key,
        values: dict[str, Any] | None,
    ) -> Jobs:
        """θ of a run of a proposal or prior, log q and log p; with `values`, θ is given."""
        inner = Machine(fn, args, {}, machine.env, key)
        inner.ledger = machine.ledger
        p = inner.particle(0)
        if values is not None:
            script_of(inner).given[p] = Given(values, strict=True)
        yield from inner.advance([p], "end")
        found = sampled(p)
        if not p.dead and found.keys() != set(self.sites):
            raise BadArgument(
                "the proposal and the prior must sample the sites of θ and no other",
                value=", ".join(found),
                fix=f"sample {', '.join(self.sites)} in it",
            )
        if p.dead:
            return {}, NEG_INF, NEG_INF
        log_q, log_p = (sum(getattr(e, x) for e in found.values()) for x in ("logq", "logp"))
        return {a: e.value for a, e in found.items()}, log_q, log_p


def _chain(key: Key, c: int) -> Key:
    """The key of one chain; more chains change nothing in the first."""
    return fold(key, "chain", c) if c else key


def _until(machine: Machine, particles: Sequence[Particle], wanted: set[str]) -> Jobs:
    """Run particles until they have the sites that are wanted, weights left out."""
    machine.ignore_weights = True
    while moving := [p for p in particles if not (p.finished or wanted <= sampled(p).keys())]:
        yield from machine.advance(moving, "site")
    machine.ignore_weights = False
    for p in particles:
        p.strand.kill()
