"""Value belief propagation with one line wrong: each mistake shows at temperature 1/λ.

There the messages are sum-product, and one variable is a chain: beliefs and first action are those of
the enumeration. The wrong planners are the shipped file with one expression replaced.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmppl.inference.planning import CPT, FactoredMDP, Reward, sweeps, vbp
from lmppl.inference.planning.factors import factors_of

pytest.importorskip("jax")
pytestmark = pytest.mark.slow

LAM, STEPS = 0.7, 3
RNG = np.random.default_rng(4)
LAW, WORTH, OWN = RNG.dirichlet(np.ones(2), (2, 2)), RNG.normal(size=(2, 2)), RNG.normal(size=2)

WRONG = {
    "the future counts twice": ("jnp.exp(-lam * (v - v.min", "jnp.exp(0.0 * (v - v.min"),
    "the reward is lost on the way": (
        "jnp.exp(-lam * (v - v.min",
        'jnp.exp(-lam * (v + g["local"] - v.min',
    ),
    "a reward on both sides": (
        'jnp.einsum("era,eyra->ey", weight, g["table"])',
        'jnp.einsum("era,eyra->ey", weight, g["table"]) * jnp.exp(lam * given["unary"][:1])',
    ),
    "the wrong sign of the future": ("logsumexp(lam * b, b=table", "logsumexp(-lam * b, b=table"),
}


def by_enumeration() -> tuple[Any, Any]:
    """q(x_t) and q(a_0) of P e^{λR}, actions summed like states."""
    x, first = np.zeros((STEPS + 1, 2)), np.zeros(2)
    for path in itertools.product(range(2), repeat=STEPS):
        for acts in itertools.product(range(2), repeat=STEPS):
            at, mass = (0, *path), 1.0
            for t, a in enumerate(acts):
                mass *= LAW[at[t], a, at[t + 1]] * np.exp(LAM * (WORTH[at[t], a] + OWN[at[t]]))
            first[acts[0]] += mass
            for t in range(STEPS + 1):
                x[t, at[t]] += mass
    return x / x.sum(axis=1, keepdims=True), first / first.sum()


def error() -> float:
    """The largest difference of a belief from the enumeration's."""
    rewards = [Reward(["x"], WORTH), Reward(["x"], OWN)]
    mdp = FactoredMDP({"x": 2}, 2, {"x": CPT(["x"], LAW)}, rewards)
    found = vbp.propagate(factors_of(mdp, STEPS), risk=LAM, temperature=1 / LAM, anneal=0)
    x, first = by_enumeration()
    gaps = np.append((found.beliefs[:, 0] - x).ravel(), found.action_probs - first)
    return float(np.abs(gaps).max())


def test_the_shipped_planner_is_right() -> None:
    assert error() < 1e-6


@pytest.mark.parametrize("name", WRONG)
def test_one_wrong_line_is_rejected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = WRONG[name]
    text = Path(str(sweeps.__file__)).read_text()
    assert text.count(old) == 1
    wrong: dict[str, Any] = {}
    exec(compile(text.replace(old, new), "wrong sweeps", "exec"), wrong)
    monkeypatch.setattr(vbp, "compiled", wrong["compiled"])
    assert error() > 1e-2
