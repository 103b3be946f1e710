"""Exact inference: visit every trace of a finite program.

At each sample site a particle forks into all values of positive probability; its weight is
γ(partial trace), the product of everything so far. Z = Σ γ over finished traces, and the posterior
is exact to rounding.

When a limit is hit the heaviest traces have been visited first, and `missing` bounds the rest:
Z ≤ Ẑ + Σ γ(unfinished), which holds while later factors are at most 1 (observations of discrete
values always are).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.arguments import check_integers, check_numbers
from lmppl.inference.base import Engine
from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.results.posterior import population_posterior
from lmppl.jobs import Draw
from lmppl.random import fold
from lmppl.strands import Strand
from lmppl.weights import NEG_INF, exp, log_sum_exp


@dataclass(frozen=True)
class Enumerate(Engine):
    """Enumeration of a finite program.

    Args:
        max_traces: how many finished traces are kept at most.
        min_mass: partial traces with γ below this are cut (0 keeps all).
        wave: how many partial traces advance in one batch.

    A string site needs a model with small rows (`TableLM`) and `max_tokens`; `Choice` works with
    any model. Proposals play no part: values are listed under their target law.
    """

    max_traces: int = 1_000_000
    min_mass: float = 0.0
    wave: int = 512

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_integers("Enumerate", max_traces=self.max_traces, wave=self.wave)
        check_numbers("Enumerate", 0.0, below=1.0, min_mass=self.min_mass)

    def target(self, program: Any = None) -> str:
        """The law of the weighted traces."""
        cut = "" if self.min_mass == 0 else f", traces with γ < {self.min_mass:g} cut"
        return f"γ(trace) of every trace, Z = Σ γ exactly{cut}"

    def run(self, machine: Machine) -> Jobs:
        """Best first: the heaviest partial traces advance, fork, and advance."""
        machine.draws = lambda p, m, key: m.dist.support(machine.env)
        frontier: list[tuple[float, int, Particle]] = [(0.0, 0, machine.particle(0))]
        finished: list[Particle] = []
        cut = NEG_INF
        born = 1
        floor = NEG_INF if self.min_mass == 0 else float(np.log(self.min_mass))
        while frontier and len(finished) < self.max_traces:
            batch = [heapq.heappop(frontier)[2] for _ in range(min(self.wave, len(frontier)))]
            yield from machine.advance(batch, "site")
            for p in batch:
                for q in self._expand(machine, p):
                    if q.dead:
                        continue
                    if q.finished:
                        finished.append(q)
                    elif q.log_weight < floor:
                        cut = log_sum_exp([cut, q.log_weight])
                        q.strand.kill()
                    else:
                        heapq.heappush(frontier, (-q.log_weight, born, q))
                        born += 1
        for _, _, p in frontier:
            cut = log_sum_exp([cut, p.log_weight])
            p.strand.kill()
        evidence = log_sum_exp([p.log_weight for p in finished])
        return population_posterior(
            machine,
            self,
            finished,
            evidence,
            exact=True,
            missing=0.0 if cut == NEG_INF else exp(cut),
        )

    def _expand(self, machine: Machine, p: Particle) -> list[Particle]:
        """The particles that a listed site makes of one, all plate branches in turn."""
        if p.dead or not any(leaf.outcomes is not None for leaf in p.strand.leaves()):
            return [p]
        out: list[Particle] = []
        todo = [p]
        while todo:
            q = todo.pop()
            at = next(
                (i for i, leaf in enumerate(q.strand.leaves()) if leaf.outcomes is not None), None
            )
            if at is None:
                out.append(q)
                continue
            pairs = list(_leaf(q, at).outcomes)
            site = _leaf(q, at).pending
            for k, (value, logp) in enumerate(pairs):
                child = machine.fork(
                    q, fold(q.key, "branch", k), q.index, frames=k == len(pairs) - 1
                )
                leaf = _leaf(child, at)
                leaf.outcomes = None
                machine.deliver(child, leaf, Draw(value, logp, 0.0))
                todo.append(child)
            if not pairs:
                machine.kill(
                    q,
                    site.address if site is not None else "?",
                    "no value has positive probability",
                )
        return out


def _leaf(p: Particle, index: int) -> Strand:
    return list(p.strand.leaves())[index]
