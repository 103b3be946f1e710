"""Messages between the strings of a cascade: what a finished text is worth for the steps after it.

Each step s has an abstraction α_s of its text into finitely many classes. From plain runs of the
program, K~[a, b] estimates P(α_child = b | α_parent = a), and messages go from the goal backwards,

    m_child[a] = Σ_b K~[a, b] G_child[b]        G_s[a] = Π m_c[a] over the children c of s

`G_s`, read off the automaton state in which a text ends, is the vector τ of a filter over its tokens:
guidance between steps and inside them is one object. `step_guide` is the same G for engines, as long
as the child has not begun; at a site with several parents give each a factor of its own. Any tables
are right, since a message is divided out again when its child begins.

Reference: van der Meulen and Schauer (2020), on trees and graphs with colliders.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.guide import Guide
from lmppl.trace import Trace
from lmppl.weights import check_log_weight

Table: TypeAlias = dict[Hashable, float]
"""A positive number for each class."""


def step_message(
    pairs: Iterable[tuple[Hashable, Hashable]],
    child: Mapping[Any, float],
    *,
    classes: Sequence[Hashable] | None = None,
    smoothing: float = 1.0,
) -> Table:
    """The message of an edge: m[a] = Σ_b K~[a, b] G[b].

    Args:
        pairs: (class of the parent, class of the child) of plain runs.
        child: G of the child, for every class that it may have.
        classes: of the parent; those of the pairs, when left out.
        smoothing: α of the Dirichlet prior of a row of K~, spread evenly over the child's classes.

    >>> step_message([("a", 1), ("a", 1), ("a", 0)], {0: 0.0, 1: 1.0})
    {'a': 0.625}
    """
    seen = list(pairs)
    goal = {b: float(g) for b, g in child.items()}
    if not goal or min(goal.values()) < 0 or not max(goal.values()) > 0 or not smoothing > 0:
        raise BadArgument(
            "a message needs non-negative numbers for the classes of the child, not all zero, and a "
            "positive smoothing",
            value=f"{goal}, smoothing={smoothing!r}"[:80],
            fix='write step_message(pairs, {"good": 1.0, "bad": 0.05})',
        )
    strange = {b for _, b in seen} - goal.keys()
    if strange:
        raise BadArgument(
            "runs have classes of the child that its message does not know: "
            f"{sorted(map(str, strange))[:5]}",
            fix="give each of them a number in child",
        )
    even = sum(goal.values()) / len(goal)
    found: dict[Hashable, list[float]] = {a: [] for a in classes or ()}
    for a, b in seen:
        found.setdefault(a, []).append(goal[b])
    return {a: (sum(g) + smoothing * even) / (len(g) + smoothing) for a, g in found.items()}


class StepMessage(NamedTuple):
    """What the text of one site is worth until another one begins."""

    parent: str
    """Address of the site whose value is read."""
    child: str
    """Address of the site that takes the message over: a string, a factor, an observation."""
    value: Callable[[Any], float]
    """Of the parent's value: a positive number."""


def step_guide(messages: Sequence[StepMessage]) -> Guide:
    """Messages as a guide: h = the product of those whose parent is there and whose child is not.

    A child that is a string has begun with its first token, so that its own filter, as
    `string_potential(..., rule=False)`, goes on where the message ends.

    >>> guide = step_guide([StepMessage("plan", "check", {"good": 0.8, "bad": 0.1}.__getitem__)])
    >>> guide(Trace(None))
    0.0
    """

    def pending(trace: Trace) -> float:
        total = 0.0
        for m in messages:
            if m.parent in trace and m.child not in trace:
                half = trace.partial.get(m.child)
                if half is None or not half.ids:
                    with np.errstate(divide="ignore"):
                        total += check_log_weight(
                            float(np.log(m.value(trace[m.parent]))), site=m.parent, term="message"
                        )
        return total

    return Guide(pending, name=f"messages of {len(messages)} steps")
