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
    given: Mapping[str, Any], found: Mapping[str, Any], risk: float
) -> tuple[float, Array, Array]:
    """F, q(a_0) and q(x_i) by slice.

    Args:
        given: the problem, from `layout.padded`.
        found: f0, b0 and n0 by slice; policy, log_beliefs and continuation by group and slice.
        risk: λ.
    """
    f = found["f0"]
    bel = [np.exp(x) for x in found["log_beliefs"]]
    joint = [x[..., None] * p for x, p in zip(bel, found["policy"], strict=True)]
    acts = np.concatenate([x.sum(axis=2) for x in joint], axis=1)
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
    value = (q * u).sum()
    for group, x in zip(given["groups"], joint, strict=True):
        value += (given["counts"] * np.einsum("tera,era->t", x, group["local"])).sum()
    value -= (given["paid"] * (acts.mean(axis=1) @ given["cost"]))[:-1].sum()
    if risk != 0.0:
        value -= _information(given, found, joint, bel, risk) / risk
    return float(value), acts[0].mean(axis=0), q


def _information(
    given: Mapping[str, Any], found: Mapping[str, Any], joint: list[Array], bel: list[Array], risk: float
) -> float:  # fmt: skip
    """Σ KL of the tilted dynamics from the true ones, and Σ total correlation of parents."""
    ahead = found["b0"].copy()
    ahead[:, -1] = 0.0
    ahead = ahead[1:, given["child"]]
    total, at = 0.0, 0
    for group, x, law, kk in zip(given["groups"], joint, bel, found["continuation"], strict=True):
        to = at + len(group["local"])
        tilt = risk * (ahead[:, at:to, None, None] - kk[:-1, ..., None])
        total += (x[:-1, ..., None] * group["table"] * np.exp(tilt) * tilt).sum()
        values = np.arange(ahead.shape[-1])
        parents = np.einsum("ter,ejrv->tejv", law, group["digits"][..., None] == values)
        total += _entropy(parents) - _entropy(law)
        at = to
    return float(total)


def _log(p: Array) -> Array:
    return np.asarray(np.log(np.maximum(p, 1e-300)))


def _entropy(p: Array) -> float:
    return -float((p * _log(p)).sum())
