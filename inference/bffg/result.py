"""`Guided`: weighted paths of a backward-filtered model, and how far to trust them.

Pareto k̂ is the shape of a generalised Pareto law fitted to the largest importance ratios: above
0.7 the weights have, for all that n draws can show, no usable variance, and neither the evidence
nor any mean should be believed; above 0.5 their variance is infinite, and standard errors are too
small. ArviZ (`arviz`) reads `to_arviz`, which needs `xarray`.

Reference: Vehtari, Simpson, Gelman, Yao and Gabry, Pareto smoothed importance sampling (2024);
Zhang and Stephens, A new and efficient estimation method for the generalized Pareto distribution
(2009).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmppl.inference.results.history import History
from lmppl.inference.results.posterior import Posterior
from lmppl.trace import Entry, Trace
from lmppl.types import Floats
from lmppl.weights import ess, log_mean_exp, normalize

GOOD_K = 0.7
FINITE_K = 0.5
"""Where the variance of a Pareto tail ends."""


def pareto_k(log_weights: Floats) -> float:
    """k̂ of the tail of importance ratios; -inf when they are all equal, nan for too few.

    >>> pareto_k(np.zeros(100))
    -inf
    """
    lw = np.asarray(log_weights, dtype=np.float64)
    n = len(lw)
    tail = min(n // 5, math.ceil(3 * math.sqrt(n)))
    if np.ptp(lw) < 1e-9:
        return -math.inf
    if tail < 5 or not np.isfinite(lw).any():
        return math.nan
    ordered = np.sort(np.exp(lw - lw.max()))
    x = ordered[-tail:] - ordered[-tail - 1]
    x = x[x > 0]
    if len(x) < 5:
        return math.nan
    return _fit(x)


def _fit(x: Floats) -> float:
    n = len(x)
    grid = 30 + int(math.sqrt(n))
    j = np.arange(1, grid + 1)
    theta = 1 / x[-1] + (1 - np.sqrt(grid / (j - 0.5))) / (3 * x[int(n / 4 + 0.5) - 1])
    k = np.array([np.mean(np.log1p(-t * x)) for t in theta])
    with np.errstate(divide="ignore", invalid="ignore"):
        profile = n * (np.log(-theta / k) - k - 1)
    profile = np.where(np.isfinite(profile), profile, -np.inf)
    weights = normalize(profile)
    found = float(np.mean(np.log1p(-float(weights @ theta) * x)))
    return (n * found + 5.0) / (n + 10.0)  # a weak prior at 0.5, as in the paper


@dataclass(frozen=True)
class Guided:
    """Weighted paths.

    Args:
        values: states [n, nodes, …].
        log_weights: of the paths [n]; after resampling, since the last resampling.
        log_evidence: log Ẑ; E[Ẑ] = p(data).
        history: ESS and ancestors of each step, when it was resampled.
        eves: ancestor of each path in the first population [n].
        warnings: what a careful reader should know.
    """

    values: Any
    log_weights: Floats
    log_evidence: float
    history: History | None = None
    eves: Any = None
    warnings: tuple[str, ...] = field(default=())

    @classmethod
    def of(
        cls,
        values: Any,
        log_weights: Floats,
        log_evidence: float | None = None,
        history: History | None = None,
        eves: Any = None,
    ) -> Guided:
        """With the warnings that the weights deserve."""
        z = log_mean_exp(log_weights) if log_evidence is None else log_evidence
        bare = cls(values, log_weights, float(z), history, eves)
        return cls(values, log_weights, float(z), history, eves, tuple(bare.diagnose()))

    def diagnose(self) -> list[str]:
        """Warnings of a small ESS and of a heavy tail."""
        found = []
        n, k = len(self.log_weights), self.pareto_k
        if n > 2 and self.ess < max(2.0, 0.01 * n):
            found.append(
                f"ESS {self.ess:.1f} of {n}: the guide misses the posterior; use a better "
                "surrogate, inflate=, resample=, or pcn"
            )
        if k > GOOD_K:
            found.append(
                f"Pareto k {k:.2f} > {GOOD_K}: the weights have no usable variance, and no mean of "
                "them can be trusted; use inflate= so that the guide covers the posterior"
            )
        elif k > FINITE_K:
            found.append(
                f"Pareto k {k:.2f} > {FINITE_K}: the weights have no finite variance, and standard "
                "errors are too small; use inflate= so that the guide covers the posterior"
            )
        return found

    @property
    def weights(self) -> Floats:
        """W_i, summing to 1 [n]."""
        return normalize(self.log_weights)

    @property
    def ess(self) -> float:
        """Effective sample size of the weights."""
        return ess(self.log_weights)

    @property
    def pareto_k(self) -> float:
        """Shape of the tail of the weights."""
        return pareto_k(self.log_weights)

    def expectation(self, f: Any = None) -> Any:
        """Σ W_i f(path_i); the posterior mean of every node when f is left out."""
        x = self.values if f is None else np.stack([np.asarray(f(v)) for v in self.values])
        return np.tensordot(self.weights, np.asarray(x, dtype=np.float64), axes=1)

    def posterior(self, name: str = "x") -> Posterior:
        """As the `Posterior` of every engine; node s is the site `x[s]`, the path its result."""
        traces = []
        for path in np.asarray(self.values):
            head: Entry | None = None
            for s, value in enumerate(path):
                head = Entry(head, "deterministic", f"{name}[{s}]", _plain(value))
            traces.append(Trace.of(head, tuple(_plain(v) for v in path)))
        return Posterior(
            traces,
            self.log_weights,
            self.log_evidence,
            engine="BFFG",
            target="γ(path) = Π k(child | parents) · Π l(data | node); weights γ / q, telescoped",
            history=self.history,
            eves=self.eves,
            warnings=self.warnings,
        )

    def to_arviz(self, draws: int | None = None, seed: int = 0) -> Any:
        """An `xarray.DataTree`, as of every engine."""
        return self.posterior().to_arviz(draws=draws, seed=seed)


def _plain(value: Any) -> Any:
    array = np.asarray(value)
    if array.ndim == 0:
        return array.item()
    return tuple(array.tolist()) if array.ndim == 1 else array.tolist()
