"""Routing: which model gets a question, or a step, by predicted advantage and cost.

* **Hybrid**: the large model only where it is predicted to be better by enough. Targets of the
  predictor, with H = q(small) - q(large) over samples of both answers:

      "det": 1[mean H ≥ 0]        "prob": P(H ≥ 0)        "trans": P(H ≥ -t*)

  t* makes the targets differ most between questions: it maximises mean |y_i(t) - y_j(t)|.
* **Clusters**: a model is the vector of its errors on clusters of questions; a new one needs only
  those. A question goes to argmin_m error_m(cluster) + λ cost_m.
* **Steps**: a draft is kept or replaced by the target model's step: by the draft's own reward
  (threshold), by the rewards of both (oracle), or by a predicted advantage (router).

References: Ding et al., Hybrid LLM (2024); Jitkrittum et al., Universal model routing (UniRoute,
2025); Liao et al., Reward-guided speculative decoding (2025); Maheswaran et al., Arbitrage (2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.errors import BadArgument, excerpt
from lmppl.random import fold, uniforms
from lmppl.types import Bools, Floats, Ints

KINDS = ("det", "prob", "trans")


def _table(name: str, x: Any, ndim: int) -> Floats:
    a = np.asarray(x, dtype=np.float64)
    if a.ndim != ndim or not a.size or not np.isfinite(a).all():
        raise BadArgument(f"{name} must be finite numbers in {ndim} dimension(s)", value=excerpt(x))
    return a


def advantage_targets(small: Any, large: Any, kind: str = "prob") -> Floats:
    """What a router should predict for each question: how surely the small model is good enough.

    Args:
        small: quality of sampled answers of the small model [questions, samples].
        large: that of the large model.
        kind: "det", "prob" or "trans".

    >>> advantage_targets([[1.0, 0.0]], [[1.0, 1.0]]).tolist()
    [0.5]
    """
    if kind not in KINDS:
        raise BadArgument(f"kind must be one of {', '.join(KINDS)}, got {excerpt(kind)}")
    s, b = _table("small", small, 2), _table("large", large, 2)
    if len(s) != len(b):
        raise BadArgument(f"{len(s)} and {len(b)} questions do not pair")
    if kind == "det":
        return np.asarray(s.mean(axis=1) >= b.mean(axis=1), dtype=np.float64)
    h = s[:, :, None] - b[:, None, :]
    t = best_shift(h) if kind == "trans" else 0.0
    return np.asarray((h >= -t).mean(axis=(1, 2)), dtype=np.float64)


def best_shift(h: Floats) -> float:
    """The t ≥ 0 that maximises mean |y_i(t) - y_j(t)| with y(t) = P(H ≥ -t); the smallest of equals."""
    flat = h.reshape(len(h), -1)
    best, best_t = -1.0, 0.0
    for t in np.unique(np.concatenate([[0.0], -flat[flat < 0.0]])):
        y = np.sort((flat >= -t).mean(axis=1))
        rank = 2.0 * np.arange(len(y)) - len(y) + 1.0
        spread = float(rank @ y)  # Σ_{i<j} |y_i - y_j|
        if spread > best + 1e-12:
            best, best_t = spread, float(t)
    return best_t


@dataclass(frozen=True)
class Logistic:
    """A predictor of a probability: σ(w · x + b), fitted to targets in [0, 1]."""

    weights: tuple[float, ...]
    bias: float

    @classmethod
    def fit(cls, features: Any, targets: Any, *, ridge: float = 1e-2, steps: int = 50) -> Logistic:
        """Newton's method on the cross-entropy plus ridge · |w|² / 2."""
        x, y = _table("features", features, 2), _table("targets", targets, 1)
        if len(x) != len(y):
            raise BadArgument(f"{len(x)} features and {len(y)} targets do not pair")
        design = np.hstack([x, np.ones((len(x), 1))])
        w = np.zeros(design.shape[1])
        penalty = np.diag([ridge] * x.shape[1] + [1e-9])
        for _ in range(steps):
            p = _sigmoid(design @ w)
            gradient = design.T @ (p - y) + penalty @ w
            curvature = design.T @ (design * (p * (1.0 - p))[:, None]) + penalty
            step = np.linalg.solve(curvature + 1e-9 * np.eye(len(w)), gradient)
            w = w - step / max(1.0, float(np.abs(step).max()))
            if float(np.abs(step).max()) < 1e-10:
                break
        return cls(tuple(w[:-1].tolist()), float(w[-1]))

    def __call__(self, features: Any) -> Floats:
        """P for each row of features."""
        return _sigmoid(_table("features", features, 2) @ np.array(self.weights) + self.bias)


def _sigmoid(z: Floats) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * z)), dtype=np.float64)


def keep_small(scores: Any, *, threshold: float | None = None, share: float | None = None) -> Bools:
    """Which questions stay with the small model.

    Args:
        scores: predicted probability that it is good enough [questions].
        threshold: those of at least so much stay.
        share: or this share of the questions, the best scores first (ties to the first).
    """
    s = _table("scores", scores, 1)
    if (threshold is None) == (share is None):
        raise BadArgument("give a threshold or a share, and not both", fix="write share=0.4")
    if threshold is not None:
        return np.asarray(s >= threshold)
    if share is None or not 0.0 <= share <= 1.0:
        raise BadArgument(f"share must be in [0, 1], got {share!r}")
    stays = np.zeros(len(s), dtype=np.bool_)
    stays[np.argsort(-s, kind="stable")[: round(share * len(s))]] = True
    return stays


@dataclass(frozen=True)
class Clusters:
    """Groups of similar questions, by k-means on their features."""

    centres: Floats

    @classmethod
    def fit(cls, features: Any, k: int, *, seed: int = 0, steps: int = 100) -> Clusters:
        """Lloyd's algorithm from a keyed k-means++ start; the same in every order of the rows."""
        x = _table("features", features, 2)
        x = x[np.lexsort(x.T[::-1])]
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(x):
            raise BadArgument(f"k must be between 1 and {len(x)} questions, got {k!r}")
        u = uniforms(np.uint64(fold(0, "clusters", seed)), np.arange(k, dtype=np.uint64))  # type: ignore[arg-type]
        centres = [x[int(u[0] * len(x))]]
        for i in range(1, k):
            d = np.min([((x - c) ** 2).sum(axis=1) for c in centres], axis=0)
            total = np.cumsum(d)
            at = int(np.searchsorted(total, u[i] * total[-1], side="right"))
            centres.append(x[min(at, len(x) - 1)])
        c = np.array(centres)
        for _ in range(steps):
            of = _nearest(x, c)
            new = np.array([x[of == j].mean(axis=0) if (of == j).any() else c[j] for j in range(k)])
            if np.allclose(new, c, atol=1e-12):
                break
            c = new
        return cls(c)

    def __call__(self, features: Any) -> Ints:
        """The cluster of each row."""
        return _nearest(_table("features", features, 2), self.centres)

    def errors(self, features: Any, wrong: Any, *, prior: float = 1.0) -> Floats:
        """Error of each model on each cluster [models, clusters], shrunk to the model's own mean.

        Args:
            features: of validation questions [Q, d].
            wrong: 1 where a model was wrong [models, Q].
            prior: how many questions the mean counts as.
        """
        of, w = self(features), _table("wrong", wrong, 2)
        if w.shape[1] != len(of):
            raise BadArgument(f"{w.shape[1]} results and {len(of)} questions do not pair")
        inside = np.eye(len(self.centres))[of]
        counts = inside.sum(axis=0)
        overall = w.mean(axis=1, keepdims=True)
        return np.asarray((w @ inside + prior * overall) / (counts + prior), dtype=np.float64)


def _nearest(x: Floats, centres: Floats) -> Ints:
    distance = ((x[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(distance.argmin(axis=1), dtype=np.int64)


def route(errors: Any, costs: Sequence[float] | None = None, trade: float = 0.0) -> Ints:
    """The model of each question: argmin_m error_m + λ cost_m, ties to the first.

    Args:
        errors: predicted error [models, questions].
        costs: of one answer of each model.
        trade: λ, error that one unit of cost is worth.
    """
    e = _table("errors", errors, 2)
    c = np.zeros(len(e)) if costs is None else _table("costs", costs, 1)
    if len(c) != len(e):
        raise BadArgument(f"{len(c)} costs of {len(e)} models")
    return np.asarray((e + trade * c[:, None]).argmin(axis=0), dtype=np.int64)


def take_target(
    draft: float, target: float | None = None, *, predicted: float | None = None, tau: float
) -> bool:
    """Whether a step is the target model's, and not the draft's.

    Args:
        draft: reward of the draft's step.
        target: that of the target's, where both were drawn (oracle).
        predicted: predicted advantage of the target, where neither is asked (router).
        tau: threshold: take the target if draft < tau; oracle: if target - draft > tau; router: if
            predicted ≥ tau.

    >>> take_target(0.6, tau=0.7), take_target(0.6, 0.65, tau=0.1), take_target(0.6, predicted=0.4, tau=0.3)
    (True, False, True)
    """
    if target is not None and predicted is not None:
        raise BadArgument("give the target's reward or a predicted advantage, and not both")
    if predicted is not None:
        return predicted >= tau
    return draft < tau if target is None else target - draft > tau
