"""A run of a program that keeps its laws: what `from_program` reads, in JAX.

`Recorder` is a context as those of the engines; its sample sites take the values that they are
given, numbers or JAX tracers, so that a step of a program becomes a function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from lmppl.context import Context, local
from lmppl.errors import BadArgument
from lmppl.inference.bffg.messages import Array
from lmppl.messages import Message

SHAPE = "from_program takes a program with one loop, whose step draws the next state and returns it"


@dataclass
class Seen:
    """What a run of the program, or of one step, did."""

    samples: list[tuple[str, Any]] = field(default_factory=list)
    observed: list[tuple[str, Any, Any]] = field(default_factory=list)


class Recorder(Context):
    """A run whose states are given, and whose laws are kept.

    Args:
        choose: the value of a sample site, given its law.
    """

    def __init__(self, choose: Callable[[Any], Any]) -> None:
        """Start with nothing seen."""
        super().__init__([])
        self.choose = choose
        self.seen = Seen()
        self.steps: list[tuple[Callable[..., Any], Any, int, str]] = []
        self.loops = 0
        self.before = 0
        """Observations before the loop."""

    def answer(self, message: Message) -> None:
        """Keep laws and observations; refuse what a chain does not have."""
        if message.op == "sample":
            message.value = self.choose(message.dist)
            self.seen.samples.append((message.address, message.dist))
        elif message.op == "observe":
            self.seen.observed.append((message.address, message.dist, message.value))
        elif message.op == "cached":
            message.value = message.fn(*message.args)
        elif message.op not in ("deterministic", "param"):
            raise BadArgument(
                f"site {message.address!r}: from_program cannot convert {message.op!r}", why=SHAPE
            )
        message.done = True

    def mark(self) -> Any:
        """There is no tape."""
        return None

    def fold(self, base: Any, op: str, address: str, value: Any, note: Any = None) -> None:
        """There is no tape."""

    def run(self, address: str, steps: Any) -> Any:
        """Keep the steps of the loop, and run them."""
        self.loops += 1
        self.before = len(self.seen.observed)
        try:
            thunk = next(steps)
            while True:
                if not hasattr(thunk, "func"):
                    raise BadArgument(f"{address!r} is no loop", why=SHAPE)
                carry, t = thunk.args
                self.steps.append((thunk.func, carry, t, self.scope))
                thunk = steps.send(thunk())
        except StopIteration as stop:
            return stop.value

    def enter(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run `fn` here."""
        before = local.active
        local.active = self
        try:
            return fn(*args, **kwargs)
        finally:
            local.active = before


def any_value(law: Any) -> Any:
    """A value that the law may have: its mean, or the first of its support."""
    if is_gaussian(law):
        return moments(law)[0]
    return support(law)[0][0]


def run_step(step: tuple[Any, Any, int, str], carry: Any, value: Any = None) -> Seen:
    """What a step does from a carry, when the state it draws is `value`."""
    fn, _, t, scope = step
    recorder = Recorder(any_value if value is None else lambda law: value)
    recorder.scope = scope
    result = recorder.enter(fn, carry, t)
    seen = recorder.seen
    if len(seen.samples) != 1 or len(seen.observed) > 1:
        raise BadArgument(
            f"step {t} has {len(seen.samples)} sample and {len(seen.observed)} observe sites",
            why=SHAPE,
        )
    if value is not None and result is not value and not np.array_equal(result, value):
        raise BadArgument(f"step {t} does not return the state that it draws", why=SHAPE)
    return seen


def support(law: Any) -> list[tuple[Any, float]]:
    """Every value with its log-probability."""
    from lmppl.batches import run_now
    from lmppl.distributions import _plain_env
    from lmppl.ledger import Ledger

    pairs: list[tuple[Any, float]] = run_now(
        law.support(_plain_env(None)), _plain_env(None), Ledger()
    )
    return pairs


def base_of(law: Any) -> Any:
    """The NumPyro distribution of a site, without the wrapper."""
    return getattr(law, "dist", law)


def is_gaussian(law: Any) -> bool:
    """Whether it is one of NumPyro's normal laws."""
    base = base_of(law)
    inner = getattr(base, "base_dist", base)
    return type(inner).__name__ in ("Normal", "MultivariateNormal")


def moments(law: Any) -> tuple[Array, Array]:
    """Mean [d] (or [] for a scalar state), and noise factor [d, d]."""
    base = base_of(law)
    inner = getattr(base, "base_dist", base)
    mean = jnp.asarray(base.mean)
    if type(inner).__name__ == "MultivariateNormal":
        return mean, inner.scale_tril
    scale = jnp.broadcast_to(jnp.asarray(inner.scale), mean.shape)
    return mean, jnp.diag(jnp.ravel(scale))
