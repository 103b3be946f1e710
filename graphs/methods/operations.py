"""Graph of Thoughts: operations on lists of thoughts, as nodes that run together.

    ops = Operations()
    halves = ops.generate(split, ops.start(numbers))
    ordered = [ops.keep_best(ops.score(ops.generate(sort, ops.select(half, halves), k=5), score))
               for half in (first, second)]
    merged = ops.keep_best(ops.score(ops.aggregate(merge, *ordered, k=10), score))
    thoughts = ops.run()[merged]

| operation | thoughts out |
| --- | --- |
| `generate(fn, of, k)` | k times fn(state) for each thought |
| `score(of, fn)` | the same with a score |
| `improve(fn, of)` | fn(state) for each |
| `validate_and_improve(valid, fn, of, tries)` | improved until valid, at most `tries` times |
| `aggregate(fn, *of, k)` | k times fn(states of all) |
| `keep_best(of, n)`, `keep_valid(of)`, `select(fn, of)` | some of them: decisions |
| `ground_truth(of, fn)` | the same, marked as solved or not |

Each function may contain sites; thoughts of one operation run side by side. With `weigh` a score is
also a factor of the program: the posterior then prefers graphs with good thoughts, in every engine.

Reference: Besta et al., Graph of Thoughts (2024): its nine operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lmppl.arguments import check_integers
from lmppl.errors import BadArgument
from lmppl.graphs.thoughts.graph import Thoughts, graph
from lmppl.graphs.thoughts.node import Node
from lmppl.primitives import factor, plate

State = Any


class Thought(NamedTuple):
    """A state, and what is known about it."""

    state: State
    score: float | None = None
    valid: bool | None = None
    solved: bool | None = None


Many = tuple[Thought, ...]


class Operations:
    """A graph of operations, before it runs; each method adds a node and returns its name."""

    def __init__(self) -> None:
        """Without any."""
        self.nodes: list[Node] = []

    def start(self, *states: State) -> str:
        """The thoughts to begin with."""
        given = tuple(Thought(s) for s in states)
        return self._add("start", lambda: given, ())

    def generate(self, fn: Callable[[State], State], of: str, k: int = 1) -> str:
        """`k` new thoughts of each thought."""
        check_integers("generate", k=k)

        def run(many: Many) -> Many:
            again = [t for t in many for _ in range(k)]
            return each(lambda t: Thought(fn(t.state)), again)

        return self._add("generate", run, (of,))

    def score(
        self,
        of: str,
        fn: Callable[[State], float],
        *,
        weigh: Callable[[float], float] | None = None,
    ) -> str:
        """Score each thought; `weigh` makes a log-weight of the score."""

        def run(many: Many) -> Many:
            def one(t: Thought) -> Thought:
                found = float(fn(t.state))
                if weigh is not None:
                    factor("score", weigh(found))
                return t._replace(score=found)

            return each(one, many)

        return self._add("score", run, (of,))

    def improve(self, fn: Callable[[State], State], of: str) -> str:
        """Refine each thought; its score is forgotten."""
        return self._add("improve", lambda many: each(lambda t: Thought(fn(t.state)), many), (of,))

    def validate_and_improve(
        self,
        valid: Callable[[State], bool],
        fn: Callable[[State], State],
        of: str,
        tries: int = 3,
    ) -> str:
        """Improve each thought that is not valid, at most `tries` times."""
        check_integers("validate_and_improve", tries=tries)

        def one(t: Thought) -> Thought:
            state, good = t.state, bool(valid(t.state))
            for _ in range(tries):
                if good:
                    break
                state = fn(state)
                good = bool(valid(state))
            return Thought(state, valid=good)

        return self._add("validate", lambda many: each(one, many), (of,))

    def aggregate(self, fn: Callable[[list[State]], State], *of: str, k: int = 1) -> str:
        """`k` thoughts made of all thoughts of some operations."""
        check_integers("aggregate", k=k)

        def run(*lists: Many) -> Many:
            states = [t.state for many in lists for t in many]
            return each(lambda _: Thought(fn(list(states))), range(k))

        return self._add("aggregate", run, of)

    def keep_best(self, of: str, n: int = 1, *, highest: bool = True) -> str:
        """The `n` best scores; the earlier one where they are equal."""
        check_integers("keep_best", n=n)

        def run(many: Many) -> Many:
            if any(t.score is None for t in many):
                raise BadArgument(
                    "keep_best reads scores, and a thought has none",
                    fix="write ops.keep_best(ops.score(of, fn))",
                )
            ranked = sorted(many, key=lambda t: t.score or 0.0, reverse=highest)
            return tuple(ranked[:n])

        return self._add("keep_best", run, (of,), "decide")

    def keep_valid(self, of: str) -> str:
        """Thoughts that were found valid; those that nobody has checked are kept."""
        return self._add(
            "keep_valid",
            lambda many: tuple(t for t in many if t.valid is not False),
            (of,),
            "decide",
        )

    def select(self, fn: Callable[[Sequence[State]], Sequence[State]], of: str) -> str:
        """Choose among, or make new states from, those of an operation."""

        def run(many: Many) -> Many:
            return tuple(Thought(s) for s in fn([t.state for t in many]))

        return self._add("select", run, (of,), "decide")

    def ground_truth(self, of: str, fn: Callable[[State], bool]) -> str:
        """Compare with what is known to be right."""
        return self._add(
            "ground_truth",
            lambda many: tuple(t._replace(solved=bool(fn(t.state))) for t in many),
            (of,),
        )

    def run(self, name: str = "got", outputs: Sequence[str] = ()) -> Thoughts:
        """Run them, inside a program: a tuple of thoughts for each operation."""
        found: Thoughts = graph(name, self.nodes, outputs=outputs)
        return found

    def _add(
        self, kind: str, fn: Callable[..., Many], of: tuple[str, ...], group: str | None = None
    ) -> str:
        name = f"{kind}{sum(n.name.startswith(kind) for n in self.nodes)}"
        self.nodes.append(Node(name, fn, of, kind=group or kind))
        return name


def each(fn: Callable[[Any], Thought], items: Sequence[Any]) -> Many:
    """`fn` of every item, side by side."""
    found: Many = plate("each", items, fn)
    return found
