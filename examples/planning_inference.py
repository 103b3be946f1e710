"""Which inference is planning? What each kind of inference decides, from no chance to much of it.

Random problems of three states, three actions and three steps. The dynamics are mixed with noise,
and each kind of inference picks the first action that its own value says is best; what counts is
the true value of that action when everything after it is optimal. Planning loses nothing at any
noise, because it is the only kind that scores a policy and not a sequence of states or actions.

    python examples/planning_inference.py --problems 200 --plot kinds.png
"""

from __future__ import annotations

import argparse

import numpy as np

from lmppl.inference.planning import TabularMDP, inference_value
from lmppl.inference.planning.kinds import KINDS, stages_value
from lmppl.inference.planning.mdp import Stages
from lmppl.inference.planning.tables import Array

STATES, ACTIONS, HORIZON = 3, 3, 3
NOISE = (0.0, 0.2, 0.4, 0.6, 0.8)


def problem(seed: int, noise: float) -> TabularMDP:
    rng = np.random.default_rng(seed)
    sharp = np.eye(STATES)[rng.integers(0, STATES, (STATES, ACTIONS))]
    loose = rng.dirichlet(np.ones(STATES), (STATES, ACTIONS))
    reward = rng.normal(size=(STATES, ACTIONS))
    return TabularMDP(STATES, ACTIONS, (1 - noise) * sharp + noise * loose, reward)


def with_first(stages: Stages, action: int) -> Stages:
    """The problem after its first action: another first law, one step fewer, a constant more."""
    start = np.einsum("x,xy->y", stages.initial, stages.transition[:, action])
    return Stages(
        stages.transition, stages.reward[1:], stages.final, stages.allowed, start, stages.over
    )


def lost(mdp: TabularMDP, risk: float) -> dict[str, float]:
    """How much the first action of each kind gives away, in expected utility."""
    stages = mdp.stages(HORIZON)
    now = stages.initial @ stages.reward[0]

    def score(kind: str, lam: float) -> Array:
        return np.array(
            [now[a] + stages_value(with_first(stages, a), kind, lam) for a in range(ACTIONS)]
        )

    true = score("planning", 0.0)
    return {k: float(true.max() - true[score(k, risk).argmax()]) for k in KINDS}


def plot(rows: dict[str, list[float]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for kind, values in rows.items():
        style = "--" if kind == "marginal_uniform" else "-"
        axes.plot(NOISE, values, style, marker="o", label=kind)
    axes.set_xlabel("share of noise in the dynamics")
    axes.set_ylabel("expected utility lost by the first action")
    axes.legend()
    figure.savefig(path, dpi=120)


def main(problems: int = 40, risk: float = 0.3, path: str | None = None) -> None:
    rows: dict[str, list[float]] = {k: [] for k in KINDS}
    for noise in NOISE:
        found = [lost(problem(seed, noise), risk) for seed in range(problems)]
        for kind in KINDS:
            rows[kind].append(float(np.mean([f[kind] for f in found])))
    print("noise             " + "".join(f"{n:>8.1f}" for n in NOISE))
    for kind, values in rows.items():
        print(f"{kind:<18}" + "".join(f"{v:>8.3f}" for v in values))
    if path:
        plot(rows, path)
    assert rows["planning"][0] == rows["mmap"][0] == rows["map"][0] == 0.0, "no chance, no gap"
    assert all(p <= rows["map"][i] for i, p in enumerate(rows["planning"]))
    certain = {k: inference_value(problem(0, 0.0), HORIZON, k, risk=risk) for k in KINDS}
    assert abs(certain["planning"] - certain["mmap"]) < 1e-9 < certain["marginal"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=40)
    parser.add_argument("--risk", type=float, default=0.3)
    parser.add_argument("--plot")
    given = parser.parse_args()
    main(given.problems, given.risk, given.plot)
