"""Engines at the same budget: which size makes an engine spend what a question may cost.

    spend(n) ≈ a + b n        n = particles, samples, nodes, … : the engine's size

The first questions are answered at a small size and at the size that proportion suggests; a line
through the two nearest spends gives the next guess, until it is met or four sizes were tried. What
is spent is read from the ledger, so it is in the same unit for every engine. An engine without a
size (greedy decoding, enumeration) is run as it is. Probes are no results: the real spend is
reported beside what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lmppl.data import Question
from lmppl.errors import BadArgument, LmpplError
from lmppl.inference.calls import infer_stream
from lmppl.inference.results.posterior import Posterior
from lmppl.inference.specs import Spec, parse_engine, split_spec

UNITS = ("tokens", "calls")
"""What a budget may count: both are in the ledger of every engine."""
SIZES = (
    "steps", "sweeps", "particles", "samples", "simulations", "nodes", "budget", "width",
)  # fmt: skip
"""Arguments that say how much an engine does; of several the first one counts: a chain's length."""
FIRST_SIZE, MOST_SIZE, MOST_PROBES = 4, 20_000, 4
CLOSE = 0.05
"""A spend this near to the budget, relatively, is met."""


class Budget(NamedTuple):
    """What one question may cost."""

    unit: str
    amount: int

    def __str__(self) -> str:
        return f"{self.unit}={self.amount}"


def parse_budgets(texts: Sequence[str]) -> list[Budget]:
    """Budgets of their texts; several amounts of one unit are several budgets.

    >>> [str(b) for b in parse_budgets(["tokens=500,2_000"])]
    ['tokens=500', 'tokens=2000']
    """
    found: list[Budget] = []
    for text in texts:
        unit, equals, amounts = (part.strip() for part in text.partition("="))
        if unit not in UNITS or not equals:
            raise BadArgument(
                f"a budget is tokens=N or calls=N, got {text!r}",
                fix="write --budget tokens=4000, or tokens=1000,4000 for two of them",
            )
        for amount in amounts.split(","):
            if not re.fullmatch(r"\d[\d_]*", amount.strip()) or not int(amount):
                raise BadArgument(
                    f"budget {text!r}: {amount.strip()!r} is no positive integer",
                    fix=f"write {unit}=4000: what one question may cost",
                )
            budget = Budget(unit, int(amount))
            if budget in found:
                raise BadArgument(f"budget {budget} is given twice", fix="leave one out")
            found.append(budget)
    return found


def split_engines(texts: Sequence[str]) -> list[str]:
    """Engines of lists such as `greedy,smc:particles=8,ess_threshold=1,beam`.

    A part `key=value` without a name and a colon before it belongs to the engine before it.

    >>> split_engines(["greedy, smc:particles=8,ess_threshold=1,beam"])
    ['greedy', 'smc:particles=8,ess_threshold=1', 'beam']
    """
    found: list[str] = []
    for text in texts:
        first = len(found)
        for part in split_spec(text):
            if re.match(r"\s*\w+\s*=", part) and len(found) > first:
                found[-1] += ("," if ":" in found[-1] else ":") + part.strip()
            else:
                found.append(part.strip())
    return found


def size_of(spec: Spec) -> tuple[str, int] | None:
    """The argument of an engine that says how much it does, and its value."""
    for name in SIZES:
        value = getattr(spec.engine, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return name, value
    return None


def with_size(spec: Spec, size: int) -> Spec:
    """The same engine at another size, or at the next larger one that it accepts.

    >>> with_size(parse_engine("smc:particles=8"), 3).text
    'smc:particles=3'
    """
    found = size_of(spec)
    if found is None:
        return spec
    name = found[0]
    engine, _, rest = spec.text.partition(":")
    others = [p for p in split_spec(rest) if p and p.partition("=")[0].strip() != name]

    def made(n: int) -> Spec:
        return parse_engine(f"{engine}:{','.join([f'{name}={n}', *others])}")

    for n in range(size, size + 3):
        try:
            return made(n)
        except LmpplError:  # such as particle Gibbs with one particle
            continue
    return made(size + 3)


@dataclass
class Sized:
    """An engine at the size that a budget allows."""

    asked: str
    """As it was asked for."""
    engine: str
    """As it runs."""
    budget: str | None = None
    size: int | None = None
    expected: float | None = None
    """What a question should cost, from the probes."""
    probes: list[tuple[int, float]] = field(default_factory=list)
    """(size, mean spend per question) as measured on the first questions."""
    note: str = ""


Ask = Callable[[Spec], float | None]
"""What an engine spends per question; None where every question failed."""


def spender(
    program: Callable[..., Any], questions: Sequence[Question], unit: str, **options: Any
) -> Ask:
    """An `Ask` that runs an engine on some questions."""

    def spend(spec: Spec) -> float | None:
        stream = infer_stream(
            program,
            [q.fields for q in questions],
            ids=[q.id for q in questions],
            engine=spec.engine,
            on_dead="return",
            **options,
        )
        costs = [getattr(p.ledger, unit) for _, p in stream if isinstance(p, Posterior)]
        return sum(costs) / len(costs) if costs else None

    return spend


def fit_size(
    spec: Spec,
    budget: Budget,
    ask: Ask,
    say: Callable[[str], None] = lambda line: None,
    known: dict[int, float] | None = None,
) -> Sized:
    """The size at which an engine spends a budget.

    Args:
        spec: the engine.
        budget: what a question may cost.
        ask: measures what an engine spends.
        say: told each probe.
        known: spends by size that were measured before; new ones are added.
    """
    sized = size_of(spec)
    if sized is None:
        return Sized(spec.text, spec.text, str(budget), note="has no size: runs as it is")
    name, asked = sized
    points: dict[int, float] = {} if known is None else known
    most = len(points) + MOST_PROBES

    def probe(size: int) -> int | None:
        """Measure; the size that was taken."""
        try:
            tried = with_size(spec, size)
        except LmpplError:  # such as fewer sweeps than the engine throws away
            return None
        found = size_of(tried)
        n = size if found is None else found[1]
        if n not in points:
            cost = ask(tried)
            if cost is None:
                return None
            points[n] = cost
            say(f"  {tried.text}: {cost:,.0f} {budget.unit} a question")
        return n

    if not points and probe(min(asked, FIRST_SIZE)) is None and probe(asked) is None:
        note = "every probe failed: runs at the size that was asked for"
        return Sized(spec.text, spec.text, str(budget), asked, note=note)
    n, expected = _guess(points, budget.amount)
    while len(points) < most and n not in points:
        if probe(n) is None:
            break
        best = min(points.values(), key=lambda cost: abs(cost - budget.amount))
        if abs(best - budget.amount) <= CLOSE * budget.amount:
            break
        n, expected = _guess(points, budget.amount)
    met = {**{n: expected}, **points}
    if not _works(spec, n):
        met = dict(points)
    n = min(met, key=lambda k: (abs(met[k] - budget.amount), k))
    chosen = with_size(spec, n)
    note = ""
    largest = [points[k] for k in sorted(points)[-2:]]
    flat = len(points) > 1 and max(largest) <= 1.02 * min(largest)
    if abs(met[n] - budget.amount) > 0.1 * budget.amount and flat:
        note = "its spend does not follow its size"
    elif met[n] > 1.25 * budget.amount:
        note = f"spends more than the budget even at {name}={n}"
    elif n == MOST_SIZE and met[n] < budget.amount:
        note = f"{name} is cut at {n:,}"
    return Sized(spec.text, chosen.text, str(budget), n, met[n], sorted(points.items()), note)


def _works(spec: Spec, size: int) -> bool:
    try:
        return size_of(with_size(spec, size)) is not None
    except LmpplError:
        return False


def _guess(points: dict[int, float], amount: int) -> tuple[int, float]:
    """The size at which a line through the measured spends meets the amount, and its spend there."""
    near = sorted(points, key=lambda n: abs(points[n] - amount))[:2]
    n0 = near[0]
    a, b = 0.0, points[n0] / n0
    if len(near) == 2:
        n1 = near[1]
        b = (points[n1] - points[n0]) / (n1 - n0)
        a = points[n0] - b * n0
    if b <= 0:  # it does not spend more with a larger size
        return n0, points[n0]
    n = min(max(round((amount - a) / b), 1), MOST_SIZE)
    return n, a + b * n
