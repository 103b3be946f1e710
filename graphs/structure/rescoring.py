"""The log joint of a program at given values, kept up to date: only what changed is scored again.

    log γ(values) = Σ_sites log p(value | what the site was asked with) + Σ factors

A site is asked again for its score only if its prompt (its law) or its value differs from all that
were scored before. Everything else of a change is a replay of the program, which asks no model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lmppl.arguments import check_instances, check_mapping
from lmppl.context import local
from lmppl.distributions import fingerprint_of
from lmppl.errors import BadArgument, UnusedCondition
from lmppl.graphs.structure.batches import Memory
from lmppl.graphs.structure.replays import Event, Replay
from lmppl.handlers import condition
from lmppl.jobs import Env
from lmppl.ledger import Ledger
from lmppl.lm.load import as_models, shared
from lmppl.messages import Message
from lmppl.outside import run_here
from lmppl.random import GumbelMax, fold
from lmppl.text import Text
from lmppl.values import freeze
from lmppl.weights import check_log_weight, total


@dataclass(frozen=True)
class Scored:
    """The log joint after a change."""

    log_joint: float
    terms: Mapping[str, float]
    """Per site: log p, or the weight of a factor."""
    rescored: tuple[str, ...]
    """The sites that were asked for a new score, in order."""
    values: Mapping[str, Any]
    """All values, derived ones and results of effects included."""
    result: Any = None
    """What the program returns."""


class LogJoint:
    """A program's log joint, by change.

    Args:
        program: the function.
        args: its arguments.
        lm: its language model, or models by name.
        observations: values of sample sites to condition on.
        kwargs: keyword arguments of the program.

    `ledger` counts what was asked of models. An effect runs once for each new list of arguments.

    >>> from lmppl import Bernoulli, program, sample
    >>> @program
    ... def two():
    ...     a = sample("a", Bernoulli(0.5))
    ...     sample("b", Bernoulli(0.9 if a else 0.2))
    ...     sample("c", Bernoulli(0.3))
    >>> joint = LogJoint(two)
    >>> joint.set({"a": True, "b": True, "c": False}).rescored
    ('a', 'b', 'c')
    >>> joint.set({"c": True}).rescored
    ('c',)
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *args: Any,
        lm: Any = None,
        observations: Mapping[str, Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Score nothing yet."""
        check_mapping("LogJoint", observations=observations, kwargs=kwargs)
        self.program = condition(program, dict(observations)) if observations else program
        self.args, self.kwargs = args, dict(kwargs or {})
        self.models = {**local.models, **as_models(lm)}
        self.ledger = Ledger()
        self.memory = Memory(Env(self.models, GumbelMax(), shared), self.ledger)
        self.values: dict[str, Any] = {}
        """Of the sample sites, as set."""
        self.effects: dict[int, Any] = {}

    def set(self, values: Mapping[str, Any]) -> Scored:
        """Change the values of some sample sites, and score.

        Raises:
            BadArgument: a site has no value, for one that exists only since the change.
            UnusedCondition: a value for a site that the program does not have.
        """
        check_instances("LogJoint.set", Mapping, "a mapping from site to value", values=values)
        given = {**self.values, **values}
        run = Replay(lambda message: self._value(message, given), self.models)
        run.attempt(self.program, self.args, self.kwargs)
        if run.raised is not None:
            raise run.raised
        sites = {a: e for a, e in run.events.items() if e.op in ("sample", "observe")}
        latent = {a for a, e in sites.items() if e.op == "sample"}
        if unknown := [a for a in values if a not in latent]:
            raise UnusedCondition(unknown, sorted(latent))
        keys = {a: _key(e) for a, e in sites.items()}
        known = set(self.memory.found)
        asked = {keys[a]: _score(e, self.memory.env) for a, e in sites.items() if not _silent(e)}
        found = self.memory.all(asked)
        terms: dict[str, float] = {}
        rescored = []
        for a, e in run.events.items():
            if e.op == "factor":
                terms[a] = e.scored
            elif a in sites:
                if _silent(e):
                    terms[a] = 0.0
                    continue
                logp = check_log_weight(found[keys[a]], site=a, term="log-probability")
                terms[a] = logp * (1.0 if e.masked else e.scale)
                if keys[a] not in known:
                    rescored.append(a)
        self.values = {a: v for a, v in given.items() if a in latent}
        everything = {a: e.value for a, e in run.events.items() if e.op != "factor"}
        return Scored(total(terms.values()), terms, tuple(rescored), everything, run.result)

    def _value(self, message: Message, given: Mapping[str, Any]) -> Any:
        address, op = message.address, message.op
        if op == "sample":
            if address not in given:
                raise BadArgument(
                    f"site {address!r} has no value",
                    why="it exists for these values of the other sites"
                    if self.values
                    else "the log joint is that of all sample sites",
                    fix=f'write set({{"{address}": value, ...}})',
                )
            return given[address]
        if op in ("effect", "cached"):
            return run_effect(message, self.effects)
        if op == "reward":
            key = message.dist.fingerprint, fingerprint_of(message.value)
            return self.memory.all({key: _score_of(message, self.memory.env)})[key]
        return message.value


def run_effect(message: Message, memory: dict[int, Any]) -> Any:
    """The result of an effect, run once for each function and arguments."""
    key = message.fingerprint()
    if key not in memory:
        timeout = message.options[1] if message.options else None
        memory[key] = freeze(
            run_here(message.fn, message.args, message.kwargs or {}, timeout, message.address)
        )
    return memory[key]


def _silent(event: Event) -> bool:
    return event.op == "observe" and event.masked


def _score_of(message: Message, env: Env) -> Callable[[], Any]:
    dist, value = message.dist, message.value
    return lambda: dist.score(value, env)


def _scored_value(event: Event) -> Any:
    return event.scored if event.op == "observe" else event.value


def _score(event: Event, env: Env) -> Callable[[], Any]:
    return lambda: event.law.score(_scored_value(event), env)


def _key(event: Event) -> int:
    """Equal for equal laws and values; a drawn text is scored by its own tokens."""
    value = _scored_value(event)
    ids = value.token_ids if isinstance(value, Text) else None
    own = 0 if ids is None else fold(int(value.scheme or 0), *ids.tolist())
    return fold(int(event.law.fingerprint), fingerprint_of(value), own)
