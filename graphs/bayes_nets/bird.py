"""BIRD: probabilities of a decision from coarse labels of its factors.

A decision between two outcomes has factors with a few values each, x = (x_1, …, x_J), and

    P(O1 | x) = σ( Σ_j θ_j[x_j] )                       equal to Π p_j / (Π p_j + Π (1 - p_j)), θ = logit p

A language model is asked about complete instances x and answers with one of seven coarse labels,
0 to 1. A label is a noisy reading of the probability: it is the level next to σ(η + s ε), with ε
logistic, η the sum above, so that

    P(label l | x) = σ((t_{l+1} - η) / s) - σ((t_l - η) / s)             t: logits between two levels

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
from lmppl.types import Floats, Ints

LEVELS: Mapping[str, float] = {
    "very unlikely": 0.0,
    "unlikely": 0.2,
    "somewhat unlikely": 0.4,
    "equally likely": 0.5,
    "somewhat likely": 0.6,
    "likely": 0.8,
    "very likely": 1.0,
}
"""The seven labels and what they stand for."""
STARTS = {"for": math.log(3.0), "against": -math.log(3.0), "neither": 0.0}
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


@dataclass(frozen=True, eq=False)
class Fitted:
    """What the labels say of the factors.

    Args:
        factors: names and values.
        mean: θ, all values of all factors one after the other [D].
        covariance: of Laplace's approximation [D, D].
        noise: s, the spread of a label on the logit scale.
        priors: P(value) of each factor where a context says nothing.
    """

    factors: Mapping[str, tuple[str, ...]]
    mean: Floats
    covariance: Floats
    noise: float
    priors: Mapping[str, Floats]

    @property
    def weights(self) -> dict[str, dict[str, float]]:
        """P(O1) with this value alone, σ(θ), as the paper's p_j."""
        p = iter(_sigmoid(self.mean).tolist())
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
        spread = float(np.std([weight @ _sigmoid(x @ theta) for theta in draws]))
        return Answer(value, spread, se)

    def _rows(self, index: Ints) -> Floats:
        return one_hot(index, [len(v) for v in self.factors.values()])

    def _mean_sigmoid(self, x: Floats) -> Floats:
        """E σ(x θ) for Gaussian θ (MacKay, The evidence framework, 1992)."""
        variance = np.einsum("nd,de,ne->n", x, self.covariance, x)
        return _sigmoid((x @ self.mean) / np.sqrt(1.0 + math.pi * variance / 8.0))

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
    speaks: Mapping[str, Mapping[str, str]] | None = None,
    priors: Mapping[str, Sequence[float]] | None = None,
    scale: float = 1.5,
) -> Fitted:
    """Fit θ to labels of complete instances.

    Args:
        factors: names and values.
        asked: the instances.
        labels: of each, a name or level of `LEVELS`, or a law over the seven labels [M, 7].
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
    x, law = design(factors, asked, labels)
    start = starts(factors, speaks)
    precision = np.full(len(start), 1.0 / scale**2)

    def profile(log_s: float) -> tuple[float, Floats, Floats]:
        value, theta, hessian = _newton(x, law, start, precision, math.exp(log_s))
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
    return Fitted(known, theta, covariance, math.exp(best), laws)


def design(factors: Factors, asked: Sequence[Instance], labels: Any) -> tuple[Floats, Floats]:
    """Instances as rows of zeros and ones [M, D], and their labels as laws [M, 7]."""
    known = check_factors(factors)
    index = np.array([[_place(known, f, x) for f in known] for x in asked], dtype=np.int64)
    x = one_hot(index.reshape(-1, len(known)), [len(v) for v in known.values()])
    return x, _label_laws(labels, len(asked))


def starts(factors: Factors, speaks: Mapping[str, Mapping[str, str]] | None = None) -> Floats:
    """The prior mean of θ [D]."""
    said = speaks or {}
    return np.array(
        [
            STARTS[said.get(f, {}).get(v, "neither")]
            for f, values in check_factors(factors).items()
            for v in values
        ]
    )


def _place(factors: Mapping[str, Sequence[str]], f: str, x: Instance) -> int:
    if f not in x or x[f] not in factors[f]:
        raise BadArgument(
            f"an instance has no value of {f!r}",
            value=excerpt(dict(x)),
            fix=f"give it one of {', '.join(factors[f])}",
        )
    return list(factors[f]).index(x[f])


def _label_laws(labels: Any, n: int) -> Floats:
    """Labels as laws over the seven [M, 7]."""
    names, levels = list(LEVELS), list(LEVELS.values())
    rows = np.zeros((n, len(names)))
    if len(labels) != n:
        raise BadArgument(f"{n} instances have {len(labels)} labels")
    for i, label in enumerate(labels):
        if isinstance(label, str):
            if label not in LEVELS:
                raise BadArgument(f"{label!r} is no label", fix=f"use one of {', '.join(names)}")
            rows[i, names.index(label)] = 1.0
        elif np.ndim(label) == 0:
            near = int(np.argmin([abs(level - float(label)) for level in levels]))
            rows[i, near] = 1.0
        else:
            rows[i] = np.asarray(label, dtype=np.float64)
    return rows


def thresholds() -> Floats:
    """Logits half-way between two levels, with infinity at both ends [8]."""
    levels = np.array(list(LEVELS.values()))
    middle = (levels[1:] + levels[:-1]) / 2
    return np.concatenate([[-np.inf], np.log(middle / (1 - middle)), [np.inf]])


def _sigmoid(x: Floats) -> Floats:
    """σ, to full relative precision on the left."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)), dtype=np.float64)


def label_terms(eta: Floats, noise: float) -> tuple[Floats, Floats, Floats]:
    """log P(label | η) and its two derivatives in η, for every label [M, 7].

    With a < b the two ends, σ(b) - σ(a) = σ(b) σ(-a) (1 - e^{a - b}), whose last factor is constant.
    """
    t = (thresholds()[None, :] - eta[:, None]) / noise
    low, high = t[:, :-1], t[:, 1:]
    logp = np.log1p(-np.exp(low - high)) - np.logaddexp(0.0, -high) - np.logaddexp(0.0, low)
    density = _sigmoid(t) * _sigmoid(-t)
    first = (_sigmoid(low) - _sigmoid(-high)) / noise
    second = -(density[:, :-1] + density[:, 1:]) / noise**2
    return np.asarray(logp, dtype=np.float64), first, second


def _newton(
    x: Floats, law: Floats, start: Floats, precision: Floats, noise: float
) -> tuple[float, Floats, Floats]:
    """The maximum of the log-posterior of θ: its value, where it is, and the negative Hessian."""
    theta = start.copy()

    def value(at: Floats) -> float:
        logp = label_terms(x @ at, noise)[0]
        return float((law * logp).sum() - 0.5 * (precision * (at - start) ** 2).sum())

    now = value(theta)
    hessian = np.diag(precision)
    for _ in range(50):
        _, first, second = label_terms(x @ theta, noise)
        gradient = x.T @ (law * first).sum(axis=1) - precision * (theta - start)
        curve = -(law * second).sum(axis=1)
        hessian = x.T @ (curve[:, None] * x) + np.diag(precision)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-6 and value(theta + size * step) < now:
            size *= 0.5
        theta = theta + size * step
        before, now = now, value(theta)
        if now - before < 1e-10 * (1.0 + abs(now)):
            break
    return now, theta, hessian
