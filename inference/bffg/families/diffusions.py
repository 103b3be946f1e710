"""Diffusions dX = b(t, X) dt + σ(t, X) dW: Euler chains and exact linear ones, in JAX.

`euler` makes the kernels of an Euler scheme: N(x + bΔ, σσ'Δ), a `NonlinearGaussian`, so that the
weight is exact for the discretised process, E[W] = its likelihood, at every step size. It is guided
by the linearisation at the anchors, or by an auxiliary linear diffusion of the user's. `linear_sde`
is the exact transition of dX = (BX + β) dt + σ dW, singular noise included. Edges of many steps are
in `steps`.

Guides need steps that shrink towards a precise observation: `time_grid` has τ(t) = t(2 - t/T).

Reference: Schauer, van der Meulen and van Zanten, Guided proposals for simulating multi-dimensional
diffusion bridges (2017); Van Loan, Computing integrals involving the matrix exponential (1978).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.bffg.families.gaussian import LinearGaussian, NonlinearGaussian
from lmppl.inference.bffg.kernels import Guessed
from lmppl.inference.bffg.messages import Array
from lmppl.types import Floats


def time_grid(T: float, steps: int, change: bool = True) -> tuple[Floats, Floats]:
    """Times [steps] at which steps begin, and their lengths; with the time change, finer at the end.

    >>> t, dt = time_grid(1.0, 4)
    >>> dt.round(4).tolist()
    [0.4375, 0.3125, 0.1875, 0.0625]
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1 or not T > 0:
        raise BadArgument(f"time_grid needs T > 0 and steps >= 1, got {T!r} and {steps!r}")
    s = np.linspace(0.0, T, steps + 1)
    t = s * (2 - s / T) if change else s
    return t[:-1], np.diff(t)


def euler(
    drift: Callable[[Any, Array, Any], Array],
    diffusion: Callable[[Any, Array, Any], Array],
    r: int,
    aux: Callable[[Array, Any], tuple[Array, Array, Array]] | None = None,
) -> Callable[[Any, Any], NonlinearGaussian | Guessed]:
    """The kernels of an Euler scheme, for `chain` and `tree`.

    Args:
        drift: (t, x [d], params) -> [d].
        diffusion: (t, x [d], params) -> [d, r].
        r: how many independent Brownian motions.
        aux: (t, params) -> (B [d, d], β [d], σ~ [d, r]) of the linear diffusion to guide by; the
            linearisation at the anchors when left out. Near a precise observation σ~σ~' should be
            σσ' there, or the weights degenerate.

    Returns:
        (params, covariate) -> kernel, where the covariate has "t" and "dt" of the step.
    """

    def mean(x: Array, theta: Any) -> Array:
        t, dt, params = theta
        return x + drift(t, x, params) * dt

    def factor(x: Array, theta: Any) -> Array:
        t, dt, params = theta
        return diffusion(t, x, params) * jnp.sqrt(dt)

    def kernel(params: Any, c: Any) -> NonlinearGaussian | Guessed:
        t, dt = c["t"], c["dt"]
        true = NonlinearGaussian((t, dt, params), mean, factor, r)
        if aux is None:
            return true
        B, beta, sigma = (jnp.asarray(v) for v in aux(t, params))
        eye = jnp.eye(B.shape[0], dtype=B.dtype)
        return Guessed(true, LinearGaussian(eye + B * dt, beta * dt, sigma * jnp.sqrt(dt)))

    return kernel


def linear_sde(B: Array, beta: Array, sigma: Array, t: Array) -> LinearGaussian:
    """The exact transition of dX = (BX + β) dt + σ dW over time t.

    >>> k = linear_sde(jnp.zeros((1, 1)), jnp.ones(1), 2.0 * jnp.eye(1), 3.0)
    >>> float(k.mean(jnp.zeros(1))[0]), round(float(k.L[0, 0] ** 2), 4)
    (3.0, 12.0)
    """
    B, beta, sigma = jnp.asarray(B), jnp.asarray(beta), jnp.asarray(sigma)
    d = B.shape[0]
    zero = jnp.zeros((d, d), B.dtype)
    loan = jnp.block([[-B, sigma @ sigma.T], [zero, B.T]]) * t
    E = jax.scipy.linalg.expm(loan)
    phi = E[d:, d:].T
    shift = jnp.zeros((d + 1, d + 1), B.dtype).at[:d, :d].set(B).at[:d, d].set(beta)
    mean = jax.scipy.linalg.expm(shift * t)[:d, d]
    Q = phi @ E[:d, d:]
    # by eigenvalues: a covariance of hypo-elliptic noise over a short time is nearly singular
    values, vectors = jnp.linalg.eigh(0.5 * (Q + Q.T))
    return LinearGaussian(phi, mean, vectors * jnp.sqrt(jnp.maximum(values, 0.0)))
