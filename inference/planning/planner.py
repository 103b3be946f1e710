"""`plan`: which action now, what each is worth, and how far to trust it.

| method | value | for |
| --- | --- | --- |
| "dp" | exact | anything that fits into one table |
| "lp" | exact (a table) or an upper bound (factored) | expected utility, nearly deterministic |
| "vbp" | estimate | factored, noisy; may not converge, and says so |
| "maxent" | estimate | factored: "vbp" with a temperature of a tenth of the reward's range |
| "rollout" | estimate | factored, a cheap baseline that plans for an agent that does not react |
| "mcts" | estimate | states that cannot be listed (`OpenMDP`): tree search with chance nodes |

"auto" is exact where |S|² A H is small. Elsewhere it asks the baseline and one of "lp" and "vbp",
and lets the proposed first actions compete: simulated runs with common random numbers, continued by
a policy that reacts, decide; ties go to the cheaper method. A plan is a policy, not a sequence.

Reference: Lázaro-Gredilla, Ku, Murphy and George, What type of inference is planning? (2024).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmppl.distributions import Categorical
from lmppl.errors import BadArgument
from lmppl.inference.planning import dp, lp, vbp, vilp
from lmppl.inference.planning.factors import Factors, factors_of
from lmppl.inference.planning.kinds import certainty_equivalent
from lmppl.inference.planning.mcts import OpenMDP, as_world, search
from lmppl.inference.planning.mdp import MOST_STATES, FactoredMDP, TabularMDP
from lmppl.inference.planning.rollout import arollout, reactive, simulate
from lmppl.inference.planning.tables import Array, check_horizon

METHODS = ("auto", "dp", "lp", "vbp", "maxent", "rollout", "mcts")
BY_MESSAGES = ("auto", "vbp", "maxent")
"""Methods that may compile a function for each shape: they take `slices` and `start`."""
EXACT_WORK = 1e9
MOST_VARIABLES = 30_000
NEARLY_DETERMINISTIC = 0.25


class NotConverged(UserWarning):
    """An action read from messages that had not come to rest."""


@dataclass(frozen=True)
class Plan:
    """What a planner found.

    `value_kind` is "exact", "upper_bound" or "estimate". `policy(t, state)` is a law over actions:
    of the table for "dp", by planning again from that state for the factored methods.
    """

    method: str
    action_values: dict[Any, float]
    action_probs: dict[Any, float]
    value: float
    value_kind: str
    policy: Callable[[int, Any], dict[Any, float]] = field(repr=False)
    converged: bool = True
    diagnostics: dict[str, Any] = field(default_factory=dict)

    def law(self, t: int, state: Any) -> Categorical:
        """The policy as a distribution that a program can sample: `sample("a", found.law(0, s))`."""
        return Categorical(dict(self.policy(t, state)))

    @property
    def action(self) -> Any:
        """The most probable first action; warns where the run did not converge."""
        if not self.converged:
            warnings.warn(
                f"{self.method} did not converge after {self.diagnostics.get('sweeps')} sweeps "
                f"(residual {self.diagnostics.get('residual', float('nan')):.3g}): its action is a "
                'guess; use method="auto", which checks it by simulation',
                NotConverged,
                stacklevel=2,
            )
        return _top(self.action_probs)


def plan(
    mdp: TabularMDP | FactoredMDP | OpenMDP,
    state: Any = None,
    horizon: int = 10,
    method: str = "auto",
    *,
    risk_aversion: float = 0.0,
    temperature: float = 0.0,
    seed: int = 0,
    rollouts: int = 300,
    exact_work: float = EXACT_WORK,
    **options: Any,
) -> Plan:
    """Plan `horizon` actions from a state that is seen.

    Args:
        mdp: the problem.
        state: a label, or values by variable; the problem's own first state by default.
        horizon: how many actions, not states.
        method: see the module's table.
        risk_aversion: -λ: positive avoids risk, negative seeks it, 0 is the expected utility.
        temperature: of the policy, in units of the reward; 0 takes the best action.
        seed: of the simulated runs of "auto".
        rollouts: how many runs decide in "auto".
        exact_work: |S|² A H up to which "auto" is exact.
        options: of the message passing (`lmppl.inference.planning.vbp.propagate`), of the linear
            bound (`every`) or of the tree search (`lmppl.inference.planning.mcts.search`).

    >>> walk = TabularMDP(3, ["left", "right"], [[[1, 0, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, 1]],
    ...     [[0, 1, 0], [0, 0, 1]]], [.1, 0, 1])
    >>> found = plan(walk, 0, horizon=4)
    >>> found.action, round(found.value, 6), found.value_kind
    ('right', 2.1, 'exact')
    >>> plan(walk, 0, horizon=2).policy(1, 0)
    {'left': 1.0, 'right': 0.0}
    """
    check_horizon(horizon)
    dp.check_numbers(risk_aversion, temperature)
    if method not in METHODS:
        raise BadArgument(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if isinstance(mdp, OpenMDP) or method == "mcts":
        if method not in ("auto", "mcts") or risk_aversion or temperature:
            raise BadArgument(
                f"method={method!r} needs a problem whose states are listed, and tree search is about "
                "the expected utility",
                value=f"risk_aversion={risk_aversion}, temperature={temperature}",
                fix='use method="mcts" without risk and temperature, or "dp"',
            )
        return _searched(mdp, state, horizon, seed, options)
    if isinstance(mdp, TabularMDP) and method in ("vbp", "maxent", "rollout"):
        raise BadArgument(
            f"method={method!r} needs a FactoredMDP: a table has no factors",
            fix='use method="dp", which is exact here',
        )
    if (risk_aversion or temperature) and method in ("lp", "rollout"):
        raise BadArgument(
            f"method={method!r} is about the expected utility and its best action",
            value=f"risk_aversion={risk_aversion}, temperature={temperature}",
            fix='use method="dp" or "vbp"',
        )
    risk = -risk_aversion
    if method == "dp" or (method == "auto" and _small(mdp, horizon, exact_work)):
        return _exact(mdp, state, horizon, risk, temperature)
    if isinstance(mdp, TabularMDP):
        if method == "auto":
            return _exact(mdp, state, horizon, risk, temperature)
        return _occupancy(mdp, state, horizon)
    problem = factors_of(mdp, horizon, state, options.pop("slices", None))
    warm = ("start", "anneal") if "start" in options else ()
    own = {k: v for k, v in options.items() if k not in warm}
    if method in BY_MESSAGES:  # one shape, so that a later part of the plan compiles nothing
        own["slices"] = problem.horizon

    def again(t: int, at: Any) -> dict[Any, float]:
        _check_time(t, horizon)
        return plan(
            mdp, at, horizon - t, method, risk_aversion=risk_aversion, temperature=temperature,
            seed=seed, rollouts=rollouts, exact_work=exact_work, **own,
        ).action_probs  # fmt: skip

    if method == "auto":
        return _auto(mdp, problem, risk, temperature, seed, rollouts, again, options)
    return _factored(mdp, problem, method, risk, temperature, again, options)


def _small(mdp: TabularMDP | FactoredMDP, horizon: int, work: float) -> bool:
    states = len(mdp.states) if isinstance(mdp, TabularMDP) else mdp.size
    return states <= MOST_STATES and states**2 * len(mdp.actions) * horizon <= work


def _exact(
    mdp: TabularMDP | FactoredMDP, state: Any, horizon: int, risk: float, temperature: float
) -> Plan:
    flat = mdp.flat() if isinstance(mdp, FactoredMDP) else mdp

    def label(at: Any) -> Any:
        return tuple(mdp.full(at).values()) if isinstance(mdp, FactoredMDP) else at

    stages = flat.stages(horizon, None if state is None else label(state))
    found = dp.solve_stages(stages, risk=risk, temperature=temperature)
    first = stages.initial[: len(flat.states)]
    seen = first.nonzero()[0]

    def policy(t: int, where: Any) -> dict[Any, float]:
        _check_time(t, horizon)
        return _named(mdp, found.policy[t, flat.index(label(where))])

    told: dict[str, Any] = {"states": len(flat.states), "values": found.values}
    if len(seen) == 1:
        return Plan(
            "dp",
            _named(mdp, found.action_values[0, int(seen[0])]),
            _named(mdp, found.policy[0, int(seen[0])]),
            found.value,
            "exact",
            policy,
            diagnostics=told,
        )
    # What is not seen cannot be used: one first action for all states of the belief
    q = found.action_values[0][seen].T
    values = np.where(
        np.isfinite(q).all(axis=1),
        certainty_equivalent(first[seen], np.where(np.isfinite(q), q, 0.0), risk),
        -np.inf,
    )
    if not np.isfinite(values).any():
        raise BadArgument("no action is allowed in every state of the belief")
    probs, value = _greedy(values, temperature)
    told["belief"] = "one first action for all; later states are taken to be seen"
    return Plan(
        "dp",
        _named(mdp, values),
        _named(mdp, probs),
        value,
        "upper_bound",
        policy,
        diagnostics=told,
    )


def _greedy(values: Array, temperature: float) -> tuple[Array, float]:
    """The law over actions at a temperature, and its value."""
    if temperature == 0.0:
        return (np.arange(len(values)) == values.argmax()).astype(float), float(values.max())
    top = values.max()
    weights = np.exp((values - top) / temperature)
    return weights / weights.sum(), float(top + temperature * np.log(weights.sum()))


def _occupancy(mdp: TabularMDP, state: Any, horizon: int) -> Plan:
    """The linear programme of a table; action values by its dual, which is the Bellman equation."""
    exact = _exact(mdp, state, horizon, 0.0, 0.0)
    stages = mdp.stages(horizon, state)
    value, q = lp.occupancy(stages)
    mass = q[0].sum(axis=0)
    return Plan(
        "lp",
        exact.action_values,
        _named(mdp, mass / mass.sum()),
        value,
        "exact",
        exact.policy,
        diagnostics={"occupancy": q},
    )


def _factored(
    mdp: FactoredMDP, problem: Factors, method: str, risk: float, temperature: float,
    policy: Callable[[int, Any], dict[Any, float]], options: Mapping[str, Any],
) -> Plan:  # fmt: skip
    if method == "maxent":
        usual = {"damping": 0.5, "inner": 1000}
        temperature, options = temperature or 0.1 * problem.span, {**usual, **options}
    if method in ("vbp", "maxent"):
        b = vbp.propagate(problem, risk=risk, temperature=temperature, **options)
        told = {
            "residual": b.residual, "sweeps": b.sweeps, "inner_iterations": b.inner_iterations,
            "temperature": b.temperature, "schedule": options.get("schedule", "sequential"),
            "marginals": b.beliefs, "messages": b.messages,
        }  # fmt: skip
        return Plan(
            method, _named(mdp, b.action_values), _named(mdp, b.action_probs), b.value, "estimate",
            policy, b.converged, told,
        )  # fmt: skip
    if unknown := set(options) - ({"every"} if method == "lp" else set()):
        raise BadArgument(f"method={method!r} takes no {', '.join(sorted(unknown))}")
    if method == "lp":
        found = vilp.bound(problem, **options)
        return Plan(
            "lp", _named(mdp, found.action_values), _named(mdp, found.action_probs), found.value,
            "upper_bound", policy, diagnostics={"variables": found.variables},
        )  # fmt: skip
    scores = arollout(problem, _codes(problem))[0]
    best = scores == scores.max()
    return Plan(
        "rollout", _named(mdp, scores), _named(mdp, best / best.sum()), float(scores.max()),
        "estimate", policy,
    )  # fmt: skip


def _auto(
    mdp: FactoredMDP, problem: Factors, risk: float, temperature: float, seed: int, rollouts: int,
    policy: Callable[[int, Any], dict[Any, float]], options: Mapping[str, Any],
) -> Plan:  # fmt: skip
    """The baseline and one careful method propose; simulation with common numbers decides."""
    noise = stochasticity(problem)
    careful = "vbp"
    sharp = noise < NEARLY_DETERMINISTIC and vilp.variables(problem) < MOST_VARIABLES
    if risk == 0.0 and temperature == 0.0 and sharp:
        careful = "lp"
    plans = [_factored(mdp, problem, "rollout", risk, temperature, policy, {})]
    chosen = options if careful == "vbp" else {"every": False}
    plans.append(_factored(mdp, problem, careful, risk, temperature, policy, chosen))
    choices = list(dict.fromkeys(_top(p.action_probs) for p in plans))
    n, m = rollouts, len(choices)
    uniforms = np.random.default_rng(seed).random((n, problem.horizon, len(problem.sizes)))
    found = simulate(
        problem,
        np.repeat(_codes(problem), n * m, axis=0),
        np.tile(uniforms, (m, 1, 1)),
        reactive(problem),
        np.repeat([mdp.actions.index(a) for a in choices], n),
    )
    runs = dict(zip(choices, found.reshape(m, n), strict=True))
    means = {a: float(certainty_equivalent(np.full(n, 1 / n), r, risk)) for a, r in runs.items()}
    # Equal up to rounding is a tie, and max keeps the first: the cheaper method's
    best = max(means, key=lambda a: round(means[a], 9))
    winner = next(p for p in plans if _top(p.action_probs) == best)
    told = {
        "candidates": {p.method: _top(p.action_probs) for p in plans},
        "rollout_means": means,
        "standard_errors": {a: float(r.std(ddof=1) / np.sqrt(n)) for a, r in runs.items()},
        "winner": winner.method,
        "stochasticity": noise,
        "careful": plans[1].diagnostics,
        "careful_converged": plans[1].converged,
    }
    only = {a: float(a == best) for a in mdp.actions}
    probs = winner.action_probs if temperature else only
    return Plan("auto", dict(means), probs, means[best], "estimate", policy, True, told)


def _searched(
    mdp: TabularMDP | FactoredMDP | OpenMDP, state: Any, horizon: int, seed: int, options: Any
) -> Plan:
    """Tree search; the policy searches again from where it is asked."""
    if isinstance(mdp, OpenMDP):
        world, names, at = mdp, None, mdp.start if state is None else state
    else:
        world = as_world(mdp, horizon, state)
        names, at = mdp.actions, world.start
    found = search(world, at, horizon, seed=seed, **options)

    def named(values: Mapping[Any, float]) -> dict[Any, float]:
        return dict(values) if names is None else {names[k]: v for k, v in sorted(values.items())}

    def policy(t: int, where: Any) -> dict[Any, float]:
        _check_time(t, horizon)
        return _searched(mdp, where, horizon - t, seed, options).action_probs

    best = max(found.values, key=lambda a: (found.visits[a], found.values[a]))
    probs = {a: float(a == best) for a in found.values}
    told = {
        "visits": named(found.visits),
        "standard_errors": named(found.errors),
        "nodes": found.nodes,
    }
    return Plan(
        "mcts",
        named(found.values),
        named(probs),
        found.values[best],
        "estimate",
        policy,
        True,
        told,
    )


def stochasticity(problem: Factors) -> float:
    """Mean entropy of the rows of the transitions, relative to the uniform law's."""
    parts = []
    for f in problem.factors:
        if f.table is not None and f.table.shape[-1] > 1:
            p = np.maximum(f.table, 1e-300)
            parts.append(float(-(p * np.log(p)).sum(axis=-1).mean() / np.log(p.shape[-1])))
    return float(np.mean(parts)) if parts else 0.0


def _top(probs: Mapping[Any, float]) -> Any:
    return max(probs, key=probs.__getitem__)


def _codes(problem: Factors) -> Any:
    return np.array([[int(p.argmax()) for p in problem.initial]])


def _named(mdp: TabularMDP | FactoredMDP, values: Array) -> dict[Any, float]:
    return dict(zip(mdp.actions, values.tolist(), strict=True))


def _check_time(t: int, horizon: int) -> None:
    if not 0 <= t < horizon:
        raise BadArgument(f"the plan has actions at times 0 to {horizon - 1}, not {t!r}")
