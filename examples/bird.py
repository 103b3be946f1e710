"""BIRD: a decision's probability from coarse labels of its factors, better than asking for it.

Someone who knows how likely an outcome is answers in seven words, "very unlikely" to "very likely",
and not the same ones each time. Asked about the question at hand, that is all there is. Asked about
128 complete settings of five factors, the words become likelihoods of the factors' weights, noise
averages out, and factors that the question leaves open are averaged over. Someone who leans to high
words does so whatever is asked: half of the questions are about the other outcome, which tells.

The decision is then a Bayesian network; it is answered by elimination, by enumeration of its
program, by Pyro with enumerated sites and by NumPyro's density, and all agree.

Reference: Feng, Zhou, Liu, Huang and Roth, BIRD: a trustworthy Bayesian inference framework for
large language models (2024).
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from lmppl.graphs.bayes_nets.bird import Fitted, both_ways, fit, instances
from lmppl.graphs.bayes_nets.labels import LEVELS

NEEDS = ("jax", "numpyro", "pyro")

FACTORS = {
    "weather": ["dry", "drizzle", "storm"],
    "distance": ["near", "middling", "far"],
    "load": ["none", "a bag", "a crate"],
    "hurry": ["none", "some", "great"],
    "bicycle": ["new", "old", "rusty"],
}
WORDS = np.array(list(LEVELS.values()))


class Rider:
    """Knows P(bicycle | all five factors), and answers coarsely; may lean to high words."""

    def __init__(self, seed: int, lean: float = 0.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.lean = lean
        self.weights = self.rng.normal(0.0, 1.2, (5, 3))

    def truth(self, context: dict[str, str]) -> float:
        """What is left open is equally likely."""
        open_ = [[context[f]] if f in context else v for f, v in FACTORS.items()]
        sums = [
            sum(
                self.weights[j, FACTORS[f].index(v)]
                for j, (f, v) in enumerate(zip(FACTORS, x, strict=True))
            )
            for x in itertools.product(*open_)
        ]
        return float(np.mean([1.0 / (1.0 + math.exp(-s)) for s in sums]))

    def says(self, context: dict[str, str], bus: bool = False) -> str:
        """How likely the bicycle is, or the bus."""
        p = 1.0 - self.truth(context) if bus else self.truth(context)
        logit = math.log(p / (1.0 - p)) + self.rng.normal() + self.lean
        heard = 1.0 / (1.0 + math.exp(-logit))
        return list(LEVELS)[int(np.argmin(np.abs(WORDS - heard)))]


def learn(rider: Rider, labels: int, both: bool = True) -> Fitted:
    asked = instances(FACTORS, labels, seed=0)
    bus = both_ways(len(asked)) if both else [False] * len(asked)
    words = [rider.says(x, b) for x, b in zip(asked, bus, strict=True)]
    return fit(FACTORS, asked, words, second=bus)


def four_answers(fitted: Fitted, given: dict[str, str]) -> dict[str, float]:
    """P(bicycle | given) by four systems."""
    from lmppl.graphs.bayes_nets.numpyro_net import numpyro_marginals
    from lmppl.graphs.bayes_nets.pyro_net import pyro_marginals
    from lmppl.inference import Enumerate, infer

    net = fitted.network(("bicycle", "bus"))
    listed = infer(net.program(), engine=Enumerate(), observations=given)
    return {
        "elimination": net.query("outcome", given)["bicycle"],
        "enumeration": listed.marginal("outcome")["bicycle"],
        "Pyro": pyro_marginals(net, given)["outcome"]["bicycle"],
        "NumPyro": float(numpyro_marginals(net, given)["outcome"]["bicycle"]),
    }


def main(riders: int = 3, questions: int = 20) -> None:
    print("labels   error asked directly   error of BIRD   lower by")
    for labels in (16, 32, 64, 128):
        errors = []
        for seed in range(riders):
            rider = Rider(seed)
            fitted = learn(rider, labels)
            for _ in range(questions):
                picks = rider.rng.permutation(5)[:2]
                names = list(FACTORS)
                given = {names[j]: str(rider.rng.choice(FACTORS[names[j]])) for j in picks}
                p = rider.truth(given)
                errors.append(
                    (abs(LEVELS[rider.says(given)] - p), abs(fitted.answer(given).value - p))
                )
        direct, ours = np.mean(errors, axis=0)
        print(f"{labels:6d} {direct:22.4f} {ours:15.4f} {1 - ours / direct:10.0%}")

    rider = Rider(1, lean=0.8)
    one_way, fitted = learn(rider, 128, both=False), learn(rider, 128)
    given = {"weather": "storm", "hurry": "great"}
    answer = fitted.answer(given)
    print(f"\nA rider who leans to high words by {rider.lean}, found: {fitted.lean:.2f}")
    print(f"P(bicycle | storm, great hurry) = {answer.value:.3f} ± {answer.spread:.3f}")
    print(f"in truth {rider.truth(given):.3f}, asked one way {one_way.answer(given).value:.3f}")
    answers = four_answers(fitted, given)
    print("\n".join(f"  {system:12} {p:.12f}" for system, p in answers.items()))

    assert ours < 0.7 * direct  # at least 30 % lower, as in the paper
    assert abs(fitted.lean - rider.lean) < 0.5
    assert all(abs(p - answer.value) < 1e-10 for p in answers.values())


if __name__ == "__main__":
    main()
