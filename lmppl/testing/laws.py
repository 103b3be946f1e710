"""What distributions, guides and regular expressions must obey; offered by `lmppl.testing`.

Each check enumerates: every listed value, every possible draw, every partial trace, every token
sequence. So it wants a `TableLM` with a few tokens, and holds to rounding or names what is wrong.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from lmppl.batches import run_now
from lmppl.distributions import Distribution
from lmppl.errors import excerpt
from lmppl.jobs import Env
from lmppl.ledger import Ledger
from lmppl.lm.base import LanguageModel
from lmppl.lm.load import as_models
from lmppl.random import Chance, GumbelMax
from lmppl.strings import LM
from lmppl.testing.enumerator import LawBroken, Measure, enumerate_exact, outcomes
from lmppl.text import Text
from lmppl.trace import Entry, Trace
from lmppl.types import Ids
from lmppl.weights import NEG_INF, check_log_weight, exp


def check_distribution(
    dist: Distribution,
    *,
    lm: Any = None,
    mass: float | None = 1.0,
    scores: bool = True,
    atol: float = 1e-9,
) -> Measure:
    """The three faces of a distribution agree: support, draw and score.

        Σ_x p(x) = mass                      over `support`
        E_draw[(p / q) 1(value = x)] = p(x)   by enumeration of its draws (≤ where it is restricted)
        score(value) = log p                 of every drawn value
        p(entry) ≤ exp score(value) ≤ p(x)    of every listed text: x may have several tokenisations

    Args:
        dist: the distribution; `support` must be finite.
        lm: its language model, or models by name.
        mass: what the support adds up to; None for an unnormalised one.
        scores: whether it can score; False for laws that refuse to.
        atol: the largest error.

    Returns:
        p by value.
    """
    models = as_models(lm)

    def env(chance: Chance | None = None) -> Env:
        return Env(models, chance or GumbelMax())

    def now(step: Any, chance: Chance | None = None) -> Any:
        return run_now(step, env(chance), Ledger())

    shown = f"{dist.kind} {excerpt(dist, 80)}"
    listed: dict[Any, list[float]] = {}
    support = now(dist.support(env()))
    for value, logp in support:
        listed.setdefault(value, []).append(exp(logp))
    law = Measure({value: math.fsum(parts) for value, parts in listed.items()})
    for value, logp in support if scores else ():
        if isinstance(value, Text) and value.token_ids is not None:
            p = exp(float(now(dist.score(value, env()))))
            if not exp(logp) - atol <= p <= law[value] + atol:
                raise LawBroken(
                    f"{shown}: the score of {value!r} is log {p!r}, not between log {exp(logp)!r} "
                    f"(its listed tokens) and log {law[value]!r} (all tokenisations)"
                )
    if mass is not None:
        _close(mass, law.z, atol, f"{shown}: the mass of its support")
    drawn: dict[Any, list[float]] = {}
    restricted = False
    for probability, draw in outcomes(lambda chance: now(dist.draw(7, env(chance)), chance)):
        restricted = restricted or draw.restricted
        if draw.logp == NEG_INF:
            continue
        drawn.setdefault(draw.value, []).append(probability * exp(draw.logp - draw.logq))
        score = float(now(dist.score(draw.value, env()))) if scores else draw.logp
        _close(draw.logp, score, atol, f"{shown}: score of the drawn {draw.value!r}")
    for value in {**law, **drawn}:
        found, p = math.fsum(drawn.get(value, ())), law.get(value, 0.0)
        if not (restricted and found <= p + atol):
            _close(p, found, atol, f"{shown}: E[p/q] of {value!r}")
    number = dist.fingerprint
    if not (isinstance(number, int) and 0 <= number < 1 << 64):
        raise LawBroken(f"{shown}: its fingerprint is no 64-bit number", value=excerpt(number))
    if dist.fingerprint != number or copy.copy(dist).fingerprint != number:
        raise LawBroken(
            f"{shown}: its fingerprint changes", fix="make it a function of the arguments"
        )
    return law


def _close(expected: float, got: float, atol: float, what: str) -> None:
    if expected != got and not abs(expected - got) <= atol:
        raise LawBroken(f"{what}: expected {expected!r}, got {got!r}")


def check_guide(
    guide: Callable[[Trace], float],
    program: Callable[..., Any],
    *args: Any,
    lm: Any = None,
    kwargs: Mapping[str, Any] | None = None,
) -> tuple[float, float]:
    """A guide is a finite function of the partial trace, on every prefix of every living trace.

    Any such guide leaves the answer right; how good it is, is another matter.

    Returns:
        The smallest and the largest log h met.
    """
    low, high = math.inf, -math.inf

    def visit(trace: Trace) -> None:
        nonlocal low, high
        for entry in trace.sites:
            if entry.op not in ("sample", "observe", "factor"):
                continue
            values = {_guided(guide, _copied(trace, entry)) for _ in range(2)}
            if len(values) > 1:
                raise LawBroken(
                    f"the guide gave {sorted(values)} to the same partial trace",
                    where=f"after {entry.address!r}",
                    why="its value enters a weight twice, and must be a function of the trace",
                )
            low, high = min(low, *values), max(high, *values)

    enumerate_exact(program, *args, lm=lm, of=visit, kwargs=kwargs)
    return low, high


def _copied(trace: Trace, last: Entry) -> Trace:
    """The trace up to and with an entry, made of new entries."""
    head: Entry | None = None
    for e in trace.sites:
        head = Entry(head, e.op, e.address, e.value, e.logp, e.logq, e.logw, e.fingerprint)
        if e is last:
            break
    return Trace(head)


def _guided(guide: Callable[[Trace], float], trace: Trace) -> float:
    value = check_log_weight(guide(trace), site="guide", term="log guide")
    if value == NEG_INF:
        raise LawBroken(
            "the guide gave zero to a partial trace that is alive",
            where=f"after {list(trace)[-1:]}",
            why="zero cuts part of the target off; the result is biased",
            fix="return a finite number, such as -20.0",
        )
    return value


def check_constraint(
    lm: LanguageModel,
    regex: str,
    *,
    stop: tuple[str, ...] = (),
    prompt: str = "",
    max_tokens: int = 3,
    pattern: str | None = None,
    atol: float = 1e-9,
) -> int:
    """The strings of `LM(regex=...)` are those that Python's `re` accepts, each with the model's p.

    Every token sequence of at most `max_tokens` tokens is tried, so use a few tokens.

    Args:
        lm: a tiny model.
        regex: the expression.
        stop: terminators.
        prompt: the text before.
        max_tokens: L.
        pattern: the expression in Python's syntax, where that differs.
        atol: of log-probabilities.

    Returns:
        How many token sequences the constraint allows.
    """
    env = Env({"default": lm})
    law = LM(prompt, regex=regex, stop=stop or None, max_tokens=max_tokens)
    support = run_now(law.support(env), env, Ledger())
    found = {tuple(value.token_ids.tolist()): logp for value, logp in support}
    ending = f"(?:{'|'.join(map(re.escape, stop))})" if stop else ""
    accepts = re.compile(f"(?:{pattern or regex}){ending}", re.DOTALL).fullmatch
    context = lm.context(prompt)

    def logp_of(ids: Ids) -> float:
        return float(lm.score([context], [ids], [None], [1.0])[0].sum())

    def matches(ids: Ids) -> bool:
        try:
            text = b"".join(map(lm.token_bytes, ids)).decode()
        except UnicodeDecodeError:
            return False
        return accepts(text) is not None

    for ids, logp in found.items():
        body = tuple(v for v in ids if v not in lm.eos_ids)
        if not matches(body):
            raise LawBroken(f"regex {regex!r} let {lm.decode(ids)!r} through", value=excerpt(ids))
        _close(logp_of(ids), logp, atol, f"regex {regex!r}: log p of {lm.decode(ids)!r}")
    plain = [v for v in range(lm.vocab_size) if v not in lm.special_ids]
    for n in range(max_tokens + 1):
        for ids in product(plain, repeat=n):
            if not matches(ids) or logp_of(ids) == NEG_INF:
                continue
            if stop:  # it ends at the first terminator
                ends = [ids] if not any(matches(ids[:k]) for k in range(n)) else []
            elif ids in found or n == max_tokens:
                ends = [ids]
            else:
                ends = [(*ids, v) for v in lm.eos_ids if logp_of((*ids, v)) > NEG_INF]
            for end in ends:
                if end not in found:
                    raise LawBroken(
                        f"regex {regex!r} cannot make {lm.decode(end)!r}",
                        value=excerpt([lm.token_bytes(v) for v in end]),
                        why="every tokenisation of a matching text belongs to the target",
                    )
    return len(found)
