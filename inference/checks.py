"""What is checked around a run: the engine's numbers, the call, the models, the conditions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmppl.arguments import check_integers
from lmppl.errors import BadArgument, UnusedCondition, excerpt
from lmppl.lm.base import LanguageModel
from lmppl.lm.needs import FIXES, require
from lmppl.messengers import wrapped
from lmppl.nearest import which_site
from lmppl.program import ProgramFunction

if TYPE_CHECKING:
    from lmppl.inference.base import Engine
    from lmppl.inference.machine.population import Machine
    from lmppl.inference.results.posterior import Posterior

MOST_PARTICLES = 1_000_000
"""Of 20 kB each."""


def check_particles(engine: str, /, **arguments: Any) -> None:
    """Numbers of runs that fit into memory side by side."""
    check_integers(engine, **arguments)
    for name, value in arguments.items():
        if value > MOST_PARTICLES:
            raise BadArgument(
                f"{engine}: {name}={value:,} need about {value * 20 / 1e6:,.0f} GB of memory",
                fix=f"use at most {MOST_PARTICLES:,}",
            )


def check_actions(engine: str, actions: Any) -> None:
    """Ways to go on by name: a mapping, or None."""
    if actions is None:
        return
    if not isinstance(actions, Mapping) or not all(isinstance(name, str) for name in actions):
        raise BadArgument(
            f"{engine}: actions must be a mapping from name to a way to go on, or left out, "
            f"got {excerpt(actions, 40)}",
            fix='write actions={"plain": {}, "warm": {"temperature": 1.2}}',
        )


def check_capabilities(engine: Engine, program: Any, name: str, model: LanguageModel) -> None:
    """Engine and program get what they need of the model of a name, before any token is drawn.

    Raises:
        CapabilityError: with who needs what.
    """
    for capability in engine.needs:
        require(
            model, capability, type(engine).__name__, FIXES.get(capability, "use another model")
        )
    inner = innermost(program)
    if isinstance(inner, ProgramFunction):
        for capability in (*inner.needs.get(None, ()), *inner.needs.get(name, ())):
            require(model, capability, repr(inner), "use another model")


def innermost(program: Any) -> Any:
    """The program inside its handlers."""
    around = list(wrapped(program))
    return around[-1].fn if around else program


def check_call(program: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The arguments fit the program's signature."""
    inner = innermost(program)
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


def unused_params(machine: Machine, posterior: Posterior) -> list[str]:
    """What to say of `params` that no trace has: another question may have them, so it is no error."""
    if not machine.params or not posterior.traces:
        return []
    met = {e.address for t in posterior.traces for e in t.sites if e.op == "param"}
    return [
        f"no param site is called {name!r}, so its value changes nothing: "
        + which_site(str(name), sorted(met))
        for name in machine.params
        if name not in met
    ]
