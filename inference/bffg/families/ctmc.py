"""Continuous-time Markov chains on the edges of a tree, in JAX.

`ctmc(Q, t)` is the `Finite` kernel exp(Qt): messages, guided children and weights are exact.

`JumpProcess` has rates Q(t) that change within the edge, so that no exponential is its kernel, and
simulates the path inside. With a rate R above every exit rate, a path is N ~ Poi(R T) candidate
times, uniform on [0, T], and a step of U(t) = I + Q(t)/R at each. The guide has constant rates Q~:

    G_n = U~ⁿ g         m = Σ_n Poi(n; RT) G_n = exp(Q~T) g        the action of the exponential
    N ~ Poi(n; RT) G_n(x) / m(x)                                   then, with n candidates left:
    y ~ U(t)(x, ·) G_{n-1} / (U(t) G_{n-1})(x)                     w = (U(t) G_{n-1})(x) / G_n(x)

No integral is discretised: E[W] is exact for all rates, and W = 1 where Q = Q~. As R grows, this is
the jump process of rates λ°(x, y) = λ(x, y) g(y)/g(x) of `guided_rates`, and its weight.

Reference: Hobolth and Stone, Simulation from endpoint-conditioned, continuous-time Markov chains
(2009); Rao and Teh, Fast MCMC sampling for Markov jump processes (2013); van der Meulen and Schauer
(2020).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmppl.inference.bffg.families.finite import Finite, lifted, safe_log
from lmppl.inference.bffg.families.poisson_process import poisson_log_prob
from lmppl.inference.bffg.kernels import Kernel, guided, pick, surrogate
from lmppl.inference.bffg.messages import Array, Table

LOST = 1e-9
"""The largest probability of more candidates than there is room for."""
TERMS, SQUARINGS = 18, 24
"""Of the matrix exponential: 1/18! is the rounding of float64; Qt may be as large as 2²⁴."""
SLACK = 1e-6
"""Rounding that an exit rate may be above the bound by, as a share of it."""


def generator(rates: Array) -> Array:
    """A rate matrix whose rows sum to zero: what stands on the diagonal is not read.

    >>> generator(jnp.array([[9.0, 2.0], [0.5, 9.0]])).tolist()
    [[-2.0, 2.0], [0.5, -0.5]]
    """
    rates = jnp.asarray(rates)
    off = jnp.where(jnp.eye(rates.shape[-1], dtype=bool), 0.0, rates)
    return off - jnp.diag(jnp.sum(off, axis=-1))


def ctmc(rates: Array, t: Array) -> Finite:
    """The kernel exp(Qt) of a chain with rates Q(x, y) over time t; Q may depend on parameters.

    >>> P = ctmc(jnp.array([[0.0, 2.0], [0.5, 0.0]]), 100.0).P
    >>> [round(float(p), 4) for p in P[0]]
    [0.2, 0.8]
    """
    Q = generator(rates)
    Q = Q.astype(jnp.result_type(Q, t))
    eye = jnp.eye(Q.shape[-1], dtype=Q.dtype)
    top = jnp.maximum(-jnp.min(jnp.diagonal(Q)), 0.0)
    # exp(Qt) = exp(Qh)^(2^s); Q + top I has no negative entry, so that no digits cancel and what
    # cannot be reached has probability 0, which the general matrix exponential does not promise
    s = jnp.clip(jnp.ceil(jnp.log2(jnp.maximum(top * t, 1.0))), 0, SQUARINGS)
    h = t / 2**s
    A = h * (Q + top * eye)

    def horner(P: Array, k: Array) -> tuple[Array, None]:
        return eye + A @ P / k, None

    def square(P: Array, k: Array) -> tuple[Array, None]:
        return jnp.where(k < s, P @ P, P), None

    P, _ = jax.lax.scan(horner, eye, jnp.arange(TERMS, 0.0, -1.0, dtype=Q.dtype))
    P, _ = jax.lax.scan(square, jnp.exp(-top * h) * P, jnp.arange(SQUARINGS))
    return Finite(P / jnp.sum(P, axis=-1, keepdims=True))


def guided_rates(rates: Array, guess: Array, g: Table) -> tuple[Array, Array]:
    """The generator of the guided process while the message is g, and d log W/dt of each state.

    λ°(x, y) = λ(x, y) g(y)/g(x), and d log W/dt = Σ_y (λ - λ~)(x, y) (g(y)/g(x) - 1).
    """
    value = lifted(g)[0]
    ratio = value[None, :] / value[:, None]
    gap = generator(rates) - generator(guess)
    return generator(rates * ratio), jnp.sum(gap * ratio, axis=-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class JumpProcess(Kernel):
    """A Markov jump process whose rates change within the edge.

    Args:
        length: of the edge, T [].
        theta: arrays that the rates need, the time at which the edge starts among them.
        guess: rates of the guide [S, S], positive for every jump that may happen.
        bound: R, above every exit rate of the process and of its guide [].
        rates: (time since the start of the edge, θ) -> [S, S].
        most: room for so many candidates: R T + 7 √(R T) + 10, say.

    Where one of these is not so, mass would be lost without a trace: the weight is nan.
    """

    length: Array
    theta: Any
    guess: Array
    bound: Array
    rates: Callable[[Array, Any], Array] = field(metadata={"static": True})
    most: int = field(metadata={"static": True})
    after_draw = True

    @property
    def noise(self) -> tuple[int, ...]:
        """One number for N, then a time and a jump for each candidate."""
        return (1 + 2 * self.most,)

    def forward(self, parent: Array, noise: Array) -> Array:
        """The last state of an unguided path."""
        nothing = Table(jnp.zeros(self.guess.shape[0], self.guess.dtype))
        return jump_path(self, nothing, parent, noise).states[-1]


class JumpPath(NamedTuple):
    """A path inside an edge."""

    times: Array
    """Of the candidates, in order; inf where there is none [most]."""
    states: Array
    """At the start, and after each candidate, which may leave the state as it is [most + 1]."""
    log_kg: Array
    """log m(x) + Σ log w: an unbiased numerator []."""


def jump_path(kernel: JumpProcess, g: Table, x: Array, noise: Array) -> JumpPath:
    """A guided path from x, given the message g of the child and standard normal noise."""
    most, S = kernel.most, kernel.guess.shape[0]
    value, top = lifted(g)
    eye = jnp.eye(S, dtype=value.dtype)
    mean = kernel.bound * kernel.length
    step = eye + generator(kernel.guess) / kernel.bound
    _, G = jax.lax.scan(lambda v, _: (step @ v, v), value, None, length=most + 1)
    law = jnp.exp(poisson_log_prob(jnp.arange(most + 1), mean)) * G[:, x]
    n = pick(law, noise[0])
    u = jax.scipy.special.ndtr(noise[1 : 1 + most])
    times = jnp.sort(jnp.where(jnp.arange(most) < n, u * kernel.length, jnp.inf))

    def move(x: Array, xs: Any) -> tuple[Array, tuple[Array, Array]]:
        k, time, z = xs
        on = k < n
        left = jnp.maximum(n - k, 1)
        rates = generator(kernel.rates(jnp.where(on, time, 0.0), kernel.theta))
        row = eye[x] + rates[x] / kernel.bound
        tilted = row * G[left - 1]
        total, sent = jnp.sum(tilted), G[left, x]
        # a path without future has weight zero, whatever it does next
        alive = (total > 0) & (sent > 0)
        log_w = jnp.where(alive, safe_log(total) - jnp.log(jnp.where(alive, sent, 1.0)), -jnp.inf)
        lost = (jnp.min(row) < -SLACK) | jnp.any((row > 0) & (step[x] <= 0))
        log_w = jnp.where(lost, jnp.nan, log_w)
        y = jnp.where(on, pick(tilted, z), x).astype(x.dtype)
        return y, (y, jnp.where(on, log_w, 0.0))

    x = jnp.asarray(x)
    _, (states, logs) = jax.lax.scan(move, x, (jnp.arange(most), times, noise[1 + most :]))
    log_kg = safe_log(jnp.sum(law)) + top + jnp.sum(logs)
    lost = (jax.scipy.special.gammainc(most + 1.0, mean) > LOST) | (jnp.min(step) < -SLACK)
    return JumpPath(times, jnp.concatenate([x[None], states]), jnp.where(lost, jnp.nan, log_kg))


@surrogate(JumpProcess)
def _constant_rates(kernel: JumpProcess, anchor: Array) -> Finite:
    return ctmc(kernel.guess, kernel.length)


@guided(JumpProcess, Table)
def _jumps(kernel: JumpProcess, g: Table, parent: Array, noise: Array) -> tuple[Array, Array]:
    path = jump_path(kernel, g, parent, noise)
    return path.states[-1], path.log_kg
