"""Fork and join: outlines first, threads side by side, then the rest.

    p(outlines | prefix) · Π_i p(thread_i | prefix, outline_i) · p(rest | prefix, all threads)

Siblings are independent given prefix and outline: that is the model. `weave` writes it as one
transcript in ThreadWeaver's format, and `fork_join` takes any functions. With B threads of own
length L after a shared prefix of P tokens, a prefix cache saves

    (B - 1) P / (B (P + L))        of the prompt tokens.

Reference: Lian et al., ThreadWeaver: Adaptive threading for efficient parallel reasoning in
language models (2025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lmppl.graphs.thoughts.graph import graph
from lmppl.graphs.thoughts.node import Node


def fork_join(
    outlines: Sequence[Any],
    thread: Callable[[Any], Any],
    join: Callable[..., Any] = lambda *threads: threads,
    *,
    name: str = "fork",
    retries: int = 0,
) -> Any:
    """`join` of what the threads return, in the order of their outlines; inside a program."""
    forked = [
        Node(f"thread{i}", partial(thread, outline), retries=retries, kind="thread")
        for i, outline in enumerate(outlines)
    ]
    nodes = [*forked, Node("join", join, tuple(n.name for n in forked), kind="join")]
    return graph(name, nodes)["join"]


def weave(
    prefix: str,
    outlines: Callable[[str], Sequence[str]],
    thread: Callable[[str], str],
    rest: Callable[[str], str],
    *,
    name: str = "weave",
) -> str:
    """The transcript of a fork: prefix, `<Parallel>` block, the rest; inside a program.

    Args:
        prefix: what all threads have read.
        outlines: the plans of the threads, declared before any runs.
        thread: continues a prompt that ends in its outline.
        rest: continues the transcript after the join.
        name: the scope.
    """
    plans = list(outlines(prefix))

    def one(i: int) -> str:
        return str(thread(f"{prefix}{_opening(plans)}<Thread>\n{i + 1}:"))

    texts = fork_join(range(len(plans)), one, name=name)
    woven = prefix + transcript(plans, texts)
    return woven + str(rest(woven))


def transcript(outlines: Sequence[str], threads: Sequence[str]) -> str:
    """The block that a fork becomes in the text of the parent.

    >>> print(transcript(["try 2", "try 3"], [" 2 * 2 = 4", " 3 * 3 = 9"]))
    <Parallel>
    <Outlines>
    <Outline>1: try 2</Outline>
    <Outline>2: try 3</Outline>
    </Outlines>
    <Thread>
    1: 2 * 2 = 4
    </Thread>
    <Thread>
    2: 3 * 3 = 9
    </Thread>
    </Parallel>
    <BLANKLINE>
    """
    body = "".join(f"<Thread>\n{i}:{text}\n</Thread>\n" for i, text in enumerate(threads, 1))
    return f"{_opening(outlines)}{body}</Parallel>\n"


def _opening(outlines: Sequence[str]) -> str:
    lines = "".join(f"<Outline>{i}: {o}</Outline>\n" for i, o in enumerate(outlines, 1))
    return f"<Parallel>\n<Outlines>\n{lines}</Outlines>\n"


def prefix_saving(threads: int, shared: int, own: int) -> float:
    """The share of prompt tokens that a prefix cache saves.

    >>> round(prefix_saving(8, 343, 657), 3)
    0.3
    """
    return (threads - 1) * shared / (threads * (shared + own))
