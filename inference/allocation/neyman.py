"""How many samples each question gets: n ∝ G / √(p + α p^(1-β)), by largest remainder.

Where a sample of question i is accepted with probability p_i and an accepted one has spread G_i, the
mean over questions has variance Σ G_i² / (n_i p_i), which n_i ∝ G_i / √p_i minimises (Neyman, 1934).
The term with α holds back on questions whose p is so small that most samples are lost; a question
with p = 0 or G = 0 gets none.

Reference: Yao et al., Optimizing chain-of-thought reasoners via gradient variance minimization in
rejection sampling and RL (GVM, 2025).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmppl.errors import BadArgument
from lmppl.types import Floats, Ints

Numbers = Sequence[float] | Floats


def neyman(
    total: int,
    p: Numbers,
    g: Numbers | None = None,
    *,
    alpha: float = 1e-3,
    beta: float = 2.0,
    least: int = 0,
) -> Ints:
    """Samples of each question, with sum `total`.

    Args:
        total: samples in all.
        p: acceptance rates, such as from 8 to 16 pilot samples each.
        g: spread of an accepted sample, such as the mean norm of its gradient; 1 when left out.
        alpha: of the damping; 0 is the plain formula.
        beta: of the damping.
        least: every question gets at least so many.

    >>> neyman(30, [0.25, 1.0], alpha=0.0).tolist()
    [20, 10]
    """
    rates = np.asarray(p, dtype=np.float64)
    spread = np.ones_like(rates) if g is None else np.asarray(g, dtype=np.float64)
    if rates.ndim != 1 or spread.shape != rates.shape or not len(rates):
        raise BadArgument("p and g must be lists of the same length", value=f"{p!r:.60}, {g!r:.60}")
    if not ((rates >= 0.0) & (rates <= 1.0)).all() or not (spread >= 0.0).all():
        raise BadArgument("p must be in [0, 1] and g at least 0", value=f"{p!r:.60}, {g!r:.60}")
    if isinstance(total, bool) or not isinstance(total, int) or total < least * len(rates):
        raise BadArgument(
            f"total={total!r} is less than {least} samples for each of {len(rates)} questions"
        )
    score = np.zeros_like(rates)
    some = (rates > 0.0) & (spread > 0.0)
    if not some.any():
        raise BadArgument(
            "no question has a positive p and a positive g",
            why="nothing would be learned from any sample",
            fix="draw more pilot samples, or split the budget evenly",
        )
    score[some] = spread[some] / np.sqrt(rates[some] + alpha * rates[some] ** (1.0 - beta))
    return np.asarray(least + largest_remainder(total - least * len(rates), score), dtype=np.int64)


def largest_remainder(total: int, shares: Numbers) -> Ints:
    """Integers with sum `total`, each within 1 of its share (Hamilton); ties to the first.

    >>> largest_remainder(10, [1, 1, 1]).tolist()
    [4, 3, 3]
    """
    s = np.asarray(shares, dtype=np.float64)
    if not (np.isfinite(s).all() and (s >= 0.0).all() and s.sum() > 0.0):
        raise BadArgument("shares must be finite, not negative, and not all zero")
    ideal = total * (s / s.sum())
    n = np.floor(ideal + 1e-9).astype(np.int64)
    order = np.argsort(-(ideal - n), kind="stable")
    n[order[: total - int(n.sum())]] += 1
    return np.asarray(n, dtype=np.int64)


def sampling_variance(n: Numbers | Ints, p: Numbers, g: Numbers) -> float:
    """Σ G² / (n p) over questions with positive p and G; inf where one of them has no sample."""
    count, rate, spread = (np.asarray(x, dtype=np.float64) for x in (n, p, g))
    some = (rate > 0.0) & (spread > 0.0)
    if (count[some] <= 0.0).any():
        return float("inf")
    return float((spread[some] ** 2 / (count[some] * rate[some])).sum())
