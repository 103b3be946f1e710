"""Planning: the inference that decides. `plan(mdp, state, horizon)` picks an action and a policy.

Pick `plan` if unsure; `inference_value` shows what the other kinds of inference would answer.
"""

from lmppl.inference.planning.kinds import inference_value
from lmppl.inference.planning.mdp import CPT, ActionCost, Allowed, FactoredMDP, Reward, TabularMDP
from lmppl.inference.planning.planner import NotConverged, Plan, RecedingHorizon, plan
from lmppl.inference.planning.programs import Decision, Planned, Planning
from lmppl.inference.planning.rddl import from_rddl
from lmppl.inference.planning.steps import compile_step

__all__ = [
    "CPT",
    "ActionCost",
    "Allowed",
    "Decision",
    "FactoredMDP",
    "NotConverged",
    "Plan",
    "Planned",
    "Planning",
    "RecedingHorizon",
    "Reward",
    "TabularMDP",
    "compile_step",
    "from_rddl",
    "inference_value",
    "plan",
]
