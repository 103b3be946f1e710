"""`plan_policy`: the next reasoning move, planned from runs of a program that moved at random.

A program that reasons in moves records where it stands and what it does:

    deterministic("state", s);  move = sample("move", law(s));  ...;  reward("cost", -0.1)

Under any particle engine its traces are experience. From them comes a small problem, states and moves
by name, next states by frequency, rewards by mean, and its exact plan is a policy for the same
program: routing between models, choosing the next thought, when to stop. A move that was never tried
in a state is not allowed there, so the plan claims nothing that was not seen; its value is that of the
learned tables, and what it earns has to be measured on new questions.

Reference: hierarchical routing and reasoning moves as small decision problems: Sutton, Precup and
Singh, Between MDPs and semi-MDPs (1999).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmppl.distributions import Categorical
from lmppl.errors import BadArgument
from lmppl.inference.planning.mdp import TabularMDP
from lmppl.inference.planning.planner import Plan, plan
from lmppl.inference.results.posterior import Posterior
from lmppl.roles import Utility
from lmppl.trace import Trace

END = "(end)"


@dataclass
class Move:
    """One step of a run: where it stood, what it did, what that earned."""

    state: Any
    move: Any
    reward: float = 0.0


def moves_of(trace: Trace, *, state: str = "state", move: str = "move") -> list[Move]:
    """The steps that a trace records, by the names of its sites."""
    found: list[Move] = []
    at: Any = None
    for entry in trace.sites:
        name = entry.address.rpartition("/")[2].partition("[")[0]
        if name == state:
            at = entry.value
        elif name == move:
            found.append(Move(at, _plain(entry.value)))
        elif isinstance(entry.value, Utility) and found:
            found[-1].reward += float(entry.value)
    return found


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class MovePlan:
    """A policy over moves, and the tables that it was planned on."""

    mdp: TabularMDP
    plan: Plan
    tried: dict[tuple[Any, Any], float] = field(repr=False)
    """How often each move was made in each state."""

    def law(self, t: int, state: Any) -> Categorical:
        """The law of the next move, for `sample("move", ...)`."""
        probs = self.plan.policy(t, state)
        return Categorical({m: p for m, p in probs.items() if p > 0.0})

    @property
    def value(self) -> float:
        """What the plan earns in the learned tables."""
        return self.plan.value


def plan_policy(
    runs: Posterior | Iterable[Posterior],
    *,
    horizon: int | None = None,
    temperature: float = 0.0,
    state: str = "state",
    move: str = "move",
) -> MovePlan:
    """Learn the tables of a moving program from its runs, and plan.

    Args:
        runs: one posterior, or one for each question; traces count by their weights.
        horizon: how many moves; the longest run's when left out.
        temperature: of the policy, in units of the reward.
        state: the name of the `deterministic` site that says where the run stands.
        move: the name of the `sample` site that makes a move.
    """
    posteriors = [runs] if isinstance(runs, Posterior) else list(runs)
    weighted = [
        (float(w) * len(p), moves_of(trace, state=state, move=move))
        for p in posteriors
        for trace, w in zip(p.traces, p.weights, strict=True)
        if w > 0.0
    ]
    steps = [(w, run) for w, run in weighted if run]
    if not steps:
        raise BadArgument(
            f"no trace has a site {move!r}",
            fix=f'write deterministic("{state}", s) and sample("{move}", ...) in the program',
        )
    states = list(dict.fromkeys(m.state for _, run in steps for m in run))
    moves = list(dict.fromkeys(m.move for _, run in steps for m in run))
    names = [*states, END]
    counts = np.zeros((len(names), len(moves), len(names)))
    gains = np.zeros((len(names), len(moves)))
    start = np.zeros(len(names))
    for w, run in steps:
        start[states.index(run[0].state)] += w
        for here, after in zip(run, [*run[1:], None], strict=True):
            i, k = states.index(here.state), moves.index(here.move)
            counts[i, k, -1 if after is None else states.index(after.state)] += w
            gains[i, k] += w * here.reward
    total = counts.sum(axis=-1)
    seen = total > 0
    table = np.where(seen[..., None], counts / np.maximum(total, 1e-300)[..., None], 0.0)
    table[~seen] = np.eye(len(names))[-1]
    mdp = TabularMDP(
        names,
        moves,
        table,
        np.where(seen, gains / np.maximum(total, 1e-300), 0.0),
        allowed=seen | (np.arange(len(names)) == len(names) - 1)[:, None],
        terminal=[END],
        initial=start / start.sum(),
    )
    tried = {(s, m): float(total[i, k]) for i, s in enumerate(states) for k, m in enumerate(moves)}
    long = max(len(run) for _, run in steps) if horizon is None else horizon
    first = names[int(start.argmax())]
    return MovePlan(mdp, plan(mdp, first, long, "dp", temperature=temperature), tried)
