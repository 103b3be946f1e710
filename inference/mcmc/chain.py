"""The posterior of a Markov chain: traces of equal weight that depend on each other.

Standard errors are those of batch means: the chain is cut into about √n batches, which take the
place of a filter's families. `ess` is n / τ of the log-joint, with the integrated autocorrelation
time τ = 1 + 2 Σ ρ_k summed over the initial positive sequence.

References: Geyer, Practical Markov chain Monte Carlo (1992); Flegal and Jones, Batch means and
spectral variance estimators (2010).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmppl.inference.machine.population import Machine
from lmppl.inference.results.history import History
from lmppl.inference.results.posterior import Posterior
from lmppl.trace import Trace
from lmppl.types import Floats


class ChainPosterior(Posterior):
    """The traces of a chain, after burn-in, in order."""

    acceptance: Mapping[str, float]
    """How often proposals were accepted, by kind of proposal."""
    chains: Mapping[str, Sequence[Trace]]
    """Chains of other targets that ran beside this one, by name."""

    @property
    def ess(self) -> float:
        """Effective sample size of the log-joint: n / τ; n for a chain whose log-joint is constant."""
        return chain_ess(np.array([t.log_joint for t in self.traces]))


def chain_ess(x: Floats) -> float:
    """n / (1 + 2 Σ ρ_k), k up to where the sum of two neighbours is negative.

    >>> chain_ess(np.array([1.0, 2.0, 1.0, 2.0]))
    4.0
    """
    n = len(x)
    centred = x - x.mean() if n else x
    variance = float(centred @ centred)
    if n < 4 or not math.isfinite(variance) or variance < 1e-20 * n:
        return float(n)
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.abs(np.fft.rfft(centred, size)) ** 2
    rho = np.fft.irfft(spectrum, size)[:n] / variance
    tau = -1.0
    for k in range(0, n - 1, 2):
        pair = float(rho[k] + rho[k + 1])
        if pair < 0.0:
            break
        tau += 2.0 * pair
    return float(min(n / max(tau, 1.0), n))


def chain_posterior(
    machine: Machine,
    engine: Any,
    traces: Sequence[Trace],
    log_evidence: float,
    *,
    history: History | None = None,
    acceptance: Mapping[str, float] | None = None,
    chains: Mapping[str, Sequence[Trace]] | None = None,
    length: int | None = None,
) -> ChainPosterior:
    """The posterior of a finished chain.

    Args:
        machine: the run.
        engine: what made it.
        traces: after burn-in; of several chains, one after the other.
        log_evidence: of the filter that started it.
        history: of a filter or sweep, said to be another population than the traces.
        acceptance: by kind of proposal.
        chains: of other targets.
        length: of one chain, where there are several.
    """
    machine.ledger.seconds = time.perf_counter() - machine.began
    n = len(traces)
    one = length or n
    batch = max(1, math.isqrt(one))
    posterior = ChainPosterior(
        traces,
        np.full(n, log_evidence),
        log_evidence,
        engine=repr(engine),
        target=engine.target(machine.program),
        ledger=machine.ledger,
        history=history,
        eves=[i // one * one + i % one // batch for i in range(n)],
        deaths=dict(Counter(machine.deaths)),
        death_examples=[f"{s}: {v}" for s, v in list(machine.killed_values.items())[:3]],
        warnings=machine.suspicions(),
        evidence_se=math.nan,
    )
    posterior.acceptance = dict(acceptance or {})
    posterior.chains = dict(chains or {})
    if 4 <= n and posterior.ess < 0.02 * n:
        posterior.warnings.append(
            f"ESS {posterior.ess:.1f} of {n}: the chain hardly moves; use more particles, more "
            "steps, or another proposal"
        )
    return posterior


def accepts(machine: Machine, key: int, log_ratio: float) -> bool:
    """Whether a move with this log-ratio is made: u < min(1, ratio)."""
    if log_ratio >= 0.0:
        return True
    if log_ratio == -math.inf:
        return False
    ratio = math.exp(log_ratio)
    keys = np.array([key], dtype=np.uint64)
    return bool(machine.env.chance.offsets(keys, [np.array([ratio])])[0] < ratio)
