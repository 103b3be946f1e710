"""Signals: numbers that a stopping rule reads.

A rule never sees a posterior. It reads named values from a mapping: `Readings` computes those of a
posterior, each when it is first asked for; along a chain of thought the caller gives them himself.

| name | meaning |
| --- | --- |
| `draws`, `batches` | particles drawn so far, batches of the engine |
| `counts` | effective answers by class, the most first: n_eff · mass |
| `answer` | the class ahead |
| `lead` | P(it is the more probable of the first two) = 1 - I_½(v₁ + 1, v₂ + 1) |
| `entropy` | H = -Σ m log m over classes, in nats (semantic entropy, over the user's equivalence) |
| `last_entropy` | that of the last batch alone |
| `certainty` | (log n - H) / log n with n = Σ counts; 0 for n ≤ 1 |
| `ess` | effective sample size |
| `log_evidence`, `evidence_width` | log Ẑ, and the width of its 95 % interval |
| `tokens`, `calls`, `seconds`, `money` | what was spent; money needs `prices` |

n_eff = min(ESS, independent families): n for plain draws.

References: Aggarwal et al., Let's sample step by step (adaptive consistency, 2023); Farquhar et al.,
Detecting hallucinations using semantic entropy (2024); Fu et al., Certaindex (2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lmppl.errors import BadArgument
from lmppl.inference.results.posterior import Posterior
from lmppl.inference.results.tally import Key, Same, Tally, tally
from lmppl.ledger import Ledger

Prices = Mapping[str, tuple[float, float]]
"""By model: the price of a million tokens read, and of a million tokens written."""


def majority_probability(first: float, second: float) -> float:
    """P(θ > ½) for θ ~ Beta(v₁ + 1, v₂ + 1): the leader of two answers is the more probable one.

    >>> round(majority_probability(0, 0), 9), round(majority_probability(3, 0), 9)
    (0.5, 0.9375)
    """
    if not (math.isfinite(first) and math.isfinite(second) and first >= 0.0 and second >= 0.0):
        raise BadArgument(f"counts must be finite and not negative, got {first!r} and {second!r}")
    return beta_cdf(0.5, second + 1.0, first + 1.0)


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction.

    Reference: Lentz's method as in Thompson and Barnett (1986).
    """
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - beta_cdf(1.0 - x, b, a)
    log_front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        + a * math.log(x) + b * math.log1p(-x)
    )  # fmt: skip
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + term * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + term / c
            c = c if abs(c) > tiny else tiny
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return math.exp(log_front) * value / a


def entropy(counts: Sequence[float]) -> float:
    """-Σ p log p of counts, in nats.

    >>> round(entropy([2, 2]), 6), entropy([4])
    (0.693147, 0.0)
    """
    total = math.fsum(counts)
    if total <= 0.0:
        return math.nan
    return max(0.0, -math.fsum(c / total * math.log(c / total) for c in counts if c > 0.0))


def certainty(counts: Sequence[float]) -> float:
    """(log n - H) / log n of n answers: 1 when all agree, 0 when no two do.

    >>> certainty([4]), round(certainty([1, 1, 1]), 9), certainty([1])
    (1.0, 0.0, 0.0)
    """
    total = math.fsum(counts)
    if not total > 1.0:
        return 0.0  # one answer agrees with itself, which says nothing
    return max(0.0, 1.0 - entropy(counts) / math.log(total))


def slope(values: Sequence[float]) -> float:
    """The least-squares slope of values at 0, 1, 2, …; nan for fewer than two.

    >>> slope([1.0, 0.5, 0.0])
    -0.5
    """
    n = len(values)
    if n < 2:
        return math.nan
    middle = (n - 1) / 2
    squares = math.fsum((i - middle) ** 2 for i in range(n))
    return math.fsum((i - middle) * v for i, v in enumerate(values)) / squares


def money(ledger: Ledger, prices: Prices) -> float:
    """What the tokens of a ledger cost.

    >>> book = Ledger()
    >>> book.model("m").tokens_out = 500_000
    >>> money(book, {"m": (1.0, 4.0)})
    2.0
    """
    unknown = sorted(set(ledger.models) - set(prices))
    if unknown:
        raise BadArgument(
            f"no price of {', '.join(unknown)}", fix='write prices={"name": (read, written)}'
        )
    return math.fsum(
        (cost.tokens_in * prices[name][0] + cost.tokens_out * prices[name][1]) / 1e6
        for name, cost in ledger.models.items()
    )


class Readings(Mapping[str, Any]):
    """The signals of a posterior, each computed when it is read.

    Args:
        posterior: what is known so far, or a function that makes it when a signal needs it.
        ledger: what was spent; the posterior's when left out.
        draws: how many particles were drawn; those of the posterior when left out.
        batches: how many batches it pools.
        last: the posterior of the last of them.
        of: which part of a trace is the answer.
        key: the equivalence of answers, as in `tally`.
        same: the equivalence of answers, as in `tally`.
        keep: which answers count.

        prices: for `money`.
    """

    def __init__(
        self,
        posterior: Posterior | Callable[[], Posterior],
        *,
        ledger: Ledger | None = None,
        draws: int | None = None,
        batches: int = 1,
        last: Posterior | None = None,
        of: Any = None,
        key: Key | None = None,
        same: Same | None = None,
        keep: Any = None,
        prices: Prices | None = None,
    ) -> None:
        """Compute nothing yet."""
        self._posterior = posterior
        self._ledger = ledger
        self._draws = draws
        self.batches = batches
        self._last = last
        self.prices = prices
        self._classes = {"of": of, "key": key, "same": same, "keep": keep}
        self._tally: Tally | None = None

    @property
    def posterior(self) -> Posterior:
        """What is known so far."""
        if not isinstance(self._posterior, Posterior):
            self._posterior = self._posterior()
        return self._posterior

    @property
    def last_draws(self) -> int:
        """Particles of the last batch."""
        return len(self.posterior if self._last is None else self._last)

    @property
    def tally(self) -> Tally | None:
        """The classes of answers; None where no answer counts."""
        if self._tally is None:
            self._tally = self._count(self.posterior)
        return self._tally

    def _count(self, posterior: Posterior) -> Tally | None:
        keep = self._classes["keep"]
        if posterior.dead or (
            keep is not None
            and not any(
                w > 0.0 and keep(v)
                for v, w in zip(
                    posterior.values(self._classes["of"]), posterior.weights, strict=True
                )
            )
        ):
            return None
        return tally(posterior, **self._classes)

    def __iter__(self) -> Iterator[str]:
        return iter(SIGNALS)

    def __len__(self) -> int:
        return len(SIGNALS)

    def __contains__(self, name: object) -> bool:
        return name in SIGNALS and (name != "money" or self.prices is not None)

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        if name == "batches":
            return self.batches
        if name == "draws":
            return len(self.posterior) if self._draws is None else self._draws
        if name in ("tokens", "calls", "seconds", "money"):
            ledger = self.posterior.ledger if self._ledger is None else self._ledger
            return getattr(ledger, name) if name != "money" else money(ledger, self.prices or {})
        p = self.posterior
        if name in ("ess", "log_evidence"):
            return getattr(p, name)
        if name == "evidence_width":
            low, high = p.log_evidence_interval()
            return high - low
        t = self._count(self._last or p) if name == "last_entropy" else self.tally
        if name == "answer":
            return None if t is None else t.answers[0]
        if name in ("entropy", "last_entropy"):
            return math.nan if t is None else t.entropy
        return self._of_counts(name, t)

    def _of_counts(self, name: str, t: Tally | None) -> Any:
        if t is None:
            return {"counts": [], "lead": 0.5, "certainty": 0.0}[name]
        n = min(self.posterior.ess, float(self.posterior.unique_ancestors)) * (1.0 - t.dropped)
        counts = [n * m for m in t.mass]
        if name == "lead":
            return majority_probability(counts[0], counts[1] if len(counts) > 1 else 0.0)
        return counts if name == "counts" else certainty(counts)


SIGNALS = (
    "draws", "batches", "counts", "answer", "lead", "entropy", "last_entropy", "certainty", "ess", "log_evidence",
    "evidence_width", "tokens", "calls", "seconds", "money",
)  # fmt: skip
"""What `Readings` has; `money` only with prices."""
