"""Draws of every family have the moments of the posterior: weights alone do not tell (T4)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

from lmppl.inference import bffg  # noqa: E402

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.slow]

Z = 4.9
"""Two-sided, false alarms 1e-6."""


def z_score(log_w: Any, f: Any, truth: float) -> float:
    """Of E[W (f - truth)] = 0, which holds if truth is the posterior mean of f."""
    terms = np.exp(np.asarray(log_w) - np.max(log_w)) * (np.asarray(f, dtype=float) - truth)
    return float(terms.mean() / (terms.std() / np.sqrt(len(terms))))


def check(log_w: Any, *moments: tuple[Any, float]) -> None:
    """With the weights all are right; without them one of these would be rejected."""
    for f, truth in moments:
        assert abs(z_score(log_w, f, truth)) < Z
    assert max(abs(z_score(np.zeros(len(f)), f, truth)) for f, truth in moments) > Z


# -- diffusions ----------------------------------------------------------------------------------


def growing(weight: str) -> Any:
    """dX = X/2 dt + dW on two edges of four steps, seen at the end: the middle has moments."""
    step = bffg.euler(
        lambda t, x, p: 0.5 * x, lambda t, x, p: jnp.ones((1, 1)), 1,
        aux=lambda t, p: (jnp.full((1, 1), 0.5), jnp.zeros(1), jnp.ones((1, 1))),
    )  # fmt: skip
    return bffg.chain(
        3, bffg.euler_steps(step, 4, False, weight), lambda p, c: bffg.Point(jnp.array([0.5])),
        lambda p, c: bffg.GaussianLeaf(jnp.eye(1), 0.01 * jnp.eye(1)), observed=[2],
        covariates={"length": np.full(3, 0.5)},
    )  # fmt: skip


def middle(A: float, q: float) -> tuple[float, float]:
    """Mean and variance of the middle of a linear chain x' = A x + N(0, q), seen as 0.8 at the end."""
    m, S = A * 0.5, q + 0.01
    gain = q * A / (A * A * q + S)
    return m + gain * (0.8 - A * m), q - gain * A * q


def test_with_a_linear_drift_the_continuous_rule_has_constant_weights_and_wrong_paths() -> None:
    """T4: right moments of the Euler chain by the discrete rule, wrong ones of either by the other."""
    n, grow = 20_000, 1 + 0.5 * 0.125
    chain = middle(grow**4, 0.125 * sum(grow ** (2 * k) for k in range(4)))
    diffusion = middle(np.exp(0.25), np.exp(0.5) - 1)

    def distance(weight: str, moments: tuple[float, float]) -> float:
        """Standard errors from mean and variance, the larger of two."""
        bf = bffg.backward(growing(weight), np.array([[0.8]]), anchors=bffg.refine(0))
        out = bffg.forward(bf, 0, n=n)
        assert np.ptp(out.log_weights) < 1e-9
        x = out.values[:, 1, 0]
        mean, var = moments
        of_mean = abs(x.mean() - mean) / np.sqrt(var / n)
        return float(max(of_mean, abs(((x - mean) ** 2).mean() / var - 1) / np.sqrt(2 / n)))

    assert distance("discrete", chain) < Z
    assert distance("continuous", chain) > 10 and distance("continuous", diffusion) > 10


def test_an_auxiliary_diffusion_that_is_wrong_leaves_the_moments_right() -> None:
    """Eight Euler steps of a bent drift, guided by a linear one, against a grid of 1201 points."""
    dt = 0.125

    def mean(x: Any, sin: Any) -> Any:
        return x + dt * (-0.8 * x + sin(3 * x))

    model = bffg.chain(
        9,
        bffg.euler(
            lambda t, x, p: -0.8 * x + jnp.sin(3 * x), lambda t, x, p: 0.8 * jnp.eye(1), 1,
            aux=lambda t, p: (-1.5 * jnp.eye(1), jnp.full(1, 0.7), jnp.eye(1)),
        ),
        lambda p, c: bffg.Point(jnp.array([0.3])),
        lambda p, c: bffg.GaussianLeaf(jnp.eye(1), 0.04 * jnp.eye(1)), observed=[8],
        covariates={"t": np.zeros(9), "dt": np.full(9, dt)},
    )  # fmt: skip
    out = bffg.forward(bffg.backward(model, np.array([[1.4]])), 0, n=40_000)
    x, sd = np.linspace(-4, 5, 1201), 0.8 * np.sqrt(dt)
    cell = x[1] - x[0]

    def kernel(a: Any) -> Any:
        u = (x[None, :] - mean(a, np.sin)[:, None]) / sd
        return np.exp(-0.5 * u**2) / (sd * np.sqrt(2 * np.pi)) * cell

    K, law = kernel(x), kernel(np.array([0.3]))[0]
    h = np.exp(-0.5 * (1.4 - x) ** 2 / 0.04) / (0.2 * np.sqrt(2 * np.pi))
    for _ in range(3):
        law = law @ K
    for _ in range(4):
        h = K @ h
    at_four = law * h / (law @ h)
    w = np.exp(out.log_weights) / float(law @ h)
    assert abs(w.mean() - 1) < Z * w.std() / np.sqrt(len(w))
    check(out.log_weights, *((out.values[:, 4, 0] ** p, at_four @ x**p) for p in (1, 2)))


# -- jumps ---------------------------------------------------------------------------------------

RATES = np.array([[0, 0.6, 0.2, 0.1], [0.3, 0, 0.5, 0.1], [0.1, 0.4, 0, 0.9], [0.2, 0.1, 0.7, 0]])
GUESS = np.array([[0, 0.2, 0.4, 0.3], [0.5, 0, 0.3, 0.2], [0.2, 0.6, 0, 0.3], [0.1, 0.2, 0.9, 0]])


def expm(A: Any) -> Any:
    """By squaring exp(A/1024), whose Taylor terms end."""
    out = term = np.eye(len(A))
    for k in range(1, 20):
        term = term @ A / (1024 * k)
        out = out + term
    return np.linalg.matrix_power(out, 1024)


def test_paths_of_a_jump_process_have_the_moments_of_the_posterior() -> None:
    """At half time and of the number of jumps, given the state at the end."""
    T, n = 1.3, 20_000
    Q = RATES - np.diag(RATES.sum(1))
    kernel = bffg.JumpProcess(
        jnp.asarray(T), None, jnp.array(GUESS), jnp.asarray(2.0), lambda t, p: jnp.array(RATES), 30
    )
    g = bffg.Table(jnp.log(jnp.array([0.1, 0.5, 0.2, 0.05])))
    noise = jax.random.normal(jax.random.key(0), (n, *kernel.noise))
    path = jax.jit(jax.vmap(lambda z: bffg.jump_path(kernel, g, jnp.asarray(0), z)))(noise)
    times, states = np.asarray(path.times), np.asarray(path.states)
    at_half = states[np.arange(n), (times <= T / 2).sum(1)]
    half = expm(Q * T / 2)
    law = half[0] * (half @ np.exp(g.log_g))
    # d/du of exp(T (Q + u off)) at u = 0, by Van Loan's block, is the expected number of jumps
    block = expm(np.block([[Q, RATES], [np.zeros((4, 4)), Q]]) * T)
    jumps = (block[:4, 4:] @ np.exp(g.log_g))[0] / (expm(Q * T) @ np.exp(g.log_g))[0]
    shares = ((at_half == s, law[s] / law.sum()) for s in range(4))
    check(path.log_kg, ((np.diff(states) != 0).sum(1), jumps), *shares)


def test_contact_processes_have_the_moments_of_the_posterior() -> None:
    """Who is infected in between, against the sum over 2⁴ states."""
    n, E = 4, np.array([[0.9, 0.1], [0.2, 0.8]])
    line = np.diag(np.ones(n - 1), 1) + np.diag(np.ones(n - 1), -1)
    theta = {"neighbours": line, "infect": 1.1, "recover": 0.6, "tau": 0.5, "spark": 0.01}
    start, y = np.array([0, 1, 0, 0]), np.array([[1.0, np.nan, np.nan, 1.0]])

    def kernel(p: Any, c: Any) -> Any:
        true = bffg.Interacting(theta, n, bffg.sir_law)
        return bffg.Guessed(true, bffg.sir_profile(jnp.full(n, 1.2), theta))

    model = bffg.chain(
        3, kernel, lambda p, c: bffg.Point(jnp.array(start)),
        lambda p, c: bffg.ParticleLeaf(jnp.array(E)), observed=[2],
    )  # fmt: skip
    out = bffg.forward(bffg.backward(model, y), 0, n=40_000)
    states = np.array(list(itertools.product(range(2), repeat=n)))
    laws = np.array([bffg.sir_law(jnp.array(x), theta) for x in states])
    K = np.array([[np.prod(r[range(n), x]) for x in states] for r in laws])
    seen = E[states[:, 0], 1] * E[states[:, 3], 1]
    law = K[int(np.flatnonzero((states == start).all(1))[0])] * (K @ seen)
    law /= law.sum()
    check(out.log_weights, *((out.values[:, 1, i], law @ states[:, i]) for i in (1, 2)))


def test_compound_poisson_counts_have_the_moments_of_the_posterior() -> None:
    top, jumps = 7, jnp.array([0.5, 0.2, 0.3])

    def kernel(p: Any, c: Any) -> Any:
        return bffg.CompoundPoisson(
            jnp.asarray(0.4), None, jnp.asarray(3.0), jumps, lambda x, p: 0.9 * (1 + 0.6 * x), top
        )

    model = bffg.chain(
        4, kernel, lambda p, c: bffg.Point(jnp.asarray(0)),
        lambda p, c: bffg.FiniteLeaf(jnp.eye(top + 1)), observed=[3],
    )  # fmt: skip
    out = bffg.forward(bffg.backward(model, np.array([5.0])), 0, n=40_000)
    rows = jax.vmap(kernel(None, None).row)(jnp.arange(top + 1))
    K = np.asarray(rows)
    law = K[0] * (K @ K[:, 5])
    law /= law.sum()
    check(
        out.log_weights, *((out.values[:, 1] ** p, law @ np.arange(top + 1) ** p) for p in (1, 2))
    )
