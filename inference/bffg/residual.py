"""Residuals: functions f_s that multiply the messages of a filter by exp f_s, in JAX.

    G_s(x) = g_s(x) exp f_s(x)                          guides node s
    M_s(x) = m_s(x) Π_u exp f_u(x_u) / children of u    what its weight divides by, u its parents
    w_s    = k G_s / (q M_s)                            f_s comes in once and is divided out once

So W is prior × likelihood / proposal, whatever f is. The best f_s is log h/g, what the messages miss
of the data to come. A finite state is drawn from k G; a Gaussian message is tilted by the slope of f_s
at the guided child without noise, which is a drift; other messages draw as they did, and f decides
where resampling puts the particles. `learned.py` finds f from posterior samples.

Reference: neural backward filtering forward guiding, arXiv 2601.23030 (2026); the weight is the
telescope of twisted sequential Monte Carlo, Zhao, Brekelmans, Makhzani and Grosse (2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.bffg.backward import BackwardFilter
from lmppl.inference.bffg.messages import Array, Gaussian, Message, Table
from lmppl.inference.bffg.model import Model, rows
from lmppl.inference.learning.twists import residual
from lmppl.types import Floats

Value = Callable[[Any, Array], Array]
"""f: (θ of the node, state) -> []."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tilted(Message):
    """g(x) exp(share f(θ, x))."""

    base: Any
    theta: Any
    share: Array
    value: Value = field(metadata={"static": True})
    late = True

    def log_value(self, x: Array) -> Array:
        """log g(x) + share f(θ, x)."""
        return self.base.log_value(x) + self.share * self.value(self.theta, x)

    def normalize(self) -> tuple[Array, Tilted]:
        """The scale of g."""
        scale, unit = self.base.normalize()
        return scale, replace(self, base=unit)

    def one(self) -> Any:
        """1, in the family of g."""
        return self.base.one()

    def at(self, anchor: Array) -> Tilted:
        """About another anchor."""
        return replace(self, base=self.base.at(anchor))

    def fuse(self, other: Any) -> Tilted:
        """With a message of g's family."""
        return replace(self, base=self.base.fuse(other))

    def drawn(self, mean: Callable[[Any], Array]) -> Any:
        """Gaussian messages are tilted by the slope of f at the guided child without noise."""
        if not isinstance(self.base, Gaussian):
            return self.base
        slope = jax.grad(lambda y: self.share * self.value(self.theta, y))(mean(self.base))
        return replace(self.base, F=self.base.F + slope)


def times(message: Any, theta: Any, share: Array, value: Value) -> Any:
    """Stacked messages times exp(share f): tables stay tables."""
    if not isinstance(message, Table):
        return Tilted(message, theta, share, value)

    def one(theta: Any) -> Array:
        return jax.vmap(lambda x: value(theta, x))(jnp.arange(message.log_g.shape[-1]))

    for _ in range(jnp.ndim(share)):
        one = jax.vmap(one)
    return Table(message.log_g + share[..., None] * one(theta))


def table(theta: Array, x: Array) -> Array:
    """A number for each state."""
    return theta[x]


def network(theta: Any, x: Array) -> Array:
    """A hidden layer of tanh units over (x - place) / scale: bounded, so that tails are those of g."""
    place, scale, weights = theta
    found: Array = residual(weights, (jnp.ravel(x) - place) / scale, jnp)
    return found


def children(model: Model) -> Floats:
    """How many each node has [n]."""
    parents = [u for pa in model.parents for u in pa]
    return np.bincount(np.array(parents, dtype=int), minlength=model.n).astype(float)


@dataclass(frozen=True)
class Residual:
    """f, and its parameters at every node.

    Args:
        theta: a pytree of arrays with a row per node [n, …].
        value: (θ of the node, state) -> f [].
        losses: of training.
    """

    theta: Any
    value: Value = network
    losses: tuple[float, ...] = ()

    def on(self, bf: BackwardFilter) -> BackwardFilter:
        """A filter whose messages are multiplied by exp f: for `forward`, `pcn` and the others."""
        model = bf.model
        if model.adaptive or isinstance(bf.g, Tilted):
            raise BadArgument(
                "a residual needs a filter without one, and no adaptive colliders",
                fix="write residual.on(bffg.backward(model, data)), and no adaptive=True",
            )
        kids = children(model)
        # what has no children has nothing to come
        g = times(bf.g, self.theta, jnp.asarray(kids > 0, float), self.value)
        share = jnp.asarray(1 / np.maximum(kids, 1))

        def sent(m: Any, at: Any) -> Any:
            return times(m, rows(self.theta, at), share[at], self.value)

        if model.is_chain:
            return replace(bf, g=g, m=(sent(bf.m[0], np.arange(model.n - 1)),))
        m = tuple(
            tuple(sent(up, b.lanes.parents[..., 0] if b.p == 1 else b.lanes.parents) for b, up in pair)
            for pair in (zip(r, ups, strict=True) for r, ups in zip(model.runs[1:], bf.m, strict=True))
        )  # fmt: skip
        return replace(bf, g=g, m=m)
