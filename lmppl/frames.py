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
import ctypes
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from lmppl.context import ParticleKilled, local
from lmppl.errors import BadArgument, BadProgram, LmpplWarning, WrongContext
from lmppl.lines import caller, user_line
from lmppl.messages import Message
from lmppl.strands import FrameContext, Strand
from lmppl.torch_modes import DEFAULT, LOADED, Held, Modes, leave, modes
from lmppl.trace import Entry, tape


class Frame(ABC):
    """One activation of a program."""

    yields = False
    """Whether messages of an awaited primitive travel by `yield`."""
    _held: Held | None = None
    """torch's modes of a program that suspended inside a block such as `torch.no_grad()`."""
    zombie: str | None = None
    """The line of a program that would not be unwound; its frame is kept for ever."""

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

    def abandon(self) -> None:
        """Leave user code for ever, where the driver can; called in the frame itself."""
        return

    def line(self) -> str | None:
        """file:line where the program is suspended."""
        return None

    def _enter(self) -> Modes:
        """Before user code goes on: torch's modes out here; the program gets its own."""
        outer = modes()
        if self._held is not None:
            self._held.back()
            self._held = None
        return outer

    def _give_up(self) -> None:
        # One reference that nobody returns: freed at the end of the interpreter, a coroutine would
        # be closed once more, and its program would catch that for ever too.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))
        warnings.warn(
            f"a program caught ParticleKilled again and again at {self.zombie}: its frame is left "
            "suspended and never freed; write `except Exception:` in place of a bare `except:`",
            LmpplWarning,
            stacklevel=2,
        )

    def _call(self) -> Any:
        """Run user code, in its context, to a value (or its coroutine)."""
        launch = self.context.strand.launch
        self.context.is_async = is_async(launch.fn)
        return launch.fn(*launch.args, **launch.kwargs)

    def drive(self, value: Any) -> Any:
        """Run a coroutine whose primitives suspend by themselves."""
        if not inspect.iscoroutine(value):
            return value
        colour, self.context.is_async = self.context.is_async, True
        try:
            return run_coroutine(value)
        finally:
            self.context.is_async = colour


def run_coroutine(value: Any) -> Any:
    """The result of a coroutine that awaits nothing but this package's primitives."""
    try:
        value.send(None)
    except StopIteration as stop:
        return stop.value
    except RuntimeError as error:
        if "no running event loop" in str(error):
            raise foreign_await() from error
        raise
    finally:
        value.close()
    raise foreign_await()


def foreign_await() -> BadProgram:
    """The error of a program that awaits what only asyncio can answer."""
    return BadProgram(
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
        self._greenlet = glet = greenlet(self._run)
        self._switch = glet.switch
        glet.gr_context = contextvars.copy_context()

    def _run(self, _: object) -> None:
        self.context.result = self.drive(self._call())
        self.context.check_finished()

    def resume(self, entry: Entry | None) -> Message | None:
        """Switch in, come back with a message or the end."""
        hub, glet = self._getcurrent(), self._greenlet
        if glet.parent is not hub:
            glet.parent = hub
        outer = self._enter() if "torch" in LOADED else DEFAULT
        before = local.active
        local.active = self.context
        try:
            message: Message | None = self._switch(entry)  # None at the end: that of `_run`
        finally:
            local.active = before
            if "torch" in LOADED:  # perhaps only since
                self._held = leave(outer)
        return message

    def suspend(self, message: Message) -> Entry:
        """Switch out."""
        glet = self._greenlet
        if self._getcurrent() is not glet:
            raise WrongContext(
                f"site {message.address!r} was reached in another greenlet than the program's",
                why="only the program itself can be suspended and resumed",
                fix="call it in the program; for parallel work use plate(...) or effect(...)",
            )
        entry: Entry = glet.parent.switch(message)
        return entry

    def kill(self) -> None:
        """Throw into the frame, which then ends, or leaves by `abandon`."""
        glet = self._greenlet
        if glet.dead or not glet:
            return
        glet.parent = self._getcurrent()
        self.context.leaving = ParticleKilled
        before, outer = local.active, self._enter()
        local.active = self.context
        try:
            glet.throw(ParticleKilled)
        except (ParticleKilled, Exception):
            return
        finally:
            local.active = before
            self._held = leave(outer)
        if not glet.dead:
            self._give_up()

    def abandon(self) -> None:
        """Switch out, and never come back."""
        self.zombie = caller()
        while True:
            self._greenlet.parent.switch(None)

    def line(self) -> str | None:
        """Of the suspended stack."""
        return user_line(self._greenlet.gr_frame)


class CoroutineFrame(Frame):
    """Suspends an `async def` program by its own awaits: no asyncio, no greenlet."""

    yields = True

    def __init__(self, strand: Strand) -> None:
        """Refuse plain functions."""
        super().__init__(strand)
        if strand.parent is None and not is_async(strand.launch.fn):
            raise BadProgram(
                "the coroutine driver runs async def programs only",
                fix='write async def ... await sample(...), or use driver="greenlet" or "eager"',
            )
        self._coroutine: Any = None
        self._started = False
        self._variables = contextvars.copy_context()

    def drive(self, value: Any) -> Any:
        """Leave a coroutine to whoever awaits it: nothing here can suspend a plain function."""
        return value

    def resume(self, entry: Entry | None) -> Message | None:
        """Send the answer, get the next message."""
        before, outer = local.active, self._enter()
        local.active = self.context
        try:
            if self._coroutine is None:
                self._coroutine = self._variables.run(self._call)
                if not inspect.iscoroutine(self._coroutine):  # a branch that is a plain function
                    raise StopIteration(self._coroutine)
                self.context.is_async = True
            message = self._variables.run(self._coroutine.send, entry if self._started else None)
            self._started = True
        except StopIteration as stop:
            self.context.result = stop.value
            self.context.check_finished()
            return None
        except RuntimeError as error:
            if "no running event loop" in str(error):
                raise foreign_await() from error
            raise
        finally:
            local.active = before
            self._held = leave(outer)
        if not isinstance(message, Message):
            self._coroutine.close()
            raise foreign_await()
        return message

    def kill(self) -> None:
        """Close the coroutine."""
        if self._coroutine is None:
            return
        self.context.leaving = ParticleKilled
        before, outer = local.active, self._enter()
        local.active = self.context
        try:
            self._variables.run(self._coroutine.throw, ParticleKilled)
        except (ParticleKilled, Exception):
            return
        finally:
            local.active = before
            self._held = leave(outer)
        self._give_up()

    def line(self) -> str | None:
        """Of the innermost awaiting coroutine."""
        inner = self._coroutine
        while inspect.iscoroutine(getattr(inner, "cr_await", None)):
            inner = inner.cr_await
        return user_line(getattr(inner, "cr_frame", None))


class _Suspended(BaseException):
    """Leaves the program in the eager driver."""


class EagerFrame(Frame):
    """Suspends by leaving the program with an exception and running it again from the start.

    Needs nothing but Python; costs a replay of the whole tape per step. `finally` blocks run at
    every step.
    """

    _left: Message | None = None
    _line: str | None = None

    def __init__(self, strand: Strand) -> None:
        """Every step starts from the context variables of now."""
        super().__init__(strand)
        self._variables = contextvars.copy_context()

    def resume(self, entry: Entry | None) -> Message | None:
        """Run again, answered by the tape (which ends in `entry`)."""
        strand = self.context.strand
        self.context = FrameContext(self, strand, tape(strand.head))
        self._left: Message | None = None
        before = local.active
        local.active = self.context
        try:
            self.context.result = self._variables.copy().run(lambda: self.drive(self._call()))
        except _Suspended:
            return self._left
        except Exception as error:
            if self._left is not None:
                raise self._caught() from error
            raise
        finally:
            local.active = before
        if self._left is not None:
            raise self._caught()
        self.context.check_finished()
        return None

    def suspend(self, message: Message) -> Entry:
        """Leave."""
        self._left, self._line = message, caller()
        self.context.leaving = _Suspended
        raise _Suspended

    def _caught(self) -> BadProgram:
        at = self._left.address if self._left is not None else ""
        return BadProgram(
            f"the program caught the signal that suspends it at site {at!r}",
            where=self._line,
            why="the eager driver leaves a program by an exception and runs it again",
            fix='write `except Exception:` in place of a bare `except:`, or use driver="greenlet"',
        )

    def line(self) -> str | None:
        """Of the site that it left at."""
        return self._line

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
    if not isinstance(name, str) or name not in drivers:
        raise BadArgument(f"no driver is called {name!r}", fix=f"use one of {', '.join(drivers)}")
    if name == "greenlet" and driver(None, fn) is not GreenletFrame:
        raise BadArgument(
            "the greenlet driver needs the package greenlet, which is not installed",
            fix="run: pip install greenlet, or leave driver out: others run without it",
        )
    return drivers[name]
