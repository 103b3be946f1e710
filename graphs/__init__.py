"""Structure over programs: ancestry of particles, graphs of thoughts."""

from lmppl.graphs.bayes_net import BayesNet, Variable
from lmppl.graphs.budget import Budget
from lmppl.graphs.elimination import CliqueTree, TooWide, eliminate, most_probable
from lmppl.graphs.factors import Factor, FactorGraph
from lmppl.graphs.graph import Thoughts, graph
from lmppl.graphs.independence import d_separated, markov_blanket, relevant
from lmppl.graphs.loopy import propagate
from lmppl.graphs.node import Failed, Node, NodeFailed, Spawn, first
from lmppl.graphs.record import GraphRecord, NodeRecord, thought_graph, thought_graphs
from lmppl.graphs.render import dot, mermaid, render, render_svg
from lmppl.graphs.rescoring import LogJoint
from lmppl.graphs.structure import graph_of
from lmppl.graphs.tables import ABSENT, Tables, tables_of

__all__ = [
    "ABSENT",
    "BayesNet",
    "Budget",
    "CliqueTree",
    "Factor",
    "FactorGraph",
    "Failed",
    "GraphRecord",
    "LogJoint",
    "Node",
    "NodeFailed",
    "NodeRecord",
    "Spawn",
    "Tables",
    "Thoughts",
    "TooWide",
    "Variable",
    "d_separated",
    "dot",
    "eliminate",
    "first",
    "graph",
    "graph_of",
    "markov_blanket",
    "mermaid",
    "most_probable",
    "propagate",
    "relevant",
    "render",
    "render_svg",
    "tables_of",
    "thought_graph",
    "thought_graphs",
]
