"""Conditional sequential Monte Carlo: a particle filter around a path that is kept.

    slot 0 is the reference x'; slots 1 … N-1 are free
    until all are finished:
        free particles pass one barrier; slot 0 becomes x' at that barrier, weight w_t(x'_{1:t})
        if ESS(w · h) < τ N and some are unfinished:
            draw N ancestors ∝ w h, given that slot 0's ancestor is 0

The reference competes with the weight of its own prefix at that time, is kept with probability 1,
and may be the ancestor of any other slot. A path drawn from the final weights is one step of a
kernel that leaves γ / Z invariant, for every N ≥ 2. Paths of other lengths absorb.

Low-variance resampling needs its conditional version: with (A_1 … A_N) shifted by a uniform cycle,
each slot has ancestor i with probability W_i, and the law given A_0 = 0 is (Chopin and Singh, 2015,
Algorithm 4)

| scheme | the offset, and the position of slot 0 |
| --- | --- |
| multinomial | slots 1 … N-1 independent |
| systematic | u with density ∝ number of offspring of 0; any of those positions |
| stratified | a stratum ∝ its overlap with [0, N W_0), its point inside; the other points free |
| residual | a sure copy with probability ⌊N W_0⌋ / (N W_0), else one of the rest |

With **ancestor sampling** the reference's own ancestor is drawn too (`lmppl.inference.smc.ancestor`).

References: Andrieu, Doucet and Holenstein, Particle Markov chain Monte Carlo methods (2010);
Chopin and Singh, On particle Gibbs sampling (2015).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.guide import Guide
from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.paths import Node, grown, history, root
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.results.history import History
from lmppl.inference.smc.ancestor import draw_ancestor
from lmppl.inference.smc.particle_filter import SMC, barriers, tokens
from lmppl.random import Chance, draw, fold
from lmppl.types import Floats, Ints, Key
from lmppl.weights import ess, log_mean_exp, normalize

Conditional = Callable[[Floats, Key, Chance], Ints]
LEAST = 1e-300
"""The reference is kept even where its weight underflows."""


# -- resampling, given that slot 0 keeps its ancestor ---------------------------------------------


def _offset(chance: Chance, key: Key, edges: Floats) -> float:
    return float(chance.offsets(np.array([key], dtype=np.uint64), [edges])[0])


def _pick(chance: Chance, key: Key, masses: Floats) -> int:
    with np.errstate(divide="ignore"):
        return draw(chance, key, np.log(masses))


def _invert(weights: Floats, points: Floats) -> Ints:
    """The index whose interval of the cumulative weights holds each point."""
    edges = np.cumsum(weights)
    last = int(np.flatnonzero(weights)[-1])
    found: Ints = np.minimum(np.searchsorted(edges, points * edges[-1], side="right"), last)
    return found


def multinomial(weights: Floats, key: Key, chance: Chance) -> Ints:
    """The others are independent."""
    n = len(weights)
    keys = [fold(key, "conditional", i) for i in range(1, n)]
    edges = np.cumsum(weights) / np.sum(weights)
    u = [_offset(chance, k, edges) for k in keys]
    return np.concatenate([[0], _invert(weights, np.array(u))]).astype(np.int64)


def systematic(weights: Floats, key: Key, chance: Chance) -> Ints:
    """One offset for all, more likely where it gives the reference more offspring."""
    n = len(weights)
    scaled = np.cumsum(weights) / np.sum(weights) * n
    whole, part = divmod(float(scaled[0]), 1.0)
    first = _pick(chance, fold(key, "part"), np.array([part * (whole + 1), (1.0 - part) * whole]))
    low, high = (0.0, part) if first == 0 else (part, 1.0)
    inside = (np.mod(scaled, 1.0) - low) / (high - low)
    u = low + (high - low) * _offset(chance, fold(key, "offset"), inside)
    found = _invert(weights, (np.arange(n) + u) / n)
    found[0] = 0  # it is, up to rounding
    return np.roll(found, -_pick(chance, fold(key, "position"), (found == 0) * 1.0))


def stratified(weights: Floats, key: Key, chance: Chance) -> Ints:
    """The stratum of the reference first, its point inside the reference's share.

    How the weights lie on the strata depends on where they begin, so the reference's place among
    the parents is uniform (the other schemes do not need that: they are the same from any place).
    """
    n = len(weights)
    place = _pick(chance, fold(key, "place"), np.ones(n))
    turned = np.roll(weights, place)
    scaled = np.cumsum(turned) / np.sum(turned) * n
    strata = np.arange(n)
    low = np.maximum(scaled[place - 1] if place else 0.0, strata)
    high = np.minimum(scaled[place], strata + 1.0)
    overlap = np.maximum(high - low, 0.0)
    at = _pick(chance, fold(key, "stratum"), overlap)
    u = np.array([
        (low[i] + high[i]) / 2 - i if i == at else _offset(chance, fold(key, "offset", i), scaled - i)
        for i in range(n)
    ])  # fmt: skip
    found = (_invert(turned, (strata + u) / n) - place) % n
    found[at] = 0  # it is, up to rounding
    return np.roll(found, -at)


def residual(weights: Floats, key: Key, chance: Chance) -> Ints:
    """The reference is one of its sure copies, or one of the rest."""
    n = len(weights)
    expected = weights / np.sum(weights) * n
    copies = np.floor(expected + 1e-12 * n).astype(np.int64)
    left = np.maximum(expected - copies, 0.0)
    rest = n - int(copies.sum())
    found = np.repeat(np.arange(n), copies)
    at = 0
    if rest:
        masses = np.array([float(copies[0]), float(left[0])])
        is_rest = _pick(chance, fold(key, "part"), masses) == 1
        edges = np.cumsum(left)
        u = np.array([
            _offset(chance, fold(key, "rest", i), edges / edges[-1])
            for i in range(rest - is_rest)
        ])  # fmt: skip
        drawn = _invert(left, u) if len(u) else np.zeros(0, dtype=np.int64)
        if is_rest:
            at = len(found)
            drawn = np.concatenate([[0], drawn])
        found = np.concatenate([found, drawn])
    return np.roll(found, -at).astype(np.int64)


CONDITIONAL: dict[str, Conditional] = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
}


# -- the filter ----------------------------------------------------------------------------------


class Swept(NamedTuple):
    """The end of a sweep."""

    heads: list[Node]
    """The finished paths [N]."""
    lw: Floats
    """Their log-weights [N]."""
    history: History

    def told(self, whose: str) -> History:
        """Its barriers, for a chain that kept one of its paths."""
        return self.history.of(whose, [h.trace for h in self.heads], self.lw)


def filter_of(
    particles: int, resampling: str, ess_threshold: float, resample_at: str | tokens,
    guide: object, always: bool,
) -> SMC:  # fmt: skip
    """The checked settings of a filter that may be conditioned."""
    settings = SMC(particles, resampling, ess_threshold, resample_at, guide, always)  # type: ignore[arg-type]
    if particles < 2:
        raise BadArgument(
            "a conditional filter needs at least 2 particles",
            why="with one, the reference is all there is, and the chain never moves",
            fix="write particles=8",
        )
    if resampling not in CONDITIONAL:
        raise BadArgument(
            f"no conditional resampling is known for {resampling!r}",
            fix=f"use one of {', '.join(CONDITIONAL)}",
        )
    return settings


def sweep(
    machine: Machine,
    settings: SMC,
    key: Key,
    reference: Node | None = None,
    *,
    beta: float = 1.0,
    ancestor_sampling: bool = False,
) -> Jobs:
    """One filter around a reference; a plain particle filter where there is none.

    Args:
        machine: the run.
        settings: of the filter.
        key: of this sweep alone.
        reference: the path that is kept.
        beta: the target is q · (γ / q)^beta.
        ancestor_sampling: whether the reference's ancestors are drawn.

    Returns:
        `Swept`.
    """
    n, chance = settings.particles, machine.env.chance
    stop, limit = barriers(settings.resample_at)
    kept = [] if reference is None else history(reference)
    heads = [root(machine, fold(key, "particle", i)) for i in range(n)]
    live: list[Particle | None] = [
        None if kept and i == 0 else machine.fork(h.state, h.state.key, i, frames=False)
        for i, h in enumerate(heads)
    ]
    eves = list(range(n))
    shift = np.zeros(n)
    past, guide = History(n), Guide.of(settings.guide)
    step = 0
    while True:
        # Propagate and reweight
        moving = [(i, p) for i, p in enumerate(live) if p is not None and not p.finished]
        yield from machine.advance([p for _, p in moving], stop, limit)
        step += 1
        for i, p in moving:
            heads[i] = grown(machine, p, heads[i])
        if kept:
            heads[0] = kept[min(step, len(kept) - 1)]
        lw = beta * np.array([h.logw for h in heads]) + shift
        if all(h.state.finished for h in heads):
            break
        states = [h.state for h in heads]
        past.watch(lw, states)
        v = lw
        if guide is not None:
            v = lw + (yield from guide.log_h(machine, states))
        size = ess(v)
        ancestors: Ints | None = None
        threshold = settings.threshold(states)
        if size > 0 and (settings.always or size < threshold * n):
            # Resample
            own = fold(key, "resample", step)
            weights = normalize(v)
            if not kept:
                ancestors = settings.scheme(weights, own, chance)
            else:
                weights[0] = max(weights[0], LEAST)
                ancestors = CONDITIONAL[str(settings.resampling)](weights, own, chance)
                if ancestor_sampling:
                    later = kept[step:]
                    drawn = draw_ancestor(machine, own, heads, lw, later, stop, limit, beta)
                    kept, ancestors[0] = yield from drawn
            live = _offspring(machine, own, heads, live, ancestors, bool(kept))
            level = log_mean_exp(v)
            heads = [heads[a] for a in ancestors.tolist()]
            logw = np.array([h.logw for h in heads])
            shift = lw[ancestors] - v[ancestors] + level - beta * logw
            eves = [eves[a] for a in ancestors.tolist()]
        past.record(size, log_mean_exp(lw), ancestors, eves)
    past.end(lw, eves)
    return Swept(heads, lw, past)


def _offspring(
    machine: Machine, key: Key, heads: Sequence[Node], live: Sequence[Particle | None],
    ancestors: Ints, conditional: bool,
) -> list[Particle | None]:  # fmt: skip
    """The children, whose first one takes the live frame over; slot 0 stays the reference's."""
    born: set[int] = set()
    children: list[Particle | None] = []
    for slot, a in enumerate(ancestors.tolist()):
        if conditional and slot == 0:
            children.append(None)
            continue
        parent = live[a]
        frames = parent is not None and a not in born
        source = heads[a].state if parent is None or not frames else parent
        children.append(machine.fork(source, fold(key, "offspring", slot), slot, frames=frames))
        born.add(a)
    for a, parent in enumerate(live):
        if parent is not None and a not in born:
            parent.strand.kill()
    return children


def chosen(machine: Machine, key: int, swept: Swept) -> Node:
    """A path drawn by the final weights."""
    return swept.heads[draw(machine.env.chance, fold(key, "path"), swept.lw)]
