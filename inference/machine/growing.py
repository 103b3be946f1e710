"""Running thought graphs: a plate whose branches start one another (`lmppl.graphs.graph`).

The graph says which nodes start when one has ended (`lmppl.graphs.thoughts.growth.Growth`); here each node
becomes a strand of the particle, so that its strings join the batch of all other nodes, particles
and questions, without a barrier between levels.

A node that is cancelled leaves no site on the tape, and its log-weight is taken back: with w the
weight of the particle and v that of the node, w / v is the weight of the trace without it, since
the node's draws are then no part of the target,

    E[(w / v) f(rest)] = E[w_rest f(rest)].
"""

from __future__ import annotations

from abc import abstractmethod

from lmppl.errors import GraphError, LmpplError
from lmppl.inference.machine.faults import Faults
from lmppl.inference.machine.particles import Particle
from lmppl.jobs import Job
from lmppl.messages import Message
from lmppl.strands import Strand
from lmppl.trace import entries


class Growing(Faults):
    """The part of a `Machine` that runs graphs."""

    usual: bool
    """Only then may nodes run that turn out not to matter: not where values are listed."""

    @abstractmethod
    def _move(self, p: Particle, s: Strand, new: list[Job]) -> None:
        """Run a strand on, collecting the jobs it starts."""

    @abstractmethod
    def _join(self, p: Particle, parent: Strand) -> bool:
        """End a graph whose nodes have ended; whether the parent may go on at once."""

    def kill(self, p: Particle, site: str, value: str) -> None:
        """Weight zero, for ever; which a node that may be cancelled cannot decide."""
        strands = [p.strand]
        while strands:
            s = strands.pop()
            strands += s.branches or ()
            for b in (s.branches or ()) if s.growth is not None else ():
                inside = site.startswith(f"{s.growth.address}/{b.place}/")
                if inside and not s.growth.certain(b.place):
                    raise GraphError(
                        f"node {b.place!r} gives weight zero before it is known whether it matters",
                        where=f"site {site!r}",
                        why="should it be cancelled, its particle would be lost for nothing",
                        fix="leave speculate=True out of the choice that reads it, or let it "
                        "return a value that is not accepted",
                    )
        super().kill(p, site, value)

    def _graph(self, p: Particle, s: Strand, m: Message, new: list[Job]) -> bool:
        """Start a graph; True when the strand must not be resumed now."""
        s.growth = m.grow.fork()
        s.branches = []
        return not (self._grow(p, s, None, new) and self._join(p, s))

    def _grow(self, p: Particle, s: Strand, last: Strand | None, new: list[Job]) -> bool:
        """Tell a graph what has ended, start what that makes ready; whether all of it has ended."""
        growth, branches = s.growth, s.branches
        if branches is None:
            return False
        ended = [] if last is None else [last]
        s.joining = True  # nodes that end at once must not come back here from inside
        try:
            starts, cancelled = growth.begin(self.usual) if last is None else ((), ())
            while True:
                if cancelled:
                    self._cancel(p, branches, cancelled)
                    ended = [b for b in ended if b.place not in cancelled]
                for start in starts:
                    launch = s.launch.branch(start.fn, start.values, growth.options, start.scope)
                    branch = Strand(launch, parent=s)
                    branch.place = start.node
                    branches.append(branch)
                    self._move(p, branch, new)
                    if p.dead:
                        return False
                    if branch.done:
                        ended.append(branch)
                if not ended:
                    return bool(growth.finished)
                branch = ended.pop()
                starts, cancelled = growth.ended(branch.place, branch.result, branch.head)
        except LmpplError as error:
            self._locate(error, p, s)
            raise
        finally:
            s.joining = False

    def _cancel(self, p: Particle, branches: list[Strand], cancelled: frozenset[str]) -> None:
        """End nodes that no longer matter, and take their weights back."""
        for branch in [b for b in branches if b.place in cancelled]:
            strands = [branch]
            while strands:
                part = strands.pop()
                strands += part.branches or ()
                p.logw -= sum(e.logw for e in entries(part.head))
            branch.cancel()
            branches.remove(branch)

    def _rebind(self, s: Strand, message: Message) -> None:
        """Let the nodes of a fork start from the variables of its own frame."""
        s.growth.rebind(message.grow)
        for branch in s.branches or ():
            fn, values = s.growth.again(branch.place)
            scope = branch.launch.scope
            branch.launch = s.launch.branch(fn, values, s.growth.options, scope)
