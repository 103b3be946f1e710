"""A particle: a partial trace with a log-weight and a lineage, and how it forks.

A fork costs O(1) whatever has happened: references to the tape and to half-made strings are
copied, the live frame moves to the first offspring, and the others are made again by replay when
their next answer has come. Offspring that die first never pay. No user object is copied.
"""

from __future__ import annotations

from lmppl.jobs import Generate
from lmppl.random import fold
from lmppl.strands import Strand
from lmppl.trace import Trace
from lmppl.types import Key
from lmppl.weights import NEG_INF


class Particle:
    """A partial trace with a log-weight and a lineage."""

    __slots__ = ("dead", "death", "eve", "index", "key", "logw", "retries", "strand")

    def __init__(self, strand: Strand, key: Key, index: int) -> None:
        """A particle that has not started, with weight 1."""
        self.strand = strand
        self.key = key
        self.index = index
        self.eve = index
        """The particle of the first population that it descends from."""
        self.logw = 0.0
        self.dead = False
        self.death: tuple[str, str] | None = None
        """The site that killed it, and the value it had there."""
        self.retries = 0

    @property
    def finished(self) -> bool:
        """Whether it has returned, or died: it absorbs, and keeps its weight."""
        return self.dead or self.strand.done

    @property
    def log_weight(self) -> float:
        """Its weight so far, unfinished strings included."""
        if self.dead:
            return NEG_INF
        total = self.logw
        root = self.strand
        if root.branches is None and root.job is None:
            return total
        for leaf in root.leaves():
            if isinstance(leaf.job, Generate):
                total += leaf.job.state.logw
        return total

    @property
    def trace(self) -> Trace:
        """What has happened in it."""
        return Trace(self.strand.head, self.strand.result)


def fork_particle(parent: Particle, key: Key, index: int, *, frames: bool) -> Particle:
    """A copy of a particle; with `frames`, it takes the live frames over."""
    child = Particle(_fork_strand(parent.strand, None, key, frames), key, index)
    child.eve = parent.eve
    child.logw = parent.logw
    child.dead = parent.dead
    child.death = parent.death
    return child


def _fork_strand(s: Strand, parent: Strand | None, key: Key, frames: bool) -> Strand:
    new = Strand(s.launch, s.head, parent)
    new.key = s.key
    new.pending = s.pending
    new.result = s.result
    new.place = s.place
    new.done = s.done
    new.outcomes = s.outcomes
    if s.job is not None:
        site = s.pending.address if s.pending is not None else ""
        new.job = s.job.fork(fold(key, site)) if isinstance(s.job, Generate) else s.job
    if s.ahead:
        new.ahead = frames and s.frame is not None
        if not new.ahead:
            new.pending = None  # its own replay finds it: closures in it belong to the live frame
    if frames and s.frame is not None:
        new.frame = s.frame
        s.frame.move(new)
        s.frame = None
    if s.growth is not None:
        new.growth = s.growth.fork()
    if s.branches is not None:
        new.branches = [_fork_strand(b, new, key, frames) for b in s.branches]
    return new
