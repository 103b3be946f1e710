"""Which token sequences a given string means under a law, and how each of them ends.

A string that was not drawn is scored by its canonical tokens, followed by any terminator:

    log p(text) = log Σ_k p(sequence k),   sequence k = tokens of the text + one way to end it

where a way to end is the set of single tokens that end the string (end-of-text, and tokens that
begin with a stop string), or the tokens of a stop string that needs several. A text that was drawn
is read by its own tokens, as the token loop would have read them, so that its log p is the one it
was drawn with, and a law under which it could not have been drawn gives it -inf.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lmppl.errors import UnsupportedValue, excerpt
from lmppl.lm.base import LanguageModel
from lmppl.lm.generate import StringLaw, StringState, end_ids
from lmppl.types import Ids
from lmppl.weights import NEG_INF


class Ending(NamedTuple):
    """One sequence of a string."""

    ids: Ids
    ends: Sequence[int] | None
    """The ids one of which must follow; None where the sequence is complete."""


def read(lm: LanguageModel, law: StringLaw, ids: Ids) -> tuple[StringState, int]:
    """Read tokens as the token loop would; the state, and how many were read before it ended."""
    state = StringState(law, (), 0)
    for n, token in enumerate(ids):
        if state.automaton is not None and not state.automaton.mask[token]:
            state.kill()
            return state, n
        state.extend(lm, token, 0.0, 0.0)
        if state.finish is not None or state.awaits_end:
            return state, n + 1
    return state, len(ids)


def endings(lm: LanguageModel, law: StringLaw, state: StringState) -> list[Ending]:
    """Every way in which a string that was read to its last token ends."""
    ids = tuple(state.ids)
    if state.finish == "dead":
        return []
    if state.finish is not None:
        return [Ending(ids, None)]
    ends = end_ids(lm, law.stop)
    if state.automaton is not None:
        ends = tuple(v for v in ends if state.automaton.mask[v])
    found = [Ending(ids, ends)] if ends else []
    if not state.awaits_end:
        for stop in law.stop:
            longer = ids + lm.encode(stop)
            if len(longer) > len(ids) + 1:
                after, n = read(lm, law, longer)
                if n == len(longer) and after.finish == "stop":
                    found.append(Ending(longer, None))
    return found


def own_endings(lm: LanguageModel, law: StringLaw, ids: Ids) -> list[Ending]:
    """The sequences of a drawn text, given by its own tokens, its terminator included."""
    state, n = read(lm, law._replace(potential=None), ids)
    if n < len(ids) and not (state.finish == "constraint" and lm.eos_ids.issuperset(ids[n:])):
        return []
    return endings(lm, law, state)


def canonical_endings(
    lm: LanguageModel, law: StringLaw, value: str, end: bool = True
) -> list[Ending]:
    """The sequences of a given string, by its canonical tokens; with `end=False`, of a prefix.

    Raises:
        UnsupportedValue: no string of the law reads like this.
    """
    ids = lm.spell(value)
    whole = law._replace(potential=None)  # its weight is the business of `weighed`
    if not end:
        whole = whole._replace(max_tokens=len(ids) + 1)
    state, n = read(lm, whole, ids)
    if n == len(ids):
        if not end and state.finish is None:
            return [Ending(ids, None)]
        if state.finish != "stop" and (found := endings(lm, whole, state)):
            return found
    raise _unsupported(lm, whole, value, ids, state, n)


def weighed(
    lm: LanguageModel, law: StringLaw, found: Sequence[Ending]
) -> list[tuple[Ending, float]]:
    """Sequences with the log-weight of the potential; those of weight zero are left out.

    The tokens that may end a sequence are parted by the weight that they end it with.
    """
    if law.potential is None:
        return [(e, 0.0) for e in found]
    out: list[tuple[Ending, float]] = []
    for e in found:
        state = law.potential
        for token in e.ids:
            if token not in lm.eos_ids:
                state = state.advance(token)
        whole = state.log_complete
        if e.ends is None or len(e.ids) >= law.max_tokens:
            out.append((e, whole))
            continue
        parted: dict[float, list[int]] = {}
        for v in e.ends:
            weight = whole if v in lm.eos_ids else state.advance(v).log_complete
            parted.setdefault(weight, []).append(v)
        out += [(Ending(e.ids, tuple(ends)), weight) for weight, ends in parted.items()]
    return [(e, weight) for e, weight in out if weight > NEG_INF]


def _unsupported(
    lm: LanguageModel, law: StringLaw, value: str, ids: Ids, state: StringState, n: int
) -> UnsupportedValue:
    if state.finish == "stop":
        return UnsupportedValue(
            f"the text contains its own stop string, from position {len(lm.decode(ids[: n - 1]))}",
            value=excerpt(value),
            why="such a text has probability zero",
            fix="give the text without its terminator, or another stop",
        )
    if len(state.ids) >= law.max_tokens and (law.constraint is None or n < len(ids)):
        return UnsupportedValue(
            f"the text has {len(ids)} tokens, max_tokens is {law.max_tokens}",
            value=excerpt(value),
            why="under this law no text is that long",
            fix="write a larger max_tokens, or end=False to score it as a prefix",
        )
    grammar = None if law.constraint is None else law.constraint.grammar
    kind = "law" if grammar is None else f"{grammar.kind} {grammar.source!r}"
    where = f"at position {len(lm.decode(ids[:n]))}" if n < len(ids) else "at its end"
    return UnsupportedValue(
        f"the text leaves the {kind} {where}",
        value=excerpt(value),
        why="such a text has probability zero",
        fix="change one of them, or give the string a larger max_tokens",
    )
