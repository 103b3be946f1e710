"""Decompositions that a language model proposes: parsed, checked, and never trusted.

A proposal is JSON, `[{"task": "...", "after": [1, 2]}, ...]` or plain `["...", "..."]`: what is to
be done, and the numbers of the tasks whose results it reads. Numbers count the tasks that are
there already (from 1), then those of the list; a task may only read earlier ones, so whatever a
model writes, the graph is acyclic. Anything else raises `NodeFailed`: a node with `retries` then
asks again.

`task_schema(most)` constrains a model to such lists, `LM(prompt, json_schema=task_schema(3))`, and
`task_regex(most)` to lists of plain tasks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from lmppl.graphs.thoughts.node import Failed, NodeFailed

LONGEST = 2000
"""Characters of a task."""


class Task(NamedTuple):
    """What is to be done, and whose results it reads."""

    text: str
    after: tuple[int, ...] = ()
    """Numbers of earlier tasks, from 1."""


def task_regex(most: int = 3, longest: int = 80) -> str:
    """JSON lists of one to `most` plain tasks, as a regex for `LM` and `Chat`."""
    item = rf'"[^"\\\n\[\]]{{1,{longest}}}"'
    return rf"\[{item}(, {item}){{0,{max(most, 1) - 1}}}\]"


def task_schema(most: int = 3, longest: int = 80, *, after: bool = True) -> dict[str, Any]:
    """The same as a JSON schema; with `after`, tasks say which tasks they read."""
    text: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": longest}
    item = text
    if after:
        number = {"type": "integer", "minimum": 1}
        reads = {"type": "array", "items": number, "maxItems": 8}
        item = {
            "type": "object",
            "properties": {"task": text, "after": reads},
            "required": ["task"],
            "additionalProperties": False,
        }
    return {"type": "array", "minItems": 1, "maxItems": most, "items": item}


def first_json(text: str) -> Any:
    """The first JSON array or object in a text.

    Raises:
        NodeFailed: there is none.

    >>> first_json('Sure: ["add", "carry"] and so on')
    ['add', 'carry']
    """
    starts = [i for i in (text.find("["), text.find("{")) if i >= 0]
    if not starts:
        raise NodeFailed("no JSON in the proposal")
    try:
        return json.JSONDecoder().raw_decode(text, min(starts))[0]
    except (ValueError, RecursionError) as error:
        raise NodeFailed(f"the proposal is no JSON: {error}") from error


def parse_tasks(text: Any, *, most: int = 3, known: int = 0) -> tuple[Task, ...]:
    """The tasks of a proposal, at least one and at most `most`.

    Args:
        text: what the model wrote.
        most: how many tasks are taken; more are an ill-formed proposal.
        known: how many tasks there are already.

    Raises:
        NodeFailed: the text is no such proposal.

    >>> parse_tasks('[{"task": "split"}, {"task": "merge", "after": [1]}]')
    (Task(text='split', after=()), Task(text='merge', after=(1,)))
    """
    found = first_json(text) if isinstance(text, str) else text
    if isinstance(found, dict):
        found = found.get("tasks")
    if not isinstance(found, list) or not found:
        raise NodeFailed("the proposal is no list of tasks")
    if len(found) > most:
        raise NodeFailed(f"{len(found)} tasks, at most {most} are allowed")
    return tuple(_task(item, known + i) for i, item in enumerate(found))


def _task(item: Any, earlier: int) -> Task:
    after: Any = []
    if isinstance(item, dict):
        after = item.get("after", [])
        item = item.get("task")
    if not isinstance(item, str) or not item.strip() or len(item) > LONGEST:
        raise NodeFailed("a task is no text")
    try:
        item.encode()
    except UnicodeEncodeError as error:
        raise NodeFailed("a task is no text that could be written") from error
    if not isinstance(after, list):
        raise NodeFailed("after is no list of numbers")
    for n in after:
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= earlier:
            raise NodeFailed(f"task {earlier + 1} reads task {str(n):.20}, which is no earlier one")
    return Task(item.strip(), tuple(dict.fromkeys(after)))


def propose(
    ask: Callable[[], Any], parse: Callable[[Any], Any], *, retries: int = 2, otherwise: Any = None
) -> Any:
    """Ask until the answer parses; `otherwise` when no attempt did.

    The attempts stay in the trace, at `name`, `name[1]`, …: the law is that of a program that asks
    again, and no attempt is forgotten.
    """
    for _ in range(retries + 1):
        try:
            return parse(ask())
        except NodeFailed as error:
            otherwise = Failed(str(error)) if otherwise is None else otherwise
    return otherwise


def listed(known: Iterable[tuple[str, Any]]) -> str:
    """Tasks and their results as the lines of a prompt."""
    return "".join(f"{i}. {task}: {result}\n" for i, (task, result) in enumerate(known, 1))
