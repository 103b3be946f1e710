"""Tree of thoughts, breadth first: propose, value, keep the best, as operations of a graph.

    tree_of_thoughts(start, propose, value, depth=3, branch=5, keep=2)

    S_0 = {start};  S_t = the `keep` best of { propose(s) : s ∈ S_{t-1}, `branch` times }

The thoughts of one level are one batch. Reference: Yao et al., Tree of Thoughts (2023),
algorithm 1. For search that looks at probabilities see `lmppl.inference.Beam` and `MCTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmppl.arguments import check_integers
from lmppl.graphs.methods.operations import Operations, Thought


def tree_of_thoughts(
    start: Any,
    propose: Callable[[Any], Any],
    value: Callable[[Any], float],
    *,
    depth: int = 3,
    branch: int = 5,
    keep: int = 2,
    weigh: Callable[[float], float] | None = None,
    name: str = "tot",
) -> tuple[Thought, ...]:
    """The best thoughts after `depth` steps, best first; inside a program.

    >>> from lmppl import Uniform, handlers, program, sample
    >>> @program
    ... def climb():
    ...     def step(x):
    ...         return x + sample("step", Uniform([-1, 1]))
    ...     return tree_of_thoughts(0, step, float, depth=2, branch=8)[0].state
    >>> handlers.seed(climb, 0)()
    2
    """
    check_integers("tree_of_thoughts", depth=depth)
    ops = Operations()
    best = ops.start(start)
    for _ in range(depth):
        best = ops.keep_best(
            ops.score(ops.generate(propose, best, branch), value, weigh=weigh), keep
        )
    found: tuple[Thought, ...] = ops.run(name)[best]
    return found
