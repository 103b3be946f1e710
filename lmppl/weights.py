"""Log-weights: the only module that leaves the log domain.

A log-weight is a float64. `-inf` is data (an impossible event); `nan` and `+inf` are errors that
name their site and are raised where the number enters, by `check_log_weight`.

All functions but `log_sum` take a one-dimensional array of log-weights `lw` [N], and none overflows:
each subtracts the maximum first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from lmppl.errors import BadWeight, NonFiniteWeight
from lmppl.types import Floats

NEG_INF = -math.inf


def log_sum_exp(lw: Floats | Sequence[float]) -> float:
    """Log Σ exp(lw); `-inf` for an empty or all-dead array.

    >>> round(log_sum_exp([0.0, 0.0]), 6)
    0.693147
    """
    a = np.asarray(lw, dtype=np.float64)
    top = float(a.max()) if a.size else NEG_INF
    if top == NEG_INF:
        return NEG_INF
    return top + math.log(math.fsum(np.exp(a - top).tolist()))


def log_sum(table: Floats, axes: tuple[int, ...]) -> Floats:
    """Log Σ exp of an array along some of its axes; `-inf` where all is."""
    if not axes:
        return table
    top = table.max(axis=axes, keepdims=True)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        out = np.log(np.exp(table - safe).sum(axis=axes)) + safe.squeeze(axis=axes)
    return np.asarray(out, dtype=np.float64)


def log_mean_exp(lw: Floats | Sequence[float]) -> float:
    """Log (1/N) Σ exp(lw): the evidence estimate of N properly weighted particles.

    The divisor is N, dead particles included.
    """
    n = len(lw)
    return NEG_INF if n == 0 else log_sum_exp(lw) - math.log(n)


def log_add(a: float, b: float) -> float:
    """Log (exp a + exp b)."""
    if a < b:
        a, b = b, a
    return a if b == NEG_INF else a + math.log1p(math.exp(b - a))


def normalize(lw: Floats | Sequence[float]) -> Floats:
    """W = exp(lw) / Σ exp(lw) [N]; all zeros when every weight is zero.

    >>> normalize([0.0, float("-inf")]).tolist()
    [1.0, 0.0]
    """
    a = np.asarray(lw, dtype=np.float64)
    top = a.max() if a.size else NEG_INF
    if top == NEG_INF:
        return np.zeros_like(a)
    w = np.exp(a - top)
    return np.asarray(w / w.sum(), dtype=np.float64)


def ess(lw: Floats | Sequence[float]) -> float:
    """Effective sample size (Kong, 1992): (Σ w)² / Σ w², between 1 and N; 0 when all are dead.

    >>> ess([0.0, 0.0, 0.0])
    3.0
    """
    w = normalize(lw)
    square = float(w @ w)
    return 0.0 if square == 0.0 else 1.0 / square


def exp(log_weight: float) -> float:
    """exp, for a single number that is to be shown or compared in the linear domain."""
    return math.exp(log_weight)


def total(terms: Iterable[float]) -> float:
    """Sum of log terms, correctly rounded; `-inf` if any term is."""
    values = list(terms)
    return NEG_INF if NEG_INF in values else math.fsum(values)


def check_log_weight(value: object, *, site: str, term: str = "log-weight") -> float:
    """Return `value` as a log-weight, or raise `NonFiniteWeight` / `BadWeight` naming `site`.

    A `bool` is a hard constraint: `True` is 0, `False` is `-inf`.
    """
    if value is True or value is False or isinstance(value, np.bool_):
        return 0.0 if value else NEG_INF
    number = value
    if not isinstance(number, (int, float)):
        item = getattr(number, "item", None)
        if (
            getattr(number, "requires_grad", False)
            or item is None
            or getattr(number, "shape", ()) != ()
        ):
            raise BadWeight(site=site, term=term, value=value)
        number = item()
        if number is True or number is False:
            return 0.0 if number else NEG_INF
        if not isinstance(number, (int, float)):
            raise BadWeight(site=site, term=term, value=value)
    try:
        number = float(number)
    except OverflowError:
        number = math.inf if number > 0 else NEG_INF
    if number != number or number == math.inf:
        raise NonFiniteWeight(site=site, term=term, value=number)
    return number
