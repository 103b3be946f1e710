"""Diffusions: an auxiliary of the user's, and the biased continuous rule (T4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

from lmppl.errors import BadArgument  # noqa: E402
from lmppl.inference import bffg  # noqa: E402

pytestmark = pytest.mark.usefixtures("float64")


# -- the bridge of T4 ----------------------------------------------------------------------------

TRUTH = 0.3212516
"""Density of the observation under the diffusion, by Crank and Nicolson."""
END = 1.2
SLOPE = -0.8 + 3 * np.cos(3 * END)
SHIFT = -0.8 * END + np.sin(3 * END) - SLOPE * END


def at_the_end(t: Any, p: Any) -> Any:
    """The diffusion linearised at the observation."""
    return (
        jnp.full((1, 1), SLOPE),
        jnp.full(1, SHIFT),
        jnp.full((1, 1), 0.7 + 0.2 * np.sin(END)),
    )


BENT = bffg.euler(
    lambda t, x, p: -0.8 * x + jnp.sin(3 * x), lambda t, x, p: (0.7 + 0.2 * jnp.sin(x))[:, None], 1,
    aux=at_the_end,
)  # fmt: skip


def bridge(steps: int, weight: str, change: bool = False, n: int = 40_000) -> Any:
    model = bffg.tree(
        [-1, 0], bffg.euler_steps(BENT, steps, change, weight),
        lambda p, c: bffg.Point(jnp.array([0.3])), [1],
        lambda p, c: bffg.GaussianLeaf(jnp.eye(1), 0.0025 * jnp.eye(1)),
        covariates={"length": np.ones(2)},
    )  # fmt: skip
    return bffg.forward(bffg.backward(model, np.array([[END]])), steps, n=n)


def relative(out: Any, truth: float) -> tuple[float, float]:
    """E[W] / truth - 1, and its standard error."""
    w = np.exp(out.log_weights) / truth
    return float(w.mean() - 1), float(w.std() / np.sqrt(len(w)))


@pytest.mark.slow
def test_the_discrete_rule_is_exact_and_the_continuous_one_is_biased() -> None:
    """T4: likelihood 0.32843 of the chain of 25 steps; -4.3 % ± 0.5, shrinking with the step."""
    for change in (False, True):
        error, se = relative(bridge(25, "discrete", change), 0.32843)
        assert change or abs(error) < 4 * se
        assert abs((1 + error) * 0.32843 / TRUTH - 1) < 0.035
    out = bridge(25, "discrete")
    assert 0.7 < out.ess / 40_000 < 0.78
    biases = [relative(bridge(k, "continuous", n=300_000), TRUTH)[0] for k in (25, 50, 100)]
    assert abs(biases[0] + 0.043) < 0.005
    assert biases[0] / biases[1] > 1.4 and biases[1] / biases[2] > 1.4
    # the continuous rule would not pass the test that the discrete one passes
    error, se = relative(bridge(25, "continuous"), 0.32843)
    assert abs(error) > 4 * se
    with_change = relative(bridge(25, "continuous", True, n=300_000), TRUTH)[0]
    assert abs(with_change + 0.035) < 0.006


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


def test_the_biased_rule_says_so() -> None:
    assert "BiasedSteps" in bffg.explain(growing("continuous"))
    with pytest.raises(BadArgument, match='"discrete" or "continuous"'):
        bffg.euler_steps(BENT, 5, weight="ito")


def test_an_auxiliary_diffusion_that_is_the_true_one_has_constant_weights() -> None:
    """On a chain of Euler steps, where the drift depends on time and on parameters."""

    def aux(t: Any, p: Any) -> Any:
        return -p * jnp.eye(2), jnp.stack([t, 1 - t]), jnp.array([[0.3], [0.5]])

    def drift(t: Any, x: Any, p: Any) -> Any:
        B, beta, _ = aux(t, p)
        return B @ x + beta

    t, dt = bffg.time_grid(1.0, 8)
    model = bffg.chain(
        9, bffg.euler(drift, lambda t, x, p: aux(t, p)[2], 1, aux=aux),
        lambda p, c: bffg.Point(jnp.array([0.2, -0.1])),
        lambda p, c: bffg.GaussianLeaf(jnp.array([[1.0, 0.0]]), 0.01 * jnp.eye(1)), observed=[8],
        covariates={"t": np.r_[0, t], "dt": np.r_[0, dt]},
    )  # fmt: skip
    bf = bffg.backward(model, np.array([[0.7]]), 1.3, anchors=bffg.refine(0))
    out = bffg.forward(bf, 0, n=50)
    assert np.ptp(out.log_weights) < 1e-10
    assert out.log_evidence == pytest.approx(float(bf.log_evidence), abs=1e-10)
