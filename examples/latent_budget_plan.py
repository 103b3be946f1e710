"""Where does it go, and how far does it think? Goal and planning budget of an agent in a corridor.

Cell 2 holds 1, cell 8 holds 5, and the agent starts at cell 4. With three backups or fewer the large
reward is out of its sight and it turns left; from four on it turns right. So a single step tells
much about its budget, and nothing about budgets that make the same choices: these keep equal mass.

Reference: Jacob, Gupta and Andreas, Modeling boundedly rational agents with latent inference
budgets (2024).
"""

from __future__ import annotations

import numpy as np

from lmppl.inference.planning import TabularMDP, infer_goal_and_budget
from lmppl.inference.planning.bounded import backups, choice_law

CELLS, BUDGETS, HEAT = 9, (2, 3, 4, 6, 8), 0.3
MOVES = {"left": -1, "stay": 0, "right": 1}


def corridor() -> TabularMDP:
    table = np.zeros((CELLS, len(MOVES), CELLS))
    for x in range(CELLS):
        for a, by in enumerate(MOVES.values()):
            table[x, a, min(max(x + by, 0), CELLS - 1)] = 1.0
    return TabularMDP(CELLS, list(MOVES), table, np.zeros(CELLS), initial=4)


def goals() -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    near, far = np.zeros(CELLS), np.zeros(CELLS)
    near[2], far[8] = 1.0, 5.0
    return {"cell 2": near, "cell 8": far, "both": near + far}


def walked(
    mdp: TabularMDP, goal: str, budget: int, rng: np.random.Generator
) -> list[tuple[int, str]]:
    """Four moves of an agent of this budget."""
    law = choice_law(backups(mdp, goals()[goal], budget)[-1], HEAT)
    at, seen = 4, []
    for _ in range(4):
        move = mdp.actions[int(rng.choice(len(MOVES), p=law[at]))]
        seen.append((at, move))
        at = min(max(at + MOVES[move], 0), CELLS - 1)
    return seen


def main(agents: int = 60) -> None:
    mdp, rng = corridor(), np.random.default_rng(0)
    q = backups(mdp, goals()["both"], 4)[:, 4]
    print("budget   Q(left)  Q(stay) Q(right) of cell 4")
    for b in (2, 3, 4):
        print(f"{b:>6}" + "".join(f"{v:>9.4f}" for v in q[b - 1]))
    assert np.allclose(q[3], [2.7099, 1.7599, 4.2869], atol=5e-5)

    sure = infer_goal_and_budget(mdp, [(4, "right")], {"both": goals()["both"]}, BUDGETS, 0.0)
    print(
        "after one step to the right, without noise:",
        {b: round(p, 3) for (_, b), p in sure.items()},
    )
    assert [round(sure["both", b], 9) for b in BUDGETS] == [0, 0, *[round(1 / 3, 9)] * 3]

    right, wise = 0, 0
    for _ in range(agents):
        goal, budget = str(rng.choice(list(goals()))), int(rng.choice(BUDGETS))
        found = infer_goal_and_budget(mdp, walked(mdp, goal, budget, rng), goals(), BUDGETS, HEAT)
        law = {g: sum(p for (h, _), p in found.items() if h == g) for g in goals()}
        right += max(law, key=lambda g: law[g]) == goal
        blind = {k: p for k, p in found.items() if k[1] == BUDGETS[-1]}
        wise += max(blind, key=lambda k: blind[k])[0] == goal
    print(f"goal read from 4 moves: {right / agents:.2f} with a latent budget, "
          f"{wise / agents:.2f} when all are taken to plan 8 ahead; by chance 0.33")  # fmt: skip
    assert right >= wise


if __name__ == "__main__":
    main()
