"""Shapes that evolve along a tree: parameters of a stochastic flow, by Hamiltonian moves of its noise.

A closed curve of landmarks is carried along by a Kunita flow, dX = σ(X) dW: landmarks that are close
move together. Three lines split into three again; the nine shapes at the ends are measured. What is
the amplitude α of the flow, and over what distance λ do landmarks move together?

    σσ' = K(X),  K_ij = α k(|x_i - x_j| / λ),  k the reproducing kernel of a Sobolev space
    every Euler step is a node, guided by the flow at its anchor, where the guided path passes
    target: π(θ) N(Z; 0, I) W_θ(Z)     θ = (log α, log λ), Z the noise of the whole tree

The guide freezes σ at the anchors, so that log W has a standard deviation of some 30 (8 landmarks, 10
steps): too much for importance sampling, pCN or pseudo-marginal chains. But W is differentiable, and
leapfrog steps move θ and Z together. The published notebook (hyperiax, 07) has 16 landmarks and 100
steps on an edge; its chains end at R-hat 1.13 and 1.30, with effective sample sizes of 16 and 4. This
is a smaller problem, 8 landmarks and 5 steps, two minutes of one core; `main(16, 100)` has the size
of the notebook, takes far longer, and has not been run.

    at λ → 0 landmarks move alone, the guide is exact, and log p(y) is that of dense Gaussian algebra

Reference: van der Meulen and Sommer, Backward filtering forward guiding, JMLR 26 (2025), section 7;
Duane, Kennedy, Pendleton and Roweth, Hybrid Monte Carlo (1987).
"""

from __future__ import annotations

import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

NEEDS = ("jax", "arviz")
SLOW = True
TRUE = np.log([0.1, 0.25])
NOISE = 1e-3  # variance of a measurement
STARTS = np.log([[0.05, 0.15], [0.1, 0.25], [0.3, 0.5], [0.2, 0.2]])
PARENTS = [-1] + [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3  # of the 13 shapes


def flow_root(x: Any, theta: Any) -> Any:
    """σ(x): the Cholesky factor of K, the same for both coordinates of the landmarks."""
    import jax.numpy as jnp

    points = x.reshape(-1, 2)
    gap = (points[:, None] - points[None]) / jnp.exp(theta[1])
    r = jnp.sqrt((gap**2).sum(-1) + 1e-8)
    K = jnp.exp(theta[0] - r) * (1 + r + 3 / 7 * r**2 + 2 / 21 * r**3 + r**4 / 105)
    return jnp.kron(jnp.linalg.cholesky(K + 1e-6 * jnp.eye(len(points))), jnp.eye(2))


def model(landmarks: int, steps: int) -> tuple[Any, Any]:
    """A tree whose nodes are the Euler steps of 12 edges of unit length, and the nodes of the shapes."""
    import jax.numpy as jnp

    from lmppl.inference import bffg

    angle = 2 * np.pi * np.arange(landmarks) / landmarks
    circle = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], 1).ravel())
    parents, ends = [-1], [0]
    for shape in PARENTS[1:]:
        above = ends[shape]
        for _ in range(steps):
            parents.append(above)
            above = len(parents) - 1
        ends.append(above)
    eye = jnp.eye(2 * landmarks)
    edge = bffg.euler(lambda t, x, p: jnp.zeros_like(x), lambda t, x, p: flow_root(x, p), len(eye))
    dt = np.full(len(parents), 1 / steps)
    flow = bffg.tree(
        parents, edge, lambda p, c: bffg.Point(circle), ends[4:],
        lambda p, c: bffg.GaussianLeaf(eye, NOISE * eye), covariates={"t": 0 * dt, "dt": dt},
    )  # fmt: skip
    return flow, np.array(ends[4:])


def independent(y: Any) -> float:
    """log p(y) at λ → 0: coordinates are independent, covariances are shared times."""
    above = [{s, PARENTS[s]} for s in range(4, 13)]
    start = np.stack(
        [np.cos(a := 2 * np.pi * np.arange(y.shape[1] // 2) / (y.shape[1] // 2)), np.sin(a)], 1
    )
    S = np.exp(TRUE[0]) * np.array([[len(a & b) for b in above] for a in above]) + NOISE * np.eye(9)
    r = y - start.ravel()
    log_det = np.linalg.slogdet(2 * np.pi * S)[1]
    return float(-0.5 * (np.sum(r * np.linalg.solve(S, r)) + r.shape[1] * log_det))


def explore(flow: Any, y: Any, anchors: Any, sweeps: int, leaps: int) -> Any:
    """θ visited [chain, sweep, 2], paths of the last sweep, and the acceptance rate of each sweep."""
    import jax
    import jax.numpy as jnp

    from lmppl.inference import bffg

    shape, scale = jnp.array([2.0, 3.0]), jnp.array([0.5, 2.0])

    def log_density(q: Any) -> Any:
        """α ~ InvGamma(2, 0.5), λ ~ InvGamma(3, 2), standard normal noise, W; θ in fifths."""
        theta, z = q["theta"] / 5, q["z"]
        prior = -shape @ theta - scale @ jnp.exp(-theta) - 0.5 * jnp.sum(z["edge"] ** 2)
        bf = bffg.backward(flow, y, theta, anchors=anchors)
        x, log_w = bffg.guided_path(bf, z)
        return prior + log_w, x[flow.observed]

    slope = jax.value_and_grad(log_density, has_aux=True)

    def trajectory(q: Any, key: Any, size: Any) -> Any:
        """Half a kick, then drifts and kicks; the first round only finds the slope at q."""
        k = jax.random.split(key, 3)
        p = jax.tree.map(lambda v: jax.random.normal(k[0], v.shape), q)
        p["theta"] = jax.random.normal(k[1], (2,))
        dt = size * jax.random.uniform(k[2], minval=0.8, maxval=1.2)

        def energy(level: Any, p: Any) -> Any:
            return level - 0.5 * sum(jnp.sum(v**2) for v in jax.tree.leaves(p))

        def leap(carry: Any, i: Any) -> Any:
            q, p = carry
            q = jax.tree.map(lambda a, b: a + jnp.where(i > 0, dt, 0.0) * b, q, p)
            (level, x), g = slope(q)
            kick = jnp.where((i > 0) & (i < leaps), 1.0, 0.5) * dt
            kicked = jax.tree.map(lambda a, b: a + kick * b, p, g)
            return (q, kicked), (energy(level, p), energy(level, kicked), x)

        (new, _), (before, after, x) = jax.lax.scan(leap, (q, p), jnp.arange(leaps + 1))
        gain = jnp.nan_to_num(after[-1] - before[0], nan=-jnp.inf)
        accept = jnp.log(jax.random.uniform(jax.random.fold_in(key, 9))) < gain
        q = jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, q)
        return q, jnp.where(accept, x[-1], x[0]), jnp.minimum(1.0, jnp.exp(gain))

    def sweep(carry: Any, row: Any) -> Any:
        q, size = carry
        key, i = row
        q, x, rate = jax.vmap(trajectory, (0, 0, None))(q, jax.random.split(key, len(STARTS)), size)
        # the step size is fitted to an acceptance of 0.8 in the first quarter, and then kept
        change = jnp.where(i < sweeps // 4, 0.5 * (rate.mean() - 0.8) / jnp.sqrt(1 + 0.1 * i), 0.0)
        return (q, size * jnp.exp(change)), (q["theta"] / 5, rate.mean(), x)

    @jax.jit
    def run(q: Any, keys: Any) -> Any:
        _, out = jax.lax.scan(sweep, (q, jnp.asarray(0.08)), (keys, jnp.arange(sweeps)))
        return out

    q = {"theta": jnp.asarray(5 * STARTS), "z": bffg.draw_noise(flow, 2, TRUE, len(STARTS))}
    theta, rate, x = run(q, jax.random.split(jax.random.key(3), sweeps))
    return np.swapaxes(np.asarray(theta), 0, 1), np.asarray(x[-1]), np.asarray(rate)


def draw(shapes: Any, data: Any, chains: Any, file: Path) -> None:
    """The measured shapes with posterior ones, and the chains."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for i, (y, *drawn) in enumerate(zip(data, *shapes, strict=True)):
        place = np.array([3.0 * (i % 3), -3.0 * (i // 3)])
        for points, style in ((y, "k."), *((x, "C0-") for x in drawn)):
            loop = points.reshape(-1, 2)
            axes[0].plot(*(np.vstack([loop, loop[:1]]) + place).T, style, linewidth=0.8)
    axes[0].set(aspect="equal", title="dots: measured shapes; lines: posterior draws")
    axes[0].axis("off")
    for chain in chains:
        axes[1].plot(*np.exp(chain).T, ".", markersize=2)
    axes[1].plot(*np.exp(TRUE), "k*", markersize=12)
    axes[1].set(xlabel="amplitude α", ylabel="length λ", title="four chains; star: the truth")
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main(
    landmarks: int = 8, steps: int = 5, sweeps: int = 320, leaps: int = 7, out: str | None = None
) -> None:
    import jax.numpy as jnp

    from lmppl.inference import bffg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0.23 announces its successor on import
        import arviz
    az: Any = arviz  # its functions have no types

    flow, tips = model(landmarks, steps)
    path = bffg.simulate(flow, jnp.asarray(TRUE), bffg.draw_noise(flow, 1, TRUE))
    error = np.random.default_rng(0).normal(size=(9, 2 * landmarks))
    y = np.asarray(path)[tips] + np.sqrt(NOISE) * error
    print(f"{flow.n} nodes in {len(flow.runs)} runs; {2 * landmarks} numbers for each shape")

    alone = bffg.backward(flow, y, jnp.array([TRUE[0], np.log(1e-3)]))
    found, dense = float(alone.log_evidence), independent(y)
    print(f"landmarks that move alone: log p(y) = {found:.2f}, by dense algebra {dense:.2f}")

    anchors = bffg.backward(flow, y, jnp.asarray(STARTS.mean(0))).anchors
    theta, shapes, rate = explore(flow, y, anchors, sweeps, leaps)
    kept = theta[:, sweeps // 4 :]
    print(f"{len(STARTS)} chains of {sweeps} sweeps; acceptance {rate[sweeps // 4 :].mean():.2f}")
    hats = []
    for i, name in enumerate(("alpha", "lambda")):
        hats.append(float(az.rhat(kept[..., i])))
        q = np.exp(np.quantile(kept[..., i], [0.05, 0.5, 0.95]))
        print(f"{name:6} {q[1]:.3f} ({q[0]:.3f} to {q[2]:.3f}), truth {np.exp(TRUE[i]):.2f}; "
              f"R-hat {hats[-1]:.3f}, ESS {float(az.ess(kept[..., i])):.0f}")  # fmt: skip
    if find_spec("matplotlib"):
        folder = Path(out or tempfile.mkdtemp(prefix="lmppl-"))
        folder.mkdir(parents=True, exist_ok=True)
        draw(shapes, y, kept, folder / "shape_tree.png")
        print(f"picture: {folder / 'shape_tree.png'}")

    assert abs(found - dense) < 0.05 * abs(dense) ** 0.5
    assert max(hats) < 1.05
    mean, sd = kept.mean((0, 1)), kept.std((0, 1))
    assert (np.abs(mean - TRUE) < 4 * sd).all()


if __name__ == "__main__":
    main()
