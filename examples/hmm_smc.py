"""A hidden Markov model: the particle filter against the forward algorithm.

The state is 0 or 1, each observation is a noisy copy of it. The program is long, so it is written
as a `markov` chain: a fork replays the present step and no other, and the cost per fork does not
grow with the length of the chain.

    log Z = log p(y_1 … y_K), exactly by the forward recursion
    α_t(j) = Σ_i α_{t-1}(i) A_ij E_j(y_t)

Reference: Gordon, Salmond and Smith, Novel approach to nonlinear/non-Gaussian Bayesian state
estimation (1993); Chopin and Papaspiliopoulos, An introduction to sequential Monte Carlo (2020).
"""

from __future__ import annotations

import math
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from lmppl import Categorical, markov, observe, program, sample
from lmppl.inference import SMC, Posterior, infer

START = [0.5, 0.5]
STEP = [[0.8, 0.2], [0.3, 0.7]]
NOISE = [[0.9, 0.1], [0.2, 0.8]]


START_LAW, *LAWS = [Categorical(dict(enumerate(row))) for row in (START, *STEP, *NOISE)]
STEP_LAWS, NOISE_LAWS = LAWS[:2], LAWS[2:]


@program
def chain(ys: list[int]) -> int:
    """The last state, given all observations."""

    def step(state: int | None, y: int) -> int:
        new: int = sample("state", START_LAW if state is None else STEP_LAWS[state])
        observe("y", NOISE_LAWS[new], y)
        return new

    last: int = markov(step, None, ys)
    return last


def forward(ys: list[int]) -> tuple[float, list[float]]:
    """log Z and p(last state | ys) by the forward algorithm."""
    log_z, alpha = 0.0, np.array(START)
    for t, y in enumerate(ys):
        alpha = (alpha if t == 0 else alpha @ np.array(STEP)) * np.array(NOISE)[:, y]
        log_z += math.log(alpha.sum())
        alpha /= alpha.sum()
    return log_z, alpha.tolist()


def draw(posterior: Posterior, file: Path) -> None:
    """ESS and unique ancestors over the barriers of the filter."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    history = posterior.history
    if history is None:
        return
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    axes.plot(history.ess, label="effective sample size", linewidth=1)
    axes.plot(history.eves, label="distinct ancestors in the first population", linewidth=2)
    axes.set(xlabel="barrier", ylabel="particles", ylim=(0, history.particles * 1.05))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main(
    lengths: tuple[int, ...] = (20, 100), particles: int = 400, out: str | None = None
) -> None:
    known = {20: -11.620, 100: -70.64, 500: -368.8}
    print(
        f"{'K':>4} {'exact log Z':>12} {'SMC log Z':>10} {'se':>6} {'P(state = 1)':>13} {'SMC':>7}"
    )
    for k in lengths:
        ys = [int(y) for y in np.random.default_rng(0).integers(0, 2, k)]
        exact, last = forward(ys)
        posterior = infer(chain, ys, engine=SMC(particles, resample_at="factor"), seed=1)
        guess, error = posterior.log_evidence, posterior.log_evidence_se
        p = posterior.marginal().get(1, 0.0)
        print(f"{k:4} {exact:12.3f} {guess:10.3f} {error:6.3f} {last[1]:13.4f} {p:7.4f}")
        assert abs(exact - known.get(k, exact)) < 0.06
        # The standard deviation of log Ẑ grows as √(K / N), here about half of it; 4 of them.
        assert abs(guess - exact) < 2 * math.sqrt(k / particles)
        assert abs(p - last[1]) < 0.1
    if find_spec("matplotlib"):
        folder = Path(out or tempfile.mkdtemp(prefix="lmppl-"))
        folder.mkdir(parents=True, exist_ok=True)
        draw(posterior, folder / "hmm_smc.png")
        print(f"picture: {folder / 'hmm_smc.png'}")


if __name__ == "__main__":
    main()
