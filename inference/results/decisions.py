"""Decisions: from weighted answers to the one that is given.

| decision | gives | is right when |
| --- | --- | --- |
| `vote` (the default) | the class of the largest mass Σ W | an answer is right or wrong |
| `minimum_risk` | argmin_a Σ_b m_b loss(a, b) | some wrong answers are less wrong |
| `sample` | a class with probability m | the law matters, not one answer |
| `majority` | the class with the most answers, weights ignored | the weights are not to be trusted |
| `argmax` | the answer of one trace, the best by a score that you name | a proof, a program: one is enough |
| `top` | the k heaviest classes | somebody else decides |
| `merge` (`lmppl.inference.results.merging`) | one answer by a language model that sees the table | answers are texts |

Odds with argmax is never a default: a reward model that overrates a few wrong traces makes it fall
as N grows (0.66 to 0.23 from 4 to 64 particles), where a vote over probability weights rises. So
`argmax` has no default score and `decide` votes.

Every decision is a function of the answers, not of their order; chance, in `sample` and in ties, is
keyed by `seed`. References: Wang et al., Self-consistency (2023); Kumar and Byrne, Minimum Bayes-risk
decoding (2004).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmppl.arguments import as_number, check_functions, check_integers, check_seed
from lmppl.errors import BadArgument, excerpt
from lmppl.inference.results.estimates import Marginal
from lmppl.inference.results.posterior import Posterior
from lmppl.inference.results.tally import Tally, tally
from lmppl.random import GumbelMax, draw, fold
from lmppl.trace import Trace

Answers = Posterior | Mapping[Any, float] | Sequence[Any]
TIE = 1e-12
"""Masses this near are a tie."""


@dataclass(frozen=True)
class Decision:
    """An answer, and what giving it loses.

    >>> decide(["4", "4", "5"]).answer
    '4'
    """

    answer: Any
    by: str
    """The decision that was made."""
    mass: float
    """Posterior mass of the answer's class."""
    se: float
    """Standard error of the mass; nan where the weights came without one."""
    risk: float
    """Posterior expected loss of the answer; 1 - mass where no loss was given."""
    risk_se: float
    ignored: float = 0.0
    """Total variation between the law that was decided by and the posterior: what weights said and
    the decision did not hear."""
    dropped: float = 0.0
    """Mass of the answers that were thrown away before (`keep`)."""
    tied: int = 1
    """Classes that were as good; one of them was drawn."""
    table: Marginal = field(default_factory=lambda: Marginal({}, {}), repr=False)
    """All classes."""
    posterior: Posterior | None = field(default=None, repr=False)
    """Of a merge: the posterior of the program that merged."""

    @property
    def lost(self) -> float:
        """Posterior mass of all other answers."""
        return max(0.0, 1.0 - self.mass)


def decide(answers: Answers, by: str = "vote", **options: Any) -> Decision:
    """A decision by its name; options are those of its function.

    >>> decide({"a": 0.6, "b": 0.4}, "vote").risk
    0.4
    """
    if not isinstance(by, str) or by not in DECISIONS:
        raise BadArgument(
            f"there is no decision {excerpt(by)}",
            fix=f"they are {', '.join(DECISIONS)}; merge(...) is in lmppl.inference.results.merging",
        )
    return DECISIONS[by](answers, **options)


def vote(answers: Answers, *, seed: int = 0, **classes: Any) -> Decision:
    """The class of the largest mass: the weighted vote, the posterior's own choice.

    Args:
        answers: a posterior, a mapping from answer to weight, or answers of equal weight.
        seed: of ties.
        classes: `of`, `key`, `same`, `keep`, as in `tally`.
    """
    t = tally(answers, **classes)
    pick, tied = _heaviest(t.mass, t, "vote", seed)
    return _decision(t, pick, "vote", tied=tied)


def majority(answers: Answers, *, seed: int = 0, **classes: Any) -> Decision:
    """The class with the most answers, whatever their weights; ties are drawn.

    `ignored` says how far the counts are from the weights: 0 for draws of equal weight.
    """
    t = tally(answers, **classes)
    shares = [n / sum(t.counts) for n in t.counts]
    pick, tied = _heaviest(shares, t, "majority", seed)
    return _decision(t, pick, "majority", tied=tied, ignored=_variation(shares, t.mass))


def sample(answers: Answers, *, seed: int = 0, **classes: Any) -> Decision:
    """A class with probability its mass: the decision that keeps the law."""
    t = tally(answers, **classes)
    with np.errstate(divide="ignore"):
        key = fold(0, "decision", "sample", check_seed(seed))
        pick = draw(GumbelMax(), key, np.log(np.array(t.mass)))
    return _decision(t, pick, "sample")


def argmax(
    answers: Posterior,
    *,
    score: str | Callable[[Trace], float],
    seed: int = 0,
    of: Any = None,
    **classes: Any,
) -> Decision:
    """The answer of the one best trace.

    Args:
        answers: a posterior.
        score: "weight" (its importance weight), "joint" (log γ: the most probable trace), or a function
            of a trace, such as a reward model's. There is no default.
        seed: of ties.
        of: which part of a trace is the answer.
        classes: `key`, `same`, `keep`, as in `tally`.

    All the mass of other traces is ignored, also that of traces with the same answer.
    """
    if not isinstance(answers, Posterior):
        raise BadArgument(
            f"argmax needs the traces of a posterior, got {type(answers).__name__}", fix="use vote"
        )
    t = tally(answers, of=of, **classes)
    alive = [i for i, c in enumerate(t.of) if c >= 0]
    if score == "weight":
        scores = [float(answers.log_weights[i]) for i in alive]
    elif score == "joint":
        scores = [answers.traces[i].log_joint for i in alive]
    elif callable(score):
        scores = [as_number("argmax", score=score(answers.traces[i])) for i in alive]
    else:
        raise BadArgument(
            f'the score of argmax must be "weight", "joint" or a function, got {excerpt(score)}',
            fix='write argmax(posterior, score="joint")',
        )
    top = max(scores)
    best = sorted({t.of[i] for i, s in zip(alive, scores, strict=True) if s >= top - TIE})
    pick, tied = _drawn(best, "argmax", seed)
    point = [float(c == pick) for c in range(len(t))]
    return _decision(t, pick, "argmax", tied=tied, ignored=_variation(point, t.mass))


def minimum_risk(
    answers: Answers,
    *,
    loss: Callable[[Any, Any], float] | None = None,
    similarity: Callable[[Any, Any], float] | None = None,
    most: int | None = None,
    seed: int = 0,
    **classes: Any,
) -> Decision:
    """Minimum Bayes risk: argmin_a Σ_b m_b loss(a, b) over the answers that were found.

    Args:
        answers: a posterior, a mapping from answer to weight, or answers of equal weight.
        loss: what giving `a` costs when `b` is true.
        similarity: or how good it is; the loss is its negative.
        most: only the heaviest so many are candidates; all are compared with.
        seed: of ties.
        classes: `of`, `key`, `same`, `keep`, as in `tally`.

    >>> minimum_risk([0, 0, 9, 10, 11], loss=lambda a, b: abs(a - b)).answer
    9
    """
    if (loss is None) == (similarity is None):
        raise BadArgument(
            "minimum_risk needs a loss or a similarity, and not both",
            fix="write minimum_risk(posterior, loss=lambda given, true: abs(given - true))",
        )
    check_functions("minimum_risk", loss=loss, similarity=similarity)
    t = tally(answers, **classes)
    if most is not None:
        check_integers("minimum_risk", most=most)
    candidates = range(len(t) if most is None else min(most, len(t)))
    fn, sign = (loss, 1.0) if loss is not None else (similarity, -1.0)

    def cost(a: int, b: int) -> float:
        found = None if fn is None else fn(t.answers[a], t.answers[b])
        return sign * as_number("minimum_risk", loss=found)

    costs = {a: [cost(a, b) for b in range(len(t))] for a in candidates}
    risks = {a: math.fsum(m * c for m, c in zip(t.mass, costs[a], strict=True)) for a in candidates}
    low = min(risks.values())
    near = TIE * max(1.0, abs(low))
    pick, tied = _drawn([a for a in candidates if risks[a] <= low + near], "minimum_risk", seed)
    se = math.nan
    if not math.isfinite(risks[pick]):
        pass  # a loss may be infinite: then nothing is known of its error
    elif isinstance(answers, Posterior):
        se = _risk_error(answers, t, costs[pick], risks[pick])
    elif not isinstance(answers, Mapping):
        n = sum(t.counts)
        spread = math.fsum(
            m * (c - risks[pick]) ** 2 for m, c in zip(t.mass, costs[pick], strict=True)
        )
        se = math.sqrt(max(spread, 0.0) / n)
    return _decision(t, pick, "minimum_risk", tied=tied, risk=risks[pick], risk_se=se)


def top(answers: Answers, k: int = 3, **classes: Any) -> list[Decision]:
    """The k heaviest classes, each as a decision."""
    check_integers("top", k=k)
    t = tally(answers, **classes)
    return [_decision(t, c, "top") for c in range(min(k, len(t)))]


DECISIONS: dict[str, Callable[..., Decision]] = {
    "vote": vote,
    "majority": majority,
    "sample": sample,
    "argmax": argmax,
    "minimum_risk": minimum_risk,
}
"""By name, for `decide`."""


def _decision(t: Tally, pick: int, by: str, **more: Any) -> Decision:
    mass, se = t.mass[pick], t.se[pick]
    more = {"risk": max(0.0, 1.0 - mass), "risk_se": se, **more}
    return Decision(t.answers[pick], by, mass, se, dropped=t.dropped, table=t.table, **more)


def _heaviest(mass: Sequence[float], t: Tally, by: str, seed: int) -> tuple[int, int]:
    best = max(mass)
    return _drawn([c for c in range(len(t)) if mass[c] >= best - TIE], by, seed)


def _drawn(best: Sequence[int], by: str, seed: int) -> tuple[int, int]:
    """One of the best, and how many there are; classes stand in a canonical order."""
    if len(best) == 1:
        return best[0], 1
    at = draw(GumbelMax(), fold(0, "decision", by, check_seed(seed)), [0.0] * len(best))
    return best[at], len(best)


def _variation(p: Sequence[float], q: Sequence[float]) -> float:
    return 0.5 * math.fsum(abs(a - b) for a, b in zip(p, q, strict=True))


def _risk_error(posterior: Posterior, t: Tally, costs: Sequence[float], risk: float) -> float:
    """By families, as every error of a posterior; of the answers that were kept."""
    if posterior.exact:
        return 0.0
    of = np.array(t.of)
    f = np.where(of >= 0, np.array(costs)[of] - risk, 0.0) / (1.0 - t.dropped)
    return posterior._se(f, 0.0)
