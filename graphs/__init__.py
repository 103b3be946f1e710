"""Structure over programs: ancestry of particles, graphs of thoughts."""

from lmppl.graphs.budget import Budget
from lmppl.graphs.graph import Thoughts, graph
from lmppl.graphs.node import Failed, Node, NodeFailed, Spawn, first
from lmppl.graphs.record import GraphRecord, NodeRecord, thought_graph, thought_graphs

__all__ = [
    "Budget",
    "Failed",
    "GraphRecord",
    "Node",
    "NodeFailed",
    "NodeRecord",
    "Spawn",
    "Thoughts",
    "first",
    "graph",
    "thought_graph",
    "thought_graphs",
]
