"""Cholesky factors and triangular solves of small matrices, unrolled, in JAX.

The noise of an edge has few dimensions. Unrolled, the arithmetic of such a matrix is fused over all
nodes of a level; a library call for each of ten thousand costs far more than its arithmetic.
Larger matrices go to the library.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from lmppl.inference.bffg.messages import Array

SMALL = 4
"""Rows up to which work is unrolled."""


def cholesky(M: Array) -> Array:
    """Lower C with M = CC' [r, r].

    >>> cholesky(jnp.array([[4.0, 2.0], [2.0, 5.0]])).tolist()
    [[2.0, 0.0], [1.0, 2.0]]
    """
    r = M.shape[-1]
    if r > SMALL:
        return jnp.linalg.cholesky(M)
    C: list[list[Array]] = [[jnp.zeros((), M.dtype)] * r for _ in range(r)]
    for i in range(r):
        for j in range(i + 1):
            rest = M[i, j] - sum((C[i][k] * C[j][k] for k in range(j)), start=0.0)
            C[i][j] = jnp.sqrt(rest) if i == j else rest / C[j][j]
    return jnp.stack([jnp.stack(row) for row in C])


def solve_lower(C: Array, b: Array) -> Array:
    """C⁻¹ b of a lower C [r, r], for b [r] or [r, k]."""
    if C.shape[-1] > SMALL:
        return solve_triangular(C, b, lower=True)
    x: list[Array] = []
    for i in range(C.shape[-1]):
        x.append((b[i] - sum((C[i, k] * x[k] for k in range(i)), start=0.0)) / C[i, i])
    return jnp.stack(x)


def solve_upper(C: Array, b: Array) -> Array:
    """C'⁻¹ b of a lower C [r, r]."""
    return solve_lower(C[::-1, ::-1].T, b[::-1])[::-1]
