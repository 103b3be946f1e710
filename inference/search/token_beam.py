"""Beams inside strings: the frontier is ranked every k tokens, not only where a string has ended.

    beam = {empty trace}
    until all of the beam is finished:
        `expand` forks of each unfinished one draw up to k tokens, or to the next site
        beam = the `width` best of the distinct ones and the finished ones

The priority is that of `Beam`; log g counts the tokens drawn so far. Children are drawn, since the
continuations of k tokens are too many to list, and equal ones count once.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np

from lmppl.inference.guide import Guide
from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.paths import log_gamma
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.search.found import found
from lmppl.inference.search.nodes import same_value
from lmppl.random import draw, fold
from lmppl.weights import NEG_INF

if TYPE_CHECKING:
    from lmppl.inference.search.beam import Beam


def token_beam(engine: Beam, machine: Machine, k: int) -> Jobs:
    """Run a beam with barriers every k tokens; the `Found`."""
    guide = Guide.of(engine.guide)
    beam, step, made = [machine.particle(0)], 0, 1
    values: dict[int, float] = {}
    grown = 0
    while any(not p.finished for p in beam):
        # Grow
        children: list[Particle] = []
        for p in beam:
            if p.finished:
                continue
            grown += 1
            for j in range(engine.expand):
                key = fold(p.key, "child", step, j)
                last = j == engine.expand - 1
                children.append(machine.fork(p, key, made, frames=last))
                made += 1
        yield from machine.advance(children, "site", k)
        machine.look_ahead(children)
        logh = np.zeros(len(children))
        if guide is not None:
            asked = engine.rank == "guide"
            logh = yield from guide.log_h(machine, children, finished=asked)
        # Rank
        pool = [p for p in beam if p.finished]
        seen: set[Hashable] = {_identity(p) for p in pool}
        for p, h in zip(children, logh.tolist(), strict=True):
            name = _identity(p)
            if p.dead or name in seen:
                p.strand.kill()
                continue
            seen.add(name)
            log_g = log_gamma(p)
            values[p.index] = h if engine.rank == "guide" else log_g + h
            if values[p.index] > NEG_INF:
                pool.append(p)
        beam = _kept(engine, machine, pool, values, step)
        chosen = {p.index for p in beam}
        for p in pool:
            if p.index not in chosen:
                p.strand.kill()
        step += 1
    for p in beam:
        p.logw = log_gamma(p)
    scores = None if engine.rank == "joint" else [values[p.index] for p in beam]
    if not beam:
        beam = [machine.particle(0)]
        machine.kill(beam[0], "the beam", "every continuation has weight zero")
        scores = None
    return found(machine, engine, beam, scores, expansions=grown, nodes=made, distinct=True)


def _kept(
    engine: Beam, machine: Machine, pool: list[Particle], values: dict[int, float], step: int
) -> list[Particle]:
    pool = sorted(pool, key=lambda p: (-values[p.index], p.key))
    if engine.temperature == 0.0 or len(pool) <= engine.width:
        return pool[: engine.width]
    logits = np.array([values[p.index] for p in pool]) / engine.temperature
    kept = []
    for i in range(engine.width):
        pick = draw(machine.env.chance, fold(machine.key, "beam", step, 0, i), logits)
        logits[pick] = -np.inf
        kept.append(pool[pick])
    return kept


def _identity(p: Particle) -> Hashable:
    """Equal for particles that stand at the same place after the same choices."""
    out: list[Any] = []
    strands = [p.strand]
    while strands:
        s = strands.pop()
        head = s.head
        while head is not None:
            if head.op == "sample":
                out.append((head.address, same_value(head.value)))
            head = head.prev
        if s.job is not None and s.pending is not None:
            out.append((s.pending.address, tuple(s.job.state.ids)))
        out.append(s.done)
        strands += s.branches or ()
    return tuple(out)
