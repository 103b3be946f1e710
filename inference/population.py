"""Particles that run a program: resume, answer, fork, kill.

A `Machine` holds one run of one program (its arguments, models, keys, ledger). Its `advance` moves
particles to a barrier; it is a generator that yields model and effect jobs and is sent back those
that are done, so that one scheduler can batch the jobs of many machines, nested ones included.

    machine.advance(particles, "site")     each unfinished particle passes one site
    machine.advance(particles, "factor")   … runs to its next observation or factor
    machine.advance(particles, "end")      … runs to its end

A particle **forks** in O(1): references to its tape and its half-made strings are copied; the live
frame moves to the first offspring, the others are made again by replay when their next answer has
come. Offspring that die first never pay. No user object is copied.

The weight of a particle is Σ log-weights of its sites plus those of its unfinished strings.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal, TypeAlias

from lmppl.context import Message
from lmppl.distributions import after
from lmppl.errors import AllParticlesDead, BadArgument, LmpplError, SiteError, excerpt
from lmppl.frames import Frame, driver
from lmppl.jobs import Draw, Effect, Env, Generate, Job, Score
from lmppl.ledger import Ledger
from lmppl.random import fold
from lmppl.strands import Launch, Strand
from lmppl.text import Text
from lmppl.trace import Entry, Trace
from lmppl.types import Key
from lmppl.values import freeze
from lmppl.weights import NEG_INF, check_log_weight

Stop = Literal["site", "factor", "end"]
Jobs: TypeAlias = Generator[Sequence[Job], Sequence[Job], Any]
RETRIES = 2


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


class Machine:
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
            raise BadArgument(f'on_error must be "raise", "kill" or "retry", got {on_error!r}')
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
        self.memo: dict[int, Any] = {}
        self.memo_waiting: dict[int, list[tuple[Particle, Strand]]] = {}
        self.began = time.perf_counter()
        self.stop: Stop = "end"
        self.limit: int | None = None
        self.draws: Callable[[Any, Message, Key], Any] = self._draw
        """How a sample site is answered; an engine that lists values replaces it."""
        self.ignore_weights = False
        """Whether observations and factors count nothing (sampling from the prior)."""

    # -- particles ---------------------------------------------------------------------------

    def particle(self, index: int) -> Particle:
        """The index-th particle of the first population."""
        return Particle(Strand(self.launch), fold(self.key, "particle", index), index)

    def fork(self, parent: Particle, key: Key, index: int, *, frames: bool) -> Particle:
        """A copy of a particle; with `frames`, it takes the live frames over."""
        child = Particle(self._fork_strand(parent.strand, None, key, frames), key, index)
        child.eve = parent.eve
        child.logw = parent.logw
        child.dead = parent.dead
        child.death = parent.death
        return child

    def _fork_strand(self, s: Strand, parent: Strand | None, key: Key, frames: bool) -> Strand:
        new = Strand(s.launch, s.head, parent)
        new.pending = s.pending
        new.result = s.result
        new.done = s.done
        new.outcomes = s.outcomes
        if s.job is not None:
            site = s.pending.address if s.pending is not None else ""
            new.job = s.job.fork(fold(key, site)) if isinstance(s.job, Generate) else s.job
        if frames and s.frame is not None:
            new.frame = s.frame
            s.frame.move(new)
            s.frame = None
        if s.branches is not None:
            new.branches = [self._fork_strand(b, new, key, frames) for b in s.branches]
        return new

    # -- moving ------------------------------------------------------------------------------

    def advance(self, particles: Sequence[Particle], stop: Stop, limit: int | None = None) -> Jobs:
        """Move every unfinished particle to its next barrier.

        With `limit`, a string that is being drawn advances by that many tokens, and that is a
        barrier too.
        """
        self.stop, self.limit = stop, limit
        new: list[Job] = []
        for p in particles:
            root = p.strand
            if p.dead or root.done:
                continue
            for leaf in (root,) if root.branches is None else tuple(root.leaves()):
                leaf.stepped = False
                if leaf.job is not None:
                    new.append(self._submit(leaf.job, p, leaf))
                elif not p.dead:
                    self._move(p, leaf, new)
        outstanding = len(new)
        while outstanding:
            done = yield new
            outstanding -= len(done)
            new = []
            for job in done:
                p, s = job.owner
                if not p.dead:
                    self._completed(p, s, job, new)
            outstanding += len(new)

    def _submit(self, job: Job, p: Particle, s: Strand) -> Job:
        job.owner = (p, s)
        job.ledger = self.ledger
        if isinstance(job, Generate):
            job.limit = self.limit
        return job

    def _move(self, p: Particle, s: Strand, new: list[Job]) -> None:
        """Run a strand until it waits for a job, stands at a barrier, or has ended."""
        while not p.dead:
            message = self._resume(p, s)
            if message is None:
                if not p.dead:
                    self._ended(p, s, new)
                return
            if self._begin(p, s, message, new):
                return

    def _resume(self, p: Particle, s: Strand) -> Message | None:
        """The next message of the user's code; None at its end or when it killed the particle."""
        s.pending = None
        s.key = p.key
        while True:
            try:
                frame = s.frame
                if frame is None:
                    frame = s.frame = s.launch.driver(s)
                    message = frame.resume(None)
                    if s.replayed:
                        self.ledger.replayed += s.replayed
                        s.replayed = 0
                else:
                    message = frame.resume(s.head)
                if message is None:
                    s.result = freeze_result(frame)
                    s.done = True
                    s.frame = None
                s.pending = message
                return message
            except MemoryError:
                raise
            except Exception as error:
                s.frame = None
                if isinstance(error, LmpplError) and error.fatal:
                    error.add_where(self._where(p, s))
                    raise
                if self.on_error == "retry" and p.retries < RETRIES:
                    p.retries += 1
                    continue
                self._fail(p, s, error, self.on_error)
                return None

    def _where(self, p: Particle, s: Strand) -> str:
        last = s.head.address if s.head is not None else "the start"
        return f"particle {p.index}, after {last!r}"

    def _fail(self, p: Particle, s: Strand, error: BaseException, policy: str) -> None:
        site = (
            s.pending.address
            if s.pending is not None
            else f"after {s.head.address}"
            if s.head
            else "start"
        )
        shown = f"{type(error).__name__}: {error}"
        if policy == "kill":
            self.kill(p, site, shown)
            return
        found = SiteError(
            f"the program raised {type(error).__name__}: {error}",
            where=f"{self._where(p, s)}, site {site!r}",
            fix='handle it in the program, or pass on_error="kill" to count such particles as impossible',
        )
        found.trace = p.trace
        raise found from error

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

    def _ended(self, p: Particle, s: Strand, new: list[Job]) -> None:
        parent = s.parent
        if parent is None or parent.branches is None:
            return
        if not all(b.done for b in parent.branches):
            return
        branches, message = parent.branches, parent.pending
        if message is None:
            return
        parent.branches = None
        parent.head = Entry(
            parent.head,
            "plate",
            message.address,
            tuple(b.result for b in branches),
            fingerprint=message.fingerprint(),
            inside=tuple(b.head for b in branches),
        )
        if self.stop != "end" and any(b.stepped for b in branches):
            parent.stepped = True
        else:
            self._move(p, parent, new)

    # -- messages ----------------------------------------------------------------------------

    def _begin(self, p: Particle, s: Strand, m: Message, new: list[Job]) -> bool:
        """Start to answer a message; True when the strand must not be resumed now."""
        op = m.op
        if op == "sample" or op == "observe":
            if m.address in self.conditions and op == "sample" and not m.done:
                m.op, m.value, m.proposal = "observe", self.conditions[m.address], None
                self.used.add(m.address)
            return self._step(p, s, m, self._first(p, m), new)
        if op == "factor":
            return self._factor(p, s, m)
        if op == "effect":
            job = Effect(m.fn, m.args, m.kwargs or {}, m.options[1])
            s.job = job
            new.append(self._submit(job, p, s))
            return True
        if op == "cached":
            return self._cached(p, s, m, new)
        if op == "plate":
            return self._plate(p, s, m, new)
        if op == "jobs":
            inner = list(m.value)
            if not inner:
                self._append(s, m, [])
                return False
            s.nested = {id(j): (j, j.owner) for j in inner}
            for j in inner:
                j.owner = (p, s)
                new.append(j)
            return True
        value = self.params.get(m.address, m.value) if op == "param" else m.value
        self._append(s, m, value)
        return False

    def _first(self, p: Particle, m: Message) -> Any:
        """The first step that answers a sample or observe site: a job, or a result."""
        if m.op == "observe":
            if m.masked or self.ignore_weights:
                return 0.0
            return m.dist.score(m.value, self.env)
        if m.done:  # a handler has given the value
            return 0.0 if m.masked else m.dist.score(m.value, self.env)
        return self.draws(p, m, fold(p.key, m.address))

    def _draw(self, p: Particle, m: Message, key: Key) -> Any:
        if m.proposal is None:
            return m.dist.draw(key, self.env)
        env, dist = self.env, m.dist

        def weigh(d: Draw) -> Any:
            return after(
                dist.score(d.value, env), lambda logp: Draw(d.value, logp, d.logq, d.restricted)
            )

        return after(m.proposal.draw(key, env), weigh)

    def _step(self, p: Particle, s: Strand, m: Message, step: Any, new: list[Job]) -> bool:
        """Take a job, or deliver a result; True when the strand must not be resumed now."""
        if isinstance(step, (Generate, Score)):
            s.job = step
            new.append(self._submit(step, p, s))
            return True
        s.job = None
        if isinstance(step, Draw):
            self.deliver(p, s, step)
        elif m.op == "sample" and not m.done:
            s.outcomes = step
            s.stepped = True
            return True
        else:
            self._weigh(p, s, m, m.value, float(step), 0.0)
        return self._at_barrier(p, s, m)

    def _at_barrier(self, p: Particle, s: Strand, m: Message) -> bool:
        if p.dead:
            return True
        if self.stop == "end" or (self.stop == "factor" and m.op == "sample"):
            return False
        s.stepped = True
        return True

    def deliver(self, p: Particle, s: Strand, d: Draw) -> None:
        """Answer the pending sample site of a strand with a drawn value."""
        m = s.pending
        if m is None:
            raise LmpplError("a draw was delivered to a particle that waits for none")
        value = d.value
        if isinstance(value, str):
            if type(value) is Text and value.address is None and value._ids is not None:
                value = value.placed(m.address)
            else:
                value = (
                    value.at(m.address)
                    if isinstance(value, Text)
                    else Text(value, address=m.address)
                )
        if d.restricted:
            self.restricted.add(m.address)
        self._weigh(p, s, m, value, d.logp, d.logq)

    def _weigh(
        self, p: Particle, s: Strand, m: Message, value: Any, logp: float, logq: float
    ) -> None:
        address = m.address
        if logp != logp or logp > 1e300:
            check_log_weight(logp, site=address, term="log-probability")
        logp *= m.scale
        weight = 0.0 if m.masked or self.ignore_weights else logp - logq
        s.head = Entry(s.head, m.op, address, value, logp, logq, weight, m.fingerprint())
        if address not in self.sites:
            self.sites.add(address)
        if weight == NEG_INF or (logp == NEG_INF and not m.masked and m.op == "sample"):
            self.kill(p, address, excerpt(value, 60))
        else:
            p.logw += weight

    def _factor(self, p: Particle, s: Strand, m: Message) -> bool:
        try:
            weight = check_log_weight(m.value, site=m.address) * m.scale
        except LmpplError as error:
            error.add_where(self._where(p, s))
            raise
        if m.masked or self.ignore_weights:
            weight = 0.0
        s.head = Entry(s.head, "factor", m.address, m.value, 0.0, 0.0, weight, m.fingerprint())
        if weight == NEG_INF:
            self.kill(p, m.address, excerpt(m.value, 60))
        else:
            p.logw += weight
        return self._at_barrier(p, s, m)

    def _append(self, s: Strand, m: Message, value: Any) -> None:
        s.head = Entry(s.head, m.op, m.address, value, fingerprint=m.fingerprint())

    def _plate(self, p: Particle, s: Strand, m: Message, new: list[Job]) -> bool:
        if not m.args:
            self._append(s, m, ())
            return False
        frame = s.frame
        handlers = tuple(frame.context.handlers) if frame is not None else ()
        base = s.launch
        s.branches = [
            Strand(base.branch(m.fn, item, handlers, f"{m.address}[{i}]/"), parent=s)
            for i, item in enumerate(m.args)
        ]
        for branch in list(s.branches):
            if p.dead:
                break
            self._move(p, branch, new)
        return True

    def _cached(self, p: Particle, s: Strand, m: Message, new: list[Job]) -> bool:
        key = m.fingerprint()
        if key in self.memo:
            self._append(s, m, self.memo[key])
            return False
        waiting = self.memo_waiting.setdefault(key, [])
        waiting.append((p, s))
        job = Effect(m.fn, m.args, m.kwargs or {}, None)
        s.job = job
        if len(waiting) == 1:
            new.append(self._submit(job, p, s))
        return True

    # -- results -----------------------------------------------------------------------------

    def _completed(self, p: Particle, s: Strand, job: Job, new: list[Job]) -> None:
        if s.nested is not None and id(job) in s.nested:
            inner, owner = s.nested.pop(id(job))
            inner.owner = owner
            if not s.nested:
                s.nested = None
                m = s.pending
                if m is not None:
                    self._append(s, m, [j.outcome for j in m.value])
                    self._move(p, s, new)
            return
        m = s.pending
        if m is None:
            return
        if isinstance(job, Effect):
            s.job = None
            self._effect_done(p, s, m, job, new)
            return
        if isinstance(job, Generate) and job.state.finish is None:
            s.stepped = True  # a barrier inside the string
            if job.state.logw == NEG_INF:
                self.kill(p, m.address, "")
            return
        if not self._step(p, s, m, job.step(), new):
            self._move(p, s, new)

    def _effect_done(self, p: Particle, s: Strand, m: Message, job: Effect, new: list[Job]) -> None:
        value, error = job.outcome
        if m.op == "cached":
            waiting = self.memo_waiting.pop(m.fingerprint(), [(p, s)])
            if error is None:
                self.memo[m.fingerprint()] = freeze(value)
        else:
            self.ledger.effects += 1
            waiting = [(p, s)]
        for q, t in waiting:
            if q.dead or t.pending is None:
                continue
            t.job = None
            if error is None:
                self._append(t, t.pending, freeze(value))
                self._move(q, t, new)
                continue
            policy = m.options[0] or self.on_error
            if policy == "retry" and q.retries < m.options[2]:
                q.retries += 1
                again = Effect(m.fn, m.args, m.kwargs or {}, m.options[1])
                t.job = again
                new.append(self._submit(again, q, t))
                continue
            self._fail(q, t, error, "raise" if policy == "retry" else policy)

    def all_dead(self, particles: int) -> AllParticlesDead:
        """The error of a population without weight."""
        examples = [f"{site}: {value}" for site, value in list(self.killed_values.items())[:3]]
        return AllParticlesDead(self.deaths, particles=particles, examples=examples)


def freeze_result(frame: Frame) -> Any:
    """What the program returned, made safe to share."""
    return freeze(frame.context.result)
