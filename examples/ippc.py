"""Competition problems (IPPC 2011) through RDDL: what planners earn, against the exact optimum.

Returns of 40 actions, reward of state and action, costs of actions kept. Every agent meets the same
random numbers. ARollout and the random agent run in every state of every episode; VBP, the linear
bound and "auto" plan anew at each step and take much longer, so they play fewer episodes.

What to expect: on these tasks ARollout earns as much as VBP in a small part of its time; careful
methods are worth their cost where a plan must react (`docs/planning.md`).

    python examples/ippc.py --domains SysAdmin,GameOfLife --episodes 12 --careful 12

Reference: Sanner and Yoon, International probabilistic planning competition (2011); Lázaro-Gredilla,
Ku, Murphy and George, What type of inference is planning? (2024).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from lmppl.inference.planning import FactoredMDP, NotConverged, RecedingHorizon, from_rddl, plan
from lmppl.inference.planning.factors import Factors, factors_of
from lmppl.inference.planning.rollout import reactive, simulate

NEEDS = ("jax", "scipy", "pyRDDLGym", "rddlrepository")
SLOW = True
HORIZON = 40
OPTIMA = {"SysAdmin": 342.6804, "GameOfLife": 209.4349, "Navigation": -9.5669}
Policy = Callable[[int, Any], Any]


def load(domain: str, instance: int) -> FactoredMDP:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the parser's own
        mdp = from_rddl(f"{domain}_MDP_ippc2011", str(instance))
        if domain == "Navigation":  # a position in flags defeats every factored method
            mdp = from_rddl(f"{domain}_MDP_ippc2011", str(instance), one_hot=[list(mdp.states)])
    return mdp


def agents(mdp: FactoredMDP, problem: Factors, seed: int) -> dict[str, Policy]:
    rng = np.random.default_rng(seed)
    noop = 0
    legal = np.flatnonzero(problem.allowed)
    names = list(mdp.states)

    def planner(method: str, **options: Any) -> Policy:
        agent = RecedingHorizon(mdp, 9, method, options)

        def act(t: int, states: Any) -> Any:
            found = []
            for row in states:
                agent.reset()
                at = {n: mdp.states[n][c] for n, c in zip(names, row, strict=True)}
                found.append(mdp.actions.index(agent.act(at, HORIZON - t)))
            return np.array(found)

        return act

    return {
        "random": lambda t, states: rng.choice(legal, len(states)),
        "noop": lambda t, states: np.full(len(states), noop),
        "rollout": reactive(problem, 9),
        "vbp": planner("vbp", sweeps=30, inner=10),
        "lp": planner("lp"),
        "auto": planner("auto", rollouts=100, exact_work=0.0, sweeps=30, inner=10),
    }


def play(
    problem: Factors, policy: Policy, episodes: int, seed: int = 1
) -> tuple[float, float, float]:
    """Mean return, its standard error, seconds per decision."""
    start = np.repeat([[int(p.argmax()) for p in problem.initial]], episodes, axis=0)
    uniforms = np.random.default_rng(seed).random((episodes, HORIZON, len(problem.sizes)))
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConverged)
        found = simulate(problem, start, uniforms, policy)
    seconds = (time.perf_counter() - began) / (episodes * HORIZON)
    return float(found.mean()), float(found.std(ddof=1) / np.sqrt(episodes)), seconds


def main(
    domains: tuple[str, ...] = ("SysAdmin",),
    instance: int = 1,
    episodes: int = 40,
    careful: int = 0,
) -> None:
    for domain in domains:
        mdp = load(domain, instance)
        problem = factors_of(mdp, HORIZON)
        print(f"{domain} {instance}: {len(mdp.states)} variables, {len(mdp.actions)} actions")
        if mdp.size <= 1024:
            best = plan(mdp, horizon=HORIZON, method="dp").value
            print(f"  {'exact optimum':<14}{best:>10.4f}")
            if instance == 1 and domain in OPTIMA:
                assert abs(best - OPTIMA[domain]) < 1e-3
        earned = {}
        for name, policy in agents(mdp, problem, 0).items():
            n = careful if name in ("vbp", "lp", "auto") else episodes
            if n < 2:
                continue
            mean, error, seconds = play(problem, policy, n)
            earned[name] = mean
            print(f"  {name:<14}{mean:>10.2f} ± {error:<6.2f}{n:>4} episodes{seconds * 1e3:>10.1f} ms per decision", flush=True)  # fmt: skip
        if domain != "Navigation":  # its goal lies beyond what uniform later actions can see
            assert earned["rollout"] > earned["random"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domains", default="SysAdmin")
    parser.add_argument("--instance", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--careful", type=int, default=0, help="episodes of vbp, lp and auto")
    given = parser.parse_args()
    main(tuple(given.domains.split(",")), given.instance, given.episodes, given.careful)
