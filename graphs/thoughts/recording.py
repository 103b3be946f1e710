"""A graph that has run, as the plain data of its tape entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmppl.graphs.thoughts.record import shown
from lmppl.values import FrozenDict

if TYPE_CHECKING:
    from lmppl.graphs.thoughts.growth import Growth


def in_order(growth: Growth) -> list[str]:
    """Makers before what they made, each in the order given: that of the sequential program."""
    out: list[str] = []
    todo = [node.name for node in reversed(growth.given)]
    while todo:
        name = todo.pop()
        out.append(name)
        todo += reversed(growth.made.get(name, ()))
    return out


def record_of(growth: Growth, name: str) -> FrozenDict:
    """What differs from the defaults of `NodeRecord`."""
    node = growth.nodes[name]
    found: dict[str, Any] = {
        "id": name,
        "text": shown(growth.values.get(name)),
        "parents": node.parents,
        "kind": node.kind,
        "status": growth.status[name],
    }
    some: dict[str, Mapping[str, Any]] = {
        "spawned_by": growth.maker,
        "becomes": growth.becomes,
        "reason": growth.reasons,
        "attempts": growth.attempts,
    }
    for field, known in some.items():
        if known.get(name) is not None:
            found[field] = known[name]
    if name in growth.costs:
        found.update(growth.costs[name]._asdict())
    return FrozenDict(found)
