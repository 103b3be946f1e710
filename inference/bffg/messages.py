"""Messages: what the backward filter sends from a child to its parent, in JAX.

A message is a positive function of the parent's state, g(x), kept in natural parameters that add
under multiplication. So fusing the messages of several children is a sum of arrays, for one node
or, by a scatter, for a whole level of a tree.

| family | log g(x) | take it for |
| --- | --- | --- |
| `Table` | log_g[x] | a finite state |
| `Gaussian` | c + F'u - ½ u'Hu, u = x - anchor | a real vector |
| `Gamma` | c + F log x - H x | a positive rate |
| `Factors` | Σ_i log g_i(x_i) | independent coordinates: particles, products of kernels |

A Gaussian message is kept about an anchor: c + F'x - ½ x'Hx loses all digits in float32 when the
data lie far from zero, while u stays small. H is never inverted: it is singular for missing data.

Reference: van der Meulen and Schauer, Automatic backward filtering forward guiding (2020).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import jax.numpy as jnp

from lmppl.inference.bffg.small import product

Array = Any
"""A JAX array, or anything that JAX takes for one."""


GROUP = 16
"""Numbers that `pairwise_sum` adds one after the other."""


class Message(ABC):
    """A positive function of a state.

    Laws: `fuse` is associative and commutative up to rounding, and
    `a.fuse(b).log_value(x) = a.log_value(x) + b.log_value(x)`;
    `scale, unit = g.normalize()` means `g.log_value(x) = scale + unit.log_value(x)`.
    """

    late = False
    """Whether the weight of what it guides is known only with the child."""

    @abstractmethod
    def log_value(self, x: Array) -> Array:
        """log g(x)."""

    def drawn(self, mean: Callable[[Any], Array]) -> Message:
        """What children are drawn with in its place, where it is no message of a family.

        Args:
            mean: message -> the child that it guides to without noise.
        """
        return self

    def closed_form(self, find: Callable[[Message], Any]) -> Any:
        """That of a kernel, where it is made of the one for another message; None: as registered.

        Args:
            find: message -> closed form, or None.
        """
        return None

    @abstractmethod
    def normalize(self) -> tuple[Array, Self]:
        """A log scale, and the same message without it: long chains neither under- nor overflow."""

    @abstractmethod
    def one(self) -> Self:
        """The message of the same family that is 1 everywhere."""

    def at(self, anchor: Array) -> Self:
        """The same function, about another anchor."""
        return self

    def fuse(self, other: Self) -> Self:
        """The product: natural parameters add."""
        fused: Self = add(self, other.at(getattr(self, "anchor", None)))
        return fused


def add(a: Any, b: Any) -> Any:
    """The sum of two messages about the same anchor, which is kept."""
    fused = jax.tree.map(jnp.add, a, b)
    return with_anchor(fused, a)


def with_anchor(message: Any, like: Any) -> Any:
    """A message with the anchors of another: they are places, and do not add."""
    if isinstance(message, Gaussian):
        return replace(message, anchor=like.anchor)
    if isinstance(message, Factors):
        return Factors(with_anchor(message.parts, like.parts))
    return message


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Table(Message):
    """g on a finite state.

    Args:
        log_g: log g of each state [S]; -inf where g is zero.

    >>> t = Table(jnp.array([0.0, -1.0])).fuse(Table(jnp.array([-2.0, -2.0])))
    >>> float(t.log_value(1))
    -3.0
    """

    log_g: Array

    def log_value(self, x: Array) -> Array:
        """log g(x)."""
        return self.log_g[jnp.asarray(x, dtype=jnp.int32)]

    def normalize(self) -> tuple[Array, Table]:
        """The largest entry becomes 1."""
        top = jnp.max(self.log_g, axis=-1)
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        return top, Table(self.log_g - top[..., None])

    def one(self) -> Table:
        """log 1 everywhere."""
        return Table(jnp.zeros_like(self.log_g))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gaussian(Message):
    """g(x) = exp(c + F'u - ½ u'Hu) with u = x - anchor.

    Args:
        anchor: a point near which x is expected [d].
        c: log g at the anchor [].
        F: gradient of log g at the anchor [d].
        H: minus its second derivative [d, d], symmetric, positive semi-definite.
    """

    anchor: Array
    c: Array
    F: Array
    H: Array

    @classmethod
    def ones(cls, anchor: Array) -> Gaussian:
        """1 everywhere, about an anchor."""
        a = jnp.asarray(anchor)
        d = a.shape[-1]
        return cls(
            a,
            jnp.zeros(a.shape[:-1], a.dtype),
            jnp.zeros_like(a),
            jnp.zeros(a.shape + (d,), a.dtype),
        )

    def log_value(self, x: Array) -> Array:
        """log g(x)."""
        u = x - self.anchor
        return self.c + product(self.F, u) - 0.5 * product(u, product(self.H, u))

    def at(self, anchor: Array) -> Gaussian:
        """The same function about another anchor."""
        s = anchor - self.anchor
        h = product(self.H, s)
        c = self.c + product(self.F, s) - 0.5 * product(s, h)
        return Gaussian(anchor, c, self.F - h, self.H)

    def normalize(self) -> tuple[Array, Gaussian]:
        """The value at the anchor becomes 1."""
        return self.c, replace(self, c=jnp.zeros_like(self.c))

    def one(self) -> Gaussian:
        """1 everywhere, about the same anchor."""
        return Gaussian(
            self.anchor, jnp.zeros_like(self.c), jnp.zeros_like(self.F), jnp.zeros_like(self.H)
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gamma(Message):
    """g(x) = exp(c + F log x - H x) on x > 0: what a Poisson observation says of its rate.

    Args:
        c: log scale [].
        F: power, at least 0 [].
        H: rate, at least 0 [].
    """

    c: Array
    F: Array
    H: Array

    def log_value(self, x: Array) -> Array:
        """log g(x)."""
        return self.c + self.F * jnp.log(x) - self.H * x

    def normalize(self) -> tuple[Array, Gamma]:
        """The constant becomes 0."""
        return self.c, replace(self, c=jnp.zeros_like(self.c))

    def one(self) -> Gamma:
        """1 everywhere."""
        return Gamma(jnp.zeros_like(self.c), jnp.zeros_like(self.F), jnp.zeros_like(self.H))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factors(Message):
    """A product of messages, one for each coordinate of the state.

    Args:
        parts: messages of one family, stacked along a first axis [k, …].
    """

    parts: Any

    def log_value(self, x: Array) -> Array:
        """Σ_i log g_i(x_i)."""
        return jnp.sum(jax.vmap(lambda g, v: g.log_value(v))(self.parts, x))

    def at(self, anchor: Array) -> Factors:
        """Each about its own anchor."""
        if anchor is None:
            return self
        return Factors(jax.vmap(lambda g, a: g.at(a))(self.parts, anchor))

    def fuse(self, other: Factors) -> Factors:
        """Coordinate by coordinate."""
        return Factors(jax.vmap(lambda a, b: a.fuse(b))(self.parts, other.parts))

    def normalize(self) -> tuple[Array, Factors]:
        """The sum of the scales."""
        scales, parts = jax.vmap(lambda g: g.normalize())(self.parts)
        return jnp.sum(scales), Factors(parts)

    def one(self) -> Factors:
        """1 everywhere."""
        return Factors(jax.vmap(lambda g: g.one())(self.parts))


class PerParent:
    """Messages to several parents [p, …] as one function of their stacked states."""

    def __init__(self, parts: Any) -> None:
        self.parts = parts

    def log_value(self, x: Array) -> Array:
        """Σ_u log m_u(x_u)."""
        return jnp.sum(jax.vmap(lambda m, v: m.log_value(v))(self.parts, x))


def pairwise_sum(x: Array) -> Array:
    """Σ x_i over the first axis in groups of groups: the rounding error grows as log n, not as n.

    >>> float(pairwise_sum(jnp.arange(5.0)))
    10.0
    """
    while x.shape[0] > GROUP:
        spare = jnp.zeros((-x.shape[0] % GROUP, *x.shape[1:]), x.dtype)
        x = jnp.concatenate([x, spare]).reshape(-1, GROUP, *x.shape[1:]).sum(axis=1)
    return jnp.sum(x, axis=0)
