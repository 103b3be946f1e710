"""Where a primitive finds its run: the message it sends and the context that answers.

Each primitive makes one `Message`, the handlers rewrite it (innermost first), the context answers
it, the handlers see it again on the way back. There are two kinds of context:

* `EagerContext`, for a plain call of a program: sites are drawn and scored at once;
* `FrameContext`, inside an engine: a message is answered from the tape while that lasts (replay),
  then the frame suspends and the engine answers.
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Awaitable, Callable, Generator
from types import coroutine
from typing import TYPE_CHECKING, Any

from lmppl.errors import (
    BadProgram,
    BadSiteName,
    DuplicateSite,
    NoActiveProgram,
    NotAwaited,
    WrongContext,
)
from lmppl.lines import caller
from lmppl.messages import Message
from lmppl.trace import Entry

if TYPE_CHECKING:
    from lmppl.messengers import Handler

_NAME = re.compile(r"[^/\[\]\r\n\x00]{1,200}\Z")
_GOOD: set[str] = set()
"""Names that have been checked."""


class ParticleKilled(BaseException):
    """Unwinds the frame of a particle that is no longer needed; not for user code to catch."""


class _Local(threading.local):
    active: Context | None = None
    ambient: list[Handler]

    def __init__(self) -> None:
        self.ambient = []
        self.models: dict[str, Any] = {}
        self.seeds: list[int] = []
        self.effect: str | None = None
        """The effect whose function runs in this thread, in words."""


local = _Local()
engines_running = 0
"""How many runs there are in this process: they tell a wrong thread from no run at all."""


def current(primitive: str = "sample") -> Context:
    """The active context, or `NoActiveProgram`."""
    active = local.active
    if active is None:
        raise _outside(primitive)
    return active


def _outside(primitive: str) -> NoActiveProgram:
    if local.effect is not None:
        return WrongContext(
            f"{primitive}() was called inside the function of {local.effect}",
            why="that function runs beside the program, on a thread of its own, and is not replayed",
            fix="return a value from the function, and call sample, observe or factor on it in the program",
        )
    if engines_running:
        return WrongContext(
            f"{primitive}() was called outside of a program, while one runs in another thread or task",
            why="only the thread of a run can record its sites",
            fix="call it in the program itself; for parallel work use plate(...) or effect(...)",
        )
    return NoActiveProgram(
        f"{primitive}() was called outside of a program",
        why="there is no run to record it",
        fix="call it inside a function decorated with @program, and run that: infer(program, ...) or program(...)",
    )


class Context:
    """The run that a program is in."""

    is_async = False
    """Whether the function that runs now is `async def`: then primitives give awaitables."""
    strict = False

    def __init__(self, handlers: list[Handler], scope: str = "") -> None:
        """Start at a scope, such as `""` or `"outer/"`."""
        self.handlers = handlers
        self.scope = scope
        self.counts: dict[str, int] = {}
        self.indexed: set[str] = set()
        """Loops and plates: `name[1]/` is the scope of their second item."""
        self.lines: dict[str, str] = {}
        self.waiting: dict[int, Awaited] = {}
        """Requests that nobody has awaited yet: kept alive, so that no id is used twice."""
        self.met: set[str] = set()
        """Sites that a handler's data has named."""

    # -- addresses ---------------------------------------------------------------------------

    def address(self, name: str) -> str:
        """The unique address of a name in the current scope."""
        if type(name) is not str or name not in _GOOD:
            if not isinstance(name, str) or not _NAME.match(name):
                raise BadSiteName(name)
            if len(_GOOD) < 100_000:
                _GOOD.add(str(name))
        full = self.scope + name if self.scope else name
        counts = self.counts
        seen = counts.get(full)
        if seen is None:
            counts[full] = 1
            if self.strict:
                self.lines[full] = caller()
            return full
        if self.strict:
            raise DuplicateSite(full, self.lines.get(full, "?"), caller())
        counts[full] = seen + 1
        return f"{full}[{seen}]"

    # -- messages ----------------------------------------------------------------------------

    def perform(self, message: Message) -> Any:
        """Send a message through the handlers and return its value (or an awaitable of it)."""
        if self.is_async:
            return Awaited(self, message)
        if self.handlers:
            self.process(message)
            if not message.done or message.op in ("sample", "observe"):
                self.answer(message)
            value = self.finish(message)
            for steps in message.follow:
                self.send(steps)
            return value
        self.answer(message)
        return message.value

    def send(self, messages: Generator[Message, None, None]) -> None:
        """Answer the messages of a handler, one after the other."""
        for message in messages:
            self.process(message)
            self.answer(message)
            self.finish(message)

    @coroutine
    def send_async(
        self, messages: Generator[Message, None, None]
    ) -> Generator[Message, Entry, None]:
        """`send` for an `async def` program."""
        for message in messages:
            self.process(message)
            yield from self.answer_async(message)
            self.finish(message)

    def _around(self, message: Message) -> list[Handler]:
        """The handlers that see a message, outermost first."""
        handlers = self.handlers
        return handlers if message.origin is None else handlers[: handlers.index(message.origin)]

    def process(self, message: Message) -> None:
        """The handlers, innermost first, until one stops it."""
        for handler in reversed(self._around(message)):
            handler.process(message)
            if message.stop:
                message.blocked_by = handler
                break

    def finish(self, message: Message) -> Any:
        """The handlers again, on the way back."""
        for handler in reversed(self._around(message)):
            handler.postprocess(message)
            if handler is message.blocked_by:
                break
        return message.value

    def answer(self, message: Message) -> None:
        """Give the message its value; may suspend."""
        raise NotImplementedError

    def answer_async(self, message: Message) -> Generator[Message, Entry, None]:
        """`answer` for an awaited message; yields it where the driver is a trampoline."""
        self.answer(message)
        return
        yield

    # -- structure: loops and calls ----------------------------------------------------------

    def skip(self, op: str, address: str) -> Entry | None:
        """On replay, the folded entry of a finished part; it is consumed."""
        return None

    def mark(self) -> Any:
        """Where the tape is now."""
        raise NotImplementedError

    def fold(self, base: Any, op: str, address: str, value: Any, note: Any = None) -> None:
        """Replace the entries since `base` by one."""
        raise NotImplementedError

    def run(self, address: str, steps: Generator[Callable[[], Any], Any, Any]) -> Any:
        """Run a structure written as a generator of thunks, sync or async as the program is."""
        return AwaitedSteps(self, address, steps) if self.is_async else self._run(steps)

    def drive(self, value: Any) -> Any:
        """The result of an `async def` subprogram that a plain program called."""
        return value

    def _run(self, steps: Generator[Callable[[], Any], Any, Any]) -> Any:
        try:
            thunk = next(steps)
            while True:
                try:
                    result = thunk()
                    if inspect.iscoroutine(result):
                        result = self.drive(result)
                except BaseException as error:
                    thunk = steps.throw(error)
                else:
                    thunk = steps.send(result)
        except StopIteration as stop:
            return stop.value

    async def _run_async(self, steps: Generator[Callable[[], Any], Any, Any]) -> Any:
        try:
            thunk = next(steps)
            while True:
                try:
                    result = thunk()
                    if inspect.isawaitable(result):
                        self.is_async = True  # until the caller sets its own colour again
                        result = await result
                except BaseException as error:
                    thunk = steps.throw(error)
                else:
                    thunk = steps.send(result)
        except StopIteration as stop:
            return stop.value


class Awaited(Awaitable[Any]):
    """What a primitive gives in an `async def` program: `await` it for the value."""

    __slots__ = ("_context", "_message", "address")

    def __init__(self, context: Context, message: Message) -> None:
        """Note that somebody has to await this."""
        self._context = context
        self._message = message
        self.address = message.address
        context.waiting[id(self)] = self

    def _taken(self) -> None:
        if self._context.waiting.pop(id(self), None) is None:
            raise BadProgram(
                f"site {self.address!r} was awaited twice",
                fix='keep its value: value = await sample("name", dist)',
            )
        if local.active is not self._context:
            raise WrongContext(
                f"site {self.address!r} was awaited outside of the run that asked for it",
                fix="await it in the program itself, not in a task, and do not keep it in a global",
            )

    def __await__(self) -> Generator[Any, Any, Any]:
        self._taken()
        context, message = self._context, self._message
        context.process(message)
        if not message.done or message.op in ("sample", "observe"):
            yield from context.answer_async(message)
        value = context.finish(message)
        for steps in message.follow:
            yield from context.send_async(steps)
        return value

    def _refuse(self, *_: object) -> Any:
        raise NotAwaited([self.address])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotAwaited([self.address])

    __bool__ = __iter__ = __len__ = __add__ = __radd__ = __format__ = __contains__ = _refuse
    __lt__ = __gt__ = __le__ = __ge__ = __eq__ = __ne__ = __getitem__ = __int__ = _refuse
    __float__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __call__ = _refuse
    __hash__ = object.__hash__


class AwaitedSteps(Awaited):
    """What `call` and `loop` give in an `async def` program."""

    __slots__ = ("_steps",)

    def __init__(
        self, context: Context, address: str, steps: Generator[Callable[[], Any], Any, Any]
    ) -> None:
        """Nothing runs before it is awaited."""
        super().__init__(context, Message("steps", address, address))
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, Any]:
        self._taken()
        return self._context._run_async(self._steps).__await__()


def check_awaited(context: Context) -> None:
    """At the end of an async program: every message was awaited."""
    if context.waiting:
        raise NotAwaited([a.address for a in context.waiting.values()])
