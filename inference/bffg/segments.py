"""Long chains in blocks: √T steps one after the other in place of T, in JAX.

A step of a scan costs microseconds of overhead, far more than the arithmetic of a small state. So a
long chain is cut into about √T blocks of √T edges, and all blocks move at once:

    compose   the edges and leaves of each block into one segment        √T steps, all blocks at once
    jump      the message from block to block, through the segments      √T steps
    fill      the message through the edges of each block again          √T steps, all blocks at once

The last stage is the plain filter, begun at the ends of the blocks, so that what is stored is what
it would store. A surrogate takes part if it has `segment`. Once a filter has been run about some
anchors, its messages at the ends are known, and about others only the last stage is needed. The
same is done for paths whose steps are affine in the parent: compose the maps, jump, fill.

Reference: Särkkä and García-Fernández, Temporal parallelization of Bayesian smoothers (2021), whose
elements the segments are; the two levels in place of a tree keep compilation short.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from lmppl.inference.bffg.messages import Array
from lmppl.inference.bffg.small import product

LONG = 200
"""Edges from which blocks pay."""


class Segment(ABC):
    """A stretch of a chain as one kernel, with the leaves inside it: k₁ g₁ k₂ g₂ and so on."""

    @abstractmethod
    def before(self, k: Any, g: Any, anchor: Array) -> Self:
        """One edge more, in front: k from a parent at the anchor, g the leaves of its child."""

    @abstractmethod
    def pull(self, message: Any, anchor: Array) -> Any:
        """The message of its end, pulled to its start about the anchor there, up to a constant."""


def cut(edges: int) -> tuple[int, int]:
    """How many blocks there are, and how many edges are missing from the first to be as long."""
    blocks = math.isqrt(edges)
    return blocks, -edges % blocks


def ends_of_blocks(prepend: Callable[[Any, Any], Any], empty: Any, last: Any, xs: Any) -> Any:
    """The messages to the last nodes of all blocks [blocks], up to constants.

    Args:
        prepend: (segment, (leaves of the child, covariate, anchor of the parent)) -> segment.
        empty: the segment of no edge.
        last: the message to the last node.
        xs: of all edges.
    """
    body, real = _fold(xs, _row(xs, 0)), _real(xs)
    segments, _ = jax.lax.scan(
        lambda s, row: (_where(row[1], jax.vmap(prepend)(s, row[0]), s), None),
        _repeat(empty, real.shape[1]),
        (body, real),
        reverse=True,
    )

    def jump(message: Any, row: Any) -> Any:
        segment, anchor = row
        return segment.pull(message, anchor), message

    return jax.lax.scan(jump, last, (segments, body[-1][0]), reverse=True)[1]


def ends_again(m: Any, last: Any, anchors: Array) -> Any:
    """The same, from the messages [T, …] that a filter about other anchors sent to the parents."""
    blocks, missing = cut(_length(m))
    block = (_length(m) + missing) // blocks
    ends = slice(block - missing, None, block)
    found = jax.vmap(lambda message, a: message.at(a))(_row(m, ends), anchors[ends])
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), found, last)


def filter_in_blocks(back: Callable[[Any, Any], Any], ends: Any, xs: Any) -> Any:
    """`lax.scan(back, last, xs, reverse=True)` of a long chain.

    Args:
        back: (message, (leaves of the child, covariate, anchor of the parent)) -> (message, …).
        ends: the messages to the last nodes of all blocks.
        xs: of all edges.
    """
    body, real = _fold(xs, _row(xs, 0)), _real(xs)

    def step(m: Any, row: Any) -> Any:
        up, out = jax.vmap(back)(m, row[0])
        return _where(row[1], up, m), out

    up, (g_all, m_all, scales) = jax.lax.scan(step, ends, (body, real), reverse=True)
    # the last node of a block has seen a rounded copy of what the next block sends: now the thing
    first = jax.tree.map(lambda a: a[-1, :-1], body)
    _, (g, _, scale) = jax.vmap(back)(jax.tree.map(lambda a: a[1:], up), first)
    out = (jax.tree.map(_put, g_all, g), m_all, _put(scales, scale))
    return _row(up, 0), jax.tree.map(lambda a: _flat(a)[cut(_length(xs))[1] :], out)


def affine_path(move: Callable[[Array, Any], Array], x0: Array, about: Array, xs: Any) -> Array:
    """x_t = move(x_{t-1}, xs_t) for t = 1 … T, where each step is affine in its first argument.

    Args:
        move: the step.
        x0: the start [d].
        about: a point near each x_t [T + 1, d]: deviations from it are what is computed.
        xs: the other arguments [T, …].
    """

    def both(x: Array, row: Any) -> tuple[Array, Array]:
        y = move(x, row)
        return y, y

    slopes, ends = jax.vmap(jax.jacfwd(both, has_aux=True))(about[:-1], xs)
    maps = (slopes, ends - about[1:])
    blocks, missing = cut(_length(maps))

    def apply(u: Array, f: Any) -> Any:
        u = product(f[0], u) + f[1]
        return u, u

    def compose(f: Any, g: Any) -> Any:
        return (product(g[0], f[0]), product(g[0], f[1]) + g[1])

    identity = (jnp.eye(x0.shape[0], dtype=x0.dtype), jnp.zeros_like(x0))
    body = _fold(maps, identity)
    many = _repeat(identity, blocks)
    whole, _ = jax.lax.scan(lambda f, g: (jax.vmap(compose)(f, g), None), many, body)
    _, starts = jax.lax.scan(lambda u, f: (apply(u, f)[0], u), x0 - about[0], whole)
    _, inside = jax.lax.scan(jax.vmap(apply), starts, body)
    return about[1:] + _flat(inside)[missing:]


def _length(tree: Any) -> int:
    length: int = jax.tree.leaves(tree)[0].shape[0]
    return length


def _repeat(tree: Any, times: int) -> Any:
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (times, *jnp.shape(a))), tree)


def _row(tree: Any, index: int | slice) -> Any:
    return jax.tree.map(lambda a: a[index], tree)


def _fold(tree: Any, row: Any) -> Any:
    """[T, …] as [steps, blocks, …], with copies of a row in front so that all blocks are as long."""
    blocks, missing = cut(_length(tree))

    def fold(a: Array, b: Array) -> Array:
        whole = jnp.concatenate([*[b[None]] * missing, a])
        return jnp.swapaxes(whole.reshape(blocks, -1, *a.shape[1:]), 0, 1)

    return jax.tree.map(fold, tree, row)


def _real(tree: Any) -> Array:
    """Where the rows of `_fold` are no padding [steps, blocks]."""
    blocks, missing = cut(_length(tree))
    return (np.arange(_length(tree) + missing) >= missing).reshape(blocks, -1).T


def _where(on: Array, a: Any, b: Any) -> Any:
    """Rows of a where `on` [blocks], else of b."""
    return jax.tree.map(lambda a, b: jnp.where(on.reshape(-1, *[1] * (a.ndim - 1)), a, b), a, b)


def _put(a: Array, b: Array) -> Array:
    """At the last nodes of all blocks but the last."""
    return a.at[-1, :-1].set(b)


def _flat(a: Array) -> Array:
    """[steps, blocks, …] as [T, …]."""
    return jnp.swapaxes(a, 0, 1).reshape(-1, *a.shape[2:])
