"""A branching diffusion: what drives two traits, seen at the fifty leaves of a tree alone.

Two traits evolve along a Yule tree by dX = tanh(B X) dt + σ dW with B = diag(θ) [-1 1; 1 -1]: each
is drawn towards the other. Given the state at a branching, the branches are independent. The guide
is the linear diffusion of drift 0.9 B X, whose messages multiply at the branchings; a chain moves θ
and the noise of the whole tree together, from a start far away. Weights are those of the Euler
scheme, exactly.

    a linear tree with three leaves has log p(y) = -4.0378344373     (dense Gaussian algebra)

Reference: van der Meulen and Schauer, Automatic backward filtering forward guiding (2020), the
section on branching diffusions; Yule (1925).
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

NEEDS = "jax"
SLOW = True
TRUTH, START = np.array([0.5, 1.2]), np.array([3.2, 1.0])
SIGMA = np.diag([0.2, 1.05])
PULL = np.array([[-1.0, 1.0], [1.0, -1.0]])


def yule(leaves: int, seed: int) -> tuple[list[int], Any]:
    """Parents, and the times at which nodes divide or are seen: each branch divides at rate 1."""
    rng = np.random.default_rng(seed)
    parents, time, alive, now = [-1], [0.0], [0], 0.0
    while len(alive) < leaves:
        split = alive.pop(rng.integers(len(alive)))
        time[split] = now
        for _ in range(2):
            alive.append(len(parents))
            parents.append(split)
            time.append(0.0)
        now += rng.exponential(1 / len(alive))
    return parents, np.where(np.isin(np.arange(len(parents)), alive), now, time)


def model(parents: list[int], time: Any, steps: int) -> Any:
    """The process on a tree, with `steps` Euler steps per edge; θ is its parameter."""
    import jax.numpy as jnp

    from lmppl.inference import bffg

    sigma = jnp.array(SIGMA)

    def drift(t: Any, x: Any, theta: Any) -> Any:
        return jnp.tanh(theta * (PULL @ x))

    def aux(t: Any, theta: Any) -> Any:
        return 0.9 * theta[:, None] * PULL, jnp.zeros(2), sigma

    edge = bffg.euler_steps(bffg.euler(drift, lambda t, x, p: sigma, 2, aux=aux), steps)
    leaves = sorted(set(range(len(parents))) - set(parents))
    return bffg.tree(
        parents,
        edge,
        lambda p, c: bffg.Point(jnp.zeros(2)),
        leaves,
        lambda p, c: bffg.GaussianLeaf(jnp.eye(2), 1e-6 * jnp.eye(2)),
        covariates={"length": time - time[parents]},  # the root has no edge, and needs none
    )


def explore(tree: Any, y: Any, iterations: int, rho: float = 0.99, step: float = 0.05) -> Any:
    """θ visited [iterations, 2], and the acceptance rate: pCN on the noise, a random walk on θ."""
    import jax
    import jax.numpy as jnp

    from lmppl.inference import bffg

    anchors = np.zeros((tree.n, 2))  # the guide is linear: any will do

    def level(theta: Any, z: Any) -> Any:
        value = bffg.log_weight(tree, y, theta, z, anchors=anchors)
        return jnp.where(jnp.all(theta > 0), value, -jnp.inf)  # a flat prior on θ > 0

    def move(carry: Any, key: Any) -> Any:
        theta, z, old = carry
        keys = jax.random.split(key, 3)
        fresh = bffg.draw_noise(tree, keys[0], theta)
        new_z = jax.tree.map(lambda a, b: rho * a + (1 - rho**2) ** 0.5 * b, z, fresh)
        new_theta = theta + step * jax.random.normal(keys[1], theta.shape)
        new = level(new_theta, new_z)
        accept = jnp.log(jax.random.uniform(keys[2])) < new - old
        carry = jax.tree.map(lambda a, b: jnp.where(accept, a, b), (new_theta, new_z, new), carry)
        return carry, (carry[0], accept)

    @jax.jit
    def walk(key: Any) -> Any:
        theta = jnp.array(START)
        z = bffg.draw_noise(tree, key, theta)
        keys = jax.random.split(jax.random.fold_in(key, 1), iterations)
        return jax.lax.scan(move, (theta, z, jnp.full((), -jnp.inf)), keys)[1]

    visited, accepted = walk(jax.random.key(1))
    return np.asarray(visited), float(accepted.mean())


def linear_tree() -> float:
    """The log evidence of a small tree whose drift is linear: the guide is exact."""
    import jax.numpy as jnp

    from lmppl.inference import bffg

    B, beta = np.array([[-1, 1], [0.4, -0.8]]), np.array([0.3, -0.2])
    sigma = np.array([[0.5, 0.1], [0, 0.4]])
    small = bffg.tree(
        [-1, 0, 1, 1, 0],
        lambda p, c: bffg.linear_sde(B, beta, sigma, c["length"]),
        lambda p, c: bffg.Point(jnp.array([0.2, 0.4])),
        [2, 3, 4],
        lambda p, c: bffg.GaussianLeaf(jnp.eye(2), 0.05 * jnp.eye(2)),
        covariates={"length": np.array([0, 0.6, 0.9, 0.5, 1.1])},
    )
    y = np.array([[0.5, -0.3], [-0.2, 0.4], [1.0, 0.0]])
    return float(bffg.backward(small, y, anchors=bffg.refine(0)).log_evidence)


def draw(parents: list[int], time: Any, x: Any, visited: Any, file: Path) -> None:
    """The tree, and the way of the chain to the truth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for s, u in enumerate(parents[1:], start=1):
        for i, colour in enumerate(("C0", "C1")):
            axes[0].plot(time[[u, s]], x[[u, s], i], colour, linewidth=0.8)
    axes[0].set(
        xlabel="time", ylabel="traits", title="at the branchings: trait 1 blue, trait 2 orange"
    )
    for i in range(2):
        axes[1].plot(visited[:, i], linewidth=0.8, label=f"θ{i + 1}")
        axes[1].axhline(TRUTH[i], color=f"C{i}", linestyle="--", linewidth=1)
    axes[1].set(xlabel="iteration", ylabel="θ", title="dashed: the truth")
    axes[1].legend()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main(leaves: int = 50, steps: int = 10, iterations: int = 2000, out: str | None = None) -> None:
    import jax

    from lmppl.inference import bffg

    with jax.enable_x64(True):
        parents, time = yule(leaves, seed=188)  # of few levels, which compile sooner
        tree = model(parents, time, steps)
        x = np.asarray(bffg.simulate(tree, TRUTH, bffg.draw_noise(tree, 3, TRUTH)))
        y = x[tree.observed]
        print(bffg.explain(tree, TRUTH))
        visited, rate = explore(tree, y, iterations)
        late = visited[iterations // 2 :]
        mean, sd = late.mean(0), late.std(0)
        print(
            f"θ from {START} to {mean.round(2)} ± {sd.round(2)}, truth {TRUTH}; accepted {rate:.2f}"
        )
        level = linear_tree()
    print(f"linear tree: log p(y) = {level:.7f}")
    if find_spec("matplotlib"):
        folder = Path(out or tempfile.mkdtemp(prefix="lmppl-"))
        folder.mkdir(parents=True, exist_ok=True)
        draw(parents, time, x, visited, folder / "branching_diffusion.png")
        print(f"picture: {folder / 'branching_diffusion.png'}")

    assert abs(level + 4.0378344373) < 1e-6
    assert (np.abs(mean - TRUTH) < 4 * sd).all() and mean[0] < 1.5


if __name__ == "__main__":
    main()
