"""How far a filter is from the truth: bounds of the evidence from both sides.

    lower:  E[log Ẑ] ≤ log Z      Ẑ of a particle filter, E[Ẑ] = Z
    upper:  E[log Ẑ] ≥ log Z      Ẑ of a filter conditioned on an exact posterior path, E[1/Ẑ] = 1/Z

Their distance bounds KL(q ‖ posterior) + KL(posterior ‖ q) of what the filter samples, so it says how
good a guide is without the truth. The exact paths come from rejection: a run of weight w is kept
with probability w / M. Where too few are kept the paths come from a chain of conditional filters
that starts at a filter's own: then the upper number is no bound, and `exact` is False.

Reference: Grosse, Ghahramani and Adams, Sandwiching the marginal likelihood using bidirectional
Monte Carlo (2015); Zhao, Brekelmans, Makhzani and Grosse (2024), section 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from lmppl.errors import BadArgument, UnboundedWeight, excerpt
from lmppl.inference.base import Engine
from lmppl.inference.calls import infer
from lmppl.inference.machine.paths import Node
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.results.posterior import population_posterior
from lmppl.inference.smc.conditional import Swept, chosen, filter_of, sweep
from lmppl.inference.smc.particle_filter import SMC
from lmppl.random import draw, fold
from lmppl.types import Floats
from lmppl.weights import NEG_INF, exp, log_mean_exp


class Bounds(NamedTuple):
    """log Z from below and from above."""

    lower: float
    """Mean of log Ẑ over plain filters; -inf where one of them died out."""
    lower_se: float
    upper: float
    """Mean of log Ẑ over conditional filters."""
    upper_se: float
    exact: bool
    """Whether the paths were exact posterior draws, so that `upper` is a bound."""

    @classmethod
    def of(cls, low: Floats, high: Floats, exact: bool) -> Bounds:
        """From log Ẑ of filters of each kind."""
        return cls(*_mean(low), *_mean(high), exact)

    @property
    def gap(self) -> float:
        """Nats between them."""
        return self.upper - self.lower


def evidence_bounds(
    program: Callable[..., Any],
    *args: Any,
    engine: SMC,
    runs: int = 16,
    tries: int = 10_000,
    log_bound: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> Bounds:
    """Bounds of log Z by the filter of an engine, plain and conditional.

    Args:
        program: the program.
        *args: its arguments.
        engine: the filter; "multinomial", "systematic", "stratified" or "residual" resampling.
        runs: filters of each kind.
        tries: runs that rejection may spend on exact paths, all together.
        log_bound: log M; 0 fits programs whose factors are all at most 1.
        seed: all randomness is a function of it.
        **options: of `infer`: lm, observations, ...

    >>> from lmppl import Bernoulli, factor, program, sample
    >>> @program
    ... def coins():
    ...     factor("heads", all(sample("x", Bernoulli(0.5)) for _ in range(3)))
    >>> found = evidence_bounds(coins, engine=SMC(20), runs=8)
    >>> found.exact, found.lower - 0.5 < math.log(1 / 8) < found.upper + 0.5
    (True, True)
    """
    if not isinstance(engine, SMC):
        raise BadArgument(
            f"evidence_bounds needs a particle filter, got {excerpt(engine, 60)}",
            fix="write engine=SMC(32, guide=...)",
        )
    if runs < 2:
        raise BadArgument(f"runs must be at least 2, got {runs!r}", fix="an error needs two")
    both = _Both(engine, runs, tries, log_bound)
    infer(program, *args, engine=both, seed=seed, **{**options, "on_dead": "return"})
    low, high = np.array(both.below), np.array(both.above)
    if not len(high):
        raise BadArgument(
            "no run of this program has a positive weight, and a conditional filter needs one",
            fix="give more tries, particles, or a better guide",
        )
    return Bounds.of(low, high, both.exact[0])


def _mean(x: Floats) -> tuple[float, float]:
    """Mean and its standard error."""
    if not np.isfinite(x).all():
        return NEG_INF, math.nan
    return float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x)))


@dataclass(frozen=True)
class _Both(Engine):
    """Filters of both kinds in one run, whose numbers are left in its lists."""

    filter: SMC
    runs: int
    tries: int
    log_bound: float
    below: list[float] = field(default_factory=list)
    above: list[float] = field(default_factory=list)
    exact: list[bool] = field(default_factory=list)

    def target(self, program: Any = None) -> str:
        """That of its filter."""
        return self.filter.target(program)

    def run(self, machine: Machine) -> Jobs:
        """Plain filters, exact paths, conditional filters around them."""
        f = self.filter
        settings = filter_of(
            f.particles, str(f.resampling), f.ess_threshold, f.resample_at, f.guide, f.always
        )
        best: tuple[Swept, int] | None = None
        for i in range(self.runs):
            key = fold(machine.key, "plain", i)
            plain: Swept = yield from sweep(machine, settings, key)
            self.below.append(log_mean_exp(plain.lw))
            if self.below[-1] > NEG_INF:
                best = plain, key
        paths = yield from self._exact(machine, replace(settings, guide=None))
        self.exact.append(len(paths) == self.runs)
        if not self.exact[0] and best is not None:
            paths = [chosen(machine, best[1], best[0])]
        for i in range(self.runs if paths else 0):
            key = fold(machine.key, "conditional", i)
            around: Swept = yield from sweep(machine, settings, key, paths[i])
            self.above.append(log_mean_exp(around.lw))
            if not self.exact[0]:
                paths.append(chosen(machine, key, around))
        states = [h.state for h in plain.heads]
        return population_posterior(machine, self, states, self.below[-1], plain.history)

    def _exact(self, machine: Machine, settings: SMC) -> Jobs:
        """Paths by rejection, with the barriers of the filter; fewer than due when tries run out."""
        runs = replace(settings, particles=64, ess_threshold=0.0, always=False)
        paths: list[Node] = []
        for i in range(-(-self.tries // 64)):
            key = fold(machine.key, "exact", i)
            found: Swept = yield from sweep(machine, runs, key)
            for j, (head, lw) in enumerate(zip(found.heads, found.lw.tolist(), strict=True)):
                if lw > self.log_bound + 1e-12:
                    raise UnboundedWeight(
                        f"a run has log-weight {lw:.4g}, above the bound {self.log_bound:g}",
                        fix=f"write log_bound=... that you can prove, at least {lw:.4g}",
                    )
                if lw > NEG_INF and len(paths) < self.runs:
                    kept = exp(lw - self.log_bound)
                    with np.errstate(divide="ignore"):
                        choice = np.log(np.array([kept, max(0.0, 1.0 - kept)]))
                    if draw(machine.env.chance, fold(key, "accept", j), choice) == 0:
                        paths.append(head)
            if len(paths) == self.runs:
                break
        return paths
