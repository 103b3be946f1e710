"""Gaussian kernels against Kalman filters, dense joints and quadrature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

from lmppl.inference import bffg  # noqa: E402
from lmppl.inference.bffg.families.gaussian import (  # noqa: E402
    GaussianLeaf,
    LinearGaussian,
    NonlinearGaussian,
)
from lmppl.inference.bffg.kernels import Guessed, Kernel  # noqa: E402
from lmppl.inference.bffg.messages import Gaussian  # noqa: E402

LOG_P = -4.298385836837264
SMOOTHED = np.array([0.2370406, 0.04076392, 0.54830685, 1.05584978, 0.84264163])
Y = np.array([0.3, -0.1, np.nan, 1.2, 0.8])[:, None]


pytestmark = pytest.mark.usefixtures("float64")


def walk(q: Any) -> LinearGaussian:
    """x + √q ε."""
    return LinearGaussian(jnp.eye(1), jnp.zeros(1), jnp.sqrt(q) * jnp.eye(1))


def root(p: Any, c: Any) -> LinearGaussian:
    return LinearGaussian.prior(jnp.zeros(1), jnp.eye(1))


def leaf(p: Any, c: Any) -> GaussianLeaf:
    return GaussianLeaf(jnp.eye(1), 0.1 * jnp.eye(1))


@pytest.fixture(scope="module")
def local_level() -> Any:
    return bffg.chain(5, lambda q, c: walk(q), root, leaf)


@pytest.fixture(scope="module")
def guessed_level() -> Any:
    """The same with a wrong surrogate of variance 0.2."""
    return bffg.chain(5, lambda q, c: Guessed(walk(q), walk(jnp.asarray(0.2))), root, leaf)


def test_the_local_level_is_exact(local_level: Any) -> None:
    bf = bffg.backward(local_level, Y, 0.5)
    assert float(bf.log_evidence) == pytest.approx(LOG_P, abs=1e-12)
    # the guided path without noise is the posterior mean, and these are the anchors
    assert np.allclose(bf.anchors[:, 0], SMOOTHED, atol=1e-8)
    out = bffg.forward(bf, 0, n=200)
    assert np.ptp(out.log_weights) <= 1e-12
    assert bffg.is_exact(local_level, 0.5)


@pytest.mark.slow
def test_weights_are_differentiable(guessed_level: Any) -> None:
    z = bffg.draw_noise(guessed_level, 0, 0.5)

    def f(q: Any) -> Any:
        return bffg.log_weight(guessed_level, Y, q, z)

    assert not bffg.is_exact(guessed_level, 0.5)
    slope = (f(0.5 + 1e-5) - f(0.5 - 1e-5)) / 2e-5
    assert float(jax.grad(f)(0.5)) == pytest.approx(float(slope), rel=1e-4)


@jax.tree_util.register_dataclass
@__import__("dataclasses").dataclass(frozen=True)
class OnlyForward(Kernel):
    """Rung 5: x + √.5 ε, without a density and with noise of another shape than the surrogate's."""

    noise = (2,)

    def forward(self, parent: Any, noise: Any) -> Any:
        return parent + jnp.sqrt(0.25) * noise.sum(keepdims=True)


@jax.tree_util.register_dataclass
@__import__("dataclasses").dataclass(frozen=True)
class WithDensity(Kernel):
    """Rung 4: the density, and no closed form."""

    noise = (1,)

    def forward(self, parent: Any, noise: Any) -> Any:
        return walk(0.5).forward(parent, noise)

    def log_prob(self, parent: Any, child: Any) -> Any:
        return walk(0.5).log_prob(parent, child)


@jax.tree_util.register_dataclass
@__import__("dataclasses").dataclass(frozen=True)
class WithNoise(Kernel):
    """Rung 4 in noise space: no density; the surrogate proposes the noise."""

    noise = (1,)

    def forward(self, parent: Any, noise: Any) -> Any:
        return walk(0.5).forward(parent, noise)


@jax.tree_util.register_dataclass
@__import__("dataclasses").dataclass(frozen=True)
class WithProposal(WithDensity):
    """Rung 3: a proposal of the user's."""

    def proposal(self, message: Any, parent: Any) -> Any:
        return LinearGaussian(0.7 * jnp.eye(1), 0.1 * jnp.ones(1), jnp.eye(1))


RUNGS = [(walk, 1), (WithProposal, 3), (WithDensity, 4), (WithNoise, 4), (OnlyForward, 5)]


@pytest.mark.slow
@pytest.mark.parametrize("kind, rung", RUNGS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_every_rung_is_exact(kind: Any, rung: int) -> None:
    """log W = log p(x, y) - log q(x) pathwise where q has a density; E[W] = p(y) by z-test (1e-6)."""
    made = (lambda: walk(0.5)) if kind is walk else kind
    model = bffg.chain(5, lambda p, c: Guessed(made(), walk(jnp.asarray(0.3))), root, leaf)
    assert f"rung {rung}" in bffg.explain(model).splitlines()[1]
    bf = bffg.backward(model, Y)
    out = bffg.forward(bf, 1, n=20000)
    w = np.exp(out.log_weights - LOG_P)
    assert abs(w.mean() - 1) < 4.9 * w.std() / np.sqrt(len(w))
    if kind in (OnlyForward, WithNoise):
        return
    paths = jnp.asarray(out.values[:5])
    log_q, log_w = jax.vmap(lambda x: bffg.path_score(bf, x))(paths)
    assert np.allclose(log_w, out.log_weights[:5], atol=1e-10)
    x, y = np.asarray(paths)[:, :, 0], Y[:, 0]
    lp = -0.5 * x[:, 0] ** 2 - 0.5 * np.log(2 * np.pi)
    lp = lp + (-(np.diff(x) ** 2) - 0.5 * np.log(2 * np.pi * 0.5)).sum(1)
    seen = np.isfinite(y)
    obs = -((x[:, seen] - y[seen]) ** 2) / 0.2 - 0.5 * np.log(2 * np.pi * 0.1)
    assert np.allclose(log_q + log_w, lp + obs.sum(1), atol=1e-10)


def a5() -> tuple[Any, Any, Any, Any]:
    rng = np.random.default_rng(1)
    B = [0.7 * rng.normal(size=(2, 2)) for _ in range(6)]
    beta = [rng.normal(size=2) for _ in range(6)]
    Q = []
    for _ in range(6):
        A = rng.normal(size=(2, 2))
        Q.append(A @ A.T + 0.1 * np.eye(2))
    B[2] = np.array([[1, 2], [0.5, 1]])  # singular
    full = rng.normal(size=(2, 2))
    y = 2 * rng.normal(size=4)
    data = np.array([[y[0], np.nan], y[1:3], [y[3], np.nan]])
    none = np.zeros((2, 2))
    covariates = {
        "B": np.stack([none, *B]),
        "beta": np.stack([np.zeros(2), *beta]),
        "L": np.stack([none, *np.linalg.cholesky(np.stack(Q))]),
    }
    leaves = {
        "A": np.array([[[1, 0], [0, 0]], full, [[0.3, 1], [0, 0]]]),
        "R": np.array([np.diag([0.3, 1]), np.diag([0.2, 0.5]), np.diag([0.4, 1])]),
    }
    return covariates, leaves, data, rng


def a5_tree(kernel: Any, covariates: Any, leaves: Any) -> Any:
    def prior(p: Any, c: Any) -> Any:
        L = jnp.linalg.cholesky(jnp.array([[1, 0.3], [0.3, 0.8]]))
        return LinearGaussian.prior(jnp.array([0.5, -0.2]), L)

    return bffg.tree(
        [-1, 0, 1, 1, 2, 2, 3], kernel, prior, [4, 5, 6],
        lambda p, c: GaussianLeaf(c["A"], c["R"]), covariates=covariates, leaf_covariates=leaves,
    )  # fmt: skip


def test_a_tree_with_singular_and_partial_edges_equals_the_dense_joint() -> None:
    covariates, leaves, data, _ = a5()
    model = a5_tree(lambda p, c: LinearGaussian(c["B"], c["beta"], c["L"]), covariates, leaves)
    bf = bffg.backward(model, data)
    assert float(bf.log_evidence) == pytest.approx(-12.649903781621298, abs=1e-10)
    parents = [-1, 0, 1, 1, 2, 2, 3]
    mean, cov = np.zeros((7, 2)), np.zeros((7, 2, 7, 2))
    mean[0], cov[0, :, 0, :] = [0.5, -0.2], [[1, 0.3], [0.3, 0.8]]
    for s in range(1, 7):
        B, L = covariates["B"][s], covariates["L"][s]
        mean[s] = B @ mean[parents[s]] + covariates["beta"][s]
        cov[s, :, :s, :] = np.einsum("ij,jkl->ikl", B, cov[parents[s], :, :s, :])
        cov[:s, :, s, :] = cov[s, :, :s, :].transpose(1, 2, 0)
        cov[s, :, s, :] = B @ cov[parents[s], :, parents[s], :] @ B.T + L @ L.T
    C, m = cov.reshape(14, 14), mean.reshape(14)
    for seen in ([0, 1, 2, 3], [0, 3]):  # all leaves, and leaf 5 dropped
        G = np.zeros((4, 14))
        G[0, 8:10], G[1:3, 10:12], G[3, 12:14] = [1, 0], leaves["A"][1], [0.3, 1]
        R = np.diag([0.3, 0.2, 0.5, 0.4])[np.ix_(seen, seen)]
        G, y = G[seen], np.array([data[0, 0], *data[1], data[2, 0]])[seen]
        S, r = G @ C @ G.T + R, y - G @ m
        dense = -0.5 * (r @ np.linalg.solve(S, r) + np.linalg.slogdet(2 * np.pi * S)[1])
        smoothed = m + C @ G.T @ np.linalg.solve(S, r)
        kept = data if len(seen) == 4 else np.where([[True], [False], [True]], data, np.nan)
        bf = bffg.backward(model, kept)
        assert float(bf.log_evidence) == pytest.approx(dense, abs=1e-10)
        assert np.allclose(np.asarray(bf.anchors).ravel(), smoothed, atol=1e-10)
    assert np.ptp(bffg.forward(bf, 0, n=50).log_weights) < 1e-10


@pytest.mark.slow
def test_a_tree_of_wrong_surrogates_is_unbiased() -> None:
    """A6: z-test at 4 standard errors (false alarm 6e-5 over seeds; the seed is fixed)."""
    covariates, leaves, data, rng = a5()
    covariates["B2"] = covariates["B"].copy()
    covariates["beta2"] = covariates["beta"].copy()
    covariates["B2"][1:] += 0.15 * rng.normal(size=(6, 2, 2))
    covariates["beta2"][1:] += 0.2 * rng.normal(size=(6, 2))

    def kernel(p: Any, c: Any) -> Any:
        guess = LinearGaussian(c["B2"], c["beta2"], np.sqrt(1.3) * c["L"])
        return Guessed(LinearGaussian(c["B"], c["beta"], c["L"]), guess)

    out = bffg.forward(bffg.backward(a5_tree(kernel, covariates, leaves), data), 0, n=200_000)
    w = np.exp(out.log_weights + 12.649903781621298)
    assert abs(w.mean() - 1) <= 4 * w.std() / np.sqrt(len(w))
    assert out.ess / len(w) >= 0.7 and out.pareto_k < 0.7


def test_re_anchoring_and_fusing_keep_the_function() -> None:
    rng = np.random.default_rng(0)
    A = rng.normal(size=(2, 2))
    a = Gaussian(rng.normal(size=2), rng.normal(), rng.normal(size=2), A @ A.T)
    b = Gaussian(rng.normal(size=2), rng.normal(), rng.normal(size=2), np.diag([0.0, 2.0]))
    x = rng.normal(size=2)
    assert np.isclose(a.at(x + 3).log_value(x), a.log_value(x))
    total = a.log_value(x) + b.log_value(x)
    assert np.isclose(a.fuse(b).log_value(x), total) and np.isclose(b.fuse(a).log_value(x), total)
    scale, unit = a.normalize()
    assert np.isclose(scale + unit.log_value(x), a.log_value(x))


def test_pullback_equals_the_integral() -> None:
    """m(x) = ∫ g(y) k(x, dy), by Gauss-Hermite quadrature, with singular noise."""
    rng = np.random.default_rng(1)
    A = rng.normal(size=(2, 2))
    g = Gaussian(rng.normal(size=2), 0.3, rng.normal(size=2), 0.3 * A @ A.T)
    k = LinearGaussian(rng.normal(size=(2, 2)), rng.normal(size=2), rng.normal(size=(2, 1)))
    m = k.pullback(g, jnp.array(rng.normal(size=2)))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    for x in rng.normal(size=(3, 2)):
        values = [float(np.exp(g.log_value(k.mean(x) + k.L[:, 0] * e))) for e in nodes]
        exact = np.log(np.dot(weights, values) / np.sqrt(2 * np.pi))
        assert float(m.log_value(x)) == pytest.approx(exact, abs=1e-9)
        assert float(k.log_kg(g, x)) == pytest.approx(exact, abs=1e-9)


def hypo(factor: float, dtype: Any) -> tuple[Any, Any]:
    """The hypo-elliptic chain A9: noise on one coordinate of three."""
    rng = np.random.default_rng(0)
    h, n = 1 / 50, 400
    drift = np.array([[0, 1, 0], [0, 0, 1], [0, -1, -0.5]])
    B, beta = np.eye(3) + h * drift, h * np.array([0, 0, 0.2])
    x, y = np.array([50.0, 0, 0]), []
    for t in range(1, n + 1):
        x = B @ x + beta + np.sqrt(h) * np.array([0, 0, 1]) * rng.normal()
        if t % 20 == 0:
            y.append(x[:2] + 0.1 * rng.normal(size=2))
            if t % 40 == 0:
                y[-1][1] = np.nan
    L = np.sqrt(h) * np.array([[0], [0], [1.0]])

    def kernel(p: Any, c: Any) -> Any:
        guess = LinearGaussian(jnp.array(B, dtype), jnp.array(beta, dtype), jnp.array(L, dtype))
        true = LinearGaussian(guess.B, guess.beta, p * guess.L)
        return true if factor == 1 else Guessed(true, guess)

    start = jnp.array([50.0, 0, 0], dtype)
    A, R = jnp.array(np.eye(3)[:2], dtype), jnp.array(0.01 * np.eye(2), dtype)
    model = bffg.chain(
        n + 1, kernel, lambda p, c: bffg.Point(start), lambda p, c: GaussianLeaf(A, R),
        observed=list(range(20, n + 1, 20)),
    )  # fmt: skip
    return model, np.array(y, dtype)


@pytest.mark.slow
def test_the_hypo_elliptic_chain_in_double_and_single_precision() -> None:
    model, y = hypo(1, np.float64)
    bf = bffg.backward(model, y, jnp.asarray(1.0))
    assert float(bf.log_evidence) == pytest.approx(8.5598487338, abs=1e-9)
    out = bffg.forward(bf, 0, n=20)
    assert np.max(np.abs(out.log_weights - float(bf.log_evidence))) <= 1e-10
    level = jax.jit(lambda p: bffg.backward(model, y, p).log_evidence)
    around = (float(level(1 + 1e-5)) - float(level(1 - 1e-5))) / 2e-5
    assert float(jax.jit(jax.grad(level))(1.0)) == pytest.approx(around, rel=1e-5)
    model, y = hypo(1.08, np.float64)
    bf = bffg.backward(model, y, jnp.asarray(1.08))
    out = bffg.forward(bf, 0, n=20000)
    w = np.exp(out.log_weights - 8.25557)
    assert abs(w.mean() - 1) <= 4 * w.std() / np.sqrt(len(w)) and 0.4 < out.ess / 20000 < 0.65
    with jax.enable_x64(False):
        model, y = hypo(1, np.float32)
        bf = bffg.backward(model, y, jnp.asarray(1.0))
        assert bf.g.F.dtype == np.float32
        assert float(bf.log_evidence) == pytest.approx(8.5598487338, abs=2e-3)
        assert np.max(np.abs(bffg.forward(bf, 0, n=20).log_weights - bf.log_evidence)) <= 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("start, sd", [(0.0, 1.0), (1e4, 1.0), (0.0, 1e4)])
def test_single_precision_far_from_zero(start: float, sd: float) -> None:
    """T5: a walk of 2,000 steps, about 0 and 10,000: within 0.1 nats of double precision.

    The last start knows nothing: the first anchors are 10,000 away from all data.
    """
    found = {}
    rng = np.random.default_rng(1)
    x = np.cumsum(rng.normal(size=2000)) + max(start, sd - 1)
    y = x + 0.1 * rng.normal(size=2000)
    for dtype in (np.float64, np.float32):
        with jax.enable_x64(dtype is np.float64):
            one = jnp.ones((1, 1), dtype)

            def kernel(p: Any, c: Any, one: Any = one) -> Any:
                return LinearGaussian(one, 0 * one[0], one)

            def first(p: Any, c: Any, one: Any = one) -> Any:
                return LinearGaussian.prior(start * one[0], sd * one)

            def see(p: Any, c: Any, one: Any = one) -> Any:
                return GaussianLeaf(one, 0.01 * one)

            # the observations in single precision are the data of both
            data = y.astype(np.float32).astype(dtype)[:, None]
            bf = bffg.backward(bffg.chain(2000, kernel, first, see), data)
            found[dtype] = float(bf.log_evidence)
    assert abs(found[np.float32] - found[np.float64]) <= 0.1


@pytest.mark.slow
def test_a_gaussian_collider_needs_inflation() -> None:
    """§1.3: over-confident at inflate 0, near .6 at 1.0, and unbiased (4 standard errors)."""

    def z(x: Any, theta: Any) -> Any:
        return jnp.tanh(x[0]) + 0.7 * x[1] + 0.3 * x[0] * x[1]

    def leaf(p: Any, c: Any) -> Any:
        return GaussianLeaf(jnp.eye(1), 0.2 * jnp.eye(1))

    def noise(x: Any, theta: Any) -> Any:
        return jnp.sqrt(0.3) * jnp.eye(1)

    def prior(p: Any, c: Any) -> Any:
        return LinearGaussian.prior(c["mean"], c["sd"][None])

    model = bffg.dag(
        [(), (), (0, 1)],
        {"root": prior, "z": lambda p, c: NonlinearGaussian(None, z, noise, 1)},
        ["root", "root", "z"], [2], leaf,
        covariates={"mean": np.array([[0], [0.5], [0]]), "sd": np.sqrt(np.array([[1.0], [2], [1]]))},
    )  # fmt: skip
    y = np.array([[1.0]])
    sizes = {}
    for inflate in (0.0, 1.0):
        bf = bffg.backward(model, y, anchors=bffg.refine(0), inflate=inflate)
        out = bffg.forward(bf, 0, n=100_000)
        sizes[inflate] = out.ess / 100_000
    w = np.exp(out.log_weights + 1.566692)
    assert abs(w.mean() - 1) <= 4 * w.std() / np.sqrt(len(w))
    assert np.allclose(out.expectation()[:2, 0], [0.27315, 0.92917], atol=0.02)
    assert sizes[0.0] < 0.2 < 0.5 < sizes[1.0]


def test_products_in_the_wrong_order_are_rejected() -> None:
    """T3: the constants of A5 with (I + HQ)⁻¹Q for Q(I + HQ)⁻¹ are 8.54 nats off; ours are right."""
    covariates, leaves, data, _ = a5()
    model = a5_tree(lambda p, c: LinearGaussian(c["B"], c["beta"], c["L"]), covariates, leaves)
    bf = bffg.backward(model, data)
    gap = 0.0
    for s in range(1, 7):
        g = jax.tree.map(lambda a, s=s: np.asarray(a[s]), bf.g).at(np.zeros(2))
        Q = covariates["L"][s] @ covariates["L"][s].T
        F, H = np.asarray(g.F), np.asarray(g.H)
        inverse = np.linalg.inv(np.eye(2) + H @ Q)
        right, wrong = (F @ M @ F / 2 for M in (Q @ inverse, inverse @ Q))
        # log (k g) at B x + β = 0, where nothing but this term and the determinant is left
        still = LinearGaussian(np.eye(2), np.zeros(2), covariates["L"][s])
        constant = float(g.c) - 0.5 * np.linalg.slogdet(np.eye(2) + H @ Q)[1]
        assert float(still.log_kg(g, np.zeros(2))) == pytest.approx(constant + right, abs=1e-10)
        gap += wrong - right
    assert gap == pytest.approx(-8.54, abs=0.01)
