"""Nested inference: a judge that thinks, inside the program that it judges.

The judge is a program of its own: it has a thought about an answer, then says " yes" or " no".
Inside the outer program `infer(judge, answer, ...)` runs it; its model calls join the outer
batches. Two ways to use what it returns look alike and are not:

* `factor("judge", inner.log_evidence)` is right for every number of inner particles: the inner Ẑ
  is unbiased, so the outer weight w Ẑ has expectation w Z (pseudo-marginal method);
* `factor("judge", log p̂)` with a self-normalised estimate p̂ is nested Monte Carlo: it is biased
  at a finite number of inner particles, since a ratio of averages is not the average of ratios.

The proof is by exhaustion: `assert_properly_weighted` visits every outcome of the randomness of
both levels and compares E[Ẑ 1(answer)] with the target.

Reference: Andrieu and Roberts, The pseudo-marginal approach (2009); Rainforth et al., On nesting
Monte Carlo estimators (2018).
"""

from __future__ import annotations

import math

from lmppl import LM, Choice, factor, observe, program, sample
from lmppl.inference import Engine, Enumerate, Importance, infer
from lmppl.lm.table import TableLM
from lmppl.testing import assert_properly_weighted

TOKENS = [" Paris", " Lyon", " sure", " unsure", " yes", " no"]
MODEL = TableLM(
    TOKENS,
    {
        (): [0.40, 0.60, 0, 0, 0, 0],
        (0,): [0, 0, 0.70, 0.30, 0, 0],  # the judge's thought about " Paris"
        (1,): [0, 0, 0.10, 0.90, 0, 0],
        (2,): [0, 0, 0, 0, 0.80, 0.20],  # what a sure judge says
        (3,): [0, 0, 0, 0, 0.05, 0.95],
    },
)


@program
def judge(answer: str) -> str:
    thought = sample("thought", LM(f"Is it{answer}? I am", max_tokens=1))
    observe("verdict", Choice(f"Being{thought}, I say", [" yes", " no"]), " yes")
    return str(thought)


@program
def by_evidence(inner: Engine) -> str:
    """The answer counts as much as the judge says " yes" to it."""
    answer = str(sample("answer", LM("The capital is", max_tokens=1)))
    factor("judge", infer(judge, answer, engine=inner).log_evidence)
    return answer


@program
def by_estimate(inner: Engine) -> str:
    """The answer counts as much as a judge who says " yes" is sure of it."""
    answer = str(sample("answer", LM("The capital is", max_tokens=1)))
    sure = infer(judge, answer, engine=inner).marginal().get(" sure", 0.0)
    factor("judge", math.log(sure) if sure > 0 else -math.inf)
    return answer


def targets() -> tuple[dict[str, float], dict[str, float]]:
    """γ(answer) of both programs, by hand."""
    evidence, estimate = {}, {}
    for answer, prior, sure in ((" Paris", 0.40, 0.70), (" Lyon", 0.60, 0.10)):
        yes = sure * 0.80 + (1 - sure) * 0.05
        evidence[answer] = prior * yes
        estimate[answer] = prior * sure * 0.80 / yes
    return evidence, estimate


def main(inner: int = 2) -> None:
    print(f"{'P(Paris)':12}{'by hand':>9}{'exact':>9}{f'inner N = {inner}':>14}{'error of γ':>12}")
    errors = {}
    for model, target in zip((by_evidence, by_estimate), targets(), strict=True):
        truth = target[" Paris"] / sum(target.values())
        exact = infer(model, Enumerate(), engine=Enumerate(), lm=MODEL).marginal()[" Paris"]
        assert math.isclose(exact, truth, abs_tol=1e-12)
        found = assert_properly_weighted(
            model, Importance(inner), engine=Importance(1), lm=MODEL, exact=target, atol=1.0
        )
        rough = found.estimate[" Paris"] / found.estimate.z
        errors[model.__name__] = found.error
        print(f"{model.__name__:12}{truth:9.4f}{exact:9.4f}{rough:14.4f}{found.error:12.1e}")
    assert errors["by_evidence"] < 1e-12
    assert errors["by_estimate"] > 0.1  # Lyon: 0.6 (E[p̂] - p) with p = 0.64, E[p̂] = 0.18


if __name__ == "__main__":
    main()
