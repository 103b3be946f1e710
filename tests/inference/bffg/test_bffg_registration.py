"""A17: families that a user registers again, with other types, give the numbers of the built-in ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

from lmppl.inference import bffg  # noqa: E402
from lmppl.inference.bffg.families.gamma_process import gamma_quantile  # noqa: E402

Y = np.array([0.3, -0.1, np.nan, 1.2, 0.8])[:, None]
COUNTS = np.array([3.0, np.nan, 1.0])


pytestmark = pytest.mark.usefixtures("float64")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Walk(bffg.Kernel):
    """x + s ε, whose surrogate has 1.2 s."""

    s: Any
    noise = (1,)

    def forward(self, parent: Any, noise: Any) -> Any:
        return parent + self.s * noise

    def log_prob(self, parent: Any, child: Any) -> Any:
        u = (child - parent)[0] / self.s
        return -0.5 * u**2 - jnp.log(self.s) - 0.5 * jnp.log(2 * jnp.pi)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClosedWalk(Walk):
    """The same, with a closed form."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rate(bffg.Kernel):
    """Gamma(A, rate 0.9), whose surrogate has 1.2 A."""

    A: Any
    noise = ()

    def forward(self, parent: Any, noise: Any) -> Any:
        return gamma_quantile(self.A, noise) / 0.9

    def log_prob(self, parent: Any, child: Any) -> Any:
        gammaln = jax.scipy.special.gammaln
        return self.A * jnp.log(0.9) - gammaln(self.A) + (self.A - 1) * jnp.log(child) - 0.9 * child


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClosedRate(Rate):
    """The same, with a closed form."""


def linear(s: Any) -> bffg.LinearGaussian:
    return bffg.LinearGaussian(jnp.eye(1), jnp.zeros(1), s * jnp.eye(1))


@bffg.surrogate(Walk)
def _walk(kernel: Walk, anchor: Any) -> Any:
    return linear(1.2 * kernel.s)


@bffg.guided(ClosedWalk, bffg.Gaussian)
def _closed_walk(kernel: ClosedWalk, g: Any, parent: Any, noise: Any) -> Any:
    """In one dimension: mean and variance of the product of two Gaussian functions."""
    u, h = parent - g.anchor, g.H[0, 0]
    m = 1 + kernel.s**2 * h
    r = g.F - h * u
    child = parent + kernel.s**2 * r / m + kernel.s * noise / jnp.sqrt(m)
    value = g.c + (g.F * u - 0.5 * h * u**2 + 0.5 * kernel.s**2 * r**2 / m)[0]
    return child, value - 0.5 * jnp.log(m)


@bffg.surrogate(Rate)
def _rate(kernel: Rate, anchor: Any) -> Any:
    return bffg.GammaRate(1.2 * kernel.A, jnp.asarray(0.9))


@bffg.guided(ClosedRate, bffg.Gamma)
def _closed_rate(kernel: ClosedRate, g: Any, parent: Any, noise: Any) -> Any:
    gammaln = jax.scipy.special.gammaln
    shape, rate = kernel.A + g.F, 0.9 + g.H
    level = kernel.A * jnp.log(0.9) - gammaln(kernel.A) + gammaln(shape) - shape * jnp.log(rate)
    return gamma_quantile(shape, noise) / rate, g.c + level


def walks(kernel: Any) -> Any:
    return bffg.chain(
        5, kernel, lambda p, c: bffg.LinearGaussian.prior(jnp.zeros(1), jnp.eye(1)),
        lambda p, c: bffg.GaussianLeaf(jnp.eye(1), 0.1 * jnp.eye(1)),
    )  # fmt: skip


def rates(kernel: Any) -> Any:
    return bffg.tree(
        [-1, 0, 0], kernel, lambda p, c: bffg.GammaRate(jnp.asarray(2.2), jnp.asarray(0.9)),
        [0, 1, 2], lambda p, c: bffg.PoissonLeaf(jnp.asarray(1.7)),
    )  # fmt: skip


BUILT_IN = {
    "walk": lambda p, c: bffg.Guessed(linear(0.7), linear(1.2 * 0.7)),
    "rate": lambda p, c: bffg.Guessed(
        bffg.GammaRate(jnp.asarray(2.0), jnp.asarray(0.9)),
        bffg.GammaRate(jnp.asarray(2.4), jnp.asarray(0.9)),
    ),
}
AGAIN = {
    "walk": lambda p, c: ClosedWalk(jnp.asarray(0.7)),
    "rate": lambda p, c: ClosedRate(jnp.asarray(2.0)),
}
LOWER = {"walk": lambda p, c: Walk(jnp.asarray(0.7)), "rate": lambda p, c: Rate(jnp.asarray(2.0))}
MODELS = {"walk": (walks, Y), "rate": (rates, COUNTS)}


@pytest.mark.parametrize("family", ["walk", "rate"])
def test_a_registered_closed_form_gives_the_same_numbers(family: str) -> None:
    build, data = MODELS[family]
    found = []
    for kernel in (BUILT_IN[family], AGAIN[family]):
        model = build(kernel)
        assert "rung 1" in bffg.explain(model).splitlines()[1]
        found.append(bffg.forward(bffg.backward(model, data), 0, n=20))
    if family == "walk":  # the surrogate is wrong; a rate does not depend on its parent
        assert np.ptp(found[0].log_weights) > 1e-3
    assert np.allclose(found[0].values, found[1].values, atol=1e-10)
    assert np.allclose(found[0].log_weights, found[1].log_weights, atol=1e-10)


@pytest.mark.parametrize("family", ["walk", "rate"])
def test_with_a_density_alone_the_evidence_is_the_same(family: str) -> None:
    """Rung 4, z-test at 1e-6; the truth is that of the exact guide."""
    build, data = MODELS[family]
    exact = {
        "walk": lambda p, c: linear(0.7),
        "rate": lambda p, c: bffg.GammaRate(jnp.asarray(2.0), jnp.asarray(0.9)),
    }
    truth = float(bffg.backward(build(exact[family]), data).log_evidence)
    model = build(LOWER[family])
    assert "rung 4" in bffg.explain(model).splitlines()[1]
    w = np.exp(bffg.forward(bffg.backward(model, data), 0, n=4000).log_weights - truth)
    assert abs(w.mean() - 1) < 4.9 * w.std() / np.sqrt(len(w))
