"""Fast and slow thinking: a quick answer that is checked, and a workflow only where it fails.

    fast_slow(question, fast, check, slow)

    fast answer, accepted by `check`  -> it is the answer
    otherwise                         -> `slow` proposes a workflow of experts, whose nodes run as
                                         soon as the cards they read have ended; its result is
                                         checked, and the best of `attempts` is the answer

Reference: Yao, Yao and Dong, HDFlow: Enhancing LLM complex problem-solving with hybrid thinking
and dynamic workflows (2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from lmppl.arguments import check_integers
from lmppl.errors import BadArgument
from lmppl.graphs.thoughts.graph import graph
from lmppl.graphs.thoughts.node import Failed, Node, Spawn, first


class Card(NamedTuple):
    """An expert of a workflow: a language model's step, or a tool."""

    name: str
    run: Callable[..., Any]
    reads: tuple[str, ...] = ()


class Answer(NamedTuple):
    """An answer, who gave it, and how sure the check was."""

    value: Any
    by: str
    confidence: float


def fast_slow(
    question: Any,
    fast: Callable[[Any], Any],
    check: Callable[[Any, Any], float],
    slow: Callable[[Any, int], Iterable[Card]],
    *,
    threshold: float = 0.5,
    attempts: int = 3,
    speculate: bool = False,
    name: str = "hybrid",
) -> Answer:
    """Answer fast, and slowly only when the check says no; inside a program.

    Args:
        question: what is asked.
        fast: a direct answer.
        check: `check(question, answer)`: the probability that it is right (a bool counts).
        slow: `slow(question, attempt)`: the cards of a workflow; the last card's value is the
            answer. Cards that do not read each other run together.
        threshold: a confidence at or above it is accepted.
        attempts: workflows at most; when none is accepted, the best answer of all is returned.
        speculate: begin the first workflow beside the fast answer: fewer rounds, more tokens.
        name: the scope.
    """
    check_integers("fast_slow", attempts=attempts)

    def quick() -> Answer:
        value = fast(question)
        return Answer(value, "fast", float(check(question, value)))

    def workflow(attempt: int) -> Any:
        cards = [Card(*c) for c in slow(question, attempt)]
        if not cards:
            raise BadArgument("fast_slow: a workflow without a card", fix="return [Card(name, fn)]")
        prefix = f"slow{attempt}"
        nodes = [
            Node(
                f"{prefix}.{c.name}",
                c.run,
                tuple(f"{prefix}.{r}" for r in c.reads),
                kind="card",
                on_failure="skip",
            )  # fmt: skip
            for c in cards
        ]

        def judge(value: Any) -> Answer:
            if isinstance(value, Failed):
                return Answer(value, prefix, 0.0)
            return Answer(value, prefix, float(check(question, value)))

        verdict = Node(f"{prefix}.check", judge, (nodes[-1].name,), tolerant=True, kind="check")
        return Spawn([*nodes, verdict], becomes=verdict.name)

    def good(answer: Any) -> bool:
        return isinstance(answer, Answer) and answer.confidence >= threshold

    def best(*answers: Any) -> Answer:
        found = [a for a in answers if isinstance(a, Answer)]
        return max(found, key=lambda a: a.confidence)

    def decide(accepted: Any) -> Any:
        if isinstance(accepted, Answer):
            return accepted
        return Spawn([Node("best", best, tries, tolerant=True, kind="decide")], becomes="best")

    tries = ("fast", *(f"slow{i}" for i in range(attempts)))
    nodes = [
        Node("fast", quick, kind="fast"),
        *(Node(f"slow{i}", partial(workflow, i), kind="slow") for i in range(attempts)),
        first("early", tries[:2], good, speculate=speculate),
        first("accepted", ("early", *tries[2:]), good),
        Node("answer", decide, ("accepted",), tolerant=True, kind="decide"),
    ]
    found: Answer = graph(name, nodes, outputs=["answer"])["answer"]
    return found
