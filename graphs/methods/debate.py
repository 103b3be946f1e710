"""Debate: agents answer, read each other's answers, and answer again.

    debate(question, agents, rounds=2, judge=majority)

In round t agent i is a node that reads all answers of round t - 1: the answers of a round are one
batch. Reference: Du, Li, Torralba, Tenenbaum and Mordatch, Improving factuality and reasoning in
language models through multiagent debate (2023).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lmppl.arguments import check_integers
from lmppl.errors import BadArgument
from lmppl.graphs.thoughts.graph import graph
from lmppl.graphs.thoughts.node import Node

Agent = Callable[[Any, int, tuple[Any, ...]], Any]
"""agent(question, who, the answers of the last round) -> an answer."""


def majority(answers: Sequence[Any]) -> Any:
    """The most frequent answer, the earliest of equals.

    >>> majority(["12", "7", "12"])
    '12'
    """
    counts = Counter(answers)
    return max(answers, key=lambda a: counts[a])


def debate(
    question: Any,
    agents: int | Sequence[Agent],
    agent: Agent | None = None,
    *,
    rounds: int = 2,
    judge: Callable[[Sequence[Any]], Any] = majority,
    name: str = "debate",
) -> Any:
    """The judge's answer after some rounds; inside a program.

    Args:
        question: what every agent is asked.
        agents: the agents, or how many copies of `agent` there are.
        agent: `agent(question, who, others)`; `others` is empty in the first round.
        rounds: how often each answers.
        judge: makes one answer of those of the last round; it may contain sites.
        name: the scope.
    """
    check_integers("debate", rounds=rounds)
    if isinstance(agents, int):
        check_integers("debate", agents=agents)
        if agent is None:
            raise BadArgument("debate needs the agent", fix="write debate(question, 3, agent)")
        agents = [agent] * agents
    nodes: list[Node] = []
    last: tuple[str, ...] = ()
    for t in range(rounds):
        for i, who in enumerate(agents):
            nodes.append(Node(f"r{t}.a{i}", partial(_turn, who, question, i), last, kind="agent"))
        last = tuple(f"r{t}.a{i}" for i in range(len(agents)))
    nodes.append(Node("judge", lambda *answers: judge(answers), last, kind="decide"))
    return graph(name, nodes)["judge"]


def _turn(agent: Agent, question: Any, who: int, *others: Any) -> Any:
    return agent(question, who, others)
