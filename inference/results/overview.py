"""A posterior as a table of its sites: `print(posterior.summary())`.

A site whose values are numbers in every trace has a mean with its standard error, a standard
deviation, and quantiles; any other site, and a number with few values, its most probable value.
Observed sites and factors are left out, since their values are known. A quantile is the smallest
value x with Σ { W_i : x_i ≤ x } ≥ q.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lmppl.errors import BadArgument, excerpt
from lmppl.inference.results.estimates import Interval, Marginal
from lmppl.inference.results.summary import hashable, made_by, trust
from lmppl.types import Floats, Ints

if TYPE_CHECKING:
    from lmppl.inference.results.posterior import Of, Posterior

FEW = 8
"""Whole numbers with at most so many different values are shown as values."""
ROWS = 40
"""Sites that are printed."""
QUANTILES = (0.05, 0.5, 0.95)
LARGE = 2**63
"""A whole number from here on is a value: arrays of numbers do not hold it."""
SHOWN = ("sample", "deterministic", "effect", "choose", "reward")
"""What a site must be; an observation or a factor has a known value."""


class NumberRow(NamedTuple):
    """A site of numbers."""

    site: str
    mean: float
    se: float
    sd: float
    quantiles: tuple[float, ...]
    """At 0.05, 0.5 and 0.95."""


class ValueRow(NamedTuple):
    """A site of values."""

    site: str
    best: Any
    p: float
    se: float
    different: int
    """How many values have weight."""


@dataclass(frozen=True)
class Summary:
    """What `Posterior.summary` returns; as text it is a table."""

    made_by: str
    evidence: str
    numbers: tuple[NumberRow, ...]
    values: tuple[ValueRow, ...]
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [self.made_by, self.evidence]
        if self.numbers:
            heads: tuple[str, ...] = (
                "site",
                "mean",
                "± se",
                "sd",
                *(f"{100 * q:g} %" for q in QUANTILES),
            )
            texts = [
                (r.site, *map(_number, (r.mean, r.se, r.sd, *r.quantiles))) for r in self.numbers
            ]
            lines += ["", *_aligned(heads, texts, 1)]
        if self.values:
            heads = ("site", "most probable", "p", "± se", "different")
            texts = [
                (r.site, f"{r.best!r:.40}", f"{r.p:.4f}", _fixed(r.se), str(r.different))
                for r in self.values
            ]
            lines += ["", *_aligned(heads, texts, 2)]
        return "\n".join([*lines, *(f"warning: {w}" for w in self.warnings)])

    __repr__ = __str__


def summary(posterior: Posterior) -> Summary:
    """The table of a posterior's sites, in the order in which programs came to them."""
    low, high = posterior.log_evidence_interval()
    evidence = f"log evidence {round(posterior.log_evidence, 9):.4g}"
    if high - low > 1e-6:  # below is rounding
        evidence += f" ({low:.4g} to {high:.4g})"
    book = posterior.ledger
    evidence += (
        f", {trust(posterior)}, {book.tokens_in:,} + {book.tokens_out:,} tokens, "
        f"{book.seconds:.1f} s"
    )
    numbers: list[NumberRow] = []
    values: list[ValueRow] = []
    for site in () if posterior.dead else (None, *_sites(posterior)):
        name, drawn = site or "result", posterior.values(site)
        x = as_numbers(drawn, posterior.weights)
        if x is not None and (x.dtype == np.float64 or len(set(x.tolist())) > FEW):
            numbers.append(_number_row(posterior, name, x, site))
        elif site is not None or any(v is not None for v in drawn):
            values.append(_value_row(posterior, name, site))
    return Summary(
        made_by(posterior), evidence, tuple(numbers), tuple(values), tuple(posterior.warnings)
    )


def _sites(posterior: Posterior) -> list[str]:
    """Every site whose value is not known beforehand."""
    found: dict[str, None] = {}
    for trace, w in zip(posterior.traces, posterior.weights, strict=True):
        if w > 0:
            found.update((e.address, None) for e in trace.sites if e.op in SHOWN)
    return list(found)


def as_numbers(values: Sequence[Any], weights: Floats) -> Floats | Ints | None:
    """The values [N], 0 where there is no weight; None when one of the others is no number."""
    numbers = [v for v, w in zip(values, weights, strict=True) if w > 0]
    for v in numbers:
        if isinstance(v, (bool, np.bool_)) or not isinstance(v, (int, float, np.number)):
            return None
        if isinstance(v, int) and abs(v) >= LARGE:
            return None
    whole = all(isinstance(v, (int, np.integer)) for v in numbers)
    x: Floats | Ints = np.zeros(len(values), dtype=np.int64) if whole else np.zeros(len(values))
    x[weights > 0] = numbers
    return x


def quantile(x: Floats | Ints, weights: Floats, q: float) -> float:
    """The smallest value that at least q of the weight does not exceed.

    >>> quantile(np.array([3.0, 1.0, 2.0]), np.array([0.2, 0.5, 0.3]), 0.6)
    2.0
    """
    order = np.argsort(x, kind="stable")
    order = order[weights[order] > 0]
    total = np.cumsum(weights[order])
    at = int(np.searchsorted(total, q * total[-1] * (1 - 1e-12)))
    return float(x[order[min(at, len(order) - 1)]])


def interval(posterior: Posterior, of: Of, mass: float) -> Interval:
    """The equal-tailed interval of this mass; see `Posterior.interval`."""
    if not 0.0 < mass < 1.0:
        raise BadArgument(f"mass must be between 0 and 1, got {mass!r}", fix="write mass=0.9")
    raw = posterior.values(of)
    x = as_numbers(raw, posterior.weights)
    if x is None:
        raise BadArgument(
            "an interval needs numbers",
            value=excerpt(raw[:3]),
            fix="give a function of the trace, such as lambda t: len(t['x'])",
        )
    tail = (1.0 - mass) / 2
    ends = (quantile(x, posterior.weights, q) for q in (tail, 1.0 - tail))
    return Interval(*ends)


def _number_row(posterior: Posterior, name: str, x: Floats | Ints, site: str | None) -> NumberRow:
    w = posterior.weights
    mean, se = posterior.expectation(site)
    with np.errstate(invalid="ignore"):  # an infinite one has no spread
        sd = math.sqrt(float(w @ (x - mean) ** 2))
    return NumberRow(name, mean, se, sd, tuple(quantile(x, w, q) for q in QUANTILES))


def _value_row(posterior: Posterior, name: str, site: str | None) -> ValueRow:
    table: Marginal = posterior.marginal(
        lambda t: hashable(t.result if site is None else t.get(site))
    )
    best = table.best
    return ValueRow(name, best, table[best], table.se[best], len(table))


def _number(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.4g}"


def _fixed(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.4f}"


def _aligned(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns of equal width; the first `left` begin at the left, the others end at the right."""
    shown = [heads, *islice(rows, ROWS)]
    widths = [max(len(row[k]) for row in shown) for k in range(len(heads))]
    lines = [
        "  ".join(
            cell.ljust(width) if k < left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in shown
    ]
    return lines + ([f"… {len(rows) - ROWS} more"] if len(rows) > ROWS else [])
