"""Allocation: one budget over questions, models and steps. See `docs/stopping.md`."""

from lmppl.inference.allocation.adaptive import Allocated, infer_adaptive
from lmppl.inference.allocation.hops import HopPlan, greedy_hops, hop_table, plan_hops, single_model
from lmppl.inference.allocation.linucb import LinUCB
from lmppl.inference.allocation.neyman import largest_remainder, neyman, sampling_variance
from lmppl.inference.allocation.routing import (
    Clusters,
    Logistic,
    advantage_targets,
    keep_small,
    route,
    take_target,
)
from lmppl.inference.allocation.speculative import Speculated, speculate

__all__ = [
    "Allocated",
    "Clusters",
    "HopPlan",
    "LinUCB",
    "Logistic",
    "Speculated",
    "advantage_targets",
    "greedy_hops",
    "hop_table",
    "infer_adaptive",
    "keep_small",
    "largest_remainder",
    "neyman",
    "plan_hops",
    "route",
    "sampling_variance",
    "single_model",
    "speculate",
    "take_target",
]
