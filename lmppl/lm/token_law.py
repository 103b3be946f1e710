"""The law of one token as arrays: the equations of `TokenLaw`, on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmppl.lm.base import TokenLaw
from lmppl.types import Bools, Floats
from lmppl.weights import NEG_INF


def log_softmax(x: Floats) -> Floats:
    """Normalised over the last axis; rows of `-inf` alone stay so."""
    top = x.max(axis=-1, keepdims=True)
    top = np.where(top == NEG_INF, 0.0, top)
    mass = np.exp(x - top).sum(axis=-1, keepdims=True)
    return np.asarray(x - (top + np.log(np.where(mass == 0.0, 1.0, mass))))


def tempered(log_model: Floats, temperature: float) -> Floats:
    """log_softmax(ℓ / T)."""
    return log_model if temperature == 1.0 else log_softmax(log_model / temperature)


def log_mass(row: Floats, ids: Sequence[int]) -> float:
    """log Σ of a row over a set."""
    if len(ids) == 1:
        return float(row[ids[0]])
    part = row[list(ids)]
    top = part.max(initial=NEG_INF)
    return NEG_INF if top == NEG_INF else float(top + np.log(np.exp(part - top).sum()))


def token_law(log_model: Floats, law: TokenLaw, mask: Bools | None) -> tuple[Floats, Floats]:
    """(log p, log q) [B, V] of the target and the proposal: the reference for every backend.

    The equations stand at `TokenLaw`.
    """
    logp = tempered(log_model, law.target_temperature)
    if (
        mask is None
        and law.temperature == law.target_temperature
        and law.top_p >= 1.0
        and law.top_k <= 0
    ):
        return logp, logp
    warm = tempered(log_model, law.temperature)
    logq = warm
    if law.top_k > 0 and law.top_k < logq.shape[1]:
        order = np.argsort(-logq, axis=1, kind="stable")
        drop = np.ones(logq.shape, dtype=bool)
        np.put_along_axis(drop, order[:, : law.top_k], False, axis=1)
        logq = log_softmax(np.where(drop, NEG_INF, logq))
    if law.top_p < 1.0:
        order = np.argsort(-logq, axis=1, kind="stable")
        mass = np.cumsum(np.exp(np.take_along_axis(logq, order, axis=1)), axis=1)
        before = np.concatenate([np.zeros((len(mass), 1)), mass[:, :-1]], axis=1)
        drop = np.ones(logq.shape, dtype=bool)
        np.put_along_axis(drop, order, before >= law.top_p, axis=1)
        logq = log_softmax(np.where(drop, NEG_INF, logq))
    if law.mixture > 0.0:
        logq = (
            np.logaddexp(np.log1p(-law.mixture) + logq, np.log(law.mixture) + logp)
            if law.mixture < 1
            else logp
        )
    if mask is not None:
        inside = np.where(mask, logq, NEG_INF)
        lost = ~(inside > NEG_INF).any(axis=1)
        if lost.any():
            inside[lost] = np.where(mask[lost], warm[lost], NEG_INF)
        logq = log_softmax(inside)
    return logp, logq
