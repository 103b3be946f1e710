"""The decisions of AB-MCTS-M against the No-U-Turn sampler on the same model (NumPyro)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lmppl.inference.search.hierarchical import Groups, Prior, ScalePosterior
from lmppl.random import fold

SCORES = [[0.35, 0.5, 0.42, 0.61], [0.7, 0.66], [0.2]]
DRAWS = 40_000


def shares(predictive: Any) -> Any:
    """How often each option has the largest draw [options, draws]."""
    return np.bincount(predictive.argmax(axis=0), minlength=len(predictive)) / predictive.shape[1]


@pytest.mark.slow
def test_the_same_thompson_law_as_nuts() -> None:
    """Total variation of the option chosen, three children and GEN, at most 0.02."""
    pytest.importorskip("numpyro")
    import jax
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS

    owner = np.array([j for j, s in enumerate(SCORES) for _ in s])
    values = np.concatenate([np.array(s) for s in SCORES])

    def model() -> None:
        mu = numpyro.sample("mu", dist.Normal(0.5, 0.2))
        sa = numpyro.sample("sa", dist.HalfNormal(0.2))
        sy = numpyro.sample("sy", dist.HalfNormal(0.3))
        e = numpyro.sample("e", dist.Normal(0, 1).expand([len(SCORES)]))
        numpyro.sample("r", dist.Normal((mu + sa * e)[owner], sy), obs=values)

    mcmc = MCMC(
        NUTS(model, target_accept_prob=0.95),
        num_warmup=1_500,
        num_samples=10_000,
        progress_bar=False,
    )
    mcmc.run(jax.random.PRNGKey(0))
    p = {k: np.asarray(v, dtype=np.float64) for k, v in mcmc.get_samples().items()}
    rng = np.random.default_rng(0)
    rows = []
    for j in [*range(len(SCORES)), None]:  # each option has a draw of all parameters of its own
        pick = rng.integers(0, len(p["mu"]), DRAWS)
        e = rng.normal(size=DRAWS) if j is None else p["e"][pick, j]
        alpha = p["mu"][pick] + p["sa"][pick] * e
        rows.append(alpha + p["sy"][pick] * rng.normal(size=DRAWS))
    nuts = shares(np.array(rows))

    arrays = [np.array(s) for s in SCORES]
    n = np.array([float(len(s)) for s in arrays])
    mean = np.array([s.mean() for s in arrays])
    fit = ScalePosterior(
        Groups(n, mean, np.array([((s - s.mean()) ** 2).sum() for s in arrays])), Prior()
    )
    ids = np.arange(DRAWS, dtype=np.uint64)
    ours = shares(
        np.array(
            [
                fit.predict(np.full(DRAWS, size), np.full(DRAWS, m), fold(0, j), ids)
                for j, (size, m) in enumerate(zip([*n, 0.0], [*mean, 0.0], strict=True))
            ]
        )
    )
    distance = 0.5 * np.abs(nuts - ours).sum()
    assert distance < 0.02, f"NUTS {nuts}, grid {ours}"
