"""Backward filtering, forward guiding: one guided sampler for Markov processes on trees and DAGs.

    bf = bffg.backward(model, data, params)          messages from the leaves to the roots
    out = bffg.forward(bf, key, n=1000)              guided paths, weights, evidence
    logw = bffg.log_weight(model, data, params, z)   pure and differentiable

The package is about JAX, and is imported on demand: `from lmppl.inference import bffg`.
"""

from typing import Any

from lmppl.inference.bffg.backward import BackwardFilter, backward, refine
from lmppl.inference.bffg.defensive import defensive
from lmppl.inference.bffg.explain import explain, is_exact
from lmppl.inference.bffg.families.compound_poisson import CompoundPoisson, panjer
from lmppl.inference.bffg.families.ctmc import (
    JumpPath,
    JumpProcess,
    ctmc,
    guided_rates,
    jump_path,
)
from lmppl.inference.bffg.families.diffusions import euler, linear_sde, time_grid
from lmppl.inference.bffg.families.finite import Finite, FiniteLeaf, Sparse
from lmppl.inference.bffg.families.gamma_process import (
    GammaProcess,
    GammaRate,
    GammaStep,
    PinnedLeaf,
)
from lmppl.inference.bffg.families.gaussian import (
    GaussianLeaf,
    LinearGaussian,
    NonlinearGaussian,
    NonlinearLeaf,
)
from lmppl.inference.bffg.families.interacting import (
    Independent,
    Interacting,
    ParticleLeaf,
    sir_law,
    sir_profile,
)
from lmppl.inference.bffg.families.poisson_process import PoissonLeaf, PoissonProcess, PoissonStep
from lmppl.inference.bffg.families.steps import BiasedSteps, Steps, euler_steps
from lmppl.inference.bffg.forward import draw_noise, forward, guided_path, log_weight, path_score
from lmppl.inference.bffg.from_program import Converted, from_program
from lmppl.inference.bffg.kernels import Guessed, Kernel, Surrogate, guided, surrogate
from lmppl.inference.bffg.learned import evidence_bounds, fit_residual
from lmppl.inference.bffg.messages import Factors, Gamma, Gaussian, Message, Table
from lmppl.inference.bffg.model import Model, Point, chain, dag, tree
from lmppl.inference.bffg.particle_filter import conditional_filter, particle_gibbs
from lmppl.inference.bffg.pcn import PCN, PMMH, pcn
from lmppl.inference.bffg.residual import Residual
from lmppl.inference.bffg.result import Guided, pareto_k
from lmppl.inference.bffg.strings.automaton import HMMAutomaton
from lmppl.inference.bffg.strings.baum_welch import fit_hmm
from lmppl.inference.bffg.strings.cascade import StepMessage, step_guide, step_message
from lmppl.inference.bffg.strings.dfa import DFA, automaton, counting
from lmppl.inference.bffg.strings.distill import distil, token_clusters, written
from lmppl.inference.bffg.strings.guide import string_guide
from lmppl.inference.bffg.strings.hmm import HMM, Clusters
from lmppl.inference.bffg.strings.logits import GuidedLogits
from lmppl.inference.bffg.strings.matching import matching
from lmppl.inference.bffg.strings.ngram import fit_ngram
from lmppl.inference.bffg.strings.potential import string_potential
from lmppl.inference.bffg.strings.rules import containing, ending, length, starting, words
from lmppl.inference.bffg.strings.sampler import guided_strings
from lmppl.inference.bffg.strings.texts import TextAutomaton, jointly
from lmppl.inference.bffg.unguided import simulate, unguided


def __getattr__(name: str) -> Any:
    """The names that need NumPyro, loaded when first used."""
    if name in ("factor", "sample_noise"):
        from lmppl.inference.bffg import numpyro_sites

        return getattr(numpyro_sites, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "BackwardFilter",
    "BiasedSteps",
    "CompoundPoisson",
    "Factors",
    "Finite",
    "FiniteLeaf",
    "Gamma",
    "GammaProcess",
    "GammaRate",
    "GammaStep",
    "Gaussian",
    "GaussianLeaf",
    "Guessed",
    "Guided",
    "GuidedLogits",
    "Independent",
    "Interacting",
    "JumpPath",
    "JumpProcess",
    "Kernel",
    "LinearGaussian",
    "Message",
    "Model",
    "NonlinearGaussian",
    "NonlinearLeaf",
    "PCN",
    "PMMH",
    "ParticleLeaf",
    "PinnedLeaf",
    "Point",
    "PoissonLeaf",
    "PoissonProcess",
    "PoissonStep",
    "Residual",
    "Sparse",
    "Steps",
    "Surrogate",
    "Table",
    "backward",
    "chain",
    "ctmc",
    "Converted",
    "DFA",
    "HMM",
    "HMMAutomaton",
    "Clusters",
    "StepMessage",
    "TextAutomaton",
    "automaton",
    "containing",
    "counting",
    "distil",
    "ending",
    "fit_hmm",
    "fit_ngram",
    "guided_strings",
    "jointly",
    "length",
    "matching",
    "starting",
    "step_guide",
    "step_message",
    "string_potential",
    "token_clusters",
    "words",
    "written",
    "conditional_filter",
    "from_program",
    "dag",
    "defensive",
    "draw_noise",
    "euler",
    "euler_steps",
    "evidence_bounds",
    "explain",
    "factor",
    "fit_residual",
    "forward",
    "guided",
    "guided_path",
    "guided_rates",
    "is_exact",
    "jump_path",
    "linear_sde",
    "log_weight",
    "panjer",
    "pareto_k",
    "particle_gibbs",
    "path_score",
    "pcn",
    "refine",
    "sample_noise",
    "simulate",
    "sir_law",
    "sir_profile",
    "string_guide",
    "surrogate",
    "time_grid",
    "tree",
    "unguided",
]
