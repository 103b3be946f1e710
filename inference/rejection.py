"""Rejection sampling: independent exact draws from the posterior, by throwing runs away.

A run with weight w is accepted with probability w / M, where M bounds the weights. Tries go on
until `samples` are accepted, and the evidence is M (K - 1) / (n - 1) when the K-th acceptance is at
try n (Haldane, 1945), M k / n when only k < K were accepted in all n tries allowed. Both are
P(the first try is accepted | k, n) M, so the estimate is unbiased wherever the tries end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.arguments import check_integers, check_numbers
from lmppl.errors import UnboundedWeight
from lmppl.inference.base import Engine
from lmppl.inference.checks import check_particles
from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.results.posterior import population_posterior
from lmppl.random import draw, fold
from lmppl.weights import NEG_INF, exp


@dataclass(frozen=True)
class Rejection(Engine):
    """Rejection sampling.

    Args:
        samples: K, accepted runs wanted; at least 2.
        max_tries: after which it gives up with an error.
        log_bound: log M; 0 fits programs whose factors are all at most 1.
        batch: tries that run together.

    Raises:
        UnboundedWeight: a run had a larger weight than M: every result so far would be wrong.
    """

    samples: int = 100
    max_tries: int = 100_000
    log_bound: float = 0.0
    batch: int = 64

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_integers("Rejection", 2, samples=self.samples)  # the evidence needs two
        check_integers("Rejection", max_tries=self.max_tries)
        check_particles("Rejection", batch=self.batch)
        check_numbers("Rejection", log_bound=self.log_bound)

    def target(self, program: Any = None) -> str:
        """The law of the traces."""
        return (
            "posterior = γ / Z exactly, independent draws of equal weight; "
            f"needs every weight ≤ exp({self.log_bound:g})"
        )

    def run(self, machine: Machine) -> Jobs:
        """Try in batches until enough are accepted."""
        accepted: list[Particle] = []
        tries = 0
        while len(accepted) < self.samples and tries < self.max_tries:
            size = min(self.batch, self.max_tries - tries)
            population = [machine.particle(tries + i) for i in range(size)]
            yield from machine.advance(population, "end")
            for p in population:
                tries += 1
                if p.dead:
                    continue
                if p.log_weight > self.log_bound + 1e-12:
                    raise UnboundedWeight(
                        f"a run has log-weight {p.log_weight:.4g}, above the bound {self.log_bound:g}",
                        where=f"try {tries}",
                        why="accepting with probability w / M needs every weight to be at most M",
                        fix=f"write Rejection(log_bound=...) with a bound you can prove, at least {p.log_weight:.4g}, "
                        "or use SMC or Importance",
                    )
                ratio = exp(min(p.log_weight - self.log_bound, 0.0))
                with np.errstate(divide="ignore"):
                    choice = np.log(np.array([ratio, 1.0 - ratio]))
                if draw(machine.env.chance, fold(p.key, "accept"), choice) == 0:
                    p.logw = 0.0
                    accepted.append(p)
                    if len(accepted) == self.samples:
                        break
        k = len(accepted)
        if k == 0:
            evidence = NEG_INF
        elif k < self.samples:
            evidence = self.log_bound + math.log(k / tries)
        else:
            evidence = self.log_bound + math.log((k - 1) / (tries - 1))
        if k < self.samples and k:
            machine.deaths["rejected"] += tries - k
        if not accepted:
            accepted = population
            for p in accepted:
                if not p.dead:
                    machine.kill(p, "rejection", "rejected")
        # relative variance of the estimated acceptance rate p: (1 - p) / (K - 2) (Haldane, 1945)
        rate = exp(min(evidence - self.log_bound, 0.0))
        se = math.sqrt((1.0 - rate) / (k - 2)) if k > 2 else math.nan
        result = population_posterior(machine, self, accepted, evidence, evidence_se=se)
        if k < self.samples:
            result.warnings.append(
                f"only {k} of {self.samples} samples were accepted in {tries:,} tries"
            )
        return result
