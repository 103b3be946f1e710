"""Particle Gibbs: conditional SMC, again and again.

    x  <- a path of a particle filter
    repeat:  x <- a path drawn from the final weights of a conditional filter around x

Every sweep leaves γ / Z invariant, for every number of particles N ≥ 2; more particles mix faster.
The evidence is that of the first filter. With it the chain is properly weighted from its first
state on: E[Ẑ · mean of f over the chain] = Σ γ f, with or without burn-in.

Reference: Andrieu, Doucet and Holenstein (2010); with ancestor sampling, Lindsten, Jordan and Schön
(2014).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmppl.arguments import check_integers
from lmppl.errors import BadArgument
from lmppl.inference.base import Engine
from lmppl.inference.guide import AnyGuide
from lmppl.inference.machine.paths import forced
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.mcmc.chain import chain_posterior
from lmppl.inference.results.posterior import population_posterior
from lmppl.inference.smc.conditional import Swept, chosen, filter_of, sweep
from lmppl.inference.smc.particle_filter import SMC, barriers, tokens
from lmppl.random import fold
from lmppl.weights import NEG_INF, log_mean_exp


@dataclass(frozen=True)
class ParticleGibbs(Engine):
    """Particle Gibbs.

    Args:
        particles: N of every sweep, the reference included.
        sweeps: conditional filters after the first, plain one.
        burn_in: how many of them are not kept.
        ancestor_sampling: draw the reference's ancestors too (PGAS): mixes with few particles over
            long programs, and costs N runs of the rest of the program at every resampling, whose
            values are given and scored. It wants multinomial resampling.
        resampling: "multinomial", "systematic", "stratified" or "residual", in its conditional form.
        ess_threshold, resample_at, guide, always: as in `SMC`.
        start: values of all sample sites, where the chain starts in place of a filter.

    >>> from lmppl import Bernoulli, factor, program, sample
    >>> from lmppl.inference import infer
    >>> @program
    ... def coin():
    ...     heads = sample("heads", Bernoulli(0.5))
    ...     factor("bias", 0.0 if heads else -1.0)
    ...     return heads
    >>> post = infer(coin, engine=ParticleGibbs(particles=4, sweeps=400), seed=0)
    >>> abs(post.marginal()[True] - 0.731) < 0.1
    True
    """

    particles: int = 8
    sweeps: int = 100
    burn_in: int = 0
    ancestor_sampling: bool = False
    resampling: str = "multinomial"
    ess_threshold: float = 0.5
    resample_at: str | tokens = "site"
    guide: AnyGuide | None = None
    always: bool = False
    start: Mapping[str, Any] | None = None
    _filter: SMC = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the arguments."""
        settings = filter_of(
            self.particles, self.resampling, self.ess_threshold, self.resample_at, self.guide,
            self.always,
        )  # fmt: skip
        object.__setattr__(self, "_filter", settings)
        check_integers("ParticleGibbs", 0, burn_in=self.burn_in)
        check_integers("ParticleGibbs", self.burn_in + 1, sweeps=self.sweeps)
        if self.ancestor_sampling and self.resampling != "multinomial":
            raise BadArgument(
                f"ancestor sampling with {self.resampling} resampling",
                why="it draws one ancestor given the others, which only independent ones allow",
                fix='write resampling="multinomial"',
            )

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of its filters; an ancestor is drawn by the scores of what follows it."""
        scores = ("scores_text",) if self.ancestor_sampling else ()
        return (*self._filter.needs, *scores)

    def target(self, program: Any = None) -> str:
        """The law of the chain."""
        return (
            "γ(trace) = Π p(sample) · Π p(observation) · Π exp(factor); the chain leaves γ / Z "
            f"invariant\nconditional SMC with {self.particles} particles, {self.sweeps} sweeps, "
            f"{self.burn_in} not kept; Ẑ is that of the filter that starts it"
        )

    def run(self, machine: Machine) -> Jobs:
        """A filter, then the sweeps."""
        evidence = 0.0
        if self.start is not None:
            x = yield from forced(machine, self.start, *barriers(self.resample_at))
        else:
            key = fold(machine.key, "filter")
            first: Swept = yield from sweep(machine, self._filter, key)
            evidence = log_mean_exp(first.lw)
            if evidence == NEG_INF:
                states = [h.state for h in first.heads]
                return population_posterior(machine, self, states, NEG_INF, first.history)
            x = chosen(machine, key, first)
        traces = []
        for s in range(self.sweeps):
            key = fold(machine.key, "sweep", s)
            swept: Swept = yield from sweep(
                machine, self._filter, key, x, ancestor_sampling=self.ancestor_sampling
            )
            x = chosen(machine, key, swept)
            if s >= self.burn_in:
                traces.append(x.trace)
        last = swept.told("the last sweep")
        return chain_posterior(machine, self, traces, evidence, history=last)
