"""How each kind of message is answered: what a site does to its particle.

| message | job | tape | weight |
| --- | --- | --- | --- |
| sample | draw (and score, with a proposal) | value | log p - log q |
| observe | score | value | log p |
| factor | - | the number | the number |
| reward (of a potential) | score | the score | 0 |
| effect, cached | beside the scheduler | frozen result | 0 |
| plate | those of its branches | tuple of results | those of its branches |
| jobs (nested inference) | the inner jobs | their outcomes | 0 |
| deterministic, param | - | value | 0 |

A particle of weight zero is killed at once: it computes nothing more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, Literal

from lmppl.borders import border_warning, site_of
from lmppl.distributions import after, score_or_zero
from lmppl.errors import LmpplError, excerpt
from lmppl.inference.machine.faults import Faults
from lmppl.inference.machine.particles import Particle
from lmppl.jobs import Batch, Draw, Effect, Env, Generate, Job, Score
from lmppl.ledger import Ledger
from lmppl.messages import Message
from lmppl.messengers import placed
from lmppl.proposals import check_proposal
from lmppl.random import fold
from lmppl.strands import Strand
from lmppl.text import Text
from lmppl.trace import Entry
from lmppl.types import Key
from lmppl.values import freeze, memo_key
from lmppl.weights import NEG_INF, check_log_weight

Stop = Literal["site", "factor", "end"]
_new = tuple.__new__
"""Makes a named tuple in half the time of its own constructor."""


class Answers(Faults, ABC):
    """The part of a `Machine` that answers messages; what it needs of the rest is below."""

    env: Env
    ledger: Ledger
    stop: Stop
    conditions: dict[str, Any]
    params: dict[str, Any]
    used: set[str]
    sites: set[str]
    restricted: set[str]
    ignore_weights: bool
    memo: dict[Hashable, Any]
    memo_waiting: dict[Hashable, list[tuple[Particle, Strand]]]
    usual: bool
    """Whether sites are drawn from their distributions, with nothing between."""
    _draws: Callable[[Particle, Message, Key], Any]

    @property
    def draws(self) -> Callable[[Particle, Message, Key], Any]:
        """How a sample site is answered; an engine that lists values replaces it."""
        return self._draws

    @draws.setter
    def draws(self, answer: Callable[[Particle, Message, Key], Any]) -> None:
        self._draws, self.usual = answer, answer == self.draw_site

    @abstractmethod
    def _submit(self, job: Job, p: Particle, s: Strand) -> Job:
        """Make a job this strand's."""

    @abstractmethod
    def _move(self, p: Particle, s: Strand, new: list[Job]) -> None:
        """Run a strand on, collecting the jobs it starts."""

    @abstractmethod
    def _graph(self, p: Particle, s: Strand, m: Message, new: list[Job]) -> bool:
        """Start a graph; True when the strand must not be resumed now."""

    @abstractmethod
    def _join(self, p: Particle, parent: Strand) -> bool:
        """End a plate whose branches are done; whether the parent may go on at once."""

    def _begin(self, p: Particle, s: Strand, m: Message, new: list[Job]) -> bool:
        """Start to answer a message; True when the strand must not be resumed now."""
        op = m.op
        if op == "sample":
            address = m.address
            if m.done:  # a handler has given the value
                return self._step(p, s, m, self._score(m), new)
            if address in self.conditions:
                m.op, m.proposal = "observe", None
                m.value = placed(self.conditions[address], address)
                self.used.add(address)
                return self._step(p, s, m, self._score(m), new)
            return self._step(p, s, m, self.draws(p, m, fold(p.key, address)), new)
        if op == "observe":
            return self._step(p, s, m, self._score(m), new)
        if op == "reward":
            return self._step(p, s, m, m.dist.score(m.value, self.env), new)
        if op == "effect":
            job = Effect(m.fn, m.args, m.kwargs or {}, m.options[1], m.address)
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

    def _score(self, m: Message) -> Any:
        """The first step that scores a given value."""
        if m.op == "observe" and (m.masked or self.ignore_weights):
            return 0.0
        return m.dist.score(m.value, self.env)

    def draw_site(self, p: Particle, m: Message, key: Key) -> Any:
        """The usual answer: a draw of the law, or of its proposal with the weight that corrects it."""
        if m.proposal is None:
            return m.dist.draw(key, self.env)
        env, dist = self.env, m.dist
        check_proposal(dist, m.proposal, env, m.address)

        def weigh(d: Draw) -> Any:
            return after(
                score_or_zero(dist, d.value, env),
                lambda logp: Draw(d.value, logp, d.logq, d.restricted),
            )

        return after(m.proposal.draw(key, env), weigh)

    def _step(self, p: Particle, s: Strand, m: Message, step: Any, new: list[Job]) -> bool:
        """Take a job, or deliver a result; True when the strand must not be resumed now."""
        kind = type(step)
        if kind is Draw:
            s.job = None
            self.deliver(p, s, step)
            if self.stop == "end":  # the most travelled way, before the general question
                return p.dead
        elif kind is Generate or kind is Score or kind is Batch:
            s.job = step
            new.append(self._submit(step, p, s))
            return True
        elif m.op == "reward":
            s.job = None
            self._append(s, m, float(step))
            return False
        elif m.op == "sample" and not m.done:
            s.job = None
            s.outcomes = step
            s.stepped = True
            return True
        else:
            s.job = None
            self.deliver(p, s, Draw(m.value, float(step), 0.0))
        return self._at_barrier(p, s, m)

    def _at_barrier(self, p: Particle, s: Strand, m: Message) -> bool:
        if p.dead:
            return True
        if self.stop == "end" or (self.stop == "factor" and m.op == "sample"):
            return False
        s.stepped = True
        return True

    def deliver(self, p: Particle, s: Strand, d: Draw) -> None:
        """Answer the pending site of a strand: the value on the tape, its weight in the particle's."""
        m = s.pending
        if m is None:
            raise LmpplError("a draw was delivered to a particle that waits for none")
        value, logp, logq, restricted = d
        op, address = m.op, m.address
        if op == "sample":
            if type(value) is Text:
                if value.address != address or value._spans is not None:
                    fresh = value.address is None and value._origin[0] is not None
                    value = value.placed(address) if fresh else value.at(address)
            elif isinstance(value, str):
                value = Text(value, address=address)
            if restricted:
                self.restricted.add(address)
        if logp != logp or logp > 1e300:
            check_log_weight(logp, site=address, term="log-probability")
        if m.scale != 1.0 and not m.masked:
            logp *= m.scale
        # a masked site that is latent keeps its law; a masked observation arrives as 0
        weight = 0.0 if self.ignore_weights else logp - logq
        plain = op == "sample" and m.proposal is None  # mostly: one call less
        mark = m.dist.fingerprint if plain else m.fingerprint()
        s.head = _new(Entry, (s.head, op, address, value, logp, logq, weight, mark, None, None))
        if address not in self.sites:
            self.sites.add(address)
            self._meet(m, value)
        if weight == NEG_INF or (logp == NEG_INF and not m.masked and op == "sample"):
            self.kill(p, address, excerpt(value, 60))
        else:
            p.logw += weight

    def _meet(self, m: Message, value: Any) -> None:
        """The first value of an address: see whether its prompt ends where a token does."""
        site = site_of(m.address)
        if site not in self.borders:
            seen = value if m.op == "observe" else None
            self.borders[site] = border_warning(site, m.dist, seen, self.env)

    def _factor(self, p: Particle, s: Strand, m: Message) -> bool:
        value, address = m.value, m.address
        weight = value
        if type(value) is not float or not -1e300 < value < 1e300:
            weight = check_log_weight(value, site=address)
        # a bool is a constraint, and a potential takes logarithms itself
        if m.origin is None and value is not True and value is not False:
            seen = self.factors.get(m.name) or self.factors.setdefault(m.name, [0, 0, 0])
            if weight > 1.0 or weight < 0.0:
                seen[2] += 1
            else:
                seen[0] += 1
                if weight > 0.0:
                    seen[1] += 1
        weight *= m.scale
        if m.masked or self.ignore_weights:
            weight = 0.0
        s.head = _new(Entry, (s.head, "factor", address, value, 0.0, 0.0, weight, 0, None, None))
        if weight == NEG_INF:
            self.kill(p, address, excerpt(value, 60))
        else:
            p.logw += weight
        return self._at_barrier(p, s, m)

    def _append(self, s: Strand, m: Message, value: Any) -> None:
        s.head = Entry(s.head, m.op, m.address, value, fingerprint=m.fingerprint())

    def _plate(self, p: Particle, s: Strand, m: Message, new: list[Job]) -> bool:
        if m.grow is not None:
            return self._graph(p, s, m, new)
        if not m.args:
            self._append(s, m, ())
            return False
        base = s.launch
        s.branches = [
            Strand(base.branch(m.fn, item, m.options, f"{m.address}[{i}]/"), parent=s)
            for i, item in enumerate(m.args)
        ]
        s.joining = True  # branches that end at once must not resume the parent from inside
        for branch in tuple(s.branches):
            if not p.dead:
                self._move(p, branch, new)
        s.joining = False
        return p.dead or not all(b.done for b in s.branches) or not self._join(p, s)

    def _cached(self, p: Particle, s: Strand, m: Message, new: list[Job]) -> bool:
        key = memo_key(m.fn, m.args)
        if key in self.memo:
            self._append(s, m, self.memo[key])
            return False
        waiting = self.memo_waiting.setdefault(key, [])
        waiting.append((p, s))
        job = Effect(m.fn, m.args, m.kwargs or {}, None, m.address)
        job.key = key
        s.job = job
        if len(waiting) == 1:
            new.append(self._submit(job, p, s))
        return True

    def _completed(self, p: Particle, s: Strand, job: Job, new: list[Job]) -> None:
        if type(job) is Generate and s.nested is None:
            m = s.pending
            if m is None:
                return
            drawn = job.drawn
            if drawn is None or job.then is not None:
                if not job.finished:
                    s.stepped = True  # a barrier inside the string
                    return
                step = job.step()
                if type(step) is not Draw:
                    if not self._step(p, s, m, step, new):
                        self._move(p, s, new)
                    return
                drawn = step
            s.job = None
            self.deliver(p, s, drawn)
            if self.stop == "site":
                s.stepped = True
            else:
                self._move(p, s, new)
            return
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
            if type(job) is Effect and job.key is not None:  # cancelled; others wait for its value
                m = Message.of("cached", "", job.site, job.fn, job.args, None, (None, None, 0))
                self._effect_done(p, s, m, job, new)
            return
        if isinstance(job, Effect):
            self._effect_done(p, s, m, job, new)
            return
        if not self._step(p, s, m, job.step(), new):
            self._move(p, s, new)

    def _effect_done(self, p: Particle, s: Strand, m: Message, job: Effect, new: list[Job]) -> None:
        value, error = job.outcome
        if m.op == "cached":
            waiting = self.memo_waiting.pop(job.key, [(p, s)])
            if error is None:
                self.memo[job.key] = freeze(value)
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
            if isinstance(error, MemoryError) or not isinstance(error, Exception):
                raise error  # an interrupt or an exit is nobody's to handle
            policy = m.options[0] or self.on_error
            if policy == "retry" and job.tries < m.options[2]:
                again = Effect(m.fn, m.args, m.kwargs or {}, m.options[1], m.address)
                again.key, again.tries = job.key, job.tries + 1
                t.job = again
                new.append(self._submit(again, q, t))
                continue
            if policy == "retry":
                policy = "raise" if self.on_error == "retry" else self.on_error
            self._fail(q, t, error, policy)
