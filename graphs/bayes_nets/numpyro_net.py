"""A `BayesNet` as a NumPyro model (jax, numpyro)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lmppl.errors import BadArgument
from lmppl.graphs.bayes_nets.bayes_net import BayesNet

MOST_ROWS = 1 << 18


def numpyro_model(net: BayesNet) -> Callable[..., dict[str, Any]]:
    """The network as a NumPyro model; its sites hold the index of a value.

    Each site is marked `infer={"enumerate": "parallel"}`, for NumPyro's enumeration, which needs
    funsor; without it the model still samples, scores and conditions.
    """

    def model(given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist

        at: dict[str, Any] = {}
        for v in net.variables:
            rows = jnp.asarray(v.table)[tuple(at[p] for p in v.parents)]
            obs = None
            if given is not None and v.name in given:
                obs = jnp.asarray(v.values.index(given[v.name]))
            at[v.name] = numpyro.sample(
                v.name, dist.Categorical(probs=rows), obs=obs, infer={"enumerate": "parallel"}
            )
        return at

    return model


def numpyro_marginals(
    net: BayesNet, given: Mapping[str, Any] | None = None
) -> dict[str, dict[Any, float]]:
    """P(variable | given) of every other variable, from NumPyro's density of every assignment."""
    import jax
    import jax.numpy as jnp
    from numpyro.infer.util import log_density

    evidence = dict(given or {})
    free = [v for v in net.variables if v.name not in evidence]
    shape = tuple(len(v.values) for v in free)
    if int(np.prod(shape, dtype=np.int64)) > MOST_ROWS:
        raise BadArgument(
            f"the network has {np.prod(shape, dtype=np.int64):,} assignments to list",
            fix="use net.query(...), which eliminates",
        )
    model = numpyro_model(net)
    with jax.enable_x64(True):
        grid = jnp.stack(
            [g.reshape(-1) for g in jnp.meshgrid(*(jnp.arange(k) for k in shape), indexing="ij")]
        )

        def density(row: Any) -> Any:
            at = {v.name: row[i] for i, v in enumerate(free)}
            return log_density(model, (evidence,), {}, at)[0]

        logp = np.asarray(jax.vmap(density)(grid.T), dtype=np.float64).reshape(shape)
    p = np.exp(logp - logp.max())
    p /= p.sum()
    return {
        v.name: dict(
            zip(v.values, p.sum(axis=tuple(j for j in range(len(free)) if j != i)), strict=True)
        )
        for i, v in enumerate(free)
    }
