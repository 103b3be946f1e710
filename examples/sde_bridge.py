"""Diffusion bridges with singular noise: a spike that is rare, and a chain of three integrals.

FitzHugh-Nagumo, a model of a neuron whose voltage has no noise of its own, is pinned at voltage 1.1
after five units of time: the neuron has to fire at the right moment. NCLAR(3) has noise in the third
coordinate only, and all three are pinned, far from where they would go. Both bridges are sampled by
pCN on the driving noise, guided by a linear diffusion; the weight of the Euler chain is exact at
every step size.

    FitzHugh-Nagumo  dx = (x - x³ - y + s)/ε dt        dy = (γx - y + β) dt + σ dW
    NCLAR(3)         dx = y dt    dy = z dt            dz = -α sin(ωz) dt + σ dW

The acceptance rates that the authors report are 39 % and 64 %.

Reference: Bierkens, van der Meulen and Schauer, Simulation of elliptic and hypo-elliptic conditional
diffusions (2020); van der Meulen and Schauer, Automatic backward filtering forward guiding (2020).
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

NEEDS = "jax"
SLOW = True
EPS, S, GAMMA, BETA, SIGMA = 0.1, 0.0, 1.5, 0.8, 0.3
VOLTAGE = 1.1
ALPHA, OMEGA = 6.0, 2 * np.pi
PIN = np.array([1 / 32, 1 / 4, 1.0])


def bridge(kernel: Any, start: Any, seen: Any, T: float, steps: int, variance: float) -> Any:
    """A chain of Euler steps that shrink towards the end, where A x is observed."""
    import jax.numpy as jnp

    from lmppl.inference import bffg

    t, dt = bffg.time_grid(T, steps)
    A = jnp.array(seen)
    return bffg.chain(
        steps + 1,
        kernel,
        lambda p, c: bffg.Point(jnp.array(start)),
        lambda p, c: bffg.GaussianLeaf(A, variance * jnp.eye(len(seen))),
        observed=[steps],
        covariates={"t": np.r_[0, t], "dt": np.r_[0, dt]},
    )


def fitzhugh_nagumo() -> Any:
    """Guided by its linearisation at the voltage of the end."""
    import jax.numpy as jnp

    from lmppl.inference import bffg

    noise = jnp.array([[0.0], [SIGMA]])

    def drift(t: Any, x: Any, p: Any) -> Any:
        return jnp.stack([(x[0] - x[0] ** 3 - x[1] + S) / EPS, GAMMA * x[0] - x[1] + BETA])

    def aux(t: Any, p: Any) -> Any:
        v = VOLTAGE
        B = jnp.array([[(1 - 3 * v**2) / EPS, -1 / EPS], [GAMMA, -1.0]])
        return B, jnp.array([(2 * v**3 + S) / EPS, BETA]), noise

    kernel = bffg.euler(drift, lambda t, x, p: noise, 1, aux=aux)
    return bridge(kernel, [-0.5, -0.6], [[1.0, 0.0]], 5.0, 2500, 1e-9)


def nclar(T: float = 0.15) -> Any:
    """Guided by a Brownian motion, integrated twice."""
    import jax.numpy as jnp

    from lmppl.inference import bffg

    noise = jnp.array([[0.0], [0.0], [1.0]])
    shift = jnp.eye(3, k=1)

    def drift(t: Any, x: Any, p: Any) -> Any:
        return jnp.stack([x[1], x[2], -ALPHA * jnp.sin(OMEGA * x[2])])

    kernel = bffg.euler(
        drift, lambda t, x, p: noise, 1, aux=lambda t, p: (shift, jnp.zeros(3), noise)
    )
    return bridge(kernel, [0.0, 0.0, 0.0], np.eye(3), T, 250, 1e-10)


def draw(paths: Any, file: Path) -> None:
    """Bridges of both, at twenty sweeps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    panels = [("FitzHugh-Nagumo", 0, "voltage", VOLTAGE)]
    panels += [("NCLAR(3)", i, label, PIN[i]) for i, label in ((0, "x"), (2, "z"))]
    for axis, (name, i, label, pin) in zip(axes, panels, strict=True):
        t, values = paths[name]
        axis.plot(t, values[:, :, i].T, color="C0", alpha=0.5, linewidth=0.7)
        axis.plot(t[-1], pin, "ko", markersize=4)
        axis.set(xlabel="time", ylabel=label, title=name)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main(sweeps: int = 1000, out: str | None = None) -> None:
    import jax

    from lmppl.inference import bffg

    rates: dict[str, float] = {}
    paths: dict[str, Any] = {}
    with jax.enable_x64(True):
        for name, model, seen, rho, published in (
            ("FitzHugh-Nagumo", fitzhugh_nagumo(), [VOLTAGE], 0.95, 0.39),
            ("NCLAR(3)", nclar(), PIN, 0.85, 0.64),
        ):
            chain = bffg.pcn(bffg.backward(model, np.array([seen])), 0, sweeps, bffg.PCN(rho))
            values = np.asarray(chain.values)[:: max(1, sweeps // 20)]
            rates[name] = chain.acceptance
            paths[name] = np.cumsum(model.covariates["dt"]), values
            error = np.abs(values[:, -1, : len(seen)] - seen).max()
            print(f"{name}: {model.n - 1} steps, pinned to {error:.1e}, acceptance "
                  f"{chain.acceptance:.2f} at rho {rho} (published {published})")  # fmt: skip
            assert error < 1e-3
    if find_spec("matplotlib"):
        folder = Path(out or tempfile.mkdtemp(prefix="lmppl-"))
        folder.mkdir(parents=True, exist_ok=True)
        draw(paths, folder / "sde_bridge.png")
        print(f"picture: {folder / 'sde_bridge.png'}")

    assert abs(rates["FitzHugh-Nagumo"] - 0.39) < 0.06
    assert abs(rates["NCLAR(3)"] - 0.64) < 0.05


if __name__ == "__main__":
    main()
