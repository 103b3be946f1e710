"""Forward sweeps: one function at every node, parents first, in JAX.

A chain is one `lax.scan`, a graph one `scan` per run of levels and one `vmap` per bucket. A long
chain whose steps are affine in the parent (a linear-Gaussian kernel at given noise) is handled in
blocks (`segments.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from lmppl.inference.bffg.adaptive import Known, Scaled, guide
from lmppl.inference.bffg.kernels import step
from lmppl.inference.bffg.messages import Array, PerParent, pairwise_sum
from lmppl.inference.bffg.model import Model, edge, rows, source, true_kernel
from lmppl.inference.bffg.schedule import Bucket, Lanes, Run
from lmppl.inference.bffg.segments import LONG, affine_path

if TYPE_CHECKING:
    from lmppl.inference.bffg.backward import BackwardFilter

Visit = Callable[[str, Any, Array, Any, Any, Any, Any], tuple[Array, Any]]
"""(kind, covariate, parent, input, g, m, anchor of the parent) -> (child, log or None)."""


def prior_path(model: Model, params: Any) -> Array:
    """The path without noise [n, …]."""

    def visit(kind: str, cov: Any, x: Array, *_: Any) -> Any:
        kernel = true_kernel(model, kind, params, cov)
        return kernel.forward(x, jnp.zeros(kernel.noise)), None

    return sweep(model, params, visit)[0]


def prior_sweep(model: Model, params: Any, noise: Any) -> Array:
    """The path of given noise under the true kernels [n, …]."""

    def visit(kind: str, cov: Any, x: Array, z: Array, *_: Any) -> Any:
        return true_kernel(model, kind, params, cov).forward(x, z), None

    return sweep(model, params, visit, noise)[0]


def mean_path(bf: BackwardFilter) -> Array:
    """The guided path without noise [n, …]: new anchors, which need no inverse of H."""

    def visit(kind: str, cov: Any, x: Array, _: Any, g: Any, m: Any, a: Array) -> Any:
        kernel, k_tilde = edge(bf.model, kind, bf.params, cov, a, bf.inflate)
        return step(kernel, k_tilde, g, x, jnp.zeros(kernel.noise))[0], None

    return sweep(bf.model, bf.params, visit, bf=bf)[0]


def sweep(
    model: Model,
    params: Any,
    visit: Visit,
    inputs: Mapping[str, Array] | None = None,
    bf: BackwardFilter | None = None,
) -> tuple[Array, Any]:
    """All states [n, …], and the sum of the logs.

    Args:
        model: the model.
        params: of its kernels.
        visit: what happens at a node.
        inputs: of each kind, arrays with a row per node [count, …], such as noise.
        bf: whose messages and anchors the visits see; without it they see None.
    """
    if model.is_chain:
        return _along(model, params, visit, inputs, bf)
    return _down(model, visit, inputs, bf)


def _along(model: Model, params: Any, visit: Visit, inputs: Any, bf: Any) -> tuple[Array, Any]:
    first, kind = model.kinds[0], model.kinds[1]
    z0 = z = g0 = g = m0 = m = a = None
    if inputs is not None:
        z0, z = rows(inputs[first], 0), rows(inputs[kind], slice(int(kind == first), None))
    if bf is not None:
        g0, m0, m, a = rows(bf.g, 0), bf.root[0][0], bf.m[0], bf.anchors[:-1]
        g = rows(bf.g, slice(1, None))
    x0, log0 = visit(first, model.covariate(0), source(), z0, g0, m0, source())
    xs = (model.covariate(slice(1, None)), z, g, m, a)

    def move(x: Array, row: Any) -> Any:
        cov, *rest = row
        y, log = visit(kind, cov, x, *rest)
        return y.astype(x.dtype), (y.astype(x.dtype), log)

    kernel = true_kernel(model, kind, params, model.covariate(1))
    if inputs is None and kernel.affine and model.n > LONG:
        about = jnp.broadcast_to(x0, (model.n, *x0.shape)) if bf is None else bf.anchors
        path = affine_path(lambda x, row: move(x, row)[0], x0, about, xs)
        return jnp.concatenate([x0[None], path]), None
    _, (path, logs) = jax.lax.scan(move, x0, xs, length=model.n - 1)
    total = None if log0 is None else pairwise_sum(logs) + log0
    return jnp.concatenate([x0[None], path]), total


def _down(model: Model, visit: Visit, inputs: Any, bf: Any) -> tuple[Array, Any]:
    x: Any = None
    total: Any = None
    for run, messages in zip(model.runs, _stored(model, bf), strict=True):

        def level(x: Any, row: Any, run: Run = run) -> Any:
            lanes, messages = row
            logs = []
            for bucket, lane, m in zip(run, lanes, messages, strict=True):
                y, log = _bucket(model, bucket, lane, visit, inputs, bf, m, x)
                x = jnp.zeros((model.n, *y.shape[1:]), y.dtype) if x is None else x
                x = x.at[lane.into].set(y, mode="drop")
                if log is not None:
                    logs.append(_kept(log, lane.into < model.n))
            return x, sum(logs) if logs else None

        x, logs = over_levels(level, x, (tuple(b.lanes for b in run), messages), run)
        if logs is not None:
            total = pairwise_sum(logs) + (0.0 if total is None else total)
    return x, total


def _stored(model: Model, bf: Any) -> Any:
    """The messages of each run."""
    if bf is None:
        return [(None,) * len(run) for run in model.runs]
    return [tuple(r[None] for r in bf.root), *bf.m]


def _kept(logs: Array, real: Array) -> Array:
    """Their sum over the lanes that are no padding."""
    return pairwise_sum(jnp.where(real.reshape(-1, *[1] * (logs.ndim - 1)), logs, 0.0))


def _bucket(
    model: Model, bucket: Bucket, lanes: Lanes, visit: Visit, inputs: Any, bf: Any, m: Any, x: Any
) -> Any:
    """The visit of every lane of one level."""

    def one(lane: Lanes, m: Any) -> Any:
        z = None if inputs is None else rows(inputs[bucket.kind], lane.slots)
        pa = parent_rows(x, lane.parents)
        g = a = None
        if bf is not None:
            g, a = rows(bf.g, lane.nodes), parent_rows(bf.anchors, lane.parents)
            if bucket.p > 1:
                m = PerParent(m) if bucket.last < 0 else Known(bf, bucket, lane, x, m)
            if bucket.late:
                g, m = guide(bf, bucket, lane, x), Scaled(m, bf.scales[lane.nodes])
        return visit(bucket.kind, model.covariate(lane.nodes), pa, z, g, m, a)

    return jax.vmap(one)(lanes, m)


def parent_rows(values: Any, parents: Array) -> Array:
    """Rows of the parents of one node: [p, …] of a collider, […] of one parent, [0] of none."""
    p = parents.shape[0]
    if p == 0:
        return source()
    return values[parents[0]] if p == 1 else values[parents]


def over_levels(
    body: Callable[[Any, Any], Any], carry: Any, xs: Any, run: Run, reverse: bool = False
) -> Any:
    """`lax.scan` over the levels of a run; a single level needs no loop."""
    if run[0].lanes.nodes.shape[0] > 1:
        return jax.lax.scan(body, carry, xs, reverse=reverse)
    carry, out = body(carry, jax.tree.map(lambda a: a[0], xs))
    return carry, jax.tree.map(lambda a: a[None], out)
