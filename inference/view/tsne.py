"""t-SNE: points in the plane whose neighbours are the neighbours of given points.

    p_ij = (p_j|i + p_i|j) / 2n        p_j|i ∝ exp(-β_i |x_i - x_j|²), β_i by the perplexity
    q_ij ∝ 1 / (1 + |y_i - y_j|²)      minimise KL(p ‖ q) over y by gradient descent

Exact (all pairs), for a few hundred points; from the principal components, so without chance but a
small keyed shake that parts equal points. Reference: van der Maaten and Hinton (2008).
"""

from __future__ import annotations

import math

import numpy as np

from lmppl.random import fold, uniforms
from lmppl.types import Floats


def tsne(points: Floats, start: Floats, *, perplexity: float = 30.0, steps: int = 250) -> Floats:
    """The map [n, 2] of points [n, d], from `start` [n, 2]."""
    n = len(points)
    p = _neighbours(_squares(points), min(perplexity, (n - 1) / 3))
    p = np.maximum((p + p.T) / (2 * n), 1e-12)
    key = np.array([fold(0, "tsne")], dtype=np.uint64)
    noise = uniforms(key, np.arange(2 * n, dtype=np.uint64)).reshape(n, 2) - 0.5
    y = start / max(float(start.std()), 1e-12) * 1e-2 + 1e-3 * noise
    velocity, gains = np.zeros_like(y), np.ones_like(y)
    rate = max(n / 16, 10.0)
    for step in range(steps):
        early = step < 60
        kernel = 1.0 / (1.0 + _squares(y))
        np.fill_diagonal(kernel, 0.0)
        pull = ((4.0 if early else 1.0) * p - kernel / kernel.sum()) * kernel
        gradient = 4.0 * (pull.sum(1)[:, None] * y - pull @ y)
        same = np.sign(gradient) == np.sign(velocity)
        gains = np.maximum(np.where(same, gains * 0.8, gains + 0.2), 0.01)
        velocity = (0.5 if early else 0.8) * velocity - rate * gains * gradient
        y = y + velocity
        y = y - y.mean(axis=0)
    return np.asarray(y)


def _squares(x: Floats) -> Floats:
    """Squared distances of all pairs."""
    own = (x * x).sum(1)
    return np.asarray(np.maximum(own[:, None] + own[None] - 2.0 * (x @ x.T), 0.0))


def _neighbours(d2: Floats, perplexity: float) -> Floats:
    """Conditional probabilities of neighbours; each bandwidth by bisection."""
    low, high = np.full(len(d2), 1e-9), np.full(len(d2), 1e9)
    goal = math.log(max(perplexity, 1.01))
    d2 = d2 - np.where(np.eye(len(d2), dtype=bool), np.inf, d2).min(axis=1, keepdims=True)
    np.fill_diagonal(d2, 0.0)
    for _ in range(60):
        beta = np.sqrt(low * high)
        p = np.exp(-d2 * beta[:, None])
        np.fill_diagonal(p, 0.0)
        total = np.maximum(p.sum(1), 1e-300)
        entropy = np.log(total) + beta * (d2 * p).sum(1) / total
        wide = entropy > goal
        low, high = np.where(wide, beta, low), np.where(wide, high, beta)
    return np.asarray(p / total[:, None])
