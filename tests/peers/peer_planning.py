"""pymdp 1.0.4 and ours on the reactive task, side by side: what is chosen, and time per decision.

Risky leads left or right by a fair coin, where the right action wins 1; safe leads to .6. An agent that
reacts wins 1 by risky. pymdp's default scores sequences of actions that are fixed beforehand, and
picks safe; its sophisticated inference looks ahead in a tree, and picks risky. Run by `make peers`.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pymdp.agent import Agent
from pymdp.planning.si import si_policy_search

from lmppl.inference.planning import TabularMDP, plan

WORTH = [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.6]
"""start, left, right, middle, won, lost, six"""


def moves() -> np.ndarray[Any, Any]:
    """P(x' | x, a) [7, 2, 7]; action 0 is risky at the start, and wins on the left."""
    to = np.eye(7)
    return np.array(
        [
            [[0, 0.5, 0.5, 0, 0, 0, 0], to[3]],
            [to[4], to[5]],
            [to[5], to[4]],
            [to[6], to[6]],
            [to[5], to[5]],
            [to[5], to[5]],
            [to[5], to[5]],
        ]
    )


def seconds(fn: Any, repeats: int = 20) -> tuple[float, float]:
    """First call, and the least of later ones: what the work takes when nothing disturbs it."""
    began = time.perf_counter()
    jax.block_until_ready(fn())  # type: ignore[no-untyped-call]
    first = time.perf_counter() - began
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(fn())  # type: ignore[no-untyped-call]
        times.append(time.perf_counter() - began)
    return first, min(times)


def main() -> None:
    table = moves()
    mdp = TabularMDP(7, ["risky", "safe"], table, WORTH, timing="successor")
    ours: dict[str, Any] = {}

    def decide() -> float:
        ours["plan"] = plan(mdp, 0, 2)
        return float(ours["plan"].value)

    rows = [("ours", *seconds(decide), ours["plan"].action, ours["plan"].action_values)]
    agent = Agent(
        [jnp.eye(7)[None]], [jnp.asarray(table.transpose(2, 0, 1))[None]], C=[jnp.asarray(WORTH)[None]],
        D=[jnp.eye(7)[:1]], policy_len=2, use_states_info_gain=False, gamma=16.0,
    )  # fmt: skip
    qs = [jnp.eye(7)[None, :1]]  # [batch, time, states]
    found: dict[str, Any] = {}

    def default() -> Any:
        found["q"], found["g"] = agent.infer_policies(qs)
        return found["q"]

    timed = seconds(default)
    q = np.asarray(found["q"])[0]
    first = np.asarray(agent.policies.policy_arr)[:, 0, 0]
    probs = [float(q[first == a].sum()) for a in range(2)]
    g = np.asarray(found["g"])[0]
    best = {n: round(float(g[first == a].max()), 3) for a, n in enumerate(("risky", "safe"))}
    rows.append(("pymdp, default", *timed, ["risky", "safe"][int(np.argmax(probs))], best))

    deep = Agent(
        [jnp.eye(7)[None]], [jnp.asarray(table.transpose(2, 0, 1))[None]], C=[jnp.asarray(WORTH)[None]],
        D=[jnp.eye(7)[:1]], policy_len=1, use_states_info_gain=False, gamma=1.0,
    )  # fmt: skip
    search = si_policy_search(horizon=2, max_nodes=64, max_branching=7, entropy_stop_threshold=0.0)

    def sophisticated() -> Any:
        found["s"] = search(deep, qs, jax.random.PRNGKey(0))
        return found["s"][0]

    timed = seconds(sophisticated)
    probs = np.asarray(found["s"][0])[0].ravel()
    rows.append(("pymdp, sophisticated", *timed, ["risky", "safe"][int(np.argmax(probs))], [round(float(x), 3) for x in probs]))  # fmt: skip
    print(f"{'':<22}{'first call':>12}{'later':>12}  picks")
    for name, start, later, action, scores in rows:
        print(f"{name:<22}{start:>10.2f} s{later * 1e3:>10.2f} ms  {action}  {scores}")
    print(f"sophisticated inference / ours, per decision: {rows[2][2] / rows[0][2]:.1f}x")


if __name__ == "__main__":
    main()
