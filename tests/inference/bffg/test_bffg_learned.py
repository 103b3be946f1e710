"""Residuals on a guide: exact whatever they are, better after training, the evidence between bounds."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

from lmppl.errors import BadArgument  # noqa: E402
from lmppl.inference import bffg  # noqa: E402
from lmppl.inference.bffg.residual import table  # noqa: E402

pytestmark = pytest.mark.usefixtures("float64")


# -- finite states -------------------------------------------------------------------------------

S = 3
GRAPHS: dict[str, list[tuple[int, ...]]] = {
    "chain": [(), (0,), (1,), (2,)],
    "tree": [(), (0,), (1,), (1,), (0,)],
    "collider": [(), (0,), (0,), (1, 2), (3,)],
}
SEEN = {"chain": [1, 3], "tree": [2, 3, 4], "collider": [3, 4]}
Y = np.array([0, 2, 1])


def stoch(rng: np.random.Generator, *shape: int) -> Any:
    x = rng.gamma(0.7, size=shape) + 0.05
    return x / x.sum(-1, keepdims=True)


def finite(graph: str) -> tuple[Any, Any, Any, Any]:
    """A model with wrong tables in its guide, its data, all its paths and their joint with the data."""
    rng = np.random.default_rng(3)
    true = [stoch(rng, S), 0.8 * np.eye(S) + 0.2 * stoch(rng, S, S), stoch(rng, S, S, S)]
    wrong = [p[..., ::-1].copy() for p in true[1:]]
    E = 0.8 * np.eye(S) + 0.2 * stoch(rng, S, S)
    parents = GRAPHS[graph]

    def edge(p: int) -> Any:
        return lambda params, c: bffg.Guessed(
            bffg.Finite(jnp.array(true[p])), bffg.Finite(jnp.array(wrong[p - 1]))
        )

    kernels = {"0": lambda p, c: bffg.Finite(jnp.array(true[0])), "1": edge(1), "2": edge(2)}
    model = bffg.dag(
        parents, kernels, [str(len(pa)) for pa in parents], SEEN[graph],
        lambda p, c: bffg.FiniteLeaf(jnp.array(E)),
    )  # fmt: skip
    x = np.array(list(itertools.product(range(S), repeat=len(parents))))
    joint = np.ones(len(x))
    for s, pa in enumerate(parents):
        joint = joint * true[len(pa)][tuple(x[:, u] for u in (*pa, s))]
    data = Y[: len(SEEN[graph])]
    for s, y in zip(SEEN[graph], data, strict=True):
        joint = joint * E[x[:, s], y]
    return model, data, x, joint


def scored(bf: Any, paths: Any) -> tuple[Any, Any]:
    """q and W of every path."""
    log_q, log_w = jax.jit(jax.vmap(lambda v: bffg.path_score(bf, v)))(jnp.asarray(paths))
    return np.exp(log_q), np.exp(log_w)


def forgetful(residual: Any, bf: Any) -> Any:
    """A mutant: f guides and enters the weight, and is never divided out."""
    return replace(residual.on(bf), m=bf.m)


@pytest.mark.parametrize(
    "graph", ["chain", *(pytest.param(g, marks=pytest.mark.slow) for g in ("tree", "collider"))]
)
def test_any_residual_is_exact_by_enumeration(graph: str) -> None:
    """Path by path; the draws are of another law than without, and the mutant is caught."""
    model, data, paths, joint = finite(graph)
    bf = bffg.backward(model, data)
    some = bffg.Residual(jnp.array(np.random.default_rng(0).normal(size=(model.n, S))), table)
    q, w = scored(some.on(bf), paths)
    assert q.sum() == pytest.approx(1, abs=1e-10)
    assert np.abs(q * w / joint - 1).max() < 1e-10
    assert np.abs(q - scored(bf, paths)[0]).sum() > 0.1
    q, w = scored(forgetful(some, bf), paths)
    assert abs((q * w).sum() / joint.sum() - 1) > 0.01


def size(q: Any, w: Any) -> float:
    """ESS of one draw, exactly."""
    return float((q @ w) ** 2 / (q @ w**2))


@pytest.mark.parametrize("loss", ["contrastive", pytest.param("ratio", marks=pytest.mark.slow)])
def test_training_mends_the_guide(loss: str) -> None:
    """ESS of exact sums, and bounds that hold log p(data) between them, closer than before."""
    model, data, paths, joint = finite("chain")
    bf = bffg.backward(model, data)
    rng = np.random.default_rng(1)
    truth, share = np.log(joint.sum()), joint / joint.sum()
    drawn = bffg.Guided.of(paths[rng.choice(len(paths), 400, p=share)], np.full(400, truth))
    learned = bffg.fit_residual(bf, drawn, loss=loss, steps=150)
    assert learned.losses[-1] < learned.losses[0]
    before, after = size(*scored(bf, paths)), size(*scored(learned.on(bf), paths))
    print(f"ESS {before:.3f} before, {after:.3f} after")
    assert before < 0.2 and after > 0.95
    fresh = paths[rng.choice(len(paths), 200, p=share)]
    gaps = [bffg.evidence_bounds(f, fresh, n=2) for f in (bf, learned.on(bf))]
    for found in gaps:
        assert found.lower - 4.9 * found.lower_se < truth < found.upper + 4.9 * found.upper_se
    assert gaps[1].gap < 0.5 * gaps[0].gap


# -- real states ---------------------------------------------------------------------------------

DATA = np.array([[0.4], [1.5], [-0.6]])


def bent() -> Any:
    """x' = x + sin(2x)/2 + noise, seen as x + 0.3 x² + noise."""
    step = bffg.NonlinearGaussian(
        None, lambda x, t: x + 0.5 * jnp.sin(2 * x), lambda x, t: 0.5 * jnp.eye(1), 1
    )
    return bffg.chain(
        3, lambda p, c: step, lambda p, c: bffg.LinearGaussian.prior(jnp.zeros(1), jnp.eye(1)),
        lambda p, c: bffg.NonlinearLeaf(None, 0.09 * jnp.eye(1), lambda x, t: x + 0.3 * x**2),
    )  # fmt: skip


def normal(x: Any, mean: Any, sd: float) -> Any:
    return np.exp(-0.5 * ((x - mean) / sd) ** 2) / (sd * np.sqrt(2 * np.pi))


def evidence() -> float:
    """By a grid of 1201 points."""
    x = np.linspace(-6, 6, 1201)
    like = [normal(float(y[0]), x + 0.3 * x**2, 0.3) for y in DATA]
    K = normal(x[None, :], (x + 0.5 * np.sin(2 * x))[:, None], 0.5) * (x[1] - x[0])
    return float((normal(x, 0, 1) * like[0] * (x[1] - x[0])) @ K @ (like[1] * (K @ like[2])))


def any_network(n: int, d: int, hidden: int = 4) -> Any:
    rng = np.random.default_rng(2)
    shapes = [(n, d, hidden), (n, hidden), (n, hidden), (n,)]
    net = tuple(jnp.array(rng.normal(size=s)) for s in shapes)
    return bffg.Residual((jnp.zeros((n, d)), jnp.ones((n, d)), net))


def z_score(out: Any, truth: float) -> float:
    w = np.exp(out.log_weights) / truth
    return float((w.mean() - 1) / (w.std() / np.sqrt(len(w))))


def test_any_network_is_unbiased_on_a_nonlinear_chain() -> None:
    """z-tests at 1e-6 against a grid; log q + log W is the log joint; the mutant is caught."""
    bf = bffg.backward(bent(), DATA)
    some, truth = any_network(3, 1), evidence()
    out = bffg.forward(some.on(bf), 0, n=20_000)
    assert abs(z_score(out, truth)) < 4.9
    assert abs(z_score(bffg.forward(forgetful(some, bf), 0, n=20_000), truth)) > 10
    x = np.random.default_rng(5).normal(size=(4, 3, 1))
    log_q, log_w = jax.vmap(lambda v: bffg.path_score(some.on(bf), v))(jnp.array(x))
    plain = jax.vmap(lambda v: bffg.path_score(bf, v))(jnp.array(x))
    assert np.allclose(log_q + log_w, plain[0] + plain[1], atol=1e-10)
    assert np.abs(log_q - plain[0]).min() > 1e-3


@pytest.mark.slow
def test_a_resampled_filter_with_a_residual_is_unbiased() -> None:
    """300 filters of 8 particles: resampling follows f, and E[Ẑ] does not; z-test at 1e-6."""
    bf, truth = any_network(3, 1).on(bffg.backward(bent(), DATA)), evidence()
    found = [bffg.forward(bf, seed, n=8, resample="ess:1").log_evidence for seed in range(300)]
    ratio = np.exp(found) / truth
    assert abs(ratio.mean() - 1) < 4.9 * ratio.std() / np.sqrt(300)


@pytest.mark.slow
def test_a_learned_drift_makes_the_weights_of_a_bridge_even() -> None:
    """The bridge of the specification, T4, whose guide is a linear diffusion: ESS before and after."""
    t, dt = bffg.time_grid(1.0, 25, change=False)
    end = 1.2
    slope = -0.8 + 3 * np.cos(3 * end)
    model = bffg.chain(
        26,
        bffg.euler(
            lambda t, x, p: -0.8 * x + jnp.sin(3 * x),
            lambda t, x, p: (0.7 + 0.2 * jnp.sin(x))[:, None], 1,
            aux=lambda t, p: (
                jnp.full((1, 1), slope), jnp.full(1, -0.8 * end + np.sin(3 * end) - slope * end),
                jnp.full((1, 1), 0.7 + 0.2 * np.sin(end)),
            ),
        ),
        lambda p, c: bffg.Point(jnp.array([0.3])),
        lambda p, c: bffg.GaussianLeaf(jnp.eye(1), 0.0025 * jnp.eye(1)), observed=[25],
        covariates={"t": np.r_[0, t], "dt": np.r_[0, dt]},
    )  # fmt: skip
    bf = bffg.backward(model, np.array([[end]]))
    before = bffg.forward(bf, 1, n=4000)
    learned = bffg.fit_residual(bf, bffg.forward(bf, 2, n=1000), smooth=0.3)
    after = bffg.forward(learned.on(bf), 1, n=4000)
    print(f"ESS {before.ess / 4000:.3f} before, {after.ess / 4000:.3f} after")
    assert before.ess < 0.75 * 4000 and after.ess > 0.85 * 4000
    for out in (before, after):
        assert abs(z_score(out, 0.32843)) < 4.9


def bent_tree() -> Any:
    """Two diffusions that part after a common edge, by Euler steps inside the edges, badly guided."""
    step = bffg.euler(
        lambda t, x, p: 2 * jnp.sin(2 * x), lambda t, x, p: jnp.full((1, 1), 0.7), 1,
        aux=lambda t, p: (jnp.full((1, 1), -0.5), jnp.zeros(1), jnp.full((1, 1), 0.7)),
    )  # fmt: skip
    return bffg.tree(
        [-1, 0, 1, 1], bffg.euler_steps(step, 6), lambda p, c: bffg.Point(jnp.array([0.2])), [2, 3],
        lambda p, c: bffg.GaussianLeaf(jnp.eye(1), 0.04 * jnp.eye(1)),
        covariates={"length": np.array([0.0, 0.6, 0.3, 0.4])},
    )  # fmt: skip


def changing() -> Any:
    """A jump process whose rates change within three edges, guided by other, constant ones."""
    low, high = (
        jnp.array([[0, a, 0.2], [b, 0, a], [0.3, b, 0]]) for a, b in ((0.2, 2.0), (2.0, 0.4))
    )

    def edge(params: Any, c: Any) -> Any:
        guess = jnp.array([[0, 0.3, 1.0], [0.3, 0, 0.3], [1.0, 0.3, 0]])
        rates = lambda t, theta: theta[0] + (theta[1] - theta[0]) * t  # noqa: E731
        return bffg.JumpProcess(jnp.asarray(1.0), (low, high), guess, jnp.asarray(4.0), rates, 22)

    return bffg.chain(
        4, edge, lambda p, c: bffg.Finite(jnp.array([0.6, 0.3, 0.1])),
        lambda p, c: bffg.FiniteLeaf(0.85 * jnp.eye(3) + 0.05), observed=[1, 3],
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "data", "key", "loss"),
    [
        pytest.param(bent_tree, [[1.5], [1.2]], 0, "contrastive", id="diffusion"),
        pytest.param(bent_tree, [[1.5], [1.2]], 0, "ratio", id="diffusion-ratio"),
        pytest.param(changing, [1.0, 2.0], 1, "contrastive", id="jumps"),
    ],
)
def test_edges_without_a_density_learn_too(make: Any, data: Any, key: int, loss: str) -> None:
    """With and without a residual the evidence is the same; the ESS grows; a path alone is refused."""
    bf, n = bffg.backward(make(), np.array(data)), 20_000
    learned = bffg.fit_residual(bf, key=key, loss=loss, hidden=4).on(bf)
    before, after = (bffg.forward(f, 5, n=n) for f in (bf, learned))
    print(f"ESS {before.ess / n:.3f} before, {after.ess / n:.3f} after")
    assert after.ess > 1.1 * before.ess
    w, v = np.exp(before.log_weights), np.exp(after.log_weights)
    spread = np.sqrt(w.var() / n + v.var() / n)
    assert abs(w.mean() - v.mean()) < 4.9 * spread
    with pytest.raises(BadArgument, match="no log_prob"):
        bffg.fit_residual(bf, before)


def test_a_residual_needs_a_filter_without_one() -> None:
    bf = bffg.backward(bent(), DATA)
    once = any_network(3, 1).on(bf)
    with pytest.raises(BadArgument, match="without one"):
        any_network(3, 1).on(once)
    with pytest.raises(BadArgument, match='"contrastive"'):
        bffg.fit_residual(bf, loss="nce")
