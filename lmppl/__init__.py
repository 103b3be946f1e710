"""lmppl: probabilistic programming where some random variables are texts.

A program is a plain Python function; `LM(prompt)` makes a language model the law of a string;
an engine of `lmppl.inference` returns the posterior.
"""

from lmppl import handlers, potentials
from lmppl.chat import Chat
from lmppl.checking import check
from lmppl.choice import Choice
from lmppl.distributions import Bernoulli, Categorical, Delta, Uniform
from lmppl.errors import LmpplError
from lmppl.lm.load import load
from lmppl.mixture import Mixture
from lmppl.primitives import (
    cached,
    call,
    deterministic,
    effect,
    factor,
    loop,
    markov,
    observe,
    param,
    plate,
    sample,
)
from lmppl.program import program
from lmppl.rewards import Reward
from lmppl.roles import choose, reward
from lmppl.strings import LM, power
from lmppl.templates import prompt
from lmppl.text import Text

__version__ = "0.1.0"

__all__ = [
    "LM",
    "Bernoulli",
    "Categorical",
    "Chat",
    "Choice",
    "Delta",
    "LmpplError",
    "Mixture",
    "Reward",
    "Text",
    "Uniform",
    "call",
    "cached",
    "check",
    "choose",
    "deterministic",
    "effect",
    "factor",
    "handlers",
    "load",
    "loop",
    "markov",
    "observe",
    "param",
    "plate",
    "potentials",
    "power",
    "program",
    "prompt",
    "reward",
    "sample",
]
