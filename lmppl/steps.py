"""Which sites are the steps of a program: patterns of names, and how steps are found on a tape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from lmppl.errors import BadArgument, excerpt
from lmppl.messages import Message
from lmppl.trace import Entry, Trace

STEPS = ("sample", "observe", "deterministic")
"""Operations whose sites can be steps."""


def steps_of(trace: Trace, at: tuple[str, ...] | None) -> list[Any]:
    """The values of the steps in a trace, half-drawn texts last."""
    found = [
        e.value for e in trace.sites
        if e.op in STEPS and (isinstance(e.value, str) and e.op == "sample" if at is None else named(e.address, at))
    ]  # fmt: skip
    half = [a for a in trace.partial if at is None or named(a, at)]
    return found + [text for text in map(trace.so_far, half) if text]


def as_patterns(potential: str, at: Any) -> tuple[str, ...] | None:
    """Patterns of steps as a tuple."""
    found = (at,) if isinstance(at, str) else at
    if found is None:
        return None
    if not (isinstance(found, (tuple, list)) and found and all(isinstance(a, str) for a in found)):
        raise BadArgument(
            f"{potential}: at must name sites", value=excerpt(at), fix='write at="step*"'
        )
    return tuple(found)


def matches(message: Message, at: tuple[str, ...] | None) -> bool:
    """Whether a site is a step, as far as its value is not needed."""
    if at is None:
        return message.op == "sample" or message.conditioned
    return named(message.address, at)


def named(address: str, at: Sequence[str]) -> bool:
    """Whether a pattern matches the address, or the name at its end without its number."""
    last = address.rpartition("/")[2]
    name = last.partition("[")[0]
    return any(_glob(pattern, address) or _glob(pattern, name) for pattern in at)


def _glob(pattern: str, text: str) -> bool:
    return fnmatchcase(text, pattern.replace("[", "[[]"))


def shown(at: tuple[str, ...] | None) -> str:
    """Where, in words."""
    return "" if at is None else f" at {', '.join(at)}"


def backwards(head: Entry | None, stop: Entry | None = None) -> Iterator[Entry]:
    """The entries of one strand after `stop`, newest first, without those of plate branches."""
    while head is not None and head is not stop:
        if head.inside is not None and head.op != "plate":
            head = head.inside
            continue
        yield head
        head = head.prev
