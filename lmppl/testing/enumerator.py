"""Enumeration of chance: run the same code once for every outcome of its randomness.

All randomness passes one interface, `lmppl.random.Chance`. `Enumerator` answers it from a script
and notes where another answer was possible; `outcomes` replays a run with every script, depth
first, and yields each result with its exact probability. Whatever drew by Gumbel-max in production
runs unchanged: a distribution, a program, a whole engine.

    outcomes(run)  ->  (probability, run(chance)) for every outcome, Σ probability = 1

A draw is a function of its key. So a key that is asked the same question again gives the same
answer, and a key that is asked two different questions is an error: in production the two draws
would be dependent.

Reference: the idea of walking a sampler's choice tree is genlm-control's (`trace_swor`); here the
tree is visited whole, with probabilities, so that an expectation is a sum and not an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from lmppl.eager import EagerContext
from lmppl.errors import LmpplError, excerpt
from lmppl.handlers import condition
from lmppl.lm.load import as_models
from lmppl.random import Chance
from lmppl.trace import Trace
from lmppl.types import Floats, Ints, Keys
from lmppl.weights import NEG_INF, exp, log_sum_exp, normalize

T = TypeVar("T")
MOST_OUTCOMES = 1_000_000
NARROW = 1e-12
"""Intervals of an offset below this width are rounding, and are added to their neighbour."""


class LawBroken(LmpplError, AssertionError):
    """Something does not obey the law it was checked for."""


class Enumerator:
    """A `Chance` that follows a script: at each choice point, which of the options to take.

    Only answers of positive probability are options; a choice with one option is no choice point.
    Past the end of the script the first option is taken. A batch of rows is one choice point after
    the other.

    >>> chance = Enumerator([1])
    >>> int(chance.categorical(np.array([7], dtype=np.uint64), np.log([[1.0, 3.0]]))[0])
    1
    >>> round(chance.probability, 6), chance.widths
    (0.75, [2])
    """

    def __init__(self, script: Sequence[int] = ()) -> None:
        """Keep the script."""
        self.script = tuple(script)
        self.taken: list[int] = []
        """Which option was taken at each choice point."""
        self.widths: list[int] = []
        """How many options there were."""
        self.probability = 1.0
        """Of everything answered so far."""
        self._answers: dict[int, tuple[bytes, float]] = {}

    def _choose(self, probabilities: Floats) -> int:
        """An index of positive probability, by the script."""
        options = np.flatnonzero(probabilities > 0.0)
        if len(options) == 0:
            raise LawBroken(
                "a draw was asked of weights that are all zero",
                value=excerpt(probabilities.tolist()),
                fix="handle the impossible case before drawing: the weight of the run is zero",
            )
        at = 0
        if len(options) > 1:
            step = len(self.taken)
            at = self.script[step] if step < len(self.script) else 0
            if at >= len(options):
                raise _not_a_function(step)
            self.taken.append(at)
            self.widths.append(len(options))
        index = int(options[at])
        self.probability *= float(probabilities[index])
        return index

    def _once(self, key: int, question: Floats, answer: Callable[[], float]) -> float:
        """The answer of a key: a function of it."""
        asked = question.tobytes()
        known = self._answers.get(key)
        if known is None:
            known = self._answers[key] = (asked, answer())
        elif known[0] != asked:
            raise LawBroken(
                f"the key {key:#018x} was used for two different draws",
                value=excerpt(question.tolist()),
                why="a draw is a function of its key, so the two are dependent in production",
                fix="fold what differs (site, slot, step) into the key",
            )
        return known[1]

    def categorical(self, keys: Keys, log_weights: Floats) -> Ints:
        """One choice point per row."""
        picks = []
        for key, row in zip(keys.tolist(), np.asarray(log_weights, dtype=np.float64), strict=True):
            if np.isnan(row).any() or (row == math.inf).any():
                raise LawBroken(
                    "a draw was asked of weights that are not finite", value=excerpt(row)
                )
            picks.append(self._once(key, row, partial(self._choose, normalize(row))))
        return np.array(picks, dtype=np.int64)

    def offsets(self, keys: Keys, breakpoints: Sequence[Floats] | None = None) -> Floats:
        """The middle of an interval between breakpoints; its length is its probability."""
        if breakpoints is None:
            raise LawBroken(
                "a continuous draw cannot be enumerated",
                fix="give offsets(keys, breakpoints) the points where the result changes",
            )
        points = []
        for key, inner in zip(keys.tolist(), breakpoints, strict=True):
            edges = [0.0]
            for edge in sorted(float(b) for b in inner):
                if edge - edges[-1] > NARROW and 1.0 - edge > NARROW:
                    edges.append(edge)
            edges.append(1.0)
            bounds = np.array(edges)

            def middle(bounds: Floats = bounds) -> float:
                k = self._choose(np.diff(bounds))
                return float(bounds[k] + bounds[k + 1]) / 2

            points.append(self._once(key, bounds, middle))
        return np.array(points, dtype=np.float64)


def _not_a_function(step: int) -> LawBroken:
    return LawBroken(
        f"the run took another path when its draws were replayed (choice point {step})",
        why="enumeration needs a run that is a function of its draws",
        fix="remove state that lasts from run to run, clocks and other randomness",
    )


class Outcome(NamedTuple, Generic[T]):
    """One outcome of a run's randomness."""

    probability: float
    value: T


def outcomes(
    run: Callable[[Chance], T], *, most: int = MOST_OUTCOMES, atol: float = 1e-12
) -> Iterator[Outcome[T]]:
    """Every outcome of `run(chance)` with its probability.

    Args:
        run: draws by the `Chance` it is given and is otherwise deterministic.
        most: how many outcomes are visited before it gives up.
        atol: how far the probabilities may add up from 1; checked when all have been visited.

    Raises:
        LawBroken: there are too many, they do not add up, or the run is no function of its draws.

    >>> from lmppl.random import draw
    >>> coin = np.log([1.0, 3.0])
    >>> [(round(o.probability, 6), o.value) for o in outcomes(lambda chance: draw(chance, 1, coin))]
    [(0.25, 0), (0.75, 1)]
    """
    script: list[int] = []
    widths: list[int] = []
    probabilities: list[float] = []
    while True:
        chance = Enumerator(script)
        try:
            value = run(chance)
        except Exception as error:
            error.add_note(f"in the outcome with script {chance.taken}")
            raise
        if chance.widths[: len(script)] != widths[: len(script)]:
            raise _not_a_function(len(script))
        probabilities.append(chance.probability)
        yield Outcome(chance.probability, value)
        script, widths = chance.taken, chance.widths
        while script and script[-1] + 1 == widths[len(script) - 1]:
            script.pop()
        if not script:
            break
        if len(probabilities) >= most:
            raise LawBroken(
                f"more than {most:,} outcomes",
                fix="use fewer particles, sites or tokens, or a larger most=",
            )
        script[-1] += 1
    total = math.fsum(probabilities)
    if abs(total - 1.0) > atol:
        raise LawBroken(
            f"the probabilities of {len(probabilities):,} outcomes add up to {total!r}",
            why="a draw had another law than its weights say",
        )


class Measure(dict[Any, float]):
    """γ: an unnormalised measure over finitely many values.

    >>> m = Measure({"a": 0.5, "b": 0.25})
    >>> m.z, m.posterior["a"]
    (0.75, 0.6666666666666666)
    """

    @property
    def z(self) -> float:
        """Z = Σ γ(x)."""
        return math.fsum(self.values())

    @property
    def log_z(self) -> float:
        """log Z; `-inf` when nothing has mass."""
        with np.errstate(divide="ignore"):
            return log_sum_exp(np.log(np.array(list(self.values()), dtype=np.float64)))

    @property
    def posterior(self) -> dict[Any, float]:
        """γ / Z."""
        z = self.z
        return {value: mass / z for value, mass in self.items()}


class _Dead(BaseException):
    """Leaves a run whose weight has become zero."""


class _Scripted(EagerContext):
    """A plain call that ends where its weight is zero, as a particle does."""

    def _record(self, message: Any, logw: float) -> None:
        super()._record(message, logw)
        if logw == NEG_INF:
            raise _Dead


def enumerate_exact(
    program: Callable[..., Any],
    *args: Any,
    lm: Any = None,
    of: str | Callable[[Trace], Any] | None = None,
    observations: Mapping[str, Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    on_error: str = "raise",
    most: int = MOST_OUTCOMES,
) -> Measure:
    """γ of every value of a finite program, by plain calls of it with every possible draw.

    No engine takes part: γ(x) = Σ over runs with value x of probability · exp(log-weight).

    Args:
        program: the function.
        *args: its arguments.
        lm: its language model, or models by name.
        of: a site, or a function of the trace; what the program returns when left out.
        observations: values of sample sites to condition on.
        kwargs: keyword arguments of the program.
        on_error: "kill" counts runs with an exception as impossible.
        most: of runs.

    >>> from lmppl import Bernoulli, observe, sample
    >>> def two():
    ...     rain = sample("rain", Bernoulli(0.25))
    ...     observe("wet", Bernoulli(0.9 if rain else 0.1), True)
    ...     return rain
    >>> round(enumerate_exact(two).z, 6)
    0.3
    """
    models = as_models(lm)
    fn = program if not observations else condition(program, observations)

    def run(chance: Chance) -> Trace | None:
        context = _Scripted(0, chance, models)
        try:
            context.enter(fn, args, dict(kwargs or {}))
        except _Dead:
            return None
        except Exception as error:
            if on_error != "kill" or (isinstance(error, LmpplError) and error.fatal):
                raise
            return None
        return context.trace

    found: dict[Any, list[float]] = {}
    for probability, trace in outcomes(run, most=most):
        if trace is not None:
            value = value_of(trace, of)
            found.setdefault(value, []).append(probability * exp(trace.log_weight))
    return Measure({value: math.fsum(terms) for value, terms in found.items()})


def value_of(trace: Trace, of: str | Callable[[Trace], Any] | None) -> Any:
    """What a trace counts as: its result, the value of a site (None where it has none), a function."""
    if of is None:
        return trace.result
    if callable(of):
        return of(trace)
    return trace[of] if of in trace else None
