"""Published ways of thinking in graphs, as short compositions of `lmppl.graphs.graph`.

Each is a function called inside a program: its nodes are sites of that program, so any language
model and any engine serve, and the result is a posterior with an evidence and a ledger. If unsure:
`agot` for questions of unknown difficulty, `fast_slow` where answers can be checked, `map_reduce`
and `fork_join` where the parts are known.
"""

from lmppl.graphs.methods.adaptive import Limits, agot
from lmppl.graphs.methods.blackboard import Line, blackboard
from lmppl.graphs.methods.debate import debate, majority
from lmppl.graphs.methods.fast_slow import Answer, Card, fast_slow
from lmppl.graphs.methods.fork_join import fork_join, transcript, weave
from lmppl.graphs.methods.lm_steps import LMSteps
from lmppl.graphs.methods.map_reduce import map_reduce
from lmppl.graphs.methods.operations import Operations, Thought
from lmppl.graphs.methods.parallel_tools import (
    Call,
    Ref,
    Traced,
    divide_then_aggregate,
    run_dag,
    traced,
    tree_to_dag,
)
from lmppl.graphs.methods.proposals import Task, parse_tasks, propose, task_regex, task_schema
from lmppl.graphs.methods.tool_dag import Step, run_plan, steps_of
from lmppl.graphs.methods.tools import use
from lmppl.graphs.methods.tree import tree_of_thoughts

__all__ = [
    "Answer",
    "Call",
    "Card",
    "LMSteps",
    "Limits",
    "Line",
    "Operations",
    "Ref",
    "Step",
    "Task",
    "Thought",
    "Traced",
    "agot",
    "blackboard",
    "debate",
    "divide_then_aggregate",
    "fast_slow",
    "fork_join",
    "majority",
    "map_reduce",
    "parse_tasks",
    "propose",
    "run_dag",
    "run_plan",
    "steps_of",
    "task_regex",
    "task_schema",
    "traced",
    "transcript",
    "tree_of_thoughts",
    "tree_to_dag",
    "use",
    "weave",
]
