"""Missing, partial and singular observations of every family: finite, and what dropping them gives (T6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

from lmppl.inference import bffg  # noqa: E402
from lmppl.inference.bffg.families.gaussian import LinearGaussian  # noqa: E402
from lmppl.inference.bffg.messages import Gaussian  # noqa: E402

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.slow]
NAN = np.nan
TREE = [-1, 0, 1, 1]


def tree(kernel: Any, start: Any, leaf: Any, observed: list[int]) -> Any:
    """Root 0 with the child 1, which has the children 2 and 3; θ multiplies the rates."""
    return bffg.tree(
        TREE, kernel, lambda p, c: bffg.Point(jnp.asarray(start)), observed, lambda p, c: leaf,
        covariates={"length": np.array([0.0, 0.5, 0.4, 0.7])},
    )  # fmt: skip


def euler(L: Any, aux: Any = None) -> Callable[[list[int]], Any]:
    """A pair (place, speed) that branches once; singular when only the speed has noise."""
    step = bffg.euler(
        lambda t, x, p: jnp.stack([x[1], -p * jnp.sin(x[0]) - 0.3 * x[1]]), lambda t, x, p: jnp.array(L),
        L.shape[1], aux,
    )  # fmt: skip
    leaf = bffg.GaussianLeaf(np.eye(2), 0.01 * np.eye(2))
    return lambda observed: tree(bffg.euler_steps(step, 5), [0.4, 0.0], leaf, observed)


SINGULAR, REGULAR = np.array([[0.0], [1.0]]), 0.5 * np.eye(2)
RATES = np.array([[0, 0.6, 0.2], [0.3, 0, 0.5], [0.4, 0.9, 0]])
NOISY = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])
LINE = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


def contact(p: Any, c: Any) -> Any:
    theta = {
        "neighbours": jnp.array(LINE),
        "infect": p,
        "recover": 0.6,
        "tau": c["length"],
        "spark": 0.01,
    }
    return bffg.Guessed(
        bffg.Interacting(theta, 3, bffg.sir_law), bffg.sir_profile(jnp.full(3, 0.7), theta)
    )


FAMILIES: dict[str, tuple[Callable[[list[int]], Any], Any, Any]] = {
    "auxiliary diffusion, singular": (
        euler(SINGULAR, lambda t, p: (jnp.array([[0, 1], [-0.9 * p, -0.3]]), jnp.zeros(2), jnp.array(SINGULAR))),
        [[0.5, 0.2], [0.3, -0.1]], [[0.5, NAN], [NAN, NAN]],
    ),
    "linearised diffusion, singular": (
        euler(SINGULAR), [[0.5, 0.2], [0.3, -0.1]], [[NAN, 0.2], [NAN, NAN]],
    ),
    "chain in continuous time": (
        lambda observed: tree(
            lambda p, c: bffg.ctmc(p * RATES, c["length"]), 0, bffg.FiniteLeaf(NOISY), observed
        ),
        [2, 0], [1, NAN],
    ),
    "jump process": (
        lambda observed: tree(
            lambda p, c: bffg.JumpProcess(
                c["length"], p, jnp.array(RATES.T + 0.1), jnp.asarray(3.0), lambda t, p: p * RATES * (1 + t), 20
            ),
            0, bffg.FiniteLeaf(NOISY), observed,
        ),
        [2, 0], [1, NAN],
    ),
    "contact process": (
        lambda observed: tree(contact, [0, 1, 0], bffg.ParticleLeaf(NOISY[:2, :2]), observed),
        [[1, 1, 0], [0, 0, 1]], [[NAN, 1, NAN], [NAN, NAN, NAN]],
    ),
    "compound Poisson": (
        lambda observed: tree(
            lambda p, c: bffg.CompoundPoisson(
                c["length"], p, jnp.asarray(1.5), jnp.array([0.6, 0.4]),
                lambda x, p: p * (1 + 0.3 * x), 6,
            ),
            0, bffg.FiniteLeaf(np.eye(7)), observed,
        ),
        [3, 2], [3, NAN],
    ),
}  # fmt: skip
THETA = 1.1


def levels_and_slopes(model: Any, data: Any) -> Any:
    """log W of fixed noise, and its derivative in θ, for each of some data."""
    noise = bffg.draw_noise(model, 0, THETA)

    def level(p: Any, y: Any) -> Any:
        return bffg.log_weight(model, y, p, noise, anchors=bffg.refine(0))

    of: Any = jax.jit(
        jax.vmap(
            lambda y: jnp.stack(
                [
                    *jax.value_and_grad(level)(THETA, y),
                    level(THETA + 1e-5, y),
                    level(THETA - 1e-5, y),
                ]
            )
        )
    )
    return np.asarray(of(jnp.array(data, dtype=float)))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_missing_is_as_if_it_were_not_there(family: str) -> None:
    """Values and derivatives are finite, and those of a model without the node that is missing."""
    make, full, partial = FAMILIES[family]
    nothing = np.full(np.shape(full), NAN)
    found = levels_and_slopes(make([2, 3]), [full, partial, nothing])
    assert np.isfinite(found).all()
    assert found[2, :2] == pytest.approx([0, 0], abs=1e-10)
    assert np.ptp(found[:, 0]) > 0.1
    differences = (found[:, 2] - found[:, 3]) / 2e-5
    assert found[:, 1] == pytest.approx(differences, rel=1e-4, abs=1e-7)
    alone = levels_and_slopes(make([2]), [partial[:1]])
    assert alone[0] == pytest.approx(found[1], abs=1e-9)


def test_partial_data_of_singular_noise_are_weighted_right() -> None:
    """E[W] is that of forward simulation, by a z-test at 1e-6, and the guide is worth it."""
    model, y = euler(SINGULAR)([2, 3]), np.array([[0.45, NAN], [NAN, -0.3]])
    guided = bffg.forward(bffg.backward(model, y, THETA), 0, n=1000)
    plain = bffg.unguided(model, y, THETA, 1, n=100_000)
    a, b = np.exp(guided.log_weights), np.exp(plain.log_weights)
    se = np.sqrt(a.var() / len(a) + b.var() / len(b))
    assert abs(a.mean() - b.mean()) < 4.9 * se
    assert guided.ess / len(a) > 4 * plain.ess / len(b)


def by_inverse(self: Any, g: Any, anchor: Any) -> Any:
    """The mutant: a pullback by H⁻¹, as in the covariance form of the papers."""
    P = jnp.linalg.inv(g.H)
    nu = g.anchor + P @ g.F
    B = jnp.linalg.inv(self.B)
    H = jnp.linalg.inv(B @ (P + self.L @ self.L.T) @ B.T)
    center = B @ (nu - self.beta)
    return Gaussian(anchor, g.c, H @ (center - anchor), H)


def test_a_pullback_by_inverses_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """T6's signature: fine with full data, nan where some are missing."""
    model, (_, full, partial) = euler(REGULAR)([2, 3]), FAMILIES["auxiliary diffusion, singular"]
    assert np.isfinite(levels_and_slopes(model, [full, partial])).all()
    monkeypatch.setattr(LinearGaussian, "pullback", by_inverse)
    jax.clear_caches()
    found = levels_and_slopes(euler(REGULAR)([2, 3]), [full, partial])
    monkeypatch.undo()
    jax.clear_caches()
    assert np.isfinite(found[0]).all() and not np.isfinite(found[1]).all()
