"""Distributions at a site: the protocol, and the finite ones.

A distribution says three things, each as a step (`lmppl.jobs`):

    draw(key, env)    -> Draw(value, log p, log q)      weight of a sample: log p - log q
    score(value, env) -> log p(value)                   weight of an observation
    support(env)      -> [(value, log p), …]            for exact enumeration, Σ p = 1

and `fingerprint`, a number equal for equal distributions in every process, by which replay is
checked. `lmppl.strings` has those of language models; NumPyro distributions are wrapped by
`as_distribution`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from lmppl.batches import run_now
from lmppl.errors import (
    BadArgument,
    NotADistribution,
    NotFinite,
    UnsupportedValue,
    excerpt,
    items_of,
)
from lmppl.jobs import Batch, Draw, Env, Generate, Score, Step
from lmppl.ledger import Ledger
from lmppl.lm.base import LanguageModel
from lmppl.random import GumbelMax, draw, fold, hash_text
from lmppl.types import Key
from lmppl.values import freeze
from lmppl.weights import NEG_INF, log_sum_exp


class Distribution(ABC):
    """A law over values that can be drawn, scored and, where finite, listed."""

    kind: ClassVar[str] = "distribution"
    asks: ClassVar[bool] = False
    """Whether every draw is one job: `ask(env)` makes it, its key is made with those of its batch."""

    @abstractmethod
    def draw(self, key: Key, env: Env) -> Step[Draw]:
        """Draw a value with a key."""

    @abstractmethod
    def score(self, value: Any, env: Env) -> Step[float]:
        """log p(value); `-inf` outside the support."""

    def support(self, env: Env) -> Step[list[tuple[Any, float]]]:
        """Every value of positive probability with its log p.

        Raises:
            NotFinite: the distribution has no finite list of values.
        """
        raise NotFinite(
            f"{self.kind} has no finite support",
            fix="use Categorical, Choice, or LM with a TableLM and max_tokens; or another engine",
        )

    def parts(self) -> Iterator[Distribution]:
        """The distributions it is made of: itself, or the components of a mixture."""
        yield self

    def bound(self, models: Mapping[str, LanguageModel]) -> Distribution:
        """The same law, with the models it names given (`handlers.using`)."""
        return self

    @property
    @abstractmethod
    def fingerprint(self) -> int:
        """A 64-bit number, equal for equal distributions in every process."""

    def sample(self, key: Key = 0, *, lm: Any = None) -> Any:
        """Draw one value, outside of any program: a function of `key` alone."""
        env = _plain_env(lm)
        return run_now(self.draw(key, env), env, Ledger()).value

    def log_prob(self, value: Any, *, lm: Any = None) -> float:
        """log p(value), outside of any program.

        >>> from lmppl import Bernoulli
        >>> round(Bernoulli(0.25).log_prob(True), 4)
        -1.3863
        """
        env = _plain_env(lm)
        return float(run_now(self.score(value, env), env, Ledger()))


def _plain_env(lm: Any) -> Env:
    from lmppl.context import local
    from lmppl.lm.load import as_models, load

    return Env({**local.models, **as_models(lm)}, GumbelMax(), load)


_NUMBERS = (float, int, np.number, np.ndarray)
"""What can be a probability; an array of one is compared like a number."""


def fingerprint_of(value: Any) -> int:
    """A process-stable 64-bit number of a value a program handles."""
    if isinstance(value, str):
        return hash_text(value)
    if isinstance(value, np.ndarray):
        return fold(
            hash_text(value.dtype.str),
            hash_text(repr(value.shape)),
            hash_text(value.tobytes().hex()),
        )
    if isinstance(value, (tuple, list)):
        return fold(len(value), *(fingerprint_of(v) for v in value))
    if isinstance(value, (bool, int, float, bytes, type(None))):
        return hash_text(f"{type(value).__name__}:{value!r}")
    if isinstance(value, Mapping):
        return fold(len(value), *(fingerprint_of(v) for kv in value.items() for v in kv))
    if isinstance(value, (set, frozenset)):
        return fold(len(value), *sorted(fingerprint_of(v) for v in value))
    return hash_text(f"{type(value).__module__}.{type(value).__qualname__}")


_PLAIN = {str, int, float, bool}
"""Types whose values are told apart by `repr`."""


class Categorical(Distribution):
    """A law over listed values.

    P(value_k) = p_k / Σ p.

    Args:
        probabilities: a mapping from value to weight, or a sequence of values with `weights`.
        weights: non-negative numbers, one per value; equal when left out.

    >>> from lmppl.jobs import Env
    >>> round(Categorical({"a": 1, "b": 3}).score("b", Env()), 4)
    -0.2877
    """

    kind = "Categorical"
    __slots__ = ("_fingerprint", "log_weights", "values")

    def __init__(
        self,
        probabilities: Mapping[Any, float] | Sequence[Any],
        weights: Sequence[float] | None = None,
    ) -> None:
        """Check and normalise the weights."""
        if isinstance(probabilities, Mapping):
            self.values = tuple(probabilities)
            weights = list(probabilities.values())
        else:
            fix = 'write Categorical({"a": 0.7, "b": 0.3}), or Categorical(["a", "b"], [0.7, 0.3])'
            values = items_of(probabilities, f"{self.kind} needs a list of values", fix)
            self.values = tuple([_frozen(v) for v in values])
            if weights is None:
                _no_probabilities(self.kind, self.values)
                weights = [1.0] * len(values)
            else:
                weights = items_of(weights, f"{self.kind} needs a list of weights", fix)
        total = 0.0
        fine = len(weights) == len(self.values) > 0
        for w in weights:
            if not isinstance(w, _NUMBERS) or not 0.0 <= w < math.inf:
                fine = False
                break
            total += float(w)
        if not (fine and 0.0 < total < math.inf):
            raise BadArgument(
                f"{self.kind} needs one finite non-negative weight per value, not all zero",
                value=excerpt(list(zip(self.values, weights, strict=False))),
                fix='write Categorical({"a": 0.7, "b": 0.3})',
            )
        self.log_weights = [math.log(w / total) if w > 0.0 else NEG_INF for w in weights]
        self._fingerprint: int | None = None

    def draw(self, key: Key, env: Env) -> Draw:
        """One categorical draw."""
        k = draw(env.chance, key, self.log_weights)
        value, logp = self.values[k], self.log_weights[k]
        if self._repeats():  # as a proposal, q(value) is that of all its entries
            logp = self.score(value, env)
        return Draw(value, logp, logp)

    def _repeats(self) -> bool:
        try:
            return len(set(self.values)) < len(self.values)
        except TypeError:
            return True

    def score(self, value: Any, env: Env) -> float:
        """Σ over the entries equal to the value, as Python says: 1 is True."""
        value = _frozen(value)
        hits = [w for v, w in zip(self.values, self.log_weights, strict=True) if _same(v, value)]
        return hits[0] if len(hits) == 1 else log_sum_exp(hits)

    def support(self, env: Env) -> list[tuple[Any, float]]:
        """The values of positive weight, in order."""
        return [(v, w) for v, w in zip(self.values, self.log_weights, strict=True) if w > NEG_INF]

    @property
    def fingerprint(self) -> int:
        """Of values and weights."""
        if self._fingerprint is None:
            if _PLAIN.issuperset(map(type, self.values)):
                self._fingerprint = _mark(self.kind, repr(self.values), tuple(self.log_weights))
            else:
                self._fingerprint = fold(
                    hash_text(self.kind),
                    fingerprint_of(self.values),
                    fingerprint_of(self.log_weights),
                )
        return self._fingerprint

    def __repr__(self) -> str:
        pairs = zip(self.values, self.log_weights, strict=True)
        shown = _listed(f"{v!r}: {math.exp(w):.4g}" for v, w in pairs)
        return f"{self.kind}({{{shown[1:-1]}}})"


def _listed(parts: Iterable[str], most: int = 12) -> str:
    """The first of them, as a list is shown."""
    first = list(islice(parts, most + 1))
    return f"[{', '.join(first[:most] + ['…'] * (len(first) > most))}]"


@lru_cache(maxsize=4096)
def _mark(kind: str, values: str, log_weights: tuple[float, ...]) -> int:
    """The fingerprint of a finite law, which particles make again and again."""
    return hash_text(f"{kind}{values}{[*log_weights]!r}")


def _no_probabilities(kind: str, values: tuple[Any, ...]) -> None:
    """Elsewhere a list is the probabilities of 0, 1, …; here it would be values, without a word."""
    floats = len(values) > 1 and all(isinstance(v, (float, np.floating)) for v in values)
    if kind == "Categorical" and floats and abs(sum(values) - 1.0) < 1e-6:
        raise BadArgument(
            "Categorical was given numbers that sum to 1, without values",
            value=excerpt(list(values)),
            why="a list is the values, not their probabilities",
            fix="write Categorical(dict(enumerate(p))), or Uniform(values) if they are the values",
        )


def _frozen(value: Any) -> Any:
    """A value as particles share it: a list becomes a tuple, a NumPy scalar a number."""
    if isinstance(value, np.generic):
        return value.item()
    return freeze(value) if type(value) in (list, dict, set) else value


def _same(a: Any, b: Any) -> bool:
    same = a == b
    return same if isinstance(same, bool) else bool(np.array_equal(a, b))


class Bernoulli(Categorical):
    """True with probability p, else False."""

    kind = "Bernoulli"
    __slots__ = ()

    def __init__(self, p: float) -> None:
        """Check that p is a probability."""
        if not isinstance(p, _NUMBERS) or not 0.0 <= p <= 1.0:
            raise BadArgument(
                f"Bernoulli needs a probability, got {p!r}", fix="write Bernoulli(0.5)"
            )
        super().__init__({True: p, False: 1.0 - p})

    def _repeats(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"Bernoulli({math.exp(self.log_weights[0]):.4g})"


class Uniform(Categorical):
    """Every listed value with equal probability: `Uniform(["red", "green"])`."""

    kind = "Uniform"
    __slots__ = ()

    def __init__(self, values: Iterable[Any]) -> None:
        """List the values."""
        fix = 'write Uniform(["a", "b"])'
        items = items_of(values, "Uniform needs a list of values", fix)
        if not items:
            raise BadArgument(
                "Uniform needs a non-empty list of values",
                value=excerpt(values),
                fix='write Uniform(["a", "b"])',
            )
        super().__init__(items)

    def __repr__(self) -> str:
        return f"Uniform({_listed(map(repr, self.values))})"


class Delta(Categorical):
    """One value, for certain."""

    kind = "Delta"
    __slots__ = ()

    def __init__(self, value: Any) -> None:
        """Keep the value."""
        super().__init__([value])

    def __repr__(self) -> str:
        return f"Delta({self.values[0]!r})"


def score_or_zero(component: Distribution, value: Any, env: Env) -> Step[float]:
    """A component's score; a value it cannot have counts nothing, since another one may."""
    try:
        return component.score(value, env)
    except UnsupportedValue:
        return NEG_INF


def after(step: Any, go_on: Callable[[Any], Any]) -> Any:
    """The step that runs `step` and then `go_on` with its result."""
    if isinstance(step, (Generate, Score, Batch)):
        then = step.then
        if then is None:
            step.then = go_on
            return step
        step.then = lambda outcome: after(then(outcome), go_on)
        return step
    return go_on(step)


def gather(steps: Sequence[Callable[[], Any]], done: Callable[[list[Any]], Any]) -> Any:
    """Run steps one after the other and hand all results to `done`."""

    def run(at: int, results: list[Any]) -> Any:
        if at == len(steps):
            return done(list(results))
        return after(steps[at](), lambda r: run(at + 1, [*results, r]))

    return run(0, [])


KNOWN: set[type] = set()
"""Classes seen to be distributions: a check against an abstract class is slow."""


def as_distribution(value: Any, site: str) -> Distribution:
    """Take a distribution as it is, wrap a NumPyro one, refuse anything else by name."""
    if type(value) in KNOWN:
        return value  # type: ignore[no-any-return]
    if isinstance(value, Distribution):
        KNOWN.add(type(value))
        return value
    if isinstance(value, type):
        raise NotADistribution(site, value)
    module = type(value).__module__ or ""
    if module.split(".")[0] == "numpyro" or any(
        c.__module__.startswith("numpyro.dist") for c in type(value).__mro__
    ):
        from lmppl.numpyro import NumPyro

        return NumPyro(value)
    raise NotADistribution(site, value)
