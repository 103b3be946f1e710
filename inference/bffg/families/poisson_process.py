"""Poisson processes pinned at a count, and Poisson observations of a rate, in JAX.

A process X + Poi(λ(x)Δ), pinned at v, is guided by one of constant rate λ~. With p = Δ/(T - t),
ρ = λ(x)/λ~ and j = v - x:

    child = x + Binomial(j, pρ / (1 - p + pρ))          w = e^{-(λ(x) - λ~)Δ} (1 - p + pρ)^j
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from lmppl.inference.bffg.families.gamma_process import Pinned, blank
from lmppl.inference.bffg.kernels import Kernel, Surrogate, guided, pick, surrogate
from lmppl.inference.bffg.messages import Array, Gamma


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PoissonStep(Surrogate):
    """x + Poi(λΔ): the surrogate, and the kernel of a constant rate.

    Args:
        delta: time Δ [].
        rate: λ [].
        most: the largest increment that is ever drawn.
    """

    delta: Array
    rate: Array
    most: int = field(metadata={"static": True})
    noise = ()

    def forward(self, parent: Array, noise: Array) -> Array:
        """By the inverse of the distribution function."""
        k = jnp.arange(self.most + 1)
        return parent + pick(jnp.exp(poisson_log_prob(k, self.rate * self.delta)), noise)

    def log_prob(self, parent: Array, child: Array) -> Array:
        """The Poisson probability of the increment."""
        return poisson_log_prob(child - parent, self.rate * self.delta)

    def one(self) -> Pinned:
        """Nothing is known."""
        return blank(jnp.result_type(float), True)

    def log_kg(self, message: Pinned, parent: Array) -> Array:
        """log (k g)(x) of the pinned process."""
        return poisson_guided(self.delta, self.rate, self.most, message, parent, 0.0)[1]

    def pullback(self, message: Pinned, anchor: Array) -> Pinned:
        """The same with more time left."""
        left = jnp.where(message.weight > 0, message.left + self.delta, 0.0)
        return replace(message, left=left, rate=self.rate * jnp.ones_like(left))

    def draw(self, message: Pinned, parent: Array, noise: Array) -> Array:
        """A Binomial share of what is left."""
        return poisson_guided(self.delta, self.rate, self.most, message, parent, noise)[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PoissonProcess(Kernel):
    """x + Poi(λ(x)Δ), guided by a constant rate.

    Args:
        delta: time Δ [].
        theta: arrays that the rate needs.
        guess: rate λ~ of the surrogate [].
        rate: (x, θ) -> λ > 0.
        most: the largest increment that is ever drawn.
    """

    delta: Array
    theta: Any
    guess: Array
    rate: Callable[[Array, Any], Array] = field(metadata={"static": True})
    most: int = field(metadata={"static": True})
    noise = ()

    def forward(self, parent: Array, noise: Array) -> Array:
        """By the inverse of the distribution function."""
        rate = self.rate(parent, self.theta)
        return PoissonStep(self.delta, rate, self.most).forward(parent, noise)

    def log_prob(self, parent: Array, child: Array) -> Array:
        """The Poisson probability of the increment."""
        return poisson_log_prob(child - parent, self.rate(parent, self.theta) * self.delta)


@surrogate(PoissonProcess)
def _constant_poisson(kernel: PoissonProcess, anchor: Array) -> PoissonStep:
    return PoissonStep(kernel.delta, kernel.guess, kernel.most)


@guided(PoissonProcess, Pinned)
def _poisson(kernel: PoissonProcess, g: Pinned, parent: Array, noise: Array) -> Any:
    rate = kernel.rate(parent, kernel.theta)
    return poisson_guided(kernel.delta, rate, kernel.most, g, parent, noise)


def poisson_guided(
    delta: Array, rate: Array, most: int, g: Pinned, x: Array, z: Any
) -> tuple[Array, Array]:
    """The guided child, and log (k g)(x): the formulas of the module's first lines."""
    j, p, rho = g.v - x, delta / (delta + g.left), rate / g.rate
    thick = 1 - p + p * rho
    share = p * rho / thick
    k = jnp.arange(most + 1)
    inside = k <= j
    logs = gammaln(j + 1) - gammaln(k + 1) - gammaln(jnp.where(inside, j - k, 0) + 1)
    last = share >= 1
    safe = jnp.where(last, 0.5, share)
    logs = logs + k * jnp.log(safe) + (j - k) * jnp.log1p(-safe)
    logs = jnp.where(last, jnp.where(k == j, 0.0, -jnp.inf), jnp.where(inside, logs, -jnp.inf))
    child = x + pick(jnp.exp(logs), jnp.asarray(z))
    base = replace(g, left=g.left + delta).log_value(x)
    return child, base - (rate - g.rate) * delta + j * jnp.log(thick)


def poisson_log_prob(k: Array, mean: Array) -> Array:
    """log of the Poisson probability; -inf below 0."""
    inside = k >= 0
    n = jnp.where(inside, k, 0)
    return jnp.where(inside, n * jnp.log(mean) - mean - gammaln(n + 1), -jnp.inf)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PoissonLeaf:
    """A count y ~ Poi(E x) of a positive rate x; nan when missing.

    Args:
        E: exposure [].
    """

    E: Array
    exact = True

    def message(self, y: Array, anchor: Array) -> Gamma:
        """F = y, H = E."""
        seen = jnp.isfinite(y)
        n = jnp.where(seen, y, 0.0)
        c = jnp.where(seen, n * jnp.log(self.E) - gammaln(n + 1), 0.0)
        return Gamma(c, n, jnp.where(seen, self.E, 0.0))

    def log_prob(self, x: Array, y: Array) -> Array:
        """The Poisson probability."""
        return self.message(y, x).log_value(x)
