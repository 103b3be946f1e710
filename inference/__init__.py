"""Engines: from a program to a posterior.

`infer(program, ..., engine=SMC(particles=16), lm="smollm2", seed=0)`. If unsure: `SMC`; for a
finite program, `Enumerate` is exact.
"""

from lmppl.inference.allocation.adaptive import infer_adaptive
from lmppl.inference.base import Engine
from lmppl.inference.calls import ainfer, infer, infer_many, infer_stream
from lmppl.inference.elimination import Elimination
from lmppl.inference.enumeration import Enumerate
from lmppl.inference.forward import Forward, Greedy
from lmppl.inference.guide import Guide
from lmppl.inference.importance import Importance
from lmppl.inference.mcmc.metropolis import MetropolisHastings
from lmppl.inference.mcmc.particle_gibbs import ParticleGibbs
from lmppl.inference.mcmc.pmmh import ParticleMarginalMH
from lmppl.inference.mcmc.proposals import Block, SingleSite, Suffix
from lmppl.inference.mcmc.tempering import ParallelTempering
from lmppl.inference.rejection import Rejection
from lmppl.inference.results.decisions import Decision, decide
from lmppl.inference.results.estimates import Estimate, Interval, Marginal
from lmppl.inference.results.posterior import Posterior
from lmppl.inference.search.abmcts import ABMCTS_A
from lmppl.inference.search.abmcts_mixed import ABMCTS_M
from lmppl.inference.search.beam import DVTS, Beam
from lmppl.inference.search.best_first import AStar, BestFirst
from lmppl.inference.search.foresight import Foresight
from lmppl.inference.search.found import Found
from lmppl.inference.search.fractured import Fractured
from lmppl.inference.search.mcts import MCTS
from lmppl.inference.search.refine import ABMCTS
from lmppl.inference.search.stepwise import StepGreedy
from lmppl.inference.search.submodular import submodular_pick
from lmppl.inference.search.wider_deeper import WiderDeeper
from lmppl.inference.smc.cascade import Cascade
from lmppl.inference.smc.particle_filter import SMC, tokens
from lmppl.inference.smc.temper import Temper
from lmppl.inference.smc.without_replacement import WithoutReplacement
from lmppl.inference.stopping.rounds import Rounds
from lmppl.inference.stopping.sequential import Adaptive, Sequential

__all__ = [
    "WithoutReplacement",
    "Temper",
    "Suffix",
    "SingleSite",
    "ParticleMarginalMH",
    "ParticleGibbs",
    "ParallelTempering",
    "MetropolisHastings",
    "Cascade",
    "Block",
    "ABMCTS",
    "ABMCTS_A",
    "ABMCTS_M",
    "DVTS",
    "MCTS",
    "SMC",
    "AStar",
    "Adaptive",
    "Beam",
    "BestFirst",
    "Decision",
    "Elimination",
    "Engine",
    "Enumerate",
    "Estimate",
    "Foresight",
    "Forward",
    "Found",
    "Fractured",
    "Greedy",
    "Guide",
    "Importance",
    "Interval",
    "Marginal",
    "Posterior",
    "Rejection",
    "Rounds",
    "Sequential",
    "StepGreedy",
    "WiderDeeper",
    "ainfer",
    "decide",
    "infer",
    "infer_adaptive",
    "infer_many",
    "infer_stream",
    "submodular_pick",
    "tokens",
]
