"""An epidemic on a network, seen in part: who was infected when?

Six people on a ring meet two neighbours on each side. Each is susceptible, infected or recovered,
and has an unreliable test now and then; half of the tests are missing. The chain of the population
has 3⁶ = 729 states. BFFG filters six tables of three numbers backwards instead: the surrogate
freezes how many infected neighbours each person has, at a profile. Weights put it right.

    log p(tests) = -6.4933        (forward over the 729 states)

Reference: van der Meulen and Sommer, Backward filtering forward guiding, JMLR 26 (2025), the
section on interacting particles.
"""

from __future__ import annotations

import itertools
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

NEEDS = "jax"
N, STEPS, EVERY = 6, 12, 4
TEST = np.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])
"""P(negative), P(positive) of each state."""
GAP = np.abs(np.arange(N)[:, None] - np.arange(N))
NEAR = (np.minimum(GAP, N - GAP) <= 2) & (GAP > 0)
RATES = {"neighbours": NEAR.astype(float), "infect": 0.8, "recover": 0.6, "wane": 0.1, "tau": 0.3}
START = np.eye(N, dtype=int)[0]
"""One is infected."""


def model() -> Any:
    """The epidemic. The profile is a parameter, so that one compilation serves all profiles."""
    import jax.numpy as jnp

    from lmppl.inference import bffg

    def kernel(profile: Any, c: Any) -> Any:
        true = bffg.Interacting(RATES, N, bffg.sir_law)
        return bffg.Guessed(true, bffg.sir_profile(profile[c["step"]], RATES))

    return bffg.chain(
        STEPS + 1,
        kernel,
        lambda profile, c: bffg.Point(jnp.array(START)),
        lambda profile, c: bffg.ParticleLeaf(jnp.array(TEST)),
        observed=range(EVERY, STEPS + 1, EVERY),
        covariates={"step": np.arange(STEPS + 1)},
    )


def joint() -> tuple[Any, Any]:
    """The states of the population [729, 6], and its matrix [729, 729]."""
    import jax
    import jax.numpy as jnp

    from lmppl.inference import bffg

    states = np.array(list(itertools.product(range(3), repeat=N)))
    laws = np.asarray(jax.jit(jax.vmap(lambda x: bffg.sir_law(x, RATES)))(jnp.array(states)), float)
    K = np.ones((len(states), len(states)))
    for i in range(N):
        K *= laws[:, i, states[:, i]]
    return states, K / K.sum(1, keepdims=True)


def epidemic(states: Any, K: Any, seed: int) -> tuple[Any, Any]:
    """A path [steps + 1, 6], and the tests, of every second person at a time."""
    rng = np.random.default_rng(seed)
    at = [int(np.flatnonzero((states == START).all(1))[0])]
    for _ in range(STEPS):
        at.append(rng.choice(len(K), p=K[at[-1]]))
    x = states[at]
    y = (rng.random((STEPS // EVERY, N)) < TEST[x[EVERY::EVERY], 1]).astype(float)
    for k in range(len(y)):
        y[k, k % 2 :: 2] = np.nan
    return x, y


def by_all_states(states: Any, K: Any, y: Any) -> tuple[float, Any]:
    """log p(y), and P(infected at the last step | y), forward over the 729 states."""
    f = (states == START).all(1).astype(float)
    for t in range(1, STEPS + 1):
        f = f @ K
        if t % EVERY == 0:
            for i in np.flatnonzero(np.isfinite(y[t // EVERY - 1])):
                f = f * TEST[states[:, i], int(y[t // EVERY - 1, i])]
    return float(np.log(f.sum())), f @ (states == 1) / f.sum()


def infected(out: Any) -> Any:
    """P(infected | y) by the weighted paths [steps + 1, 6]."""
    w = np.exp(out.log_weights - out.log_weights.max())
    return np.einsum("p,pti->ti", w / w.sum(), np.asarray(out.values) == 1)


def draw(mean: Any, truth: Any, file: Path) -> None:
    """The probability that each was infected, and when they were."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.imshow(mean.T, cmap="Reds", vmin=0, vmax=1, aspect="auto")
    axes.plot(*np.nonzero(truth == 1), "k.", markersize=4)
    axes.set(xlabel="step", ylabel="person", title="P(infected | tests); dots: the truth")
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main(paths: int = 4000, out: str | None = None) -> None:
    from lmppl.inference import bffg

    states, K = joint()
    truth, y = epidemic(states, K, seed=3)
    exact, last = by_all_states(states, K, y)
    epidemics, profile = model(), np.ones((STEPS + 1, N))
    for k in range(2):  # pilot runs move the profile; the last run has it frozen
        guided = bffg.forward(bffg.backward(epidemics, y, profile), k, n=paths)
        print(
            f"profile {k}: ESS {guided.ess:.0f} of {paths}, log p(tests) {guided.log_evidence:.4f}"
        )
        mean = infected(guided)
        profile = np.concatenate([profile[:1], mean[:-1] @ NEAR])
    plain = bffg.unguided(epidemics, y, profile, 0, n=paths)
    print(f"unguided:  ESS {plain.ess:.0f} of {paths}, log p(tests) {plain.log_evidence:.4f}")
    print(f"by all 729 states: {exact:.4f}")
    print("P(infected at the end), guided:", mean[-1].round(2), "exact:", last.round(2))
    if find_spec("matplotlib"):
        folder = Path(out or tempfile.mkdtemp(prefix="lmppl-"))
        folder.mkdir(parents=True, exist_ok=True)
        draw(mean, truth, folder / "sir_network.png")
        print(f"picture: {folder / 'sir_network.png'}")

    w = np.exp(np.asarray(guided.log_weights, float) - exact)
    assert abs(exact + 6.4933) < 1e-3
    assert abs(w.mean() - 1) < 4.9 * w.std() / len(w) ** 0.5  # false alarms: 1e-6
    assert np.abs(mean[-1] - last).max() < 0.08
    assert guided.ess > 2 * plain.ess


if __name__ == "__main__":
    main()
