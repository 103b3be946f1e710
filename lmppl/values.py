"""Values that are handed to several particles must not change: `freeze` makes them so."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NoReturn


class FrozenDict(dict[Any, Any]):
    """A dict that cannot be changed; equal to, and shown as, a plain one."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(
            "a recorded value is shared by particles and cannot be changed: write dict(value) for a copy"
        )

    __setitem__ = __delitem__ = _refuse
    __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> Any:
        return (FrozenDict, (dict(self),))


def freeze(value: Any) -> Any:
    """Lists as tuples, sets as frozensets, dicts as `FrozenDict`, arrays read-only; the rest as is.

    >>> freeze({"a": [1, 2]})
    {'a': (1, 2)}
    """
    if isinstance(value, (str, int, float, bool, bytes, type(None))):
        return value
    if isinstance(value, FrozenDict):
        return value
    if isinstance(value, dict):
        return FrozenDict({k: freeze(v) for k, v in value.items()})
    if type(value) in (list, tuple):
        return tuple(freeze(v) for v in value)
    if isinstance(value, set):
        return frozenset(value)
    flags = getattr(value, "setflags", None)
    if flags is not None:
        value = value.copy()
        value.setflags(write=False)
    return value


class _Same:
    """An object that cannot be hashed: equal to itself alone, and kept alive."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def memo_key(fn: Callable[..., Any], args: tuple[Any, ...]) -> Hashable:
    """Equal for two calls only if they must give the same result.

    A function is its code, its defaults and the values it captured, since inner functions and
    lambdas are made anew in every particle; anything else is itself.

    >>> memo_key(lambda x: x + 1, (3,)) == memo_key(lambda x: x * 2, (3,))
    False
    """
    return (_identity(fn, ()), _identity(args, ()))


def _identity(value: Any, outer: tuple[int, ...]) -> Hashable:
    if id(value) in outer:  # a function that captures itself
        return "itself"
    code = getattr(value, "__code__", None)
    if code is not None and hasattr(value, "__closure__"):
        inside = (*outer, id(value))
        captured = tuple(_contents(cell) for cell in value.__closure__ or ())
        parts = (value.__defaults__, value.__kwdefaults__, captured)
        return (code, value.__module__, *(_identity(p, inside) for p in parts))
    if isinstance(value, partial):
        return ("partial", *(_identity(p, outer) for p in (value.func, value.args, value.keywords)))
    if hasattr(value, "__func__") and hasattr(value, "__self__"):
        return ("method", _identity(value.__func__, outer), _identity(value.__self__, outer))
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, *(_identity(v, outer) for v in value))
    if isinstance(value, dict):
        return ("dict", *((k, _identity(v, outer)) for k, v in value.items()))
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        return ("array", str(value.dtype), value.shape, value.tobytes())
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return (type(value).__name__, value)


def _contents(cell: Any) -> Any:
    """What a function captured: one that can change is meant as itself, not as its contents."""
    try:
        value = cell.cell_contents
    except ValueError:
        return "empty"
    return _Same(value) if isinstance(value, (list, dict, set)) else value
