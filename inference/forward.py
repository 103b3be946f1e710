"""Runs that ignore observations: plain sampling and greedy decoding, the baselines.

Both sample a law of the program that is *not* its posterior; their `target` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.inference.base import Engine
from lmppl.inference.checks import check_particles
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.results.posterior import population_posterior
from lmppl.random import Argmax, Chance


@dataclass(frozen=True)
class Forward(Engine):
    """Plain sampling: N runs of equal weight; its marginal is a majority vote (self-consistency).

    Observations and factors are not computed and count nothing; constrained strings are drawn with
    their masks and not re-weighted. Reference: Wang et al., Self-consistency (2023).
    """

    needs = ()
    particles: int = 16

    def __post_init__(self) -> None:
        """Check the number."""
        check_particles("Forward", particles=self.particles)

    def target(self, program: Any = None) -> str:
        """The law of the traces."""
        return (
            "the program's own sampling law q, observations and factors ignored: not the posterior"
        )

    def run(self, machine: Machine) -> Jobs:
        """Run every particle to its end, weights off."""
        machine.ignore_weights = True
        population = [machine.particle(i) for i in range(self.particles)]
        yield from machine.advance(population, "end")
        alive = np.array([not p.dead for p in population])
        evidence = float(np.log(alive.mean())) if alive.any() else float("-inf")
        # it is no evidence of the program, so neither has it an error
        return population_posterior(machine, self, population, evidence, evidence_se=float("nan"))


@dataclass(frozen=True)
class Greedy(Engine):
    """Greedy decoding: one run that takes the most probable token and option everywhere."""

    needs = ()

    def chance(self, chance: Chance) -> Chance:
        """None at all."""
        return Argmax()

    def target(self, program: Any = None) -> str:
        """The law of the trace."""
        return "the single run of locally most probable values, observations ignored: not the posterior"

    def run(self, machine: Machine) -> Jobs:
        """Run one particle, weights off."""
        machine.ignore_weights = True
        population = [machine.particle(0)]
        yield from machine.advance(population, "end")
        evidence = float("-inf") if population[0].dead else 0.0
        return population_posterior(machine, self, population, evidence)
