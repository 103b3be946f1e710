"""Exact dynamic programming, in JAX.

    V_H = final,   Q_t(x, a) = R_t(x, a) + ρ(V_{t+1}; x, a),   V_t(x) = max_a Q_t(x, a)
    ρ = Σ_x' P(x'|x, a) V(x')  at λ = 0,   (1/λ) log Σ_x' P(x'|x, a) e^{λ V(x')}  otherwise

With a temperature α > 0 the maximum is α log Σ_a e^{Q/α} and the policy is softmax(Q/α). The risk λ
is positive where risk is sought and negative where it is avoided. Tables, λ and α are arguments of
one compiled function: only a new shape compiles again.

Reference: Bellman (1957); Howard and Matheson, Risk-sensitive Markov decision processes (1972).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.planning.kinds import as_table, certainty_equivalent
from lmppl.inference.planning.mdp import FactoredMDP, Stages, TabularMDP
from lmppl.inference.planning.tables import Array

STEEP = 600.0
"""|λ| · (range of the value) from which e^{λ V} leaves the range of float64."""
SMALL, SHORT = 1 << 15, 64
"""S² A and H up to which the sweep is done in numpy: less than a call of a compiled function."""
FLAT = 1e-2
"""|λ| · (range of a reward) below which float32 loses the value to rounding."""


@dataclass(frozen=True)
class Exact:
    """What dynamic programming found."""

    values: Array
    """V_t(x), [H + 1, S]"""
    action_values: Array
    """Q_t(x, a), [H, S, A]; -inf where an action is not allowed"""
    policy: Array
    """π_t(a | x), [H, S, A]"""
    value: float
    """The certainty equivalent of V_0 under the first state's law."""


def solve(
    mdp: TabularMDP | FactoredMDP,
    horizon: int,
    *,
    risk: float = 0.0,
    temperature: float = 0.0,
    state: Any = None,
    dtype: str = "float64",
) -> Exact:
    """The optimal policy and its values.

    >>> walk = TabularMDP(3, ["left", "right"], [[[1, 0, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, 1]],
    ...     [[0, 1, 0], [0, 0, 1]]], [0, 0, 1])
    >>> solve(walk, 4).value
    2.0
    """
    stages = as_table(mdp).stages(horizon, state)
    return solve_stages(stages, risk=risk, temperature=temperature, dtype=dtype)


def solve_stages(
    stages: Stages, *, risk: float = 0.0, temperature: float = 0.0, dtype: str = "float64"
) -> Exact:
    """The same, of a problem of which the conventions are worked out."""
    check_numbers(risk, temperature)
    if dtype not in ("float64", "float32"):
        raise BadArgument(f"dtype must be float64 or float32, got {dtype!r}")
    if dtype == "float32" and risk != 0.0:
        _check_steep_enough(stages, risk)
    horizon, states, actions = stages.reward.shape
    if dtype == "float64" and states * states * actions <= SMALL and horizon <= SHORT:
        return _small(stages, risk, temperature)
    import jax

    steep = _steep(stages, risk, STEEP if dtype == "float64" else STEEP / 10)
    run = compiled(risk == 0.0, temperature == 0.0, steep)
    with jax.enable_x64(dtype == "float64"):
        parts = (stages.transition, stages.reward, stages.final)
        arrays = [jax.numpy.asarray(x, dtype) for x in parts]
        found = run(
            *arrays, stages.allowed, np.asarray(risk, dtype), np.asarray(temperature, dtype)
        )
        values, q, policy = (np.asarray(x, np.float64) for x in found)
    values = np.append(values, stages.final[None], axis=0)
    value = float(certainty_equivalent(stages.initial, values[0], risk))
    return Exact(values, q, policy, value)


def _small(stages: Stages, risk: float, temperature: float) -> Exact:
    """The same sweep in numpy: a small problem is done before another function is compiled."""
    h, s, a = stages.reward.shape
    values, q = np.empty((h + 1, s)), np.empty((h, s, a))
    values[h] = stages.final
    rows = stages.transition.reshape(s * a, s)
    barred = None if stages.allowed.all() else ~stages.allowed
    steep = risk != 0.0 and _steep(stages, risk)
    for t in reversed(range(h)):
        v, here = values[t + 1], q[t]
        if risk == 0.0:
            ahead = rows @ v
        elif steep:
            ahead = certainty_equivalent(rows, v, risk)
        else:
            top = (risk * v).max()
            ahead = (top + np.log(rows @ np.exp(risk * v - top))) / risk
        np.add(stages.reward[t], ahead.reshape(s, a), out=here)
        if barred is not None:
            here[barred] = -np.inf
        here.max(axis=1, out=values[t])
        if temperature > 0.0:
            weights = np.exp((here - values[t][:, None]) / temperature)
            values[t] += temperature * np.log(weights.sum(axis=1))
    if temperature > 0.0:
        policy = np.exp((q - values[:h, :, None]) / temperature)
    else:
        policy = np.zeros((h, s, a))
        policy.reshape(h * s, a)[np.arange(h * s), q.argmax(axis=2).ravel()] = 1.0
    return Exact(values, q, policy, float(certainty_equivalent(stages.initial, values[0], risk)))


def _check_steep_enough(stages: Stages, risk: float) -> None:
    bend = abs(risk) * float(np.ptp(stages.reward, axis=(1, 2)).max())
    if bend < FLAT:
        raise BadArgument(
            f"risk={risk:g} is too small for float32",
            value=f"|risk| · range of the reward = {bend:g}, at least {FLAT:g}",
            why="e^{λV} - 1 is rounded away and then divided by λ",
            fix='use dtype="float64", or risk=0: the expected utility has a branch of its own',
        )


def _steep(stages: Stages, risk: float, limit: float = STEEP) -> bool:
    span = np.ptp(stages.reward, axis=(1, 2)).sum() + np.ptp(stages.final)
    return bool(abs(risk) * span > limit)


@functools.cache
def compiled(neutral: bool, hard: bool, steep: bool) -> Callable[..., Any]:
    """The backward sweep; λ = 0, α = 0 and the careful sum are branches of their own."""
    import jax
    import jax.numpy as jnp
    from jax.scipy.special import logsumexp

    def run(p: Any, reward: Any, final: Any, allowed: Any, lam: Any, alpha: Any) -> Any:
        states, actions = allowed.shape
        rows = p.reshape(states * actions, states)

        def ahead(v: Any) -> Any:
            if neutral:
                return rows @ v
            if steep:
                return logsumexp(lam * v[None], b=rows, axis=1) / lam
            top = (lam * v).max()
            return (top + jnp.log(rows @ jnp.exp(lam * v - top))) / lam

        def back(v: Any, r: Any) -> Any:
            q = jnp.where(allowed, r + ahead(v).reshape(states, actions), -jnp.inf)
            if hard:
                best = q.argmax(axis=1)
                return q.max(axis=1), (q.max(axis=1), q, jax.nn.one_hot(best, actions))
            soft = alpha * logsumexp(q / alpha, axis=1)
            return soft, (soft, q, jax.nn.softmax(q / alpha, axis=1))

        _, found = jax.lax.scan(back, final, reward, reverse=True)
        return found

    return jax.jit(run)


def evaluate(stages: Stages, policy: Array, *, risk: float = 0.0) -> float:
    """The certainty equivalent of a Markov policy [H, S, A] or [S, A], exactly."""
    each = np.broadcast_to(policy, stages.reward.shape)
    value = stages.final
    for reward, pi in zip(stages.reward[::-1], each[::-1], strict=True):
        q = reward + certainty_equivalent(stages.transition, value, risk)
        value = certainty_equivalent(pi, q, risk)
    return float(certainty_equivalent(stages.initial, value, risk))


def check_numbers(risk: float, temperature: float) -> None:
    """λ is finite, α is finite and not negative."""
    if not math.isfinite(risk):
        raise BadArgument(f"risk must be a finite number, got {risk!r}")
    if not (math.isfinite(temperature) and temperature >= 0.0):
        raise BadArgument(
            f"temperature must be finite and at least 0, got {temperature!r}",
            fix="it is in units of the reward; 0 takes the best action",
        )
