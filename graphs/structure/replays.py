"""Runs of a program in which every value is given: no model is asked, nothing is drawn.

`Replay` is a plain call of a program whose sites take the values that a function `choose` gives
them, and that keeps, per site, the law and the arguments it was asked with. Comparing two replays
that differ in one value shows which sites read it: that is how `graph_of` finds edges, how
`lmppl.graphs.factors.program_tables` finds factors, and how a changed program is rescored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmppl.choice import Choice
from lmppl.distributions import Categorical, Distribution, fingerprint_of
from lmppl.eager import EagerContext
from lmppl.errors import GraphError
from lmppl.graphs.thoughts.record import is_recorded
from lmppl.messages import Message
from lmppl.messengers import placed
from lmppl.numpyro import NumPyro, plain
from lmppl.random import fold
from lmppl.strings import StringDistribution
from lmppl.text import Text, concat
from lmppl.values import freeze
from lmppl.weights import NEG_INF, check_log_weight

KINDS = {
    "sample": "latent",
    "observe": "observed",
    "factor": "factor",
    "deterministic": "deterministic",
    "cached": "deterministic",
    "reward": "deterministic",
    "effect": "effect",
    "param": "param",
}
"""What a site is in the graph."""
ENDLESS = 100_000
"""Sites after which a replay is given up: on values that no model drew, a loop may have no end."""
MOST_OTHERS = 16
"""How many other values of a site are tried."""


class RunsAway(BaseException):
    """Leaves a replay that has too many sites; no program catches it by mistake."""


@dataclass
class Event:
    """One site of a replay."""

    op: str
    address: str
    law: Any
    """The distribution of a sample, an observation or a reward; the function of an effect."""
    value: Any
    """What the program got."""
    inputs: int
    """Fingerprint of all that the site was asked with: equal where its law is."""
    scored: Any = None
    """What is scored: an observation's value, a factor's weight."""
    masked: bool = False
    scale: float = 1.0
    fixed: bool = False
    """Whether a handler has given a latent site its value."""

    @property
    def prompt(self) -> str | None:
        """The text before a string site."""
        return prompt_of(self.law)


class Replay(EagerContext):
    """A plain call whose values come from `choose(message)`.

    Args:
        choose: gives the value of a sample, effect, reward or parameter, and may replace that of
            an observation or a derived value, which stand in `message.value`.
        models: language models by name, for laws that have to be listed.
        most: sites after which `attempt` gives up.
    """

    def __init__(
        self,
        choose: Callable[[Message], Any],
        models: Mapping[str, Any] | None = None,
        most: int = ENDLESS,
    ) -> None:
        """Start with no event."""
        super().__init__(0, None, dict(models or {}))
        self.choose = choose
        self.most = most
        self.events: dict[str, Event] = {}
        self.plates: dict[str, int] = {}
        """Items of each plate with branches."""
        self.raised: Exception | None = None
        self.endless = False
        """Whether it was given up."""

    def answer(self, message: Message) -> None:
        """Keep what the site was asked with, and give it its value."""
        op = message.op
        if op == "plate":
            if message.grow is None:
                self.plates[message.address] = len(message.args)
            super().answer(message)
            return
        if op not in KINDS or (op == "deterministic" and is_recorded(message.value)):
            super().answer(message)
            return
        event = Event(op, message.address, message.dist, message.value, _inputs(message))
        event.masked, event.scale = message.masked, message.scale
        if op == "factor":
            weight = check_log_weight(message.value, site=message.address) * message.scale
            event.scored = 0.0 if message.masked else weight
        else:
            event.fixed = message.fixed
            event.scored = message.value if op == "observe" else None
            if op in ("effect", "cached"):
                event.law = message.fn
            if not message.fixed:
                value = self.choose(message)
                if isinstance(value, str) and getattr(value, "address", None) != message.address:
                    value = placed(value, message.address)
                message.value = event.value = value
        self.events[message.address] = event
        if len(self.events) > self.most:
            raise RunsAway
        self._record(message, 0.0)
        message.done = True

    def attempt(self, program: Callable[..., Any], args: Any, kwargs: Any) -> Replay:
        """Run to the end, or to an exception of the program, which is kept."""
        try:
            self.enter(program, args, kwargs)
        except Exception as error:
            self.raised = error
        except RunsAway:
            self.endless = True
            self.raised = GraphError(
                f"the program has not ended after {self.most:,} sites",
                why="on these values one of its loops does not end",
                fix="end the loop after a number of rounds, or give the values of a run: trace=...",
            )
        return self

    def _warn_unmet(self, fn: Any) -> None:
        """A branch that is not taken is no mistake here."""


def _inputs(message: Message) -> int:
    """Fingerprint of law, data and arguments, without the proposal: it changes no target."""
    if message.op == "sample":
        return int(message.dist.fingerprint)
    if message.op == "param":
        return 0
    base = message.fingerprint()
    if message.op == "observe":
        return fold(base, int(message.masked))
    return base


@dataclass
class Held:
    """Values by address, kept from replay to replay; one may be replaced.

    Called with a message, it gives the kept value, or keeps a placeholder for a new site.
    """

    values: dict[str, Any] = field(default_factory=dict)
    changed: tuple[str, Any] | None = None
    derive: bool = False
    """Whether derived values are taken as the program computes them, and kept."""
    unknown: Any = None
    """What stands for the result of an effect; a text of its own when left out."""

    def __call__(self, message: Message) -> Any:
        """The value of a site."""
        address = message.address
        if self.changed is not None and address == self.changed[0]:
            return self.changed[1]
        if address in self.values and not (
            self.derive and message.op in ("deterministic", "observe")
        ):
            return self.values[address]
        value = self.values[address] = placed(self._new(message), address)
        return value

    def _new(self, message: Message) -> Any:
        if message.op == "sample":
            return placeholder(message.dist, message.address)
        if message.op in ("effect", "cached"):
            return Text(mark(message.address)) if self.unknown is None else self.unknown
        return 0.0 if message.op == "reward" else message.value


def mark(address: str) -> str:
    """The text that stands for a value nobody knows yet."""
    return f"⟨{address}⟩"


def placeholder(law: Distribution, address: str) -> Any:
    """A value that a law may have, without asking a model."""
    values = listed(law)
    if values:
        return values[0]
    part = next(iter(law.parts()))
    if isinstance(part, StringDistribution):
        return Text(mark(address))
    if isinstance(part, NumPyro):
        return plain(part.dist.mean)
    return part.sample(0)


def listed(law: Distribution) -> list[Any] | None:
    """The values of a finite law as it lists them without a model; None where it does not."""
    found: dict[int, Any] = {}
    for part in law.parts():
        if isinstance(part, Categorical):
            pairs = zip(part.values, part.log_weights, strict=True)
            values = [v for v, lw in pairs if lw > NEG_INF]
        elif isinstance(part, Choice):
            values = [Text(v) if isinstance(v, str) else v for v in part.values]
        elif isinstance(part, NumPyro) and part.finite:
            values = [v for v, _ in part.support(_NO_ENV)]
        else:
            return None
        found.update((fingerprint_of(v), v) for v in values)
    return list(found.values())


_NO_ENV: Any = None
"""A finite NumPyro law needs no model to list its values."""


def others(event: Event, hints: Sequence[Any] = ()) -> list[Any]:
    """Values to try in place of the one that a site has; hints of its type are tried too."""
    found: dict[int, Any] = {}
    finite = listed(event.law) if event.op == "sample" else None
    if finite is not None:
        found.update((fingerprint_of(v), v) for v in finite)
    else:
        parts = event.law.parts() if event.op == "sample" else ()
        given = [v for part in parts for v in listed(part) or ()]
        more = [h for h in hints if _alike(h, event.value)]
        candidates = [*_altered(event.value, event.address), *given, *more]
        found.update((fingerprint_of(v), v) for v in candidates)
    found.pop(fingerprint_of(event.value), None)
    return list(found.values())[:MOST_OTHERS]


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return isinstance(a, str) and isinstance(b, str)
    return not isinstance(b, bool) and isinstance(a, (int, float)) and isinstance(b, (int, float))


def _altered(value: Any, address: str) -> Iterable[Any]:
    if isinstance(value, str):
        shape = "".join(_next(c) for c in value)
        if shape != value and not value.startswith("⟨"):
            yield Text(shape)  # of the same shape: what is parsed still parses
        yield Text(f"⟨other {address}⟩")
        yield Text("")
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield value + 1
        yield value * 0.5 if isinstance(value, float) else value - 1
    elif isinstance(value, tuple) and value:
        for other in _altered(value[0], address):
            yield (other, *value[1:])
        for other in _altered(value[-1], address):
            yield (*value[:-1], other)
    elif isinstance(value, Mapping) and value:
        key = next(iter(value))
        for other in _altered(value[key], address):
            yield freeze({**value, key: other})
    elif hasattr(value, "dtype") and getattr(value, "shape", ()) != ():
        yield value + 1


def _next(c: str) -> str:
    """Another character of the same class."""
    if c.isdigit() and c.isascii():
        return str((int(c) + 1) % 10)
    if c.isalpha() and c.isascii():
        base = ord("a") if c.islower() else ord("A")
        return chr(base + (ord(c) - base + 1) % 26)
    return c


def prompt_of(law: Any) -> str | None:
    """The text that a string law continues; the contents of a chat, one a line."""
    if not isinstance(law, Distribution):
        return None
    for part in law.parts():
        text = getattr(part, "prompt", None)
        if isinstance(text, str):
            return text
        messages = getattr(part, "messages", None)
        if messages:
            pieces: list[str] = []
            for role, content in messages:
                pieces += [f"{role}: ", content, "\n"]
            return concat(tuple(pieces))
    return None


def constants_of(program: Any) -> list[Any]:
    """Short texts and numbers in the code of a program: it may compare a value with them."""
    while hasattr(program, "fn"):
        program = program.fn
    found: dict[Any, None] = {}
    codes = [getattr(program, "__code__", None)]
    while codes:
        code = codes.pop()
        for constant in getattr(code, "co_consts", ()):
            if isinstance(constant, str) and 0 < len(constant) <= 40:
                found.setdefault(Text(constant))
            elif isinstance(constant, (int, float)) and not isinstance(constant, bool):
                found.update(dict.fromkeys((constant, constant + 1, constant - 1)))
            elif hasattr(constant, "co_consts"):
                codes.append(constant)
    return list(found)
