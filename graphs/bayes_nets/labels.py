"""The seven words of an elicited probability, and how likely each is given the truth.

A word is a noisy reading: the level next to σ(η + s ε), with ε logistic and η the truth's logit, so

    P(label l | η) = σ((t_{l+1} - η) / s) - σ((t_l - η) / s)         t: logits between two levels

which is log-concave in η: `maximum` finds the linear η that labels speak for, by Newton's method.

Reference: McCullagh, Regression models for ordinal data (1980).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lmppl.errors import BadArgument
from lmppl.types import Floats

LEVELS: Mapping[str, float] = {
    "very unlikely": 0.0,
    "unlikely": 0.2,
    "somewhat unlikely": 0.4,
    "equally likely": 0.5,
    "somewhat likely": 0.6,
    "likely": 0.8,
    "very likely": 1.0,
}
"""The seven labels and what they stand for."""


def label_laws(labels: Any, n: int) -> Floats:
    """Labels as laws over the seven [M, 7]."""
    names, levels = list(LEVELS), list(LEVELS.values())
    rows = np.zeros((n, len(names)))
    if len(labels) != n:
        raise BadArgument(f"{n} instances have {len(labels)} labels")
    for i, label in enumerate(labels):
        if isinstance(label, str):
            if label not in LEVELS:
                raise BadArgument(f"{label!r} is no label", fix=f"use one of {', '.join(names)}")
            rows[i, names.index(label)] = 1.0
        elif np.ndim(label) == 0:
            near = int(np.argmin([abs(level - float(label)) for level in levels]))
            rows[i, near] = 1.0
        else:
            rows[i] = np.asarray(label, dtype=np.float64)
    return rows


def thresholds() -> Floats:
    """Logits half-way between two levels, with infinity at both ends [8]."""
    levels = np.array(list(LEVELS.values()))
    middle = (levels[1:] + levels[:-1]) / 2
    return np.concatenate([[-np.inf], np.log(middle / (1 - middle)), [np.inf]])


def sigmoid(x: Floats) -> Floats:
    """σ, to full relative precision on the left."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)), dtype=np.float64)


def label_terms(eta: Floats, noise: float) -> tuple[Floats, Floats, Floats]:
    """log P(label | η) and its two derivatives in η, for every label [M, 7].

    With a < b the two ends, σ(b) - σ(a) = σ(b) σ(-a) (1 - e^{a - b}), whose last factor is constant.
    """
    t = (thresholds()[None, :] - eta[:, None]) / noise
    low, high = t[:, :-1], t[:, 1:]
    logp = np.log1p(-np.exp(low - high)) - np.logaddexp(0.0, -high) - np.logaddexp(0.0, low)
    density = sigmoid(t) * sigmoid(-t)
    first = (sigmoid(low) - sigmoid(-high)) / noise
    second = -(density[:, :-1] + density[:, 1:]) / noise**2
    return np.asarray(logp, dtype=np.float64), first, second


def maximum(
    x: Floats, law: Floats, start: Floats, precision: Floats, noise: float
) -> tuple[float, Floats, Floats]:
    """The maximum of the log-posterior of θ: its value, where it is, and the negative Hessian."""
    theta = start.copy()

    def value(at: Floats) -> float:
        logp = label_terms(x @ at, noise)[0]
        return float((law * logp).sum() - 0.5 * (precision * (at - start) ** 2).sum())

    now = value(theta)
    hessian = np.diag(precision)
    for _ in range(50):
        _, first, second = label_terms(x @ theta, noise)
        gradient = x.T @ (law * first).sum(axis=1) - precision * (theta - start)
        curve = -(law * second).sum(axis=1)
        hessian = x.T @ (curve[:, None] * x) + np.diag(precision)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-6 and value(theta + size * step) < now:
            size *= 0.5
        theta = theta + size * step
        before, now = now, value(theta)
        if now - before < 1e-10 * (1.0 + abs(now)):
            break
    return now, theta, hessian
