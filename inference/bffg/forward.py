"""The guided forward pass: samples with weights, in JAX.

    draw a child from the true kernel tilted by g, weight w = numerator / stored m
    log W = log h~ + Σ_edges log w + Σ_leaves (log l - log l~)       E[exp(log W)] = p(data)

`log_weight` is a pure function of (data, parameters, noise): differentiate it, jit it, give it to
NUTS. `forward` draws n weighted paths; on a chain it resamples, and where the weight is known
before the child is drawn (rungs 1 and 2) it scores, resamples and then draws.

Reference: van der Meulen and Schauer (2020); resampling before sampling is the fully adapted
auxiliary filter of Pitt and Shephard (1999).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.bffg.backward import BackwardFilter, backward, model_leaf_covariates
from lmppl.inference.bffg.kernels import before_draw, resolve, rung, score, step
from lmppl.inference.bffg.messages import Array, pairwise_sum
from lmppl.inference.bffg.model import Model, edge, exact_leaves, rows
from lmppl.inference.bffg.paths import sweep
from lmppl.inference.bffg.result import Guided

Noise = Mapping[str, Array]
"""Standard normals of each kind, in the order of its nodes [count, …]."""


def noise_shapes(model: Model, params: Any = None) -> dict[str, tuple[int, ...]]:
    """The shape of the noise of each kind."""
    found = {}
    for kind in dict.fromkeys(model.kinds):
        shape: list[tuple[int, ...]] = []

        def look(params: Any, kind: str = kind, shape: Any = shape) -> Any:
            kernel = model.example(kind, params)
            shape.append(getattr(kernel, "kernel", kernel).noise)
            return 0

        jax.eval_shape(look, params)
        found[kind] = (model.count(kind), *shape[0])
    return found


def draw_noise(
    model: Model, key: Any, params: Any = None, n: int | None = None
) -> dict[str, Array]:
    """Noise of one path, or of n [n, …]: that of a node depends on its position in its kind alone."""
    out = {}
    for i, (kind, (count, *shape)) in enumerate(noise_shapes(model, params).items()):
        sub = jax.random.fold_in(key_of(key), i)
        if n is None:
            out[kind] = jax.random.normal(sub, (count, *shape))
        else:
            # nodes lead, since only then are the first draws the same when nodes are added
            out[kind] = jnp.moveaxis(jax.random.normal(sub, (count, n, *shape)), 0, 1)
    return out


def weight_step(
    bf: BackwardFilter, kind: str, cov: Any, g: Any, m: Any, x: Array, z: Array, a: Array
) -> tuple[Array, Array]:
    """A guided child, and log w of its edge: the numerator over the stored messages at x."""
    kernel, k_tilde = edge(bf.model, kind, bf.params, cov, a, bf.inflate)
    y, numerator = step(kernel, k_tilde, g, x, z)
    return y, numerator - stored(m, x)


def weight_score(
    bf: BackwardFilter, kind: str, cov: Any, g: Any, m: Any, x: Array, y: Array, a: Array
) -> tuple[Array, Array]:
    """log q and log w of an edge, for a given child."""
    kernel, k_tilde = edge(bf.model, kind, bf.params, cov, a, bf.inflate)
    log_q, numerator = score(kernel, k_tilde, g, x, y)
    return log_q, numerator - stored(m, x)


def stored(m: Any, x: Array) -> Array:
    """Σ_u log m_u(x_u): what the backward pass sent to the parents, never a second k~g."""
    if not hasattr(m, "log_value"):
        return m  # of a root: the number itself
    return m.log_value(x)


@jax.jit
def guided_path(bf: BackwardFilter, noise: Noise) -> tuple[Array, Array]:
    """The path of given noise [n, …], and its log W."""

    def visit(kind: str, cov: Any, x: Array, z: Array, g: Any, m: Any, a: Array) -> Any:
        return weight_step(bf, kind, cov, g, m, x, z, a)

    values, logs = sweep(bf.model, bf.params, visit, noise, bf)
    return values, bf.log_evidence + logs + leaf_correction(bf, values)


@jax.jit
def path_score(bf: BackwardFilter, values: Array) -> tuple[Array, Array]:
    """log q and log W of a given path: log W = log p(path, data) - log q(path)."""

    def visit(kind: str, cov: Any, x: Array, y: Array, g: Any, m: Any, a: Array) -> Any:
        log_q, log_w = weight_score(bf, kind, cov, g, m, x, y, a)
        return y, jnp.stack([log_q, log_w])

    by_kind = {
        kind: values[np.array([s for s, k in enumerate(bf.model.kinds) if k == kind])]
        for kind in dict.fromkeys(bf.model.kinds)
    }
    _, logs = sweep(bf.model, bf.params, visit, by_kind, bf)
    return logs[0], bf.log_evidence + logs[1] + leaf_correction(bf, values)


def leaf_ratio(bf: BackwardFilter, cov: Any, y: Array, x: Array, a: Array) -> Array:
    """log l(x) - log l~(x) of one observation."""
    if bf.model.leaf is None:
        raise BadArgument("the model has no leaves")
    leaf = bf.model.leaf(bf.params, cov)
    return leaf.log_prob(x, y) - leaf.message(y, a).log_value(x)


def leaf_correction(bf: BackwardFilter, values: Array) -> Array:
    """Σ over observations of log l - log l~."""
    model = bf.model
    if exact_leaves(model, bf.params):
        return jnp.zeros(())
    at = model.observed
    ratios = jax.vmap(partial(leaf_ratio, bf))(
        model_leaf_covariates(model), bf.data, values[at], bf.anchors[at]
    )
    return pairwise_sum(ratios)


def log_weight(
    model: Model,
    data: Any,
    params: Any,
    noise: Noise,
    *,
    anchors: Any = None,
    inflate: float | Array = 0.0,
) -> Array:
    """log W of given noise: pure, differentiable in data, parameters and noise.

    E[exp(log W)] over standard normal noise is p(data); with exact surrogates it is constant.
    """
    bf = backward(model, data, params, anchors=anchors, inflate=inflate)
    found: Array = guided_path(bf, noise)[1]
    return found


def key_of(key: Any) -> Array:
    """A JAX key, or one made of a whole number."""
    return jax.random.key(key) if isinstance(key, (int, np.integer)) else key


def threshold(resample: str | float | None) -> float:
    """τ of "ess:0.5", a number, or None for never."""
    if resample is None:
        return 0.0
    text = str(resample).removeprefix("ess:")
    try:
        tau = float(text)
    except ValueError:
        tau = -1.0
    if not 0.0 <= tau <= 1.0:
        raise BadArgument(
            f'resample must be None, a number in [0, 1] or "ess:0.5", got {resample!r}'
        )
    return tau


def forward(
    bf: BackwardFilter, key: Any, n: int = 100, resample: str | float | None = None
) -> Guided:
    """n guided paths with weights.

    Args:
        bf: of `backward`.
        key: a JAX key, or a seed.
        n: how many.
        resample: None for importance sampling; "ess:0.5" resamples, on a chain, when ESS < 0.5 n.

    Returns:
        A `Guided`: values [n, nodes, …], log-weights, evidence, diagnostics, `to_arviz`.
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise BadArgument(f"n must be a positive integer, got {n!r}", fix="write n=100")
    tau = threshold(resample)
    if tau > 0:
        from lmppl.inference.bffg.particle_filter import guided_filter

        found: Guided = guided_filter(bf, key_of(key), int(n), tau)
        return found
    values, logs = _paths(bf, draw_noise(bf.model, key, bf.params, int(n)))
    logs = np.asarray(logs, dtype=np.float64)
    return Guided.of(np.asarray(values), logs)


@jax.jit
def _paths(bf: BackwardFilter, noise: Noise) -> Any:
    return jax.vmap(lambda z: guided_path(bf, z))(noise)


def is_before_draw(bf: BackwardFilter, kind: str) -> bool:
    """Whether the weights of a kind are known before the child is drawn."""
    node = bf.model.kinds.index(kind)
    made = bf.model.kernels[kind](bf.params, bf.model.covariate(node))
    kernel, k_tilde = resolve(made, bf.anchors[0])
    g = rows(bf.g, 0)
    return not g.late and before_draw(kernel, rung(kernel, k_tilde, g))
