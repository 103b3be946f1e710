"""The laws of this package, for your own engines, distributions, guides and models.

Everything here is exact: the randomness of what is checked is enumerated, not sampled, so a check
either holds to rounding or names a number that is wrong. It wants tiny problems: a `TableLM` with
a few tokens, two or three particles, strings of one or two tokens.

| to check | call |
| --- | --- |
| an engine | `assert_properly_weighted(program, engine=MyEngine(), lm=tiny)`, `check_keys` |
| a distribution | `check_distribution(MyLaw(), lm=tiny)` |
| a language model | `check_language_model(my_model)` |
| a guide | `check_guide(guide, program, lm=tiny)` |
| a regular expression | `check_constraint(tiny, "a*b")` |
| a token-level potential | `assert_potential_laws(potential, tiny)` |
| a resampling scheme | `check_resampling(scheme)` |

`enumerate_exact(program, lm=tiny)` gives the exact unnormalised measure, `outcomes(run)` walks the
randomness of anything that draws by a `Chance`. A broken law raises `LawBroken`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from lmppl.errors import excerpt
from lmppl.lm.laws import check_language_model
from lmppl.random import Chance, GumbelMax
from lmppl.testing.enumerator import (
    MOST_OUTCOMES,
    Enumerator,
    LawBroken,
    Measure,
    Outcome,
    enumerate_exact,
    outcomes,
    value_of,
)
from lmppl.testing.laws import check_constraint, check_distribution, check_guide
from lmppl.testing.potential_laws import assert_potential_laws
from lmppl.trace import Trace
from lmppl.types import Floats, Ints, Key, Keys
from lmppl.weights import NEG_INF, exp, normalize

__all__ = [
    "Enumerator",
    "LawBroken",
    "Measure",
    "Outcome",
    "Weighting",
    "assert_potential_laws",
    "assert_properly_weighted",
    "check_constraint",
    "check_distribution",
    "check_guide",
    "check_keys",
    "check_language_model",
    "check_resampling",
    "enumerate_exact",
    "outcomes",
]

WEIGHTS = (
    (1.0,),
    (0.5, 0.5),
    (1.0, 0.0),
    (0.0, 1.0),
    (0.3, 0.7),
    (1 / 3, 1 / 3, 1 / 3),
    (0.6, 0.4, 0.0),
    (1e-300, 0.25, 0.75),
    (0.1, 0.2, 0.3, 0.4),
    (0.05, 0.0, 0.9, 0.05),
)
"""Weight vectors of `check_resampling`: one particle, all mass on one, ties, zeros, an underflow."""


class Infers(Protocol):
    """An engine of `lmppl.inference`, as far as these checks use it."""

    def infer(self, program: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """A posterior: `traces`, normalised `weights` and `log_evidence`."""


class Weighting(NamedTuple):
    """What `assert_properly_weighted` found."""

    outcomes: int
    """Of the engine's randomness."""
    exact: Measure
    estimate: Measure
    """E[Ẑ W(x)] of every value."""
    error: float
    """The largest difference, that of Z included."""


def assert_properly_weighted(
    program: Callable[..., Any],
    *args: Any,
    engine: Infers,
    lm: Any = None,
    of: str | Callable[[Trace], Any] | None = None,
    exact: Mapping[Any, float] | None = None,
    atol: float = 1e-10,
    driver: str | None = None,
    observations: Mapping[str, Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    on_error: str = "raise",
    most: int = MOST_OUTCOMES,
) -> Weighting:
    """An engine is properly weighted on a program, by exhaustion.

    Every outcome of the engine's randomness is run, and for each value x

        E[Ẑ W(x)] = γ(x),      E[Ẑ] = Z        to `atol`.

    Args:
        program: a finite program; two or three particles and short strings keep the number of
            outcomes in the thousands.
        *args: its arguments.
        engine: what is checked.
        lm: the language model.
        of: which value of a trace counts: a site, a function; what was returned when left out.
        exact: γ, when it is known; `enumerate_exact` finds it otherwise.
        atol: the largest error.
        driver: how frames suspend.
        observations: values of sites to condition on.
        kwargs: keyword arguments of the program.
        on_error: "kill" counts runs with an exception as impossible.
        most: of outcomes.

    Raises:
        LawBroken: with the value, γ and the estimate.

    >>> from lmppl import Bernoulli, factor, sample
    >>> from lmppl.inference import Importance
    >>> def coin():
    ...     heads = sample("heads", Bernoulli(0.5))
    ...     factor("bias", 0.0 if heads else -1.0)
    ...     return heads
    >>> assert_properly_weighted(coin, engine=Importance(particles=2)).outcomes
    4
    """
    if exact is None:
        exact = enumerate_exact(
            program, *args, lm=lm, of=of, observations=observations, kwargs=kwargs,
            on_error=on_error, most=most,
        )  # fmt: skip
    exact = Measure(exact)

    def run(chance: Chance) -> Any:
        return engine.infer(
            program, *args, lm=lm, driver=driver, observations=observations, kwargs=kwargs,
            on_error=on_error, on_dead="return", chance=chance,
        )  # fmt: skip

    count = 0
    evidence: list[float] = []
    terms: dict[Any, list[float]] = {}
    for probability, posterior in outcomes(run, most=most):
        count += 1
        z = exp(posterior.log_evidence) * probability
        evidence.append(z)
        for trace, weight in zip(posterior.traces, posterior.weights.tolist(), strict=True):
            if weight > 0.0:
                terms.setdefault(value_of(trace, of), []).append(z * weight)
    estimate = Measure({value: math.fsum(parts) for value, parts in terms.items()})
    gaps = {
        value: abs(exact.get(value, 0.0) - estimate.get(value, 0.0))
        for value in {**exact, **estimate}
    }
    z = math.fsum(evidence)
    worst = max(gaps, key=lambda value: gaps[value], default=None)
    error = max([abs(z - exact.z), *gaps.values()])
    if not error <= atol:
        raise LawBroken(
            f"{engine} is not properly weighted: an error of {error:.3g} over {count:,} outcomes",
            value=f"E[Ẑ] = {z!r} where Z = {exact.z!r}; E[Ẑ W(x)] = {estimate.get(worst, 0.0)!r} "
            f"where γ(x) = {exact.get(worst, 0.0)!r} at x = {excerpt(worst, 60)}",
            why="its evidence, or its posterior, is biased for every number of particles",
        )
    return Weighting(count, exact, estimate, error)


class _Keys(GumbelMax):
    """Gumbel-max that notes each key it is asked by."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def _note(self, keys: Keys) -> None:
        for key in keys.tolist():
            self.seen[key] = self.seen.get(key, 0) + 1

    def categorical(self, keys: Keys, log_weights: Floats) -> Ints:
        self._note(keys)
        return super().categorical(keys, log_weights)

    def offsets(self, keys: Keys, breakpoints: Sequence[Floats] | None = None) -> Floats:
        self._note(keys)
        return super().offsets(keys, breakpoints)


def check_keys(
    program: Callable[..., Any],
    *args: Any,
    engine: Infers,
    lm: Any = None,
    seeds: Sequence[int] = (0, 1, 2),
    **options: Any,
) -> int:
    """No two draws of a run share a random key; returns how many keys there were.

    Particles, sites, tokens, resampling steps and nested inferences must all differ, or draws that
    ought to be independent are equal: the mean of an estimate is then right and its variance wrong,
    or not even the mean.
    """
    total = 0
    for seed in seeds:
        chance = _Keys()
        engine.infer(program, *args, lm=lm, seed=seed, on_dead="return", chance=chance, **options)
        shared = sum(n - 1 for n in chance.seen.values())
        if shared:
            raise LawBroken(
                f"{shared} of {shared + len(chance.seen)} draws used a random key again",
                where=f"seed {seed}",
                why="a draw is a function of its key: equal keys give equal draws",
                fix="fold the particle, its lineage, the site and the step into the key",
            )
        total += len(chance.seen)
    return total


def check_resampling(
    scheme: Callable[[Floats, Key, Chance], Ints],
    weights: Sequence[Sequence[float]] = WEIGHTS,
    atol: float = 1e-12,
) -> None:
    """A resampling scheme is unbiased, by exhaustion.

    E[number of offspring of i] = N W_i, N ancestors in all, an index of weight zero is never one.

    Args:
        scheme: a function of (weights [N], key, chance) that gives N ancestors.
        weights: weight vectors to try.
        atol: the largest error of an expected number.
    """
    for one in weights:
        w = normalize(np.where(np.array(one) > 0, np.log(np.maximum(one, 1e-320)), NEG_INF))
        n = len(w)
        expected = np.zeros(n)
        for probability, ancestors in outcomes(partial(scheme, w, 11)):
            found = np.asarray(ancestors)
            if found.shape != (n,) or found.min() < 0 or found.max() >= n:
                raise LawBroken(f"{n} ancestors below {n} are due", value=excerpt(found.tolist()))
            if (w[found] == 0.0).any():
                raise LawBroken(
                    "an index of weight zero was chosen", value=excerpt((one, found.tolist()))
                )
            expected += probability * np.bincount(found, minlength=n)
        error = float(np.abs(expected - n * w).max())
        if not error <= atol:
            raise LawBroken(
                f"{getattr(scheme, '__name__', scheme)} is biased by {error:.3g}",
                value=f"expected offspring {expected.tolist()} of weights {list(one)}",
            )
