"""A stretch of a linear-Gaussian chain as one kernel, in JAX.

    mass     k₁ g₁ k₂ g₂ … as a function of the start x: a message (F, H) about its anchor
    kernel   the end given x, tilted by the leaves inside: N(B u + shift, Q), u = x - anchor

An edge in front is tilted by the leaf of its child times the mass, then followed by the kernel. Q is
kept as a covariance, which only sums; M = I + L'HL and I + HQ have eigenvalues of at least 1, so
that singular noise and missing data need no case of their own here either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lmppl.inference.bffg.messages import Array, Gaussian
from lmppl.inference.bffg.segments import Segment
from lmppl.inference.bffg.small import inverse_factor, product


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussianSegment(Segment):
    """See the module.

    Args:
        F: of the mass [d].
        H: of the mass [d, d].
        B: of the kernel [d, d].
        shift: mean of the end, less its anchor, from a start at its anchor [d].
        Q: covariance of the end [d, d].
    """

    F: Array
    H: Array
    B: Array
    shift: Array
    Q: Array

    @classmethod
    def empty(cls, g: Gaussian) -> GaussianSegment:
        """No edge: the end is the start."""
        zero = jnp.zeros_like(g.H)
        return cls(
            jnp.zeros_like(g.F),
            zero,
            jnp.eye(g.F.shape[0], dtype=g.F.dtype),
            jnp.zeros_like(g.F),
            zero,
        )

    def before(self, k: Any, g: Gaussian, anchor: Array) -> GaussianSegment:
        """With a linear-Gaussian edge in front."""
        F, H = g.F + self.F, g.H + self.H
        s = k.mean(anchor) - g.anchor
        r, HL = F - product(H, s), product(H, k.L)
        C_inv = inverse_factor(jnp.eye(HL.shape[1], dtype=H.dtype) + product(k.L.T, HL))
        K, V = product(C_inv, HL.T), product(C_inv, k.L.T)
        w, BV = product(V, r), product(self.B, V.T)
        return GaussianSegment(
            product(k.B.T, r - product(K.T, w)),
            product(k.B.T, H - product(K.T, K), k.B),
            product(self.B - product(BV, K), k.B),
            self.shift + product(self.B, s) + product(BV, w),
            self.Q + product(BV, BV.T),
        )

    def pull(self, message: Gaussian, anchor: Array) -> Gaussian:
        """Through the kernel, times the mass."""
        F, H = message.F, message.H
        right = jnp.concatenate([(F - H @ self.shift)[:, None], H @ self.B], axis=1)
        eye = jnp.eye(len(F), dtype=H.dtype)
        back = self.B.T @ jnp.linalg.solve(eye + H @ self.Q, right)
        above = self.H + 0.5 * (back[:, 1:] + back[:, 1:].T)
        return Gaussian(anchor, jnp.zeros_like(message.c), self.F + back[:, 0], above)
