"""Metropolis-Hastings as an engine: chains of traces, each moved by proposals.

    x  <- a path of a small particle filter
    repeat:  x' by the proposal;  x <- x' with probability min(1, ratio)

Chains run side by side and share batches. The evidence is the filter's: as for particle Gibbs, the
chain is properly weighted with it from its first state on. See `lmppl.inference.mcmc.trace_mh` for
their ratio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmppl.arguments import check_integers
from lmppl.errors import BadArgument
from lmppl.inference.base import Engine
from lmppl.inference.checks import check_particles
from lmppl.inference.machine.paths import forced, script_of
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.mcmc.chain import chain_posterior
from lmppl.inference.mcmc.proposals import SingleSite
from lmppl.inference.mcmc.trace_mh import Barriers, Proposal
from lmppl.inference.results.posterior import population_posterior
from lmppl.inference.smc.conditional import Swept, sweep
from lmppl.inference.smc.particle_filter import SMC
from lmppl.random import draw, fold
from lmppl.weights import NEG_INF, log_mean_exp


@dataclass(frozen=True)
class MetropolisHastings(Engine):
    """Metropolis-Hastings over traces.

    Args:
        steps: of each chain; one step makes as many moves as the proposal says.
        proposal: `SingleSite()`, `Suffix()` or `Block(program)`.
        burn_in: how many steps are not kept.
        chains: how many run side by side.
        particles: of the filter that starts them.
        start: values of all sample sites, where the chains start in place of a filter.

    >>> from lmppl import Bernoulli, factor, program, sample
    >>> from lmppl.inference import infer
    >>> @program
    ... def coin():
    ...     heads = sample("heads", Bernoulli(0.5))
    ...     factor("bias", 0.0 if heads else -1.0)
    ...     return heads
    >>> post = infer(coin, engine=MetropolisHastings(steps=400), seed=0)
    >>> abs(post.marginal()[True] - 0.731) < 0.1
    True
    """

    steps: int = 1000
    proposal: Proposal = SingleSite()  # noqa: RUF009
    burn_in: int = 0
    chains: int = 1
    particles: int = 16
    start: Mapping[str, Any] | None = None
    _filter: SMC = field(init=False, repr=False, compare=False)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the proposal's moves."""
        return ("logprobs", *self.proposal.needs)

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_particles("MetropolisHastings", particles=self.particles)
        check_integers("MetropolisHastings", 0, burn_in=self.burn_in)
        check_integers("MetropolisHastings", self.burn_in + 1, steps=self.steps)
        check_integers("MetropolisHastings", chains=self.chains)
        if not isinstance(self.proposal, Proposal):
            raise BadArgument(
                f"proposal={self.proposal!r} is none",
                fix="write proposal=SingleSite(), Suffix() or Block(program)",
            )
        object.__setattr__(self, "_filter", SMC(self.particles))

    def target(self, program: Any = None) -> str:
        """The law of the chain."""
        return (
            "γ(trace) = Π p(sample) · Π p(observation) · Π exp(factor); the chain leaves γ / Z "
            f"invariant\n{self.proposal}, {self.chains} chains of {self.steps} steps, "
            f"{self.burn_in} not kept; Ẑ is that of the filter that starts them"
        )

    def run(self, machine: Machine) -> Jobs:
        """A filter, then the moves."""
        script_of(machine)  # it must know the laws of all sites
        history, evidence = None, 0.0
        if self.start is not None:
            x = yield from forced(machine, self.start, "site")
            paths = [x] * self.chains
        else:
            key = fold(machine.key, "filter")
            first: Swept = yield from sweep(machine, self._filter, key)
            history, evidence = first.told("the first filter"), log_mean_exp(first.lw)
            if evidence == NEG_INF:
                states = [h.state for h in first.heads]
                return population_posterior(machine, self, states, NEG_INF, first.history)
            picks = [
                draw(machine.env.chance, fold(key, "path", c), first.lw) for c in range(self.chains)
            ]
            paths = [first.heads[i] for i in picks]
        traces: list[list[Any]] = [[] for _ in paths]
        accepted = 0
        for s in range(self.steps):
            paths, _, more = yield from self.proposal.move(
                machine, paths, fold(machine.key, "step", s), Barriers()
            )
            accepted += more
            if s >= self.burn_in:
                for kept, x in zip(traces, paths, strict=True):
                    kept.append(x.trace)
        tried = self.steps * self.proposal.steps * self.chains
        return chain_posterior(
            machine,
            self,
            [t for kept in traces for t in kept],
            evidence,
            history=history,
            acceptance={type(self.proposal).__name__: accepted / tried},
            length=self.steps - self.burn_in,
        )
