"""Forward simulation, in JAX: data to test on, and the baseline that a guide has to beat."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.bffg.backward import model_leaf_covariates
from lmppl.inference.bffg.forward import draw_noise
from lmppl.inference.bffg.messages import Array, pairwise_sum
from lmppl.inference.bffg.model import Model
from lmppl.inference.bffg.paths import prior_sweep
from lmppl.inference.bffg.result import Guided


@partial(jax.jit, static_argnums=0)
def simulate(model: Model, params: Any, noise: Any) -> Array:
    """The path of given noise under the true kernels [n, …]."""
    return prior_sweep(model, params, noise)


@partial(jax.jit, static_argnums=0)
def log_likelihood(model: Model, data: Array, params: Any, values: Array) -> Array:
    """Σ log l of the observations, given a path."""
    if model.leaf is None:
        raise BadArgument("the model has no leaves")
    make = model.leaf
    logs = jax.vmap(lambda cov, y, x: make(params, cov).log_prob(x, y))(
        model_leaf_covariates(model), data, values[model.observed]
    )
    return pairwise_sum(logs)


def unguided(model: Model, data: Any, params: Any, key: Any, n: int = 100) -> Guided:
    """n forward paths, weighted by the likelihood."""
    noise = draw_noise(model, key, params, n)
    values = jax.vmap(lambda z: simulate(model, params, z))(noise)
    data = jnp.asarray(data)
    logs = jax.vmap(lambda x: log_likelihood(model, data, params, x))(values)
    return Guided.of(np.asarray(values), np.asarray(logs, dtype=np.float64))
