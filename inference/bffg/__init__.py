"""Backward filtering, forward guiding: one guided sampler for Markov processes on trees and DAGs.

    bf = bffg.backward(model, data, params)          messages from the leaves to the roots
    out = bffg.forward(bf, key, n=1000)              guided paths, weights, evidence
    logw = bffg.log_weight(model, data, params, z)   pure and differentiable

The package is about JAX, and is imported on demand: `from lmppl.inference import bffg`.
"""

from typing import Any

from lmppl.inference.bffg.backward import BackwardFilter, backward, refine
from lmppl.inference.bffg.explain import explain, is_exact
from lmppl.inference.bffg.families.diffusions import (
    Steps,
    euler,
    euler_steps,
    linear_sde,
    time_grid,
)
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
from lmppl.inference.bffg.forward import draw_noise, forward, guided_path, log_weight, path_score
from lmppl.inference.bffg.from_program import Converted, from_program
from lmppl.inference.bffg.kernels import Guessed, Kernel, Surrogate, guided, surrogate
from lmppl.inference.bffg.messages import Factors, Gamma, Gaussian, Message, Table
from lmppl.inference.bffg.model import Model, Point, chain, dag, tree
from lmppl.inference.bffg.particle_filter import conditional_filter, particle_gibbs
from lmppl.inference.bffg.pcn import PCN, PMMH, pcn
from lmppl.inference.bffg.result import Guided, pareto_k
from lmppl.inference.bffg.strings.automaton import (
    DFA,
    HMM,
    HMMAutomaton,
    automaton,
    fit_hmm,
    guided_strings,
)
from lmppl.inference.bffg.strings.guide import string_guide
from lmppl.inference.bffg.unguided import simulate, unguided


def __getattr__(name: str) -> Any:
    """The names that need NumPyro, loaded when first used."""
    if name in ("factor", "sample_noise"):
        from lmppl.inference.bffg import numpyro_sites

        return getattr(numpyro_sites, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "BackwardFilter",
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
    "Independent",
    "Interacting",
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
    "Sparse",
    "Steps",
    "Surrogate",
    "Table",
    "backward",
    "chain",
    "Converted",
    "DFA",
    "HMM",
    "HMMAutomaton",
    "automaton",
    "fit_hmm",
    "guided_strings",
    "conditional_filter",
    "from_program",
    "dag",
    "draw_noise",
    "euler",
    "euler_steps",
    "explain",
    "factor",
    "forward",
    "guided",
    "guided_path",
    "is_exact",
    "linear_sde",
    "log_weight",
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
