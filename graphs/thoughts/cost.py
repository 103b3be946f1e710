"""What the sites of one node cost, read from its tape: work, and the longest path (span).

| entry | work | span |
| --- | --- | --- |
| sample or observe of a text | 1 call, its tokens | the same |
| effect | 1 effect | 0 |
| call, loop | that of its inside | the same |
| plate | Σ branches | max over branches |
| graph | Σ nodes | its critical path |
| inference inside the program | that of its ledger | its batches, its tokens |

Tokens are those drawn; prompts and scored texts are in the ledger of the run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lmppl.text import Text
from lmppl.trace import Entry


class Cost(NamedTuple):
    """Of one node; the names are those of `NodeRecord`."""

    weight: float
    logp: float
    calls: int
    tokens: int
    effects: int
    span_calls: int
    span_tokens: int


NOTHING = Cost(0.0, 0.0, 0, 0, 0, 0, 0)


def cost_of(head: Entry | None, stop: Entry | None = None) -> Cost:
    """The cost of a tape, back to an entry that is not included."""
    weight = logp = 0.0
    calls = tokens = effects = span_calls = span_tokens = 0
    node = head
    while node is not None and node is not stop:
        inside = node.inside
        if inside is not None:
            part = _inside(node, inside)
            weight += part.weight
            logp += part.logp
            calls += part.calls
            tokens += part.tokens
            effects += part.effects
            span_calls += part.span_calls
            span_tokens += part.span_tokens
        else:
            op = node.op
            weight += node.logw
            if op == "sample" or op == "observe":
                logp += node.logp
                if isinstance(node.value, str):
                    text = node.value if op == "sample" else None
                    drawn = text.tokens if isinstance(text, Text) else 0
                    calls += 1
                    tokens += drawn
                    span_calls += 1
                    span_tokens += drawn
            elif op == "effect":
                effects += 1
        node = node.prev
    return Cost(weight, logp, calls, tokens, effects, span_calls, span_tokens)


def _inside(node: Entry, inside: Any) -> Cost:
    if node.op == "plate":
        parts = [cost_of(branch) for branch in inside]
        work = Cost(*map(sum, zip(*parts, strict=True))) if parts else NOTHING
        record = getattr(node.value, "record", None)
        if record is not None:
            from lmppl.graphs.thoughts.record import GraphRecord

            graph = GraphRecord.from_dict({"name": node.address, "nodes": record["nodes"]})
            return work._replace(span_calls=graph.rounds, span_tokens=graph.critical_tokens)
        return work._replace(
            span_calls=max((p.span_calls for p in parts), default=0),
            span_tokens=max((p.span_tokens for p in parts), default=0),
        )
    spent = getattr(node.value, "ledger", None)
    if spent is not None:  # the posterior of an inference inside the program
        batches, at = 0, inside
        while at is not None and at is not node.prev:
            batches, at = batches + (at.op == "jobs"), at.prev
        out = spent.tokens_out
        return NOTHING._replace(
            calls=spent.calls, tokens=out, effects=spent.effects,
            span_calls=batches, span_tokens=out,
        )  # fmt: skip
    return cost_of(inside, node.prev)
