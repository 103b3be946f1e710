"""Sampling without replacement: a filter whose particles are all different.

    every particle is extended by *every* value of its next site, of weight γ(partial trace)
    if there are M > N of them, the threshold c solves Σ_i min(1, w_i h_i / c) = N:
        w_i h_i ≥ c:  kept as it is
        w_i h_i < c:  kept with probability π_i = w_i h_i / c (systematic), weight w_i / π_i
    Ẑ = Σ final weights

Of all ways to keep N of M weighted points without bias this one changes the weights least. No value
is drawn twice, so nothing is spent on copies: with N at least the number of traces it is exact
enumeration. Sites must be finite, as for `Enumerate`; proposals play no part.

References: Fearnhead and Clifford, On-line inference for hidden Markov models via particle filters
(2003); Shah and Kroese, Without-replacement sampling for particle methods on finite state spaces
(2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lmppl.inference.base import Engine
from lmppl.inference.checks import check_particles
from lmppl.inference.enumeration import Enumerate
from lmppl.inference.guide import AnyGuide, Guide
from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.results.history import History
from lmppl.inference.results.posterior import population_posterior
from lmppl.random import Chance, fold
from lmppl.types import Floats, Key
from lmppl.weights import NEG_INF, log_sum_exp, normalize


@dataclass(frozen=True)
class WithoutReplacement(Engine):
    """Sequential Monte Carlo whose particles are distinct.

    Args:
        particles: N, the most that are kept at each site.
        guide: as in `SMC`.

    >>> from lmppl import Uniform, program, sample
    >>> from lmppl.inference import infer
    >>> @program
    ... def dice():
    ...     return sample("a", Uniform([1, 2, 3])) + sample("b", Uniform([1, 2, 3]))
    >>> post = infer(dice, engine=WithoutReplacement(particles=9))
    >>> len(post), round(post.marginal()[4], 3)
    (9, 0.333)
    """

    particles: int = 16
    guide: AnyGuide | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_particles("WithoutReplacement", particles=self.particles)
        Guide.of(self.guide)

    def target(self, program: object = None) -> str:
        """The law of the weighted traces."""
        return (
            "γ(trace) = Π p(sample) · Π p(observation) · Π exp(factor); posterior = γ / Z\n"
            f"{self.particles} distinct traces, Ẑ = Σ γ / (probability of being kept), E[Ẑ] = Z"
        )

    def run(self, machine: Machine) -> Jobs:
        """Extend by everything, keep N."""
        machine.draws = lambda p, m, key: m.dist.support(machine.env)
        guide, listing = Guide.of(self.guide), Enumerate()
        population = [machine.particle(0)]
        places = np.zeros(1, dtype=np.int64)
        history: History | None = None
        step, cut, thinned = 0, False, False
        while any(not p.finished for p in population):
            # Extend
            yield from machine.advance(population, "site")
            born = [
                (q, place)
                for p, place in zip(population, places.tolist(), strict=True)
                for q in listing._expand(machine, p)
                if not q.dead
            ]
            population = [q for q, _ in born]
            history = history or History(len(population))
            _told(history, population, [place for _, place in born])
            places, thinned = np.arange(len(population)), len(population) > self.particles
            # Keep
            if thinned:
                v = np.array([p.log_weight for p in population])
                if guide is not None:
                    v = v + (yield from guide.log_h(machine, population))
                key = fold(machine.key, "keep", step)
                log_kept = keep(v, self.particles, key, machine.env.chance)
                population = _thinned(population, log_kept)
                places = np.flatnonzero(log_kept < math.inf)
                cut = True
            step += 1
        lw = np.array([p.log_weight for p in population])
        evidence = log_sum_exp(lw)
        if history is not None and thinned:
            _told(history, population, places.tolist())
        if not population:
            population = [machine.particle(0)]
            machine.kill(population[0], *(*machine.killed_values.items(), ("?", "?"))[0])
        spread = math.nan if cut else 0.0
        return population_posterior(
            machine, self, population, evidence, history, evidence_se=spread
        )


def _told(history: History, population: list[Particle], parents: list[int]) -> None:
    """The next population, each with its place in the one before."""
    lw = np.array([p.log_weight for p in population])
    heads, eves = [p.strand.head for p in population], [p.eve for p in population]
    history.add(lw, heads, eves, log_sum_exp(lw), np.array(parents, dtype=np.int64))


def _thinned(population: list[Particle], log_kept: Floats) -> list[Particle]:
    out = []
    for p, log_pi in zip(population, log_kept.tolist(), strict=True):
        if log_pi == math.inf:
            p.strand.kill()
        else:
            p.logw -= log_pi
            out.append(p)
    return out


def keep(v: Floats, n: int, key: Key, chance: Chance) -> Floats:
    """Which of M points stay: log π_i of those, +inf for the others [M].

    >>> from lmppl.random import GumbelMax
    >>> keep(np.log([0.5, 0.3, 0.1, 0.1]), 3, 0, GumbelMax()).round(2).tolist()[:2]
    [-0.0, -0.0]
    """
    w = normalize(v)
    order = np.argsort(-w, kind="stable")
    sizes = w[order]
    rest = np.concatenate([np.cumsum(sizes[::-1])[::-1], [0.0]])
    # the k heaviest are sure, with the least k at which the next one is below the threshold
    sure = 0
    while sure < min(n, len(v)) and sizes[sure] * (n - sure) >= rest[sure]:
        sure += 1
    out = np.full(len(v), math.inf)
    out[order[:sure]] = -0.0
    left = order[sure:]
    if len(left) and sure < n and rest[sure] > 0.0:
        pi = w[left] / rest[sure] * (n - sure)
        edges = np.cumsum(pi)
        keys = np.array([key], dtype=np.uint64)
        u = float(chance.offsets(keys, [np.mod(edges, 1.0)])[0])
        picks = np.searchsorted(edges, u + np.arange(n - sure), side="right")
        picks = np.unique(np.minimum(picks, len(left) - 1))
        out[left[picks]] = np.log(pi[picks])
    out[v == NEG_INF] = math.inf
    return out
