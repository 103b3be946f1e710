"""Numbers beside strings: NumPyro distributions at the sites of a language-model program.

A language model says what kind of day it was, the day has a temperature, a thermometer shows it
with an error. The numeric sites are NumPyro distributions, taken as they are. All is conjugate, so
the posterior is known:

    day ~ p(token),   t | day ~ Normal(m_day, s),   reading | t ~ Normal(t, e)
    P(day | reading) ∝ p(day) Normal(reading; m_day, √(s² + e²))
    E[t | day, reading] = m_day + s² / (s² + e²) (reading - m_day)

Reference: Phan, Pradhan and Jankowiak, Composable effects for flexible and accelerated
probabilistic programming in NumPyro (2019); Goodman and Stuhlmüller, The design and implementation
of probabilistic programming languages (2014).
"""

from __future__ import annotations

import math

from lmppl import LM, observe, program, sample
from lmppl.inference import Importance, infer
from lmppl.lm.table import TableLM

NEEDS = ("jax", "numpyro")
MODEL = TableLM([" sunny", " rainy"], {(): [0.6, 0.4]})
MEAN = {" sunny": 24.0, " rainy": 15.0}
SPREAD, ERROR = 4.0, 2.0


@program
def weather(reading: float) -> tuple[str, float]:
    from numpyro.distributions import Normal

    day = str(sample("day", LM("Today it is", max_tokens=1)))
    temperature: float = sample("temperature", Normal(MEAN[day], SPREAD))
    observe("thermometer", Normal(temperature, ERROR), reading)
    return day, temperature


def by_hand(reading: float) -> tuple[float, float, float]:
    """log Z, P(rainy | reading), E[temperature | reading]."""
    variance = SPREAD**2 + ERROR**2
    prior = {" sunny": 0.6, " rainy": 0.4}
    joint = {
        day: p
        * math.exp(-((reading - MEAN[day]) ** 2) / (2 * variance))
        / math.sqrt(2 * math.pi * variance)
        for day, p in prior.items()
    }
    z = sum(joint.values())
    gain = SPREAD**2 / variance
    mean = sum(p / z * (MEAN[day] + gain * (reading - MEAN[day])) for day, p in joint.items())
    return math.log(z), joint[" rainy"] / z, mean


def main(particles: int = 1000, reading: float = 18.0) -> None:
    log_z, rainy, mean = by_hand(reading)
    posterior = infer(weather, reading, engine=Importance(particles), lm=MODEL, seed=0)
    p = posterior.marginal(lambda t: str(t["day"]))
    t = posterior.expectation("temperature")
    print(f"{'':22}{'by hand':>9}{'sampled':>9}{'se':>8}")
    rows = [
        ("log evidence", log_z, posterior.log_evidence, posterior.log_evidence_se),
        ("P(rainy | reading)", rainy, p[" rainy"], p.se[" rainy"]),
        ("E[temperature | …]", mean, t.value, t.se),
    ]
    for name, exact, found, se in rows:
        print(f"{name:22}{exact:9.4f}{found:9.4f}{se:8.4f}")
        assert abs(found - exact) < 4.5 * se  # 7e-6 false alarms each, and the seed is fixed


if __name__ == "__main__":
    main()
