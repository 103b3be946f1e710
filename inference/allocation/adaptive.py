"""One budget for many questions: samples move from settled questions to unsettled ones.

    until all are settled, or nothing more fits into the budget:
        each question that its rule has not stopped gets a batch, the most unsettled first
        (all batches of a round share the model's batches, as in `infer_many`)

A batch is reserved before it is drawn, at the cost of the dearest one of its question so far, and
what it did cost is committed afterwards. So the total exceeds the budget by less than the batches of
one round that were dearer than any before them. Of a question that was never drawn nothing is known:
the first round begins with one question and doubles.

The b-th batch of a question is a function of (seed, id of the question, b). Only how many batches it
gets depends on the others.

References: Neyman (1934); Chen, Lin and Zhou, Optimistic knowledge gradient policy for optimal
budget allocation in crowdsourcing (2013), for `priority="gain"`; Fu et al., Certaindex (2024).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmppl.errors import BadArgument, excerpt
from lmppl.inference.base import Engine
from lmppl.inference.calls import infer_many
from lmppl.inference.forward import Forward
from lmppl.inference.results.pooling import pool
from lmppl.inference.results.posterior import Posterior
from lmppl.inference.results.tally import Key, Same
from lmppl.inference.stopping.criteria import BetaMajority, Budget
from lmppl.inference.stopping.rules import Rule, State
from lmppl.inference.stopping.sequential import LIMIT, SPENT, Pooled, Stopped
from lmppl.inference.stopping.signals import Prices, Readings, majority_probability, money
from lmppl.ledger import Ledger


@dataclass(frozen=True)
class Allocated:
    """What came of a budget."""

    posteriors: list[Pooled | None]
    """One a question, in order; None where the budget ended before its first batch."""
    ledger: Ledger
    """Of all of them; `seconds` is the time that passed."""
    rounds: int
    why: str
    """"settled", or "budget spent"."""
    errors: dict[int, Exception] = field(default_factory=dict)
    """By position: what ended a question, with `on_question_error="return"`."""

    @property
    def draws(self) -> list[int]:
        """Samples of each question."""
        return [0 if p is None else len(p) for p in self.posteriors]

    @property
    def settled(self) -> int:
        """Questions that their rule has stopped."""
        return sum(p is not None and p.stopped.settled for p in self.posteriors)


@dataclass
class _Question:
    index: int
    id: Any
    state: State
    parts: list[Posterior] = field(default_factory=list)
    largest: float = 0.0
    """Cost of its dearest batch, as a share of the budget."""
    readings: Readings | None = None
    why: tuple[str, ...] = ()
    error: Exception | None = None

    @property
    def open(self) -> bool:
        return not self.why


def infer_adaptive(
    program: Callable[..., Any],
    questions: Sequence[Any],
    *,
    budget: Budget,
    rule: Rule | None = None,
    engine: Engine | None = None,
    most: int = 100,
    width: int | None = None,
    priority: str | Callable[[Readings], float] = "gain",
    of: Any = None,
    key: Key | None = None,
    same: Same | None = None,
    keep: Any = None,
    prices: Prices | None = None,
    ids: Sequence[Any] | None = None,
    **options: Any,
) -> Allocated:
    """Answer many questions under one budget.

    Args:
        program: the function.
        questions: as in `infer_many`.
        budget: of all questions together: `Budget(tokens=100_000)`, or calls, seconds, money.
        rule: when a question is settled; `BetaMajority(0.95)` when left out.
        engine: draws a batch; `Forward(4)` when left out.
        most: batches of one question at most.
        width: questions of one round at most; a quarter of them, or 16, when left out. Fewer let the
            priority decide more and share smaller batches.
        priority: which questions go first: "gain" (the largest expected rise of P(the leader is
            right) by another batch), "unsettled" (the smallest lead), or a function of a question's
            readings, larger first.
        of: which part of a trace is the answer.
        key: the equivalence of answers, as in `tally`.
        same: the equivalence of answers, as in `tally`.
        keep: which answers count.
        prices: of tokens by model, for a budget of money.
        ids: what the randomness of each question depends on; its position when left out.
        options: those of `infer_many`. A batch without a live particle counts as one of weight zero
            (`on_dead="return"`); with `on_question_error="return"` an error ends its question alone.

    Returns:
        An `Allocated`: one posterior a question, with why it ended, and one ledger.
    """
    options.setdefault("on_dead", "return")
    rule = BetaMajority() if rule is None else rule
    engine = Forward(4) if engine is None else engine
    if not isinstance(budget, Budget):
        raise BadArgument(
            f"budget must be a Budget, got {excerpt(budget, 40)}",
            fix="write Budget(tokens=100_000)",
        )
    if most < 1 or (width is not None and width < 1):
        raise BadArgument("most and width must be at least 1")
    rank = _rank(priority)
    width = max(16, len(questions) // 4) if width is None else width
    names = list(range(len(questions))) if ids is None else list(ids)
    if len({str(n) for n in names}) != len(questions) or len(names) != len(questions):
        raise BadArgument("ids must be different, one for each question")
    signals: dict[str, Any] = {"of": of, "key": key, "same": same, "keep": keep, "prices": prices}
    all_of = [_Question(i, n, rule.start()) for i, n in enumerate(names)]
    total, began, rounds, drawn_first = Ledger(), time.perf_counter(), 0, 1
    why = "settled"
    while waiting := [q for q in all_of if q.open]:
        total.seconds = time.perf_counter() - began
        fresh = [q for q in waiting if not q.parts]
        line = fresh[:drawn_first] if fresh else sorted(waiting, key=lambda q: _order(q, rank))
        chosen = _fitting(line[:width], all_of, 1.0 - _share(budget, total, prices))
        if not chosen:
            why = SPENT
            break
        drawn_first = 2 * len(chosen)
        posteriors = infer_many(
            program,
            [questions[q.index] for q in chosen],
            engine=engine,
            ids=[q.id if not q.parts else f"{q.id}#{len(q.parts)}" for q in chosen],
            **options,
        )
        rounds += 1
        for q, posterior in zip(chosen, posteriors, strict=True):
            if isinstance(posterior, Exception):
                q.error, q.why = posterior, (f"error: {type(posterior).__name__}",)
                continue
            total.add(posterior.ledger)
            q.largest = max(q.largest, _share(budget, posterior.ledger, prices))
            q.parts.append(posterior)
            q.readings = Readings(pool(q.parts), batches=len(q.parts), last=posterior, **signals)
            if q.state.update(q.readings):
                q.why = q.state.why
            elif len(q.parts) >= most:
                q.why = (LIMIT,)
    total.seconds = time.perf_counter() - began
    errors = {q.index: q.error for q in all_of if q.error is not None}
    return Allocated([_result(q) for q in all_of], total, rounds, why, errors)


def _share(budget: Budget, ledger: Ledger, prices: Prices | None) -> float:
    """How much of the budget a ledger is: the largest of its limits' shares."""
    shares = [0.0]
    for name, limit in budget.limits.items():
        spent = money(ledger, prices or {}) if name == "money" else float(getattr(ledger, name))
        shares.append(spent / limit if limit > 0.0 else math.inf)
    return max(shares)


def _fitting(line: list[_Question], all_of: list[_Question], left: float) -> list[_Question]:
    """Those whose batches can be reserved, in order of the line."""
    known = max((q.largest for q in all_of if q.parts), default=0.0)
    chosen = []
    for q in line:
        cost = q.largest if q.parts else known
        if left > 0.0 and cost <= left + 1e-12:
            chosen.append(q)
            left -= cost
    return chosen


def _order(q: _Question, rank: Callable[[Readings], float]) -> tuple[float, int, str]:
    first = 0.0 if q.readings is None else -rank(q.readings)
    return first, len(q.parts), str(q.id)


def _rank(priority: str | Callable[[Readings], float]) -> Callable[[Readings], float]:
    if callable(priority):
        return priority
    if priority == "unsettled":
        return lambda readings: -float(readings["lead"])
    if priority == "gain":
        return lambda readings: gain(readings["counts"], readings.last_draws)
    raise BadArgument(
        f'priority must be "unsettled", "gain" or a function, got {excerpt(priority, 40)}'
    )


def gain(counts: Sequence[float], k: int) -> float:
    """How much k more answers are expected to raise P(the leader is the more probable one).

    Σ_j P(j of k for the first) max(P', 1 - P') - P, with j beta-binomial; the first two answers only.

    >>> round(gain([0, 0], 1), 6), round(gain([9, 0], 1), 6)
    (0.25, 0.0)
    """
    first, second = (*sorted(map(float, counts), reverse=True), 0.0, 0.0)[:2]
    a, b = first + 1.0, second + 1.0
    after = []
    for j in range(k + 1):
        log_p = (
            math.lgamma(k + 1) - math.lgamma(j + 1) - math.lgamma(k - j + 1)
            + math.lgamma(a + j) + math.lgamma(b + k - j) - math.lgamma(a + b + k)
            + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        )  # fmt: skip
        p = majority_probability(first + j, second + k - j)
        after.append(math.exp(log_p) * max(p, 1.0 - p))
    return max(0.0, math.fsum(after) - majority_probability(first, second))


def _result(q: _Question) -> Pooled | None:
    if q.readings is None:
        return None
    pooled = q.readings.posterior
    return Pooled(pooled, Stopped(len(q.parts), len(pooled), q.why or (SPENT,)))
