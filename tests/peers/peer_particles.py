"""its-hub 1.2.0 and ours on toys whose answers are known: particle filters and particle Gibbs.

A: two uniform binary steps; reward .6 after a, .8 after a a, else .5; weight odds(r) at every step.
B: x# at once, or a, a, a, a, y#; reward .75 for x#, the first a and y#, else .5; odds at every step.
C: a or b, then c, c, d#; the reward is a score of the prefix, so it counts once: P(a) = 4/7.

Run by `make peers`, outside of the default suite. Shares over many runs, with standard errors.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from its_hub import AbstractLanguageModel, AbstractProcessRewardModel
from its_hub.core.algorithms.particle_gibbs import ParticleFiltering, ParticleGibbs
from its_hub.core.lms.step_generation import StepGeneration

from lmppl import Delta, Uniform, potentials, program, sample
from lmppl.inference import SMC, infer
from lmppl.inference import ParticleGibbs as OurParticleGibbs
from lmppl.potentials import Factor, Prefix

STEP_C = {"a": 0.8, "b": 0.6, "c": 0.9, "d#": 0.9}


def reward_a(steps: list[str]) -> float:
    return {("a",): 0.6, ("a", "a#"): 0.8}.get(tuple(steps), 0.5)


def reward_b(steps: list[str]) -> float:
    return 0.75 if steps in (["x#"], ["a"]) or steps[-1] == "y#" else 0.5


def reward_c(steps: list[str]) -> float:
    return math.prod(STEP_C[s] for s in steps)


def next_a(steps: list[str]) -> str:
    return random.choice(["a", "b"] if not steps else ["a#", "b#"])


def next_b(steps: list[str]) -> str:
    if not steps:
        return random.choice(["x#", "a"])
    return "a" if len(steps) < 4 else "y#"


def next_c(steps: list[str]) -> str:
    if not steps:
        return random.choice(["a", "b"])
    return ["c", "c", "d#"][len(steps) - 1]


class Model(AbstractLanguageModel):  # type: ignore[misc]
    """A language model of one toy."""

    def __init__(self, step: Callable[[list[str]], str]) -> None:
        self.step = step

    async def agenerate(self, batch: Any, stop: Any = None, **_: Any) -> Any:
        return [{"role": "assistant", "content": self._one(messages)} for messages in batch]

    async def agenerate_single(self, messages: Any, stop: Any = None, **_: Any) -> Any:
        return {"role": "assistant", "content": self._one(messages)}

    def generate(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    async def aevaluate(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def evaluate(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def _one(self, messages: Any) -> str:
        last = messages[-1]
        said = last.content if last.role == "assistant" else ""
        return self.step(split(said))


def split(text: str) -> list[str]:
    return [part for part in text.split("|") if part]


class Reward(AbstractProcessRewardModel):  # type: ignore[misc]
    """Its reward model."""

    def __init__(self, reward: Callable[[list[str]], float]) -> None:
        self.reward = reward

    async def ascore(self, prompt: Any, answers: Any, **_: Any) -> Any:
        return self.score(prompt, answers)

    def score(self, prompt: Any, answers: Any, **_: Any) -> Any:
        if isinstance(answers, str):
            return self.reward(split(answers))
        return [self.reward(split(text)) for text in answers]


def theirs(step: Any, reward: Any, wanted: Callable[[str], bool], n: int, runs: int) -> float:
    """The share of runs of the filter whose selected response is wanted."""
    hits = 0
    for _ in range(runs):
        steps = StepGeneration(max_steps=10, step_token="|", stop_token="#")
        engine = ParticleFiltering(steps, Reward(reward), final_response_selection="sample")
        out = asyncio.run(engine.ainfer(Model(step), "q", budget=n, return_response_only=False))
        hits += wanted(out.responses[out.selected_index]["content"])
    return hits / runs


def their_gibbs(
    step: Any, reward: Any, wanted: Callable[[str], bool], n: int, sweeps: int
) -> float:
    """The share of sweeps of one chain whose reference is wanted."""
    steps = StepGeneration(max_steps=10, step_token="|", stop_token="#")
    engine = ParticleGibbs(steps, Reward(reward), num_iterations=sweeps)
    out = asyncio.run(
        engine.ainfer(Model(step), "q", budget=n * sweeps, return_response_only=False)
    )
    found = [
        wanted(responses[refs[0]]["content"])
        for responses, refs in zip(out.responses_lst, out.ref_indices_lst, strict=True)
        if refs
    ]
    return float(np.mean(found))


@program
def toy_a() -> str:
    return str(sample("step", Uniform(["a", "b"]))) + str(sample("step", Uniform(["a#", "b#"])))


@program
def toy_b() -> str:
    if sample("step", Uniform(["x#", "a"])) == "x#":
        return "x#"
    for text in ("a", "a", "a", "y#"):
        sample("step", Delta(text))
    return "y#"


@program
def toy_c() -> str:
    first = sample("step", Uniform(["a", "b"]))
    for text in ("c", "c", "d#"):
        sample("step", Delta(text))
    return str(first)


def ours(fn: Any, value: str, n: int, runs: int) -> float:
    """P(value), each run weighted by its evidence: unbiased for every N."""
    total = weight = 0.0
    for seed in range(runs):
        post = infer(fn, engine=SMC(n, resample_at="factor"), seed=seed)
        z = math.exp(post.log_evidence)
        weight += z
        total += z * post.marginal().get(value, 0.0)
    return total / weight


def main(runs: int = 400, particles: int = 16) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    random.seed(0)
    np.random.seed(0)
    a = potentials.apply(toy_a, Factor(lambda s: reward_a(list(s)), link="odds", of="steps"))
    b = potentials.apply(toy_b, Factor(lambda s: reward_b(list(s)), link="odds", of="steps"))
    c = potentials.apply(toy_c, Prefix(lambda s: reward_c(list(s)), link="ratio", of="steps"))
    print(
        f"{'':34}{'exact':>8}{'its-hub':>9}{'lmppl':>8}   N = {particles}, {runs} runs, SE of a share ≤ 0.025"
    )
    rows = [
        (
            "A, filter, P(a a#)",
            12 / 19,
            next_a,
            reward_a,
            lambda t: split(t) == ["a", "a#"],
            a,
            "aa#",
        ),
        ("B, filter, P(x#)", 0.25, next_b, reward_b, lambda t: split(t) == ["x#"], b, "x#"),
        (
            "C, filter, prefix score, P(a)",
            4 / 7,
            next_c,
            reward_c,
            lambda t: split(t)[0] == "a",
            c,
            "a",
        ),
    ]
    for name, exact, step, reward, wanted, fn, value in rows:
        their = theirs(step, reward, wanted, particles, runs)
        print(f"{name:34}{exact:8.3f}{their:9.3f}{ours(fn, value, particles, runs):8.3f}")
    for n in (2, 4, 16):
        their = their_gibbs(next_a, reward_a, lambda t: split(t) == ["a", "a#"], n, 4 * runs)
        post = infer(a, engine=OurParticleGibbs(particles=n, sweeps=4 * runs), seed=n)
        print(
            f"{f'A, particle Gibbs, N = {n}':34}{12 / 19:8.3f}{their:9.3f}{post.marginal()['aa#']:8.3f}"
        )


if __name__ == "__main__":
    main()
