"""Parameters given the noise, the other half of T8: what the accept ratio must hold, by quadrature.

    θ' given Z:  accept with 1 ∧ π(θ') W_θ'(Z) / (π(θ) W_θ(Z))        Z kept, W with its root term

Two values of θ, a chain of two steps, a guide of the wrong slope: W depends on one normal, which is
integrated on a grid. A right move leaves the posterior of (θ, Z) where it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

from lmppl.inference import bffg  # noqa: E402

THETA, PRIOR, R = np.array([0.3, 3.0]), np.array([0.5, 0.5]), 0.3
Y = np.array([[np.nan], [2.5]])
GRID = np.linspace(-8, 8, 801)
"""Values of the one normal that enters a weight, and their chances."""
NORMAL = np.exp(-0.5 * GRID**2) / np.exp(-0.5 * GRID**2).sum()

EVIDENCE = np.exp(-0.5 * Y[1, 0] ** 2 / (1 + THETA + R)) / np.sqrt(2 * np.pi * (1 + THETA + R))


@pytest.fixture(scope="module")
def levels() -> tuple[Any, Any]:
    """W [2, z], and the root term that stands in it [2]."""
    with jax.enable_x64(True):
        eye, zero = jnp.eye(1), jnp.zeros(1)

        def kernel(theta: Any, c: Any) -> Any:
            true = bffg.LinearGaussian(eye, zero, jnp.sqrt(theta) * eye)
            return bffg.Guessed(true, bffg.LinearGaussian(0.2 * eye, zero, jnp.sqrt(theta) * eye))

        model = bffg.chain(
            2, kernel, lambda p, c: bffg.LinearGaussian.prior(zero, eye),
            lambda p, c: bffg.GaussianLeaf(eye, R * eye),
        )  # fmt: skip
        first, second = model.kinds
        z = jnp.asarray(GRID)[:, None, None]
        noise = {first: z, second: jnp.zeros_like(z)}  # the last draw enters no weight

        def both(theta: Any) -> Any:
            root = bffg.backward(model, Y, theta).log_evidence
            return jax.vmap(lambda z: bffg.log_weight(model, Y, theta, z))(noise), root

        compiled = jax.jit(both)
        W, root = zip(*(compiled(jnp.asarray(t)) for t in THETA), strict=True)
        return np.exp(np.array(W)), np.exp(np.array(root))


def test_the_weight_integrates_to_the_evidence(levels: Any) -> None:
    W, root = levels
    assert (NORMAL * W).sum(axis=1) == pytest.approx(EVIDENCE, rel=1e-10)
    assert np.ptp(np.log(W[0])) > 1.0  # the guide is wrong, and W depends on the noise
    assert np.abs(root / EVIDENCE - 1).max() > 0.1


@pytest.mark.parametrize("move", ["right", "stale root", "Z redrawn", "Z redrawn for both"])
def test_theta_moves_with_the_noise_kept_and_the_root_term_anew(levels: Any, move: str) -> None:
    """T8: the right move leaves the joint law of (θ, Z) where it is; the others shift it."""
    W, root = levels
    joint = PRIOR[:, None] * NORMAL * W
    joint /= joint.sum()  # its θ has the posterior, since the mean of W is the evidence
    ratio = (PRIOR[::-1] / PRIOR)[:, None] * W[::-1] / W
    accepted = np.minimum(1.0, ratio)
    if move == "stale root":  # that of the value which is left
        accepted = np.minimum(1.0, ratio * (root / root[::-1])[:, None])
    elif move == "Z redrawn":  # W_θ'(Z') / W_θ(Z), and Z goes on
        other = (PRIOR[::-1] / PRIOR)[:, None, None] * W[::-1][:, None, :] / W[:, :, None]
        accepted = np.minimum(1.0, other) @ NORMAL
    elif move == "Z redrawn for both":  # W_θ'(Z') / W_θ(Z')
        accepted = np.broadcast_to((np.minimum(1.0, ratio) @ NORMAL)[:, None], W.shape)
    went = joint * accepted
    off = 0.5 * np.abs(went[::-1] - went).sum()
    assert off < 1e-12 if move == "right" else off > 0.02, off
