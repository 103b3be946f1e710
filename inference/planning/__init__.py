"""Planning: the inference that decides. `plan(mdp, state, horizon)` picks an action and a policy.

Pick `plan` if unsure; `inference_value` shows what the other kinds of inference would answer.
"""

from lmppl.inference.planning.kinds import inference_value
from lmppl.inference.planning.mdp import CPT, ActionCost, FactoredMDP, Reward, TabularMDP
from lmppl.inference.planning.planner import NotConverged, Plan, RecedingHorizon, plan

__all__ = [
    "CPT",
    "ActionCost",
    "FactoredMDP",
    "NotConverged",
    "Plan",
    "RecedingHorizon",
    "Reward",
    "TabularMDP",
    "inference_value",
    "plan",
]
