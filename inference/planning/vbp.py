"""Value belief propagation, in JAX: planning by messages between local factors.

In units of the reward, for a slice with forward messages f, factors e over (x_pa, a), and action
messages C_e(a):

    K_e = (1/λ) log Σ_x' P_e(x'|x_pa, a) e^{λ b(x')}           λ = 0: E b;   B_e = R_e + K_e
    m_{i→e} ∝ f_i e^{λ (R_i + Σ_{e'≠e} n_{e'→i})}                λ = 0: f_i
    G_e(x_pa) = α log Σ_a e^{(B_e + D_e)/α},  D_e = Σ_{e'≠e} C_e' - cost      π_e = softmax
    bel_e ∝ Π m_{i→e} e^{λ G_e};   C_e(a) = α log Σ bel_e e^{(B_e - G_e)/α}
    n_{e→i}(x_i) = (1/λ) log Σ_{x_pa∖i} Π_{j≠i} m_{j→e} e^{λ G_e}  λ = 0: E G_e
    f'_e(x') ∝ Σ bel_e π_e P_e e^{-λ K_e};   b_i = R_i + Σ_e n_{e→i}

Only K_e is divided out of the forward pass: without that the future counts twice. Action messages
are refreshed one factor after the other; all at once ("flooding") they oscillate. α falls from
sweep to sweep by the same share, down to its floor. With one variable a backward sweep is dynamic programming; at α = 1/λ
it is sum-product. Parents that are correlated, and one action that serves two factors, are where
it may be wrong; `converged` says whether the messages came to rest.

Reference: Lázaro-Gredilla, Ku, Murphy and George, What type of inference is planning? (2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.planning.bethe import functional
from lmppl.inference.planning.dp import check_numbers
from lmppl.inference.planning.factors import Factors
from lmppl.inference.planning.layout import padded
from lmppl.inference.planning.sweeps import compiled
from lmppl.inference.planning.tables import Array

COOLING = 15
"""Sweeps over which the temperature falls: at once, messages may rest at a poor fixed point."""
FLOOR = 0.01
"""Temperature that stands for none, times the range of the reward."""


@dataclass(frozen=True)
class Beliefs:
    """Where the messages came to rest, or did not."""

    value: float
    """The Bethe functional: an estimate of F."""
    action_probs: Array
    """q(a_0)"""
    action_values: Array
    """Relative action scores, the best equal to `value`."""
    forward: Array
    """f, [H + 1, N, d]; at α = 1/λ the forward messages of sum-product"""
    beliefs: Array
    """q(x_i) per slice, [H + 1, N, d]"""
    converged: bool
    residual: float
    sweeps: int
    inner_iterations: int
    temperature: float
    messages: dict[str, Array]
    """Where a later run may start: f0, b0, n0 and c0 by slice."""


def propagate(
    problem: Factors,
    *,
    risk: float = 0.0,
    temperature: float = 0.0,
    sweeps: int = 100,
    inner: int = 100,
    damping: float = 0.1,
    tolerance: float = 1e-5,
    anneal: int = COOLING,
    schedule: str = "sequential",
    start: dict[str, Array] | None = None,
) -> Beliefs:
    """Sweep backwards and forwards until the messages rest.

    Args:
        problem: from `factors_of`.
        risk: λ > 0 seeks risk, λ < 0 avoids it.
        temperature: α in units of the reward; 0 means 0.01 of the reward's range.
        sweeps: at most; fewer where messages rest, or where they do not come closer to it.
        inner: iterations within a slice, at most.
        damping: how much of the old message stays.
        tolerance: on the largest undamped change, relative to the reward's range.
        anneal: over how many sweeps α falls to its floor; 0 starts there.
        schedule: "sequential"; "flooding" is there to show that it fails.
        start: messages of an earlier run of the same shape (`shifted`).
    """
    import jax

    check_numbers(risk, temperature)
    if sweeps < 1 or inner < 1 or not 0.0 <= damping < 1.0 or not tolerance > 0.0:
        raise BadArgument("needs sweeps ≥ 1, inner ≥ 1, 0 ≤ damping < 1 and tolerance > 0")
    if schedule not in ("sequential", "flooding"):
        raise BadArgument(f"schedule must be sequential or flooding, got {schedule!r}")
    span = problem.span
    floor = temperature or FLOOR * span
    high = max(floor, span if risk == 0.0 else min(1.0 / abs(risk), span))
    arrays = padded(problem)
    arrays |= fresh(arrays) if start is None else start
    arrays["f0"] = np.concatenate([arrays["initial"][None], arrays["f0"][1:]])
    numbers = {
        "lam": risk,
        "floor": floor,
        "high": high if anneal else floor,
        "anneal": float(max(anneal, 1)),
        "damping": damping,
        "tolerance": tolerance * span,
        "sweeps": sweeps,
        "inner": inner,
    }
    with jax.enable_x64(True):
        out = compiled(risk == 0.0, schedule == "flooding")(arrays, numbers)
        out = jax.tree.map(np.asarray, out)
    value, q, beliefs = functional(arrays, out, risk)
    scores = np.where(problem.allowed, out["c0"][0].sum(axis=0) - problem.cost, -np.inf)
    n = len(problem.sizes)
    return Beliefs(
        value,
        q,
        scores - scores.max() + value,
        out["f0"][:, :n],
        beliefs[:, :n],
        bool(out["residual"] <= numbers["tolerance"]) and bool(out["rested"]),
        float(out["residual"]),
        int(out["sweeps"]),
        int(out["inner"]),
        floor,
        {name: out[name] for name in ("f0", "b0", "n0", "c0")},
    )


def fresh(arrays: dict[str, Any]) -> dict[str, Array]:
    """Messages that say nothing: forward laws uniform over what can occur."""
    (slices,), (e, k), (n1, d) = (arrays[x].shape for x in ("counts", "parents", "unary"))
    a = len(arrays["cost"])
    occurs = np.concatenate([
        ((g["live"] == 0.0)[:, :, None, None] * g["table"]).sum(axis=(1, 2)) for g in arrays["groups"]
    ])  # fmt: skip
    reach = np.zeros((n1, d))
    np.add.at(reach, arrays["child"], occurs)
    reach[-1] = arrays["initial"][-1]
    law = (reach > 0) / (reach > 0).sum(axis=1, keepdims=True)
    return {
        "f0": np.repeat(law[None], slices, axis=0),
        "b0": np.zeros((slices, n1, d)),
        "n0": np.zeros((slices, e, k, d)),
        "c0": np.zeros((slices, e, a)),
    }


def shifted(messages: dict[str, Array]) -> dict[str, Array]:
    """The messages one action later; the last slice keeps its own."""
    return {name: np.concatenate([m[1:], m[-1:]]) for name, m in messages.items()}
