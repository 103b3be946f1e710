"""A Gaussian tree: evidence and posterior by backward filtering, forward guiding.

Traits evolve along a binary tree of 31 nodes; 16 leaves are measured. The increments have variance
σ², the measurements τ². The backward filter gives the evidence at once; with a guide that is wrong
on purpose the weights put it right, and pCN moves the noise of the whole tree.

    log p(y) at σ² = 0.5, τ² = 0.1 is -24.4213                (dense Gaussian algebra)

Reference: van der Meulen and Sommer, Backward filtering forward guiding, JMLR 26 (2025); the data
are made by the recipe of the notebooks of hyperiax.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

NEEDS = "jax"


def data() -> Any:
    """The leaves' measurements, by a fixed key."""
    import jax

    kp, ko = jax.random.split(jax.random.PRNGKey(202605))
    z = np.asarray(jax.random.normal(kp, (31, 1)))
    x = np.zeros((31, 1), np.float32)
    for i in range(1, 31):
        x[i] = x[(i - 1) // 2] + np.float32(0.5**0.5) * z[i]
    noise = np.asarray(jax.random.normal(ko, (16, 1)))
    return x[15:] + np.float32(0.1**0.5) * noise


def model(guess: float | None = None) -> Any:
    """The tree; `guess` is the variance of a wrong surrogate."""
    import jax.numpy as jnp

    from lmppl.inference import bffg

    def edge(variance: Any) -> Any:
        return bffg.LinearGaussian(jnp.eye(1), jnp.zeros(1), jnp.sqrt(variance) * jnp.eye(1))

    def kernel(p: Any, c: Any) -> Any:
        true = edge(p["sigma2"])
        return true if guess is None else bffg.Guessed(true, edge(jnp.asarray(guess)))

    def leaf(p: Any, c: Any) -> Any:
        return bffg.GaussianLeaf(jnp.eye(1), p["tau2"] * jnp.eye(1))

    def root(p: Any, c: Any) -> Any:
        return bffg.Point(jnp.zeros(1))

    parents = [-1] + [(i - 1) // 2 for i in range(1, 31)]
    return bffg.tree(parents, kernel, root, list(range(15, 31)), leaf)


def dense(y: Any, sigma2: float, tau2: float) -> float:
    """log p(y) by the joint law of the leaves: shared paths are shared variance."""

    def above(i: int) -> set[int]:
        return {i} | (above((i - 1) // 2) if i > 2 else set())

    paths = [above(i) for i in range(15, 31)]
    S = sigma2 * np.array([[len(a & b) for b in paths] for a in paths]) + tau2 * np.eye(16)
    r = y[:, 0].astype(np.float64)
    return float(-0.5 * (r @ np.linalg.solve(S, r) + np.linalg.slogdet(2 * np.pi * S)[1]))


def draw(grid: Any, levels: Any, file: Path) -> None:
    """The profile of the evidence over σ²."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axes.plot(grid, levels)
    axes.axvline(0.5, linewidth=1, linestyle="--")
    axes.set(xlabel="variance of an increment", ylabel="log evidence", xscale="log")
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main(paths: int = 4000, sweeps: int = 4000, out: str | None = None) -> None:
    import jax
    import jax.numpy as jnp

    from lmppl.inference import bffg

    y = data()
    theta = {"sigma2": jnp.asarray(0.5), "tau2": jnp.asarray(0.1)}
    exact = model()
    print(bffg.explain(exact, theta))
    bf = bffg.backward(exact, y, theta)
    level = float(bf.log_evidence)
    print(f"log p(y) = {level:.4f}; by dense algebra {dense(y, 0.5, 0.1):.4f}")
    assert abs(level - dense(y, 0.5, 0.1)) < 1e-3
    assert abs(level + 24.4213) < 1e-3

    # a guide that is wrong on purpose: the weights put it right
    wrong = bffg.backward(model(guess=0.3), y, theta)
    guided = bffg.forward(wrong, 0, n=paths)
    print(f"wrong guide: log evidence of the guide {float(wrong.log_evidence):.3f}, with weights "
          f"{guided.log_evidence:.3f}, ESS {guided.ess:.0f} of {paths}, k {guided.pareto_k:.2f}")  # fmt: skip
    plain = bffg.unguided(exact, y, theta, 1, n=paths)
    print(
        f"no guide: {plain.log_evidence:.3f}, ESS {plain.ess:.1f} of {paths}; {plain.warnings[0]}"
    )
    assert abs(guided.log_evidence - level) < 0.1 and guided.ess > 20 * plain.ess

    chain = bffg.pcn(wrong, 2, sweeps, bffg.PCN(rho=0.7, blocks=4))
    found = np.asarray(chain.values)[:, 1, 0].mean()
    truth = float(bf.anchors[1, 0])  # the guided path without noise is the posterior mean
    print(
        f"pCN: node 1 has mean {found:.3f} (exact {truth:.3f}), acceptance {chain.acceptance:.2f}"
    )
    assert abs(found - truth) < 0.15

    grid = np.geomspace(0.1, 3.0, 40)
    profile: Any = jax.vmap(
        lambda s: bffg.backward(exact, y, {"sigma2": s, "tau2": theta["tau2"]}).log_evidence
    )
    levels = np.asarray(profile(jnp.asarray(grid)))
    slope = jax.grad(
        lambda s: bffg.backward(exact, y, {"sigma2": s, "tau2": theta["tau2"]}).log_evidence
    )(jnp.asarray(grid[levels.argmax()]))
    print(f"best variance {grid[levels.argmax()]:.2f}, where the gradient is {float(slope):.2f}")
    if find_spec("matplotlib"):
        folder = Path(out or tempfile.mkdtemp(prefix="lmppl-"))
        folder.mkdir(parents=True, exist_ok=True)
        draw(grid, levels, folder / "bffg_tree.png")
        print(f"picture: {folder / 'bffg_tree.png'}")


if __name__ == "__main__":
    main()
