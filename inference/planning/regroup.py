"""Other variables for the same problem: joint variables, one-hot groups, an end of the run.

* `merged(mdp, groups)`: the variables of a group become one, with tuples as labels. Belief
  propagation and the linear bound ignore correlations between the parents of a factor; between
  members of one variable there is nothing left to ignore.
* one-hot groups are merged into the tuples that can occur: k positions become k + 1 labels, not 2^k.
* `with_end(mdp)`: terminal states as a variable of their own, for the methods that read factors.

Reference: cluster variables: Pearl, Probabilistic reasoning in intelligent systems (1988), 4.4.1.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lmppl.errors import BadArgument, excerpt
from lmppl.inference.planning.mdp import CPT, ActionCost, Allowed, FactoredMDP, Reward
from lmppl.inference.planning.tables import Array, find

MOST_ENTRIES = 1 << 22
END = "(end)"


def merged(mdp: FactoredMDP, groups: Mapping[str, Sequence[str]]) -> FactoredMDP:
    """The same problem with joint variables: new name -> the names that it joins."""
    return _Groups(mdp, groups, {}).problem()


def one_hot(mdp: FactoredMDP, groups: Sequence[Sequence[str]]) -> FactoredMDP:
    """The same problem with each group of flags, at most one of them on, as one variable."""
    names = {"|".join(g): tuple(g) for g in groups}
    known: dict[str, list[tuple[int, ...]]] = {}
    for name, members in names.items():
        for m in members:
            find("variable", m, tuple(mdp.states))
            if len(mdp.states[m]) != 2:
                raise BadArgument(
                    f"{m!r} has {len(mdp.states[m])} values: a one-hot group has flags"
                )
        known[name] = [tuple(r) for r in np.eye(len(members), dtype=int).tolist()]
        known[name].append((0,) * len(members))
    return _Groups(mdp, names, known).problem()


class _Groups:
    """The new variables, and where the old ones went."""

    def __init__(
        self,
        mdp: FactoredMDP,
        groups: Mapping[str, Sequence[str]],
        known: Mapping[str, list[tuple[int, ...]]],
    ) -> None:
        self.mdp = mdp
        self.home: dict[str, tuple[str, int]] = {}
        self.rows: dict[str, Array] = {}
        for new, members in groups.items():
            if len(members) < 1 or len(set(members)) < len(members):
                raise BadArgument(
                    f"group {new!r} needs different variables", value=excerpt(members)
                )
            for j, m in enumerate(members):
                find("variable", m, tuple(mdp.states))
                if m in self.home:
                    raise BadArgument(f"variable {m!r} is in two groups")
                self.home[m] = (new, j)
            sizes = [range(len(mdp.states[m])) for m in members]
            self.rows[new] = np.array(known.get(new) or list(itertools.product(*sizes)))
        self.members = {n: tuple(m) for n, m in groups.items()}
        self.names = list(dict.fromkeys(self.home.get(v, (v, 0))[0] for v in mdp.states))

    def size(self, name: str) -> int:
        return len(self.rows[name]) if name in self.rows else len(self.mdp.states[name])

    def scope(self, old: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.home.get(v, (v, 0))[0] for v in old))

    def read(self, old: Sequence[str], table: Array, scope: Sequence[str]) -> Array:
        """A table over old variables, as one over the new variables of a scope."""
        shape = tuple(self.size(v) for v in scope)
        if (
            np.prod(shape, dtype=object) * np.prod(table.shape[len(old) :], dtype=object)
            > MOST_ENTRIES
        ):
            raise BadArgument(
                f"a table over {', '.join(scope)} has too many entries",
                value=f"shape {shape}",
                fix="merge fewer variables",
            )
        grid = np.indices(shape).reshape(len(shape), int(np.prod(shape)))
        at: list[Any] = []
        for v in old:
            new, j = self.home.get(v, (v, -1))
            code = grid[scope.index(new)]
            at.append(code if j < 0 else self.rows[new][code, j])
        found = table[tuple(at)] if at else np.repeat(table[None], grid.shape[1], axis=0)
        return np.asarray(found.reshape(*shape, *table.shape[len(old) :]))

    def labels(self, name: str) -> tuple[Any, ...]:
        if name not in self.rows:
            return tuple(self.mdp.states[name])
        own = [self.mdp.states[m] for m in self.members[name]]
        return tuple(tuple(o[c] for o, c in zip(own, row, strict=True)) for row in self.rows[name])

    def cpt(self, name: str) -> CPT:
        if name not in self.rows:
            cpt = self.mdp.transitions[name]
            scope = self.scope(cpt.parents)
            return CPT(scope, self.read(cpt.parents, cpt.table, scope))
        parts = [self.mdp.transitions[m] for m in self.members[name]]
        scope = self.scope([p for cpt in parts for p in cpt.parents])
        table: Any = 1.0
        for j, cpt in enumerate(parts):
            table = table * self.read(cpt.parents, cpt.table, scope)[..., self.rows[name][:, j]]
        off = np.abs(table.sum(axis=-1) - 1.0)
        if off.max() > 1e-6:
            at = [int(i) for i in np.unravel_index(int(off.argmax()), off.shape)]
            where = {v: self.labels(v)[i] for v, i in zip(scope, at[:-1], strict=True)}
            raise BadArgument(
                f"{', '.join(self.members[name])} can be on together",
                where=f"after {excerpt(where)}, action {self.mdp.actions[at[-1]]!r}",
                value=f"probability of two or more: {off.max():g}",
                fix="it is no one-hot group: merge(variables) keeps every combination",
            )
        return CPT(scope, table)

    def problem(self) -> FactoredMDP:
        mdp = self.mdp
        rewards: list[Reward | ActionCost] = []
        for r in mdp.rewards:
            if isinstance(r, ActionCost):
                rewards.append(r)
            else:
                scope = self.scope(r.scope)
                table = self.read(r.scope, r.table, scope)
                rewards.append(Reward(scope, table[..., 0] if table.shape[-1] == 1 else table))
        codes = {v: mdp.states[v].index(mdp.initial[v]) for v in mdp.states}
        initial = {}
        for name in self.names:
            if name in self.rows:
                row = [codes[m] for m in self.members[name]]
                found = np.flatnonzero((self.rows[name] == row).all(axis=1))
                if not len(found):
                    raise BadArgument(
                        f"the first state has several of {', '.join(self.members[name])} on",
                        fix="it is no one-hot group",
                    )
                initial[name] = self.labels(name)[int(found[0])]
            else:
                initial[name] = mdp.initial[name]
        return FactoredMDP(
            {n: self.labels(n) for n in self.names},
            mdp.actions,
            {n: self.cpt(n) for n in self.names},
            rewards,
            timing=mdp.timing,
            allowed=mdp.allowed,
            initial=initial,
            masks=[
                Allowed(self.scope(m.scope), self.read(m.scope, m.table, self.scope(m.scope)))
                for m in mdp.masks
            ],
            terminal=[
                Reward(
                    self.scope(t.scope), self.read(t.scope, t.table, self.scope(t.scope))[..., 0]
                )
                for t in mdp.terminal
            ],
            joined={**mdp.joined, **self.members},
        )


def with_end(mdp: FactoredMDP) -> FactoredMDP:
    """Terminal states as a flag: set one step after such a state, and nothing counts from there.

    In a terminal state itself a reward of states counts once, under the timings that count states;
    no action is taken there, so rewards of actions and costs do not.
    """
    if not mdp.terminal:
        return mdp
    if mdp.timing != "state_action" and any(isinstance(r, ActionCost) for r in mdp.rewards):
        raise BadArgument(
            f"terminal states with action costs and timing={mdp.timing!r} have no factored form here",
            why="whether a cost is paid depends on the state, and such a reward counts by its timing",
            fix='use method="dp", or timing="state_action"',
        )
    over_scope = tuple(dict.fromkeys(v for t in mdp.terminal for v in t.scope))
    over = np.zeros(tuple(len(mdp.states[v]) for v in over_scope), bool)
    for t in mdp.terminal:
        axes = [over_scope.index(v) for v in t.scope]
        order = np.argsort(axes)
        shape = [len(mdp.states[v]) if v in t.scope else 1 for v in over_scope]
        over |= np.transpose(t.table[..., 0] > 0, order).reshape(shape)
    a = len(mdp.actions)
    ended = np.stack([over, np.ones_like(over)], axis=-1).astype(float)
    law = np.stack([1.0 - ended, ended], axis=-1)
    live = 1.0 - ended
    rewards: list[Reward | ActionCost] = []
    for r in mdp.rewards:
        if isinstance(r, ActionCost):
            rewards.append(Reward((*over_scope, END), -live[..., None] * r.cost))
        elif mdp.timing == "state_action":
            scope = (*dict.fromkeys((*r.scope, *over_scope)), END)
            rewards.append(Reward(scope, _times(mdp, scope, r.scope, r.table, over_scope, live, a)))
        else:
            # the flag alone: the terminal state's own reward still counts
            rewards.append(
                Reward((*r.scope, END), np.stack([r.table[..., 0], 0 * r.table[..., 0]], -1))
            )
    return replace(
        mdp,
        states={**mdp.states, END: (False, True)},
        transitions={
            **mdp.transitions,
            END: CPT((*over_scope, END), np.repeat(law[..., None, :], a, -2)),
        },
        rewards=rewards,
        initial={**mdp.initial, END: False},
        terminal=(),
    )


def _times(
    mdp: FactoredMDP, scope: Sequence[str], r_scope: Sequence[str], table: Array,
    o_scope: Sequence[str], live: Array, a: int,
) -> Array:  # fmt: skip
    sizes = [2 if v == END else len(mdp.states[v]) for v in scope]
    grid = np.indices(sizes).reshape(len(sizes), -1)
    r = np.broadcast_to(table, (*table.shape[:-1], a))[tuple(grid[scope.index(v)] for v in r_scope)]
    on = live[tuple(grid[scope.index(v)] for v in (*o_scope, END))]
    return np.asarray((r * on[:, None]).reshape(*sizes, a))
