"""Potentials: what a score does to the target, declared.

    rewarded = potentials.apply(program, Prefix(prm, at="step*", link="ratio"))

| potential | target of the wrapped program |
| --- | --- |
| `Factor(score)` | p · Π_t ψ(r_t): once per step |
| `Prefix(score)` | p · ψ(r_T): each step multiplies by ψ_t / ψ_{t-1}, ψ_0 = 1, so it counts once |
| `Outcome(score)` | p · ψ(score of what the program returns): once, at the end |
| `Value(score)` | p: it only directs, as a guide, `SMC(guide=Guide.value(...))` |

r_t is the score of the steps up to t, ψ a link with a temperature (`lmppl.links`). A potential is a
handler: `apply` wraps a program in it, or `with Prefix(...):` stands around some sites of a program
(made there, not shared), and every engine runs the result unchanged. After each step it leaves two entries in the trace:
`step:prefix:score`, the number of the reward model, and `step:prefix`, the log-weight. A particle
that forks later replays them, so no step is ever scored twice in one lineage.

ψ = 0 ends the run with weight zero. In a `plate` each branch is a sequence of steps of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from lmppl.context import local
from lmppl.distributions import after, gather
from lmppl.eager import EagerContext
from lmppl.errors import BadArgument, excerpt
from lmppl.jobs import Env, Step
from lmppl.links import Link, check_aggregate, check_link, formula, log_psi
from lmppl.messages import Message
from lmppl.messengers import Handler
from lmppl.program import plain_key
from lmppl.rewards import Reward
from lmppl.steps import STEPS, as_patterns, backwards, matches, shown
from lmppl.trace import Entry
from lmppl.values import freeze
from lmppl.weights import NEG_INF

__all__ = ["Factor", "Outcome", "Potential", "Prefix", "Value", "apply"]

VIEWS = ("text", "steps", "last")


class Past(NamedTuple):
    """The steps before this one, and their scores."""

    values: tuple[Any, ...] = ()
    scores: tuple[float, ...] = ()
    entry: Entry | None = None
    """The last entry of the step, to find the place again."""


class Potential(Handler):
    """A score with a declared meaning.

    Args:
        score: a `Reward`, or a function of the text so far.
        at: names or addresses of the steps, `*` and `?` are wild: "step*", or several. Every
            sample site with a text as its value when left out; observed sites count only where
            `at` names them.
        link: how a score becomes ψ; there is no default.
        temperature: T; ψ is taken to the power 1/T.
        clip: scores are moved into [clip, 1 - clip] (probabilities only).
        of: what the score sees: the "text" of the steps joined, the "steps" as a tuple, or the
            "last" one.
        name: in the trace and in `target()`.
    """

    kind = "potential"
    telescopes = False

    def __init__(
        self,
        score: Any,
        *,
        at: str | Sequence[str] | None = None,
        link: Link | None = None,
        temperature: float = 1.0,
        clip: float = 0.0,
        of: str = "text",
        name: str | None = None,
    ) -> None:
        """Check what is declared."""
        super().__init__(None)
        kind = type(self).__name__
        self.reward = Reward.of(score)
        self.link = check_link(kind, link, temperature, clip, self.telescopes)
        self.temperature, self.clip = float(temperature), float(clip)
        self.at = as_patterns(kind, at)
        if of not in VIEWS:
            raise BadArgument(f'{kind}: of must be "text", "steps" or "last", got {of!r}')
        self.of = of
        self.name = name or self.kind

    def __repr__(self) -> str:
        inner = "" if self.fn is None else f", around {self.fn!r}"
        return f"{type(self).__name__}({self.reward.name}{shown(self.at)}{inner})"

    def psi(self, score: float, where: str = "") -> float:
        """log ψ of a score."""
        return log_psi(self.link, score, self.temperature, self.clip, where)

    def formula(self, t: str) -> str:
        """ψ in words, at step t."""
        return formula(self.link, f"{self.reward.name}_{t}", self.temperature)

    def term(self) -> str:
        """What it multiplies the target by, in words."""
        raise NotImplementedError

    def seen(self, values: Sequence[Any]) -> Any:
        """What the reward model is asked about."""
        if self.of == "steps":
            return tuple(values)
        if self.of == "last":
            return values[-1]
        return "".join(map(str, values))

    def _ask(self, address: str, given: Any) -> Message:
        return self._message("reward", f"{address}:score", given, self.reward)

    def _message(self, op: str, address: str, value: Any, dist: Any = None) -> Message:
        message = Message(op, self.name, address, dist, value)
        message.origin = self
        return message


class StepPotential(Potential):
    """A potential that acts after each step."""

    def __init__(self, score: Any, **declared: Any) -> None:
        """Nothing has happened yet."""
        super().__init__(score, **declared)
        self._past = Past()
        self._start: Entry | None = None
        """The last entry before it was entered: earlier steps belong to others."""

    def __enter__(self) -> Any:
        if local.active is not None:
            self._start = local.active.mark()
        return super().__enter__()

    def process(self, message: Message) -> None:
        """Follow the steps."""
        if message.op in STEPS and matches(message, self.at):
            message.follow = (*message.follow, self._after(message))

    def _after(self, message: Message) -> Generator[Message, None, None]:
        value = message.value
        if self.at is None and not isinstance(value, str):
            return
        context = local.active
        if context is None:
            return
        own = f"{message.address}:{self.name}"
        past = self._recall(context.mark(), message.address)
        values = (*past.values, value)
        asked = self._ask(own, self.seen(values))
        yield asked
        scores = (*past.scores, float(asked.value))
        yield self._message("factor", own, self.weight(scores, own))
        self._past = Past(values, scores, context.mark())

    def weight(self, scores: Sequence[float], where: str) -> float:
        """The log-weight of the newest step."""
        raise NotImplementedError

    def _recall(self, head: Entry | None, address: str) -> Past:
        """The past of a step, from the tape: the handler of a new frame has seen nothing."""
        met: list[Entry] = []
        for entry in backwards(head, self._start):
            if entry is self._past.entry:
                return self._past
            met.append(entry)
        met.reverse()
        values: list[Any] = []
        scores: list[float] = []
        at: dict[str, Any] = {}
        ending = f":{self.name}:score"
        for entry in met:
            if entry.op in STEPS:
                at[entry.address] = entry.value
            elif entry.op == "reward" and entry.address.endswith(ending):
                step = entry.address[: -len(ending)]
                if step in at and step != address:
                    values.append(at[step])
                    scores.append(entry.value)
        return Past(tuple(values), tuple(scores))

    def fresh(self) -> Handler:
        """A copy that has seen nothing."""
        new = super().fresh()
        new._past, new._start = Past(), None  # type: ignore[attr-defined]
        return new


class Factor(StepPotential):
    """Multiplies the target once per step: p · Π_t ψ(r_t).

    >>> from lmppl import Uniform, program, sample
    >>> @program
    ... def coin():
    ...     return sample("side", Uniform(["heads", "tails"]))
    >>> biased = apply(coin, Factor(lambda text: 0.9 if text == "heads" else 0.1, link="probability"))
    >>> from lmppl.inference import Enumerate, infer
    >>> round(infer(biased, engine=Enumerate()).marginal()["heads"], 6)
    0.9
    """

    kind = "factor"

    def weight(self, scores: Sequence[float], where: str) -> float:
        """log ψ(r_t)."""
        return self.psi(scores[-1], where)

    def term(self) -> str:
        """The product over the steps."""
        return f"Π_t {self.formula('t')}{shown(self.at)}"


class Aggregated(StepPotential):
    """A potential of the scores of all steps so far."""

    def __init__(
        self, score: Any, *, aggregate: str | Callable[[Any], float] = "last", **declared: Any
    ) -> None:
        """As `Potential`, and `aggregate`: "last", "min", "prod", "mean" of the steps' scores."""
        super().__init__(score, **declared)
        self.aggregate = aggregate
        self._pool = check_aggregate(type(self).__name__, aggregate)

    def total(self, scores: Sequence[float], where: str = "") -> float:
        """log ψ_t; 0 before the first step."""
        return self.psi(self._pool(scores), where) if scores else 0.0

    def formula(self, t: str) -> str:
        """ψ in words, at step t."""
        if self.aggregate == "last":
            return super().formula(t)
        pooled = getattr(self.aggregate, "__name__", self.aggregate)
        return formula(self.link, f"{pooled}({self.reward.name}_1..{t})", self.temperature)


class Prefix(Aggregated):
    """A score of the prefix that counts once: p · ψ(r_T), approached step by step by ψ_t / ψ_{t-1}."""

    kind = "prefix"
    telescopes = True

    def weight(self, scores: Sequence[float], where: str) -> float:
        """log ψ_t - log ψ_{t-1}; a run with ψ_{t-1} = 0 has ended."""
        now, before = self.total(scores, where), self.total(scores[:-1], where)
        return now if before == NEG_INF else now - before

    def term(self) -> str:
        """ψ at the last step."""
        return f"{self.formula('T')}, T the last step{shown(self.at)}, by ψ_t / ψ_(t-1)"


class Value(Aggregated):
    """An estimate of the future: changes no target, and becomes a guide by `Guide.value`."""

    kind = "value"
    telescopes = True

    def process(self, message: Message) -> None:
        """No step is touched."""

    def step(
        self, values: Sequence[Any], env: Env, known: dict[Any, float] | None = None
    ) -> Step[float]:
        """ψ of the steps so far: a number, or a job that finds it.

        Scores in `known` are not asked for, and new ones are put there.
        """
        first = 0 if self.aggregate != "last" else max(len(values) - 1, 0)

        def ask(n: int) -> Step[float]:
            given = self.seen(values[:n])
            if known is None or not isinstance(given, Hashable):
                return self.reward.score(given, env)
            if given in known:
                return known[given]
            return after(self.reward.score(given, env), partial(known.setdefault, given))  # type: ignore[no-any-return]

        asked = [partial(ask, n) for n in range(first + 1, len(values) + 1)]
        return gather(asked, lambda scores: self.total([float(r) for r in scores]))  # type: ignore[no-any-return]

    def term(self) -> str:
        """Nothing."""
        return "1"


class Outcome(Potential):
    """Multiplies once, at the end, by the score of what the program returns."""

    kind = "outcome"

    def __init__(self, score: Any, *, link: Link | None = None, **declared: Any) -> None:
        """As `Potential`; `at` and `of` have no meaning here."""
        if unknown := {"at", "of"} & set(declared):
            raise BadArgument(
                f"Outcome takes no {', '.join(sorted(unknown))}: it sees what the program returns",
                fix="write Outcome(lambda result: ..., link=...), or Prefix(..., at=...) for sites",
            )
        super().__init__(score, link=link, of="last", **declared)

    def __enter__(self) -> Any:
        if self.fn is None:
            raise BadArgument(
                "Outcome stands around a program, not around a block",
                fix="write potentials.apply(program, Outcome(...))",
            )
        return super().__enter__()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program, then weigh its result."""
        from lmppl.frames import is_async

        context = local.active
        if self.fn is None or (context is not None and is_async(self.fn)):
            return super().__call__(*args, **kwargs)
        if context is None:
            return EagerContext(plain_key()).enter(self, args, kwargs)
        with self.fresh() as own:
            result = freeze(self.fn(*args, **kwargs))
            context.send(own._after(context.scope, result))
        return result

    async def _call_async(self, args: Any, kwargs: Any) -> Any:
        context = local.active
        with self.fresh() as own:
            result = freeze(await self.fn(*args, **kwargs))  # type: ignore[misc]
            if context is not None:
                await context.send_async(own._after(context.scope, result))
        return result

    def _after(self, scope: str, result: Any) -> Generator[Message, None, None]:
        own = f"{scope}result:{self.name}"
        asked = self._ask(own, result)
        yield asked
        yield self._message("factor", own, self.psi(float(asked.value), own))

    def term(self) -> str:
        """ψ of the result."""
        return f"{formula(self.link, self.reward.name, self.temperature)} of the result"


def apply(program: Callable[..., Any], *potentials: Potential) -> Any:
    """The program whose target these potentials have changed; again a program.

    Args:
        program: a program, or one that handlers wrap.
        *potentials: `Factor`, `Prefix` or `Outcome`.
    """
    if not callable(program) or isinstance(program, Potential) and program.fn is None:
        raise BadArgument(
            "apply needs a program first",
            value=excerpt(program),
            fix="write potentials.apply(program, Prefix(...))",
        )
    taken = {h.name for h in around(program)}
    wrapped: Any = program
    for potential in potentials:
        if not isinstance(potential, Potential):
            raise BadArgument(
                f"apply takes potentials, got {type(potential).__name__}",
                value=excerpt(potential),
                fix="write potentials.apply(program, Prefix(score, link=...))",
            )
        if isinstance(potential, Value):
            raise BadArgument(
                "a Value changes no target, so a program cannot be wrapped in it",
                fix="give it to the engine: SMC(guide=Guide.value(value))",
            )
        new = potential.fresh()
        new.fn = wrapped
        name, n = potential.name, 2
        while name in taken:  # entries of equal names could not be told apart
            name, n = f"{potential.name}{n}", n + 1
        new.name = name  # type: ignore[attr-defined]
        taken.add(name)
        wrapped = new
    return wrapped


def around(program: Any) -> Iterator[Potential]:
    """The potentials that a program is wrapped in, outermost first."""
    while program is not None:
        if isinstance(program, Potential):
            yield program
        program = getattr(program, "fn", None)


def terms(program: Any) -> str:
    """What they multiply the target by, in words; empty where there is none."""
    return " · ".join(reversed([potential.term() for potential in around(program)]))
