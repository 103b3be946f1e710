"""Traps of the specification as mutants with their signatures, and the tree E1 (A7, T8, T10, T11)."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

from lmppl.inference import bffg  # noqa: E402
from lmppl.inference.bffg.kernels import pick  # noqa: E402
from lmppl.inference.bffg.messages import Gaussian  # noqa: E402

pytestmark = pytest.mark.usefixtures("float64")


# -- E1: a binary tree of 31 nodes ----------------------------------------------------------------


def e1() -> tuple[Any, Any]:
    """The model, with parameters (σ², τ²), and the measurements of the 16 leaves."""
    kp, ko = jax.random.split(jax.random.PRNGKey(202605))
    z = np.asarray(jax.random.normal(kp, (31, 1), jnp.float32))
    x = np.zeros((31, 1), np.float32)
    for i in range(1, 31):
        x[i] = x[(i - 1) // 2] + np.float32(0.5**0.5) * z[i]
    y = x[15:] + np.float32(0.1**0.5) * np.asarray(jax.random.normal(ko, (16, 1), jnp.float32))

    def kernel(p: Any, c: Any) -> Any:
        return bffg.LinearGaussian(jnp.eye(1), jnp.zeros(1), jnp.sqrt(p[0]) * jnp.eye(1))

    model = bffg.tree(
        [-1, *((i - 1) // 2 for i in range(1, 31))], kernel, lambda p, c: bffg.Point(jnp.zeros(1)),
        range(15, 31), lambda p, c: bffg.GaussianLeaf(jnp.eye(1), p[1] * jnp.eye(1)),
    )  # fmt: skip
    return model, y.astype(float)


AT = jnp.array([0.5, 0.1])


def test_the_tree_has_the_numbers_of_the_notebook() -> None:
    """A7, the half that is exact: evidence and message of the root to 1e-4."""
    model, y = e1()
    assert y[:4, 0] == pytest.approx([-3.2318456, -1.7759498, -3.105866, -1.8258889], abs=1e-6)
    bf = bffg.backward(model, y, AT, anchors=bffg.refine(0))
    assert float(bf.log_evidence) == pytest.approx(-24.4213, abs=1e-4)
    root = jax.tree.map(lambda a: a[0], bf.g).at(jnp.zeros(1))
    assert float(root.H[0, 0]) == pytest.approx(2.10526, abs=1e-4)
    assert float(root.F[0]) == pytest.approx(-2.20764, abs=1e-4)


@pytest.mark.slow
def test_nuts_over_the_parameters_of_the_tree() -> None:
    """A7, the other half: log σ², log τ² ~ N(0, 2²), the guide follows θ; mean σ² .467 ± .03."""
    import numpyro
    from numpyro.infer import MCMC, NUTS

    model, y = e1()

    def program() -> None:
        normal = numpyro.distributions.Normal(jnp.zeros(2), 2.0).to_event(1)
        theta = jnp.exp(numpyro.sample("log θ", normal))
        bffg.factor("y", model, y, theta, bffg.sample_noise("z", model, theta))

    mcmc = MCMC(NUTS(program), num_warmup=500, num_samples=4000, progress_bar=False)
    mcmc.run(jax.random.key(0))
    sigma2 = np.exp(np.asarray(mcmc.get_samples()["log θ"]))[:, 0]
    assert abs(sigma2.mean() - 0.467) < 0.03


@pytest.mark.slow
def test_a_prior_ratio_in_pcn_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """T8: with the exact guide and ρ = .8 it accepts .245 for 1, and has mean Z² .498 for 1."""
    model, y = e1()
    bf = bffg.backward(model, y, AT)

    def chain() -> tuple[float, float]:
        found = bffg.pcn(bf, 0, 5000, bffg.PCN(0.8))
        z = np.asarray(found.noise["edge"])
        return found.acceptance, float((z**2).mean())

    assert chain() == pytest.approx((1.0, 1.0), abs=0.05)
    file = sys.modules["lmppl.inference.bffg.pcn"]
    whole = bffg.guided_path

    def with_prior(bf: Any, noise: Any) -> Any:
        values, log_w = whole(bf, noise)
        return values, log_w - 0.5 * sum(jnp.sum(z**2) for z in noise.values())

    jax.clear_caches()
    monkeypatch.setattr(file, "guided_path", with_prior)
    accepted, squares = chain()
    jax.clear_caches()
    assert abs(accepted - 0.245) < 0.03 and abs(squares - 0.498) < 0.06


def test_innovations_are_uniform() -> None:
    """T8: a normal picks the first of (.1, .9) with probability .1; (1 + sin z)/2 gave .164 (1e-6)."""
    z = np.random.default_rng(0).normal(size=20_000)
    found = np.asarray(jax.vmap(lambda z: pick(jnp.array([0.1, 0.9]), z))(jnp.array(z)))
    se = np.sqrt(0.09 / len(z))
    assert abs((found == 0).mean() - 0.1) < 4.9 * se
    assert abs(((1 + np.sin(z)) / 2 < 0.1).mean() - 0.164) < 4.9 * se


@pytest.mark.slow
def test_vmap_and_jit_are_eager() -> None:
    """A13: log W of one path, of many at once, compiled or not; one compilation for all data."""
    model, y = e1()
    z = bffg.draw_noise(model, 0, AT, 3)
    traced = []

    def level(y: Any, theta: Any, z: Any) -> Any:
        traced.append(1)
        return bffg.log_weight(model, y, theta, z, anchors=bffg.refine(0))

    one = [float(level(y, AT, {k: v[i] for k, v in z.items()})) for i in range(3)]
    compiled = jax.jit(jax.vmap(level, (None, None, 0)))
    assert np.allclose(compiled(y, AT, z), one, atol=1e-10)
    before = len(traced)
    compiled(y + 1, 2 * AT, z)
    assert len(traced) == before


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Listed(bffg.Kernel):
    """Rung 2: a matrix that lists its states."""

    P: Any
    noise = ()

    def forward(self, parent: Any, noise: Any) -> Any:
        return pick(self.P[parent], noise)

    def support(self) -> Any:
        return jnp.arange(3)

    def log_prob(self, parent: Any, child: Any) -> Any:
        return jnp.log(self.P[parent, child])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blind(bffg.Kernel):
    """Rung 5: no density."""

    P: Any
    noise = ()

    def forward(self, parent: Any, noise: Any) -> Any:
        return pick(self.P[parent], noise)


@pytest.mark.slow
def test_a_finite_support_is_summed_and_a_guide_unseen_weighs_the_data() -> None:
    """A16: rung 2 is the closed form; on rung 5 log W = Σ log l, path by path."""
    P, guess = (jnp.array(np.random.default_rng(i).dirichlet(np.ones(3), 3)) for i in (0, 1))
    E, y = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]), np.array([2, 1, 0])

    def build(kernel: Any) -> Any:
        return bffg.chain(
            3, lambda p, c: bffg.Guessed(kernel, bffg.Finite(guess)),
            lambda p, c: bffg.Point(jnp.array(0)), lambda p, c: bffg.FiniteLeaf(jnp.array(E)),
        )  # fmt: skip

    found = []
    kernels: list[tuple[Any, int]] = [(bffg.Finite(P), 1), (Listed(P), 2), (Blind(P), 5)]
    for kernel, rung in kernels:
        model = build(kernel)
        assert f"rung {rung}" in bffg.explain(model).splitlines()[1]
        found.append(bffg.forward(bffg.backward(model, y), 0, n=50))
    assert (found[0].values == found[1].values).all()
    assert np.allclose(found[0].log_weights, found[1].log_weights, atol=1e-12)
    data = np.log(E[found[2].values, y]).sum(1)
    assert np.allclose(found[2].log_weights, data, atol=1e-10)


# -- zeros of the guide ---------------------------------------------------------------------------


def test_zeros_of_the_guide_lose_mass_and_are_told_of() -> None:
    """T10: E[W] < Z while the ESS is healthy; `explain` warns, and pseudocounts are exact."""
    K, E = np.array([[0.6, 0.4], [0.3, 0.7]]), np.array([[0.8, 0.2], [0.4, 0.6]])
    y, paths = np.array([1, 1, 0]), np.array(list(itertools.product(range(2), repeat=3)))
    joint = 0.5 * K[paths[:, 0], paths[:, 1]] * K[paths[:, 1], paths[:, 2]] * E[paths, y].prod(1)

    def run(guess: Any) -> tuple[Any, Any, str]:
        kernel = bffg.Guessed(bffg.Finite(jnp.array(K)), bffg.Finite(jnp.array(K)))
        model = bffg.chain(
            3, lambda p, c: kernel, lambda p, c: bffg.Finite(jnp.full(2, 0.5)),
            lambda p, c: bffg.FiniteLeaf(jnp.array(E), jnp.array(guess)),
        )  # fmt: skip
        bf = bffg.backward(model, y)
        log_q, log_w = jax.vmap(lambda x: bffg.path_score(bf, x))(jnp.array(paths))
        told = bffg.explain(model, bf=bf)
        q, w = np.exp(log_q), np.nan_to_num(np.exp(log_w))
        return q, w, told

    q, w, told = run(np.array([[0.8, 0.0], [0.4, 0.6]]))
    lost = (q[q > 0] * w[q > 0]).sum()
    assert lost < 0.8 * joint.sum()
    assert lost**2 / (q[q > 0] * w[q > 0] ** 2).sum() > 0.9  # nothing to see in the weights
    assert "WARNING zeros in g" in told
    q, w, told = run(np.array([[0.8, 0.02], [0.4, 0.6]]))
    assert (q * w).sum() == pytest.approx(joint.sum(), rel=1e-12) and "WARNING" not in told


# -- guides that are swapped ----------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pinned:
    """y = x + N(0, .3), guided by exp(F x - H x²/2), whatever y is."""

    F: Any
    H: Any
    exact = False

    def message(self, y: Any, anchor: Any) -> Any:
        zero = jnp.zeros(1)
        return Gaussian(zero, jnp.zeros(()), self.F * jnp.ones(1), self.H * jnp.eye(1)).at(anchor)

    def log_prob(self, x: Any, y: Any) -> Any:
        return -0.5 * jnp.sum((y - x) ** 2) / 0.3


@pytest.mark.slow
@pytest.mark.parametrize("keep, variance", [("noise", 0.44), ("state", 0.2308)])
def test_a_guide_that_is_swapped_needs_the_state_kept(keep: str, variance: float) -> None:
    """T11: proposals N(0, 1) and N(1, .5) by turns, pCN at ρ = .9, 400 chains of 1,000 turns.

    Noise kept across the swap has variance .44; a state kept, whose noise is found again, .2308.
    """
    model = bffg.chain(
        1, lambda p, c: None, lambda p, c: bffg.LinearGaussian.prior(jnp.zeros(1), jnp.eye(1)),
        lambda p, c: Pinned(*p),
    )  # fmt: skip
    y, guides = np.array([[1.5]]), jnp.array([[0.0, 0.0], [2.0, 1.0]])

    def path(guide: Any, z: Any) -> Any:
        bf = bffg.backward(model, y, (guide[0], guide[1]), anchors=bffg.refine(0))
        x, log_w = bffg.guided_path(bf, {"root": z[None, None]})
        return x[0, 0], log_w

    def turn(x: Any, t: Any) -> Any:
        guide, key = guides[t[0] % 2], t[1]
        x, z = x
        mean, sd = guide[0] / (1 + guide[1]), 1 / jnp.sqrt(1 + guide[1])
        z = z if keep == "noise" else (x - mean) / sd
        fresh = 0.9 * z + jnp.sqrt(1 - 0.81) * jax.random.normal(key)
        old, new = path(guide, z), path(guide, fresh)
        accept = jnp.log(jax.random.uniform(jax.random.fold_in(key, 1))) < new[1] - old[1]
        x, z = jnp.where(accept, new[0], old[0]), jnp.where(accept, fresh, z)
        return (x, z), x

    def chain(key: Any) -> Any:
        turns = (jnp.arange(1000), jax.random.split(key, 1000))
        return jax.lax.scan(turn, (jnp.zeros(()), jnp.zeros(())), turns)[1][100:]

    x = np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), 400)))
    spread = ((x - x.mean()) ** 2).mean(1)
    assert abs(spread.mean() - variance) < 4.9 * spread.std() / 20 + 0.005
