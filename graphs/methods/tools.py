"""Calling tools from nodes: a tool that fails is a failed attempt, not the end of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmppl.graphs.thoughts.node import NodeFailed
from lmppl.primitives import effect


class Guarded:
    """A function whose exceptions are part of its result: (value, None) or (None, what went wrong)."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        """Keep the function, and its name for the tape."""
        self.tool = fn
        self.__qualname__ = getattr(fn, "__qualname__", type(fn).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, str | None]:
        """Call it."""
        try:
            return self.tool(*args, **kwargs), None
        except MemoryError:
            raise
        except Exception as error:
            return None, f"{type(error).__name__}: {error}"


def use(name: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`effect(name, fn, ...)`; an exception of `fn` is a `NodeFailed` in the program.

    A node then tries again (`retries`), plans anew (`replan`) or is skipped. The call runs once per
    lineage and is never repeated on replay, the failed one neither.

    Raises:
        NodeFailed: with the exception's name and text.
    """
    value, problem = effect(name, Guarded(fn), *args, **kwargs)
    if problem is not None:
        raise NodeFailed(problem)
    return value
