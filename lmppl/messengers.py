"""What all handlers share: how they are entered, copied for a call, and given data by address."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from lmppl.context import local
from lmppl.eager import EagerContext
from lmppl.errors import BadArgument, excerpt
from lmppl.messages import Message
from lmppl.program import ProgramFunction, plain_key
from lmppl.text import Text


class Handler:
    """The base: passes everything on."""

    def __init__(self, fn: Callable[..., Any] | None = None) -> None:
        """Wrap `fn`, or wrap what is run inside a `with` block."""
        self.fn = fn

    def process(self, message: Message) -> None:
        """See a message before it is answered."""

    def postprocess(self, message: Message) -> None:
        """See it with its answer."""

    def unmet(self, met: Collection[str]) -> list[str]:
        """Addresses it was given that no site had, where that is a mistake."""
        return []

    def __enter__(self) -> Any:
        stack = local.active.handlers if local.active is not None else local.ambient
        stack.append(self)
        self._stacks = [*getattr(self, "_stacks", ()), stack]
        return self

    def __exit__(self, *_: object) -> None:
        # the stack it was entered in, whichever run is active now
        stack = self._stacks.pop()
        if self in stack:
            stack.remove(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the wrapped program under a copy of this handler."""
        if self.fn is None:
            raise BadArgument(
                f"{type(self).__name__} wraps no program",
                fix=f"write {type(self).__name__}(program, ...) or use it in a with block",
            )
        from lmppl.frames import is_async

        if local.active is not None and is_async(self.fn):
            return self._call_async(args, kwargs)
        with self.fresh():
            if local.active is None and not isinstance(self.fn, (Handler, ProgramFunction)):
                return EagerContext(plain_key()).enter(self.fn, args, kwargs)
            return self.fn(*args, **kwargs)

    async def _call_async(self, args: Any, kwargs: Any) -> Any:
        with self.fresh():
            return await self.fn(*args, **kwargs)  # type: ignore[misc]

    def fresh(self) -> Handler:
        """A copy for one call: particles run the same handler at the same time."""
        new = copy.copy(self)
        new._stacks = []
        return new


class DataHandler(Handler):
    """A handler with values by address, such as `{"answer": 4, "facts[0]/true": True}`."""

    def __init__(
        self, fn: Any = None, data: Mapping[str, Any] | Callable[[Message], Any] | None = None
    ) -> None:
        """Take `handler(program, data)`, `handler(program, data=...)` and `handler(data=...)`."""
        if isinstance(fn, Mapping) and data is None:
            fn, data = None, fn
        if not isinstance(data, Mapping) and not callable(data):
            raise BadArgument(
                f"{type(self).__name__} needs a mapping from site to value",
                value=excerpt(data),
                fix=f'write {type(self).__name__}(program, data={{"site": value}})',
            )
        super().__init__(fn)
        self.data = data

    def lookup(self, message: Message) -> tuple[bool, Any]:
        """Whether its data names the site, and the value."""
        if not isinstance(self.data, Mapping):
            value = self.data(message)
            return value is not None, value
        if message.address not in self.data:
            return False, None
        if local.active is not None:
            local.active.met.add(message.address)
        return True, placed(self.data[message.address], message.address)

    def left(self, met: Collection[str]) -> list[str]:
        """Addresses of its data that no site had."""
        return [a for a in self.data if a not in met] if isinstance(self.data, Mapping) else []


def placed(value: Any, address: str) -> Any:
    """A given value as the value of a site: a string remembers where it stands."""
    if not isinstance(value, str):
        return value
    return value.at(address) if isinstance(value, Text) else Text(value, address=address)


def wrapped(program: Any) -> Iterator[Handler]:
    """The handlers around a program, outermost first."""
    while isinstance(program, Handler):
        yield program
        program = program.fn
