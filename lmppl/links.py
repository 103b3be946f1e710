"""Links and aggregators by name: from the scores of a reward model to log ψ.

| link | score | ψ |
| --- | --- | --- |
| `probability` | r in [0, 1] | r^(1/T) |
| `odds` | r in [0, 1) | (r / (1 - r))^(1/T) |
| `exp` | any number s, a log ψ | exp(s / T) |
| `logit` | any number s, a logit | (1 / (1 + exp(-s)))^(1/T) |
| `ratio`, `odds_ratio` | as `probability`, `odds` | the same, in a potential that telescopes |

Which is right depends on what the score means. The probability that the whole answer will be right
is a value: `Prefix(..., link="ratio")`. The probability that this step is right, independent of the
others: `Factor(..., link="probability")`. A discriminator of good and bad examples, trained on
equal numbers, is a density ratio: `odds`. There is no default: their targets differ by a lot.

Aggregators turn the scores of the steps so far into one: `last`, `min`, `prod`, `mean`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from lmppl.errors import BadArgument, excerpt
from lmppl.weights import NEG_INF

Link = str | Callable[[float], float]
FORMULAS = {
    "probability": "{r}",
    "odds": "odds({r})",
    "exp": "exp({r})",
    "logit": "sigmoid({r})",
}
TELESCOPING = {"ratio": "probability", "odds_ratio": "odds"}
AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: scores[-1],
    "min": min,
    "prod": math.prod,
    "mean": lambda scores: math.fsum(scores) / len(scores),
}
NAMES = (*FORMULAS, *TELESCOPING)


def check_link(potential: str, link: Any, temperature: Any, clip: Any, telescopes: bool) -> Any:
    """A usable link; the names that say "ratio" become what they are the ratio of."""
    if link is None:
        raise BadArgument(
            f"{potential} needs a link: what its score means",
            why="p · Π r, p · Π odds(r) and p · r_T are different targets, and each is right for another reward model",
            fix=f"write link= one of {', '.join(map(repr, NAMES))} (see lmppl.links)",
        )
    if not callable(link) and link not in NAMES:
        raise BadArgument(
            f"{potential}: there is no link {link!r}", fix=f"the links are {', '.join(NAMES)}"
        )
    if link in TELESCOPING and not telescopes:
        raise BadArgument(
            f'{potential}: link="{link}" is a ratio of one step to the step before',
            fix=f'write Prefix(..., link="{link}"), which telescopes, or {potential}(..., link="{TELESCOPING[link]}")',
        )
    if isinstance(temperature, bool) or not (
        isinstance(temperature, (int, float)) and 0.0 < temperature < math.inf
    ):
        raise BadArgument(
            f"{potential}: temperature must be a positive number, got {temperature!r}",
            fix="write temperature=1.0; below 1 it sharpens the potential",
        )
    if not (isinstance(clip, (int, float)) and 0.0 <= clip < 0.5):
        raise BadArgument(
            f"{potential}: clip must be in [0, 0.5), got {clip!r}",
            fix="write clip=1e-6: scores are moved into [clip, 1 - clip]",
        )
    return TELESCOPING.get(link, link) if isinstance(link, str) else link


def check_aggregate(potential: str, aggregate: Any) -> Callable[[Sequence[float]], float]:
    """The function of an aggregator's name, or a function as it is."""
    if callable(aggregate):
        return aggregate  # type: ignore[no-any-return]
    if aggregate not in AGGREGATES:
        raise BadArgument(
            f"{potential}: there is no aggregate {aggregate!r}",
            fix=f"the aggregates are {', '.join(AGGREGATES)}",
        )
    return AGGREGATES[aggregate]


def log_psi(link: Any, score: float, temperature: float, clip: float, where: str) -> float:
    """log ψ of a score."""
    if callable(link):
        return float(link(score)) / temperature
    if link == "exp":
        return score / temperature
    if link == "logit":
        lower = -score if score < -30.0 else math.log1p(math.exp(-score))
        return -lower / temperature
    if not 0.0 <= score <= 1.0:
        raise BadArgument(
            f'link="{link}" takes scores in [0, 1]',
            where=where,
            value=excerpt(score),
            fix='write link="logit" for logits, or link="exp" for log-potentials',
        )
    score = min(max(score, clip), 1.0 - clip)
    if score == 0.0:
        return NEG_INF
    if link == "probability":
        return math.log(score) / temperature
    if score == 1.0:
        raise BadArgument(
            "the odds of a score of 1 are infinite",
            where=where,
            fix='write clip=1e-6, or another link: "probability" takes a score of 1',
        )
    return (math.log(score) - math.log1p(-score)) / temperature


def formula(link: Any, score: str, temperature: float) -> str:
    """ψ in words."""
    name = getattr(link, "__name__", "link")
    psi = f"exp({name}({score}))" if callable(link) else FORMULAS[link].format(r=score)
    return psi if temperature == 1.0 else f"{psi}^(1/{temperature:g})"
