"""BIRD: probabilities of a decision from coarse labels of its factors.

A decision between two outcomes has factors with a few values each, x = (x_1, …, x_J), and

    P(O1 | x) = σ( Σ_j θ_j[x_j] )        equal to Π p_j / (Π p_j + Π (1 - p_j)), θ = logit p

A language model is asked about complete instances x and answers with one of seven coarse labels,
0 to 1: noisy readings of the probability (`lmppl.graphs.bayes_nets.labels`), of spread s.

A speaker may lean to high words or low ones, whatever is asked. The lean b adds to the logit of
every label, and labels of O1 alone cannot tell it from the factors: θ_j + const is another θ. Half
of the labels should therefore be about O2 (`both_ways`), and b has a prior N(0, 1):

    logit of a label:    b + η where it says how likely O1 is,    b - η where O2

The answer leaves b out. A speaker who favours O1 itself cannot be found out by asking.

θ has a Gaussian prior, whose mean is +1.1, -1.1 or 0 where a value is said to speak for O1, for O2
or for neither (0.75, 0.25, 0.5 as in the paper). It is fitted by Newton's method (the log-posterior is
concave), s by Laplace's evidence; the posterior of θ is Laplace's too. An answer averages over
what the context leaves open:

    P(O1 | C) = Σ_x Π_j P(x_j | C)  E_θ[σ(Σ_j θ_j[x_j])]

with P(x_j | C) the factor's prior where C says nothing of it. The average is no product over
factors, so it is summed up to a cap, and sampled beyond, with a standard error.

Reference: Feng, Zhou, Liu, Huang, Roth, BIRD: a trustworthy Bayesian inference framework for large
language models (2024). There a squared error with a margin is minimised by gradient steps; here
the labels have a likelihood, so that the answer comes with a posterior.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.errors import BadArgument, excerpt
from lmppl.graphs.bayes_nets.bayes_net import BayesNet, Variable
from lmppl.graphs.bayes_nets.labels import label_laws, maximum, sigmoid
from lmppl.types import Floats, Ints

STARTS = {"for": math.log(3.0), "against": -math.log(3.0), "neither": 0.0}
LEAN = 1.0
"""Standard deviation of the prior of a speaker's lean."""
MOST_INSTANCES = 1 << 14
"""The most complete instances that an answer sums over."""
Factors = Mapping[str, Sequence[str]]
Instance = Mapping[str, str]


def check_factors(factors: Factors) -> dict[str, tuple[str, ...]]:
    """Factors with two or more different values each."""
    found = {f: tuple(v) for f, v in factors.items()}
    bad = [f for f, v in found.items() if len(v) < 2 or len(set(v)) < len(v)]
    if bad or not found:
        raise BadArgument(
            f"factor {bad[0]!r} needs two or more different values"
            if bad
            else "there is no factor",
            value=excerpt(dict(factors)),
            fix='write {"weather": ["dry", "wet"], "distance": ["near", "far"]}',
        )
    return found


def instances(factors: Factors, n: int, seed: int = 0) -> list[dict[str, str]]:
    """Up to n complete instances: all of them, or different ones at random."""
    known = check_factors(factors)
    total = math.prod(len(v) for v in known.values())
    if total <= n:
        return [dict(zip(known, x, strict=True)) for x in itertools.product(*known.values())]
    rng = np.random.default_rng(seed)
    found: dict[tuple[str, ...], None] = {}
    while len(found) < n:
        found.setdefault(tuple(v[int(rng.integers(len(v)))] for v in known.values()))
    return [dict(zip(known, x, strict=True)) for x in found]


def both_ways(n: int, seed: int = 0) -> list[bool]:
    """Which of n labels are to be about the second outcome: half of them, at random.

    >>> sum(both_ways(128))
    64
    """
    return [bool(i % 2) for i in np.random.default_rng(seed).permutation(n)]


@dataclass(frozen=True, eq=False)
class Fitted:
    """What the labels say of the factors.

    Args:
        factors: names and values.
        mean: θ, all values of all factors one after the other [D].
        covariance: of Laplace's approximation [D, D].
        noise: s, the spread of a label on the logit scale.
        lean: b; 0 where all labels are about one outcome.
        priors: P(value) of each factor where a context says nothing.
    """

    factors: Mapping[str, tuple[str, ...]]
    mean: Floats
    covariance: Floats
    noise: float
    lean: float
    priors: Mapping[str, Floats]

    @property
    def weights(self) -> dict[str, dict[str, float]]:
        """P(O1) with this value alone, σ(θ), as the paper's p_j."""
        p = iter(sigmoid(self.mean).tolist())
        return {f: {v: next(p) for v in values} for f, values in self.factors.items()}

    def laws(self, context: Mapping[str, Any]) -> list[Floats]:
        """P(x_j | C) of each factor.

        Args:
            context: by factor, its value, or P(value) for some values: what is missing to 1 has
                the prior. Factors that are left out have the prior.
        """
        if unknown := [f for f in context if f not in self.factors]:
            raise BadArgument(
                f"{unknown[0]!r} is no factor", fix=f"the factors are: {', '.join(self.factors)}"
            )
        out = []
        for f, values in self.factors.items():
            said = context.get(f, {})
            given = {said: 1.0} if isinstance(said, str) else dict(said)
            strange = [v for v in given if v not in values]
            total = math.fsum(given.values())
            if strange or total > 1 + 1e-9 or any(p < 0 for p in given.values()):
                raise BadArgument(
                    f"what the context says of {f!r} is no law over its values",
                    value=excerpt(said),
                    fix=f"give one of {', '.join(values)}, or probabilities of them",
                )
            law = np.array([given.get(v, 0.0) for v in values])
            out.append(law + max(0.0, 1.0 - total) * self.priors[f])
        return out

    def answer(self, context: Mapping[str, Any] | None = None, *, seed: int = 0) -> Answer:
        """P(O1 | context), with the spread that the labels leave and that of sampling."""
        laws = self.laws(context or {})
        rng = np.random.default_rng(seed)
        total = math.prod(int((law > 0).sum()) for law in laws)
        if total <= MOST_INSTANCES:
            index = np.array(
                list(itertools.product(*(np.flatnonzero(law).tolist() for law in laws)))
            )
            weight = np.prod([law[index[:, j]] for j, law in enumerate(laws)], axis=0)
        else:
            picks = [rng.choice(len(law), MOST_INSTANCES, p=law / law.sum()) for law in laws]
            index = np.stack(picks, axis=1)
            weight = np.full(MOST_INSTANCES, 1.0 / MOST_INSTANCES)
        weight = weight / weight.sum()
        x = self._rows(index)
        p = self._mean_sigmoid(x)
        value = float(weight @ p)
        se = 0.0
        if total > MOST_INSTANCES:
            se = math.sqrt(float(weight @ (p - value) ** 2) / MOST_INSTANCES)
        draws = rng.multivariate_normal(self.mean, self.covariance, 200, method="eigh")
        spread = float(np.std([weight @ sigmoid(x @ theta) for theta in draws]))
        return Answer(value, spread, se)

    def _rows(self, index: Ints) -> Floats:
        return one_hot(index, [len(v) for v in self.factors.values()])

    def _mean_sigmoid(self, x: Floats) -> Floats:
        """E σ(x θ) for Gaussian θ (MacKay, The evidence framework, 1992)."""
        variance = np.einsum("nd,de,ne->n", x, self.covariance, x)
        return sigmoid((x @ self.mean) / np.sqrt(1.0 + math.pi * variance / 8.0))

    def network(self, outcomes: tuple[str, str] = ("O1", "O2"), name: str = "outcome") -> BayesNet:
        """The Bayesian network: factors at the top, the decision below all of them."""
        sizes = [len(v) for v in self.factors.values()]
        if math.prod(sizes) > MOST_INSTANCES:
            raise BadArgument(
                f"the decision has {math.prod(sizes):,} settings", fix="use answer(context)"
            )
        index = np.array(list(itertools.product(*(range(k) for k in sizes))))
        p = self._mean_sigmoid(self._rows(index)).reshape(sizes)
        tops = [Variable(f, v, self.priors[f]) for f, v in self.factors.items()]
        table = np.stack([p, 1.0 - p], axis=-1)
        return BayesNet([*tops, Variable(name, outcomes, table, list(self.factors))])


@dataclass(frozen=True)
class Answer:
    """P(O1 | context)."""

    value: float
    spread: float
    """Standard deviation over the posterior of θ: what more labels would narrow."""
    se: float
    """Standard error of the sum over instances; 0 where all were listed."""


def one_hot(index: Ints, sizes: Sequence[int]) -> Floats:
    """Rows of zeros and ones, a block per factor [N, Σ sizes]."""
    out = np.zeros((len(index), sum(sizes)))
    start = 0
    for j, k in enumerate(sizes):
        out[np.arange(len(index)), start + index[:, j]] = 1.0
        start += k
    return out


def fit(
    factors: Factors,
    asked: Sequence[Instance],
    labels: Any,
    *,
    second: Sequence[bool] | None = None,
    speaks: Mapping[str, Mapping[str, str]] | None = None,
    priors: Mapping[str, Sequence[float]] | None = None,
    scale: float = 1.5,
) -> Fitted:
    """Fit θ to labels of complete instances.

    Args:
        factors: names and values.
        asked: the instances.
        labels: of each, a name or level of `LEVELS`, or a law over the seven labels [M, 7].
        second: of each, whether the label says how likely O2 is (`both_ways`); all O1 if left out.
        speaks: by factor and value: "for" O1, "against" it or "neither".
        priors: P(value) by factor; uniform where left out.
        scale: standard deviation of the prior of θ.

    >>> factors = {"rain": ["yes", "no"], "far": ["yes", "no"]}
    >>> labels = ["very likely", "likely", "unlikely", "very unlikely"]
    >>> fitted = fit(factors, instances(factors, 4), labels)
    >>> fitted.answer({"rain": "yes"}).value > 0.8 > 0.5 > fitted.answer({"rain": "no"}).value
    True
    """
    known = check_factors(factors)
    x, law = design(factors, asked, labels, second)
    start, spread = prior(factors, x, speaks, scale)
    precision = 1.0 / spread**2

    def profile(log_s: float) -> tuple[float, Floats, Floats]:
        value, theta, hessian = maximum(x, law, start, precision, math.exp(log_s))
        evidence = value - 0.5 * float(np.linalg.slogdet(hessian)[1])  # Laplace's, up to a constant
        return evidence - 0.5 * (log_s + 0.5) ** 2, theta, hessian

    low, high = math.log(0.05), math.log(4.0)
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    a, b = high - golden * (high - low), low + golden * (high - low)
    at_a, at_b = profile(a)[0], profile(b)[0]
    while high - low > 1e-3:
        if at_a > at_b:
            high, b, at_b = b, a, at_a
            a = high - golden * (high - low)
            at_a = profile(a)[0]
        else:
            low, a, at_a = a, b, at_b
            b = low + golden * (high - low)
            at_b = profile(b)[0]
    best = (low + high) / 2
    _, theta, hessian = profile(best)
    laws = {
        f: np.asarray((priors or {}).get(f, np.full(len(v), 1.0 / len(v))), dtype=np.float64)
        for f, v in known.items()
    }
    covariance = np.asarray(np.linalg.inv(hessian), dtype=np.float64)
    n = sum(map(len, known.values()))
    lean = float(theta[n]) if len(theta) > n else 0.0
    return Fitted(known, theta[:n], covariance[:n, :n], math.exp(best), lean, laws)


def design(
    factors: Factors,
    asked: Sequence[Instance],
    labels: Any,
    second: Sequence[bool] | None = None,
) -> tuple[Floats, Floats]:
    """Instances as rows of zeros and ones [M, D], and their labels as laws [M, 7].

    Rows of labels about O2 are negative. Where there are labels of both, a last column of ones
    stands for the lean [M, D + 1].
    """
    known = check_factors(factors)
    index = np.array([[_place(known, f, x) for f in known] for x in asked], dtype=np.int64)
    x = one_hot(index.reshape(-1, len(known)), [len(v) for v in known.values()])
    sides = np.zeros(len(asked), dtype=bool) if second is None else np.asarray(second, dtype=bool)
    if len(sides) != len(asked):
        raise BadArgument(
            f"{len(asked)} instances, and {len(sides)} times whether the label is about O2"
        )
    x[sides] *= -1.0
    if sides.any() and not sides.all():
        x = np.hstack([x, np.ones((len(x), 1))])
    return x, label_laws(labels, len(asked))


def prior(
    factors: Factors, x: Floats, speaks: Mapping[str, Mapping[str, str]] | None, scale: float
) -> tuple[Floats, Floats]:
    """Means and standard deviations of θ, and of the lean where `x` has a column for it."""
    said = speaks or {}
    means = [
        STARTS[said.get(f, {}).get(v, "neither")]
        for f, values in check_factors(factors).items()
        for v in values
    ]
    leans = x.shape[1] - len(means)
    mean = np.array(means + [0.0] * leans)
    return mean, np.array([scale] * len(means) + [LEAN] * leans)


def _place(factors: Mapping[str, Sequence[str]], f: str, x: Instance) -> int:
    if f not in x or x[f] not in factors[f]:
        raise BadArgument(
            f"an instance has no value of {f!r}",
            value=excerpt(dict(x)),
            fix=f"give it one of {', '.join(factors[f])}",
        )
    return list(factors[f]).index(x[f])
