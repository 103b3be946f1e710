"""Parallel tempering over conditional SMC.

    chains k = 1 … M at temperatures T_1 > … > T_M = 1, targets π_k ∝ q · w^{1/T_k},  w = γ / q
    repeat:
        each chain: one conditional filter with weights w^{1/T_k}; a path by its final weights
        neighbours k, k+1 swap with probability min(1, exp r)
        r = (1/T_k - 1/T_{k+1}) · (log w(x_{k+1}) - log w(x_k))

q is what values are drawn from; it cancels in r, and so does the language model. A hot chain moves
freely, and hands what it finds to the chain at T = 1, whose traces are the posterior. All chains
share their batches.

Reference: Puri et al., A probabilistic inference approach to inference-time scaling of LLMs using
particle-based Monte Carlo methods (2025), Algorithm 3; Geyer (1991).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmppl.arguments import as_numbers, check_integers, check_mappings
from lmppl.errors import BadArgument
from lmppl.inference.base import Engine
from lmppl.inference.guide import AnyGuide
from lmppl.inference.machine.paths import Node, forced
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.machine.together import together
from lmppl.inference.mcmc.chain import accepts, chain_posterior
from lmppl.inference.results.posterior import population_posterior
from lmppl.inference.smc.conditional import Swept, chosen, filter_of, sweep
from lmppl.inference.smc.particle_filter import SMC, barriers, tokens
from lmppl.random import fold
from lmppl.trace import Trace
from lmppl.weights import NEG_INF, log_mean_exp


@dataclass(frozen=True)
class ParallelTempering(Engine):
    """Particle Gibbs chains at several temperatures that swap their paths.

    Args:
        temperatures: falling, the last one 1.
        particles: N of every chain.
        sweeps: of every chain, after the filters that start them.
        burn_in: how many of them are not kept.
        resampling, ess_threshold, resample_at, guide, always: as in `ParticleGibbs`.
        start: per chain, values of all sample sites, where it starts in place of a filter.

    The posterior's `acceptance` has the rate of each pair's swaps, its `chains` the traces of the
    hot chains, by temperature.
    """

    temperatures: Sequence[float] = (3.0, 1.0)
    particles: int = 8
    sweeps: int = 100
    burn_in: int = 0
    resampling: str = "multinomial"
    ess_threshold: float = 0.5
    resample_at: str | tokens = "site"
    guide: AnyGuide | None = None
    always: bool = False
    start: Sequence[Mapping[str, Any]] | None = None
    _filter: SMC = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the arguments."""
        ladder = as_numbers("ParallelTempering", temperatures=self.temperatures)
        falling = all(hot > cold for hot, cold in zip(ladder, ladder[1:], strict=False))
        if not ladder or ladder[-1] != 1.0 or not falling:
            raise BadArgument(
                f"temperatures must fall and end at 1, got {self.temperatures!r}",
                fix="write temperatures=(3.0, 1.0)",
            )
        settings = filter_of(
            self.particles, self.resampling, self.ess_threshold, self.resample_at, self.guide,
            self.always,
        )  # fmt: skip
        object.__setattr__(self, "_filter", settings)
        check_integers("ParallelTempering", 0, burn_in=self.burn_in)
        check_integers("ParallelTempering", self.burn_in + 1, sweeps=self.sweeps)
        if self.start is not None:
            check_mappings("ParallelTempering", len(ladder), start=self.start)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of its filters."""
        return self._filter.needs

    def target(self, program: Any = None) -> str:
        """The law of the chains."""
        shown = ", ".join(f"{t:g}" for t in self.temperatures)
        return (
            "γ(trace) = Π p(sample) · Π p(observation) · Π exp(factor); chains at temperatures "
            f"{shown} leave Π_k q · (γ / q)^(1/T_k) invariant, the last one γ / Z\n"
            f"conditional SMC with {self.particles} particles, {self.sweeps} sweeps, "
            f"{self.burn_in} not kept; Ẑ is that of the filter that starts the last chain"
        )

    def run(self, machine: Machine) -> Jobs:
        """Filters, then sweeps and swaps."""
        betas, at = [1.0 / t for t in self.temperatures], barriers(self.resample_at)
        evidence = 0.0
        x: list[Node] = []
        for k, beta in enumerate(betas):
            if self.start is not None:
                x.append((yield from forced(machine, self.start[k], *at)))
                continue
            key = fold(machine.key, "filter", k)
            first: Swept = yield from sweep(machine, self._filter, key, beta=beta)
            evidence = log_mean_exp(first.lw)
            if evidence == NEG_INF:
                states = [h.state for h in first.heads]
                return population_posterior(machine, self, states, NEG_INF, first.history)
            x.append(chosen(machine, key, first))
        traces: list[list[Trace]] = [[] for _ in betas]
        swaps = [0] * (len(betas) - 1)
        for s in range(self.sweeps):
            # Sweep
            keys = [fold(machine.key, "sweep", s, k) for k in range(len(betas))]
            runs = [
                sweep(machine, self._filter, key, path, beta=beta)
                for key, path, beta in zip(keys, x, betas, strict=True)
            ]
            swept: list[Swept] = yield from together(runs)
            x = [chosen(machine, key, one) for key, one in zip(keys, swept, strict=True)]
            # Swap
            for k in range(len(betas) - 1):
                ratio = swap_ratio(betas[k], betas[k + 1], x[k].logw, x[k + 1].logw)
                if accepts(machine, fold(machine.key, "swap", s, k), ratio):
                    x[k], x[k + 1] = x[k + 1], x[k]
                    swaps[k] += 1
            if s >= self.burn_in:
                for kept, path in zip(traces, x, strict=True):
                    kept.append(path.trace)
        named = [f"{t:g}" for t in self.temperatures]
        return chain_posterior(
            machine,
            self,
            traces[-1],
            evidence,
            history=swept[-1].told("the last sweep of the chain at T = 1"),
            acceptance={
                f"swap {a}-{b}": n / self.sweeps
                for a, b, n in zip(named, named[1:], swaps, strict=False)
            },
            chains=dict(zip(named[:-1], traces[:-1], strict=True)),
        )


def swap_ratio(beta: float, next_beta: float, log_w: float, next_log_w: float) -> float:
    """log [π_k(x_{k+1}) π_{k+1}(x_k)] / [π_k(x_k) π_{k+1}(x_{k+1})]."""
    return (beta - next_beta) * (next_log_w - log_w)
