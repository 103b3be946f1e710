"""A planner chooses the next reasoning move of a SmolLM2 program.

The question is a sum of two numbers; the program may think in words (a string of the model), ask a
calculator, or answer (the model picks one of four numbers), and each move costs. First it moves at
random: its traces are experience. `plan_policy` makes a small problem of them and plans; the policy
then drives the same program on new questions, against random moves and against answering at once.

A navigator with far fewer than 3,000 parameters, a softmax over moves for each state, is trained on
the same tables by exact policy gradients, and is compared with the planner's optimum.

Reference: Hao et al., RL of thoughts: navigating LLM reasoning with inference-time reinforcement
learning (2025).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lmppl import LM, Categorical, Choice, Uniform, deterministic, effect, program, reward, sample
from lmppl.inference import Forward, infer_many
from lmppl.inference.planning import TabularMDP, plan_policy
from lmppl.inference.planning.moves import END, moves_of

NEEDS = ("smollm2", "jax")
SLOW = True
MOVES = ("think", "calculate", "answer")
COSTS = {"think": 0.1, "calculate": 0.05, "answer": 0.0}
LONGEST = 3
Policy = Callable[[int, Any], Any]


@program
def solve(a: int, b: int, policy: Policy) -> int:
    """Move until an answer is given; the last move is always one."""
    notes, thought, known = f"Question: What is {a} + {b}?\n", False, False
    for t in range(LONGEST):
        state = deterministic("state", (t, thought, known))
        law = policy(t, state) if t < LONGEST - 1 else Categorical({"answer": 1})
        move = sample("move", law)
        reward("cost", -COSTS[move])
        if move == "think":
            notes += f"Thought:{sample('thought', LM(notes + 'Thought:', max_tokens=16, stop=chr(10)))}\n"
            thought = True
        elif move == "calculate":
            notes += f"Calculator: {a} + {b} = {effect('sum', lambda x, y: x + y, a, b)}\n"
            known = True
        else:
            options = {n: f" {n}" for n in sorted({a + b, a + b - 10, a + b + 1, a + b + 10})}
            said = sample("said", Choice(notes + "Answer:", options, end=True, stop="\n"))
            reward("right", said == a + b)
            return int(said)
    return -1


def questions(n: int, seed: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    return [(int(x), int(y)) for x, y in rng.integers(21, 70, (n, 2))]


def earned(policy: Policy, asked: list[tuple[int, int]], lm: Any, runs: int, seed: int) -> Any:
    """Posteriors of the runs, and the mean of what they earned."""
    posts = infer_many(
        solve, [(a, b, policy) for a, b in asked], engine=Forward(runs), lm=lm, seed=seed
    )
    returns = [sum(m.reward for m in moves_of(t)) for p in posts for t in p.traces]
    return posts, float(np.mean(returns)), float(np.std(returns) / np.sqrt(len(returns)))


def navigator(
    mdp: TabularMDP, first: Any, steps: int = 400, rate: float = 5.0
) -> tuple[int, float]:
    """Exact policy gradients of a softmax over moves; its parameters, and its value."""
    stages = mdp.stages(LONGEST, first)
    theta = np.where(stages.allowed, 0.0, -1e9)
    value = 0.0
    for _ in range(steps):
        pi = np.exp(theta - theta.max(axis=1, keepdims=True))
        pi /= pi.sum(axis=1, keepdims=True)
        v, qs = stages.final, []
        for r in stages.reward[::-1]:
            qs.append(r + stages.transition @ v)
            v = (pi * qs[-1]).sum(axis=1)
        at, gradient, value = stages.initial, np.zeros_like(pi), float(stages.initial @ v)
        for q in reversed(qs):
            gradient += at[:, None] * pi * (q - (pi * q).sum(axis=1, keepdims=True))
            at = np.einsum("x,xa,xay->y", at, pi, stages.transition)
        theta = theta + rate * gradient
    return int(stages.allowed.sum()), value


def main(lm: Any = "smollm2", train: int = 16, test: int = 12, runs: int = 4) -> None:
    def anything(t: int, state: Any) -> Any:
        return Uniform(MOVES)

    posts, mean, error = earned(anything, questions(train, 0), lm, runs, 0)
    found = plan_policy(posts, horizon=LONGEST)
    print(f"{'state (step, thought, calculated)':<36}move, by the plan")
    for state in found.mdp.states:
        if state != END:
            law = found.plan.policy(state[0], state)
            print(f"{state!s:<36}{max(law, key=lambda m: law[m])}")
    parameters, value = navigator(found.mdp, (0, False, False))
    print(
        f"in the learned tables: optimum {found.value:.3f}, navigator {value:.3f} ({parameters} parameters)"
    )
    assert parameters < 3000
    assert found.value - 0.02 <= value <= found.value + 1e-9

    rows = {"random moves": anything, "answer at once": lambda t, s: Categorical({"answer": 1}),
            "the plan": found.law}  # fmt: skip
    print(f"{'on new questions':<20}{'earned':>8}{'s.e.':>8}")
    results = {}
    for name, policy in rows.items():
        _, mean, error = earned(policy, questions(test, 1), lm, runs, 1)
        results[name] = (mean, error)
        print(f"{name:<20}{mean:>8.3f}{error:>8.3f}")
    best, worst = results["the plan"], results["random moves"]
    assert best[0] > worst[0] - 2 * (best[1] + worst[1])


if __name__ == "__main__":
    main()
