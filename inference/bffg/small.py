"""Products and inverse Cholesky factors of small matrices, in JAX.

States and noise have few dimensions, and a level or a block has many of them at once. A library call
for each of ten thousand matrices costs far more than its arithmetic. So small products are sums of
elementwise ones, and small factors scalar arithmetic, both fused with what stands around them; larger
matrices go to the library. With C⁻¹ at hand all that follows is products: few kernels to compile, and
no case for noise of no dimension.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

SMALL = 8
"""Rows up to which a product is a sum."""
UNROLLED = 4
"""Rows up to which a factor is scalar arithmetic."""


def product(*factors: jax.Array) -> jax.Array:
    """a b c …, from the left, of matrices and vectors.

    >>> product(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1.0, -1.0])).tolist()
    [-1.0, -1.0]
    """
    found, *rest = factors
    for b in rest:
        if max(*found.shape, *b.shape) > SMALL:
            found = found @ b
        else:
            a = found[..., None] if b.ndim == 2 else found
            found = jnp.sum(a * b, axis=-b.ndim)
    return found


def inverse_factor(M: jax.Array) -> jax.Array:
    """C⁻¹ of M = CC', C lower [r, r]: C⁻¹v is white where v has covariance M.

    >>> inverse_factor(jnp.array([[4.0, 2.0], [2.0, 5.0]])).tolist()
    [[0.5, 0.0], [-0.25, 0.5]]
    """
    r = M.shape[-1]
    if r == 0:
        return M
    if r > UNROLLED:
        eye = jnp.eye(r, dtype=M.dtype)
        return solve_triangular(jnp.linalg.cholesky(M), eye, lower=True)
    C = [[jnp.zeros((), M.dtype)] * r for _ in range(r)]
    inverse = [[jnp.zeros((), M.dtype)] * r for _ in range(r)]
    for i in range(r):
        for j in range(i + 1):
            rest = M[i, j] - sum(C[i][k] * C[j][k] for k in range(j))
            if j < i:
                C[i][j] = rest * inverse[j][j]
            else:
                inverse[i][i] = 1 / jnp.sqrt(rest)
        for j in range(i):
            above = sum(C[i][k] * inverse[k][j] for k in range(j, i))
            inverse[i][j] = -inverse[i][i] * above
    return jnp.stack([jnp.stack(row) for row in inverse])


def log_diagonal(C: jax.Array) -> jax.Array:
    """Σ log of the diagonal: half a log determinant, of a factor or an inverse one."""
    return jnp.sum(jnp.log(jnp.diagonal(C)))
