"""The backward filter: messages from the leaves to the roots, in JAX.

    g_s = product of the leaf messages of s and of m_t over ALL children t       fuse
    m_s = k~_s g_s at the parent                                                 pull back
    log h~ = Σ scales + Σ_roots log (k~ g)                                       guide's evidence

A chain is one `lax.scan`, a long linear-Gaussian one √T of them at once (`segments.py`); a tree or
DAG goes level by level, alike levels in one `scan` (`schedule.py`). Every g is divided by its scale,
which is kept as a logarithm, so that the stored numbers are of order one in float32.

Anchors are the points about which messages are kept and kernels linearised: the path without
noise, then `refine(k)` times the guided path without noise. They may depend on data and
parameters, never on what is sampled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmppl.errors import BadArgument
from lmppl.inference.bffg.kernels import has, is_anchored, missing
from lmppl.inference.bffg.messages import Array, Message, add, pairwise_sum, with_anchor
from lmppl.inference.bffg.model import Model, Point, edge, exact_leaves, rows, source
from lmppl.inference.bffg.paths import mean_path, over_levels, parent_rows, prior_path
from lmppl.inference.bffg.schedule import Bucket, Lanes, Run
from lmppl.inference.bffg.segments import LONG, ends_again, ends_of_blocks, filter_in_blocks


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
        m: messages to the parents, as stored: of a chain one stack [n - 1, …]; of a graph, for each
            run after the first, its buckets [levels, lanes, …].
        root: log (k~ g) of the roots, a stack for each bucket.
        scales: log of what each g is divided by [n].
        rest: g without what adaptive colliders send to their last parents, and not divided.
        inflate: variance added to the surrogates [].
        model: the model.
    """

    params: Any
    data: Array
    anchors: Array
    g: Any
    m: Any
    root: Any
    scales: Array
    rest: Any
    inflate: Array | None
    model: Model = field(metadata={"static": True})

    @property
    def log_evidence(self) -> Array:
        """log h~: the evidence under the surrogates; log p(data) when they are exact."""
        total = pairwise_sum(self.scales) + sum(jnp.sum(r) for r in self.root)
        if self.model.is_chain:
            return total
        for run, ups in zip(self.model.runs[1:], self.m, strict=True):
            for bucket, up in zip(run, ups, strict=True):
                if bucket.p == 0:  # a root that waits for the other parents of its collider
                    total += jnp.sum(jnp.where(bucket.lanes.into < self.model.n, up, 0.0))
        return total


class Messages(NamedTuple):
    """What a `BackwardFilter` has beside what it was made of."""

    g: Any
    m: Any
    root: Any
    scales: Array
    rest: Any


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
        bf = _filter(model, data, params, wider, jnp.asarray(rounds))
    return bf


@partial(jax.jit, static_argnums=(0, 4))
def _refined(model: Model, data: Array, params: Any, inflate: Any, rounds: int) -> BackwardFilter:
    at = prior_path(model, params)
    about = partial(_messages, model, data, params, inflate)
    if not rounds or not jnp.issubdtype(at.dtype, jnp.floating):
        bf: BackwardFilter = _filter(model, data, params, inflate, at)
        return bf  # nothing is expanded about a discrete state
    fixed = is_fixed(model, params)
    if fixed:  # then so is the guided path: further rounds would find it again
        rounds = 1

    def kept(at: Array, found: Messages) -> BackwardFilter:
        return BackwardFilter(params, data, at, *found, inflate, model)

    def again(carry: Any, i: Array) -> Any:
        at, found = carry
        found = about(at, (i > 0, found.m) if fixed else None)
        bf = kept(at, found)
        # the same functions about all anchors do not change with them
        seen = jax.lax.stop_gradient(bf) if fixed else bf
        return (jax.lax.cond(i < rounds, mean_path, lambda bf: bf.anchors, seen), found), None

    # one loop, whose body is compiled once; the path found about the last anchors is not needed
    empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(about, at))
    start = (jax.lax.stop_gradient(at) if fixed else at, empty)
    return kept(*jax.lax.scan(again, start, jnp.arange(rounds + 1))[0])


def is_fixed(model: Model, params: Any) -> bool:
    """Whether messages are the same functions about all anchors, since nothing is linearised."""
    found = [exact_leaves(model, params), all(len(pa) <= 1 for pa in model.parents)]

    def look(params: Any) -> Any:
        found.extend(not is_anchored(model.example(kind, params)) for kind in set(model.kinds))
        return 0

    jax.eval_shape(look, params)
    return all(found)


@partial(jax.jit, static_argnums=0)
def _filter(model: Model, data: Array, params: Any, inflate: Any, at: Array) -> BackwardFilter:
    found = _messages(model, data, params, inflate, at)
    return BackwardFilter(params, data, at, *found, inflate, model)


def _messages(
    model: Model, data: Array, params: Any, inflate: Any, at: Array, known: Any = None
) -> Messages:
    """About some anchors.

    `known`, where `is_fixed`: whether messages about others are there, and these.
    """
    acc = leaf_messages(model, data, params, at)
    if model.is_chain:
        return _chain(model, params, inflate, at, acc, known)
    return _levels(model, params, inflate, at, acc)


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
    for kind, node in reversed(dict(zip(model.kinds, range(model.n), strict=True)).items()):
        anchor = parent_rows(at, jnp.asarray(model.parents[node], dtype=int))
        _, k_tilde = edge(model, kind, params, model.covariate(node), anchor, None)
        if not isinstance(k_tilde, Point):
            return k_tilde.one()
    raise BadArgument("a model of fixed values alone has no messages")


def scatter(acc: Any, nodes: Any, messages: Any) -> Any:
    """Multiply messages into those of their nodes; anchors are the nodes' own, index n is nobody."""
    out = jax.tree.map(lambda a, b: a.at[nodes].add(b.astype(a.dtype), mode="drop"), acc, messages)
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


def _chain(model: Model, params: Any, inflate: Any, at: Array, acc: Any, known: Any) -> Messages:
    """g, m, root and scales of a chain; it has no colliders."""
    kind = model.kinds[1]
    last = jax.tree.map(lambda a: a[-1], acc).one()

    def back(m: Any, xs: Any) -> Any:
        leaf, cov, a = xs
        scale, g = add(leaf, m).normalize()
        up = _pull(model, kind, params, cov, g, a, inflate, 1)
        return up, (g, up, scale)

    def prepend(segment: Any, xs: Any) -> Any:
        leaf, cov, a = xs
        return segment.before(edge(model, kind, params, cov, a, inflate)[1], leaf, a)

    xs = (jax.tree.map(lambda a: a[1:], acc), model.covariate(slice(1, None)), at[:-1])
    _, k_tilde = edge(model, kind, params, model.covariate(1), at[0], inflate)
    empty = k_tilde.segment(last) if model.n > LONG else None
    if empty is None:
        m0, (g, m, scales) = jax.lax.scan(back, last, xs, reverse=True)
    else:
        ends = partial(ends_of_blocks, prepend, empty, last, xs)
        if known is None:
            begin = ends()
        else:
            there, (sent,) = known
            begin = jax.lax.cond(there, lambda: ends_again(sent, last, at[:-1]), ends)
        m0, (g, m, scales) = filter_in_blocks(back, begin, xs)
    scale, g0 = add(jax.tree.map(lambda a: a[0], acc), m0).normalize()
    root = _pull(model, model.kinds[0], params, model.covariate(0), g0, source(), inflate, 0)
    g = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), g0, g)
    return Messages(g, (m,), (root[None],), jnp.concatenate([scale[None], scales]), None)


def _levels(model: Model, params: Any, inflate: Any, at: Array, acc: Any) -> Messages:
    """g, m, root, scales and rest of a graph."""
    scales = jnp.zeros(model.n, at.dtype if jnp.issubdtype(at.dtype, jnp.floating) else None)
    carry = (acc, scales, acc if model.adaptive else None)
    ms = []
    for run in reversed(model.runs):
        level = partial(_level, model, params, inflate, at, run)
        carry, ups = over_levels(level, carry, tuple(b.lanes for b in run), run, reverse=True)
        ms.append(ups)
    g, scales, rest = carry
    root, *ms = reversed(ms)
    return Messages(g, tuple(ms), tuple(r[0] for r in root), scales, rest)


def _level(
    model: Model, params: Any, inflate: Any, at: Array, run: Run, carry: Any, lanes: Any
) -> Any:
    acc, scales, rest = carry
    ups = []
    for bucket, lane in zip(run, lanes, strict=True):
        # Fuse
        scale, g = jax.vmap(lambda m: m.normalize())(rows(acc, lane.nodes))
        put = partial(jax.tree.map, lambda a, b, at=lane.into: a.at[at].set(b, mode="drop"))
        acc = with_anchor(put(acc, g), acc)  # the anchors are there
        scales = scales.at[lane.into].set(scale, mode="drop")
        # Pull back
        up = _pull_bucket(model, bucket, lane, params, inflate, at, g)
        ups.append(up)
        if bucket.p == 0:
            continue
        to = jnp.where(lane.into[:, None] < model.n, lane.parents, model.n)
        acc = scatter(acc, to.reshape(-1), _each(up, bucket.p))
        if rest is not None:
            to = to if bucket.last < 0 else to.at[:, bucket.last].set(model.n)
            rest = scatter(rest, to.reshape(-1), _each(up, bucket.p))
    return (acc, scales, rest), tuple(ups)


def _each(up: Any, p: int) -> Any:
    """Messages, one row for each parent of each node."""
    return up if p == 1 else jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), up)


def _pull_bucket(
    model: Model, bucket: Bucket, lanes: Lanes, params: Any, inflate: Any, at: Array, g: Any
) -> Any:
    def one(lane: Lanes, g: Any) -> Any:
        cov, a = model.covariate(lane.nodes), parent_rows(at, lane.parents)
        return _pull(model, bucket.kind, params, cov, g, a, inflate, bucket.p)

    return jax.vmap(one)(lanes, g)
