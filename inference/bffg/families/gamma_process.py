"""Gamma processes pinned at a value, and Gamma rates of Poisson counts, in JAX.

A Gamma process of rate β(x), pinned at v at the end of its time, is guided by the one of constant
rate β~, whose law of the remaining increment s = v - x is known. With A = αΔ, B = α(T - t - Δ) and
δ = β(x) - β~ the best child is x + s U with U of density ∝ u^{A-1} (1-u)^{B-1} e^{-δ s u}. It is
proposed with the tilt constant on cells of equal Beta probability, and the weight divides by the
density of that proposal, so that the law is exact.

Quantiles are found by bisection, which passes no gradients: move parameters with `PMMH`, noise with
`pcn`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, ndtr

from lmppl.inference.bffg.kernels import Kernel, Surrogate, surrogate
from lmppl.inference.bffg.messages import Array, Gamma, Message

CELLS = 64
"""Cells of equal Beta probability on which the tilt of a proposal is constant."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pinned(Message):
    """g(x) = law of the surrogate process from x, over the time that is left, at the value v.

    Args:
        v: where it is pinned [].
        left: shape α(T - t) that is left (Gamma), or time T - t (Poisson) [].
        rate: of the surrogate: β~, or λ~ [].
        c: log scale [].
        weight: 1 where it is pinned, 0 where nothing is known [].
        counts: whether the values are counts (Poisson) in place of reals (Gamma).
    """

    v: Array
    left: Array
    rate: Array
    c: Array
    weight: Array
    counts: bool = field(default=False, metadata={"static": True})

    def log_value(self, x: Array) -> Array:
        """log g(x); -inf beyond v."""
        s = self.v - x
        on = (self.weight > 0) & (self.left > 0)
        left = jnp.where(on, self.left, 1.0)
        if self.counts:
            inside = s >= 0
            j = jnp.where(inside, s, 0.0)
            mean = self.rate * left
            value = j * jnp.log(jnp.where(on, mean, 1.0)) - mean - gammaln(j + 1)
        else:
            inside = s > 0
            r = jnp.where(inside, s, 1.0)
            value = (
                left * jnp.log(self.rate) + (left - 1) * jnp.log(r) - self.rate * r - gammaln(left)
            )
        known = jnp.where(inside, value, -jnp.inf)
        return self.c + jnp.where(on, known, 0.0)

    def normalize(self) -> tuple[Array, Pinned]:
        """The constant becomes 0."""
        return self.c, replace(self, c=jnp.zeros_like(self.c))

    def one(self) -> Pinned:
        """Nothing is known."""
        zero = jnp.zeros_like(self.c)
        return Pinned(zero, zero, zero, zero, zero, self.counts)


def blank(dtype: Any, counts: bool) -> Pinned:
    """Nothing is known."""
    zero = jnp.zeros((), dtype)
    return Pinned(zero, zero, zero, zero, zero, counts)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PinnedLeaf:
    """The value of the process itself, without error: y is where it is pinned, at the last node.

    Args:
        rate: of the surrogate, β~ or λ~ [].
        counts: as in `Pinned`.
    """

    rate: Array
    counts: bool = field(default=False, metadata={"static": True})
    exact = True

    def message(self, y: Array, anchor: Array) -> Pinned:
        """Pinned, with no time left."""
        one = jnp.ones_like(self.rate)
        return Pinned(y * one, 0 * one, self.rate, 0 * one, one, self.counts)

    def log_prob(self, x: Array, y: Array) -> Array:
        """0 at y."""
        return jnp.where(x == y, 0.0, -jnp.inf)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GammaStep(Surrogate):
    """x + Gamma(A, rate β): the surrogate, and the kernel of a constant rate.

    Args:
        A: shape αΔ [].
        beta: rate [].
    """

    A: Array
    beta: Array
    noise = ()

    def forward(self, parent: Array, noise: Array) -> Array:
        """By the inverse of the distribution function, tabulated."""
        return parent + gamma_quantile(self.A, noise) / self.beta

    def log_prob(self, parent: Array, child: Array) -> Array:
        """The Gamma density of the increment."""
        return gamma_log_prob(child - parent, self.A, self.beta)

    def one(self) -> Pinned:
        """Nothing is known."""
        return blank(jnp.result_type(float), False)

    def log_kg(self, message: Pinned, parent: Array) -> Array:
        """Shapes add."""
        return self.pullback(message, parent).log_value(parent)

    def pullback(self, message: Pinned, anchor: Array) -> Pinned:
        """The same with more time left; exact when the message has the rate of this kernel."""
        left = jnp.where(message.weight > 0, message.left + self.A, 0.0)
        return replace(message, left=left, rate=self.beta * jnp.ones_like(left))

    def draw(self, message: Pinned, parent: Array, noise: Array) -> Array:
        """A Beta share of what is left."""
        B = jnp.where(message.left > 0, message.left, 1.0)
        share = beta_quantile(self.A, B, ndtr(noise))
        s = message.v - parent
        return jnp.where(message.left > 0, parent + s * share, message.v)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GammaProcess(Kernel):
    """x + Gamma(A, rate β(x)), guided by a constant rate.

    Args:
        A: shape αΔ [].
        theta: arrays that the rate needs.
        guess: rate β~ of the surrogate [].
        rate: (x, θ) -> β > 0.
    """

    A: Array
    theta: Any
    guess: Array
    rate: Callable[[Array, Any], Array] = field(metadata={"static": True})
    noise = ()

    def forward(self, parent: Array, noise: Array) -> Array:
        """By the inverse of the distribution function."""
        return parent + gamma_quantile(self.A, noise) / self.rate(parent, self.theta)

    def log_prob(self, parent: Array, child: Array) -> Array:
        """The Gamma density of the increment."""
        return gamma_log_prob(child - parent, self.A, self.rate(parent, self.theta))

    def proposal(self, message: Any, parent: Array) -> TiltedBeta:
        """A share of what is left, tilted to the true rate."""
        tilt = self.rate(parent, self.theta) - message.rate
        return TiltedBeta(self.A, message, tilt)


@surrogate(GammaProcess)
def _constant_rate(kernel: GammaProcess, anchor: Array) -> GammaStep:
    return GammaStep(kernel.A, kernel.guess)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TiltedBeta(Kernel):
    """The proposal of a pinned Gamma step; see the module's first lines.

    Args:
        A: shape of the increment [].
        g: where the process is pinned.
        tilt: δ [].
    """

    A: Array
    g: Pinned
    tilt: Array
    noise = ()

    def _cells(self, parent: Array) -> tuple[Array, Array, Array]:
        B = jnp.where(self.g.left > 0, self.g.left, 1.0)
        s = self.g.v - parent
        middle = beta_quantile(self.A, B, (jnp.arange(CELLS) + 0.5) / CELLS)
        return B, s, jax.nn.softmax(-self.tilt * s * middle)

    def forward(self, parent: Array, noise: Array) -> Array:
        """A cell by its probability, then the Beta law within it."""
        B, s, p = self._cells(parent)
        edges = jnp.cumsum(p)
        u = ndtr(noise) * edges[-1]
        k = jnp.clip(jnp.sum(edges < u), 0, CELLS - 1)
        inside = jnp.clip((u - edges[k]) / p[k] + 1, 1e-9, 1 - 1e-9)
        share = beta_quantile(self.A, B, (k + inside) / CELLS)
        return jnp.where(self.g.left > 0, parent + s * share, self.g.v)

    def log_prob(self, parent: Array, child: Array) -> Array:
        """Its density; 0 in the last step, which has no choice."""
        B, s, p = self._cells(parent)
        share = jnp.clip((child - parent) / s, 0.0, 1.0)
        k = jnp.floor(jax.scipy.special.betainc(self.A, B, share) * CELLS)
        k = jnp.clip(k, 0, CELLS - 1).astype(jnp.int32)
        constant = gammaln(self.A + B) - gammaln(self.A) - gammaln(B)
        logs = (self.A - 1) * jnp.log(share) + (B - 1) * jnp.log1p(-share)
        value = constant + logs - jnp.log(s) + jnp.log(p[k] * CELLS)
        return jnp.where(self.g.left > 0, value, 0.0)


def gamma_log_prob(s: Array, A: Array, beta: Array) -> Array:
    """log of the Gamma density."""
    r = jnp.where(s > 0, s, 1.0)
    value = A * jnp.log(beta) + (A - 1) * jnp.log(r) - beta * r - gammaln(A)
    return jnp.where(s > 0, value, -jnp.inf)


def gamma_quantile(A: Array, z: Array) -> Array:
    """The value of a standard Gamma law at Φ(z), by bisection in log x."""
    return _bisect(lambda t: jax.scipy.special.gammainc(A, jnp.exp(t)), ndtr(z), -60.0, 8.0)


def _bisect(cdf: Callable[[Array], Array], u: Array, low: float, high: float) -> Array:
    def halve(_: int, ends: Any) -> Any:
        lo, hi = ends
        mid = 0.5 * (lo + hi)
        below = cdf(mid) < u
        return jnp.where(below, mid, lo), jnp.where(below, hi, mid)

    start = (low * jnp.ones_like(u), high * jnp.ones_like(u))
    lo, hi = jax.lax.fori_loop(0, 48, halve, start)
    return jnp.exp(0.5 * (lo + hi))


def beta_quantile(A: Array, B: Array, u: Array) -> Array:
    """The Beta quantile by bisection in log x."""
    return _bisect(lambda t: jax.scipy.special.betainc(A, B, jnp.exp(t)), u, -40.0, 0.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GammaRate(Surrogate):
    """A rate x ~ Gamma(A, rate B), whatever the parent: conjugate to `PoissonLeaf`.

    Args:
        A: shape [].
        B: rate [].
    """

    A: Array
    B: Array
    noise = ()

    def forward(self, parent: Array, noise: Array) -> Array:
        """By the inverse of the distribution function."""
        return gamma_quantile(self.A, noise) / self.B

    def log_prob(self, parent: Array, child: Array) -> Array:
        """The Gamma density."""
        return gamma_log_prob(child, self.A, self.B)

    def one(self) -> Gamma:
        """1 everywhere."""
        zero = jnp.zeros((), jnp.result_type(float))
        return Gamma(zero, zero, zero)

    def log_kg(self, message: Gamma, parent: Array) -> Array:
        """The ratio of two Gamma constants."""
        shape, rate = self.A + message.F, self.B + message.H
        prior = self.A * jnp.log(self.B) - gammaln(self.A)
        return message.c + prior - shape * jnp.log(rate) + gammaln(shape)

    def pullback(self, message: Gamma, anchor: Array) -> Gamma:
        """A number: the child does not depend on the parent."""
        return Gamma(self.log_kg(message, anchor), 0.0 * message.F, 0.0 * message.H)

    def draw(self, message: Gamma, parent: Array, noise: Array) -> Array:
        """Gamma(A + F, rate B + H)."""
        return gamma_quantile(self.A + message.F, noise) / (self.B + message.H)
