"""`@program`: a function whose named sites are a model."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from types import MethodType
from typing import Any, Generic, ParamSpec, TypeVar, overload

from lmppl.context import local
from lmppl.eager import EagerContext
from lmppl.errors import BadProgram, excerpt
from lmppl.frames import is_async
from lmppl.lm.needs import Needs, declared
from lmppl.types import Key

P = ParamSpec("P")
R = TypeVar("R")


class ProgramFunction(Generic[P, R]):
    """A function that engines can run; called plainly, it samples itself eagerly."""

    __name__: str
    __qualname__: str

    def __init__(self, fn: Callable[P, R], needs: Needs = ()) -> None:
        """Refuse what cannot be suspended and replayed."""
        check_program(fn)
        self.fn = fn
        self.needs = declared(needs)
        """Capabilities that it asks of models, by their names in it; None: of every one."""
        self._is_async = is_async(fn)
        functools.update_wrapper(self, fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Inside a run: the function itself, its sites in the same scope. Outside: sample eagerly."""
        active = local.active
        if active is not None:
            if self._is_async == active.is_async:
                return self.fn(*args, **kwargs)
            if self._is_async:  # a plain program cannot await it
                return active.drive(self.fn(*args, **kwargs))  # type: ignore[no-any-return]
            active.is_async = False
            try:
                return self.fn(*args, **kwargs)
            finally:
                active.is_async = True
        context = EagerContext(plain_key())
        return context.enter(self.fn, args, kwargs)  # type: ignore[no-any-return]

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """In a class: a method, whose first argument is the object."""
        return self if instance is None else MethodType(self, instance)

    def __reduce__(self) -> str:
        """Pickled by its name, as a function is."""
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<program {getattr(self.fn, '__qualname__', self.fn)}>"


@overload
def program(fn: Callable[P, R], *, needs: Needs = ()) -> ProgramFunction[P, R]: ...


@overload
def program(*, needs: Needs) -> Callable[[Callable[P, R]], ProgramFunction[P, R]]: ...


def program(fn: Any = None, *, needs: Needs = ()) -> Any:
    """Make a program of a plain or `async def` function.

    The function may call `sample`, `observe`, `factor` and the other primitives. Everything else
    in it must be a function of its arguments and of their values: engines replay it.

    Args:
        fn: the function.
        needs: capabilities that its sites will ask of their language models, such as "masks" or
            "scores_text" (`lmppl.lm.base.Capabilities`); or a mapping from the name of a model to
            its own. `infer` refuses a model that lacks one before anything is drawn.

    Raises:
        BadProgram: a generator, an async generator, a class, or no function at all.

    >>> from lmppl import Uniform, sample
    >>> @program
    ... def coin():
    ...     return sample("side", Uniform(["heads", "tails"]))
    >>> coin() in ("heads", "tails")
    True
    """
    if fn is None and needs:
        return functools.partial(ProgramFunction, needs=needs)
    return ProgramFunction(fn, needs)


def check_program(fn: Any) -> None:
    """Say what can be a program."""
    what = None
    fix = "write a def or async def function that calls sample(...) and returns a value"
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        what = "a generator function"
    elif inspect.isclass(fn):
        what = "a class"
    elif not callable(fn):
        what = f"a value of type {type(fn).__name__}"
        fix = "pass the function itself, not its result: infer(program, argument, ...)"
        if inspect.iscoroutine(fn):
            fn.close()
    if what is not None:
        raise BadProgram(f"{what} cannot be a program", value=excerpt(fn), fix=fix)


def plain_key() -> Key:
    """The key of a plain call: of the innermost `handlers.seed`, else from the operating system."""
    return local.seeds[-1] if local.seeds else int.from_bytes(os.urandom(8), "little")
