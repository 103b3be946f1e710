"""The guided particle filter and particle Gibbs, on chains, in JAX.

    score      w_i = (k g)(x_i) / m(x_i)          where it is known before the child is drawn
    resample   ancestors ∝ w when ESS < τ N
    draw       children from k g / (k g)(x)
    log Ẑ = log h~ + Σ over resamplings of log mean w + log mean of the last weights

In the conditional filter particle 0 keeps a given path, the others get multinomial ancestors; with
`ancestor=True` the kept path draws a new past, so that even long chains mix.

Reference: Pitt and Shephard (1999); Andrieu, Doucet and Holenstein, Particle Markov chain Monte
Carlo methods (2010); Lindsten, Jordan and Schön, Particle Gibbs with ancestor sampling (2014).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.bffg.backward import BackwardFilter
from lmppl.inference.bffg.forward import (
    Noise,
    draw_noise,
    guided_path,
    is_before_draw,
    key_of,
    leaf_ratio,
    weight_score,
    weight_step,
)
from lmppl.inference.bffg.messages import Array
from lmppl.inference.bffg.model import exact_leaves, rows, source
from lmppl.inference.bffg.result import Guided
from lmppl.inference.results.history import History
from lmppl.types import Ints


def log_ess(lw: Array) -> Array:
    """log of (Σ w)² / Σ w²."""
    return 2 * jax.nn.logsumexp(lw) - jax.nn.logsumexp(2 * lw)


def log_mean(lw: Array) -> Array:
    """log of the mean of exp(lw)."""
    return jax.nn.logsumexp(lw) - jnp.log(lw.shape[0])


def systematic(lw: Array, u: Array) -> Array:
    """Sorted ancestors of one uniform number."""
    n = lw.shape[0]
    edges = jnp.cumsum(jax.nn.softmax(lw))
    points = (jnp.arange(n) + u) / n * edges[-1]
    return jnp.clip(jnp.searchsorted(edges, points, side="left"), 0, n - 1)


def multinomial(lw: Array, key: Array) -> Array:
    """Independent ancestors."""
    return jax.random.categorical(key, lw, shape=lw.shape)


def _observations(bf: BackwardFilter) -> Ints | None:
    """The observation of each node, -1 without; None when no weight needs it."""
    model = bf.model
    if not model.is_chain:
        raise BadArgument(
            "resampling needs a chain: on a tree there is no common time",
            fix="leave resample out, or use pcn",
        )
    if exact_leaves(model, bf.params):
        return None
    at = np.full(model.n, -1)
    at[model.observed] = np.arange(len(model.observed))
    if (at >= 0).sum() != len(model.observed):
        raise BadArgument("resampling needs at most one inexact observation per node")
    return at


def _leaf(bf: BackwardFilter, index: Array, x: Array, a: Array) -> Array:
    """log l - log l~ of the observation of a node, for all particles."""
    row = jnp.maximum(index, 0)
    cov = jax.tree.map(lambda c: jnp.asarray(c)[row], bf.model.leaf_covariates)
    ratio = jax.vmap(lambda v: leaf_ratio(bf, cov, bf.data[row], v, a))(x)
    return jnp.where(index >= 0, ratio, 0.0)


def _inputs(bf: BackwardFilter, noise: Noise, observed: Ints | None) -> Any:
    """What each step after the root reads, time first."""
    model = bf.model
    kind = model.kinds[1]
    z = jnp.moveaxis(noise[kind], 0, 1)
    z = z if kind != model.kinds[0] else z[1:]
    cov, g = jax.tree.map(lambda v: v[1:], (model.covariate(slice(None)), bf.g))
    obs = None if observed is None else jnp.asarray(observed[1:])
    return cov, g, bf.m[0], z, bf.anchors[:-1], bf.anchors[1:], obs


def _start(bf: BackwardFilter, noise: Noise, observed: Ints | None) -> tuple[Array, Array]:
    kind, cov, g = bf.model.kinds[0], bf.model.covariate(0), rows(bf.g, 0)
    x, lw = jax.vmap(lambda z: weight_step(bf, kind, cov, g, bf.root[0][0], source(), z, source()))(
        noise[kind][:, 0]
    )
    if observed is not None:
        lw = lw + _leaf(bf, jnp.asarray(observed[0]), x, bf.anchors[0])
    return x, lw


def _traced(last: Array, xs: Array, ancestors: Array) -> Array:
    """Paths [n, T, …] of the last particles through their ancestors."""

    def up(index: Array, row: Any) -> Any:
        x, parents = row
        return parents[index], x[index]

    # xs[t] are the particles before the resampling `ancestors[t]`
    index, path = jax.lax.scan(up, last, (xs[1:], ancestors), reverse=True)
    path = jnp.concatenate([xs[0][index][None], path])
    return jnp.moveaxis(path, 0, 1)


@partial(jax.jit, static_argnames=("early", "observed"))
def _filter(
    bf: BackwardFilter, noise: Noise, offsets: Array, tau: Array, early: bool, observed: Any
) -> Any:
    observed = None if observed is None else np.asarray(observed)
    kind = bf.model.kinds[1]
    x, lw = _start(bf, noise, observed)
    n = x.shape[0]

    def move(carry: Any, xs: Any) -> Any:
        x, lw, level = carry
        (cov, g, m, z, a, own, obs), u = xs
        step: Any = jax.vmap(lambda x, z: weight_step(bf, kind, cov, g, m, x, z, a))
        # Score
        lw = lw + step(x, z)[1] if early else lw
        size = log_ess(lw)
        # Resample
        do = size < jnp.log(tau * n) - 1e-6
        parents = jnp.where(do, systematic(lw, u), jnp.arange(n))
        level = level + jnp.where(do, log_mean(lw), 0.0)
        lw = jnp.where(do, 0.0, lw)
        # Draw
        y, w = step(x[parents], z)
        lw = lw if early else lw + w
        lw = lw if obs is None else lw + _leaf(bf, obs, y, own)
        y = y.astype(x.dtype)
        return (y, lw, level), (y, parents, size, do, level)

    (_, lw, level), (ys, parents, size, do, levels) = jax.lax.scan(
        move, (x, lw, jnp.zeros_like(lw[0])), (_inputs(bf, noise, observed), offsets)
    )
    paths = _traced(jnp.arange(n), jnp.concatenate([x[None], ys]), parents)
    return paths, lw, bf.log_evidence + level, parents, size, do, bf.log_evidence + levels


def guided_filter(bf: BackwardFilter, key: Array, n: int, tau: float) -> Guided:
    """The filter of the module's first lines; see `forward`."""
    observed = _observations(bf)
    early = is_before_draw(bf, bf.model.kinds[1])
    noise = draw_noise(bf.model, jax.random.fold_in(key, 0), bf.params, n)
    offsets = jax.random.uniform(jax.random.fold_in(key, 1), (bf.model.n - 1,))
    paths, lw, level, parents, size, do, levels = _filter(
        bf, noise, offsets, jnp.asarray(tau), early, None if observed is None else tuple(observed)
    )
    logs = np.asarray(lw, dtype=np.float64)
    history, eves = History(n), np.arange(n)
    for t in range(bf.model.n - 1):
        up = np.asarray(parents[t]) if bool(do[t]) else None
        eves = eves if up is None else eves[up]
        history.record(float(np.exp(size[t])), float(levels[t]), up, eves.tolist())
    log_z = float(level) + float(log_mean(lw))
    history.end(logs, eves.tolist())
    return Guided.of(np.asarray(paths), logs + float(level), log_z, history, eves)


@partial(jax.jit, static_argnames=("n", "early", "observed", "ancestor"))
def _conditional(
    bf: BackwardFilter,
    key: Array,
    kept: Array,
    tau: Array,
    n: int,
    early: bool,
    observed: Any,
    ancestor: bool,
) -> Array:
    observed = None if observed is None else np.asarray(observed)
    kind = bf.model.kinds[1]
    noise = draw_noise(bf.model, jax.random.fold_in(key, 0), bf.params, n)
    x, lw = _start(bf, noise, observed)
    x = x.at[0].set(kept[0].astype(x.dtype))
    if observed is not None:
        lw = lw.at[0].set(_leaf(bf, jnp.asarray(observed[0]), x[:1], bf.anchors[0])[0])
    keys = jax.random.split(jax.random.fold_in(key, 1), bf.model.n)

    def move(carry: Any, xs: Any) -> Any:
        x, lw = carry
        (cov, g, m, z, a, own, obs), key, child = xs
        step: Any = jax.vmap(lambda x, z: weight_step(bf, kind, cov, g, m, x, z, a))
        lw = lw + step(x, z)[1] if early else lw
        do = log_ess(lw) < jnp.log(tau * n) - 1e-6
        parents = jnp.where(do, multinomial(lw, key), jnp.arange(n)).at[0].set(0)
        if ancestor:
            log_q, log_w = jax.vmap(lambda x: weight_score(bf, kind, cov, g, m, x, child, a))(x)
            past = lw + log_q + (0.0 if early else log_w)
            drawn = jax.random.categorical(jax.random.fold_in(key, 1), past)
            parents = parents.at[0].set(jnp.where(do, drawn, 0))
        lw = jnp.where(do, 0.0, lw)
        y, w = step(x[parents], z)
        y = y.astype(x.dtype).at[0].set(child.astype(x.dtype))
        if not early:
            first = weight_score(bf, kind, cov, g, m, x[parents[0]], child, a)[1]
            lw = lw + w.at[0].set(first)
        lw = lw if obs is None else lw + _leaf(bf, obs, y, own)
        return (y, lw), (y, parents)

    inputs = (_inputs(bf, noise, observed), keys[1:], kept[1:])
    (_, lw), (ys, parents) = jax.lax.scan(move, (x, lw), inputs)
    last = jax.random.categorical(keys[0], lw)
    return _traced(last[None], jnp.concatenate([x[None], ys]), parents)[0]


def conditional_filter(
    bf: BackwardFilter,
    key: Any,
    path: Array,
    n: int = 16,
    resample: str | float = "ess:1",
    ancestor: bool = False,
) -> Array:
    """One step of conditional SMC: a new path [nodes, …] that leaves the posterior invariant.

    Args:
        bf: of `backward`; its guide changes how fast paths mix, never their law.
        key: a JAX key, or a seed.
        path: the present path.
        n: particles, the kept one among them.
        resample: as in `forward`.
        ancestor: draw a new past for the kept path; the kernel needs `log_prob`.
    """
    from lmppl.inference.bffg.forward import threshold

    observed = _observations(bf)
    early = is_before_draw(bf, bf.model.kinds[1])
    shown = None if observed is None else tuple(observed)
    found: Array = _conditional(
        bf,
        key_of(key),
        jnp.asarray(path),
        jnp.asarray(threshold(resample)),
        n,
        early,
        shown,
        ancestor,
    )
    return found


def particle_gibbs(
    bf: BackwardFilter,
    key: Any,
    sweeps: int = 100,
    n: int = 16,
    *,
    start: Array | None = None,
    resample: str | float = "ess:1",
    ancestor: bool = False,
) -> Array:
    """Paths of repeated conditional SMC [sweeps, nodes, …]; see `conditional_filter`."""
    key = key_of(key)
    path = start
    if path is None:
        path = guided_path(bf, draw_noise(bf.model, jax.random.fold_in(key, 0), bf.params))[0]
    path = jnp.asarray(path)

    def sweep(path: Array, key: Array) -> tuple[Array, Array]:
        new = conditional_filter(bf, key, path, n, resample, ancestor).astype(path.dtype)
        return new, new

    _, paths = jax.lax.scan(sweep, path, jax.random.split(jax.random.fold_in(key, 1), sweeps))
    return paths
