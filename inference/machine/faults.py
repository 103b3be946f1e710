"""What goes wrong in a particle: where it was, what its run's policy makes of it, how it dies.

The policy is `on_error`: "raise" stops the run with a `SiteError` that names the place; "kill" gives
the particle weight zero; "retry" runs it again from its tape, then raises. Errors of this package
that mean a wrong program (`fatal`) stop the run whatever the policy.
"""

from __future__ import annotations

from collections import Counter

from lmppl.errors import AllParticlesDead, LmpplError, SiteError
from lmppl.inference.machine.particles import Particle
from lmppl.lines import line_of
from lmppl.strands import Strand
from lmppl.weights import NEG_INF

MANY = 100
"""Values of a factor after which they are a pattern."""


class Faults:
    """The part of a `Machine` that meets errors and deaths."""

    on_error: str
    deaths: Counter[str]
    """By site: how many particles it killed."""
    killed_values: dict[str, str]
    """By site: the first value that killed."""
    factors: dict[str, list[int]]
    label: str | None
    borders: dict[str, str | None]

    def _failed_site(self, p: Particle, s: Strand, error: Exception) -> None:
        """A distribution, or the answer of a site, raised an exception."""
        if isinstance(error, (MemoryError, SiteError)):
            raise error
        if isinstance(error, LmpplError) and (error.fatal or self.on_error != "kill"):
            self._locate(error, p, s)
            raise error
        self._fail(p, s, error, "kill" if self.on_error == "kill" else "raise")

    def _where(self, p: Particle, s: Strand, error: BaseException | None = None) -> str:
        """File and line, site, particle and question."""
        line = line_of(error) if error is not None else None
        if line is None and s.frame is not None:
            line = s.frame.line()
        if s.pending is not None:
            site = f"site {s.pending.address!r}"
        else:
            site = f"after site {s.head.address!r}" if s.head is not None else "before any site"
        return ", ".join(w for w in (line, site, f"particle {p.index}", self.label) if w)

    def _locate(self, error: LmpplError, p: Particle, s: Strand) -> None:
        """Say where, unless the branch or the nested run that it came from has."""
        if not error.located:
            error.located = True
            error.add_where(self._where(p, s, error))

    def _fail(self, p: Particle, s: Strand, error: BaseException, policy: str) -> None:
        if policy == "kill":
            last = s.pending if s.pending is not None else s.head
            site = last.address if last is not None else "the start"
            self.kill(p, site, f"{type(error).__name__}: {error}".splitlines()[0])
            return
        found = self._site_error(error, self._where(p, s, error))
        found.trace = p.trace
        raise found from error

    def _site_error(self, error: BaseException, where: str) -> SiteError:
        name = type(error).__name__
        if isinstance(error, LmpplError):
            parts = {k: error.fields.get(k) for k in ("value", "why", "fix")}
            return SiteError(
                f"the program raised {name}: {error.fields['what']}", where=where, **parts
            )
        return SiteError(
            f"the program raised {name}: {error}",
            where=where,
            fix='handle it in the program, or pass on_error="kill" to count such particles as impossible',
        )

    def kill(self, p: Particle, site: str, value: str) -> None:
        """Weight zero, for ever."""
        p.dead = True
        p.logw = NEG_INF
        p.death = (site, value)
        self.deaths[site] += 1
        self.killed_values.setdefault(site, value)
        p.strand.kill()
        p.strand.branches = None
        p.strand.job = None

    def suspicions(self) -> list[str]:
        """What the program's own numbers and prompts make doubtful."""
        return [text for text in self.borders.values() if text is not None] + [
            f"factor {name!r}: all of its {inside} values are in [0, 1], as probabilities are; a factor takes "
            "their logarithm: write factor(name, math.log(p)), or a bool for a hard constraint"
            for name, (inside, positive, outside) in self.factors.items()
            if inside >= MANY and positive and not outside
        ]

    def all_dead(self, particles: int) -> AllParticlesDead:
        """The error of a population without weight."""
        examples = [f"{site}: {value}" for site, value in list(self.killed_values.items())[:3]]
        return AllParticlesDead(self.deaths, particles=particles, examples=examples)
