"""The backward filter: messages from the leaves to the roots, in JAX.

    g_s = product of the leaf messages of s and of m_t over ALL children t       fuse
    m_s = k~_s g_s at the parent                                                 pull back
    log h~ = Σ scales + Σ_roots log (k~ g)                                       guide's evidence

A chain is one `lax.scan`, a tree or DAG one `vmap` per level and kind. Every g is divided by its
scale, which is kept as a logarithm, so that the stored numbers are of order one in float32.

Anchors are the points about which messages are kept and kernels linearised: the path without
noise, then `refine(k)` times the guided path without noise. They may depend on data and
parameters, never on what is sampled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lmppl.errors import BadArgument
from lmppl.inference.bffg.kernels import has, missing, resolve, step
from lmppl.inference.bffg.messages import Array, Message, add, pairwise_sum, with_anchor
from lmppl.inference.bffg.model import Bucket, Model, Point, rows


@dataclass(frozen=True)
class refine:  # noqa: N801
    """Anchors: the guided path without noise, found `rounds` times: `anchors=refine(3)`."""

    rounds: int = 1

    def __post_init__(self) -> None:
        """Check the number."""
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 0:
            raise BadArgument(
                f"refine needs a number of rounds, got {self.rounds!r}", fix="write refine(3)"
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BackwardFilter:
    """What the backward pass stores.

    Args:
        params: the parameters it was made with.
        data: the observations [m, …].
        anchors: a point per node [n, …].
        g: fused messages, divided by their scales [n, …].
        m: messages to the parents, as stored [edges, …], in the order of the buckets.
        root: log (k~ g) of each root, in the order of the buckets.
        log_scale: Σ of the scales [].
        inflate: variance added to the surrogates [].
        model: the model.
    """

    params: Any
    data: Array
    anchors: Array
    g: Any
    m: Any
    root: Any
    log_scale: Array
    inflate: Array | None
    model: Model = field(metadata={"static": True})

    @property
    def log_evidence(self) -> Array:
        """log h~: the evidence under the surrogates; log p(data) when they are exact."""
        return self.log_scale + sum(jnp.sum(r) for r in self.root)


def backward(
    model: Model,
    data: Any,
    params: Any = None,
    *,
    anchors: Any = None,
    inflate: float | Array = 0.0,
) -> BackwardFilter:
    """Filter the data backwards.

    Args:
        model: the model.
        data: one row per observation, in the order of `model.observed`; nan marks what is missing.
        params: what the kernel functions get.
        anchors: `refine(k)`, or points [n, …]; `refine(1)` when left out.
        inflate: variance added to every linear-Gaussian surrogate, against a guide too sure of
            itself.
    """
    data = jnp.asarray(data)
    if data.shape[:1] != model.observed.shape:
        raise BadArgument(
            f"{len(model.observed)} nodes are observed, and the data have shape {data.shape}",
            fix="give one row per observed node, nan where it is missing",
        )
    wider = None if isinstance(inflate, (int, float)) and inflate == 0 else jnp.asarray(inflate)
    rounds = refine() if anchors is None else anchors
    if isinstance(rounds, refine):
        bf: BackwardFilter = _refined(model, data, params, wider, rounds.rounds)
    else:
        bf = _backward(model, data, params, wider, jnp.asarray(rounds))
    return bf


@partial(jax.jit, static_argnums=(0, 4))
def _refined(model: Model, data: Array, params: Any, inflate: Any, rounds: int) -> BackwardFilter:
    at = prior_path(model, params)
    bf: BackwardFilter = _backward(model, data, params, inflate, at)
    if not jnp.issubdtype(at.dtype, jnp.floating):
        return bf  # nothing is expanded about a discrete state
    if rounds > 0:
        at = (
            jax.lax.fori_loop(
                0, rounds, lambda _, a: guided_path(_backward(model, data, params, inflate, a)), at
            )
            if rounds > 1
            else guided_path(bf)
        )
        bf = _backward(model, data, params, inflate, at)
    return bf


@partial(jax.jit, static_argnums=0)
def _backward(model: Model, data: Array, params: Any, inflate: Any, at: Array) -> BackwardFilter:
    acc = leaf_messages(model, data, params, at)
    if model.is_chain:
        g, m, root, scales = _chain(model, params, inflate, at, acc)
    else:
        g, m, root, scales = _levels(model, params, inflate, at, acc)
    return BackwardFilter(params, data, at, g, m, root, pairwise_sum(scales), inflate, model)


def edge(model: Model, kind: str, params: Any, cov: Any, anchor: Any, inflate: Any) -> Any:
    """The kernel of an edge and its surrogate."""
    kernel, k_tilde = resolve(model.kernels[kind](params, cov), anchor)
    return kernel, k_tilde if inflate is None else k_tilde.inflated(inflate)


def source() -> Array:
    """The state of the parent that roots do not have."""
    return jnp.zeros((0,))


def leaf_messages(model: Model, data: Array, params: Any, at: Array) -> Any:
    """The product of the leaf messages of each node, about its anchor [n, …]."""
    template = family(model, params, at)
    empty = jax.vmap(lambda a: template.at(a), axis_size=model.n)(at)
    if not len(model.observed) or model.leaf is None:
        return empty
    make = model.leaf

    def one(cov: Any, y: Array, a: Array) -> Any:
        return make(params, cov).message(y, a)

    found = jax.vmap(one)(model_leaf_covariates(model), data, at[model.observed])
    return scatter(empty, model.observed, found)


def model_leaf_covariates(model: Model) -> Any:
    """As JAX arrays."""
    return jax.tree.map(jnp.asarray, model.leaf_covariates)


def family(model: Model, params: Any, at: Array) -> Any:
    """The message 1 of the model's family."""
    for bucket in reversed(model.buckets):
        node = int(bucket.nodes[0])
        pa = bucket.parents[0]
        anchor = at[pa[0]] if len(pa) == 1 else at[pa] if len(pa) else source()
        _, k_tilde = edge(model, bucket.kind, params, model.covariate(node), anchor, None)
        if not isinstance(k_tilde, Point):
            return k_tilde.one()
    raise BadArgument("a model of fixed values alone has no messages")


def scatter(acc: Any, nodes: Any, messages: Any) -> Any:
    """Multiply messages into those of their nodes; anchors are the nodes' own."""
    out = jax.tree.map(lambda a, b: a.at[nodes].add(b.astype(a.dtype)), acc, messages)
    return with_anchor(out, acc)


def _pull(
    model: Model, kind: str, params: Any, cov: Any, g: Message, at: Array, inflate: Any, p: int
) -> Any:
    _, k_tilde = edge(model, kind, params, cov, at, inflate)
    if p == 0:
        return k_tilde.log_kg(g, source())
    if p == 1:
        return k_tilde.pullback(g, at)
    if not has(k_tilde, "pullback_many"):
        raise missing(k_tilde, "pullback_many")
    return k_tilde.pullback_many(g, at)


def _chain(model: Model, params: Any, inflate: Any, at: Array, acc: Any) -> Any:
    kind = model.kinds[1]
    last = jax.tree.map(lambda a: a[-1], acc).one()

    def back(m: Any, xs: Any) -> Any:
        leaf, cov, a = xs
        scale, g = add(leaf, m).normalize()
        up = _pull(model, kind, params, cov, g, a, inflate, 1)
        return up, (g, up, scale)

    inner = jax.tree.map(lambda a: a[1:], (acc, model.covariate(slice(None))))
    m0, (g, m, scales) = jax.lax.scan(back, last, (*inner, at[:-1]), reverse=True)
    scale, g0 = add(jax.tree.map(lambda a: a[0], acc), m0).normalize()
    root = _pull(model, model.kinds[0], params, model.covariate(0), g0, source(), inflate, 0)
    g = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), g0, g)
    return g, (m,), (root[None],), jnp.concatenate([scale[None], scales])


def _levels(model: Model, params: Any, inflate: Any, at: Array, acc: Any) -> Any:
    scales = jnp.zeros(model.n, at.dtype if jnp.issubdtype(at.dtype, jnp.floating) else None)
    ms: list[Any] = []
    roots: list[Any] = []
    for bucket in reversed(model.buckets):
        p = bucket.parents.shape[1]
        scale, g = jax.vmap(lambda m: m.normalize())(rows(acc, bucket.nodes))
        acc = jax.tree.map(lambda a, b, nodes=bucket.nodes: a.at[nodes].set(b), acc, g)
        scales = scales.at[bucket.nodes].set(scale)
        up = _pull_bucket(model, bucket, params, inflate, at, g)
        if p == 0:
            roots.append(up)
            continue
        ms.append(up)
        flat = up if p == 1 else jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), up)
        acc = scatter(acc, bucket.parents.reshape(-1), flat)
    return acc, tuple(reversed(ms)), tuple(reversed(roots)), scales


def parent_rows(values: Array, bucket: Bucket) -> Array:
    """The states of the parents: [b, …], of colliders [b, p, …], of roots [b, 0]."""
    p = bucket.parents.shape[1]
    if p == 0:
        return jnp.zeros((len(bucket.nodes), 0))
    return values[bucket.parents[:, 0]] if p == 1 else values[bucket.parents]


def _pull_bucket(model: Model, bucket: Bucket, params: Any, inflate: Any, at: Array, g: Any) -> Any:
    p = bucket.parents.shape[1]

    def one(cov: Any, g: Any, a: Array) -> Any:
        return _pull(model, bucket.kind, params, cov, g, a, inflate, p)

    return jax.vmap(one)(model.covariate(bucket.nodes), g, parent_rows(at, bucket))


def prior_path(model: Model, params: Any) -> Array:
    """The path without noise [n, …]."""

    def one(kind: str, cov: Any, x: Array) -> Array:
        kernel = true_kernel(model, kind, params, cov)
        return kernel.forward(x, jnp.zeros(kernel.noise))

    return _path(model, one)


def prior_sweep(model: Model, params: Any, noise: Any) -> Array:
    """The path of given noise under the true kernels [n, …]."""

    def one(kind: str, cov: Any, x: Array, z: Array) -> Array:
        return true_kernel(model, kind, params, cov).forward(x, z)

    return _path(model, one, noise=noise)


def true_kernel(model: Model, kind: str, params: Any, cov: Any) -> Any:
    """The kernel of a kind, without its guess."""
    found = model.kernels[kind](params, cov)
    return getattr(found, "kernel", found)


def guided_path(bf: BackwardFilter) -> Array:
    """The guided path without noise [n, …]: new anchors, which need no inverse of H."""
    model = bf.model

    def one(kind: str, cov: Any, x: Array, g: Any, a: Array) -> Array:
        kernel, k_tilde = edge(model, kind, bf.params, cov, a, bf.inflate)
        return step(kernel, k_tilde, g, x, jnp.zeros(kernel.noise))[0]

    return _path(model, one, bf)


def _path(model: Model, one: Any, bf: BackwardFilter | None = None, noise: Any = None) -> Array:
    """A forward sweep of a function of the parent's state."""
    if model.is_chain:
        first, kind = model.kinds[0], model.kinds[1]
        extra: tuple[Any, ...] = () if bf is None else (rows(bf.g, 0), source())
        extra += () if noise is None else (noise[first][0],)
        x0 = one(first, model.covariate(0), source(), *extra)

        def move(x: Array, xs: Any) -> Any:
            y = one(kind, xs[0], x, *xs[1:]).astype(x.dtype)
            return y, y

        inner = jax.tree.map(lambda a: a[1:], model.covariate(slice(None)))
        more: tuple[Any, ...] = ()
        if bf is not None:
            more += (rows(bf.g, slice(1, None)), bf.anchors[:-1])
        if noise is not None:
            more += (noise[kind] if kind != first else noise[kind][1:],)
        _, xs = jax.lax.scan(move, x0, (inner, *more), length=model.n - 1)
        return jnp.concatenate([x0[None], xs])
    x: Any = None
    for bucket in model.buckets:
        pa = parent_rows(x, bucket) if x is not None else jnp.zeros((len(bucket.nodes), 0))
        extra = () if bf is None else (rows(bf.g, bucket.nodes), parent_rows(bf.anchors, bucket))
        extra += () if noise is None else (noise[bucket.kind][bucket.slots],)
        found = jax.vmap(partial(one, bucket.kind))(model.covariate(bucket.nodes), pa, *extra)
        if x is None:
            x = jnp.zeros((model.n, *found.shape[1:]), found.dtype)
        x = x.at[bucket.nodes].set(found)
    return x
