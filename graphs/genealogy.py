"""Who descends from whom in a particle run: ancestry, coalescence, a picture, a networkx graph.

Everything takes plain arrays. `steps[t]` says what happened at barrier t: None where nothing was
resampled, else the parent of each particle [N]. A run of T barriers has T + 1 populations; the
last one holds the final particles.

    ancestors[T] = 0 … N - 1        ancestors[t] = parent_t[ancestors[t + 1]]

A path-degenerate run has few distinct ancestors far back: its estimates about early sites rest on
that few particles. How fast this happens: Jacob, Murray and Rubenthaler, Path storage in the
particle filter (2015); N particles of equal weight coalesce in O(N log N) resamplings.

>>> steps = [np.array([0, 0, 2]), None, np.array([0, 1, 1])]
>>> unique_ancestors(steps, 3).tolist()
[1, 2, 2, 3]
>>> coalescence_time(steps, 3)
3
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from lmppl.arguments import as_array, check_integers, check_numbers
from lmppl.errors import BadArgument, excerpt, items_of
from lmppl.types import Bools, Floats, Ints

Steps: TypeAlias = Sequence[Ints | None]

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
OTHER = "#666666"
MOST_ROWS, MOST_COLUMNS = 96, 48
"""A picture with more particles or resamplings than these merges neighbours."""


def _parents(steps: Steps, particles: int) -> list[Ints | None]:
    """The steps as checked integer arrays."""
    check_integers("a genealogy", particles=particles)
    steps = items_of(steps, "a genealogy is a list of parents", "give history.ancestors")
    found: list[Ints | None] = []
    for t, step in enumerate(steps):
        if step is None:
            found.append(None)
            continue
        a = np.asarray(step)
        if a.shape != (particles,) or a.dtype.kind not in "iu":
            raise BadArgument(
                f"the parents at barrier {t} are not {particles} integers",
                value=f"shape {a.shape}, {a.dtype}",
                fix="give one parent per particle, or None where nothing was resampled",
            )
        if a.min() < 0 or a.max() >= particles:
            raise BadArgument(
                f"a parent at barrier {t} is no particle of 0 … {particles - 1}",
                value=excerpt(a.tolist()),
            )
        found.append(a.astype(np.int64))
    return found


def ancestors(steps: Steps, particles: int) -> Ints:
    """The ancestor in every population of every final particle [T + 1, N]."""
    parents = _parents(steps, particles)
    out = np.empty((len(parents) + 1, particles), dtype=np.int64)
    out[-1] = np.arange(particles)
    for t in range(len(parents) - 1, -1, -1):
        step = parents[t]
        out[t] = out[t + 1] if step is None else step[out[t + 1]]
    return out


def unique_ancestors(steps: Steps, particles: int, weights: Floats | None = None) -> Ints:
    """How many distinct ancestors the final particles have in each population [T + 1].

    With `weights` only final particles of positive weight count.
    """
    lines = ancestors(steps, particles)[:, _alive(weights, particles)]
    return np.array([len(np.unique(row)) for row in lines], dtype=np.int64)


def coalescence_time(steps: Steps, particles: int, weights: Floats | None = None) -> int | None:
    """Barriers back from the end to the most recent common ancestor of all final particles.

    None where even the first population holds more than one ancestor (or nobody is alive).
    """
    one = np.flatnonzero(unique_ancestors(steps, particles, weights) == 1)
    return None if len(one) == 0 else len(steps) - int(one[-1])


def _alive(weights: Floats | None, particles: int) -> Bools:
    if weights is None:
        return np.ones(particles, dtype=np.bool_)
    w = as_array("a genealogy", weights=weights)
    if w.shape != (particles,):
        raise BadArgument(
            f"expected {particles} weights, got shape {w.shape}", fix="give one per particle"
        )
    return np.asarray(w > 0)


def to_networkx(steps: Steps, particles: int, weights: Floats | None = None) -> Any:
    """The genealogy as a `networkx.DiGraph`, edges from parent to child.

    Nodes are (population, particle). Every node has `survives`, whether a final particle (of
    positive weight, when `weights` are given) descends from it; final nodes have `weight`.
    """
    import networkx

    parents, alive = _parents(steps, particles), _alive(weights, particles)
    lines = ancestors(steps, particles)
    graph = networkx.DiGraph()
    for t in range(len(parents) + 1):
        kept = set(lines[t, alive].tolist())
        graph.add_nodes_from(((t, i), {"survives": i in kept}) for i in range(particles))
    for t, step in enumerate(parents):
        of = range(particles) if step is None else step.tolist()
        graph.add_edges_from(((t, a), (t + 1, i)) for i, a in enumerate(of))
    if weights is not None:
        for i, w in enumerate(np.asarray(weights).tolist()):
            graph.nodes[len(parents), i]["weight"] = w
    return graph


def genealogy_svg(
    steps: Steps,
    particles: int,
    weights: Floats | None = None,
    *,
    width: int = 640,
    height: int = 220,
) -> str:
    """The genealogy as an SVG picture, time from left to right.

    One column per resampling. Lines of final particles are coloured by their first ancestor and
    as thick as the weight they carry; lines that died out are grey. Large runs are thinned: columns
    are left out (lines between the kept ones are exact), neighbouring particles share a row.
    """
    check_numbers("genealogy_svg", above=0.0, width=width, height=height)
    final = ancestors(steps, particles)
    w = np.full(particles, 1.0) if weights is None else as_array("genealogy_svg", weights=weights)
    alive = _alive(w, particles)
    w = w / w.sum() if alive.any() else w
    # populations 0, just after each resampling, and the last one
    times = sorted({0, len(steps)} | {t + 1 for t, s in enumerate(steps) if s is not None})
    if len(times) > MOST_COLUMNS:
        keep = np.linspace(0, len(times) - 1, MOST_COLUMNS).round().astype(int)
        times = [times[k] for k in keep]
    rows = min(particles, MOST_ROWS)
    radius = 2.5 if rows <= 48 else 1.5
    left, right, top, bottom = 8.0, 22.0, 8.0, 20.0
    gap = (width - left - right) / max(len(times) - 1, 1)

    def x(column: int) -> float:
        return round(left + gap * column, 1)

    def y(particle: int) -> float:
        row = particle * rows // particles
        return round(top + (height - top - bottom) * (row + 0.5) / rows, 1)

    mass: dict[int, float] = {}
    for i in np.flatnonzero(alive).tolist():
        mass[int(final[0, i])] = mass.get(int(final[0, i]), 0.0) + float(w[i])
    colour = {e: OTHER for e in mass}
    colour.update(zip(sorted(mass, key=lambda e: -mass[e]), COLOURS, strict=False))

    faint: set[str] = set()
    lines: dict[tuple[str, float], set[str]] = {}
    for c in range(len(times) - 1):
        a, b = times[c], times[c + 1]
        for child, parent in enumerate(_between(steps, particles, a, b).tolist()):
            faint.add(f"M{x(c)} {y(parent)}L{x(c + 1)} {y(child)}")
        carried: dict[tuple[int, int, int], float] = {}
        for i in np.flatnonzero(alive).tolist():
            key = int(final[a, i]), int(final[b, i]), int(final[0, i])
            carried[key] = carried.get(key, 0.0) + float(w[i])
        for (parent, child, eve), share in carried.items():
            x0, x1, y0, y1 = x(c), x(c + 1), y(parent), y(child)
            mid = round((x0 + x1) / 2, 1)
            thick = math.ceil(8 * math.sqrt(share)) / 2
            lines.setdefault((colour[eve], thick), set()).add(
                f"M{x0} {y0}C{mid} {y0} {mid} {y1} {x1} {y1}"
            )
    parts = [f'<path d="{"".join(sorted(faint))}" stroke="#999" stroke-opacity=".25"/>']
    parts += [
        f'<path d="{"".join(sorted(d))}" stroke="{hue}" stroke-width="{thick}" stroke-opacity=".8"/>'
        for (hue, thick), d in sorted(lines.items())
    ]
    end = x(len(times) - 1)
    for i in np.flatnonzero(alive).tolist():
        size = radius * (0.6 + 2.0 * math.sqrt(float(w[i])))
        hue = colour[int(final[0, i])]
        parts.append(f'<circle cx="{end}" cy="{y(i)}" r="{size:.1f}" fill="{hue}" stroke="none"/>')
    say = f"{particles} particles, {sum(s is not None for s in steps)} resamplings, {len(mass)} first ancestors left"
    label = 'font-size="10" fill="currentColor" fill-opacity=".7" stroke="none"'
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" fill="none" '
        f'role="img" aria-label="{say}" style="max-width:100%"><title>{say}</title>{"".join(parts)}'
        f'<text x="{left}" y="{height - 5}" {label}>start</text>'
        f'<text x="{width - right + 8}" y="{height - 5}" text-anchor="end" {label}>end: {say}</text></svg>'
    )


def _between(steps: Steps, particles: int, a: int, b: int) -> Ints:
    """The ancestor in population a of each particle of population b."""
    line = np.arange(particles)
    for step in reversed(steps[a:b]):
        if step is not None:
            line = np.asarray(step)[line]
    return line
