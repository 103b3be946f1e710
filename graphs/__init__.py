"""Structure over programs: ancestry of particles, graphs of thoughts."""

from lmppl.graphs.bayes_nets.bayes_net import BayesNet, Variable
from lmppl.graphs.factors.elimination import CliqueTree, TooWide, eliminate, most_probable
from lmppl.graphs.factors.factor import Factor, FactorGraph
from lmppl.graphs.factors.loopy import propagate
from lmppl.graphs.factors.program_tables import ABSENT, Tables, tables_of
from lmppl.graphs.structure.independence import d_separated, markov_blanket, relevant
from lmppl.graphs.structure.program_graph import graph_of
from lmppl.graphs.structure.render import dot, mermaid, render, render_svg
from lmppl.graphs.structure.rescoring import LogJoint
from lmppl.graphs.thoughts.budget import Budget
from lmppl.graphs.thoughts.graph import Thoughts, graph
from lmppl.graphs.thoughts.node import Failed, Node, NodeFailed, Spawn, first
from lmppl.graphs.thoughts.record import GraphRecord, NodeRecord, thought_graph, thought_graphs

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
