"""A blackboard: workers write lines in rounds, and read what everyone has written before.

In round t worker i draws a line given the task, its own lines, and everyone's finished lines of
rounds < t. Rounds are synchronous, so the lines have a joint law:

    Π_t Π_i p(line_{t,i} | task, lines of rounds < t)

Reference: Rodionov et al., Hogwild! Inference: Parallel LLM generation via concurrent attention
(2025), whose workers share a live attention cache; this is its form for texts. The name: Hayes-Roth,
A blackboard architecture for control (1985).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from lmppl.arguments import check_integers
from lmppl.graphs.thoughts.graph import graph
from lmppl.graphs.thoughts.node import Node, Spawn


class Line(NamedTuple):
    """What a worker has written."""

    turn: int
    worker: int
    text: Any


Board = tuple[Line, ...]


def blackboard(
    workers: int,
    write: Callable[[int, Board], Any],
    *,
    rounds: int = 8,
    done: Callable[[Board], bool] = lambda board: False,
    name: str = "board",
) -> Board:
    """What stands on the board in the end; inside a program.

    Args:
        workers: how many write.
        write: `write(worker, board)` is the worker's next line; None writes nothing.
        rounds: how many there are at most.
        done: ends the work when the board of a round is complete.
        name: the scope.
    """
    check_integers("blackboard", workers=workers)
    check_integers("blackboard", rounds=rounds)

    def turn(t: int, board: Board) -> Any:
        if t == rounds or done(board):
            return board
        lines = [
            Node(f"r{t}.w{i}", partial(write, i, board), kind="worker") for i in range(workers)
        ]

        def collect(*texts: Any) -> Any:
            new = (Line(t, i, text) for i, text in enumerate(texts) if text is not None)
            return turn(t + 1, (*board, *new))

        parents = tuple(n.name for n in lines)
        return Spawn(
            [*lines, Node(f"board{t}", collect, parents, kind="board")], becomes=f"board{t}"
        )

    found: Board = graph(name, [Node("board", lambda: turn(0, ()), kind="board")])["board"]
    return found
