"""`RecedingHorizon`: plan, act, look, plan again.

Near the end of a run value belief propagation sees steps in which nothing counts: one shape for all
plans, so that the planner compiles once. It can start from the messages of the plan before, shifted by
one action. That takes fewer sweeps, but messages that start cold may rest at a poorer fixed point
(`docs/planning.md` has what it costs), so it is not the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmppl.errors import BadArgument
from lmppl.inference.planning.mcts import OpenMDP
from lmppl.inference.planning.mdp import FactoredMDP, TabularMDP
from lmppl.inference.planning.planner import BY_MESSAGES, Plan, plan
from lmppl.inference.planning.vbp import shifted


@dataclass
class RecedingHorizon:
    """An agent that plans a few actions ahead in every state that it sees.

    Args:
        mdp: the problem.
        lookahead: how many actions each plan has.
        method: of `plan`.
        options: passed to `plan`.
        warm_start: begin from the messages of the plan before (methods that pass messages), at the
            lowest temperature: faster, and often worse.
        replan_every: follow the policy of a plan for this many actions; more than 1 needs a method
            whose policy does not plan again ("dp").
    """

    mdp: TabularMDP | FactoredMDP | OpenMDP
    lookahead: int = 9
    method: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    warm_start: bool = False
    replan_every: int = 1
    last: Plan | None = field(default=None, repr=False)
    """The plan that is followed."""
    _age: int = field(default=0, repr=False)
    _depth: int = field(default=0, repr=False)
    _messages: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.lookahead < 1 or self.replan_every < 1:
            raise BadArgument("needs lookahead ≥ 1 and replan_every ≥ 1")

    def reset(self) -> None:
        """Forget the plan before: a new run begins."""
        self.last, self._age, self._messages = None, 0, None

    def act(self, state: Any, remaining: int | None = None) -> Any:
        """The action in a state, with `remaining` actions to go."""
        depth = self.lookahead if remaining is None else min(self.lookahead, remaining)
        if self.last is not None and self._age < min(self.replan_every, self._depth):
            law = self.last.policy(self._age, state)
            self._age += 1
            return max(law, key=law.__getitem__)
        options = dict(self.options)
        if self.method in BY_MESSAGES and isinstance(self.mdp, FactoredMDP):
            options["slices"] = self.lookahead
            if self.warm_start and self._messages is not None:
                options |= {"start": shifted(self._messages), "anneal": 0}
        self.last = plan(self.mdp, state, depth, self.method, **options)
        self._age, self._depth = 1, depth
        told = self.last.diagnostics
        self._messages = told.get("careful", told).get("messages")
        return self.last.action
