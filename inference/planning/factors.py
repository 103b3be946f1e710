"""A factored problem with its conventions worked out: what every factored method reads.

Slices 0 … H; a factor of a slice holds its parents and the action, and passes on to one variable of
the next slice, or to none: a reward whose scope fits into no transition's parents gets a factor of
its own. The last slice has rewards alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.planning.mdp import ActionCost, FactoredMDP
from lmppl.inference.planning.tables import Array, Mask, check_horizon


@dataclass(frozen=True)
class Factor:
    """One factor of a slice."""

    parents: tuple[int, ...]
    table: Array | None
    """P(x' | parents, a) as [parents…, A, x'], or none."""
    local: Array
    """The part of the reward that it holds, [parents…, A]."""


@dataclass(frozen=True)
class Factors:
    """A problem of H steps; the first N factors are the transitions of the N variables."""

    sizes: tuple[int, ...]
    factors: tuple[Factor, ...]
    unary: tuple[Array, ...]
    """Rewards of one variable, [size] each."""
    cost: Array
    """[A], subtracted in slices 0 … H-1."""
    allowed: Mask
    """[A]"""
    counts: Array
    """[H + 1] whether the rewards of a slice count."""
    initial: tuple[Array, ...]
    """Law of each variable in slice 0."""
    paid: Array
    """[H] whether the costs of a slice count; 0 in slices that are there for the shape alone."""

    @property
    def horizon(self) -> int:
        """H, the number of actions."""
        return len(self.counts) - 1

    @property
    def span(self) -> float:
        """The largest range of a local reward: the scale of temperatures."""
        parts = [f.local for f in self.factors] + list(self.unary) + [self.cost]
        return max(float(np.ptp(x)) for x in parts) or 1.0


def factors_of(
    mdp: FactoredMDP,
    horizon: int,
    state: Mapping[str, Any] | None = None,
    slices: int | None = None,
) -> Factors:
    """Place every reward: on one variable, in a transition's factor, or in a factor of its own.

    With `slices`, steps in which nothing counts follow, so that all horizons share one shape.
    """
    from lmppl.inference.planning.regroup import with_end

    check_horizon(horizon)
    mdp = with_end(mdp)
    names = list(mdp.states)
    a = len(mdp.actions)
    sizes = tuple(len(v) for v in mdp.states.values())
    parents: list[tuple[int, ...]] = []
    tables: list[Array | None] = []
    for name in names:
        cpt = mdp.transitions[name]
        parents.append(tuple(names.index(p) for p in cpt.parents))
        tables.append(cpt.table)
    locals_ = [np.zeros((*(sizes[i] for i in pa), a)) for pa in parents]
    unary = [np.zeros(s) for s in sizes]
    cost = np.zeros(a)
    for r in mdp.rewards:
        if isinstance(r, ActionCost):
            cost = cost + r.cost
            continue
        scope = tuple(names.index(n) for n in r.scope)
        if len(scope) == 1 and r.table.shape[-1] == 1:
            unary[scope[0]] += r.table[:, 0]
            continue
        home = next((e for e, pa in enumerate(parents) if set(scope) <= set(pa)), None)
        if home is None:
            home = len(parents)
            parents.append(scope)
            tables.append(None)
            locals_.append(np.zeros((*(sizes[i] for i in scope), a)))
        # Bring the axes of the scope into the order of the factor's parents
        order = sorted(range(len(scope)), key=lambda k: parents[home].index(scope[k]))
        moved = np.transpose(r.table, (*order, len(scope)))
        shape = [sizes[i] if i in scope else 1 for i in parents[home]]
        locals_[home] += moved.reshape(*shape, moved.shape[-1])
    penalties(mdp, horizon, names, parents, tables, locals_, sizes)
    long = horizon if slices is None else max(horizon, slices)
    counts = (np.arange(long + 1) <= horizon).astype(float)
    if mdp.timing == "state_action":
        counts[horizon] = 0.0
    if mdp.timing == "successor":
        counts[0] = 0.0
    codes = mdp.codes(mdp.initial if state is None else state)
    return Factors(
        sizes,
        tuple(Factor(*x) for x in zip(parents, tables, locals_, strict=True)),
        tuple(unary),
        cost,
        mdp.allowed,
        counts,
        tuple(np.eye(s)[c] for s, c in zip(sizes, codes, strict=True)),
        (np.arange(long) < horizon).astype(float),
    )


def penalties(
    mdp: FactoredMDP, horizon: int, names: list[str], parents: list[tuple[int, ...]],
    tables: list[Array | None], locals_: list[Array], sizes: tuple[int, ...],
) -> None:  # fmt: skip
    """Masks of states as costs that exceed all that a plan can gain."""
    if not mdp.masks:
        return
    if mdp.timing != "state_action":
        raise BadArgument(
            f"masks of states with timing={mdp.timing!r} have no factored form here",
            why="a penalty of state and action counts where a reward of them does",
            fix='use method="dp", or timing="state_action"',
        )
    gain = [np.ptp(r.cost if isinstance(r, ActionCost) else r.table) for r in mdp.rewards]
    price = 1.0 + horizon * float(sum(gain))
    for m in mdp.masks:
        scope = tuple(names.index(n) for n in m.scope)
        parents.append(scope)
        tables.append(None)
        locals_.append(np.where(m.table, 0.0, -price))
