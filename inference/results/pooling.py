"""Posteriors of independent runs of one program as one posterior.

    Ẑ = Σ_b n_b Ẑ_b / Σ_b n_b        weight of particle i of run b:  n_b Ẑ_b W_bi

For a fixed number of runs this is what one run with all the particles would be: E[Ẑ W(x)] = γ(x).
Families of different runs are different, and the error of log Ẑ is that of a weighted mean:

    se² = Σ_b (n_b Ẑ_b / Σ n Ẑ)² se_b²
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from lmppl.arguments import check_instances
from lmppl.errors import BadArgument, items_of
from lmppl.inference.results.posterior import Posterior
from lmppl.inference.search.found import Found
from lmppl.ledger import Ledger
from lmppl.weights import NEG_INF, log_sum_exp, normalize


def pool(posteriors: Sequence[Posterior]) -> Posterior:
    """One posterior of several independent runs of the same program, arguments and observations.

    >>> from lmppl import Bernoulli, sample
    >>> from lmppl.inference import Importance, infer
    >>> coin = lambda: sample("x", Bernoulli(0.5))
    >>> len(pool([infer(coin, engine=Importance(3), seed=s) for s in range(4)]))
    12
    """
    fix = "write pool([posterior, another])"
    posteriors = items_of(posteriors, "pool takes a list of posteriors", fix)
    if not posteriors:
        raise BadArgument("there is no posterior to pool", fix=fix)
    for one in posteriors:
        check_instances("pool", Posterior, "a posterior", run=one)
    if any(isinstance(p, Found) or math.isnan(p.log_evidence) for p in posteriors):
        raise BadArgument(
            "a search, or a run without evidence, cannot be pooled",
            why="its traces are no weighted draws: searching again finds the same ones",
            fix="give the search a larger budget, or draw with SMC, Importance or Forward",
        )
    if any(p.exact for p in posteriors):
        raise BadArgument(
            "an exact posterior cannot be pooled",
            why="it was enumerated, so that another one adds nothing",
            fix="take one of them",
        )
    sizes = [len(p) for p in posteriors]
    total = sum(sizes)
    logs = [
        NEG_INF if p.dead or n == 0 else math.log(n) + p.log_evidence
        for p, n in zip(posteriors, sizes, strict=True)
    ]
    log_evidence = log_sum_exp(logs) - math.log(total) if total else NEG_INF
    shares = normalize(logs)
    with np.errstate(divide="ignore"):
        # on the scale of γ / q, where the mean over all particles is Ẑ
        weights = np.log(np.concatenate([p.weights for p in posteriors])) + np.repeat(logs, sizes)
    eves, offset = [], 0
    ledger, deaths = Ledger(), Counter[str]()
    for p in posteriors:
        eves.append(p.eves + offset)
        offset += int(p.eves.max(initial=-1)) + 1
        ledger.add(p.ledger)
        deaths.update(p.deaths)
    first = posteriors[0]
    evidence_se: float | None = None
    if any(p.evidence_se is not None and math.isnan(p.evidence_se) for p in posteriors):
        evidence_se = math.nan  # no estimate of the evidence, or one of unknown error
    elif min(sizes) > 1:  # a run of one particle has no error of its own: the families have
        alive = zip(shares.tolist(), posteriors, strict=True)
        evidence_se = math.sqrt(math.fsum((s * p.log_evidence_se) ** 2 for s, p in alive if s > 0))
    return Posterior(
        [t for p in posteriors for t in p.traces],
        weights,
        log_evidence,
        engine=first.engine,
        target=first.target,
        ledger=ledger,
        eves=np.concatenate(eves).tolist(),
        deaths=dict(deaths),
        death_examples=[e for p in posteriors for e in p.death_examples][:3],
        warnings=_common(posteriors),
        evidence_se=evidence_se,
        seed=first.seed,
    )


def _common(posteriors: Sequence[Posterior]) -> list[str]:
    """Warnings of all runs, each once; those about few particles are for the pool to make."""
    seen = dict.fromkeys(w for p in posteriors for w in p.warnings)
    return [w for w in seen if not w.startswith(("ESS", "all particles descend", "every particle"))]
