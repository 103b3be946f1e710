"""Planning: the inference that decides. `plan(mdp, state, horizon)` picks an action and a policy.

Pick `plan` if unsure; `inference_value` shows what the other kinds of inference would answer.
"""

from lmppl.inference.planning.mdp import (
    CPT,
    ActionCost,
    FactoredMDP,
    Reward,
    TabularMDP,
)

__all__ = ["CPT", "ActionCost", "FactoredMDP", "Reward", "TabularMDP"]
