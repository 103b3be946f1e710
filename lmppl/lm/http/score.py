"""Scoring given texts on a server: what is asked, and how the numbers are put together.

Where the server scores prompts, a text is one request; where it can only force a token, each token
is one. The mass of a set of ends is asked for by its ids, some at a time, or read from a whole row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lmppl.errors import CapabilityError
from lmppl.lm.http.dialects import Ask, Dialect, Reply
from lmppl.types import Floats, Ids
from lmppl.weights import log_sum_exp

MANY = 2048
"""Ids of an end set above which a whole row is cheaper, or the only way."""
FEW = 8
"""The same where each id is a request."""


class Part(NamedTuple):
    """Numbers of a text that one or several requests, or a row, give."""

    asks: tuple[Ask, ...]
    numbers: Callable[[Sequence[Reply]], list[float]]
    row: Ids | None = None
    """The context of a row in their place; its mass over `ids` is the number."""
    ids: tuple[int, ...] = ()


def parts(
    dialect: Dialect,
    rows: bool,
    hidden: Callable[[int], bool],
    context: Ids,
    tokens: Ids,
    ends: Sequence[int] | None,
) -> list[Part]:
    """How one text is scored.

    Args:
        dialect: of the server.
        rows: whether it gives whole rows.
        hidden: whether a forced token comes without its log-probability.
        context: token ids before the text.
        tokens: of the text.
        ends: ids one of which must follow; None where none need.

    Raises:
        CapabilityError: the mass of its ends cannot be had; nothing was sent.
    """
    found: list[Part] = []
    one = tuple(ends) if ends is not None and len(ends) == 1 else ()
    tokens = (*tokens, *one)
    if dialect.echo and tokens:
        ask = Ask((*context, *tokens), scored_from=len(context))
        found.append(Part((ask,), lambda r: list(r[0].scored)))
    elif tokens:
        for t, v in enumerate(tokens):
            before = (*context, *tokens[:t])
            if hidden(v):
                if not rows:
                    raise CapabilityError(
                        "a token that ends inside a character cannot be scored by this server",
                        why="it reports nothing of such tokens, and gives no whole rows",
                        fix="leave such texts out, or use a server that scores prompts",
                    )
                found.append(Part((), lambda _: [], before, (v,)))
            else:
                found.append(Part((Ask(before, forced=v),), lambda r: [r[0].logps[0]]))
    if ends is not None and not one:
        found.append(_mass(dialect, rows, (*context, *tokens), tuple(ends)))
    return found


def _mass(dialect: Dialect, rows: bool, context: Ids, ends: tuple[int, ...]) -> Part:
    if not ends:
        return Part((), lambda _: [float("-inf")])
    step = dialect.most_ids
    if step and len(ends) <= MANY:
        pieces = [ends[i : i + step] for i in range(0, len(ends), step)]
        asks = tuple(Ask(context, ids=piece) for piece in pieces)

        def add(replies: Sequence[Reply]) -> list[float]:
            terms = [r.tops[0][i] for r, piece in zip(replies, pieces, strict=True) for i in piece]
            return [log_sum_exp(terms)]

        return Part(asks, add)
    if dialect.forces and (len(ends) <= FEW or not rows):
        if len(ends) <= FEW:
            asks = tuple(Ask(context, forced=i) for i in ends)
            return Part(asks, lambda replies: [log_sum_exp([r.logps[0] for r in replies])])
    if rows:
        return Part((), lambda _: [], context, ends)
    raise CapabilityError(
        f"the text may end by any of {len(ends):,} tokens, and this server does not give their mass",
        why="a text and its end is another event than a text that goes on",
        fix="write end=False, or start the server so that it gives whole rows "
        "(vLLM: --max-logprobs -1)",
    )


def assemble(part: Part, replies: Sequence[Reply], row: Floats | None) -> list[float]:
    """The numbers of one part."""
    if row is not None:
        return [log_sum_exp(row[list(part.ids)].tolist())]
    return part.numbers(replies)
