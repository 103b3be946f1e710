"""The mixed model of AB-MCTS-M without Markov chains: a collapsed posterior on an adaptive grid.

    r_ij = α_j + σ_y e_ij      α_j = μ + σ_a e_j      groups j, normal e
    μ ~ N(m, s_μ²)             σ_a ~ HalfNormal(s_a)    σ_y ~ HalfNormal(s_y)

Given σ = (σ_a, σ_y) everything is normal. With n_j scores of mean r̄_j and spread S_j, and
v_j = σ_a² + σ_y² / n_j, the marginal likelihood is

    log L(σ) = - Σ_j [ (n_j - 1) log σ_y + S_j / 2σ_y² + log(v_j)/2 + (r̄_j)² / 2v_j ]
               + B² / 2A - log(A)/2,     A = 1/s_μ² + Σ 1/v_j,   B = m/s_μ² + Σ r̄_j/v_j

so only the two scales are left. They lie on a grid in log σ: a wide one finds where the mass is, a
second one covers that. A draw takes a cell, then μ ~ N(B/A, 1/A), then α_j given μ, then a new score.

The law is that of the model up to the quadrature, which the tests measure against brute force. A
scale below `FLOOR` is not told apart from zero: with equal scores the exact posterior of σ_y has no
bound below, and the grid ends there. The model is that of Inoue et al., 2503.04412 (2025), who fit
it by the No-U-Turn sampler.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lmppl.inference.search.draws import normals
from lmppl.random import fold_array, uniforms
from lmppl.types import Bools, Floats, Key, Keys

FLOOR = 2e-3
REACH = 4.5
"""The grid ends at this many prior standard deviations."""
WIDE, FINE = 20, 24
DEPTH = 14.0
"""Cells whose log mass is further below the best one are left out of the second grid."""
ZERO = np.zeros(1, dtype=np.uint64)


class Prior(NamedTuple):
    """The parameters of the model."""

    mean: float = 0.5
    mean_sd: float = 0.2
    between: float = 0.2
    within: float = 0.3


class Groups(NamedTuple):
    """Numbers, means and spreads Σ (r - r̄)² of the scores of each group [J]."""

    n: Floats
    mean: Floats
    spread: Floats


class ScalePosterior:
    """The posterior of (σ_a, σ_y), and what a draw needs in each cell [G]."""

    __slots__ = ("cumulative", "mu_mean", "mu_sd", "sigma_a", "sigma_y", "weights")

    def __init__(self, groups: Groups, prior: Prior) -> None:
        """Two grids."""
        low, high = np.log(FLOOR), np.log([REACH * prior.between, REACH * prior.within])
        a, y = np.linspace(low, high[0], WIDE), np.linspace(low, high[1], WIDE)
        logs, _, _ = _log_posterior(groups, prior, a, y)
        near = (logs > logs.max() - DEPTH).reshape(WIDE, WIDE)
        a, y = _zoom(a, near.any(axis=1)), _zoom(y, near.any(axis=0))
        logs, big_a, big_b = _log_posterior(groups, prior, a, y)
        w = np.exp(logs - logs.max())
        self.weights: Floats = w / w.sum()
        self.cumulative: Floats = np.cumsum(self.weights)
        self.sigma_a: Floats = np.repeat(np.exp(a), FINE)
        self.sigma_y: Floats = np.tile(np.exp(y), FINE)
        self.mu_mean: Floats = big_b / big_a
        self.mu_sd: Floats = big_a**-0.5

    def predict(self, n: Floats, mean: Floats, key: Key, ids: Keys) -> Floats:
        """A new score of each group; a group of no scores is a new one.

        Each has its own draw of all parameters, keyed by its id: the marginal law of each option
        is its posterior predictive law, and options are drawn independently.
        """
        keys = fold_array(np.full(len(n), key, dtype=np.uint64), ids)
        cell = np.searchsorted(self.cumulative, uniforms(keys, ZERO) * self.cumulative[-1])
        sa2, sy2 = self.sigma_a[cell] ** 2, self.sigma_y[cell] ** 2
        mu = self.mu_mean[cell] + self.mu_sd[cell] * normals(keys, 1)
        precision = 1.0 / sa2 + n / sy2
        alpha = (mu / sa2 + n * mean / sy2) / precision + precision**-0.5 * normals(keys, 2)
        return np.asarray(alpha + self.sigma_y[cell] * normals(keys, 3), dtype=np.float64)

    def density(self, n: float, mean: float, at: Floats) -> Floats:
        """The posterior predictive density of a group at each point: a mixture over the cells."""
        sa2, sy2 = self.sigma_a**2, self.sigma_y**2
        precision = 1.0 / sa2 + n / sy2
        share = 1.0 / (sa2 * precision)  # of μ in the mean of α
        centre = share * self.mu_mean + (n * mean / sy2) / precision
        var = 1.0 / precision + (share * self.mu_sd) ** 2 + sy2
        z = (at[:, None] - centre) ** 2 / var
        each = np.exp(-0.5 * z) / np.sqrt(2.0 * np.pi * var)
        return np.asarray(each @ self.weights, dtype=np.float64)


def _log_posterior(
    groups: Groups, prior: Prior, a: Floats, y: Floats
) -> tuple[Floats, Floats, Floats]:
    """log p(σ | scores) per cell of a × y in log σ [G], up to a constant; A and B."""
    sa2, sy2 = np.repeat(np.exp(2 * a), len(y)), np.tile(np.exp(2 * y), len(a))
    # the Jacobian of log σ is σ
    out = 0.5 * np.log(sa2 * sy2) - 0.5 * (sa2 / prior.between**2 + sy2 / prior.within**2)
    big_a = np.full(len(out), prior.mean_sd**-2.0)
    big_b = prior.mean * big_a
    if len(groups.n):
        out -= 0.5 * (groups.n - 1.0).sum() * np.log(sy2) + 0.5 * groups.spread.sum() / sy2
        # groups of one size share v, so a wide tree costs no more than its sizes
        sizes, place = np.unique(groups.n, return_inverse=True)
        many = np.bincount(place).astype(np.float64)
        first = np.bincount(place, groups.mean)
        second = np.bincount(place, groups.mean**2)
        v = sa2 + sy2 / sizes[:, None]
        out -= 0.5 * (many @ np.log(v) + second @ (1.0 / v))
        big_a = big_a + many @ (1.0 / v)
        big_b = big_b + first @ (1.0 / v)
    out = out + 0.5 * big_b**2 / big_a - 0.5 * np.log(big_a)
    return out, big_a, big_b


def _zoom(axis: Floats, near: Bools) -> Floats:
    """A finer axis over the part that has mass, one step wider on each side."""
    found = np.flatnonzero(near)
    low, high = max(found[0] - 1, 0), min(found[-1] + 1, len(axis) - 1)
    return np.linspace(axis[low], axis[high], FINE)
