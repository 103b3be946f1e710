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
from collections.abc import Callable
from typing import Any

from lmppl.context import (
    Message,
    ParticleKilled,
    local,
)
from lmppl.errors import BadArgument, BadProgram
from lmppl.strands import FrameContext, Strand
from lmppl.trace import Entry, tape


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
