"""Decision problems with finitely many states: one table, or a factored one.

Time runs over states x_0 … x_H and actions a_0 … a_{H-1}: a horizon H counts actions. The utility
is a sum, and which of its terms count is explicit, since the same tables have other optima under
other conventions:

| `timing` | utility |
| --- | --- |
| "state_action" | Σ_{t<H} [R(x_t, a_t) - cost(x_t, a_t)] + final(x_H) |
| "state" | Σ_{t≤H} R(x_t) - Σ_{t<H} cost(x_t, a_t) |
| "successor" | Σ_{1≤t≤H} R(x_t) - Σ_{t<H} cost(x_t, a_t) |

Costs of actions are always kept, and subtracted. In a terminal state the run ends: no action is
taken there and its reward counts once.

Reference: Lázaro-Gredilla, Ku, Murphy and George, What type of inference is planning? (2024).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.planning.parts import CPT, ActionCost, Allowed, Reward
from lmppl.inference.planning.tables import (
    Array,
    Mask,
    check_horizon,
    check_timing,
    find,
    labels,
    law,
    numbers,
    spread,
)

__all__ = [
    "CPT",
    "MOST_STATES",
    "ActionCost",
    "Allowed",
    "FactoredMDP",
    "Reward",
    "Stages",
    "TabularMDP",
]
MOST_STATES = 1 << 14


@dataclass(frozen=True)
class Stages:
    """A problem of H steps with its conventions worked out; every exact method reads this alone.

    A problem with terminal states has one more state, in which nothing happens.
    """

    transition: Array
    """[S, A, S]"""
    reward: Array
    """[H, S, A]"""
    final: Array
    """[S]"""
    allowed: Mask
    """[S, A]"""
    initial: Array
    """[S]"""
    over: Mask
    """[S] where no decision is left: every action is the same there, and one of them is allowed."""

    @property
    def horizon(self) -> int:
        """H, the number of actions."""
        return int(self.reward.shape[0])


@dataclass(frozen=True)
class TabularMDP:
    """A Markov decision process as one table.

    Args:
        states: labels, or how many.
        actions: labels, or how many.
        transition: P(x' | x, a) as [S, A, S].
        reward: [S], or [S, A] with timing "state_action".
        action_cost: [A] or [S, A], subtracted.
        final: reward [S] of the last state; only for timing "state_action".
        timing: see the module's table.
        allowed: [A] or [S, A]; which actions may be taken.
        terminal: labels of the states in which the run ends.
        initial: a label, or a law [S]; the first state by default.

    >>> coin = TabularMDP(2, ["flip", "keep"], [[[.5, .5], [1, 0]], [[.5, .5], [0, 1]]], [0, 1])
    >>> coin.actions, coin.index(1)
    (('flip', 'keep'), 1)
    """

    states: Any
    actions: Any
    transition: Any
    reward: Any
    action_cost: Any = 0.0
    final: Any = 0.0
    timing: str = "state_action"
    allowed: Any = True
    terminal: Sequence[Any] = ()
    initial: Any = None

    def __post_init__(self) -> None:
        """Check shapes and laws; every field becomes an array or a tuple of labels."""
        put = object.__setattr__
        put(self, "states", labels("states", self.states))
        put(self, "actions", labels("actions", self.actions))
        check_timing(self.timing)
        s, a = len(self.states), len(self.actions)
        put(self, "transition", law("transition", self.transition, (s, a, s)))
        reward = numbers("reward", self.reward)
        if reward.shape == (s, a) and self.timing != "state_action":
            raise BadArgument(
                f"timing={self.timing!r} takes a reward of states alone, got [S, A] = {reward.shape}",
                why="an action is taken between two states, so R(x, a) has no one state to count in",
                fix='give R(x) as reward and the rest as action_cost, or timing="state_action"',
            )
        shaped = reward[:, None] if reward.shape == (s,) else reward
        put(self, "reward", spread("reward", shaped, (s, a), "[S] or [S, A]"))
        cost = numbers("action_cost", self.action_cost)
        put(self, "action_cost", spread("action_cost", cost, (s, a), "[A] or [S, A]"))
        final = numbers("final", self.final)
        if self.timing != "state_action" and np.any(final != 0):
            raise BadArgument(
                f"final counts the last state twice with timing={self.timing!r}",
                fix="leave final out: the reward of the last state is in the sum already",
            )
        put(self, "final", spread("final", final, (s,), "[S]"))
        mask = spread("allowed", np.asarray(self.allowed, bool), (s, a), "[A] or [S, A]")
        if not mask.any(axis=1).all():
            at = self.states[int(np.argmin(mask.any(axis=1)))]
            raise BadArgument(
                f"no action is allowed in state {at!r}",
                fix="allow one, or list the state as terminal",
            )
        put(self, "allowed", mask)
        put(self, "terminal", tuple(self.states[self.index(x)] for x in self.terminal))
        put(self, "initial", self.law_of(self.states[0] if self.initial is None else self.initial))

    def index(self, state: Any) -> int:
        """The number of a state by its label."""
        return find("state", state, self.states)

    def law_of(self, state: Any) -> Array:
        """A state as a law over states; a law is checked."""
        try:
            known = state in self.states
        except ValueError:  # an array compares entry by entry
            known = False
        if known:
            return self._sure(self.states.index(state))
        if isinstance(state, np.ndarray | list):
            return law("initial", state, (len(self.states),))
        return self._sure(self.index(state))

    def _sure(self, at: int) -> Array:
        first = np.zeros(len(self.states))
        first[at] = 1.0
        return first

    def stages(self, horizon: int, state: Any = None) -> Stages:
        """The problem of `horizon` actions from `state`, by the module's table."""
        check_horizon(horizon)
        s, a = len(self.states), len(self.actions)
        each = np.empty((horizon, s, a))
        each[:] = self.reward - self.action_cost
        final = (self.final if self.timing == "state_action" else self.reward[:, 0]).copy()
        if self.timing == "successor":
            each[0] -= self.reward
        start = self.initial if state is None else self.law_of(state)
        over = np.zeros(s, bool)
        if not self.terminal:
            return Stages(self.transition, each, final, self.allowed, start, over)
        over[[self.index(x) for x in self.terminal]] = True
        moves = np.zeros((s + 1, a, s + 1))
        moves[:s, :, :s] = self.transition
        moves[:s][over] = 0.0
        moves[np.append(over, True), :, s] = 1.0
        each[:, over] = final[over][None, :, None]
        if self.timing == "successor":
            each[0, over] = 0.0
        only = np.append(self.allowed, np.zeros((1, a), bool), axis=0)
        only[np.append(over, True)] = np.arange(a) == 0
        return Stages(
            moves,
            np.append(each, np.zeros((horizon, 1, a)), axis=1),
            np.append(final, 0.0),
            only,
            np.append(start, 0.0),
            np.append(over, True),
        )


@dataclass(frozen=True)
class FactoredMDP:
    """A Markov decision process over several variables, P(x' | x, a) = Π_e P_e(x'_e | x_pa(e), a).

    Args:
        states: variable -> labels, or how many values.
        actions: labels of the joint action, or how many.
        transitions: variable -> `CPT`.
        rewards: `Reward` and `ActionCost`, summed.
        timing: see the module's table.
        allowed: [A]; which actions may be taken.
        initial: variable -> label; the first value of each by default.
        masks: `Allowed`; a table obeys them exactly, the factored methods by a penalty that no
            plan can earn back.
        terminal: partial assignments, `{"at": "goal"}`; the run ends in a state that fits one.
        one_hot: groups of flags of which at most one is on; each becomes one variable, since
            positions coded by flags defeat every factored method.

    >>> light = FactoredMDP({"on": 2}, ["wait", "press"],
    ...     {"on": CPT(["on"], [[[1, 0], [0, 1]], [[0, 1], [1, 0]]])}, [Reward(["on"], [0, 1])])
    >>> light.flat().states
    ((0,), (1,))
    """

    states: Mapping[str, Any]
    actions: Any
    transitions: Mapping[str, CPT]
    rewards: Sequence[Reward | ActionCost] = ()
    timing: str = "state_action"
    allowed: Any = True
    initial: Mapping[str, Any] = field(default_factory=dict)
    masks: Sequence[Allowed] = ()
    terminal: Sequence[Any] = ()
    one_hot: Sequence[Sequence[str]] = ()
    joined: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Variables that were made of others, and of which."""

    def __post_init__(self) -> None:
        """Check every table against the variables that it names."""
        put = object.__setattr__
        check_timing(self.timing)
        put(self, "states", {k: labels(f"states[{k!r}]", v) for k, v in self.states.items()})
        put(self, "actions", labels("actions", self.actions))
        a = len(self.actions)
        names = list(self.states)
        if missing := sorted(set(names) ^ set(self.transitions)):
            raise BadArgument(
                f"variables and transitions differ: {', '.join(missing)}",
                fix="give one CPT for each variable; one that never changes has an identity table",
            )
        tables = {}
        for name in names:
            cpt = self.transitions[name]
            dims = self._dims(f"transition of {name!r}", cpt.parents)
            table = numbers(f"transition of {name!r}", cpt.table)
            if table.ndim == len(dims) + 1:
                table = np.repeat(table[..., None, :], a, axis=-2)
            shape = (*dims, a, len(self.states[name]))
            tables[name] = CPT(tuple(cpt.parents), law(f"transition of {name!r}", table, shape))
        put(self, "transitions", tables)
        rewards: list[Reward | ActionCost] = []
        for r in self.rewards:
            if isinstance(r, ActionCost):
                cost = spread("ActionCost", numbers("ActionCost", r.cost), (a,), "[A]")
                rewards.append(ActionCost(cost))
                continue
            dims = self._dims("reward", r.scope)
            table = numbers(f"reward of {', '.join(r.scope)}", r.table)
            if table.shape == dims:
                table = table[..., None]
            elif table.shape != (*dims, 1) and self.timing != "state_action":
                raise BadArgument(
                    f"timing={self.timing!r} takes rewards of states alone, got {table.shape}",
                    fix='write the part of the action as ActionCost, or timing="state_action"',
                )
            if table.shape not in ((*dims, 1), (*dims, a)):
                raise BadArgument(
                    f"reward of {', '.join(r.scope)}: expected {dims} or {(*dims, a)}, got {table.shape}"
                )
            rewards.append(Reward(tuple(r.scope), table))
        put(self, "rewards", tuple(rewards))
        mask = spread("allowed", np.asarray(self.allowed, bool), (a,), "[A]")
        if not mask.any():
            raise BadArgument("no action is allowed", fix="allow at least one")
        put(self, "allowed", mask)
        masks = []
        for m in self.masks:
            dims = self._dims("mask", m.scope)
            table = spread("mask", np.asarray(m.table, bool), (*dims, a), "[scope…, A]")
            masks.append(Allowed(tuple(m.scope), table))
        put(self, "masks", tuple(masks))
        put(self, "terminal", tuple(self._where(t) for t in self.terminal))
        put(self, "joined", dict(self.joined))
        put(self, "initial", self.full(self.initial))
        if self.one_hot:
            from lmppl.inference.planning.regroup import one_hot

            made = one_hot(replace(self, one_hot=()), self.one_hot)
            for name in self.__dataclass_fields__:
                put(self, name, getattr(made, name))

    def merge(self, variables: Sequence[str], name: str | None = None) -> FactoredMDP:
        """The same problem with one variable of several, whose labels are tuples."""
        from lmppl.inference.planning.regroup import merged

        return merged(self, {name or "+".join(variables): tuple(variables)})

    def _where(self, given: Any) -> Reward:
        """A partial assignment as a table of zeros and ones."""
        if isinstance(given, Reward):
            dims = self._dims("terminal", given.scope)
            table = np.asarray(given.table, float)
            return Reward(
                tuple(given.scope), spread("terminal", table.reshape(*dims, 1), (*dims, 1), "")
            )
        if not isinstance(given, Mapping):
            raise BadArgument(
                f"terminal needs partial assignments, got {type(given).__name__}",
                fix='write terminal=[{"at": "goal"}]',
            )
        dims = self._dims("terminal", tuple(given))
        table = np.zeros((*dims, 1))
        table[tuple(find(f"value of {k!r}", v, self.states[k]) for k, v in given.items())] = 1.0
        return Reward(tuple(given), table)

    def _dims(self, where: str, scope: Sequence[str]) -> tuple[int, ...]:
        for name in scope:
            find(f"variable in the {where}", name, tuple(self.states))
        return tuple(len(self.states[name]) for name in scope)

    def full(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """An assignment with the first value where none is given; members of groups are joined."""
        state = dict(state)
        for name, members in self.joined.items():
            if name not in state and any(m in state for m in members):
                base = self.initial[name] if name in self.initial else self.states[name][0]
                parts = dict(zip(members, base, strict=True))
                state[name] = tuple(state.get(m, v) for m, v in parts.items())
            for m in members:
                state.pop(m, None)
        for name in state:
            find("variable", name, tuple(self.states))
        return {
            k: v[find(f"value of {k!r}", state[k], v)] if k in state else v[0]
            for k, v in self.states.items()
        }

    def codes(self, state: Mapping[str, Any]) -> tuple[int, ...]:
        """The number of each variable's value."""
        full = self.full(state)
        return tuple(v.index(full[k]) for k, v in self.states.items())

    @property
    def size(self) -> int:
        """How many joint states."""
        return int(np.prod([len(v) for v in self.states.values()], dtype=object))

    def flat(self) -> TabularMDP:
        """The same problem as one table; its states are tuples of labels. It is made once."""
        return self._flat

    @functools.cached_property
    def _flat(self) -> TabularMDP:
        from lmppl.inference.planning.flat import flat

        return flat(self)
