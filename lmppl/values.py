"""Values that are handed to several particles must not change: `freeze` makes them so."""

from __future__ import annotations

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
