"""What every language model must obey, and the equations of `TokenLaw` once more, by hand.

`check_language_model` takes any backend. The reference here is written in plain Python floats, on
purpose not the code that backends use.

    1  rows are normalised
    2  a batch gives the rows that its members give alone
    3  after open([c]) and pushes of v_1 … v_t the row is that of open([c v_1 … v_t])
    4  score = Σ log p along the rows, then the log-mass of the end set
    5  select keeps, repeats and reorders rows; a repeated row goes its own way afterwards
    6  draw reports log p and log q by the equations of `TokenLaw`, masks included
    7  Argmax takes the largest log q, GumbelMax the largest log q + G
    8  log_mass = log Σ of the tempered row over the set
    9  no text encodes to a control token, and spelled text decodes to itself
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lmppl.errors import excerpt
from lmppl.lm.base import LanguageModel, TokenLaw
from lmppl.random import Argmax, GumbelMax
from lmppl.testing.enumerator import LawBroken
from lmppl.types import Bools, Floats, Ids, Ints, Keys
from lmppl.weights import NEG_INF, exp, log_sum_exp

LAWS = (
    TokenLaw(),
    TokenLaw(temperature=0.3),
    TokenLaw(temperature=2.0),
    TokenLaw(top_k=2),
    TokenLaw(top_p=0.713),
    TokenLaw(temperature=1.3, top_p=0.871, top_k=3, mixture=0.2),
    TokenLaw(temperature=0.7, target_temperature=1.7),
    TokenLaw(top_k=1, mixture=0.05, target_temperature=0.6),
)
"""Settings that each use another part of the equations."""


class Recorder:
    """A `Chance` that keeps the rows it is asked for and takes the `rank`-th possible answer."""

    def __init__(self, rank: int = 0) -> None:
        """Ask nothing yet."""
        self.rank = rank
        self.rows = np.zeros((0, 0))

    def categorical(self, keys: Keys, log_weights: Floats) -> Ints:
        """The rank-th (modulo their number) entry of positive weight of each row."""
        self.rows = np.array(log_weights, dtype=np.float64)
        picks = []
        for row in self.rows:
            possible = np.flatnonzero(row > NEG_INF)
            picks.append(possible[self.rank % len(possible)])
        return np.array(picks, dtype=np.int64)

    def offsets(self, keys: Keys, breakpoints: Sequence[Floats] | None = None) -> Floats:
        """0.5."""
        return np.full(len(keys), 0.5)


def token_law_by_hand(
    row: Sequence[float], law: TokenLaw, mask: Sequence[bool] | None = None
) -> tuple[list[float], list[float]]:
    """(log p, log q) of one row of model log-probabilities: the equations of `TokenLaw`."""

    def normal(values: list[float]) -> list[float]:
        total = log_sum_exp(values)
        return [v - total if v > NEG_INF else NEG_INF for v in values]

    def largest(values: list[float]) -> list[int]:
        return sorted(range(len(values)), key=lambda v: (-values[v], v))

    target = normal([x / law.target_temperature for x in row])
    warm = normal([x / law.temperature for x in row])
    q = list(warm)
    if law.top_k > 0:
        kept = set(largest(q)[: law.top_k])
        q = normal([x if v in kept else NEG_INF for v, x in enumerate(q)])
    if law.top_p < 1.0:
        kept, mass = set(), 0.0
        for v in largest(q):
            if mass >= law.top_p:
                break
            kept.add(v)
            mass += exp(q[v])
        q = normal([x if v in kept else NEG_INF for v, x in enumerate(q)])
    if law.mixture > 0.0:
        e = law.mixture
        mixed = [(1 - e) * exp(a) + e * exp(b) for a, b in zip(q, target, strict=True)]
        q = [math.log(m) if m > 0 else NEG_INF for m in mixed]
    if mask is not None:
        inside = [x if ok else NEG_INF for x, ok in zip(q, mask, strict=True)]
        if all(x == NEG_INF for x in inside):
            inside = [x if ok else NEG_INF for x, ok in zip(warm, mask, strict=True)]
        q = normal(inside) if any(x > NEG_INF for x in inside) else inside
    return target, q


def check_language_model(
    lm: LanguageModel,
    contexts: Sequence[str | Ids] | None = None,
    *,
    texts: Sequence[str] = (),
    atol: float = 1e-9,
    laws: Sequence[TokenLaw] = LAWS,
    draws: int = 64,
    near_ties: float = 0.0,
) -> None:
    """Check a backend against the laws of this module's first lines.

    Args:
        lm: the model.
        contexts: texts or token ids to start from; single tokens when left out.
        texts: texts that must encode to no control token and decode to themselves.
        atol: of log-probabilities; 1e-4 suits float32 networks.
        laws: token laws to draw by.
        draws: keyed draws per context and law that must be those of `GumbelMax` on the host.
        near_ties: the share of these that may differ, for hardware whose logits differ by an ulp.

    Raises:
        LawBroken: with the law, the context and both numbers.
    """
    starts = _starts(lm, contexts)
    single = [_row(lm, c) for c in starts]
    for context, row in zip(starts, single, strict=True):
        if row.shape != (lm.vocab_size,) or np.isnan(row).any():
            raise LawBroken(
                "a row is not [V] numbers", value=excerpt(row), where=f"after {context}"
            )
        _same(0.0, log_sum_exp(row), atol, "rows are normalised", context)
    batch = lm.open(starts)
    rows = batch.log_probs()
    batch.close()
    _same_rows(single, rows, atol, "a batch gives the rows of its members", starts)
    _check_steps(lm, starts, single, atol)
    _check_score(lm, starts, atol)
    for law in laws:
        for mask in _masks(single):
            _check_law(lm, starts, single, law, mask, atol, draws, near_ties)
    _check_mass(lm, starts, single, atol)
    for text in texts:
        ids = lm.encode(text)
        if set(ids) & lm.special_ids:
            raise LawBroken("a text encodes to control tokens", value=excerpt((text, ids)))
        if lm.decode(ids) != text:
            raise LawBroken(
                "a text does not decode to itself", value=excerpt((text, ids, lm.decode(ids)))
            )


def _starts(lm: LanguageModel, contexts: Sequence[str | Ids] | None) -> list[Ids]:
    if contexts is None:
        usable = [v for v in range(min(lm.vocab_size, 64)) if v not in lm.special_ids]
        return [(v,) for v in usable[:2]] + [tuple(usable[:3])]
    return [lm.context(c) if isinstance(c, str) else tuple(c) for c in contexts]


def _row(lm: LanguageModel, context: Ids) -> Floats:
    rows = lm.open([context])
    row: Floats = rows.log_probs()[0]
    rows.close()
    return row


def _same(expected: float, got: float, atol: float, law: str, context: object) -> None:
    if expected == got:
        return
    if not abs(expected - got) <= atol:
        raise LawBroken(
            f"{law}: expected {expected!r}, got {got!r}", where=f"context {excerpt(context)}"
        )


def _same_rows(
    expected: Sequence[Floats],
    got: Sequence[Floats] | Floats,
    atol: float,
    law: str,
    contexts: Sequence[Ids],
) -> None:
    for context, a, b in zip(contexts, expected, got, strict=True):
        both = (a == NEG_INF) & (b == NEG_INF)
        gap = np.where(both, 0.0, np.abs(np.where(both, 0.0, a) - np.where(both, 0.0, b)))
        worst = int(gap.argmax())
        _same(float(a[worst]), float(b[worst]), atol, f"{law} (token {worst})", context)


def _check_steps(lm: LanguageModel, starts: list[Ids], single: list[Floats], atol: float) -> None:
    """Laws 3 and 5."""
    rows = lm.open(starts)
    contexts = list(starts)
    for rank in range(2):
        tokens = np.array([_rank(r, rank) for r in rows.log_probs()], dtype=np.int64)
        rows.push(tokens)
        contexts = [(*c, int(v)) for c, v in zip(contexts, tokens, strict=True)]
        alone = [_row(lm, c) for c in contexts]
        _same_rows(alone, rows.log_probs(), atol, "the chain rule along a prefix", contexts)
    order = [len(starts) - 1, 0, 0]
    rows.select(np.array(order, dtype=np.int64))
    contexts = [contexts[i] for i in order]
    alone = [_row(lm, c) for c in contexts]
    _same_rows(alone, rows.log_probs(), atol, "select reorders and repeats rows", contexts)
    tokens = np.array([_rank(r, i) for i, r in enumerate(rows.log_probs())], dtype=np.int64)
    rows.push(tokens)
    contexts = [(*c, int(v)) for c, v in zip(contexts, tokens, strict=True)]
    alone = [_row(lm, c) for c in contexts]
    _same_rows(alone, rows.log_probs(), atol, "a repeated row goes its own way", contexts)
    rows.close()


def _rank(row: Floats, rank: int) -> int:
    """The rank-th most probable possible token."""
    order = np.argsort(-row, kind="stable")
    possible = [int(v) for v in order[:8] if row[v] > NEG_INF]
    return possible[rank % len(possible)]


def _check_score(lm: LanguageModel, starts: list[Ids], atol: float) -> None:
    """Law 4, with continuations of different lengths in one batch."""
    continuations: list[Ids] = []
    expected: list[list[float]] = []
    ends: list[tuple[int, ...] | None] = []
    stop = tuple(sorted(lm.eos_ids)) or (0,)
    for n, start in enumerate([*starts, starts[0]]):
        context, found, tokens = start, [], []
        for step in range(n % 4):
            row = _row(lm, context)
            token = _rank(row, step)
            found.append(float(row[token]))
            tokens.append(token)
            context = (*context, token)
        end = None if n % 2 else stop
        if end is not None:
            found.append(log_sum_exp(_row(lm, context)[list(end)]))
        continuations.append(tuple(tokens))
        expected.append(found)
        ends.append(end)
    got = lm.score([*starts, starts[0]], continuations, ends, [1.0] * (len(starts) + 1))
    for context, want, have in zip([*starts, starts[0]], expected, got, strict=True):
        if len(want) != len(have):
            raise LawBroken(f"score gives {len(have)} numbers where {len(want)} are due")
        for a, b in zip(want, have.tolist(), strict=True):
            _same(a, b, atol, "score = Σ log p along the rows", context)


def _masks(single: list[Floats]) -> list[Bools | None]:
    """No mask, and one that leaves every row a possible token which truncation may have cut."""
    width = len(single[0])
    mask = np.zeros((len(single), width), dtype=bool)
    for i, row in enumerate(single):
        mask[i, :: 2 + i] = True
        mask[i, int(np.where(row > NEG_INF, row, math.inf).argmin())] = True
    return [None, mask]


def _check_law(
    lm: LanguageModel,
    starts: list[Ids],
    single: list[Floats],
    law: TokenLaw,
    mask: Bools | None,
    atol: float,
    draws: int,
    near_ties: float,
) -> None:
    """Laws 6 and 7."""
    shown = f"{tuple(law)}{'' if mask is None else ' under a mask'}"
    pairs = [
        token_law_by_hand(row.tolist(), law, None if mask is None else mask[i].tolist())
        for i, row in enumerate(single)
    ]
    targets = [np.array(p) for p, _ in pairs]
    proposals = [np.array(q) for _, q in pairs]
    keys = np.arange(len(starts), dtype=np.uint64)
    rows = lm.open(starts)
    for rank in range(3):
        chance = Recorder(rank)
        drawn = rows.draw(keys, [law] * len(starts), mask, chance)
        _same_rows(proposals, chance.rows, atol, f"log q of {shown}", starts)
        for i, token in enumerate(drawn.tokens.tolist()):
            _same(
                float(targets[i][token]), float(drawn.logp[i]), atol, f"log p of {shown}", starts[i]
            )
            _same(
                float(proposals[i][token]),
                float(drawn.logq[i]),
                atol,
                f"log q of {shown}",
                starts[i],
            )
    greedy = rows.draw(keys, [law] * len(starts), mask, Argmax())
    for i, token in enumerate(greedy.tokens.tolist()):
        _same(
            float(proposals[i].max()),
            float(proposals[i][token]),
            atol,
            f"Argmax of {shown}",
            starts[i],
        )
    different = 0
    for n in range(draws):
        own = keys * np.uint64(1_000_003) + np.uint64(n)
        found = rows.draw(own, [law] * len(starts), mask, GumbelMax()).tokens
        different += int((found != GumbelMax().categorical(own, np.array(proposals))).sum())
    rows.close()
    if different > near_ties * draws * len(starts):
        raise LawBroken(
            f"GumbelMax of {shown}: {different} of {draws * len(starts)} draws are not those of the host",
            why="a draw is a function of its key and row, on every device",
        )


def _check_mass(lm: LanguageModel, starts: list[Ids], single: list[Floats], atol: float) -> None:
    """Law 8."""
    rows = lm.open(starts)
    for temperature in (1.0, 0.5, 2.0):
        sets = [tuple(range(0, lm.vocab_size, 2 + i)) for i in range(len(starts))]
        got = rows.log_mass(sets, [temperature] * len(starts))
        for i, context in enumerate(starts):
            warm = single[i] / temperature
            want = log_sum_exp(warm[list(sets[i])]) - log_sum_exp(warm)
            _same(want, float(got[i]), atol, f"log_mass at temperature {temperature}", context)
    rows.close()
