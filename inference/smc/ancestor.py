"""Ancestor sampling: what the reference of a conditional filter does later, after another beginning.

At a barrier t the reference's ancestor is drawn like that of any other slot, but by what follows too:

    P(i) ∝ w_i · γ(prefix_i, x' after t) / γ(prefix_i)

The program is run on from each prefix, with what the reference did between each two barriers given
and scored: values of sites, and with barriers inside strings the tokens of each stretch, so that
a half-drawn string goes on with the reference's remaining tokens. Where they do not fit the weight
is 0. It is a Gibbs step only for independent ancestors, so it wants multinomial resampling.

Reference: Lindsten, Jordan and Schön, Particle Gibbs with ancestor sampling (2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from lmppl.inference.machine.answers import Stop
from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.paths import (
    Chunk,
    Given,
    Node,
    added,
    grown,
    history,
    sampled,
    script_of,
    strings,
)
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.jobs import Generate
from lmppl.random import draw, fold
from lmppl.types import Floats, Key
from lmppl.weights import NEG_INF


class Stretch(NamedTuple):
    """What a path does between two barriers."""

    values: dict[str, Any]
    """Of the sites that end there."""
    chunks: dict[str, Chunk] | None
    """Of its strings; None where no barrier is inside them."""


def draw_ancestor(
    machine: Machine, key: Key, heads: Sequence[Node], lw: Floats, later: Sequence[Node],
    stop: Stop, limit: int | None, beta: float,
) -> Jobs:  # fmt: skip
    """Draw an ancestor for what the reference does after this barrier.

    Args:
        machine: the run.
        key: of this draw.
        heads: the population at the barrier, the reference first.
        lw: their log-weights [N].
        later: the reference from this barrier on.
        stop: the barriers.
        limit: tokens between those inside strings.
        beta: the target is q · (γ / q)^beta.

    Returns:
        The nodes of the new reference, and the slot of its ancestor.
    """
    due = [stretch(a, b, limit) for a, b in pairwise(later)]
    ratios = np.full(len(heads), NEG_INF)
    ratios[0] = log_ratio(heads[0], later[-1] if later else heads[0], beta)
    found = yield from _continued(machine, key, heads, lw, due, stop, limit)
    for i, node in found.items():
        ratios[i] = log_ratio(heads[i], node, beta)
    parent = draw(machine.env.chance, fold(key, "ancestor"), lw + ratios)
    return history(found[parent] if parent else later[-1] if later else heads[0]), parent


def log_ratio(head: Node, end: Node, beta: float) -> float:
    """log γ(whole path) / γ(prefix), of the target at beta."""
    return beta * (end.logw - head.logw) + end.logq - head.logq


def stretch(before: Node, after: Node, limit: int | None) -> Stretch:
    """What is new at a node of the reference."""
    old = sampled(before.state)
    values = {a: e.value for a, e in sampled(after.state).items() if a not in old}
    inside = limit is not None
    return Stretch(values, added(strings(before.state), strings(after.state)) if inside else None)


def _continued(
    machine: Machine, key: Key, heads: Sequence[Node], lw: Floats, due: Sequence[Stretch],
    stop: Stop, limit: int | None,
) -> Jobs:  # fmt: skip
    """The paths of the other slots that go on as the reference does, by slot."""
    script, deaths = script_of(machine), machine.deaths.copy()
    nothing = Stretch({}, None if limit is None else {})
    paths = {i: h for i, h in enumerate(heads) if i and lw[i] > NEG_INF}
    runners = {
        i: machine.fork(h.state, fold(key, "suffix", i), i, frames=False) for i, h in paths.items()
    }
    at = 0
    while moving := {i: p for i, p in runners.items() if not p.finished}:
        now = due[at] if at < len(due) else nothing
        for p in moving.values():
            given = script.given[p] = Given(now.values, strict=True, chunks=now.chunks)
            _go_on(p, given)
        yield from machine.advance(list(moving.values()), stop, limit)
        for i, p in moving.items():
            if _fits(now, script.given.pop(p), paths[i], p):
                paths[i] = grown(machine, p, paths[i])
            else:
                p.dead = True
                p.strand.kill()
        at += 1
    machine.deaths = deaths  # a suffix that does not fit is no impossible run
    return {
        i: paths[i]
        for i, p in runners.items()
        if not p.dead and not any(map(any, due[paths[i].depth - heads[i].depth :]))
    }


def _go_on(p: Particle, given: Given) -> None:
    """Give the half-drawn strings of a particle their next tokens; it dies where one has none."""
    for leaf in p.strand.leaves():
        if isinstance(leaf.job, Generate) and leaf.pending is not None:
            address = leaf.pending.address
            chunk = (given.chunks or {}).get(address)
            if chunk is None:
                p.dead = True
            else:
                leaf.job.given = (*leaf.job.state.ids, *chunk.ids)
                given.used.add(address)


def _fits(now: Stretch, given: Given, before: Node, p: Particle) -> bool:
    """Whether a particle has done all that was due, and nothing else."""
    if p.dead or given.used != now.values.keys() | (now.chunks or {}).keys():
        return False
    return now.chunks is None or added(strings(before.state), strings(p)) == now.chunks
