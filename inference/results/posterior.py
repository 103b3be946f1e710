"""`Posterior`: weighted traces, their evidence, and how far to trust them.

Estimates are self-normalised, Σ W_i f(x_i). Their standard errors are genealogical: particles are
grouped by their ancestor in the first population ("Eve"), since only those groups are independent
(Chan and Lai, 2013). The error of log Ẑ is the larger of that of the groups and that of the steps:

    se(f)²  = Σ_k ( Σ_{i ∈ group k} W_i (f_i - f̂) )²
    V_group = N / (N - 1) · ( Σ_k W(group k)² - 1 / N )
    V_step  = Σ_t (1 / ESS_t - 1 / N)    over the resamplings and the end     V(Ẑ/Z) = max of both

Without resampling all are the usual errors of importance sampling. V_group errs upwards, V_step
downwards where the past matters long. The unbiased estimate for multinomial resampling (Lee and
Whiteley, 2018) is below zero nearly always under systematic resampling, so it is not used.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from lmppl.arguments import as_array, check_integers, check_numbers, check_path, check_seed
from lmppl.errors import AllParticlesDead, BadArgument, excerpt, items_of
from lmppl.inference.results.estimates import Estimate, Interval, Marginal
from lmppl.inference.results.history import History
from lmppl.ledger import Ledger
from lmppl.nearest import which_site
from lmppl.random import GumbelMax, draw, fold
from lmppl.trace import Trace
from lmppl.types import Floats
from lmppl.weights import NEG_INF, ess, normalize

if TYPE_CHECKING:
    from lmppl.inference.machine.particles import Particle
    from lmppl.inference.machine.population import Machine
    from lmppl.inference.results.overview import Summary

Of: TypeAlias = str | Sequence[str] | Callable[[Trace], Any] | None
"""A site, several sites, a function of the trace, or (None) what the program returned."""


class Asked(NamedTuple):
    """The program of a posterior and what it was called with."""

    program: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    observations: Mapping[str, Any]


class Posterior:
    """Weighted traces and what they say.

    Args:
        traces: the particles' traces [N].
        log_weights: their log-weights [N], on the scale of γ / q.
        log_evidence: log Ẑ.
        engine: what made it, as text.
        target: the law of the weighted traces, as text.
        exact: whether it is exact (enumeration), so that errors are zero.
        missing: an upper bound of the prior mass that was cut off, for cut enumerations.
        evidence_se: standard error of log Ẑ, from an engine whose evidence is no mean of weights.
        seed: what its randomness was a function of; `infer` sets it.
    """

    def __init__(
        self,
        traces: Sequence[Trace],
        log_weights: Floats,
        log_evidence: float,
        *,
        engine: str = "",
        target: str = "",
        ledger: Ledger | None = None,
        history: History | None = None,
        eves: Sequence[int] | None = None,
        deaths: dict[str, int] | None = None,
        death_examples: Sequence[str] = (),
        warnings: Sequence[str] = (),
        exact: bool = False,
        missing: float = 0.0,
        evidence_se: float | None = None,
        seed: int | None = None,
    ) -> None:
        """Keep the parts; weights are normalised when first needed."""
        fix = "write Posterior(traces, log_weights, log_evidence)"
        self.traces: list[Trace] = items_of(traces, "Posterior: traces must be a list", fix)
        self.log_weights = as_array("Posterior", log_weights=log_weights)
        if self.log_weights.shape != (len(self.traces),):
            raise BadArgument(
                f"{len(self.traces)} traces with log-weights of shape {self.log_weights.shape}",
                fix="give one log-weight per trace",
            )
        self.log_evidence = float(log_evidence)
        self.engine = engine
        self.target = target
        self.ledger = ledger if ledger is not None else Ledger()
        self.history = history
        self.eves = np.asarray(
            eves if eves is not None else range(len(self.traces)), dtype=np.int64
        )
        self.deaths = dict(deaths or {})
        self.death_examples = list(death_examples)
        self.exact = exact
        self.missing = missing
        self.evidence_se = evidence_se
        self.seed = seed
        self.asked: Asked | None = None
        """What was asked; `infer` sets it."""
        self.warnings = list(warnings)
        self.weights: Floats = normalize(self.log_weights)
        """W_i, summing to 1 [N]; zeros when the population is dead."""

    def __len__(self) -> int:
        return len(self.traces)

    @property
    def dead(self) -> bool:
        """Whether every particle has weight zero."""
        return not bool((self.weights > 0).any())

    def _alive(self) -> None:
        if self.dead:
            raise AllParticlesDead(self.deaths, particles=len(self), examples=self.death_examples)

    # -- estimates ---------------------------------------------------------------------------

    def values(self, of: Of = None) -> list[Any]:
        """One value per particle: of a site, several sites (a tuple), a function, or the result."""
        if of is None:
            return [t.result for t in self.traces]
        if callable(of):
            return [
                of(t) if w > 0 else None for t, w in zip(self.traces, self.weights, strict=True)
            ]
        if isinstance(of, (list, tuple)) and of:
            return list(zip(*[self.values(name) for name in of], strict=True))
        if not isinstance(of, str) or not any(of in t for t in self.traces):
            known = list(dict.fromkeys(a for t in self.traces[:100] for a in t))
            raise BadArgument(
                f"no trace has a site {of!r}",
                fix=which_site(of if isinstance(of, str) else "", known),
            )
        return [t[of] if of in t else None for t in self.traces]

    def _se(self, f: Floats, mean: float) -> float:
        if self.exact:
            return 0.0
        if self.unique_ancestors < 2:
            return math.nan  # one group says nothing about the spread between groups
        groups = np.zeros(int(self.eves.max()) + 1)
        np.add.at(groups, self.eves, self.weights * (f - mean))
        return math.sqrt(float(groups @ groups))

    def marginal(self, of: Of = None) -> Marginal:
        """P(value) of a site, of several together, of a function of the trace, or of the result.

        Args:
            of: the address of a site, a list of addresses (P of the tuple of their values), a
                function of the trace; what the program returned when left out. A site that a
                trace does not have is None there.

        Raises:
            AllParticlesDead: there is no posterior.
        """
        self._alive()
        values = self.values(of)
        grouped: dict[Any, list[int]] = {}
        for i, (v, w) in enumerate(zip(values, self.weights, strict=True)):
            if w > 0:
                try:
                    grouped.setdefault(v, []).append(i)
                except TypeError:
                    raise BadArgument(
                        f"a marginal needs hashable values, got {type(v).__name__}",
                        fix="give a function, such as lambda t: tuple(t['x'])",
                    ) from None
        p = {v: float(self.weights[ix].sum()) for v, ix in grouped.items()}
        se = {}
        for v, ix in grouped.items():
            f = np.zeros(len(self))
            f[ix] = 1.0
            se[v] = self._se(f, p[v])
        return Marginal(p, se)

    def expectation(self, f: str | Callable[[Trace], float] | None = None) -> Estimate:
        """E[f] with its standard error; f is a function of the trace, or a numeric site."""
        self._alive()
        raw = self.values(f)
        x = np.zeros(len(self))
        alive = np.flatnonzero(self.weights > 0)
        x[alive] = numeric([raw[i] for i in alive.tolist()], f)
        mean = float(self.weights @ x)
        return Estimate(mean, self._se(x, mean))

    def interval(self, of: Of = None, mass: float = 0.9) -> Interval:
        """The equal-tailed interval of a numeric site, of a function of the trace, or of the result.

        It leaves at most (1 - mass) / 2 of the weight out on each side.
        """
        from lmppl.inference.results.overview import interval

        self._alive()
        return interval(self, of, mass)

    def summary(self) -> Summary:
        """A table of all sites: means and quantiles of numbers, the best values of others.

        `print(posterior.summary())` is the quickest look; see `lmppl.inference.results.overview`.
        """
        from lmppl.inference.results.overview import summary

        return summary(self)

    @property
    def ess(self) -> float:
        """Effective sample size of the final weights."""
        return ess(self.log_weights)

    @property
    def unique_ancestors(self) -> int:
        """Particles of the first population that living ones descend from."""
        return len({int(e) for e, w in zip(self.eves, self.weights, strict=True) if w > 0})

    @property
    def log_evidence_se(self) -> float:
        """Standard error of log Ẑ: √V of the module's first lines; nan for one particle."""
        n = len(self)
        if self.exact:
            return 0.0
        if self.evidence_se is not None:
            return self.evidence_se
        if n < 2 or self.dead:
            return math.nan
        groups = np.zeros(int(self.eves.max()) + 1)
        np.add.at(groups, self.eves, self.weights)
        grouped = n / (n - 1) * (float(groups @ groups) - 1.0 / n)
        sizes = [self.ess]
        if self.history is not None and self.history.fixed:
            pairs = zip(self.history.ess, self.history.ancestors, strict=True)
            sizes += [size for size, parents in pairs if parents is not None]
        stepped = math.fsum(1.0 / size - 1.0 / n for size in sizes)
        return math.sqrt(max(grouped, stepped, 0.0))

    def log_evidence_interval(self, z: float = 1.96) -> Interval:
        """log Ẑ ± z standard errors; a cut enumeration's upper end counts all that was cut."""
        if self.exact:
            top = self.log_evidence
            if self.missing > 0:
                top = float(np.logaddexp(top, math.log(self.missing)))
            return Interval(self.log_evidence, top)
        check_numbers("log_evidence_interval", 0.0, z=z)
        se = self.log_evidence_se
        return Interval(self.log_evidence - z * se, self.log_evidence + z * se)

    def map(self) -> Trace:
        """The trace of the largest joint probability among those found."""
        self._alive()
        alive = [i for i in range(len(self)) if self.weights[i] > 0]
        return self.traces[max(alive, key=lambda i: self.traces[i].log_joint)]

    def sample(self, n: int | None = None, *, seed: int = 0) -> Any:
        """Traces drawn with their weights: one, or a list of n."""
        self._alive()
        if n is not None:
            check_integers("Posterior.sample", 0, n=n)
        key = fold(0, "posterior", check_seed(seed))
        with np.errstate(divide="ignore"):
            lw = np.log(self.weights)
        picks = [draw(GumbelMax(), fold(key, i), lw) for i in range(1 if n is None else n)]
        chosen = [self.traces[i] for i in picks]
        return chosen[0] if n is None else chosen

    # -- export ------------------------------------------------------------------------------

    def to_dataframe(self) -> Any:
        """One row per particle: weight, result and every site (pandas)."""
        from lmppl.inference.results.export import to_dataframe

        return to_dataframe(self)

    def to_arviz(self, *, draws: int | None = None, seed: int = 0) -> Any:
        """An `xarray.DataTree` for ArviZ 1; of ArviZ 0.23, `InferenceData.from_datatree(tree)`.

        Draws of equal weight; see `lmppl.inference.results.export`.
        """
        from lmppl.inference.results.export import to_arviz

        return to_arviz(self, draws=draws, seed=seed)

    def save(self, path: Any, *, opaque: bool = False) -> None:
        """Write as JSON lines: a header, then one particle a line; see `lmppl.inference.results.files`."""
        from lmppl.inference.results.files import save

        save(self, path, opaque=opaque)

    def report(self, path: Any, **options: Any) -> Path:
        """Write everything about it as one HTML file; see `lmppl.inference.view.page`."""
        from lmppl.inference.view.page import write_report

        check_path("report", path)
        return write_report(self, path, **options)

    @classmethod
    def load(cls, path: Any) -> Posterior:
        """Read what `save` wrote."""
        from lmppl.inference.results.files import load

        return load(path)

    def __repr__(self) -> str:
        from lmppl.inference.results.summary import answers, made_by, trust

        if self.dead:
            return f"Posterior({made_by(self)}: all {len(self)} particles dead at {self.deaths})"
        best = list(answers(self).items())[:3]
        shown = ", ".join(f"{v!r:.40}: {p:.3f}" for v, p in best)
        return (
            f"Posterior({made_by(self)}: {{{shown}}}, log evidence {round(self.log_evidence, 9):.4g}, "
            f"{trust(self)})"
        )

    def _repr_html_(self) -> str:
        from lmppl.inference.view.report import posterior_html

        return posterior_html(self)


def numeric(values: Iterable[Any], of: Of) -> list[float]:
    """What an expectation is taken over: the values of a site, a function or the result as numbers."""
    found = list(values)
    try:
        return [float(v) for v in found]
    except (TypeError, ValueError):
        place = "x" if not isinstance(of, str) else of
        raise BadArgument(
            "an expectation needs numbers",
            where=f"site {of!r}" if isinstance(of, str) else None,
            value=excerpt(found[:3]),
            fix=f"give a function of the trace, such as lambda t: len(t[{place!r}])",
        ) from None


def population_posterior(
    machine: Machine,
    engine: Any,
    population: Sequence[Particle],
    log_evidence: float,
    history: History | None = None,
    **more: Any,
) -> Posterior:
    """The posterior of a finished population, with the warnings it deserves."""
    import time

    machine.ledger.seconds = time.perf_counter() - machine.began
    lw = np.array([p.log_weight for p in population], dtype=np.float64)
    posterior = Posterior(
        [p.trace for p in population],
        lw,
        log_evidence,
        engine=repr(engine),
        target=engine.target(machine.program),
        ledger=machine.ledger,
        history=history,
        eves=[p.eve for p in population],
        deaths=dict(Counter(machine.deaths)),
        death_examples=[f"{s}: {v}" for s, v in list(machine.killed_values.items())[:3]],
        **more,
    )
    posterior.warnings += diagnose(posterior, machine.restricted) + machine.suspicions()
    return posterior


def diagnose(posterior: Posterior, restricted: set[str]) -> list[str]:
    """What a careful reader should know about the numbers."""
    found = []
    if restricted:
        found.append(
            f"restricted to proposal support at {', '.join(sorted(restricted))}: top_p or top_k can never draw "
            'some values, so the evidence is biased low; add mixture=0.1 or target="proposal"'
        )
    if not posterior.exact and not posterior.dead and len(posterior) > 2:
        if posterior.ess < 2:
            found.append(
                f"ESS {posterior.ess:.2f} of {len(posterior)}: one particle carries the posterior; "
                "use more particles, a proposal or a guide"
            )
        elif posterior.unique_ancestors == 1:
            found.append("all particles descend from one: standard errors cannot be estimated")
    if posterior.log_evidence == NEG_INF:
        found.append(f"every particle has weight zero; killed at {posterior.deaths}")
    return found
