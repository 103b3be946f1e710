"""Kernels of a finite state, in JAX: dense and sparse matrices, exact by matrix products.

    pullback  m = P g                   guided  k°(x, ·) ∝ P[x, ·] g        log (k g)(x) = log P[x] g

With several parents P is a table [S, …, S]; its pullback is a function of all of them, and the
nearest product of one factor each (by alternating contractions, positive as P g is) is sent. The
weight divides by what was sent, so that this costs efficiency and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lmppl.inference.bffg.kernels import Surrogate, pick
from lmppl.inference.bffg.messages import Array, Table

ROUNDS = 12
"""Alternating contractions at a collider: of two parents, the power method."""


def safe_log(p: Array) -> Array:
    """log p, -inf at zero, with finite gradients."""
    return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1.0)), -jnp.inf)


def lifted(g: Table) -> tuple[Array, Array]:
    """exp(log g - top), and top: no product under- or overflows."""
    top, unit = g.normalize()
    return jnp.exp(unit.log_g), top


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Finite(Surrogate):
    """A stochastic matrix.

    Args:
        P: P[x, y] = probability of child y given parent x [S, S]; of a root [S]; with p parents
            [S, …, S] with p + 1 axes.

    >>> k = Finite(jnp.array([[0.9, 0.1], [0.5, 0.5]]))
    >>> m = k.pullback(Table(jnp.log(jnp.array([1.0, 0.5]))), jnp.array(0))
    >>> [round(float(v), 4) for v in jnp.exp(m.log_g)]
    [0.95, 0.75]
    """

    P: Array

    @property
    def noise(self) -> tuple[int, ...]:
        """One number."""
        return ()

    def row(self, parent: Array) -> Array:
        """The law of the child [S]."""
        axes = self.P.ndim - 1
        if axes == 0:
            return self.P
        x = jnp.asarray(parent, dtype=jnp.int32)
        return self.P[x] if axes == 1 else self.P[tuple(x[i] for i in range(axes))]

    def forward(self, parent: Array, noise: Array) -> Array:
        """The inverse of the distribution function."""
        return pick(self.row(parent), noise)

    def log_prob(self, parent: Array, child: Array) -> Array:
        """log P[x, y]."""
        return safe_log(self.row(parent)[child])

    def support(self) -> Array:
        """All states."""
        return jnp.arange(self.P.shape[-1])

    def one(self) -> Table:
        """1 for each state."""
        return Table(jnp.zeros(self.P.shape[-1], self.P.dtype))

    def log_kg(self, message: Table, parent: Array) -> Array:
        """Log P[x] g."""
        g, top = lifted(message)
        return safe_log(self.row(parent) @ g) + top

    def pullback(self, message: Table, anchor: Array) -> Table:
        """Log P g."""
        g, top = lifted(message)
        return Table(safe_log(self.P @ g) + top)

    def draw(self, message: Table, parent: Array, noise: Array) -> Array:
        """From P[x, ·] g, normalised."""
        return pick(self.row(parent) * lifted(message)[0], noise)

    def pullback_many(self, message: Table, anchor: Array) -> Table:
        """The nearest rank-one table, a factor for each parent [p, S]."""
        g, top = lifted(message)
        full = self.P @ g
        p, s = full.ndim, full.shape[0]
        factors = jnp.ones((p, s), full.dtype)

        def contract(factors: Array, i: int) -> Array:
            out = full
            for j in reversed(range(p)):
                if j != i:
                    out = jnp.tensordot(out, factors[j], axes=[[j], [0]])
            return out

        def round_(factors: Array, _: None) -> tuple[Array, None]:
            for i in range(p):
                v = contract(factors, i)
                factors = factors.at[i].set(v / jnp.linalg.norm(v))
            return factors, None

        factors, _ = jax.lax.scan(round_, factors, None, length=ROUNDS)
        size = jnp.sum(contract(factors, 0) * factors[0])
        factors = factors.at[0].multiply(size)
        return Table(safe_log(factors).at[0].add(top))

    def given(self, parents: Array, index: int) -> Finite:
        """The matrix at the states of the others."""
        x = jnp.asarray(parents, dtype=jnp.int32)
        others = tuple(x[i] for i in range(self.P.ndim - 1) if i != index)
        return Finite(jnp.moveaxis(self.P, index, -2)[others])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sparse(Surrogate):
    """A stochastic matrix with few children per parent.

    Args:
        child: the children of each parent [S, k]; repeat one with probability 0 to pad.
        p: their probabilities [S, k].
    """

    child: Array
    p: Array

    @property
    def noise(self) -> tuple[int, ...]:
        """One number."""
        return ()

    def forward(self, parent: Array, noise: Array) -> Array:
        """The inverse of the distribution function."""
        return self.child[parent][pick(self.p[parent], noise)]

    def log_prob(self, parent: Array, child: Array) -> Array:
        """log P[x, y]."""
        return safe_log(jnp.sum(jnp.where(self.child[parent] == child, self.p[parent], 0.0)))

    def one(self) -> Table:
        """1 for each state."""
        return Table(jnp.zeros(self.child.shape[0], self.p.dtype))

    def log_kg(self, message: Table, parent: Array) -> Array:
        """log Σ_j p_j g(child_j)."""
        g, top = lifted(message)
        return safe_log(jnp.sum(self.p[parent] * g[self.child[parent]])) + top

    def pullback(self, message: Table, anchor: Array) -> Table:
        """S k products in place of S²."""
        g, top = lifted(message)
        return Table(safe_log(jnp.sum(self.p * g[self.child], axis=-1)) + top)

    def draw(self, message: Table, parent: Array, noise: Array) -> Array:
        """From p g, normalised."""
        kids = self.child[parent]
        return kids[pick(self.p[parent] * lifted(message)[0][kids], noise)]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FiniteLeaf:
    """A discrete observation y of a finite state.

    Args:
        E: E[x, y] = probability of y given x [S, K].
        guide: the same for the guide [S, K]; E when left out.
    """

    E: Array
    guide: Array | None = None

    @property
    def exact(self) -> bool:
        """Whether the message is the likelihood."""
        return self.guide is None

    def _log(self, table: Array, y: Array) -> Array:
        seen = jnp.isfinite(y) & (y >= 0)
        column = jnp.asarray(table)[:, jnp.where(seen, y, 0).astype(jnp.int32)]
        return jnp.where(seen, safe_log(column), 0.0)

    def message(self, y: Array, anchor: Array) -> Table:
        """log E[·, y]; 1 when y is missing (nan, or below 0)."""
        return Table(self._log(self.E if self.guide is None else self.guide, y))

    def log_prob(self, x: Array, y: Array) -> Array:
        """log E[x, y]."""
        return self._log(self.E, y)[x]
