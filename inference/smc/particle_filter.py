"""Sequential Monte Carlo over programs: the particle filter.

    population of N particles, weight 1 each
    until all are finished:
        every unfinished particle passes one barrier      # propagate, reweight
        if ESS(w · h) < τ N and some are unfinished:
            draw ancestors with probability ∝ w h         # resample
            child weight = mean(w h) / h(ancestor)
    Ẑ = mean of the final weights

`h` is the guide, a positive function of the partial trace (1 when there is none, and 1 for a
finished particle), so it moves only the intermediate targets: E[Ẑ] = Z whatever it is. The child's
weight keeps Σ w of the population in expectation, so no separate evidence is carried.

Particles may reach sites at different times: a finished one absorbs, keeps its weight and takes
part in resampling. The population is never resampled when all are finished: at a barrier the
programs run on to their next message, so that the last weights stay as they are.

Reference: Del Moral, Doucet and Jasra, Sequential Monte Carlo samplers (2006); Algorithm 10.1 of
Chopin and Papaspiliopoulos (2020); guides as twists, Whiteley and Lee (2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.base import Engine
from lmppl.inference.checks import check_particles
from lmppl.inference.guide import AnyGuide, Guide
from lmppl.inference.machine.answers import Stop
from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.results.history import History
from lmppl.inference.results.posterior import population_posterior
from lmppl.inference.smc.resampling import Scheme, scheme
from lmppl.inference.smc.temper import Temper
from lmppl.jobs import Generate
from lmppl.random import fold, fold_array, hash_text
from lmppl.types import Floats, Ints, Key
from lmppl.weights import ess, log_mean_exp, normalize


@dataclass(frozen=True)
class tokens:  # noqa: N801
    """A barrier every `k` tokens inside strings, and at every other site: `resample_at=tokens(8)`.

    Args:
        k: tokens between two barriers.
        ess: the threshold of barriers inside strings, where it is not the engine's: a constrained
            string often wants an earlier one.
    """

    k: int = 1
    ess: float | None = None

    def __repr__(self) -> str:
        return f"tokens(k={self.k})" if self.ess is None else f"tokens(k={self.k}, ess={self.ess})"

    def __post_init__(self) -> None:
        """Check both."""
        if not (
            self.ess is None or (isinstance(self.ess, (int, float)) and 0.0 <= self.ess <= 1.0)
        ):
            raise BadArgument(
                f"tokens(ess=...) must be in [0, 1], got {self.ess!r}",
                fix="write tokens(1, ess=0.7)",
            )
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise BadArgument(
                f"tokens(k) needs a positive integer, got {self.k!r}", fix="write tokens(8)"
            )


def barriers(at: str | tokens) -> tuple[Stop, int | None]:
    """Where particles stop, and the most tokens of a string between two barriers."""
    return "factor" if at == "factor" else "site", at.k if isinstance(at, tokens) else None


class Moving(Protocol):
    """The paths of a population that is rejuvenated."""

    def grow(self, population: list[Particle]) -> None:
        """Note where every particle is, at a barrier."""

    def move(
        self, population: list[Particle], ancestors: Ints | None, key: Key, stop: Stop, limit: int | None,
        until: int, guide: Guide | None,
    ) -> Jobs:  # fmt: skip
        """Move the offspring; the population after that."""


@runtime_checkable
class Rejuvenation(Protocol):
    """Moves that leave the intermediate target invariant: `lmppl.inference.mcmc.trace_mh`."""

    needs: ClassVar[tuple[str, ...]]
    """What they ask of a model beside `logprobs`."""

    def begin(self, machine: Machine, population: list[Particle]) -> Moving:
        """Follow the paths of a new population."""


@dataclass(frozen=True)
class SMC(Engine):
    """Sequential Monte Carlo.

    Args:
        particles: N.
        resampling: "systematic", "stratified", "residual", "multinomial", or a function.
        ess_threshold: τ; resample when ESS < τ N. 0 never resamples (importance sampling), 1
            always does unless all weights are equal; `always=True` even then.
        resample_at: "site" (every site), "factor" (observations and factors), or `tokens(k)`.
        guide: a `Guide`, or a function that gives log h of a partial `Trace`, finite wherever the
            particle is alive.
        always: resample at every barrier.
        temper: a `Temper`: ancestors by w^{1/T} while few particles carry the weight.
        rejuvenate: moves of every unfinished particle at every barrier, such as `SingleSite()` or
            `Suffix()`: they leave the intermediate target invariant, and part equal particles.

    >>> from lmppl import Bernoulli, factor, program, sample
    >>> from lmppl.inference import infer
    >>> @program
    ... def coin():
    ...     heads = sample("heads", Bernoulli(0.5))
    ...     factor("bias", 0.0 if heads else -1.0)
    ...     return heads
    >>> post = infer(coin, engine=SMC(particles=1000), seed=0)
    >>> abs(post.marginal()[True] - 0.731) < 0.05
    True
    """

    particles: int = 16
    resampling: str | Scheme = "systematic"
    ess_threshold: float = 0.5
    resample_at: str | tokens = "site"
    guide: AnyGuide | None = None
    always: bool = False
    temper: Temper | None = None
    rejuvenate: Rejuvenation | None = None
    scheme: Scheme = field(init=False, repr=False, compare=False)
    """The function of the name `resampling`."""

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of its moves; strings that stop in their middle go on from their ids."""
        moves = self.rejuvenate.needs if self.rejuvenate is not None else ()
        inside = ("token_ids",) if isinstance(self.resample_at, tokens) else ()
        return ("logprobs", *moves, *inside)

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_particles("SMC", particles=self.particles)
        if not (isinstance(self.ess_threshold, (int, float)) and 0.0 <= self.ess_threshold <= 1.0):
            raise BadArgument(
                f"ess_threshold must be in [0, 1], got {self.ess_threshold!r}",
                fix="write ess_threshold=0.5: resample when ESS falls below half the particles",
            )
        if not isinstance(self.resample_at, tokens) and self.resample_at not in ("site", "factor"):
            raise BadArgument(
                f'resample_at must be "site", "factor" or tokens(k), got {self.resample_at!r}',
                fix='write resample_at="factor", or resample_at=tokens(8)',
            )
        Guide.of(self.guide)
        if not (self.temper is None or isinstance(self.temper, Temper)):
            raise BadArgument(
                f"temper must be a Temper, got {self.temper!r}", fix='write temper=Temper("ess")'
            )
        if not (self.rejuvenate is None or isinstance(self.rejuvenate, Rejuvenation)):
            raise BadArgument(
                f"rejuvenate={self.rejuvenate!r} moves no particles",
                fix="write rejuvenate=SingleSite(steps=2)",
            )
        object.__setattr__(self, "scheme", scheme(self.resampling))

    def target(self, program: Any = None) -> str:
        """The law of the weighted traces."""
        name = getattr(program, "__name__", "program")
        lines = [
            f"γ(trace of {name}) = Π p(sample) · Π p(observation) · Π exp(factor); posterior = γ / Z",
            f"Ẑ = mean of {self.particles} final weights, E[Ẑ] = Z for every number of particles",
        ]
        if self.guide is not None:
            lines.append(
                f"intermediate targets γ_t · h(partial trace), h = {Guide.of(self.guide)}; h = 1 at the end, "
                "so γ is unchanged"
            )
        return "\n".join(lines)

    def threshold(self, population: Sequence[Particle]) -> float:
        """τ at this barrier: that of `tokens(k, ess=τ)` while a string is being drawn."""
        at = self.resample_at
        if isinstance(at, tokens) and at.ess is not None:
            if any(in_string(p) for p in population if not p.finished):
                return at.ess
        return self.ess_threshold

    def run(self, machine: Machine) -> Jobs:
        """The loop of the module's first lines."""
        n = self.particles
        population = [machine.particle(i) for i in range(n)]
        history = History(n)
        stop, limit = barriers(self.resample_at)
        inside = self.resample_at.ess if isinstance(self.resample_at, tokens) else None
        if self.ess_threshold == 0.0 and not self.always and not inside:
            stop, limit = "end", None
        guide = Guide.of(self.guide)
        paths = None if self.rejuvenate is None else self.rejuvenate.begin(machine, population)
        step = 0
        while True:
            # Propagate and reweight
            yield from machine.advance(population, stop, limit)
            if paths is None:  # what a path was at a barrier must not depend on the others
                machine.look_ahead(population)
            else:
                paths.grow(population)
            lw = np.array([p.log_weight for p in population])
            if all(p.finished for p in population):
                break
            history.watch(lw, population)
            v = lw
            if guide is not None:
                v = lw + (yield from guide.log_h(machine, population))
            size = ess(v)
            ancestors: Ints | None = None
            if size > 0 and (self.always or size < self.threshold(population) * n):
                # Resample
                r = v if self.temper is None else v / self.temper.temperature(v, step + 1)
                ancestors = self.scheme(
                    normalize(r), fold(machine.key, "resample", step), machine.env.chance
                )
                used = v if self.temper is not None and self.temper.biased else r
                population = offspring(machine, population, ancestors, lw, used, step)
            if paths is not None and size > 0:
                # Move: at every barrier, since K leaves γ_t invariant on average over all
                # populations, and not over those alone that were resampled
                population = yield from paths.move(
                    population, ancestors, fold(machine.key, "rejuvenate", step), stop, limit,
                    step + 1, guide,
                )  # fmt: skip
            history.record(size, log_mean_exp(lw), ancestors, [p.eve for p in population])
            step += 1
        history.end(lw, [p.eve for p in population])
        return population_posterior(machine, self, population, log_mean_exp(lw), history)


def in_string(p: Particle) -> bool:
    """Whether a particle stands in the middle of a string."""
    jobs = (leaf.job for leaf in p.strand.leaves())
    return any(isinstance(job, Generate) and bool(job.state.ids) for job in jobs)


def offspring(
    machine: Machine, population: list[Particle], ancestors: Ints, lw: Floats, v: Floats, step: int
) -> list[Particle]:
    """The children of a resampling step, in the order of their ancestors.

    A child of a has log-weight lw_a - v_a + logmeanexp(v): multiplied by the guide, all are equal,
    and the sum over the population is kept in expectation.
    """
    with np.errstate(invalid="ignore"):
        shift = lw - v + log_mean_exp(v) - lw
    shift[~np.isfinite(shift)] = 0.0
    wanted = ancestors.tolist()
    born: dict[int, int] = {}
    numbers = []
    for a in wanted:
        j = born.get(a, 0)
        numbers.append(j)
        born[a] = j + 1
    keys = np.array([p.key for p in population], dtype=np.uint64)
    keys = fold_array(fold_array(keys, hash_text("offspring")), step)[ancestors]
    keys = fold_array(keys, np.array(numbers, dtype=np.uint64))
    # later children first: the first one is its parent, which changes
    children = list(population)
    for last in (False, True):
        for slot, (a, j, key) in enumerate(zip(wanted, numbers, keys.tolist(), strict=True)):
            if last is (j == 0):
                children[slot] = (
                    _heir(machine, population[a], key, slot)
                    if last
                    else machine.fork(population[a], key, slot, frames=False)
                )
    for child, more in zip(children, shift[ancestors].tolist(), strict=True):
        child.logw += more
    for a, parent in enumerate(population):
        if a not in born:
            parent.strand.kill()
    return children


def _heir(machine: Machine, parent: Particle, key: Key, slot: int) -> Particle:
    """The first child, with the live frames: the parent itself, where nothing in it has a key."""
    s = parent.strand
    if s.job is not None or s.branches is not None or s.nested is not None:
        return machine.fork(parent, key, slot, frames=True)
    parent.key, parent.index, parent.retries = key, slot, 0
    return parent
