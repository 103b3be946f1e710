"""Compound Poisson increments: a Poisson number of jumps of random whole sizes, in JAX.

    X + J_1 + … + J_N        N ~ Poi(λ(X) Δ), J of law f on 1, …, K

The law of the sum is Panjer's recursion, p_k = (λΔ/k) Σ_j j f_j p_{k-j}. The guide has a constant
rate λ~, a matrix with equal diagonals; the true row at x, and so the guided child and its weight,

    child ∝ p_{y-x}(λ(x)) g(y)        w = Σ_y p_{y-x}(λ(x)) g(y) / m(x)

are found where a path is. With one size of jump this is `PoissonProcess`, whose pinned form is
closed; here messages are tables, so that counts may be seen in part, with error, or not at all.

Reference: Panjer, Recursive evaluation of a family of compound distributions (1981).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from lmppl.inference.bffg.families.finite import Finite, lifted, safe_log
from lmppl.inference.bffg.kernels import Kernel, guided, pick, surrogate
from lmppl.inference.bffg.messages import Array, Table


def panjer(mean: Array, jumps: Array, top: int) -> Array:
    """P(J_1 + … + J_N = k) for k = 0, …, top, with N ~ Poi(mean) [top + 1].

    Args:
        mean: of the number of jumps []; below 80 in float32, where exp(-mean) must not vanish.
        jumps: law f of the sizes 1, …, K [K].
        top: the largest sum.

    >>> [round(float(p), 4) for p in panjer(2.0, jnp.array([1.0]), 3)]
    [0.1353, 0.2707, 0.2707, 0.1804]
    """
    f = jnp.asarray(jumps)
    sized = f * (1 + jnp.arange(f.shape[0]))
    none = jnp.exp(-jnp.asarray(mean, f.dtype))

    def more(before: Array, k: Array) -> tuple[Array, Array]:
        p = mean / k * (sized @ before)
        return jnp.concatenate([p[None], before[:-1]]), p

    start = jnp.zeros_like(f).at[0].set(none)
    _, p = jax.lax.scan(more, start, 1 + jnp.arange(top, dtype=f.dtype))
    return jnp.concatenate([none[None], p])


def increment_row(p: Array, x: Array) -> Array:
    """The law of the child of x, whose increments have the law p; the last state takes the rest."""
    top = p.shape[0] - 1
    y = jnp.arange(top + 1)
    row = jnp.where((y >= x) & (y < top), p[jnp.clip(y - x, 0, top)], 0.0)
    return row.at[top].set(jnp.maximum(1 - jnp.sum(row), 0.0))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CompoundPoisson(Kernel):
    """A count with jumps of random sizes, at a rate that depends on the count.

    Args:
        delta: time Δ [].
        theta: arrays that the rate needs.
        guess: rate λ~ of the guide [].
        jumps: law of the sizes 1, …, K [K].
        rate: (x, θ) -> λ > 0.
        top: the states are 0, …, top; the last stands for all counts from there on.
    """

    delta: Array
    theta: Any
    guess: Array
    jumps: Array
    rate: Callable[[Array, Any], Array] = field(metadata={"static": True})
    top: int = field(metadata={"static": True})
    noise = ()

    def row(self, x: Array) -> Array:
        """The law of the child of x [top + 1]."""
        return increment_row(panjer(self.rate(x, self.theta) * self.delta, self.jumps, self.top), x)

    def forward(self, parent: Array, noise: Array) -> Array:
        """By the inverse of the distribution function."""
        return pick(self.row(parent), noise)

    def log_prob(self, parent: Array, child: Array) -> Array:
        """log k(x, y)."""
        return safe_log(self.row(parent)[child])


@surrogate(CompoundPoisson)
def _constant_compound(kernel: CompoundPoisson, anchor: Array) -> Finite:
    p = panjer(kernel.guess * kernel.delta, kernel.jumps, kernel.top)
    return Finite(jax.vmap(lambda x: increment_row(p, x))(jnp.arange(kernel.top + 1)))


@guided(CompoundPoisson, Table)
def _compound(
    kernel: CompoundPoisson, g: Table, parent: Array, noise: Array
) -> tuple[Array, Array]:
    value, top = lifted(g)
    tilted = kernel.row(parent) * value
    return pick(tilted, noise), safe_log(jnp.sum(tilted)) + top
