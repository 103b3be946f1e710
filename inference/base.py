"""`Engine`: what every inference algorithm is.

An engine is an immutable description of an algorithm. `engine.run(machine)` is a generator that
moves particles (`lmppl.inference.machine.population`) and returns a `Posterior`;
`engine.target(program)` says in words and formula which law it samples. To add one, write `run`;
see `docs/adding_an_engine.md`.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from lmppl import potentials
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.results.posterior import Posterior
from lmppl.random import Chance


class Engine(ABC):
    """An inference algorithm."""

    needs: ClassVar[tuple[str, ...]] = ("logprobs",)
    """Capabilities (`lmppl.lm.needs`) that it asks of every language model, before any token is drawn."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Let `target` name what potentials around the program multiply, and `repr` be short."""
        super().__init_subclass__(**options)
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = Engine.__repr__  # type: ignore[method-assign]  # else @dataclass writes one
        if "target" in cls.__dict__:
            cls.target = with_terms(cls.target)  # type: ignore[method-assign]

    @abstractmethod
    def run(self, machine: Machine) -> Jobs:
        """Move particles to a posterior: a generator that yields jobs and returns it."""

    @abstractmethod
    def target(self, program: Any = None) -> str:
        """Which law the weighted traces have, in words and formula."""

    def __repr__(self) -> str:
        """As it is written: the first argument, which is nearly always its size, and what was set."""
        if not dataclasses.is_dataclass(self):
            return f"{type(self).__name__}()"
        shown = []
        for at, field in enumerate(f for f in dataclasses.fields(self) if f.repr):
            value = getattr(self, field.name)
            if at == 0 or not (value is field.default or _equal(value, field.default)):
                shown.append(f"{field.name}={_written(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def chance(self, chance: Chance) -> Chance:
        """The chance that this engine wants (greedy decoding wants none)."""
        return chance

    def infer(self, program: Callable[..., Any], *args: Any, **options: Any) -> Posterior:
        """`infer(program, ..., engine=self)`, for code that may not import this package."""
        from lmppl.inference.calls import infer

        return infer(program, *args, engine=self, **options)


def _equal(a: Any, b: Any) -> bool:
    same = type(a) is type(b) and a == b
    return same is True


def _written(value: Any) -> str:
    """A function by its name: its place in memory says nothing."""
    name = getattr(value, "__qualname__", None)
    return name.rpartition(".")[2] if isinstance(name, str) and callable(value) else repr(value)


def with_terms(target: Callable[..., str]) -> Callable[..., str]:
    """A `target` that says what γ is where the program is wrapped in potentials."""

    @functools.wraps(target)
    def said(self: Engine, program: Any = None) -> str:
        law = target(self, program)
        line = potentials.terms(program)
        return f"{law}\nγ(trace) includes {line}" if line and line not in law else law

    return said
