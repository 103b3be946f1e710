"""Asking a language model for a decision's factors, its labels and what a context says of them.

Each question is a law of this package, so that its answer has a probability: `label_law` over the
seven labels, `said_law` over a factor's values, `proposal_law` over lists of factors. They are
asked in two ways:

* `ask_labels` and `ask_context` take whole laws, every question of them in one batch, for `fit`;
* the program `bird` draws them as sites: several lists of factors are then several particles, what
  the context says is uncertain too, and any engine gives the posterior of the outcome.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.choice import Choice
from lmppl.context import local
from lmppl.distributions import Categorical
from lmppl.graphs.bayes_nets.bird import (
    Factors,
    Instance,
    both_ways,
    check_factors,
    fit,
    instances,
)
from lmppl.graphs.bayes_nets.labels import LEVELS
from lmppl.graphs.structure.batches import run_steps
from lmppl.jobs import Env
from lmppl.ledger import Ledger
from lmppl.lm.load import as_models, shared
from lmppl.primitives import cached, factor, plate, sample
from lmppl.program import program
from lmppl.random import GumbelMax
from lmppl.strings import LM
from lmppl.types import Floats

UNSAID = "not said"
LINE = r"[a-z][a-z ]{2,24}: [a-z][a-z ]{1,20}(\| [a-z][a-z ]{1,20}){1,3}\n"


@dataclass(frozen=True)
class Outcomes:
    """A decision: the question, and its two outcomes."""

    question: str
    first: str
    second: str

    def swapped(self) -> Outcomes:
        """The same decision, told from its second outcome."""
        return Outcomes(self.question, self.second, self.first)


def label_law(outcomes: Outcomes, instance: Instance, lm: Any = None) -> Choice:
    """How likely the first outcome is said to be, given a value of every factor."""
    facts = "; ".join(f"{f} is {v}" for f, v in instance.items())
    prompt = (
        f"{outcomes.question}\nFacts: {facts}.\nChoose one of: {', '.join(LEVELS)}.\n"
        f"That it is {outcomes.first}, and not {outcomes.second}, is"
    )
    return Choice(prompt, {label: f" {label}" for label in LEVELS}, lm=lm)


def said_law(context: str, name: str, values: Sequence[str], lm: Any = None) -> Choice:
    """Which value of a factor a text entails, if any."""
    options = [*values, UNSAID]
    prompt = (
        f"Text: {context}\nWhat does the text say of the {name}? Choose one of: "
        f"{', '.join(options)}.\nAnswer:"
    )
    return Choice(prompt, {v: f" {v}" for v in options}, end=True, stop="\n", lm=lm)


def proposal_law(outcomes: Outcomes, lm: Any = None, *, most: int = 4) -> LM:
    """A list of factors, a line each: `name: value | value`."""
    prompt = (
        f"{outcomes.question} It is {outcomes.first} or {outcomes.second}.\n"
        "Factors that decide it, with their values:\n"
        "weather: dry | wet\n"
    )
    return LM(prompt, regex=f"({LINE}){{1,{most}}}", max_tokens=120 * most, lm=lm)


def parse_factors(text: str) -> dict[str, tuple[str, ...]]:
    r"""The well-formed lines of a list of factors; a name or value that comes again is left out.

    >>> parse_factors("distance: near | far\nnonsense\nload: light | light\n")
    {'distance': ('near', 'far')}
    """
    found: dict[str, tuple[str, ...]] = {}
    for line in str(text).splitlines():
        name, colon, rest = line.partition(":")
        values = tuple(dict.fromkeys(v.strip() for v in rest.split("|") if v.strip()))
        if colon and name.strip() and len(values) > 1:
            found.setdefault(name.strip(), values)
    return found


def _env(lm: Any) -> Env:
    return Env({**local.models, **as_models(lm)}, GumbelMax(), shared)


def ask_labels(
    outcomes: Outcomes,
    asked: Sequence[Instance],
    lm: Any = None,
    *,
    second: Sequence[bool] | None = None,
    ledger: Ledger | None = None,
) -> Floats:
    """The model's law over the seven labels for each instance [M, 7], for `fit`.

    Where `second` is true the model is asked how likely the second outcome is.
    """
    env = _env(lm)
    sides = [False] * len(asked) if second is None else second
    told = (outcomes, outcomes.swapped())
    laws = [label_law(told[s], x) for x, s in zip(asked, sides, strict=True)]
    found = run_steps([law.support(env) for law in laws], env, ledger or Ledger())
    rows = np.zeros((len(asked), len(LEVELS)))
    place = {label: i for i, label in enumerate(LEVELS)}
    for i, pairs in enumerate(found):
        for label, logp in pairs:
            rows[i, place[str(label)]] = math.exp(logp)
    return rows


def ask_context(
    context: str, factors: Factors, lm: Any = None, *, ledger: Ledger | None = None
) -> dict[str, dict[str, float]]:
    """P(value | context) of each factor, for `Fitted.answer`; the rest to 1 is "not said"."""
    known = check_factors(factors)
    env = _env(lm)
    laws = [said_law(context, f, v) for f, v in known.items()]
    found = run_steps([law.support(env) for law in laws], env, ledger or Ledger())
    return {
        f: {str(v): math.exp(logp) for v, logp in pairs if v != UNSAID}
        for f, pairs in zip(known, found, strict=True)
    }


def probability(
    factors: Factors,
    asked: Sequence[Instance],
    labels: Sequence[str],
    second: Sequence[bool],
    said: Mapping[str, str],
) -> float:
    """P(first outcome): labels fitted, missing factors averaged out."""
    return fit(factors, asked, labels, second=second).answer(said).value


@program
def bird(
    outcomes: Outcomes, context: str, factors: Factors | None = None, *, labels: int = 16
) -> Any:
    """The decision as a program.

    Args:
        outcomes: the question and its two outcomes.
        context: what is known.
        factors: names and values; proposed by the model at the site `factors` when left out, and
            impossible where it proposes none that is well-formed.
        labels: how many instances are labelled, half of them by how likely the second outcome is.
    """
    if factors is None:
        factors = parse_factors(sample("factors", proposal_law(outcomes)))
        factor("well_formed", bool(factors))
    known = check_factors(factors)
    asked = instances(known, labels)
    second = both_ways(len(asked))
    sides = [outcomes.swapped() if s else outcomes for s in second]
    given = plate(
        "asked",
        zip(asked, sides, strict=True),
        lambda pair: sample("label", label_law(pair[1], pair[0])),
    )
    said = plate("factor", known, lambda f: sample("said", said_law(context, f, known[f])))
    facts = {f: str(v) for f, v in zip(known, said, strict=True) if v != UNSAID}
    p = cached("probability", probability, known, asked, tuple(map(str, given)), second, facts)
    return sample("outcome", Categorical({outcomes.first: p, outcomes.second: 1.0 - p}))
