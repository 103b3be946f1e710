"""The roles of a program that decides: `choose` what is controlled, `reward` what is wanted.

| site | role | entropy of variational planning |
| --- | --- | --- |
| `sample` | chance | counts fully |
| `choose` | controlled | does not count: the best action is taken, not averaged |
| `observe`, `factor` | evidence | none |
| `reward` | utility | none: it is the energy, never a likelihood |

`factor("r", reward)` with drawn actions is marginal inference: it sums over the agent's own later
actions as if good luck could be chosen. So a program with `choose` runs under a planner alone
(`lmppl.inference.planning.Planning`); every other engine refuses, naming the site. `handlers.do`
fixes an action and makes an ordinary program of it.

Reference: Lázaro-Gredilla, Ku, Murphy and George, What type of inference is planning? (2024).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NoReturn

from lmppl.context import current
from lmppl.distributions import Distribution, fingerprint_of
from lmppl.errors import BadArgument, LmpplError, excerpt, items_of
from lmppl.jobs import Env
from lmppl.messages import Message
from lmppl.random import fold
from lmppl.types import Key


class NotAPlanner(LmpplError):
    """A program with `choose` was run by an engine that does not plan."""


class Utility(float):
    """A reward on the trace: a number that a planner adds up and every other engine only records."""


class Controlled(Distribution):
    """The actions of a `choose` site: no law, so that it can be neither drawn nor scored."""

    kind = "choose"
    __slots__ = ("actions", "address", "seen")

    def __init__(self, address: str, actions: Sequence[Any], seen: Any) -> None:
        """Keep the parts."""
        self.address = address
        self.actions = tuple(actions)
        self.seen = seen

    def _refuse(self) -> NoReturn:
        raise NotAPlanner(
            f"site {self.address!r} is chosen, and this engine draws: it does not plan",
            why="to draw an action and weigh it by its reward is marginal inference, which is "
            "optimistic: it sums over the agent's own later actions",
            fix="infer(program, engine=lmppl.inference.planning.Planning()); or fix the action: "
            f"handlers.do(program, {{{self.address!r}: {self.actions[0]!r}}}); or write sample(...) "
            "if it is chance",
        )

    def draw(self, key: Key, env: Env) -> Any:
        """Refused."""
        self._refuse()

    def score(self, value: Any, env: Env) -> Any:
        """Refused."""
        self._refuse()

    def support(self, env: Env) -> Any:
        """Refused: a list of actions is not a law."""
        self._refuse()

    @property
    def fingerprint(self) -> int:
        """Of the actions and of what is seen."""
        return fold(
            fingerprint_of("choose"), fingerprint_of(self.actions), fingerprint_of(self.seen)
        )


ALL = "everything before"


def choose(name: str, actions: Sequence[Any], *, seen: Any = ALL) -> Any:
    """A choice that the planner makes.

    Args:
        name: the site's name.
        actions: what can be done here; different values, at least one.
        seen: a hashable value that the choice may depend on. Left out, it may depend on every value
            before it, so nothing drawn before may be hidden. With it, runs that look alike get one
            action, and the policy remembers what it saw and did before: a partly observed problem.

    >>> from lmppl import Uniform, program, sample
    >>> from lmppl.inference import infer
    >>> from lmppl.inference.planning import Planning
    >>> def guess(hidden):
    ...     coin = sample("coin", Uniform(["heads", "tails"]))
    ...     said = choose("said", ["heads", "tails"], seen=None if hidden else coin)
    ...     reward("right", said == coin)
    >>> [infer(guess, hidden, engine=Planning()).value for hidden in (True, False)]
    [0.5, 1.0]
    """
    ctx = current("choose")
    address = ctx.address(name)
    fix = 'write choose("move", ["left", "right"])'
    listed = items_of(actions, f"choose {name!r} needs a list of actions", fix)
    if not listed or not all(isinstance(a, Hashable) for a in listed):
        raise BadArgument(
            f"choose {name!r} needs at least one action, each hashable",
            value=excerpt(actions),
            fix=fix,
        )
    if len(set(listed)) < len(listed):
        raise BadArgument(f"choose {name!r} has an action twice", value=excerpt(actions), fix=fix)
    if not isinstance(seen, Hashable):
        raise BadArgument(
            f"choose {name!r}: seen must be hashable, got {type(seen).__name__}",
            fix="write seen=(a, b)",
        )
    return ctx.perform(Message("sample", name, address, Controlled(address, listed, seen)))


def reward(name: str, value: Any) -> Any:
    """Add to the utility: planners maximise its expectation, other engines record it."""
    ctx = current("reward")
    address = ctx.address(name)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadArgument(
            f"reward {address!r} must be a finite number, got {excerpt(value, 60)}",
            fix="rule an action out by leaving it out of choose, not by a reward of -inf",
        )
    return ctx.perform(Message("deterministic", name, address, None, Utility(number)))
