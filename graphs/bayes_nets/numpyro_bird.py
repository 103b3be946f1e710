"""BIRD's weights as NumPyro latents, for NUTS in place of Laplace's approximation (jax, numpyro)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmppl.graphs.bayes_nets.bird import Factors, Instance, design, prior
from lmppl.graphs.bayes_nets.labels import thresholds

FAR = 1e6
"""In place of infinity, whose derivative is no number."""


def elicitation_model(
    factors: Factors,
    asked: Sequence[Instance],
    labels: Any,
    *,
    second: Sequence[bool] | None = None,
    speaks: Mapping[str, Mapping[str, str]] | None = None,
    scale: float = 1.5,
) -> Callable[[], Any]:
    """The model that `fit` maximises, as a NumPyro model; the arguments are those of `fit`.

    Its sites: `theta`, all values of all factors one after the other [D], and the lean behind them
    where there are labels of both outcomes; `noise`; and the factor `labels`. σ(theta) are the
    paper's p_j.
    """
    x, law = design(factors, asked, labels, second)
    start, spread = prior(factors, x, speaks, scale)
    ends = np.clip(thresholds(), -FAR, FAR)

    def model() -> Any:
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        from jax.nn import log_sigmoid

        theta = numpyro.sample(
            "theta", dist.Normal(jnp.asarray(start), jnp.asarray(spread)).to_event(1)
        )
        noise = numpyro.sample("noise", dist.LogNormal(-0.5, 1.0))
        t = (jnp.asarray(ends)[None, :] - (jnp.asarray(x) @ theta)[:, None]) / noise
        low, high = t[:, :-1], t[:, 1:]
        logp = log_sigmoid(high) + log_sigmoid(-low) + jnp.log1p(-jnp.exp(low - high))
        numpyro.factor("labels", (jnp.asarray(law) * logp).sum())
        return theta

    return model
