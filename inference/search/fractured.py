"""Fractured sampling: n traces, each cut at H places of its reasoning, m answers from every cut.

    for each of n runs: draw the string at the site `cut`
        for i = 1 … H: put the first i/H of it in its place
            m times: draw the rest of the program            # H = i is the whole string
    vote over all n · H · m answers, each weighted by the observations and factors behind the cut

(n, 1, 1) is self-consistency, (n, 1, m) draws several answers from each chain, (1, H, m) exits early
at every place. An early answer costs no reasoning tokens beyond those that one chain has anyway.
Cuts of one chain are not independent, so more cuts say less than more chains.

Reference: Liao et al., Fractured chain-of-thought reasoning, 2505.12992 (2025): n = 16, H = 16, m = 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmppl.arguments import check_integers
from lmppl.errors import BadArgument
from lmppl.inference.base import Engine
from lmppl.inference.guide import run_steps
from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.search.found import found
from lmppl.inference.search.nodes import WAITING, waiting
from lmppl.jobs import Draw
from lmppl.random import fold
from lmppl.strands import Strand


@dataclass(frozen=True)
class Fractured(Engine):
    """Fractured sampling.

    Args:
        particles: n, how many chains.
        cuts: H, at how many places each is cut; the last one is its end.
        answers: m, how many answers from each cut.
        cut: the address of the string site that is cut.
    """

    particles: int = 16
    cuts: int = 4
    answers: int = 2
    cut: str = "thought"

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_integers("Fractured", particles=self.particles, cuts=self.cuts, answers=self.answers)

    def target(self, program: Any = None) -> str:
        """What is returned."""
        return (
            f"votes, not the posterior: {self.particles} chains, {self.cuts} cuts of {self.cut!r}, "
            f"{self.answers} answers from each, weighted by what follows the cut\n"
            "no evidence is estimated"
        )

    def run(self, machine: Machine) -> Jobs:
        """The loops of the module's first lines."""
        plain = machine.draw_site
        machine.draws = lambda p, m, key: WAITING if m.address == self.cut else plain(p, m, key)
        chains = [machine.particle(i) for i in range(self.particles)]
        yield from machine.advance(chains, "end")
        stand = [(p, s.pending) for p in chains for s in waiting(p) if s.pending is not None]
        if not stand:
            known = ", ".join(sorted(machine.sites)) or "none"
            raise BadArgument(
                f"Fractured: no run has come to a site {self.cut!r}",
                value=f"sites that were met: {known}",
                fix='name the string to cut: Fractured(cut="thought")',
            )
        steps = [plain(p, m, fold(p.key, self.cut)) for p, m in stand]
        thoughts = yield from run_steps(machine, steps)
        machine.draws = plain
        ends = [p for p in chains if p.finished]
        for (p, _), thought in zip(stand, thoughts, strict=True):
            ends += self._answers(machine, p, thought.value)
        yield from machine.advance(ends, "end")
        for p, _ in stand:
            p.strand.kill()
        return found(machine, self, ends, distinct=True, log_evidence=float("nan"))

    def _answers(self, machine: Machine, parent: Particle, thought: Any) -> list[Particle]:
        """One particle for each cut and answer, its string in place."""
        if not isinstance(thought, str):
            raise BadArgument(
                f"Fractured: site {self.cut!r} has a {type(thought).__name__}, and only text is cut"
            )
        made = []
        for i in range(1, self.cuts + 1):
            part = thought if i == self.cuts else thought[: round(i * len(thought) / self.cuts)]
            for j in range(self.answers):
                key = fold(parent.key, "cut", i, j)
                child = machine.fork(parent, key, parent.index, frames=False)
                leaf: Strand = waiting(child)[0]
                leaf.outcomes = None
                # the law of a part of a string is no law of this program: it has no weight
                machine.deliver(child, leaf, Draw(part, 0.0, 0.0))
                made.append(child)
        return made
