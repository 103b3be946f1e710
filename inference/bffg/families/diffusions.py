"""Diffusions dX = b(t, X) dt + σ(t, X) dW: Euler chains, branching trees, exact linear ones, in JAX.

`euler` makes the kernels of an Euler scheme: N(x + bΔ, σσ'Δ), a `NonlinearGaussian`, so that the
weight is exact for the discretised process, E[W] = its likelihood, at every step size. `Steps` is
an edge of many steps, whose child alone is a node: on a tree, levels stay few. `linear_sde` is the
exact transition of dX = (BX + β) dt + σ dW, singular noise included.

Guides need steps that shrink towards a precise observation: `time_grid` has τ(t) = t(2 - t/T).

Reference: Schauer, van der Meulen and van Zanten, Guided proposals for simulating multi-dimensional
diffusion bridges (2017); Van Loan, Computing integrals involving the matrix exponential (1978).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.bffg.families.gaussian import LinearGaussian, NonlinearGaussian
from lmppl.inference.bffg.kernels import Kernel, Surrogate, guided, resolve, step, surrogate
from lmppl.inference.bffg.messages import Array, Gaussian, pairwise_sum
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
) -> Callable[[Any, Any], NonlinearGaussian]:
    """The kernels of an Euler scheme, for `chain` and `tree`.

    Args:
        drift: (t, x [d], params) -> [d].
        diffusion: (t, x [d], params) -> [d, r].
        r: how many independent Brownian motions.

    Returns:
        (params, covariate) -> kernel, where the covariate has "t" and "dt" of the step.
    """

    def mean(x: Array, theta: Any) -> Array:
        t, dt, params = theta
        return x + drift(t, x, params) * dt

    def factor(x: Array, theta: Any) -> Array:
        t, dt, params = theta
        return diffusion(t, x, params) * jnp.sqrt(dt)

    def kernel(params: Any, c: Any) -> NonlinearGaussian:
        return NonlinearGaussian((c["t"], c["dt"], params), mean, factor, r)

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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Steps(Kernel):
    """One edge of K steps; only the last state is a node.

    Args:
        pieces: kernels of one type, stacked along a first axis [K, …].
        count: K, as an array of that length: any.

    The message is pulled through all steps, linearised along the path without noise from the
    parent's anchor; a forward pass multiplies the weights of all steps, so that its weight is known
    after the draw.
    """

    pieces: Any
    count: Array
    after_draw = True

    @property
    def noise(self) -> tuple[int, ...]:
        """That of each step."""
        first = jax.tree.map(lambda a: a[0], self.pieces)
        shape: tuple[int, ...] = first.noise
        return (self.count.shape[0], *shape)

    def forward(self, parent: Array, noise: Array) -> Array:
        """Step by step."""
        return _run(self.pieces, parent, noise)[0]


def _run(pieces: Any, x: Array, noise: Array) -> tuple[Array, Array]:
    """The last state, and the state before each step."""

    def move(x: Array, xs: Any) -> tuple[Array, Array]:
        piece, z = xs
        return piece.forward(x, z).astype(x.dtype), x

    return jax.lax.scan(move, x, (pieces, noise))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepsGuide(Surrogate):
    """The surrogate of `Steps`: the surrogates of its steps, each at its own anchor.

    Args:
        steps: the kernel.
        anchors: before each step [K, …].
        last: the anchor of the child.
    """

    steps: Steps
    anchors: Array
    last: Array

    @property
    def noise(self) -> tuple[int, ...]:
        """That of the kernel."""
        return self.steps.noise

    def forward(self, parent: Array, noise: Array) -> Array:
        """That of the kernel: only its messages are used."""
        return self.steps.forward(parent, noise)

    def one(self) -> Any:
        """Of the last step."""
        piece = jax.tree.map(lambda a: a[-1], self.steps.pieces)
        return resolve(piece, self.anchors[-1])[1].one()

    def messages(self, g: Any) -> tuple[Any, Any, Any]:
        """To the parent; then, for each step, its g and the message that it sends [K, …]."""

        def back(g: Any, xs: Any) -> Any:
            piece, a = xs
            m = resolve(piece, a)[1].pullback(g, a)
            return m, (g, m)

        m, (gs, ms) = jax.lax.scan(
            back, g.at(self.last), (self.steps.pieces, self.anchors), reverse=True
        )
        return m, gs, ms

    def pullback(self, message: Any, anchor: Array) -> Any:
        """Through all steps."""
        return self.messages(message)[0].at(anchor)

    def log_kg(self, message: Any, parent: Array) -> Array:
        """Of the surrogate."""
        return self.messages(message)[0].log_value(parent)

    def draw(self, message: Any, parent: Array, noise: Array) -> Array:
        """The guided child."""
        return guided_steps(self, message, parent, noise)[0]


@surrogate(Steps)
def _steps_guide(kernel: Steps, anchor: Array) -> StepsGuide:
    last, anchors = _run(kernel.pieces, anchor, jnp.zeros(kernel.noise))
    return StepsGuide(kernel, anchors, last)


def guided_steps(guide: StepsGuide, g: Any, x: Array, noise: Array) -> tuple[Array, Array]:
    """The guided child, and log m(x) + Σ log w of the steps: an unbiased numerator."""
    m, gs, ms = guide.messages(g)

    def move(v: Array, xs: Any) -> tuple[Array, Array]:
        piece, a, g, m, z = xs
        kernel, k_tilde = resolve(piece, a)
        y, numerator = step(kernel, k_tilde, g, v, z)
        return y.astype(v.dtype), numerator - m.log_value(v)

    xs = (guide.steps.pieces, guide.anchors, gs, ms, noise)
    y, logs = jax.lax.scan(move, x, xs)
    return y, m.log_value(x) + pairwise_sum(logs)


@guided(Steps, Gaussian)
def _steps(kernel: Steps, g: Gaussian, parent: Array, noise: Array) -> tuple[Array, Array]:
    return guided_steps(_steps_guide(kernel, parent), g, parent, noise)


def euler_steps(
    kernel: Callable[[Any, Any], Any], steps: int, change: bool = True
) -> Callable[[Any, Any], Steps]:
    """An edge of Euler steps, for `tree`: the covariate has "length", and "start" if b needs time.

    Args:
        kernel: of `euler`.
        steps: per edge.
        change: whether steps shrink towards the child.
    """
    t, dt = time_grid(1.0, steps, change)

    def edge(params: Any, c: Any) -> Steps:
        start = c.get("start", 0.0)
        pieces = jax.vmap(
            lambda t, dt: kernel(params, {"t": start + t * c["length"], "dt": dt * c["length"]})
        )(jnp.asarray(t, jnp.result_type(float)), jnp.asarray(dt, jnp.result_type(float)))
        return Steps(pieces, jnp.zeros(steps))

    return edge
