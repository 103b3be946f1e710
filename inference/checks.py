"""What is checked around a run: the call, the models, and that every condition met its site."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmppl.errors import BadArgument, UnusedCondition
from lmppl.lm.base import LanguageModel, require
from lmppl.messengers import wrapped

if TYPE_CHECKING:
    from lmppl.inference.machine.population import Machine


def check_capabilities(engine: str, needs: Sequence[str], model: LanguageModel) -> None:
    """An engine gets what it needs of a model, or a `CapabilityError` before any token."""
    for capability in needs:
        require(model, capability, engine, "use engine=Forward() or Greedy()")


def check_call(program: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The arguments fit the program's signature."""
    around = list(wrapped(program))
    inner: Any = around[-1].fn if around else program
    try:
        signature = inspect.signature(inner)
    except (TypeError, ValueError):
        return  # nothing to check
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise BadArgument(
            f"the arguments do not fit {getattr(inner, '__name__', 'the program')}{signature}: {error}",
            fix="write infer(program, first, second, ...), and keyword arguments as kwargs={...}",
        ) from None


def check_conditions(machine: Machine) -> None:
    """Every observation of the run, and every site of `condition` and `do`, was met by a particle.

    Raises:
        UnusedCondition: with the nearest names.
    """
    unused = sorted(set(machine.conditions) - machine.used)
    for handler in (*machine.launch.handlers, *wrapped(machine.program)):
        unused += handler.unmet(machine.launch.met)
    if unused:
        raise UnusedCondition(unused, sorted(machine.sites))
