"""Competition problems (IPPC 2011) through RDDL: what planners earn, against the exact optimum.

Returns of 40 actions, reward of state and action, costs of actions kept. Every agent meets the same
random numbers and plans 9 actions ahead, anew in every state. VBP, the linear bound and "auto" take
longer and play fewer episodes; what they earn above ARollout in these is shown. So is in how many plans
of VBP the messages came to rest, and the processor time of one decision, without compiling.

What to expect: on these tasks ARollout earns as much as VBP in a small part of its time; careful
methods are worth their cost where a plan must react (`docs/planning.md`).

    python examples/ippc.py --domains SysAdmin,GameOfLife --careful 12 --agents all

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
HORIZON, AHEAD = 40, 9
OPTIMA = {
    "SysAdmin": 342.6804,
    "GameOfLife": 209.4349,
    "Navigation": -9.5669,
    "SkillTeaching": 66.2647,
}
CAREFUL: dict[str, dict[str, Any]] = {
    "vbp": {"sweeps": 30, "inner": 10, "tolerance": 1e-3, "anneal": 6},
    "lp": {"every": False},
    "auto": {
        "rollouts": 100,
        "exact_work": 0.0,
        "sweeps": 30,
        "inner": 10,
        "tolerance": 1e-3,
        "anneal": 6,
    },
}
Policy = Callable[[int, Any], Any]


def load(domain: str, instance: int) -> FactoredMDP:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the parser's own
        mdp = from_rddl(f"{domain}_MDP_ippc2011", str(instance))
        if domain == "Navigation":  # a position in flags defeats every factored method
            mdp = from_rddl(f"{domain}_MDP_ippc2011", str(instance), one_hot=[list(mdp.states)])
    return mdp


class Careful:
    """One agent of a method for each episode."""

    def __init__(self, mdp: FactoredMDP, method: str) -> None:
        self.mdp, self.method = mdp, method
        self.rested: list[bool] = []
        self.agents: list[RecedingHorizon] = []

    def __call__(self, t: int, states: Any) -> Any:
        if t == 0:
            new = (self.mdp, AHEAD, self.method, CAREFUL[self.method])
            self.agents, self.rested = [RecedingHorizon(*new) for _ in states], []
        return np.array([self.act(a, t, row) for a, row in zip(self.agents, states, strict=True)])

    def act(self, agent: RecedingHorizon, t: int, codes: Any) -> int:
        values = self.mdp.states.items()
        at = {name: labels[c] for (name, labels), c in zip(values, codes, strict=True)}
        action = agent.act(at, HORIZON - t)
        if agent.last is not None:
            told = agent.last.diagnostics
            self.rested.append(told.get("careful_converged", agent.last.converged))
        return int(self.mdp.actions.index(action))


def cheap(problem: Factors, name: str, seed: int = 0) -> Policy:
    rng = np.random.default_rng(seed)
    legal = np.flatnonzero(problem.allowed)
    return {
        "random": lambda t, states: rng.choice(legal, len(states)),
        "noop": lambda t, states: np.zeros(len(states), np.intp),
        "rollout": reactive(problem, AHEAD),
    }[name]


def play(problem: Factors, policy: Policy, episodes: int) -> tuple[Any, float]:
    """Returns of the episodes, processor seconds per decision."""
    start = np.repeat([[int(p.argmax()) for p in problem.initial]], episodes, axis=0)
    uniforms = np.random.default_rng(1).random((episodes, HORIZON, len(problem.sizes)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConverged)
        policy(0, start[:1])  # compile
        began = time.process_time()
        found = simulate(problem, start, uniforms, policy)
    seconds = (time.process_time() - began) / (episodes * HORIZON)
    return found, seconds


def spread(runs: Any) -> str:
    return f"{runs.mean():>8.2f} ± {runs.std(ddof=1) / np.sqrt(len(runs)):<5.2f}"


def main(
    domains: tuple[str, ...] = ("SysAdmin",), instance: int = 1, episodes: int = 40,
    careful: int = 4, agents: tuple[str, ...] = ("random", "noop", "rollout", "vbp"), exact: int = 1024,
) -> None:  # fmt: skip
    for domain in domains:
        mdp = load(domain, instance)
        problem = factors_of(mdp, HORIZON)
        print(f"{domain} {instance}: {len(mdp.states)} variables, {len(mdp.actions)} actions")
        if mdp.size <= exact:
            best = plan(mdp, horizon=HORIZON, method="dp").value
            print(f"  {'exact optimum':<14}{best:>10.4f}")
            if instance == 1 and domain in OPTIMA:
                assert abs(best - OPTIMA[domain]) < 1e-3
        earned: dict[str, Any] = {}
        for name in agents:
            player: Any = Careful(mdp, name) if name in CAREFUL else cheap(problem, name)
            n = careful if name in CAREFUL else episodes
            runs, seconds = play(problem, player, n)
            line = f"  {name:<12}{spread(runs)}{n:>4} episodes{seconds * 1e3:>9.1f} ms per decision"
            if name in CAREFUL and "rollout" in earned:
                line += f"  {spread(runs - earned['rollout'][:n])} above ARollout"
            if name in ("vbp", "auto"):
                line += f"  {np.mean(player.rested):.0%} rested"
            print(line, flush=True)
            earned[name] = runs
        # In Navigation the goal lies beyond what uniform later actions can see
        if {"rollout", "random"} <= set(earned) and domain != "Navigation":
            assert earned["rollout"].mean() > earned["random"].mean()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domains", default="SysAdmin")
    parser.add_argument("--instance", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--careful", type=int, default=4, help="episodes of vbp, lp and auto")
    parser.add_argument("--agents", default="random,noop,rollout,vbp", help='or "all"')
    parser.add_argument("--exact", type=int, default=1024, help="states up to which it is solved")
    given = parser.parse_args()
    chosen = ["random", "noop", "rollout", *CAREFUL] if given.agents == "all" else given.agents.split(",")  # fmt: skip
    main(tuple(given.domains.split(",")), given.instance, given.episodes, given.careful, tuple(chosen), given.exact)  # fmt: skip
