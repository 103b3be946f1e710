"""One objective, five kinds of inference: what each would answer to "how well can I do?".

With f(x, a) = P(x_0) Π_t P(x_{t+1} | x_t, a_t) e^{λ R(x, a)} every kind has the same energy and an
entropy of its own, F = max_q (1/λ) [⟨log f⟩_q + H(q)]:

| kind | H(q) | λ F |
| --- | --- | --- |
| "planning" | H(x_0) + Σ_t H(x_{t+1} given x_t, a_t) | log max_π E_π e^{λR} |
| "marginal" | H(x, a) | log Σ_a Σ_x P(x given a) e^{λR} |
| "marginal_uniform" | the same, actions drawn uniformly | log E_uniform e^{λR} |
| "mmap" | H(x, a) - H(a) | log max_a Σ_x P(x given a) e^{λR} |
| "map" | 0 | log max_{x, a} P(x given a) e^{λR} |

Planning is the best policy, which sees the states; "mmap" the best sequence of actions, which does
not. For λ > 0: marginal ≥ planning ≥ mmap ≥ max(map, marginal_uniform); the last two have no order.

`risk` is λ: positive seeks risk (F ≈ E R + λ/2 Var R), negative avoids it, and 0 is the expected
utility, computed by expectations and never by a small λ. `risk_aversion` elsewhere is -λ.

Reference: Lázaro-Gredilla, Ku, Murphy and George, What type of inference is planning? (2024);
exponential utility: Howard and Matheson, Risk-sensitive Markov decision processes (1972).
"""

from __future__ import annotations

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.planning.mdp import FactoredMDP, Stages, TabularMDP
from lmppl.inference.planning.tables import Array
from lmppl.weights import log_sum

KINDS = ("planning", "marginal", "marginal_uniform", "map", "mmap")
MOST_SEQUENCES = 1 << 20


def inference_value(
    mdp: TabularMDP | FactoredMDP,
    horizon: int,
    kind: str = "planning",
    *,
    risk: float = 1.0,
    state: object = None,
) -> float:
    """F of one kind of inference, in units of the reward.

    Args:
        mdp: the problem.
        horizon: how many actions.
        kind: see the module's table.
        risk: λ; "marginal" and "map" need λ > 0, where their entropies have the right sign.
        state: the first state or a law over it; the problem's own by default.

    >>> bet = TabularMDP(["start", "lost", "won", "sure"], ["risky", "safe"],
    ...     [[[0, .5, .5, 0], [0, 0, 0, 1]], *([[r, r] for r in np.eye(4)[1:].tolist()])],
    ...     [0, 0, 1, .6], timing="successor")
    >>> round(inference_value(bet, 1, risk=0.0), 6), round(inference_value(bet, 1, risk=1.0), 6)
    (0.6, 0.620115)
    """
    stages = as_table(mdp).stages(horizon, state)
    return stages_value(stages, kind, risk)


def as_table(mdp: TabularMDP | FactoredMDP) -> TabularMDP:
    """The problem as one table."""
    return mdp.flat() if isinstance(mdp, FactoredMDP) else mdp


def stages_value(stages: Stages, kind: str, risk: float) -> float:
    """F of a problem of which the conventions are worked out."""
    if kind not in KINDS:
        raise BadArgument(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if not np.isfinite(risk):
        raise BadArgument(f"risk must be a finite number, got {risk!r}")
    if kind in ("marginal", "map") and risk <= 0:
        raise BadArgument(
            f"{kind!r} needs risk > 0, got {risk!r}",
            why="its entropy is divided by λ: at 0 it is infinite, below 0 it turns max into min",
            fix='use kind="planning", "mmap" or "marginal_uniform"',
        )
    if kind == "mmap":
        return _best_sequence(stages, risk)
    value = stages.final
    for reward in stages.reward[::-1]:
        if kind == "map":
            ahead = (value + _log(stages.transition) / risk).max(axis=-1)
        else:
            ahead = certainty_equivalent(stages.transition, value, risk)
        q = np.where(stages.allowed, reward + ahead, -np.inf)
        if kind in ("planning", "map"):
            value = q.max(axis=-1)
        elif kind == "marginal":
            value = log_sum(risk * q, (-1,)) / risk
        else:
            uniform = stages.allowed / stages.allowed.sum(axis=-1, keepdims=True)
            value = certainty_equivalent(uniform, np.where(stages.allowed, q, 0.0), risk)
    if kind == "map":
        return float((value + _log(stages.initial) / risk).max())
    return float(certainty_equivalent(stages.initial, value, risk))


def certainty_equivalent(law: Array, value: Array, risk: float) -> Array:
    """(1/λ) log Σ p e^{λ v} over the last axis; at λ = 0 the expectation, a branch of its own."""
    if risk == 0.0:
        return np.asarray(np.vecdot(law, value))
    return log_sum(_log(law) + risk * value, (-1,)) / risk


def _best_sequence(stages: Stages, risk: float) -> float:
    """All sequences of actions: w[x, sequence] = Σ over paths of P e^{λ R so far}."""
    h, s, a = stages.reward.shape
    if a**h > MOST_SEQUENCES:
        raise BadArgument(
            f"{a}^{h} sequences of actions are too many", why='"mmap" is hard: no recursion exists'
        )
    legal = stages.allowed | stages.over[:, None]
    mass = stages.initial[None, :]
    utility = np.zeros((1, s))
    possible = np.ones(1, bool)
    log_w = _log(mass)
    for reward in stages.reward:
        # For λ > 0 a forbidden action has f = 0; otherwise its sequence is out if it can be met
        met = np.einsum("qx,xa->qa", mass > 0, ~legal) > 0
        possible = (possible[:, None] & ~met).ravel()
        per = mass[:, :, None] * legal
        gained = utility[:, :, None] + per * reward
        utility = np.einsum("qxa,xay->qay", gained, stages.transition).reshape(-1, s)
        if risk != 0.0:
            terms = log_w[:, :, None] + risk * reward + _log(legal.astype(float))
            log_w = log_sum(terms[:, :, :, None] + _log(stages.transition)[None], (1,)).reshape(
                -1, s
            )
        mass = np.einsum("qxa,xay->qay", per, stages.transition).reshape(-1, s)
    if risk == 0.0:
        total = (utility + mass * stages.final).sum(axis=-1)
    else:
        total = log_sum(log_w + risk * stages.final, (-1,)) / risk
    if risk <= 0:
        total = np.where(possible, total, -np.inf)
    return float(total.max())


def _log(p: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(p))
