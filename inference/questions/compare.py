"""Shares of right answers, and whether two engines differ on the same questions.

* One share: Wilson's score interval (1927).
* Two engines on the same n questions: Newcombe's interval for a difference of paired proportions
  (1998, method 10), which keeps its level at n = 15 and does not collapse when no pair differs, for
  how large the difference may be; McNemar's exact test of the pairs that differ, for whether there
  is one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from lmppl.errors import BadArgument
from lmppl.inference.results.estimates import Interval


def wilson(right: int, n: int, level: float = 0.95) -> Interval:
    """An interval for a share of which `right` of `n` were seen.

    >>> [round(x, 3) for x in wilson(8, 10)]
    [0.49, 0.943]
    """
    if n == 0:
        return Interval(0.0, 1.0)
    z = _z(level)
    p = right / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((centre + s * half) / (1 + z * z / n) for s in (-1, 1))
    return Interval(0.0 if right == 0 else low, 1.0 if right == n else high)


@dataclass(frozen=True)
class Paired:
    """How two engines differ on the same questions."""

    n: int
    wins: int
    """Questions that only the first one answered right."""
    losses: int
    """Questions that only the second one answered right."""
    low: float
    high: float
    p_value: float
    """McNemar's exact test, two-sided."""

    @property
    def difference(self) -> float:
        """Share of the first one minus share of the second one."""
        return (self.wins - self.losses) / self.n if self.n else 0.0

    @property
    def verdict(self) -> str:
        """The difference in words, at the 5 % level of the exact test."""
        if self.p_value >= 0.05:
            return "no clear difference"
        return "better" if self.wins > self.losses else "worse"


def paired(first: Sequence[bool], second: Sequence[bool], level: float = 0.95) -> Paired:
    """Compare two engines by which questions each answered right.

    >>> pair = paired([True] * 9 + [False], [True] * 3 + [False] * 7)
    >>> pair.wins, pair.losses, round(pair.p_value, 4), pair.verdict
    (6, 0, 0.0312, 'better')
    """
    if len(first) != len(second):
        raise BadArgument(f"{len(first)} and {len(second)} results do not pair")
    n = len(first)
    pairs = list(zip(first, second, strict=True))
    both = sum(x and y for x, y in pairs)
    wins = sum(x and not y for x, y in pairs)
    losses = sum(y and not x for x, y in pairs)
    if n == 0:
        return Paired(0, 0, 0, -1.0, 1.0, 1.0)
    neither = n - both - wins - losses
    p1, p2 = (both + wins) / n, (both + losses) / n
    i1, i2 = wilson(both + wins, n, level), wilson(both + losses, n, level)
    phi = _phi(both, wins, losses, neither)
    down, up = (p1 - i1.low, i2.high - p2), (i1.high - p1, p2 - i2.low)
    low, high = (math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0)) for x, y in (down, up))
    d = p1 - p2
    return Paired(n, wins, losses, d - low, d + high, mcnemar(wins, losses))


def mcnemar(wins: int, losses: int) -> float:
    """P(a split at least this uneven) when either side of a pair is as likely: exact, two-sided."""
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, float(2 * tail / 2**n))


def _phi(both: int, wins: int, losses: int, neither: int) -> float:
    """Newcombe's correlation of the pairs, with his continuity correction."""
    rows = (both + wins) * (losses + neither) * (both + losses) * (wins + neither)
    if rows == 0:
        return 0.0
    n = both + wins + losses + neither
    cross = both * neither - wins * losses
    if cross > 0:
        cross_corrected = max(cross - n / 2, 0.0)
    else:
        cross_corrected = float(cross)
    return cross_corrected / math.sqrt(rows)


def _z(level: float) -> float:
    if not 0.0 < level < 1.0:
        raise BadArgument(f"level must be between 0 and 1, got {level!r}")
    return NormalDist().inv_cdf(0.5 + level / 2)
