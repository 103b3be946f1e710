"""Learned guides: residuals trained on posterior samples, and the evidence held from both sides; JAX.

Training makes the guided steps of a filter look like those of posterior paths. Each step (x, y) of
such a path is compared with guided children y' of the same x, by

    F(y) = f(y) + log l/l~ of the data at y + log k g/q        q draws y'; the last is constant in y
                                                               where q is k g, normalised
    "contrastive"   -log [e^F(y) / (e^F(y) + Σ e^F(y'))]
    "ratio"         softplus(-a(y)) + mean softplus(a(y'))     a = F - log M(x), the log of w_s

Both have log h/g as their best f, for any number of y'. Whatever f is, the weights are exact.

Reference: Zhao, Brekelmans, Makhzani and Grosse, Probabilistic inference in language models via
twisted sequential Monte Carlo (2024); Lawson, Raventós, Warrington and Linderman, SIXO: smoothing
inference with twisted objectives (2022); Ma and Collins, Noise contrastive estimation (2018).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.example_libraries.optimizers import adam

from lmppl.errors import BadArgument
from lmppl.inference.bffg.backward import BackwardFilter
from lmppl.inference.bffg.forward import (
    draw_noise,
    forward,
    guided_path,
    key_of,
    leaf_ratio,
    path_score,
    stored,
)
from lmppl.inference.bffg.kernels import has, score, step
from lmppl.inference.bffg.messages import Array, Table
from lmppl.inference.bffg.model import Model, edge, exact_leaves, rows, true_kernel
from lmppl.inference.bffg.paths import sweep
from lmppl.inference.bffg.residual import Residual, Value, children, network, table
from lmppl.inference.bffg.result import Guided
from lmppl.inference.learning.evidence_bounds import Bounds
from lmppl.inference.learning.twists import LOSSES
from lmppl.types import Ints
from lmppl.weights import log_mean_exp


def _start(bf: BackwardFilter, posterior: Guided, hidden: int, key: Any) -> tuple[Any, Any, Value]:
    """What is trained, what stays as it is in front of it, and f of both."""
    n = bf.model.n
    if isinstance(bf.g, Table):
        return jnp.zeros(bf.g.log_g.shape), (), table
    x = np.asarray(posterior.values, dtype=float).reshape(len(posterior.values), n, -1)
    place = np.tensordot(posterior.weights, x, axes=1)
    spread = np.sqrt(np.tensordot(posterior.weights, (x - place) ** 2, axes=1)) + 1e-6
    d = x.shape[-1]
    W = jnp.tile(jax.random.normal(key, (d, hidden)) / np.sqrt(d), (n, 1, 1))
    zeros = jnp.zeros((n, hidden))
    return (W, zeros, zeros, jnp.zeros(n)), (jnp.asarray(place), jnp.asarray(spread)), network


def fit_residual(
    bf: BackwardFilter,
    posterior: Guided | None = None,
    key: Any = 0,
    *,
    loss: str = "contrastive",
    hidden: int = 8,
    rivals: int = 8,
    steps: int = 300,
    rate: float = 0.03,
    decay: float = 1e-3,
    smooth: float = 0.0,
) -> Residual:
    """A residual that makes the guided steps of a filter look like those of posterior paths.

    Args:
        bf: of `backward`.
        posterior: weighted paths; 500 of `forward` when left out, resampled on a chain. Those of an
            earlier residual, of `pcn` or `particle_gibbs` (`Guided.of(values, zeros)`) are better.
            Leave it out for kernels without `log_prob`, `Steps` and `JumpProcess`: their steps can
            be weighed only with the noise that drew them.
        key: a JAX key, or a seed.
        loss: "contrastive", or "ratio" where no node has several parents.
        hidden: tanh units at each node; a finite state has a number for each value instead.
        rivals: guided children that each step of a posterior path is compared with.
        steps: of Adam, over all paths at once.
        rate: of learning.
        decay: λ of a penalty λ |θ|² per node.
        smooth: μ of a penalty μ |θ - θ of the parents|² per edge, where few paths must do for many
            nodes: the steps of a diffusion, say.
    """
    model, key = bf.model, key_of(key)
    if loss not in LOSSES or (loss == "ratio" and model.colliders):
        raise BadArgument(
            f'loss must be "contrastive", or "ratio" without colliders, got {loss!r}',
            fix='write loss="contrastive"',
        )
    posterior, own = _posterior(bf, posterior, key)
    trained, fixed, value = _start(bf, posterior, hidden, jax.random.fold_in(key, 1))
    values, weights = jnp.asarray(posterior.values), jnp.asarray(posterior.weights)
    noise = draw_noise(model, jax.random.fold_in(key, 2), bf.params, len(values) * rivals)
    noise = jax.tree.map(lambda z: z.reshape(len(values), rivals, *z.shape[1:]), noise)
    level = jnp.asarray(posterior.log_evidence) - bf.log_evidence
    edges = [(u, s) for s, pa in enumerate(model.parents) for u in pa]
    above, below = np.array(edges, dtype=int).reshape(-1, 2).T
    init, update, read = adam(rate)

    def objective(trained: Any) -> Array:
        theta = (*fixed, trained) if fixed else trained
        each = jax.vmap(lambda x, z, w: _loss(bf, theta, value, x, z, w, level, loss))(
            values, noise, own
        )
        sizes = [
            decay * jnp.sum(p**2) + smooth * jnp.sum((p[below] - p[above]) ** 2)
            for p in jax.tree.leaves(trained)
        ]
        return weights @ each + sum(sizes)

    @jax.jit
    def train(trained: Any) -> Any:
        def move(i: Any, carry: Any) -> Any:
            state, losses = carry
            found, slope = jax.value_and_grad(objective)(read(state))
            return update(i, slope, state), losses.at[i].set(found)

        return jax.lax.fori_loop(0, steps, move, (init(trained), jnp.zeros(steps)))

    state, losses = train(trained)
    found = read(state)
    if not all(bool(jnp.isfinite(p).all()) for p in jax.tree.leaves(found)):
        raise BadArgument("training of a residual diverged", fix="give a smaller rate")
    theta = (*fixed, found) if fixed else found
    return Residual(theta, value, tuple(np.asarray(losses, dtype=float).tolist()))


def _posterior(
    bf: BackwardFilter, posterior: Guided | None, key: Any
) -> tuple[Guided, dict[str, Array] | None]:
    """Weighted paths; and what drew them, where kernels without a density are among them."""
    model = bf.model
    lacking: set[str] = set()

    def look(params: Any) -> Any:
        for kind in dict.fromkeys(model.kinds):
            kernel = true_kernel(model, kind, params, model.covariate(model.kinds.index(kind)))
            if not has(kernel, "log_prob"):
                lacking.add(type(kernel).__name__)
        return 0

    jax.eval_shape(look, bf.params)
    if not lacking:
        how = "ess:0.5" if model.is_chain else None
        return posterior or forward(bf, key, 500, how), None
    if posterior is not None:
        raise BadArgument(
            f"{' and '.join(sorted(lacking))} cannot weigh a given step: there is no log_prob",
            fix="leave posterior out, so that paths are kept with their noise",
        )
    noise = draw_noise(model, key, bf.params, 500)
    values, logs = jax.jit(jax.vmap(guided_path, in_axes=(None, 0)))(bf, noise)
    return Guided.of(np.asarray(values), np.asarray(logs, dtype=float)), noise


def _loss(
    bf: BackwardFilter,
    theta: Any,
    value: Value,
    x: Array,
    noise: Any,
    own: Any,
    level: Array,
    loss: str,
) -> Array:
    """Of one posterior path x [n, …].

    `noise` is for the rivals of every node, of each kind [rivals, count, …]; `own` is what drew the
    path, of each kind [count, …], and None where kernels have a density.
    """
    model = bf.model
    kids, seen = children(model), _seen(model)
    parent = np.array([pa[0] if pa else s for s, pa in enumerate(model.parents)])
    inputs = {}
    for kind in noise:
        at = np.array([s for s, k in enumerate(model.kinds) if k == kind])
        on, share = kids[at] > 0, 1 / np.maximum(kids[parent[at]], 1)
        inputs[kind] = (
            x[at], jnp.moveaxis(noise[kind], 0, 1), bf.anchors[at], seen[at], on, share,
            rows(theta, at), rows(theta, parent[at]), None if own is None else own[kind],
        )  # fmt: skip

    def visit(kind: str, cov: Any, x: Array, row: Any, g: Any, m: Any, a: Array) -> Any:
        y, z, anchor, seen, on, share, theta, above, drew = row
        kernel, k_tilde = edge(model, kind, bf.params, cov, a, bf.inflate)
        others, numerators = jax.vmap(lambda z: step(kernel, k_tilde, g, x, z))(z)

        def F(y: Array) -> Array:  # noqa: N802
            return jnp.where(on, value(theta, y), 0.0) + _mended(bf, seen, y, anchor)

        weigh = (
            score(kernel, k_tilde, g, x, y) if drew is None else step(kernel, k_tilde, g, x, drew)
        )
        here = F(y) + weigh[1]
        there = jax.vmap(F)(others) + numerators
        if loss == "contrastive":
            return y, jax.nn.logsumexp(jnp.append(there, here)) - here
        due = stored(m, x) + (share * value(above, x) if x.size else level)
        return y, jax.nn.softplus(due - here) + jnp.mean(jax.nn.softplus(there - due))

    total: Array = sweep(model, bf.params, visit, inputs, bf)[1]
    return total


def _seen(model: Model) -> Ints:
    """The observations of each node, -1 for none [n, most]."""
    at: list[list[int]] = [[] for _ in range(model.n)]
    for i, s in enumerate(model.observed.tolist()):
        at[s].append(i)
    most = max(len(found) for found in at)
    return np.array([[*found, *[-1] * (most - len(found))] for found in at], dtype=int)


def _mended(bf: BackwardFilter, seen: Array, y: Array, anchor: Array) -> Array:
    """Σ log l/l~ of the observations of a node."""
    if exact_leaves(bf.model, bf.params):
        return jnp.zeros(())

    def one(i: Array) -> Array:
        cov, data = rows(bf.model.leaf_covariates, i), bf.data[i]
        return jnp.where(i >= 0, leaf_ratio(bf, cov, data, y, anchor), 0.0)

    return jnp.sum(jax.vmap(one)(seen))


def evidence_bounds(
    bf: BackwardFilter, paths: Any, key: Any = 0, n: int = 16, exact: bool = True
) -> Bounds:
    """Bounds of log p(data) from both sides, whose gap says how good a guide is without the truth.

        lower  mean of log 1/n Σ W       n guided paths
        upper  the same, where one of them is a posterior path

    Args:
        bf: of `backward`, or of `Residual.on`.
        paths: independent posterior paths [runs, nodes, …].
        key: a JAX key, or a seed.
        n: paths for each estimate.
        exact: whether the paths have the law of the posterior; else `upper` is no bound.
    """
    paths = jnp.asarray(paths)
    runs = len(paths)
    if runs < 2 or n < 2:
        raise BadArgument(f"runs and n must be at least 2, got {runs} and {n}")
    logs = np.asarray(forward(bf, key, runs * (2 * n - 1)).log_weights)
    kept = np.asarray(jax.vmap(lambda x: path_score(bf, x)[1])(paths), dtype=float)
    plain, around = np.split(logs, [runs * n])
    around = np.concatenate([kept[:, None], around.reshape(runs, n - 1)], axis=1)
    low = [log_mean_exp(row) for row in plain.reshape(runs, n)]
    high = [log_mean_exp(row) for row in around]
    return Bounds.of(np.array(low), np.array(high), exact)
