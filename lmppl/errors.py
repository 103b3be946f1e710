"""Every error that a user can meet, each with its cure.

A message has up to five lines: what happened; `where:` site, particle, question; `value:` an
excerpt; `why:` why it matters; `fix:` what to write instead. `LmpplError.fields` holds the same
for machines, since programs are also written and repaired by language models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lmppl.nearest import which_site


def excerpt(value: object, limit: int = 120) -> str:
    """`repr(value)` cut to `limit` characters, with the full length when cut.

    >>> excerpt("a" * 200, 10)
    "'aaaaaaaaa ... (cut, 202 chars)"
    """
    try:
        text = repr(value)
    except Exception as error:  # a broken repr must not hide the error that it is part of
        text = f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"
    return text if len(text) <= limit else f"{text[:limit]} ... (cut, {len(text):,} chars)"


class LmpplError(Exception):
    """The base of all errors of this package."""

    fatal: ClassVar[bool] = True
    """Whether it stops the run whatever the run's policy for errors inside a particle."""
    located = False
    """Whether an engine has said where it happened."""

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        value: str | None = None,
        why: str | None = None,
        fix: str | None = None,
    ) -> None:
        """Keep the parts as `fields` and join them into one message."""
        self.fields: dict[str, str] = {"what": what}
        for name, part in (("where", where), ("value", value), ("why", why), ("fix", fix)):
            if part is not None:
                self.fields[name] = part
        super().__init__(self._message())

    def _message(self) -> str:
        lines = [self.fields["what"]]
        lines += [f"  {k + ':':<6} {v}" for k, v in self.fields.items() if k != "what"]
        return "\n".join(lines)

    def add_where(self, more: str) -> None:
        """Say more about where it happened, as the error travels outwards."""
        old = self.fields.get("where")
        if old is not None and more in old:
            return
        self.fields["where"] = more if old is None or old in more else f"{old}, {more}"
        self.fields = {
            k: self.fields[k] for k in ("what", "where", "value", "why", "fix") if k in self.fields
        }
        self.args = (self._message(),)

    def __reduce__(self) -> Any:
        """Survive copying between processes."""
        return (_rebuild, (type(self), self.fields))


def items_of(value: object, what: str, fix: str) -> list[Any]:
    """The items of a list that a user gives; a text or a single value in its place is refused."""
    if not isinstance(value, str):
        try:
            return list(value)  # type: ignore[call-overload,no-any-return]
        except TypeError:
            pass
    raise BadArgument(f"{what}, got {type(value).__name__}", value=excerpt(value), fix=fix)


class LmpplWarning(UserWarning):
    """Something that a run goes on with, and that its author should know."""


def _rebuild(kind: type[LmpplError], fields: dict[str, str]) -> LmpplError:
    error = kind.__new__(kind)
    error.fields = dict(fields)
    error.args = (error._message(),)
    return error


# -- the program --------------------------------------------------------------------------------


class BadSiteName(LmpplError):
    """A site name that is no address."""

    def __init__(self, name: object) -> None:
        """Say what a name must be."""
        super().__init__(
            f"{excerpt(name)} is no site name",
            why="names make addresses such as outer/inner and item[3]",
            fix="use a non-empty string of at most 200 characters without '/', '[', ']' and line breaks",
        )


class GraphError(LmpplError):
    """A thought graph that cannot run: a cycle, a missing parent, a name that occurs twice."""


class DuplicateSite(LmpplError):
    """The same address twice in one run, in strict mode."""

    def __init__(self, address: str, first: str, second: str) -> None:
        """Name both lines of the program."""
        name = address.rpartition("/")[2]
        super().__init__(
            f"site {address!r} occurs twice in one run",
            where=f"first at {first}, again at {second}",
            fix=f"rename one, use plate or loop, or wrap the part in call(...); "
            f"without strict=True the second one is called {name}[1]",
        )


class NoActiveProgram(LmpplError):
    """A primitive that needs an engine or a trace, outside of one."""


class WrongContext(NoActiveProgram):
    """A primitive called from a thread, task or greenlet that is not the program's."""


class NotAwaited(LmpplError):
    """An `async def` program that forgot `await`."""

    def __init__(self, addresses: Sequence[str]) -> None:
        """List the forgotten sites."""
        n = len(addresses)
        sites = "site was" if n == 1 else "sites were"
        super().__init__(
            f"{n} {sites} never awaited: {', '.join(addresses)}",
            why="in an async program the call only makes a request; await gives the value",
            fix='write value = await sample("name", dist)',
        )


class BadProgram(LmpplError, TypeError):
    """Something that cannot be a program, or what a program must not do."""


class NotADistribution(LmpplError, TypeError):
    """The second argument of `sample` or `observe` is no distribution."""

    def __init__(self, site: str, value: object) -> None:
        """Suggest the nearest thing."""
        hint = "LM(prompt)" if isinstance(value, str) else "Delta(value)"
        super().__init__(
            f"site {site!r}: expected a distribution, got {type(value).__name__}",
            value=excerpt(value),
            fix=f"write {hint}, Choice(prompt, options), Categorical({{value: p}}) or a NumPyro distribution",
        )


class ReplayDivergence(LmpplError):
    """A program that took another path when its tape was replayed."""

    def __init__(self, expected: str, got: str, *, address: str, cause: str | None = None) -> None:
        """Show both entries."""
        super().__init__(
            f"the program took another path on replay: expected {expected}, got {got}",
            where=f"site {address!r}",
            why="a particle forks by replaying its recorded values; everything else must be a function of them",
            fix=cause
            or "move randomness, clocks, files and sets with unstable order into effect(...) or cached(...), "
            "and do not change global variables; lmppl check PROGRAM.py finds the line",
        )


class NonFiniteWeight(LmpplError):
    """A log-weight that is nan or +inf."""

    def __init__(self, *, site: str, term: str, value: float) -> None:
        """Name the site and the number."""
        super().__init__(
            f"site {site!r}: {term} is {value}",
            where=f"site {site!r}",
            value=str(value),
            why="one such number makes every weight of the step undefined",
            fix="return -inf to rule the value out, or a finite log-probability",
        )


class BadWeight(LmpplError, TypeError):
    """A log-weight that is no number."""

    def __init__(self, *, site: str, term: str, value: object) -> None:
        """Show what came."""
        super().__init__(
            f"site {site!r}: {term} must be a number, got {type(value).__name__}",
            where=f"site {site!r}",
            value=excerpt(value),
            fix="give one float (detach a tensor first: x.item()); a bool means a hard constraint",
        )


class AllParticlesDead(LmpplError):
    """Every particle has weight zero."""

    fatal = False

    def __init__(
        self, deaths: Mapping[str, int], *, particles: int, examples: Sequence[str] = ()
    ) -> None:
        """A histogram of the sites that killed, commonest first."""
        ranked = sorted(deaths.items(), key=lambda kv: (-kv[1], kv[0]))
        total = sum(deaths.values())
        several = len(ranked) > 1
        shares = (
            ", ".join(
                f"{site} ({count}, {count / total:.0%})" if several else f"{site} ({count})"
                for site, count in ranked
            )
            or "no site (no particle was run)"
        )
        super().__init__(
            f"all {particles} particles have weight zero"
            if particles
            else "every trace has weight zero",
            where=f"killed at: {shares}",
            value="; ".join(examples) or None,
            why="the posterior is undefined: no sampled value satisfies the observations",
            fix="use more particles, a softer factor at that site, or a proposal that looks ahead; "
            "check that the condition can be met at all",
        )


class UnusedCondition(LmpplError):
    """A condition that names no site of the program."""

    def __init__(self, names: Sequence[str], known: Sequence[str]) -> None:
        """Suggest the nearest site."""
        if taken := [n for n in names if n in known]:
            super().__init__(
                f"site {taken[0]!r} cannot be conditioned on: it has a value already",
                why="it is an observation, or another handler fixes it",
                fix="leave one of the two out",
            )
            return
        super().__init__(
            f"no sample site is called {', '.join(map(repr, names))}",
            why="a condition that meets no site changes nothing",
            fix=which_site(str(names[0]), known),
        )


class SiteError(LmpplError):
    """An exception of the user's code, with the particle it happened in.

    `trace` is what had happened in that particle, `traces` the particles that had finished:
    nothing computed is lost.
    """

    trace: Any = None
    traces: Sequence[Any] = ()


class UnsupportedValue(LmpplError, ValueError):
    """A value outside the support of its distribution, or of a kind it cannot have."""


class BadArgument(LmpplError, ValueError):
    """An argument that is out of range."""


# -- engines ------------------------------------------------------------------------------------


class NoLanguageModel(LmpplError):
    """A program that draws from a language model, and none is given."""


class NotFinite(LmpplError):
    """A program that cannot be enumerated."""


class UnboundedWeight(LmpplError):
    """Rejection sampling without a bound on a factor."""


class Deadlock(LmpplError):
    """Particles that wait while nothing runs: a defect of an engine."""


# -- language models ----------------------------------------------------------------------------


class ModelNotFound(LmpplError):
    """A language model that is not here."""

    def __init__(
        self, name: str, *, looked_for: Sequence[str] = (), fix: str | None = None
    ) -> None:
        """List what was looked for."""
        super().__init__(
            f"no language model {name!r}",
            where=f"looked for {'; '.join(looked_for)}" if looked_for else None,
            fix=fix,
        )


class CapabilityError(LmpplError):
    """A backend that cannot give what is asked."""

    @classmethod
    def between(
        cls, asker: str, model: str, *, needs: str, has: object, fix: str
    ) -> CapabilityError:
        """What an engine or a distribution needs, against what the model declares."""
        return cls(
            f"{asker} needs {needs} of {model!r}, which declares {has}",
            why="checked before any token is drawn",
            fix=fix,
        )


class UnweightableProposal(LmpplError):
    """Draws whose log q nobody knows."""

    def __init__(self, kind: str, model: str, settings: str) -> None:
        """Which settings ask for them, before any token is drawn."""
        super().__init__(
            f"{kind} draws with {settings} from {model!r}, which does not report log q of such draws",
            value="it declares weighs_proposals=False",
            why="without log q a draw has no weight: posterior and evidence would both be wrong",
            fix='write target="proposal" to mean the law that is drawn from, leave the settings out, '
            "or use engine=Forward()",
        )


class TokenizerMismatch(LmpplError):
    """A tokenizer and a model, or two models, that do not fit together."""

    @classmethod
    def between(cls, one: Any, other: Any, where: str) -> TokenizerMismatch:
        """Two language models: their sizes, and the first id that means different bytes."""
        n = min(one.vocab_size, other.vocab_size)
        first = next((i for i in range(n) if one.token_bytes(i) != other.token_bytes(i)), n)
        shown = [
            f"{m.name!r}: {m.token_bytes(first)!r}" if first < m.vocab_size else f"{m.name!r}: none"
            for m in (one, other)
        ]
        return cls(
            f"the vocabularies of {one.name!r} ({one.vocab_size:,} ids) and {other.name!r} "
            f"({other.vocab_size:,} ids) differ",
            where=where,
            value=f"first at id {first}: {', '.join(shown)}",
            why="the tokens of one mean other bytes to the other",
            fix="propose with a model of the same tokenizer",
        )


class CorruptModel(LmpplError):
    """A model file that is damaged or of a kind that is refused."""


class ContextOverflow(LmpplError):
    """A prompt that does not fit into the model's context."""

    def __init__(
        self, needed: int, limit: int, *, longest: str = "", part: str | None = None
    ) -> None:
        """Say how much is needed, before anything is computed, and which part is the longest."""
        super().__init__(
            f"the prompt and its continuation need {needed:,} tokens, the model takes {limit:,}",
            value=(f"longest part: {part}: " if part else "") + excerpt(longest)
            if longest
            else None,
            fix="shorten the prompt or lower max_tokens; nothing is cut silently",
        )


class ConstraintError(LmpplError, ValueError):
    """A regex, schema or grammar that cannot be used."""


# -- data ---------------------------------------------------------------------------------------


class DataError(LmpplError):
    """A line of a data file that cannot be used."""


class Suspended(LmpplError):
    """The run must stop now: what is finished is kept, and it can be resumed later."""
