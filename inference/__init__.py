"""Engines: from a program to a posterior.

`infer(program, ..., engine=SMC(particles=16), lm="smollm2", seed=0)`. If unsure: `SMC`; for a
finite program, `Enumerate` is exact.
"""

from lmppl.inference.base import Engine, ainfer, infer, infer_many, infer_stream
from lmppl.inference.enumeration import Enumerate
from lmppl.inference.forward import Forward, Greedy
from lmppl.inference.importance import Importance
from lmppl.inference.posterior import Estimate, Interval, Marginal, Posterior
from lmppl.inference.rejection import Rejection
from lmppl.inference.smc.particle_filter import SMC, tokens

__all__ = [
    "SMC",
    "Engine",
    "Enumerate",
    "Estimate",
    "Forward",
    "Greedy",
    "Importance",
    "Interval",
    "Marginal",
    "Posterior",
    "Rejection",
    "ainfer",
    "infer",
    "infer_many",
    "infer_stream",
    "tokens",
]
