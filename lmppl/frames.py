"""Drivers: how user code is suspended at a site and resumed with its answer.

| driver | programs | how it suspends |
| --- | --- | --- |
| `greenlet` (default) | `def`, `async def` | switches stacks; works through any Python or C frame |
| `coroutine` | `async def` | an own `send` loop, never asyncio |
| `eager` | `def`, `async def` | runs again from the start on every step, answered by its tape |

A frame is one activation of a program. `resume(entry)` runs it to its next unanswered message and
returns that, or `None` when the program has returned (`frame.context.result`). A frame that is
made for a tape replays it first, checking every entry.
"""

from __future__ import annotations

import contextvars
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from typing import Any

from lmppl.context import (
    Context,
    Message,
    ParticleKilled,
    check_awaited,
    check_replay,
    local,
)
from lmppl.errors import BadArgument, BadProgram, ReplayDivergence
from lmppl.trace import Entry, tape

INLINE = ("deterministic",)
"""Operations that need no answer: recorded without suspending."""


class Strand:
    """One line of execution of a particle: its tape, its frame, and what it waits for.

    A particle has one strand; a running `plate` adds one per branch.
    """

    __slots__ = (
        "branches",
        "done",
        "frame",
        "head",
        "job",
        "key",
        "launch",
        "nested",
        "outcomes",
        "parent",
        "pending",
        "replayed",
        "result",
        "stepped",
    )

    def __init__(
        self, launch: Launch, head: Entry | None = None, parent: Strand | None = None
    ) -> None:
        """Not started yet."""
        self.launch = launch
        self.head = head
        self.parent = parent
        self.key = 0
        """The key of its particle: the root of nested inference."""
        self.frame: Frame | None = None
        self.pending: Message | None = None
        self.job: Any = None
        """The model job that the pending message waits for."""
        self.nested: Any = None
        """Jobs of an inference inside the program that are not done yet."""
        self.outcomes: Any = None
        """The support of the pending site, when an engine lists it in place of drawing."""
        self.branches: list[Strand] | None = None
        self.result: Any = None
        self.done = False
        self.stepped = False
        self.replayed = 0

    def leaves(self) -> Iterator[Strand]:
        """The strands that can move: itself, or the unfinished branches of its plate."""
        if self.branches is None:
            if not self.done:
                yield self
        else:
            for branch in self.branches:
                yield from branch.leaves()

    def kill(self) -> None:
        """Unwind its frames."""
        if self.frame is not None:
            self.frame.kill()
            self.frame = None
        for branch in self.branches or ():
            branch.kill()


class Launch:
    """How to start a frame: the function, its arguments, and where it stands."""

    __slots__ = (
        "args",
        "chance",
        "driver",
        "fn",
        "handlers",
        "kwargs",
        "models",
        "scope",
        "strict",
    )

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        driver: type[Frame],
        handlers: tuple[Any, ...] = (),
        scope: str = "",
        strict: bool = False,
    ) -> None:
        """Keep the parts."""
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.driver = driver
        self.handlers = handlers
        self.scope = scope
        self.strict = strict
        self.models: dict[str, Any] = {}
        """What nested inference inherits: the language models by name, and the chance."""
        self.chance: Any = None

    def branch(
        self, fn: Callable[..., Any], item: Any, handlers: tuple[Any, ...], scope: str
    ) -> Launch:
        """How to start one branch of a plate."""
        new = Launch(fn, (item,), {}, self.driver, handlers, scope, self.strict)
        new.models, new.chance = self.models, self.chance
        return new


class FrameContext(Context):
    """Answers from the tape while it lasts, then asks the frame to suspend."""

    def __init__(self, frame: Frame, strand: Strand, replay: list[Entry]) -> None:
        """Start at the beginning of a tape."""
        launch = strand.launch
        super().__init__(list(launch.handlers), launch.scope)
        self.strict = launch.strict
        self.frame = frame
        self.strand = strand
        self.replay = replay
        self.position = 0
        self.dying = False
        self.result: Any = None

    def answer(self, message: Message) -> None:
        """From the tape, else by suspending."""
        if self._recorded(message):
            return
        message.take(self.frame.suspend(message))

    def answer_async(self, message: Message) -> Generator[Message, Entry, None]:
        """As `answer`; a trampoline gets the message by `yield`."""
        if self._recorded(message):
            return
        if self.frame.yields:
            message.take((yield message))
        else:
            message.take(self.frame.suspend(message))

    def _recorded(self, message: Message) -> bool:
        if self.dying:
            raise ParticleKilled
        if self.position < len(self.replay):
            entry = self.replay[self.position]
            self.position += 1
            self.strand.replayed += 1
            check_replay(entry, message)
            message.take(entry)
            return True
        if message.op in INLINE:
            strand = self.strand
            strand.head = Entry(
                strand.head,
                message.op,
                message.address,
                message.value,
                fingerprint=message.fingerprint(),
            )
            message.done = True
            return True
        return False

    def skip(self, op: str, address: str) -> Entry | None:
        """The next entry of the tape, if it is this folded part."""
        if self.position >= len(self.replay):
            return None
        entry = self.replay[self.position]
        if entry.op != op or entry.address != address:
            return None
        self.position += 1
        self.strand.replayed += 1
        return entry

    def mark(self) -> Entry | None:
        """The newest entry so far."""
        if self.position < len(self.replay):
            return self.replay[self.position].prev
        return self.strand.head

    def fold(self, base: Any, op: str, address: str, value: Any, note: Any = None) -> None:
        """One entry in place of those since `base`."""
        strand = self.strand
        if strand.head is base and op != "loop":
            strand.head = Entry(base, op, address, value, note=note)
        else:
            strand.head = Entry(base, op, address, value, inside=strand.head, note=note)

    def check_finished(self) -> None:
        """At the return of the program: the whole tape was read."""
        if self.position < len(self.replay):
            entry = self.replay[self.position]
            raise ReplayDivergence(
                f"{entry.op} {entry.address!r}", "the end of the program", address=entry.address
            )
        check_awaited(self)


class Frame(ABC):
    """One activation of a program."""

    yields = False
    """Whether messages of an awaited primitive travel by `yield`."""

    def __init__(self, strand: Strand) -> None:
        """Prepare to run a strand from its tape."""
        self.context = FrameContext(self, strand, tape(strand.head))

    @property
    def strand(self) -> Strand:
        """Whose frame this is; it moves with `move`."""
        return self.context.strand

    def move(self, strand: Strand) -> None:
        """Give the live frame to a fork of its strand."""
        self.context.strand = strand

    @abstractmethod
    def resume(self, entry: Entry | None) -> Message | None:
        """Run to the next unanswered message, or to the end (None).

        `entry` answers the message that `resume` returned before; it is already on the tape.
        """

    def suspend(self, message: Message) -> Entry:
        """Leave user code with a message; returns when the frame is resumed."""
        raise BadProgram(
            f"site {message.address!r} suspends a plain function under the coroutine driver",
            why="only async def functions can be suspended by await",
            fix='write async def ... await sample(...), or use driver="greenlet"',
        )

    @abstractmethod
    def kill(self) -> None:
        """Unwind the frame."""

    def _call(self) -> Any:
        """Run user code, in its context, to a value (or its coroutine)."""
        launch = self.context.strand.launch
        self.context.is_async = is_async(launch.fn)
        return launch.fn(*launch.args, **launch.kwargs)

    def _drive(self, value: Any) -> Any:
        """Run a coroutine whose primitives suspend by themselves."""
        if not inspect.iscoroutine(value):
            return value
        try:
            value.send(None)
        except StopIteration as stop:
            return stop.value
        finally:
            value.close()
        raise BadProgram(
            "the program awaited something that is not of this package",
            why="an engine runs the program itself, without asyncio",
            fix='write await effect("name", async_function, ...) for other coroutines',
        )


def is_async(fn: Any) -> bool:
    """Whether a program is an `async def` function."""
    while hasattr(fn, "fn"):
        fn = fn.fn
    return inspect.iscoroutinefunction(fn)


class GreenletFrame(Frame):
    """Suspends by switching stacks."""

    def __init__(self, strand: Strand) -> None:
        """Make a greenlet in a copy of the present context variables."""
        from greenlet import getcurrent, greenlet

        super().__init__(strand)
        self._getcurrent = getcurrent
        self._greenlet = greenlet(self._run)
        self._greenlet.gr_context = contextvars.copy_context()

    def _run(self, _: object) -> None:
        self.context.result = self._drive(self._call())
        self.context.check_finished()

    def resume(self, entry: Entry | None) -> Message | None:
        """Switch in, come back with a message or the end."""
        glet = self._greenlet
        hub = self._getcurrent()
        if glet.parent is not hub:
            glet.parent = hub
        before = local.active
        local.active = self.context
        try:
            message: Message | None = glet.switch(entry)
        finally:
            local.active = before
        return None if glet.dead else message

    def suspend(self, message: Message) -> Entry:
        """Switch out."""
        hub = self._greenlet.parent
        entry: Entry = hub.switch(message)
        return entry

    def kill(self) -> None:
        """Throw into the frame until it ends; a frame that swallows it three times is left."""
        glet = self._greenlet
        if glet.dead or not glet:
            return
        glet.parent = self._getcurrent()
        self.context.dying = True
        before = local.active
        local.active = self.context
        try:
            for _ in range(3):
                try:
                    glet.throw(ParticleKilled)
                except ParticleKilled:
                    return
                except Exception:
                    return
                if glet.dead:
                    return
        finally:
            local.active = before


class CoroutineFrame(Frame):
    """Suspends an `async def` program by its own awaits: no asyncio, no greenlet."""

    yields = True

    def __init__(self, strand: Strand) -> None:
        """Refuse plain functions."""
        super().__init__(strand)
        if not is_async(strand.launch.fn):
            raise BadProgram(
                "the coroutine driver runs async def programs only",
                fix='write async def ... await sample(...), or use driver="greenlet" or "eager"',
            )
        self._coroutine: Any = None
        self._started = False

    def resume(self, entry: Entry | None) -> Message | None:
        """Send the answer, get the next message."""
        before = local.active
        local.active = self.context
        try:
            if self._coroutine is None:
                self._coroutine = self._call()
            message = self._coroutine.send(entry if self._started else None)
            self._started = True
        except StopIteration as stop:
            self.context.result = stop.value
            self.context.check_finished()
            return None
        finally:
            local.active = before
        if not isinstance(message, Message):
            raise BadProgram(
                "the program awaited something that is not of this package",
                fix='write await effect("name", async_function, ...) for other coroutines',
            )
        return message

    def kill(self) -> None:
        """Close the coroutine."""
        if self._coroutine is None:
            return
        self.context.dying = True
        before = local.active
        local.active = self.context
        try:
            self._coroutine.throw(ParticleKilled)
        except (ParticleKilled, Exception):
            return
        finally:
            local.active = before


class _Suspended(BaseException):
    """Leaves the program in the eager driver."""

    def __init__(self, message: Message) -> None:
        self.message = message


class EagerFrame(Frame):
    """Suspends by leaving the program with an exception and running it again from the start.

    Needs nothing but Python; costs a replay of the whole tape per step.
    """

    def resume(self, entry: Entry | None) -> Message | None:
        """Run again, answered by the tape (which ends in `entry`)."""
        strand = self.context.strand
        self.context = FrameContext(self, strand, tape(strand.head))
        before = local.active
        local.active = self.context
        try:
            self.context.result = self._drive(self._call())
        except _Suspended as left:
            return left.message
        finally:
            local.active = before
        self.context.check_finished()
        return None

    def suspend(self, message: Message) -> Entry:
        """Leave."""
        raise _Suspended(message)

    def kill(self) -> None:
        """There is nothing to unwind: the program is not running."""


def driver(name: str | None, fn: Callable[..., Any]) -> type[Frame]:
    """The driver class of a name; None picks greenlet, else what runs without it."""
    drivers: dict[str, type[Frame]] = {
        "greenlet": GreenletFrame,
        "coroutine": CoroutineFrame,
        "eager": EagerFrame,
    }
    if name is None:
        try:
            import greenlet  # noqa: F401
        except ImportError:
            return CoroutineFrame if is_async(fn) else EagerFrame
        return GreenletFrame
    if name not in drivers:
        raise BadArgument(f"no driver is called {name!r}", fix=f"use one of {', '.join(drivers)}")
    return drivers[name]
