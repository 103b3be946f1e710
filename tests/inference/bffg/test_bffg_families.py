"""Diffusions, particles, Gamma and Poisson processes against enumeration, quadrature and Kalman."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

from lmppl.inference import bffg  # noqa: E402
from lmppl.inference.bffg.families.gaussian import GaussianLeaf, LinearGaussian  # noqa: E402
from lmppl.inference.bffg.kernels import Guessed  # noqa: E402
from lmppl.inference.bffg.messages import Gamma  # noqa: E402

pytestmark = pytest.mark.usefixtures("float64")


def unbiased(log_weights: Any, truth: float, z: float = 4.9) -> None:
    """E[W] = truth by a z-test, false alarm 1e-6."""
    w = np.exp(log_weights) / truth
    assert abs(w.mean() - 1) < z * w.std() / np.sqrt(len(w)), (w.mean(), w.std())


# -- particles -----------------------------------------------------------------------------------


def test_three_sir_particles_with_any_profile_are_exact_by_enumeration() -> None:
    """A10: 27 states; Σ q W = h over all paths of two steps, to 1e-12."""
    rng = np.random.default_rng(0)
    theta = {
        "neighbours": jnp.ones((3, 3)) - jnp.eye(3),
        "infect": 2.5, "recover": 0.6, "wane": 0.1, "tau": 0.3,
    }  # fmt: skip
    E = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])
    profile = rng.uniform(0, 2, (3, 3))  # infected neighbours of each particle at each step
    start = np.array([1, 0, 0])

    def kernel(p: Any, c: Any) -> Any:
        return Guessed(
            bffg.Interacting(theta, 3, bffg.sir_law), bffg.sir_profile(c["infected"], theta)
        )

    model = bffg.chain(
        3, kernel, lambda p, c: bffg.Point(jnp.array(start)),
        lambda p, c: bffg.ParticleLeaf(jnp.array(E)), observed=[1, 2],
        covariates={"infected": profile},
    )  # fmt: skip
    y = np.array([[0, np.nan, 1], [1, 1, np.nan]])
    states = np.array(list(itertools.product(range(3), repeat=3)))
    rows = np.array([bffg.sir_law(jnp.array(x), theta) for x in states])
    K = np.array([[np.prod(r[range(3), x]) for x in states] for r in rows])
    like = np.array(
        [[np.prod([E[v, int(o)] for v, o in zip(x, ys, strict=True) if o == o]) for x in states] for ys in y]
    )  # fmt: skip
    first = int(np.flatnonzero((states == start).all(1))[0])
    h = float((K[first] * like[0]) @ K @ like[1])
    assert np.isclose(K.sum(1), 1).all()
    bf = bffg.backward(model, y)
    pairs = list(itertools.product(range(27), repeat=2))
    paths = np.array([[start, states[a], states[b]] for a, b in pairs])
    log_q, log_w = jax.vmap(lambda x: bffg.path_score(bf, x))(jnp.array(paths))
    q, w = np.exp(log_q), np.exp(log_w)
    assert q.sum() == pytest.approx(1, abs=1e-12)
    assert (q * w).sum() == pytest.approx(h, rel=1e-12)
    assert np.ptp(w) > 1e-4 * h


# -- Gamma and Poisson ---------------------------------------------------------------------------


def gamma_bridge(rate: Any) -> Any:
    third = jnp.asarray(2.0 / 3)

    def kernel(p: Any, c: Any) -> Any:
        return bffg.GammaProcess(third, None, jnp.asarray(0.8), rate)

    return bffg.chain(
        4, kernel, lambda p, c: bffg.Point(jnp.asarray(0.0)),
        lambda p, c: bffg.PinnedLeaf(jnp.asarray(0.8)), observed=[3],
    )  # fmt: skip


@pytest.mark.slow
def test_a_gamma_bridge_of_state_dependent_rate() -> None:
    """A10: density 0.1027915 of the three-step chain at 3, by 4.9 standard errors."""
    model = gamma_bridge(lambda x, theta: 0.5 + 1 / (1 + x))
    bf = bffg.backward(model, np.array([3.0]), anchors=bffg.refine(0))
    out = bffg.forward(bf, 0, n=4_000)
    assert np.allclose(out.values[:, -1], 3.0) and (np.diff(out.values, axis=1) > 0).all()
    unbiased(out.log_weights, 0.1027915)
    assert out.ess > 0.8 * 4_000


def test_a_gamma_bridge_of_constant_rate_is_exact() -> None:
    from math import exp, gamma

    bf = bffg.backward(
        gamma_bridge(lambda x, theta: 0.8 + 0 * x), np.array([3.0]), anchors=bffg.refine(0)
    )
    exact = 0.8**2 * 3 * exp(-0.8 * 3) / gamma(2)
    assert float(jnp.exp(bf.log_evidence)) == pytest.approx(exact, rel=1e-12)


def test_poisson_increments_are_exact_by_enumeration() -> None:
    """Any λ(x): Σ q W = p, over all paths from 0 to 4 in three steps; λ = λ~ gives constant W."""
    delta, v = 0.4, 4

    def model(rate: Any) -> Any:
        def kernel(p: Any, c: Any) -> Any:
            return bffg.PoissonProcess(jnp.asarray(delta), p, jnp.asarray(1.5), rate, 4)

        return bffg.chain(
            4, kernel, lambda p, c: bffg.Point(jnp.asarray(0.0)),
            lambda p, c: bffg.PinnedLeaf(jnp.asarray(1.5), True), observed=[3],
        )  # fmt: skip

    paths = np.array([[0, a, b, v] for a in range(v + 1) for b in range(a, v + 1)], dtype=float)
    made = model(lambda x, p: p * (1 + 0.5 * x))
    bf = bffg.backward(made, np.array([float(v)]), 0.9, anchors=bffg.refine(0))
    log_q, log_w = jax.vmap(lambda x: bffg.path_score(bf, x))(jnp.array(paths))
    from math import factorial

    def poisson(k: float, mean: float) -> float:
        return float(mean**k * np.exp(-mean) / factorial(int(k)))

    exact = sum(
        np.prod([poisson(b - a, 0.9 * (1 + 0.5 * a) * delta) for a, b in itertools.pairwise(x)])
        for x in paths
    )
    # the pin is the event X_3 = v: log q of the last step is 0
    assert np.exp(log_q + log_w).sum() == pytest.approx(exact, rel=1e-12)
    assert np.exp(log_q).sum() == pytest.approx(1, abs=1e-12)
    assert np.ptp(log_w) > 0.1
    bf = bffg.backward(
        model(lambda x, p: 1.5 + 0 * x), np.array([float(v)]), anchors=bffg.refine(0)
    )
    log_w = jax.vmap(lambda x: bffg.path_score(bf, x)[1])(jnp.array(paths))
    assert np.allclose(log_w, np.log(poisson(v, 1.5 * 3 * delta)), atol=1e-12)


def test_gamma_poisson_conjugacy() -> None:
    """A10: E = 1.7, y = 3, A = 2.2, B = 0.9."""
    g = bffg.PoissonLeaf(jnp.asarray(1.7)).message(jnp.asarray(3.0), None)
    k = bffg.GammaRate(jnp.asarray(2.2), jnp.asarray(0.9))
    assert float(jnp.exp(k.log_kg(g, None))) == pytest.approx(0.1335025541, abs=1e-9)
    gone = bffg.PoissonLeaf(jnp.asarray(1.7)).message(jnp.asarray(jnp.nan), None)
    assert float(k.log_kg(gone, None)) == pytest.approx(0, abs=1e-12)
    two = g.fuse(g)
    assert isinstance(two, Gamma) and float(two.log_value(0.7)) == pytest.approx(
        2 * float(g.log_value(0.7))
    )


# -- diffusions ----------------------------------------------------------------------------------

B = np.array([[-1, 1], [0.4, -0.8]])
BETA = np.array([0.3, -0.2])
SIGMA = np.array([[0.5, 0.1], [0, 0.4]])
BRANCHES: Any = {"parents": [-1, 0, 1, 1, 0], "length": np.array([0, 0.6, 0.9, 0.5, 1.1])}
TIPS = np.array([[0.5, -0.3], [-0.2, 0.4], [1, 0]])


def branching(kernel: Any) -> Any:
    """Root 0, inner node 1, tips 2, 3 and 4."""
    return bffg.tree(
        BRANCHES["parents"], kernel, lambda p, c: bffg.Point(jnp.array([0.2, 0.4])), [2, 3, 4],
        lambda p, c: GaussianLeaf(jnp.eye(2), 0.05 * jnp.eye(2)),
        covariates={"length": BRANCHES["length"]},
    )  # fmt: skip


@pytest.mark.slow
def test_a_branching_linear_diffusion_is_exact() -> None:
    """A8: log p = -4.0378344373 to 1e-6."""
    model = branching(lambda p, c: bffg.linear_sde(B, BETA, SIGMA, c["length"]))
    bf = bffg.backward(model, TIPS, anchors=bffg.refine(0))
    assert float(bf.log_evidence) == pytest.approx(-4.0378344373, abs=1e-6)


@pytest.mark.slow
def test_edges_of_many_euler_steps() -> None:
    """Linear drift: constant weights, and the evidence of the exact diffusion up to Euler's bias."""
    kernel = bffg.euler(lambda t, x, p: B @ x + BETA, lambda t, x, p: jnp.array(SIGMA), 2)
    model = branching(bffg.euler_steps(kernel, 60))
    bf = bffg.backward(model, TIPS)
    out = bffg.forward(bf, 0, n=50)
    assert np.ptp(out.log_weights) < 1e-9
    assert out.log_evidence == pytest.approx(-4.0378344373, abs=0.05)
    assert "weight after draw" in bffg.explain(model)
    wild = bffg.euler(
        lambda t, x, p: jnp.tanh(B @ x * 2) + BETA,
        lambda t, x, p: jnp.array(SIGMA) * (1 + 0.3 * jnp.sin(x[:1])), 2,
    )  # fmt: skip
    guided = bffg.forward(bffg.backward(branching(bffg.euler_steps(wild, 12)), TIPS), 0, n=20_000)
    plain = bffg.unguided(branching(bffg.euler_steps(wild, 12)), TIPS, None, 1, n=50_000)
    w, v = np.exp(guided.log_weights), np.exp(plain.log_weights)
    se = np.sqrt(w.var() / len(w) + v.var() / len(v))
    assert abs(w.mean() - v.mean()) < 4.9 * se
    assert guided.ess / len(w) > 5 * plain.ess / len(v)


@pytest.mark.slow
def test_the_weight_of_an_euler_chain_is_exact_at_every_step_size() -> None:
    """§2.4: likelihood 0.32843 of the 25-step chain, ESS near 0.74, unguided 0.06."""
    t, dt = bffg.time_grid(1.0, 25, change=False)

    def drift(t: Any, x: Any, p: Any) -> Any:
        return -0.8 * x + jnp.sin(3 * x)

    def diffusion(t: Any, x: Any, p: Any) -> Any:
        return (0.7 + 0.2 * jnp.sin(x))[:, None]

    model = bffg.chain(
        26, bffg.euler(drift, diffusion, 1), lambda p, c: bffg.Point(jnp.array([0.3])),
        lambda p, c: GaussianLeaf(jnp.eye(1), 0.0025 * jnp.eye(1)), observed=[25],
        covariates={"t": np.r_[0, t], "dt": np.r_[0, dt]},
    )  # fmt: skip
    bf = bffg.backward(model, np.array([[1.2]]))
    out = bffg.forward(bf, 0, n=40_000)
    unbiased(out.log_weights, 0.32843)
    assert out.ess / 40_000 > 0.6
    assert bffg.unguided(model, np.array([[1.2]]), None, 0, n=20_000).ess < 0.12 * 20_000
    smc = bffg.forward(bf, 1, n=5_000, resample="ess:0.9")
    assert smc.log_evidence == pytest.approx(np.log(0.32843), abs=0.05)


@pytest.mark.slow
def test_linear_sde_agrees_with_many_small_steps() -> None:
    k = bffg.linear_sde(B, BETA, SIGMA, 0.7)
    phi, mean, Q = np.eye(2), np.zeros(2), np.zeros((2, 2))
    for _ in range(20_000):
        h = 0.7 / 20_000
        A = np.eye(2) + h * B
        phi, mean, Q = A @ phi, A @ mean + h * BETA, A @ Q @ A.T + h * SIGMA @ SIGMA.T
    assert np.allclose(k.B, phi, atol=1e-4) and np.allclose(k.beta, mean, atol=1e-4)
    assert np.allclose(k.L @ k.L.T, Q, atol=1e-4)
    assert isinstance(k, LinearGaussian)
