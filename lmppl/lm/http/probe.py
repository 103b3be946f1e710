"""What a server's log-probabilities mean, found out by asking, before anything relies on them.

Every engine means something else by "logprob" (docs/backends.md). Four questions, a few tokens:

1. does it take and give token ids, and do they mean the texts that the tokenizer says?
2. of the same place at temperatures 1 and 1/2: with log-odds d and d' of two tokens, d' = d says
   "before the temperature" (the model's own), d' = 2d "after it"; at top-k 2, a sum of 1 over two
   tokens says "after truncation too";
3. does it give the whole row, with sum 1?
4. is the log-probability of drawn tokens what scoring them as a given text gives?

The answers to 2 and 4 decide whether its draws have weights.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from lmppl.errors import LmpplError, LmpplWarning, TokenizerMismatch, excerpt
from lmppl.lm.http.dialects import ALL, Ask, Dialect, Reply
from lmppl.lm.http.errors import KeyRefused, NotServed, ServerError
from lmppl.types import Ids
from lmppl.weights import NEG_INF, log_sum_exp

Meaning = Literal["model", "tempered", "processed", "untempered", "none"]
TEXT = "The capital of France is Paris. It"
DRAWN = 4
NEAR = 0.1
"""Log-odds below this say nothing."""
T = TypeVar("T")
GRAVE = (KeyRefused, NotServed)


@dataclass(frozen=True)
class Probe:
    """What was found out."""

    meaning: Meaning
    """Of the log-probability of a drawn token: "model", before temperature and truncation;
    "tempered", after the temperature; "processed", after both; "untempered", the model's at
    temperature 1, other settings unknown; "none", there is none or it cannot be trusted."""
    rows: bool
    """Whole rows."""
    scores: bool
    """Given texts."""
    two_ways: float | None
    """The largest difference between drawing and scoring, in nats."""
    row_sum: float | None
    """Log of the sum of a whole row."""
    ids: bool = True
    """Token ids, in and out."""


def probe(
    ask: Callable[[Ask], Reply],
    dialect: Dialect,
    start: Ids,
    score: Callable[[Ids, Ids], list[float]],
    decode: Callable[[Ids], str],
    tolerance: float,
) -> Probe:
    """Ask the questions.

    Args:
        ask: sends one request.
        dialect: what kind of server it is.
        start: the ids of a short text.
        score: log-probabilities of ids after others, by the server's way to score.
        decode: what ids mean here.
        tolerance: the most that two ways to the same number may differ by, in nats.

    Raises:
        ServerError: it does not answer at all.
        TokenizerMismatch: its ids mean other texts.
    """
    first = ask(Ask(start, most=DRAWN, seed=1))
    if first.tokens and first.text and (said := decode(first.tokens)) != first.text:
        if first.text not in said:  # a cut character, or a special token that is not shown
            raise TokenizerMismatch(
                "the server's token ids mean other texts than the tokenizer says",
                value=f"ids {excerpt(first.tokens, 60)}: {first.text!r} there, {said!r} here",
                why="every prompt would be another one than was written",
                fix="name the tokenizer of the served model: http://host:port?tokenizer=NAME",
            )
    if not first.tokens or not first.logps:
        return Probe("none", False, False, None, None, ids=bool(first.tokens))
    row = _try(lambda: ask(Ask(start, top=ALL)))
    total, rows = None, False
    if row is not None and row.tops and len(row.tops[0]) > 1:
        total = log_sum_exp(list(row.tops[0].values()))
        rows = abs(total) <= tolerance
    meaning: Meaning = _meaning(ask, start, tolerance)
    scores, two_ways = False, None
    if dialect.echo or dialect.forces:
        again = _try(lambda: score(start, first.tokens))
        if again is not None:
            pairs = zip(first.logps, again, strict=True)
            two_ways = max(abs(a - b) for a, b in pairs)
            scores = two_ways <= tolerance
    if rows and row is not None:
        gap = abs(row.tops[0].get(first.tokens[0], NEG_INF) - first.logps[0])
        two_ways = gap if two_ways is None else max(two_ways, gap)
        rows = gap <= tolerance
    if two_ways is not None and two_ways > tolerance:
        warnings.warn(
            f"two ways to the same log-probability differ by {two_ways:.4f} nats, more than "
            f"tolerance={tolerance:g}: draws of this server get no weights. Start it in float32, or "
            f"accept the difference: ?tolerance={_above(two_ways):g}",
            LmpplWarning,
            stacklevel=4,
        )
        return Probe("none", False, False, two_ways, total)
    return Probe(meaning, rows, scores, two_ways, total)


def _meaning(ask: Callable[[Ask], Reply], start: Ids, tolerance: float) -> Meaning:
    warm = _try(lambda: ask(Ask(start, top=5)))
    cold = _try(lambda: ask(Ask(start, top=5, temperature=0.5)))
    if warm is None or cold is None or not warm.tops or not cold.tops:
        return "untempered"
    a, b = warm.tops[0], cold.tops[0]
    both = sorted((i for i in a.keys() & b.keys() if min(a[i], b[i]) > NEG_INF), key=a.__getitem__)
    if len(both) < 2:
        return "untempered"
    low, high = both[0], both[-1]
    d, halved = a[high] - a[low], b[high] - b[low]
    slack = 4 * tolerance + 0.01 * d
    if d < NEAR:
        return "untempered"
    if abs(halved - d) <= slack:
        return "model"
    if abs(halved - 2 * d) > slack:
        return "untempered"
    cut = _try(lambda: ask(Ask(start, top=5, top_k=2)))
    if cut is not None and cut.tops:
        kept = [x for x in cut.tops[0].values() if x > NEG_INF]
        if len(kept) == 2 and abs(log_sum_exp(kept)) <= tolerance:
            return "processed"
    return "tempered"


def _try(work: Callable[[], T]) -> T | None:
    """What a request gives, or None where the server refuses it: it cannot do that, then."""
    try:
        return work()
    except GRAVE:
        raise
    except ServerError as error:
        if error.retry:
            raise
        return None
    except LmpplError:
        return None


def _above(x: float) -> float:
    """A round number above."""
    step = 10.0 ** math.floor(math.log10(x))
    return math.ceil(x / step + 0.5) * step
