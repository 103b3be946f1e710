"""Token-level potentials and samplers: what a string should be like, weighed while it is written.

    LM(prompt, potential=Matches(r"[a-z]+") * no_repeats ** 0.5, sampler=AWRS())

See `base` for what a potential is, `samplers` and `awrs` for how tokens are
drawn under one.
"""

from lmppl.grammars import Grammar
from lmppl.token_potentials.awrs import AWRS
from lmppl.token_potentials.base import TokenPotential, TokenState
from lmppl.token_potentials.canonical import Canonical
from lmppl.token_potentials.healing import StartsWith, healed
from lmppl.token_potentials.operators import (
    Lookahead,
    Normalized,
    Product,
    Tempered,
    as_potential,
)
from lmppl.token_potentials.samplers import Exact, Picked, Sampler, TopK
from lmppl.token_potentials.texts import BytePotential, Matches, OnText

__all__ = [
    "AWRS",
    "BytePotential",
    "Canonical",
    "Exact",
    "Grammar",
    "Lookahead",
    "Matches",
    "Normalized",
    "OnText",
    "Picked",
    "Product",
    "Sampler",
    "StartsWith",
    "Tempered",
    "TokenPotential",
    "TokenState",
    "TopK",
    "as_potential",
    "healed",
]
