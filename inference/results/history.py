"""What happened at each barrier of a particle run: populations, weights, who descends from whom.

    population 0  --ancestors[0]->  population 1  --ancestors[1]->  …  the final population

`ancestors[t]` says of each particle of population t + 1 where it was in population t; None where
nobody moved. A filter with N particles tells of every barrier twice, `watch` before it resamples
and `record` after it; an engine whose populations differ in size tells of each population once, by
`add`. The final population is that of the posterior, unless `whose` says otherwise: a Markov chain
has the history of one of its sweeps, whose paths are `last`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lmppl.trace import Entry, Trace
from lmppl.types import Floats, Ints
from lmppl.weights import ess, log_mean_exp

if TYPE_CHECKING:
    from lmppl.inference.machine.particles import Particle

ROOM = 200_000
"""Particles times barriers that a history remembers weights and entries of."""


class Last(NamedTuple):
    """A final population that is not the posterior's."""

    traces: list[Trace]
    log_weights: Floats


@dataclass
class History:
    """What happened at each barrier of a particle run."""

    particles: int
    """Of the first population."""
    ess: list[float] = field(default_factory=list)
    log_evidence: list[float] = field(default_factory=list)
    ancestors: list[Ints | None] = field(default_factory=list)
    """Ancestor of each particle of the next population, where it is not the same one."""
    eves: list[int] = field(default_factory=list)
    """Distinct ancestors in the first population: the unique-ancestor curve."""
    log_weights: list[Floats] = field(default_factory=list)
    """Log-weights at each barrier, before it is resampled; ends where there is no more room."""
    heads: list[list[Entry | None]] = field(default_factory=list)
    """The newest entry of each particle then: also of those that left no offspring."""
    fixed: bool = True
    """Whether every population has N particles, drawn by weight: a barrier then adds 1/ESS - 1/N
    to the variance of the evidence."""
    whose: str = ""
    """What these are the barriers of, where not the posterior's own particles: "the last sweep"."""
    last: Last | None = None
    """Its final population; lost when the posterior is saved."""
    _room: int = field(default=ROOM, init=False, repr=False)
    _size: int = field(default=0, init=False, repr=False)

    def watch(self, lw: Floats, population: Sequence[Particle]) -> None:
        """What the population is at a barrier, before it is resampled, for reports."""
        if len(self.log_weights) == len(self.ess) and len(lw) <= self._room:
            self._keep(lw, [p.strand.head for p in population])

    def record(
        self, size: float, log_evidence: float, ancestors: Ints | None, eves: Sequence[int]
    ) -> None:
        """One barrier."""
        self.ess.append(size)
        self.log_evidence.append(log_evidence)
        self.ancestors.append(ancestors)
        self.eves.append(len(set(eves)))

    def end(self, lw: Floats, eves: Sequence[int]) -> None:
        """The final weights, which are never resampled."""
        self.record(ess(lw), log_mean_exp(lw), None, eves)

    def add(
        self,
        lw: Floats,
        heads: Sequence[Entry | None],
        eves: Sequence[int],
        log_evidence: float,
        ancestors: Ints | None = None,
    ) -> None:
        """The next population, whatever its size, and its ancestors in the one before it."""
        self.fixed = False
        if self.ess:
            same = ancestors is None or np.array_equal(ancestors, np.arange(self._size))
            self.ancestors[-1] = None if same else ancestors
            self.eves[-1] = len(set(eves))
        if len(self.log_weights) == len(self.ess) and len(lw) <= self._room:
            self._keep(lw, list(heads))
        self.record(ess(lw), log_evidence, None, eves)
        self._size = len(lw)

    def _keep(self, lw: Floats, heads: list[Entry | None]) -> None:
        self._room -= len(lw)
        self.log_weights.append(np.asarray(lw, dtype=np.float64))
        self.heads.append(heads)

    def of(self, whose: str, traces: Sequence[Trace], lw: Floats) -> History:
        """The same, as that of another population than the posterior's."""
        return replace(self, whose=whose, last=Last(list(traces), lw))

    @property
    def sizes(self) -> list[int]:
        """Particles of each population."""
        out = [self.particles]
        for parents in self.ancestors[:-1]:
            out.append(out[-1] if parents is None else len(parents))
        return out

    @property
    def resamplings(self) -> int:
        """How often the population was resampled."""
        return sum(a is not None for a in self.ancestors)
