"""Structure over programs: ancestry of particles, graphs of thoughts."""

from lmppl.graphs.budget import Budget
from lmppl.graphs.graph import Thoughts, graph
from lmppl.graphs.node import Failed, Node, NodeFailed, Spawn, first
from lmppl.graphs.record import GraphRecord, NodeRecord, thought_graph, thought_graphs
from lmppl.graphs.render import dot, mermaid, render, render_svg
from lmppl.graphs.structure import graph_of

__all__ = [
    "Budget",
    "Failed",
    "GraphRecord",
    "Node",
    "NodeFailed",
    "NodeRecord",
    "Spawn",
    "Thoughts",
    "dot",
    "first",
    "graph",
    "graph_of",
    "mermaid",
    "render",
    "render_svg",
    "thought_graph",
    "thought_graphs",
]
