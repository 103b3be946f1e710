"""A defensive guide: g + ε in the place of g, in JAX.

    q(x, ·) = λ k g/(k g)(x) + (1 - λ) k(x, ·)      λ = (k g)(x) / ((k g)(x) + ε)
    w       = ((k g)(x) + ε) / M(x)                 M = (g + ε) of the parent, divided among its children

A guide that is too narrow sends no path to where much of the posterior is, and those few that arrive
have weights without a variance, which an effective sample size does not show. With ε some children
ignore the guide, and no weight is above the likelihood of its path times Π (1 + sup g / ε) over steps.
E[W] = p(data) for every ε > 0.

The mixture needs no number more than the noise of the kernel: its first normal also says which of the
two is drawn. So the path jumps where the noise crosses λ: leave this out under HMC.

Reference: van der Meulen and Schauer, Automatic backward filtering forward guiding (2020); Hesterberg,
Weighted average importance sampling and defensive mixture distributions (1995).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from lmppl.errors import BadArgument
from lmppl.inference.bffg.backward import BackwardFilter
from lmppl.inference.bffg.forward import is_before_draw
from lmppl.inference.bffg.kernels import Guided
from lmppl.inference.bffg.messages import Array, Message
from lmppl.inference.bffg.residual import Residual, children

TINY = 1e-30
"""No division by zero, and no infinite normal."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Plus(Message):
    """g(x) + ε."""

    base: Any
    log_epsilon: Array

    def log_value(self, x: Array) -> Array:
        """log (g(x) + ε)."""
        return jnp.logaddexp(self.base.log_value(x), self.log_epsilon)

    def normalize(self) -> tuple[Array, Plus]:
        """The scale of g."""
        scale, unit = self.base.normalize()
        return scale, Plus(unit, self.log_epsilon - scale)

    def one(self) -> Any:
        """1, in the family of g."""
        return self.base.one()

    def at(self, anchor: Array) -> Plus:
        """About another anchor."""
        return replace(self, base=self.base.at(anchor))

    def closed_form(self, find: Callable[[Message], Guided | None]) -> Guided | None:
        """The mixture of the closed form for g and the kernel itself."""
        form = find(self.base)
        if form is None:
            return None

        def mixed(kernel: Any, g: Any, x: Array, z: Array) -> tuple[Array, Array]:
            log_kg = form(kernel, g.base, x, z)[1]
            total = jnp.logaddexp(log_kg, g.log_epsilon)
            guided, z = which(z, jnp.exp(log_kg - total))
            y = form(kernel, g.base, x, z)[0]
            return jnp.where(guided, y, kernel.forward(x, z).astype(y.dtype)), total

        return mixed


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Defended(Plus):
    """g + ε to draw with; where no child divides by it, g is what enters the weight."""

    last: Array
    late = True

    def log_value(self, x: Array) -> Array:
        """log (g(x) + ε), or log g(x) of a node without children."""
        return jnp.where(self.last, self.base.log_value(x), super().log_value(x))

    def drawn(self, mean: Callable[[Any], Array]) -> Plus:
        """Children are drawn with g + ε."""
        return Plus(self.base, self.log_epsilon)


def which(z: Array, p: Array) -> tuple[Array, Array]:
    """Whether, with probability p, the first of two is drawn; and normals that are independent of it.

    Of two tails of total mass v the first normal is uniform in v: large v are the first, small ones the
    second, which keeps the precision of the tails where they are needed.
    """
    if z.size == 0:
        return jnp.asarray(True), z
    flat = jnp.ravel(z)
    v = 2 * jax.scipy.special.ndtr(-jnp.abs(flat[0]))
    first = v >= 1 - p
    share = jnp.where(first, (v - (1 - p)) / jnp.maximum(p, TINY), v / jnp.maximum(1 - p, TINY))
    share = jnp.clip(share, TINY, 1.0)
    size = -jax.scipy.special.ndtri(0.5 * share)
    return first, flat.at[0].set(jnp.where(flat[0] < 0, -size, size)).reshape(z.shape)


def _excess(theta: Plus, x: Array) -> Array:
    """log (g + ε)/g."""
    return theta.log_value(x) - theta.base.log_value(x)


def defensive(bf: BackwardFilter, epsilon: float | Array = 0.1) -> BackwardFilter:
    """A filter that guides by g + ε: for `forward`, `particle_gibbs`, `pcn` and the others.

    Args:
        bf: of `backward`.
        epsilon: ε, where g is 1 at its anchor, or at the best of finitely many states.

    Its kernels need closed forms, and its guide must not be zero where the likelihood is not: zeros
    are healed by pseudocounts, before.
    """
    if not jnp.all(jnp.asarray(epsilon) > 0):
        raise BadArgument(
            f"a defensive guide needs epsilon > 0, got {epsilon!r}", fix="write epsilon=0.1"
        )
    model = bf.model
    late = [kind for kind in dict.fromkeys(model.kinds) if not is_before_draw(bf, kind)]
    if late:
        raise BadArgument(
            f"a defensive guide needs kernels whose weight is known before the draw, and {late} are not",
            fix="use inflate=, or register a closed form",
        )
    log_epsilon = jnp.broadcast_to(jnp.log(jnp.asarray(epsilon)), (model.n,))
    plus = Plus(bf.g, log_epsilon)
    last = jnp.asarray(children(model) == 0)
    return replace(Residual(plus, _excess).on(bf), g=Defended(bf.g, log_epsilon, last))
