"""What a primitive asks: the message that handlers rewrite and a context answers."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from lmppl.distributions import fingerprint_of
from lmppl.errors import ReplayDivergence
from lmppl.random import fold, hash_text
from lmppl.trace import Entry


class Message:
    """One request of a program.

    Handlers may change `dist`, `value` (with `done`), `op`, `scale` and `masked`.
    """

    # Defaults stand on the class: a site sets few of these, and makes a message each time.
    dist: Any = None
    value: Any = None
    proposal: Any = None
    fn: Any = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    options: Any = None
    grow: Any = None
    """Of a plate whose branches start one another: its `lmppl.graphs.thoughts.growth.Growth`."""
    done = False
    stop = False
    blocked_by: Any = None
    """The handler that hides it from those further out."""
    masked = False
    scale = 1.0
    logp = 0.0
    logq = 0.0
    origin: Any = None
    """The handler that sent it, where it is no message of the program: only those further out see it."""
    follow: tuple[Generator[Message, None, None], ...] = ()
    """Messages that handlers send after it has been answered."""
    conditioned = False
    """Whether a handler has made an observation, or a constant, of a sample site."""

    def __init__(
        self, op: str, name: str, address: str, dist: Any = None, value: Any = None
    ) -> None:
        """Nothing is answered yet."""
        self.op = op
        self.name = name
        self.address = address
        self.dist = dist
        self.value = value

    @classmethod
    def of(
        cls,
        op: str,
        name: str,
        address: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        options: Any = None,
    ) -> Message:
        """The message of a site that runs a function."""
        self = cls(op, name, address)
        self.fn, self.args, self.kwargs, self.options = fn, args, kwargs, options
        return self

    def take(self, entry: Entry) -> None:
        """Be answered by an entry."""
        self.value = entry.value
        self.logp = entry.logp
        self.logq = entry.logq
        self.done = True

    @property
    def fixed(self) -> bool:
        """Whether a handler has given a sample site its value."""
        return self.done and self.op == "sample"

    def fingerprint(self) -> int:
        """Of everything that must be the same on replay."""
        op = self.op
        if op == "sample":
            base: int = self.dist.fingerprint
            return base if self.proposal is None else fold(base, self.proposal.fingerprint)
        if op in ("observe", "reward"):
            return fold(self.dist.fingerprint, fingerprint_of(self.value))
        if op in ("factor", "deterministic"):
            return fingerprint_of(self.value)
        if op in ("effect", "cached"):
            name = getattr(self.fn, "__qualname__", type(self.fn).__name__)
            base = fold(hash_text(name), fingerprint_of(self.args))
            return base if not self.kwargs else fold(base, fingerprint_of(self.kwargs))
        if op == "plate":
            return len(self.args)
        return 0


def check_replay(entry: Entry, message: Message) -> None:
    """The entry on the tape is the message the program sends."""
    op = "observe" if message.op == "sample" and entry.op == "observe" else message.op
    if entry.address != message.address or entry.op != op:
        raise ReplayDivergence(
            f"{entry.op} {entry.address!r}",
            f"{message.op} {message.address!r}",
            address=entry.address,
        )
    if op == "observe" and message.op == "sample":  # conditioned by the run's observations
        found = fold(message.dist.fingerprint, fingerprint_of(entry.value))
    else:
        found = message.fingerprint()
    known = entry.fingerprint
    if op == "factor":  # few are ever replayed: hashed here, not where they are written
        known = fingerprint_of(entry.value)
    if known and found != known:
        what = {"observe": "distribution or value", "factor": "weight", "deterministic": "value"}
        raise ReplayDivergence(
            f"{entry.op} {entry.address!r} with fingerprint {known:016x}",
            f"another {what.get(entry.op, 'distribution or arguments')} ({found:016x})",
            address=entry.address,
        )
