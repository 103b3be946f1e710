"""Fifteen ways to get sequential Monte Carlo wrong, as test doubles of the real engine.

Each is a known mistake of particle filters or of language-model samplers, made in one place of the
engine by `monkeypatch`. A law that lets one through is worth nothing. The numbers are those of the
table in which the laws' power was measured; where the engine is built differently the mistake is
made where a programmer would make it here (10: two offspring share one half-made string; 12: a
dead particle is replaced by a copy of a living one, as retry loops do).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lmppl.inference import calls
from lmppl.inference.machine import answers
from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.smc import particle_filter, resampling
from lmppl.jobs import Draw
from lmppl.lm.generate import StringState
from lmppl.random import Argmax, Chance, draw, fold
from lmppl.trace import Trace
from lmppl.types import Floats, Ints, Key
from lmppl.weights import NEG_INF, log_mean_exp, log_sum_exp

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    """A mistake and how to make it."""

    number: int
    name: str
    apply: Callable[[Patch], None]

    def __repr__(self) -> str:
        return f"{self.number}-{self.name}"


MUTANTS: list[Mutant] = []


def mutant(number: int) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def enter(apply: Callable[[Patch], None]) -> Callable[[Patch], None]:
        MUTANTS.append(Mutant(number, apply.__name__, apply))
        return apply

    return enter


# -- weights of sites ----------------------------------------------------------------------------

Weigh = Callable[[Any, float, float], tuple[float, float]]


def _weigh(patch: Patch, change: Weigh) -> None:
    """Change (log p, log q) of every sample site before they are weighed."""
    real = answers.Answers.deliver

    def deliver(self: Any, p: Any, s: Any, d: Draw) -> None:
        m = s.pending
        if m.op == "sample":
            logp, logq = change((s, m, d.value), d.logp, d.logq)
            d = d._replace(logp=logp, logq=logq)
        real(self, p, s, d)

    patch.setattr(answers.Answers, "deliver", deliver)


@mutant(1)
def proposal_density_ignored(patch: Patch) -> None:
    _weigh(patch, lambda site, logp, logq: (logp, logp))


@mutant(2)
def increment_slightly_off(patch: Patch) -> None:
    _weigh(patch, lambda site, logp, logq: (logp, logq * 0.999))


@mutant(14)
def feasible_pair_dropped(patch: Patch) -> None:
    def change(site: Any, logp: float, logq: float) -> tuple[float, float]:
        s, m, value = site
        lost = m.address == "y" and value == "ab" and Trace(s.head)["x"] == "a"
        return (NEG_INF if lost else logp), logq

    _weigh(patch, change)


# -- weights after resampling --------------------------------------------------------------------

Correct = Callable[[Floats, Floats, int], float]


def _offspring(patch: Patch, extra: Correct) -> None:
    """Add `extra(lw, v, ancestor)` to the log-weight of every child."""
    real = particle_filter.offspring

    def offspring(
        machine: Machine,
        population: list[Particle],
        ancestors: Ints,
        lw: Floats,
        v: Floats,
        step: int,
    ) -> list[Particle]:
        children = real(machine, population, ancestors, lw, v, step)
        for child, a in zip(children, ancestors.tolist(), strict=True):
            child.logw += extra(lw, v, a)
        return children

    patch.setattr(particle_filter, "offspring", offspring)


@mutant(3)
def twist_counted_too_much(patch: Patch) -> None:
    _offspring(patch, lambda lw, v, a: -0.05 * float(v[a] - lw[a]))


@mutant(4)
def log_n_off(patch: Patch) -> None:
    _offspring(patch, lambda lw, v, a: 0.01 * math.log(len(lw)))


@mutant(5)
def weight_kept_after_resampling(patch: Patch) -> None:
    _offspring(patch, lambda lw, v, a: 1e-4 * float(lw[a]))


@mutant(6)
def log_mean_for_log_mean_exp(patch: Patch) -> None:
    _offspring(patch, lambda lw, v, a: float(np.mean(v[np.isfinite(v)])) - log_mean_exp(v))


@mutant(11)
def stale_twist(patch: Patch) -> None:
    def extra(lw: Floats, v: Floats, a: int) -> float:
        first = float(v[0] - lw[0]) if math.isfinite(v[0]) else 0.0
        return float(v[a] - lw[a]) - first

    _offspring(patch, extra)


@mutant(13)
def mean_over_survivors(patch: Patch) -> None:
    def mean(lw: Floats | Sequence[float]) -> float:
        alive = int((np.asarray(lw) > NEG_INF).sum())
        return log_sum_exp(lw) - math.log(alive) if alive else NEG_INF

    patch.setattr(particle_filter, "log_mean_exp", mean)


# -- ancestors -----------------------------------------------------------------------------------


def _schemes(patch: Patch, change: Callable[[Any, Floats, Key, Chance], Ints]) -> None:
    for name, real in list(resampling.SCHEMES.items()):

        def scheme(w: Floats, key: Key, chance: Chance, real: Any = real) -> Ints:
            return change(real, w, key, chance)

        patch.setitem(resampling.SCHEMES, name, scheme)


@mutant(7)
def offset_fixed_at_the_middle(patch: Patch) -> None:
    _schemes(patch, lambda real, w, key, chance: real(w, key, Argmax()))


@mutant(8)
def ancestor_off_by_one(patch: Patch) -> None:
    _schemes(patch, lambda real, w, key, chance: (real(w, key, chance) + 1) % len(w))


@mutant(9)
def finished_left_out(patch: Patch) -> None:
    real = particle_filter.offspring

    def offspring(
        machine: Machine, population: list[Particle], ancestors: Ints, *rest: Any
    ) -> list[Particle]:
        own = [
            i if p.finished else a
            for i, (p, a) in enumerate(zip(population, ancestors, strict=True))
        ]
        return real(machine, population, np.array(own, dtype=np.int64), *rest)

    patch.setattr(particle_filter, "offspring", offspring)


# -- particles -----------------------------------------------------------------------------------


@mutant(10)
def strings_shared_by_offspring(patch: Patch) -> None:
    real = StringState.fork

    def fork(self: StringState, key: int) -> StringState:
        new = real(self, key)
        new.ids, new.logps = self.ids, self.logps
        return new

    patch.setattr(StringState, "fork", fork)


@mutant(12)
def dead_replaced_by_living(patch: Patch) -> None:
    class Retrying(Machine):
        rounds = 0

        def advance(self, particles: Any, *more: Any) -> Jobs:
            yield from super().advance(particles, *more)
            self.rounds += 1
            living = [p for p in particles if not p.dead]
            for i, p in enumerate(particles):
                if p.dead and living:
                    key = fold(self.key, "retry", self.rounds, i)
                    pick = draw(self.env.chance, key, np.zeros(len(living)))
                    particles[i] = self.fork(living[pick], fold(key, "child"), i, frames=False)

    patch.setattr(calls, "Machine", Retrying)


@mutant(15)
def one_seed_for_all(patch: Patch) -> None:
    class Shared(Machine):
        def particle(self, index: int) -> Particle:
            found = super().particle(index)
            found.key = fold(self.key, "particle", 0)
            return found

    patch.setattr(calls, "Machine", Shared)
