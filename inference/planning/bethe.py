"""The Bethe functional of planning: what messages that rest say that a problem is worth.

    F = Σ_e ⟨R_e⟩ + Σ_i ⟨R_i⟩ - ⟨cost⟩ - (1/λ) [Σ_e KL(q(x'|x_pa, a) ‖ P_e) + Σ_e TC_e(x_pa)]

over the local laws bel_e π_e; TC is the total correlation of a factor's parents. At λ = 0 the last
bracket is gone and F is an expectation. It is the value of a plan for one variable, and elsewhere an
estimate of it that may lie on either side.

Reference: Lázaro-Gredilla, Ku, Murphy and George, What type of inference is planning? (2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lmppl.inference.planning.tables import Array

LOW = -1e3
"""The logarithm of 0."""


def functional(
    given: Mapping[str, Array], found: Mapping[str, Array], risk: float
) -> tuple[float, Array, Array]:
    """F, q(a_0) and q(x_i) by slice.

    Args:
        given: the problem, from `factors.padded`.
        found: f0, b0, n0, policy, log_beliefs and continuation by slice.
        risk: λ.
    """
    f = found["f0"]
    bel = np.exp(found["log_beliefs"])
    joint = bel[..., None] * found["policy"]
    acts = joint.sum(axis=2)
    w = given["counts"][:, None]
    u = given["unary"] * w[..., None]
    log_q = np.maximum(_log(f), LOW)
    if risk != 0.0:
        into = np.zeros_like(f)
        everywhere: Any = (slice(None), given["parents"])
        np.add.at(into, everywhere, found["n0"])
        log_q = log_q + risk * (u + into)
    q = np.exp(log_q - log_q.max(axis=2, keepdims=True))
    q = q / q.sum(axis=2, keepdims=True) * (f > 0)
    value = (w * (joint * given["local"]).sum(axis=(2, 3))).sum() + (q * u).sum()
    value -= (given["paid"] * (acts.mean(axis=1) @ given["cost"]))[:-1].sum()
    if risk != 0.0:
        value -= _information(given, found, joint, bel, risk) / risk
    return float(value), acts[0].mean(axis=0), q


def _information(
    given: Mapping[str, Array], found: Mapping[str, Array], joint: Array, bel: Array, risk: float
) -> float:
    """Σ KL of the tilted dynamics from the true ones, and Σ total correlation of parents."""
    n1, d = given["unary"].shape
    slices, e, _ = bel.shape
    k = given["parents"].shape[1]
    child = np.minimum(np.arange(e), n1 - 1)
    ahead = found["b0"].copy()
    ahead[:, n1 - 1] = 0.0
    tilt = risk * (ahead[1:, child][:, :, None, None] - found["continuation"][:-1][..., None])
    spent = (joint[:-1][..., None] * given["table"] * np.exp(tilt) * tilt).sum()
    cube = bel.reshape(slices, e, *(d,) * k)
    axes = [tuple(2 + i for i in range(k) if i != j) for j in range(k)]
    apart = sum(_entropy(cube.sum(axis=over)) for over in axes)
    return float(spent + apart - _entropy(bel))


def _log(p: Array) -> Array:
    return np.asarray(np.log(np.maximum(p, 1e-300)))


def _entropy(p: Array) -> float:
    return -float((p * _log(p)).sum())
