"""Interacting particles, SIR and contact processes: products of finite kernels, in JAX.

    k(x, y) = Π_i k_i(x, y_i)        every particle moves by itself, given the states of all
    k~      = Π_i P~_i(x_i, y_i)     the influence of the others is frozen at a profile
    w(x)    = Π_i [Σ_y k_i(x, y) g_i(y)] / m_i(x_i)

So messages are n vectors, never a table of S^n entries. The weights make any profile exact; a
profile near what the particles will do makes them even. Each particle has a noise of its own and
moves monotonically with it.

Reference: van der Meulen and Sommer (2025), the section on interacting particle systems.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from lmppl.inference.bffg.families.finite import Finite, FiniteLeaf, lifted, safe_log
from lmppl.inference.bffg.kernels import Kernel, Surrogate, guided, pick
from lmppl.inference.bffg.messages import Array, Factors, Table


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Independent(Surrogate):
    """n particles that do not see each other.

    Args:
        P: a stochastic matrix per particle [n, S, S]; of a root, a law per particle [n, S].
    """

    P: Array

    @property
    def noise(self) -> tuple[int, ...]:
        """A number per particle."""
        return (self.P.shape[0],)

    def rows(self, x: Array) -> Array:
        """The law of each particle [n, S]."""
        if self.P.ndim == 2:
            return self.P
        return self.P[jnp.arange(self.P.shape[0]), x]

    def forward(self, parent: Array, noise: Array) -> Array:
        """Each by the inverse of its distribution function."""
        return jax.vmap(pick)(self.rows(parent), noise)

    def log_prob(self, parent: Array, child: Array) -> Array:
        """Σ log P_i."""
        return row_log_prob(self.rows(parent), child)

    def one(self) -> Factors:
        """1 for each."""
        return Factors(Table(jnp.zeros((self.P.shape[0], self.P.shape[-1]), self.P.dtype)))

    def log_kg(self, message: Factors, parent: Array) -> Array:
        """Σ log P_i[x_i] g_i."""
        return guided_rows(self.rows(parent), message, jnp.zeros(self.noise))[1]

    def pullback(self, message: Factors, anchor: Array) -> Factors:
        """Each by itself."""
        return Factors(jax.vmap(lambda P, g: Finite(P).pullback(g, 0))(self.P, message.parts))

    def draw(self, message: Factors, parent: Array, noise: Array) -> Array:
        """Each by itself."""
        return guided_rows(self.rows(parent), message, noise)[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Interacting(Kernel):
    """n particles, each of which sees the states of all; give it to `Guessed` with a profile.

    Args:
        theta: arrays that the law needs.
        n: how many.
        law: (x [n], θ) -> the law of each particle [n, S].
    """

    theta: Any
    n: int = field(metadata={"static": True})
    law: Callable[[Array, Any], Array] = field(metadata={"static": True})

    @property
    def noise(self) -> tuple[int, ...]:
        """A number per particle."""
        return (self.n,)

    def forward(self, parent: Array, noise: Array) -> Array:
        """Each by the inverse of its distribution function."""
        return jax.vmap(pick)(self.law(parent, self.theta), noise)

    def log_prob(self, parent: Array, child: Array) -> Array:
        """Σ log k_i(x, y_i)."""
        return row_log_prob(self.law(parent, self.theta), child)


@guided(Interacting, Factors)
def _interacting(kernel: Interacting, g: Factors, parent: Array, noise: Array) -> Any:
    return guided_rows(kernel.law(parent, kernel.theta), g, noise)


def guided_rows(rows: Array, g: Factors, noise: Array) -> tuple[Array, Array]:
    """The guided children, and log Π_i rows_i g_i."""

    def one(row: Array, part: Table, z: Array) -> tuple[Array, Array]:
        values, top = lifted(part)
        return pick(row * values, z), safe_log(row @ values) + top

    children, logs = jax.vmap(one)(rows, g.parts, noise)
    return children, jnp.sum(logs)


def row_log_prob(rows: Array, child: Array) -> Array:
    """Σ_i log rows_i[child_i]."""
    return jnp.sum(safe_log(rows[jnp.arange(rows.shape[0]), child]))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ParticleLeaf:
    """An observation of each particle, or of some: y [n], nan where it is missing.

    Args:
        E: E[x, y] = probability of y given the state x of a particle [S, K].
    """

    E: Array
    exact = True

    def message(self, y: Array, anchor: Array) -> Factors:
        """One table per particle."""
        return Factors(jax.vmap(lambda v: FiniteLeaf(self.E).message(v, anchor))(y))

    def log_prob(self, x: Array, y: Array) -> Array:
        """Σ_i log E[x_i, y_i]."""
        return self.message(y, x).log_value(x)


def sir_law(x: Array, theta: Any) -> Array:
    """Laws of particles that are susceptible (0), infected (1) or recovered (2) [n, 3].

    `theta` has "neighbours", a 0/1 matrix [n, n], rates "infect" λ, "recover" μ and "wane" ν, the
    length "tau" of a step, and "spark" (0.001 when left out): the chance of an infection in a step
    without infected neighbours. Without "wane" nobody recovers for good: a contact process, whose
    particles are healthy (0) or infected (1) [n, 2].
    """
    infected = theta["neighbours"] @ (x == 1).astype(jnp.result_type(float))
    return _sir_rows(infected, theta)[jnp.arange(x.shape[0]), x]


def _sir_rows(infected: Array, theta: Any) -> Array:
    tau = theta["tau"]
    stay = (1 - theta.get("spark", 0.001)) * jnp.exp(-theta["infect"] * tau * infected)
    ill = jnp.exp(-theta["recover"] * tau) * jnp.ones_like(stay)
    if "wane" not in theta:
        return jnp.moveaxis(jnp.array([[stay, 1 - stay], [1 - ill, ill]]), -1, 0)
    back = (1 - jnp.exp(-theta["wane"] * tau)) * jnp.ones_like(stay)
    none = jnp.zeros_like(stay)
    table = [[stay, 1 - stay, none], [none, ill, 1 - ill], [back, none, 1 - back]]
    return jnp.moveaxis(jnp.array(table), -1, 0)


def sir_profile(infected: Array, theta: Any) -> Independent:
    """The surrogate of `sir_law` whose particles see `infected` ill neighbours each [n], frozen."""
    return Independent(_sir_rows(infected, theta))
