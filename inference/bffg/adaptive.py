"""Adaptive colliders, in JAX: the parent drawn last is guided by what the others have become.

    collider s of parents u₁ … u_p, last of them v       G(x₁ … x_p) = (k~_s g_s)(x₁ … x_p)
    factorised   each g_u has a factor m_{u,s};   log w_s = log (k_s g_s)(x) - Σ_u log m_{u,s}(x_u)
    adaptive     v is drawn with G(x_others, ·) in place of m_{v,s};
                 log w_s = log (k_s g_s)(x) - log G(x) - Σ_{u≠v} log m_{u,s}(x_u)

What the backward pass sends further up is the same. Both are exact: what guides a node is divided
out by the number that was used. Adaptive is the better guide where the parents depend on each other
given the child, and costs a pullback in the forward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

from lmppl.inference.bffg.messages import Array, add
from lmppl.inference.bffg.model import edge, rows
from lmppl.inference.bffg.schedule import Bucket, Lanes

if TYPE_CHECKING:
    from lmppl.inference.bffg.backward import BackwardFilter


def to_last(bf: BackwardFilter, kind: str, node: Array, parents: Array, last: int, x: Array) -> Any:
    """G(x_others, ·) of a collider, about the anchor of its last parent."""
    at = bf.anchors[parents]
    cov = bf.model.covariate(node)
    _, k_tilde = edge(bf.model, kind, bf.params, cov, at, bf.inflate)
    return k_tilde.given(x[parents], last).pullback(rows(bf.g, node), at[last])


def guide(bf: BackwardFilter, bucket: Bucket, lane: Lanes, x: Array) -> Any:
    """g of a node that is the last parent of some colliders, not divided by its scale."""
    g = rows(bf.rest, lane.nodes)
    for (kind, last, _), (node, parents) in zip(bucket.late, lane.colliders, strict=True):
        g = add(g, to_last(bf, kind, node, parents, last, x))
    return g


class Scaled:
    """A stored message, or number of a root, times exp(scale): g above is not divided by it."""

    def __init__(self, m: Any, scale: Array) -> None:
        self.m, self.scale = m, scale

    def log_value(self, x: Array) -> Array:
        """At the state of the parent."""
        return self.scale + (self.m.log_value(x) if hasattr(self.m, "log_value") else self.m)


class Known:
    """What a collider divides by: G, and the factors of the parents before the last."""

    def __init__(self, bf: BackwardFilter, bucket: Bucket, lane: Lanes, x: Array, m: Any) -> None:
        self.last = bucket.last
        self.whole = to_last(bf, bucket.kind, lane.nodes, lane.parents, bucket.last, x)
        self.parts = m

    def log_value(self, x: Array) -> Array:
        """At the states of the parents [p, …]."""
        values = jax.vmap(lambda m, v: m.log_value(v))(self.parts, x)
        return self.whole.log_value(x[self.last]) + values.at[self.last].set(0.0).sum()
