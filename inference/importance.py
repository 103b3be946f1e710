"""Importance sampling: N independent runs, each with weight γ / q.

Ẑ = (1/N) Σ w_i is unbiased for every N. Reference: Robert and Casella (2004), chapter 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.inference.base import Engine
from lmppl.inference.checks import check_particles
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.results.history import History
from lmppl.inference.results.posterior import population_posterior
from lmppl.weights import log_mean_exp


@dataclass(frozen=True)
class Importance(Engine):
    """Importance sampling: SMC that never resamples, without barriers."""

    particles: int = 100

    def __post_init__(self) -> None:
        """Check the number."""
        check_particles("Importance", particles=self.particles)

    def target(self, program: Any = None) -> str:
        """The law of the weighted traces."""
        return (
            "γ(trace) = Π p(sample) · Π p(observation) · Π exp(factor); posterior = γ / Z\n"
            f"Ẑ = mean of {self.particles} weights γ / q, E[Ẑ] = Z"
        )

    def run(self, machine: Machine) -> Jobs:
        """Run every particle to its end."""
        population = [machine.particle(i) for i in range(self.particles)]
        yield from machine.advance(population, "end")
        lw = np.array([p.log_weight for p in population])
        history = History(self.particles)
        history.end(lw, [p.eve for p in population])
        return population_posterior(machine, self, population, log_mean_exp(lw), history)
