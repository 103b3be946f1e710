"""Which values a site's law is a function of: learned from replays of a finite program.

Each site is a function of the values drawn before it: its law, its weight, whether it exists at
all. Two replays that agree on what is known of a site's scope but differ in the site contradict
it; walking from one to the other, one value at a time and by halves, finds a value that matters,
which joins the scope. So a scope only grows, every member is a proven dependence, and replays with
values at random are repeated until `probes` of them in a row contradict nothing.

A value that matters for a share s of all assignments is then missed with probability (1 - s)^probes
about. With few enough assignments all of them are visited, and nothing is missed.

Reference: learning a function of few variables by membership queries (Blum and Langley, Selection
of relevant features, 1997; Mossel, O'Donnell and Servedio, Learning juntas, 2004).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lmppl.context import local
from lmppl.distributions import Distribution, fingerprint_of
from lmppl.errors import BadArgument
from lmppl.graphs.structure.batches import Memory
from lmppl.graphs.structure.replays import Event, Replay, listed
from lmppl.graphs.structure.rescoring import run_effect
from lmppl.handlers import condition
from lmppl.jobs import Env
from lmppl.ledger import Ledger
from lmppl.lm.load import as_models, shared
from lmppl.messages import Message
from lmppl.random import GumbelMax, fold
from lmppl.text import Text
from lmppl.weights import NEG_INF

Id = int | None
"""Of a value; None where a run does not have the site."""
Signature = tuple[Any, ...] | None
RESULT = "(return)"
"""Stands for what the program returns, as if it were a site."""


class Run(NamedTuple):
    """One replay: what was drawn, and what every site was asked with."""

    values: dict[str, Id]
    """Observed ones too: a site may be drawn in one run and observed in another."""
    signatures: dict[str, Signature]
    events: dict[str, Event]
    result: Any
    dead: bool
    """Whether its weight became zero, so that what comes later was not reached."""

    def signature(self, site: str) -> Signature:
        """None where it does not have the site."""
        return self.signatures.get(site)

    def knows(self, site: str) -> bool:
        """Whether it says something of a site: a dead run does not of later ones."""
        return not self.dead or site in self.signatures


class _Dead(BaseException):
    """Leaves a replay whose weight is zero, as a particle does."""


class Program:
    """A finite program, as a function from preferred values to a `Run`."""

    def __init__(
        self,
        program: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        lm: Any,
        observations: Mapping[str, Any] | None,
        params: Mapping[str, Any] | None = None,
        env: Env | None = None,
    ) -> None:
        """Run nothing yet."""
        self.program = condition(program, dict(observations)) if observations else program
        self.args, self.kwargs, self.params = args, dict(kwargs or {}), dict(params or {})
        models = {**local.models, **as_models(lm)}
        self.env = env or Env(models, GumbelMax(), shared)
        self.ledger = Ledger()
        self.memory = Memory(self.env, self.ledger)
        self.effects: dict[int, Any] = {}
        self.values: dict[int, Any] = {}
        """By id."""
        self.runs = 0
        self._options: dict[int, list[int]] = {}

    def options(self, law: Distribution) -> list[int]:
        """The ids of a law's values, without a model where the law lists them itself."""
        if (known := self._options.get(law.fingerprint)) is not None:
            return known
        values = listed(law)
        if values is None:
            key = ("support", law.fingerprint)
            values = [v for v, _ in self.memory.all({key: lambda: law.support(self.env)})[key]]
        ids = list(dict.fromkeys(identity(v) for v in values))
        for i, v in zip(map(identity, values), values, strict=True):
            self.values.setdefault(i, v)
        self._options[law.fingerprint] = ids
        return ids

    def run(self, wanted: Mapping[str, Id], chance: random.Random | None = None) -> Run:
        """Take the wanted values where they are possible, else the first, or one at random."""
        drawn: dict[str, Id] = {}

        def choose(message: Message) -> Any:
            op = message.op
            if op == "sample":
                ids = self.options(message.dist)
                if not ids:
                    raise _Dead
                pick = wanted.get(message.address)
                if pick is None or pick not in ids:
                    pick = chance.choice(ids) if chance else ids[0]
                drawn[message.address] = pick
                return self.values[pick]
            if op in ("effect", "cached"):
                return run_effect(message, self.effects)
            if op == "param":
                return self.params.get(message.address, message.value)
            if op == "reward":
                dist, value = message.dist, message.value
                key = ("score", dist.fingerprint, identity(value))
                return self.memory.all({key: lambda: dist.score(value, self.env)})[key]
            return message.value

        replay = _Stopping(choose, self.env.models)
        dead = False
        self.runs += 1
        try:
            replay.attempt(self.program, self.args, self.kwargs)
        except _Dead:
            dead = True
        if replay.raised is not None:
            if not self._impossible(replay.events):
                raise replay.raised
            dead = True
        for address, event in replay.events.items():
            if event.op == "observe" or event.fixed:
                drawn[address] = identity(event.value)
                self.values.setdefault(identity(event.value), event.value)
        signatures: dict[str, Signature] = {a: _signature(e) for a, e in replay.events.items()}
        if not dead:
            signatures[RESULT] = (fingerprint_of(replay.result),)
        return Run(drawn, signatures, replay.events, replay.result, dead)

    def _impossible(self, events: Mapping[str, Event]) -> bool:
        """Whether a run that raised had weight zero by then."""
        asked = {("term", _signature(e), identity(e.value)): self.term(e) for e in events.values()}
        return NEG_INF in self.memory.all(asked).values()

    def term(self, event: Event) -> Callable[[], Any]:
        """The step that gives what a site without a choice adds to the log joint."""
        if event.op in ("sample", "observe") and not event.masked:
            value = event.scored if event.op == "observe" else event.value
            return lambda: event.law.score(value, self.env)
        return lambda: event.scored if event.op == "factor" else 0.0


class _Stopping(Replay):
    """Ends where a factor is zero: what comes later may count on it."""

    def answer(self, message: Message) -> None:
        super().answer(message)
        event = self.events.get(message.address)
        if event is not None and event.op == "factor" and event.scored == NEG_INF:
            raise _Dead

    def fold(self, base: Any, op: str, address: str, value: Any, note: Any = None) -> None:
        super().fold(base, op, address, value, note)
        if op == "call" and getattr(value, "exact", None) is False:
            raise BadArgument(
                f"the nested inference {address!r} draws at random, so that its answer is no table",
                fix="nest an exact engine, such as Enumerate(), or use a sampling engine outside too",
            )


def identity(value: Any) -> int:
    """Equal for equal values of one type; a drawn text is its tokens too."""
    ids = value.token_ids if isinstance(value, Text) else None
    base = fold(
        fingerprint_of(value), type(value).__name__ if not isinstance(value, str) else "str"
    )
    return base if ids is None else fold(base, *ids.tolist())


def _signature(e: Event) -> tuple[Any, ...]:
    fixed = identity(e.value) if e.fixed else 0
    seen = identity(e.scored) if e.op == "observe" else e.scored
    return (e.op, e.inputs, seen, fixed, e.masked, e.scale)


class Scopes:
    """The scope of every site of a program, and a run for every setting of it that was seen.

    Args:
        program: what to run.
        probes: replays at random, in a row, that must contradict nothing.
        exhaustive: visit all assignments where there are at most so many.
        seed: of the values at random.
    """

    def __init__(
        self, program: Program, *, probes: int = 200, exhaustive: int = 256, seed: int = 0
    ) -> None:
        """Learn."""
        if probes < 1:
            raise BadArgument(f"probes must be at least 1, got {probes!r}", fix="write probes=64")
        self.program = program
        self.scopes: dict[str, list[str]] = {}
        self.known: dict[str, dict[tuple[Id, ...], Run]] = {}
        """By site: a run for each setting of its scope."""
        self.runs: dict[tuple[tuple[str, Id], ...], Run] = {}
        self.domains: dict[str, dict[Id, None]] = {}
        """The ids of each variable's values; None among them where some runs do not have it."""
        self.ignored: set[str] = set()
        """What is not learned, since it depends on too much."""
        self.whole = False
        """Whether all assignments were visited, so that the scopes are proven."""
        chance = random.Random(seed)
        base = self.visit({})
        for name, value in list(base.values.items()):
            for other in list(self.domains[name]):
                if other is not None and other != value:
                    self.visit({**base.values, name: other})
        quiet = 0
        while quiet < probes:
            before = self._state()
            self.visit({}, chance)
            quiet = quiet + 1 if self._state() == before else 0
        if math.prod(len(d) for d in self.domains.values()) <= exhaustive:
            names = list(self.domains)
            while True:
                before = self._state()
                for pick in itertools.product(*(list(self.domains[n]) for n in names)):
                    self.visit(dict(zip(names, pick, strict=True)))
                if self._state() == before:
                    break
            self.whole = True

    def _state(self) -> tuple[int, int, int]:
        return (
            len(self.scopes),
            sum(map(len, self.scopes.values())),
            sum(map(len, self.domains.values())),
        )

    def visit(self, wanted: Mapping[str, Id], chance: random.Random | None = None) -> Run:
        """Run, and learn from it."""
        run = self._run(wanted, chance)
        todo = [run]
        while todo:
            self._learn(todo.pop(), todo)
        return run

    def _run(self, wanted: Mapping[str, Id], chance: random.Random | None = None) -> Run:
        run = self.program.run(wanted, chance)
        key = tuple(run.values.items())
        if key in self.runs:
            return self.runs[key]
        self.runs[key] = run
        for name, event in run.events.items():
            if name in run.values:
                fresh = name not in self.domains
                domain = self.domains.setdefault(name, {})
                if event.op == "sample" and not event.fixed:
                    domain.update(dict.fromkeys(self.program.options(event.law)))
                else:
                    domain[run.values[name]] = None
                if fresh and any(name not in r.values and not r.dead for r in self.runs.values()):
                    domain[None] = None
        if not run.dead:
            for name, domain in self.domains.items():
                if name not in run.values:
                    domain[None] = None
        return run

    def _learn(self, run: Run, todo: list[Run]) -> None:
        for site in run.signatures:
            if (
                site not in self.scopes and site not in self.ignored
            ):  # earlier runs say that they do not have it
                self.scopes[site], self.known[site] = [], {}
                for old in list(self.runs.values()):
                    self._compare(site, old, todo)
        for site in list(self.scopes):
            self._compare(site, run, todo)

    def _compare(self, site: str, run: Run, todo: list[Run]) -> None:
        if not run.knows(site):
            return
        while True:
            key = tuple(run.values.get(v) for v in self.scopes[site])
            other = self.known[site].setdefault(key, run)
            if other.signature(site) == run.signature(site):
                return
            self.scopes[site].append(self._cause(site, other, run, todo))
            known = list(self.known[site].values())
            self.known[site] = {}
            for old in [*known, *self.runs.values()]:
                if old.knows(site):
                    at = tuple(old.values.get(v) for v in self.scopes[site])
                    self.known[site].setdefault(at, old)

    def _cause(self, site: str, a: Run, b: Run, todo: list[Run]) -> str:
        """A variable on the way from a to b whose change changes the site."""
        inside = set(self.scopes[site])
        names = list(dict.fromkeys([*b.values, *a.values]))
        differ = [
            n for n in names if n != site and n not in inside and a.values.get(n) != b.values.get(n)
        ]
        if not differ:
            raise BadArgument(
                f"site {site!r} differs between two runs with the same values",
                why="the program must be a function of its sites and arguments",
                fix="draw everything that is random by sample, or run it in effect(...)",
            )
        low, high = 0, len(differ)
        while high - low > 1:
            middle = (low + high) // 2
            wanted = {**a.values, **{n: b.values.get(n) for n in differ[:middle]}}
            between = self._run({n: v for n, v in wanted.items() if v is not None})
            todo.append(between)
            if between.knows(site) and between.signature(site) == a.signature(site):
                low = middle
            else:
                high = middle
        return differ[high - 1]
