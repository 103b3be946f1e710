"""Gaussian kernels: linear in closed form, nonlinear by a surrogate, in JAX.

A kernel is mean(x) + L(x) ε with ε ~ N(0, I_r); L is d × r, so that singular noise (r < d), no
noise (r = 0) and full noise are one case. With a message (a, c, F, H) and s = mean(x) - a:

    M = I + L'HL = CC'      ε* = M⁻¹ L'(F - Hs)      u* = s + L ε*
    log (k g)(x)    = log g(a + u*) - ½ |ε*|² - Σ log diag C
    child           = a + u* + L C'⁻¹ z
    pullback to a_p : K = C⁻¹ (HL)'   H⁺ = B'(H - K'K) B   F⁺ = B'(F - H u*)

ε* is where log g - ½ |ε|² is largest, so that its rounding hardly counts. M has eigenvalues ≥ 1, and
neither H nor the noise is inverted: missing, partial and hypo-elliptic observations need no case of
their own.

Reference: van der Meulen and Schauer (2020), section on Gaussian kernels; the noise-factor form is
the square-root information filter, Bierman (1977).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from lmppl.inference.bffg.families.gaussian_segment import GaussianSegment
from lmppl.inference.bffg.kernels import Kernel, Surrogate, guided, surrogate
from lmppl.inference.bffg.messages import Array, Gaussian
from lmppl.inference.bffg.small import inverse_factor, log_diagonal, product

LOG_2PI = 1.8378770664093453


@dataclass(frozen=True)
class _Core:
    """What all formulas share: HL, C⁻¹, ε* and the slope at u* of the module's first lines."""

    HL: Array
    C_inv: Array
    noise: Array
    slope: Array
    log_kg: Array

    def tilted(self, z: Array) -> Array:
        """The noise of the guided child: N(ε*, M⁻¹)."""
        return self.noise + product(self.C_inv.T, z)


def _core(g: Gaussian, mean: Array, L: Array) -> _Core:
    s, HL = mean - g.anchor, product(g.H, L)
    C_inv = inverse_factor(jnp.eye(L.shape[-1], dtype=L.dtype) + product(L.T, HL))
    noise = product(C_inv.T, product(C_inv, product(L.T, g.F - product(g.H, s))))
    u = s + product(L, noise)
    slope = g.F - product(g.H, u)
    value = g.c + 0.5 * product(u, g.F + slope) - 0.5 * product(noise, noise)
    return _Core(HL, C_inv, noise, slope, value + log_diagonal(C_inv))


def gaussian_step(g: Gaussian, mean: Array, L: Array, z: Array) -> tuple[Array, Array]:
    """The guided child, and log (k g) of its parent."""
    core = _core(g, mean, L)
    return mean + product(L, core.tilted(z)), core.log_kg


def log_normal(u: Array, L: Array) -> Array:
    """log N(u; 0, LL') of a regular covariance."""
    C_inv = inverse_factor(product(L, L.T))
    w = product(C_inv, u)
    return -0.5 * product(w, w) + log_diagonal(C_inv) - 0.5 * u.shape[-1] * LOG_2PI


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LinearGaussian(Surrogate):
    """B x + β + L ε.

    Args:
        B: matrix [d, d], of p parents [d, p d], of a root [d, 0].
        beta: shift [d].
        L: noise factor [d, r]; the covariance is L L'.
    """

    B: Array
    beta: Array
    L: Array
    affine = True

    @classmethod
    def prior(cls, mean: Array, L: Array) -> LinearGaussian:
        """The law N(mean, LL') of a root."""
        mean = jnp.asarray(mean)
        return cls(jnp.zeros((mean.shape[-1], 0), mean.dtype), mean, L)

    @property
    def noise(self) -> tuple[int, ...]:
        """r numbers."""
        return (self.L.shape[-1],)

    def mean(self, parent: Array) -> Array:
        """B x + β."""
        return self.beta + product(self.B, jnp.ravel(parent))

    def forward(self, parent: Array, noise: Array) -> Array:
        """B x + β + L ε."""
        return self.mean(parent) + product(self.L, noise)

    def log_prob(self, parent: Array, child: Array) -> Array:
        """log N(child; Bx + β, LL'); the covariance must be regular."""
        return log_normal(child - self.mean(parent), self.L)

    def one(self) -> Gaussian:
        """1 everywhere, about the shift."""
        return Gaussian.ones(self.beta)

    def log_kg(self, message: Gaussian, parent: Array) -> Array:
        """The formula of the module's first lines."""
        return _core(message, self.mean(parent), self.L).log_kg

    def draw(self, message: Gaussian, parent: Array, noise: Array) -> Array:
        """The child of the module's first lines."""
        return gaussian_step(message, self.mean(parent), self.L, noise)[0]

    def tilted_noise(self, g: Gaussian, parent: Array, z: Array) -> tuple[Array, Array]:
        """Noise ε ~ q, and log N(ε; 0, I) - log q(ε): rung 4 of kernels without a density."""
        core = _core(g, self.mean(parent), self.L)
        e = core.tilted(z)
        log_q = -0.5 * product(z, z) - log_diagonal(core.C_inv)
        return e, -0.5 * product(e, e) - log_q

    def pullback(self, message: Gaussian, anchor: Array) -> Gaussian:
        """Exact: the message of the parent, about its anchor."""
        core = _core(message, self.mean(anchor), self.L)
        B, K = self.B, product(core.C_inv, core.HL.T)
        H = product(B.T, message.H - product(K.T, K), B)
        return Gaussian(jnp.ravel(anchor), core.log_kg, product(B.T, core.slope), H)

    def pullback_many(self, message: Gaussian, anchor: Array) -> Gaussian:
        """One message per parent: the cross blocks of H are dropped at the anchors."""
        p, d = anchor.shape
        m = self.pullback(message, anchor)
        c = jnp.zeros(p, m.c.dtype).at[0].set(m.c)
        blocks = m.H.reshape(p, d, p, d)
        H = jnp.stack([blocks[i, :, i, :] for i in range(p)])
        return Gaussian(anchor, c, m.F.reshape(p, d), H)

    def given(self, parents: Array, index: int) -> LinearGaussian:
        """The others shift the mean."""
        d = parents.shape[1]
        others = product(self.B, jnp.ravel(parents.at[index].set(0.0)))
        return LinearGaussian(self.B[:, index * d : (index + 1) * d], self.beta + others, self.L)

    def segment(self, message: Gaussian) -> GaussianSegment:
        """Of no edge."""
        return GaussianSegment.empty(message)

    def inflated(self, amount: Array) -> LinearGaussian:
        """Covariance LL' + amount I."""
        extra = jnp.sqrt(amount) * jnp.eye(self.L.shape[0], dtype=self.L.dtype)
        return LinearGaussian(self.B, self.beta, jnp.concatenate([self.L, extra], axis=1))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NonlinearGaussian(Kernel):
    """mean(x, θ) + L(x, θ) ε, guided exactly through the linearisation at the anchor.

    Args:
        theta: arrays that the two functions need.
        mean: (x, θ) -> [d].
        factor: (x, θ) -> [d, r].
        r: how many independent sources of noise.
    """

    theta: Any
    mean: Callable[[Array, Any], Array] = field(metadata={"static": True})
    factor: Callable[[Array, Any], Array] = field(metadata={"static": True})
    r: int = field(metadata={"static": True})

    @property
    def noise(self) -> tuple[int, ...]:
        """r numbers."""
        return (self.r,)

    def forward(self, parent: Array, noise: Array) -> Array:
        """Mean + L ε."""
        return self.mean(parent, self.theta) + self.factor(parent, self.theta) @ noise

    def log_prob(self, parent: Array, child: Array) -> Array:
        """log N(child; mean(x), L(x)L(x)'); the covariance must be regular."""
        return log_normal(child - self.mean(parent, self.theta), self.factor(parent, self.theta))


@surrogate(NonlinearGaussian)
def linearize(kernel: NonlinearGaussian, anchor: Array) -> LinearGaussian:
    """The first-order Taylor expansion of the mean at the anchor, with the noise there."""
    mean = kernel.mean(anchor, kernel.theta)
    J = jax.jacfwd(kernel.mean)(anchor, kernel.theta)
    B = J.reshape(mean.shape[-1], -1)
    return LinearGaussian(
        B, mean - product(B, jnp.ravel(anchor)), kernel.factor(anchor, kernel.theta)
    )


@guided(NonlinearGaussian, Gaussian)
def _nonlinear(
    kernel: NonlinearGaussian, g: Gaussian, parent: Array, noise: Array
) -> tuple[Array, Array]:
    mean, L = kernel.mean(parent, kernel.theta), kernel.factor(parent, kernel.theta)
    return gaussian_step(g, mean, L, noise)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussianLeaf:
    """An observation y = A x + shift + N(0, R); nan in y marks what is missing, whole or in part.

    Args:
        A: matrix [m, d].
        R: covariance [m, m], regular.
        shift: of the mean [m]; 0 when left out.
    """

    A: Array
    R: Array
    shift: Array | None = None
    exact = True

    def _parts(self, y: Array, x: Array) -> tuple[Array, Array, Array]:
        """A and y - A x in units of the noise, and the constant of the density."""
        seen = jnp.isfinite(y)
        y = y if self.shift is None else y - self.shift
        # cleaned before use: a nan in a branch not taken still makes nan gradients
        A = jnp.where(seen[:, None], self.A, 0.0)
        R = jnp.where(seen[:, None] & seen[None, :], self.R, jnp.eye(y.shape[0], dtype=A.dtype))
        residual = jnp.where(seen, jnp.where(seen, y, 0.0) - product(A, x), 0.0)
        C_inv = inverse_factor(R)
        constant = log_diagonal(C_inv) - 0.5 * LOG_2PI * jnp.sum(seen)
        return product(C_inv, A), product(C_inv, residual), constant

    def message(self, y: Array, anchor: Array) -> Gaussian:
        """The likelihood of y, about an anchor."""
        V, w, constant = self._parts(y, anchor)
        return Gaussian(anchor, constant - 0.5 * product(w, w), product(V.T, w), product(V.T, V))

    def log_prob(self, x: Array, y: Array) -> Array:
        """log N(y; A x, R) of the coordinates that are not missing."""
        _, w, constant = self._parts(y, x)
        return constant - 0.5 * product(w, w)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NonlinearLeaf:
    """An observation y = mean(x, θ) + N(0, R), linearised at the anchor for the guide.

    Args:
        theta: arrays that the mean needs.
        R: covariance [m, m].
        mean: (x, θ) -> [m].
    """

    theta: Any
    R: Array
    mean: Callable[[Array, Any], Array] = field(metadata={"static": True})
    exact = False

    def message(self, y: Array, anchor: Array) -> Gaussian:
        """That of the linearised observation."""
        J = jax.jacfwd(self.mean)(anchor, self.theta)
        shifted = y - self.mean(anchor, self.theta) + J @ anchor
        return GaussianLeaf(J, self.R).message(shifted, anchor)

    def log_prob(self, x: Array, y: Array) -> Array:
        """log N(y; mean(x), R)."""
        mean = self.mean(x, self.theta)
        eye = jnp.eye(mean.shape[-1], dtype=mean.dtype)
        return GaussianLeaf(eye, self.R).log_prob(mean, y)
