"""K-level reasoning: players who model players, and what it costs to reason deeper than the table.

The game: five players name a number, and whoever is nearest to 0.8 times the mean wins. A level-0
player says about 50. A level-k player believes that all others are of level k - 1, infers what they
will say (`infer` inside the program), and says 0.8 times that. The theory of mind is nested
inference: `player(k)` runs the posterior of `player(k - 1)`.

Three things to see:

* level k beats four players of level k - 1, for k = 1 to 4;
* level 4 loses to four players of level 0: it is too deep for this table;
* from past numbers the level of the others can be inferred, and the best response to that posterior
  wins at both tables.

Reference: Zhang et al., K-Level Reasoning with large language models (2024); the game is Nagel,
Unraveling in guessing games (1995).
"""

from __future__ import annotations

import math
from functools import lru_cache

from lmppl import Categorical, Uniform, observe, program, sample
from lmppl.inference import Enumerate, infer

FACTOR = 0.8
PLAYERS = 5
LEVELS = 5
NOISE = 2.0
"""Standard deviation of what a level-0 player says."""


def about(mean: float, sd: float) -> Categorical:
    """Whole numbers from 0 to 100, as a normal density falls."""
    return Categorical({n: math.exp(-0.5 * ((n - mean) / sd) ** 2) for n in range(101)})


@program
def player(level: int) -> float:
    """What a player of this level says."""
    if level == 0:
        return float(sample("number", about(50.0, NOISE)))
    others = infer(player, level - 1, engine=Enumerate())
    return FACTOR * float(others.expectation(lambda trace: trace.result).value)


@lru_cache
def says(level: int) -> float:
    """The mean number of a level: 50 · 0.8^level."""
    return float(infer(player, level, engine=Enumerate()).expectation(lambda t: t.result).value)


@program
def reader(past: tuple[float, ...]) -> float:
    """Which level the others are of, from what they said, and the response to it."""
    level = sample("level", Uniform(range(LEVELS)))
    for number in past:
        observe("said", about(says(level), 3.0), round(number))
    return says(level)


def response(past: tuple[float, ...]) -> float:
    """The number that is nearest to 0.8 of the mean of all, one's own included, in expectation."""
    others = infer(reader, past, engine=Enumerate()).expectation(lambda t: t.result).value
    rest = PLAYERS - 1
    return FACTOR * rest * float(others) / (PLAYERS - FACTOR)


def wins(mine: float, other: float) -> bool:
    """Whether one player beats four who all say the same."""
    goal = FACTOR * ((PLAYERS - 1) * other + mine) / PLAYERS
    return abs(mine - goal) < abs(other - goal)


def main() -> None:
    print(f"{'player':22}{'says':>7}  " + "".join(f"{f'vs level {k}':>12}" for k in range(LEVELS)))
    table = {}
    for k in range(LEVELS):
        row = [wins(says(k), says(j)) if j != k else None for j in range(LEVELS)]
        table[k] = row
        shown = "".join(f"{'-' if w is None else 'wins' if w else 'loses':>12}" for w in row)
        print(f"level {k:<16}{says(k):7.2f}  {shown}")
    best = []
    for j in range(LEVELS):
        past = (says(j) - 1.0, says(j) + 1.0, says(j))
        best.append(wins(response(past), says(j)))
    shown = "".join(f"{'wins' if w else 'loses':>12}" for w in best)
    print(f"{'infers the level':22}{'':7}  {shown}")
    assert all(abs(says(k) - 50.0 * FACTOR**k) < 1e-9 for k in range(LEVELS))
    assert all(table[k][k - 1] for k in range(1, LEVELS))
    assert not table[4][0]
    assert all(best)


if __name__ == "__main__":
    main()
