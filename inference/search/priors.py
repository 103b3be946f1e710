"""Priors of the scores of an option: of GEN, of CONT, of a child."""

from __future__ import annotations

import math
from typing import NamedTuple

from lmppl.errors import BadArgument


class NIX2(NamedTuple):
    """The normal-inverse-χ² prior of scores."""

    m: float = 0.0
    kappa: float = 1.0
    nu: float = 1.0
    tau2: float = 0.1

    def posterior(self, n: int, mean: float, spread: float) -> tuple[float, float, float]:
        """Location, scale and degrees of freedom of μ."""
        m, kappa, nu, tau2 = self
        more, df = kappa + n, nu + n
        square = nu * tau2 + spread + n * kappa * (m - mean) ** 2 / more
        return (kappa * m + n * mean) / more, math.sqrt(square / (df * more)), df


class BetaPrior(NamedTuple):
    """The beta prior of scores in [0, 1]."""

    a: float = 0.5
    b: float = 0.5


class Relative(NamedTuple):
    """Priors in units of the scores so far: 0 is the best of them, 1 their standard deviation.

    With one prior for every option, in fixed units, AB-MCTS stays behind where refining never
    levels off: below a new result nothing is known, so the node above it is as good a place as the
    new result itself. Here CONT starts just above the best score and gives way to the first scores
    that it has; GEN starts below; children start far above and are left slowly, which spreads the
    first visits. The draws vary little, so this trusts scores: under noise that hides which result
    is better, `NIX2()` explores more. `docs/search.md` has the figures.
    """

    gen: NIX2 = NIX2(-0.25, 0.1, 25.0, 0.0005)
    cont: NIX2 = NIX2(0.8, 0.05, 25.0, 0.0005)
    child: NIX2 = NIX2(3.0, 25.0, 25.0, 0.0005)
    action: NIX2 = NIX2()


def check_prior(prior: NIX2 | BetaPrior | Relative) -> None:
    """Positive parameters, or an error."""
    if isinstance(prior, Relative):
        for part in prior:
            check_prior(part)
    elif min(prior[-2:]) <= 0 or (isinstance(prior, NIX2) and prior.kappa <= 0):
        raise BadArgument(f"the parameters of a prior must be positive, got {prior!r}")
