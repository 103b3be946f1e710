"""What a token-level potential must obey; offered by `lmppl.testing`.

For every token sequence x up to a length, and every token v:

    1  prefix(x) = 0 forces complete(x) = 0 and prefix(x v) = 0
    2  next(v | x) = prefix(x v) / prefix(x), next(end | x) = complete(x) / prefix(x); 0 where prefix(x) = 0
    3  the weights of a few tokens are those that they have among all
    4  a state is what has been read: read again it is the same, and advancing leaves it as it was
    5  weights are numbers, not nan and not infinite

From 1 and 2 follows prefix(empty) · Π_t next(x_t | x_<t) · next(end | x) = complete(x), the
factorisation that makes a string's weight a product.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lmppl.errors import excerpt
from lmppl.lm.base import LanguageModel
from lmppl.testing.enumerator import LawBroken
from lmppl.token_potentials.base import TokenPotential, TokenState
from lmppl.token_potentials.operators import Lookahead, Normalized, as_potential
from lmppl.types import Floats, Ids
from lmppl.weights import NEG_INF


def assert_potential_laws(
    potential: Any,
    lm: LanguageModel,
    *,
    stop: tuple[str, ...] = (),
    max_tokens: int = 3,
    atol: float = 1e-9,
) -> int:
    """Check a potential on every token sequence of a tiny model.

    A `Lookahead` must also be 1 at every end and nowhere 0, a `Normalized` add up to 1.

    Args:
        potential: a `TokenPotential`, or what `LM(potential=...)` takes.
        lm: a model with a few tokens.
        stop: terminators of the string.
        max_tokens: length of the longest sequences.
        atol: of log-weights.

    Returns:
        How many sequences there were.

    Raises:
        LawBroken: with the sequence and both numbers.

    >>> from lmppl.lm.table import TableLM
    >>> lm = TableLM(["a", "b", "<eos>"], {(): [0.4, 0.4, 0.2]})
    >>> assert_potential_laws(lambda text: "bb" not in text, lm)
    15
    """
    found = as_potential(potential)
    plain = [v for v in range(lm.vocab_size) if v not in lm.eos_ids]
    some = list(range(0, lm.vocab_size, 2)) + sorted(lm.eos_ids)[:1]
    count = 0
    stack: list[tuple[Ids, TokenState]] = [((), found.start(lm, stop))]
    while stack:
        ids, state = stack.pop()
        count += 1
        where = f"{found!r} after {[lm.token_bytes(v) for v in ids]}"
        prefix, complete = _number(state.log_prefix, where), _number(state.log_complete, where)
        if prefix == NEG_INF and complete > NEG_INF:
            raise LawBroken(
                f"{where}: prefix weight 0, but log complete {complete!r}",
                why="where the prefix weight is zero no string may have weight, or it is lost",
            )
        row = np.asarray(state.log_next(), dtype=np.float64)
        if row.shape != (lm.vocab_size,):
            raise LawBroken(f"{where}: log_next gives {row.shape}, one number per id is due")
        after = {v: state.advance(v) for v in plain}
        expected = np.full(lm.vocab_size, NEG_INF)
        if prefix > NEG_INF:
            expected[list(lm.eos_ids)] = complete - prefix
            for v, child in after.items():
                expected[v] = _number(child.log_prefix, where) - prefix
        for v, child in after.items():
            if prefix == NEG_INF and child.log_prefix > NEG_INF:
                raise LawBroken(
                    f"{where}: prefix weight 0, but not after {lm.token_bytes(v)!r} more",
                    why="a beginning that is impossible has no possible continuation",
                )
        _same(expected, row, atol, f"{where}: log_next", lm)
        _same(row[some], np.asarray(state.log_next(some)), atol, f"{where}: log_next of a few", lm)
        again = found.start(lm, stop)
        for v in ids:
            again = again.advance(v)
        _same(
            np.array([prefix, complete, prefix, complete]),
            np.array([state.log_prefix, state.log_complete, again.log_prefix, again.log_complete]),
            atol,
            f"{where}: (prefix, complete) asked again, and read anew",
            lm,
        )
        _check_kind(found, prefix, complete, row, where, lm, atol)
        if len(ids) < max_tokens:
            stack += [((*ids, v), child) for v, child in after.items()]
    return count


def _check_kind(
    found: TokenPotential,
    prefix: float,
    complete: float,
    row: Floats,
    where: str,
    lm: LanguageModel,
    atol: float,
) -> None:
    if isinstance(found, Lookahead) and (complete != 0.0 or prefix == NEG_INF):
        raise LawBroken(
            f"{where}: a look-ahead has prefix weight > 0 and complete weight 1",
            value=f"log prefix {prefix!r}, log complete {complete!r}",
        )
    if isinstance(found, Normalized) and (row > NEG_INF).any():
        mass = np.exp(row)
        ends = sorted(lm.eos_ids)
        total = float(np.delete(mass, ends).sum()) + (float(mass[ends[0]]) if ends else 0.0)
        if not ends and complete > NEG_INF:
            total += math.exp(complete - prefix)
        if not abs(total - 1.0) <= atol:
            raise LawBroken(f"{where}: next-token weights add up to {total!r}, not to 1")


def _number(value: object, where: str) -> float:
    if not isinstance(value, float) or math.isnan(value) or value == math.inf:
        raise LawBroken(f"{where}: a log-weight is no number", value=excerpt(value))
    return value


def _same(expected: Floats, got: Floats, atol: float, what: str, lm: LanguageModel) -> None:
    both = (expected == NEG_INF) & (got == NEG_INF)
    with np.errstate(invalid="ignore"):
        gap = np.where(both, 0.0, np.abs(expected - got))
    bad = np.flatnonzero(~(gap <= atol))
    if len(bad):
        i = int(bad[0])
        raise LawBroken(
            f"{what}: expected {float(expected[i])!r}, got {float(got[i])!r}", value=f"entry {i}"
        )
