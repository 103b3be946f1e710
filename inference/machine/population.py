"""Particles that run a program: resume, answer, fork, kill.

A `Machine` holds one run of one program (its arguments, models, keys, ledger). Its `advance` moves
particles to a barrier; it is a generator that yields model and effect jobs and is sent back those
that are done, so that one scheduler can batch the jobs of many machines, nested ones included.

    machine.advance(particles, "site")     each unfinished particle passes one site
    machine.advance(particles, "factor")   … runs to its next observation or factor
    machine.advance(particles, "end")      … runs to its end

The weight of a particle is Σ log-weights of its sites plus those of its unfinished strings.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any, TypeAlias

from lmppl.errors import BadArgument, LmpplError, ReplayDivergence, SiteError
from lmppl.frames import driver
from lmppl.inference.machine.answers import Answers, Stop
from lmppl.inference.machine.growing import Growing
from lmppl.inference.machine.particles import Particle, fork_particle
from lmppl.jobs import Effect, Env, Generate, Job
from lmppl.ledger import Ledger
from lmppl.messages import Message
from lmppl.random import fold
from lmppl.strands import Launch, Strand
from lmppl.trace import Entry
from lmppl.types import Key
from lmppl.values import freeze

Jobs: TypeAlias = Generator[Sequence[Job], Sequence[Job], Any]
RETRIES = 2


class Machine(Growing, Answers):
    """One run of a program, as engines see it.

    Args:
        program: the function.
        args, kwargs: its arguments.
        env: models and chance.
        key: root of all randomness of this run.
        driver_name: how frames suspend; None picks the best there is.
        on_error: what an exception inside a particle does.
        strict: whether a repeated site name is an error.
        conditions: values of sites to observe, by address.
        params: values of `param` sites.
    """

    def __init__(
        self,
        program: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        env: Env,
        key: Key,
        *,
        driver_name: str | None = None,
        on_error: str = "raise",
        strict: bool = False,
        conditions: dict[str, Any] | None = None,
        params: dict[str, Any] | None = None,
    ) -> None:
        """Prepare, run nothing."""
        if on_error not in ("raise", "kill", "retry"):
            raise BadArgument(
                f'on_error must be "raise", "kill" or "retry", got {on_error!r}',
                fix='write on_error="kill" to count particles that fail as impossible',
            )
        self.program = program
        self.env = env
        self.key = key
        self.on_error = on_error
        self.conditions = conditions or {}
        self.params = params or {}
        self.used: set[str] = set()
        """Conditions that met their site."""
        self.launch = Launch(
            program, args, kwargs, driver(driver_name, program), (), "", strict=strict
        )
        self.ledger = Ledger()
        self.deaths: Counter[str] = Counter()
        self.killed_values: dict[str, str] = {}
        self.restricted: set[str] = set()
        """Sites whose proposal cannot reach the whole support."""
        self.sites: set[str] = set()
        self.borders: dict[str, str | None] = {}
        """By site: what is wrong with where its prompt ends."""
        self.tried: list[Any] = []
        """Entries where the partial traces of a search ended, for reports."""
        self.memo: dict[Hashable, Any] = {}
        self.factors: dict[str, list[int]] = {}
        """By name of a factor: values in [0, 1], those above 0 among them, all others."""
        self.label: str | None = None
        """The question that this run answers, for errors."""
        self.memo_waiting: dict[Hashable, list[tuple[Particle, Strand]]] = {}
        self.began = time.perf_counter()
        self.stop: Stop = "end"
        self.limit: int | None = None
        self.draws = self.draw_site
        self.ignore_weights = False
        """Whether observations and factors count nothing (sampling from the prior)."""

    # -- particles ---------------------------------------------------------------------------

    def particle(self, index: int) -> Particle:
        """The index-th particle of the first population."""
        return Particle(Strand(self.launch), fold(self.key, "particle", index), index)

    def fork(self, parent: Particle, key: Key, index: int, *, frames: bool) -> Particle:
        """A copy of a particle; with `frames`, it takes the live frames over."""
        return fork_particle(parent, key, index, frames=frames)

    # -- moving ------------------------------------------------------------------------------

    def advance(self, particles: Sequence[Particle], stop: Stop, limit: int | None = None) -> Jobs:
        """Move every unfinished particle to its next barrier.

        With `limit`, a string that is being drawn advances by that many tokens, and that is a
        barrier too. When it does not come to its end, all frames are unwound.
        """
        try:
            yield from self._advance(particles, stop, limit)
        except BaseException as error:
            self._give_up(particles, error)
            raise

    def _give_up(self, particles: Sequence[Particle], error: BaseException) -> None:
        """Unwind every frame at once; the error takes the finished traces along."""
        if isinstance(error, SiteError) and not error.traces:
            error.traces = [p.trace for p in particles if p.strand.done and not p.dead]
        for p in particles:
            p.strand.kill()

    def _advance(self, particles: Sequence[Particle], stop: Stop, limit: int | None) -> Jobs:
        self.stop, self.limit = stop, limit
        new: list[Job] = []
        for p in particles:
            root = p.strand
            if p.dead or root.done:
                continue
            if root.branches is None and root.job is None:  # nearly always
                root.stepped = False
                self._move(p, root, new)
                continue
            for leaf in tuple(root.leaves()):
                leaf.stepped = False
                if leaf.job is not None:
                    new.append(self._submit(leaf.job, p, leaf))
                elif not (p.dead or leaf.done):  # a graph may have cancelled it meanwhile
                    self._move(p, leaf, new)
        outstanding = len(new)
        while outstanding:
            done = yield new
            outstanding -= len(done)
            new = []
            for job in done:
                p, s = job.owner
                if not p.dead or type(job) is Effect:  # others may wait for a cached value
                    try:
                        self._completed(p, s, job, new)
                    except Exception as error:
                        self._failed_site(p, s, error)
            outstanding += len(new)

    def look_ahead(self, particles: Sequence[Particle]) -> bool:
        """Run particles at a barrier to their next message, to see which have ended there.

        Nothing is answered. Particles without a live frame are asked only when all others have
        ended, since they would have to replay. Returns whether any has ended or died.

        An inner run that asks no model ends in here, so the offspring of a resampling that follows
        share what it drew. That is sound: its draws u have the law q(u | path) whether they are made
        before the resampling or after, and the weights that it resamples by do not depend on them,
        so that this is SMC on the paths (x, u). (Where u kills its particle, the weight is that of
        (x, u), as at any barrier.) It costs variety, as everything shared does, not correctness.
        """
        try:
            found, going = self._peek(particles, True)
            if found and not going:
                self._peek(particles, False)
        except BaseException as error:
            self._give_up(particles, error)
            raise
        return found

    def _peek(self, particles: Sequence[Particle], live: bool) -> tuple[bool, bool]:
        """Look ahead where there is a frame, or none; whether any has ended, and any goes on."""
        found = going = False
        for p in particles:
            s = p.strand
            if s.branches is not None or (s.frame is None) is live:
                continue
            if p.dead or s.done:
                continue
            if s.ahead or s.job is not None or s.outcomes is not None or s.nested is not None:
                going = True
            elif self._resume(p, s) is None:
                found = True
            else:
                s.ahead = going = True
        return found, going

    def _submit(self, job: Job, p: Particle, s: Strand) -> Job:
        job.owner = (p, s)
        job.ledger = self.ledger
        if s.pending is not None:
            job.site = s.pending.address
        if type(job) is Generate:
            job.limit = self.limit
        return job

    def _move(self, p: Particle, s: Strand, new: list[Job]) -> None:
        """Run a strand until it waits for a job, stands at a barrier, or has ended.

        Every site of every particle passes here, so the most frequent messages, a site to be drawn
        and a factor, are answered in the loop; all others by `_begin`.
        """
        while not p.dead:
            if s.ahead:
                s.ahead = False
                message = s.pending
            else:
                message = self._resume(p, s)
            if message is None:
                if not p.dead:
                    self._ended(p, s, new)
                return
            try:
                if message.op == "sample" and not message.done and not self.conditions:
                    dist = message.dist
                    if self.usual and message.proposal is None:
                        if dist.asks:
                            step = s.job = dist.ask(self.env)
                            step.owner, step.site = (p, s), message.address
                            step.root = p.key
                            step.ledger = self.ledger
                            step.limit = self.limit
                            new.append(step)
                            return
                        step = dist.draw(fold(p.key, message.address), self.env)
                    else:
                        step = self.draws(p, message, fold(p.key, message.address))
                    waits = self._step(p, s, message, step, new)
                elif message.op == "factor":
                    waits = self._factor(p, s, message)
                else:
                    waits = self._begin(p, s, message, new)
            except Exception as error:
                self._failed_site(p, s, error)
                return
            if waits:
                return

    def _resume(self, p: Particle, s: Strand) -> Message | None:
        """The next message of the user's code; None at its end or when it killed the particle."""
        s.pending = None
        head = s.head
        if head is None or head.op != "jobs":  # an inner run that has begun keeps its key
            s.key = p.key
        while True:
            frame = s.frame
            try:
                if frame is not None:
                    message = frame.resume(s.head)
                else:
                    if s.parent is not None and s.parent.frame is None:
                        self._revive(s.parent)
                    frame = s.frame = s.launch.driver(s)
                    message = frame.resume(None)
                    if s.replayed:
                        self.ledger.replayed += s.replayed
                        s.replayed = 0
                if message is None:
                    s.result = freeze(frame.context.result)
                    s.done = True
                    s.frame = None
                else:
                    s.pending = message
                return message
            except MemoryError:
                raise
            except Exception as error:
                s.frame = None
                if isinstance(error, LmpplError) and (error.fatal or self.on_error == "raise"):
                    self._locate(error, p, s)
                    raise
                if self.on_error == "retry" and p.retries < RETRIES:
                    p.retries += 1
                    continue
                self._fail(p, s, error, self.on_error)
                return None

    def _revive(self, s: Strand) -> None:
        """Make the frame of a strand again that waits at a plate, and its branches start from it.

        A fork shares the message of its plate with the live frame, whose variables go on changing;
        the function of its branches must see its own.
        """
        if s.parent is not None and s.parent.frame is None:
            self._revive(s.parent)
        frame = s.frame = s.launch.driver(s)
        message, waiting = frame.resume(None), s.pending
        self.ledger.replayed += s.replayed
        s.replayed = 0
        if message is None or waiting is None or message.address != waiting.address:
            raise ReplayDivergence(
                f"plate {waiting.address if waiting else '?'!r}",
                "the end of the program"
                if message is None
                else f"{message.op} {message.address!r}",
                address=waiting.address if waiting else "?",
            )
        s.pending = message
        if s.growth is not None:
            self._rebind(s, message)
            return
        for branch, item in zip(s.branches or (), message.args, strict=True):
            old = branch.launch
            branch.launch = s.launch.branch(message.fn, item, message.options, old.scope)

    def _ended(self, p: Particle, s: Strand, new: list[Job]) -> None:
        parent = s.parent
        if parent is None or parent.branches is None or parent.joining:
            return
        if parent.growth is not None:
            if self._grow(p, parent, s, new) and self._join(p, parent):
                self._move(p, parent, new)
            return
        if all(b.done for b in parent.branches) and self._join(p, parent):
            self._move(p, parent, new)

    def _join(self, p: Particle, parent: Strand) -> bool:
        """End a plate whose branches are done; whether the parent may go on at once."""
        branches, message = parent.branches, parent.pending
        if branches is None or message is None:
            return False
        parent.branches = None
        if parent.growth is not None:
            parent.head = parent.growth.join(parent.head, message, branches)
            parent.growth = None
            return self._passed(parent, branches)
        parent.head = Entry(
            parent.head,
            "plate",
            message.address,
            tuple(b.result for b in branches),
            fingerprint=message.fingerprint(),
            inside=tuple(b.head for b in branches),
        )
        return self._passed(parent, branches)

    def _passed(self, parent: Strand, branches: list[Strand]) -> bool:
        """Whether the parent may go on at once: no branch has come to a barrier."""
        if self.stop != "end" and any(b.stepped for b in branches):
            parent.stepped = True
            return False
        return True
