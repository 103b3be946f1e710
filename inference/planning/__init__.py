"""Planning: the inference that decides. `plan(mdp, state, horizon)` picks an action and a policy.

Pick `plan` if unsure; `inference_value` shows what the other kinds of inference would answer.
"""

from lmppl.inference.planning.bounded import infer_goal_and_budget, level_k
from lmppl.inference.planning.kinds import inference_value
from lmppl.inference.planning.language import LanguageCPT, fill, propose, text_problem
from lmppl.inference.planning.mcts import OpenMDP
from lmppl.inference.planning.mdp import CPT, ActionCost, Allowed, FactoredMDP, Reward, TabularMDP
from lmppl.inference.planning.moves import plan_policy
from lmppl.inference.planning.planner import NotConverged, Plan, plan
from lmppl.inference.planning.programs import Decision, Planned, Planning
from lmppl.inference.planning.rddl import from_rddl
from lmppl.inference.planning.receding import RecedingHorizon
from lmppl.inference.planning.results import as_dataset
from lmppl.inference.planning.steps import compile_step

__all__ = [
    "CPT",
    "ActionCost",
    "Allowed",
    "Decision",
    "FactoredMDP",
    "LanguageCPT",
    "NotConverged",
    "OpenMDP",
    "Plan",
    "Planned",
    "Planning",
    "RecedingHorizon",
    "Reward",
    "TabularMDP",
    "as_dataset",
    "compile_step",
    "fill",
    "from_rddl",
    "infer_goal_and_budget",
    "inference_value",
    "level_k",
    "plan",
    "plan_policy",
    "propose",
    "text_problem",
]
