"""Particles against search, and how both read a reward model: accuracy as the budget grows.

A chain of ten steps. A step slips with a probability that depends on the problem, and a slip cannot
be taken back: it leads to one of five wrong answers. There are many ways to write a right step, and
at one step in ten the likeliest wording is a slip, so greedy decoding fails too. A process reward
model gives the probability that the last step is right. Its noise belongs to the text and stays: the
same chain has the same score whenever it is asked for, and a chain keeps most of its error.

Every engine may draw N chains' worth of steps. Two rewards of the same noise:

* good: +2 nats for a right step, -2 for a slip;
* overrating: besides, one slip in ten is taken for very good, and so is all that follows from it.

With the good one, a filter (or a beam) of 4 does what best-of-N does with 16 to 64: the 4 to 16
times of the literature. With the overrating one, what maximises (best-of-N, beam, DVTS) or sharpens (odds) finds
the overrated chains, and finds them more surely the larger N is; a filter by probabilities with a
weighted vote goes on rising, because many right chains outweigh a few overrated ones.

References: Puri et al., A probabilistic inference approach to inference-time scaling of language
models using particle-based Monte Carlo methods (2025); Beeching, Tunstall and Rush, Scaling
test-time compute with open models (2024), for DVTS; Andrieu, Doucet and Holenstein (2010).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from statistics import NormalDist

from lmppl import Categorical, Reward, potentials, program, sample
from lmppl.inference import DVTS, SMC, Beam, Forward, Greedy, Guide, ParticleGibbs, infer
from lmppl.inference.questions.compare import wilson
from lmppl.inference.results.decisions import argmax, decide
from lmppl.potentials import Factor, Value
from lmppl.random import fold, hash_text, uniform
from lmppl.trace import Trace

NEEDS = "matplotlib"
SLOW = True

STEPS = 10
RIGHT, SLIPS = "abcdefgh", "ABCDEFGH"
"""Wordings of a right step, and of a slip; after a slip, any capital."""
ANSWERS = 5
BUDGETS = (4, 16, 64)
GOOD, OVERRATED, SHARE = 2.0, 2.5, 0.1
"""Logits of a right step and of an overrated slip, and how many slips are overrated."""
NOISE, KEPT = 0.7, 0.7
"""Standard deviation of the noise of a score, and how much of it the next step inherits."""

Accuracy = dict[str, dict[int, list[bool]]]


def chance(*of: int | str) -> float:
    """A number in (0, 1) that belongs to its arguments."""
    return uniform(fold(0, *of))


# -- the chain --------------------------------------------------------------------------------------


def slip(problem: int) -> float:
    """The probability of a slip: 0.1 on easy problems, 0.2 on hard ones."""
    return (0.1, 0.125, 0.15, 0.175, 0.2)[problem % 5]


@cache
def law(problem: int, step: int, slipped: bool) -> Categorical:
    """How the language model words a step."""
    if slipped:
        return Categorical(dict.fromkeys(SLIPS, 1 / len(SLIPS)))
    e = slip(problem)
    wording = dict.fromkeys(RIGHT, (1 - e) / len(RIGHT))
    if chance("tempting", problem, step) < 0.1:
        return Categorical({**wording, "A": e})
    return Categorical({**wording, **dict.fromkeys(SLIPS, e / len(SLIPS))})


@program
def solve(problem: int) -> str:
    text = ""
    for step in range(STEPS):
        text += sample("step", law(problem, step, not text.islower() and text != ""))
    return answer(problem, text)


def answer(problem: int, text: str) -> str:
    """Where a chain leads: its first slip decides."""
    first = text[: first_slip(text) + 1]
    return "right" if first == text and text.islower() else wrong(problem, first)


def first_slip(text: str) -> int:
    return next((i for i, c in enumerate(text) if c.isupper()), len(text))


def wrong(problem: int, chain: str) -> str:
    return f"wrong {int(chance('wrong', problem, len(chain), chain[-1]) * ANSWERS)}"


# -- the reward model -------------------------------------------------------------------------------


@cache
def noise(problem: int, text: str) -> float:
    """An autoregression along the chain, keyed by its text."""
    if not text:
        return 0.0
    fresh = NormalDist().inv_cdf(chance("noise", problem, hash_text(text)))
    if len(text) == 1:
        return fresh
    return KEPT * noise(problem, text[:-1]) + math.sqrt(1 - KEPT**2) * fresh


def score(overrating: bool, problem: int, text: str) -> float:
    """The probability that the last step of the chain is right, as the reward model sees it."""
    logit = GOOD
    if not text.islower():
        first = text[: first_slip(text) + 1]
        fooled = overrating and chance("fooled", problem, hash_text(first)) < SHARE
        logit = OVERRATED if fooled else -GOOD
    return 1 / (1 + math.exp(-logit - NOISE * noise(problem, text)))


# -- the engines ------------------------------------------------------------------------------------


def filtered(link: str) -> Callable[..., str]:
    """A particle filter over the target with this link, and its weighted vote."""

    def method(problem: int, prm: Reward, n: int, seed: int) -> str:
        rewarded = potentials.apply(solve, Factor(prm, at="step", link=link))
        engine = SMC(n, resample_at="factor", always=True)
        return str(decide(infer(rewarded, problem, engine=engine, seed=seed)).answer)

    return method


def gibbs(problem: int, prm: Reward, n: int, seed: int) -> str:
    """√N sweeps of √N particles, which draw N chains: one path is kept from sweep to sweep."""
    rewarded = potentials.apply(solve, Factor(prm, at="step", link="probability"))
    engine = ParticleGibbs(math.isqrt(n), sweeps=math.isqrt(n), resample_at="factor")
    return str(decide(infer(rewarded, problem, engine=engine, seed=seed)).answer)


def searched(kind: type[Beam], problem: int, prm: Reward, n: int, seed: int) -> str:
    """N / 4 nodes with 4 children each; the reward model alone ranks."""
    guide = Guide.value(Value(prm, at="step", link="probability"))
    width = n // 4
    groups = width if kind is DVTS else 1
    engine = kind(width, expand=4, groups=groups, rank="guide", children="sample", guide=guide)
    return str(infer(solve, problem, engine=engine, seed=seed).best)  # type: ignore[attr-defined]


def sampled(by: str, problem: int, prm: Reward, n: int, seed: int) -> str:
    """N independent chains; then the best score, or the most frequent answer."""
    chains = infer(solve, problem, engine=Forward(n), seed=seed)
    if by == "majority":
        return str(decide(chains, "majority", seed=seed).answer)
    return str(argmax(chains, score=lambda t: prm(text_of(t)), seed=seed).answer)


def text_of(trace: Trace) -> str:
    return "".join(map(str, trace.values()))


def greedy(problem: int, prm: Reward, n: int, seed: int) -> str:
    return str(infer(solve, problem, engine=Greedy()).marginal().best)


METHODS: dict[str, Callable[..., str]] = {
    "greedy": greedy,
    "majority": partial(sampled, "majority"),
    "best of N": partial(sampled, "best"),
    "DVTS": partial(searched, DVTS),
    "beam": partial(searched, Beam),
    "filter, odds": filtered("odds"),
    "filter, probability": filtered("probability"),
    "particle Gibbs": gibbs,
}


def accuracy(
    overrating: bool,
    problems: int,
    budgets: tuple[int, ...] = BUDGETS,
    methods: tuple[str, ...] = tuple(METHODS),
    first: int = 0,
) -> Accuracy:
    """Which problems each method solves, by budget."""
    found: Accuracy = {name: {n: [] for n in budgets} for name in methods}
    for problem in range(first, first + problems):
        prm = Reward.of(partial(score, overrating, problem), name="prm")
        for name in methods:
            for n in budgets:
                if name == "greedy" and n != budgets[0]:  # it has no budget
                    found[name][n].append(found[name][budgets[0]][-1])
                else:
                    got = METHODS[name](problem, prm, n, fold(0, "run", problem, n))
                    found[name][n].append(got == "right")
    return found


def share(right: list[bool]) -> float:
    return sum(right) / len(right)


def plot(found: dict[str, Accuracy], path: Path) -> None:
    """One panel for each reward, with 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(11, 4.6), sharey=True, squeeze=False)
    for axes, (title, methods) in zip(panels[0], found.items(), strict=True):
        for i, (name, by_budget) in enumerate(methods.items()):
            # apart by a few per cent, or intervals would hide each other
            at = [n * 1.06 ** (i - (len(methods) - 1) / 2) for n in by_budget]
            middle = [share(right) for right in by_budget.values()]
            bars = [wilson(sum(right), len(right)) for right in by_budget.values()]
            low = [m - b.low for m, b in zip(middle, bars, strict=True)]
            high = [b.high - m for m, b in zip(middle, bars, strict=True)]
            style = "o:" if name == "greedy" else "s--" if "filter" not in name else "o-"
            axes.errorbar(
                at, middle, yerr=[low, high], fmt=style, color=f"C{i}", label=name, capsize=2,
                markersize=5, linewidth=1.6, elinewidth=0.8,
            )  # fmt: skip
        budgets = list(next(iter(methods.values())))
        axes.set_xscale("log", base=2)
        axes.set_xticks(budgets, [str(n) for n in budgets])
        axes.minorticks_off()
        axes.set(title=title, xlabel="budget N, in chains", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("share of problems solved")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center right", frameon=False)
    figure.tight_layout(rect=(0, 0, 0.83, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(problems: int = 15, png: str = "particle_scaling.png") -> None:
    found = {
        f"{kind} reward": accuracy(kind == "overrating", problems)
        for kind in ("good", "overrating")
    }
    p: dict[str, dict[str, list[float]]] = {}
    for title, methods in found.items():
        print(f"{title:22}" + "".join(f" N = {n:<10}" for n in BUDGETS))
        for name, by_budget in methods.items():
            p.setdefault(title, {})[name] = [share(right) for right in by_budget.values()]
            cells = [(share(r), wilson(sum(r), len(r))) for r in by_budget.values()]
            print(f"  {name:20}" + "".join(f" {m:.2f} {b.low:.2f}-{b.high:.2f}" for m, b in cells))
    plot(found, Path(png))
    print(f"picture: {png}")

    good, bad = p["good reward"], p["overrating reward"]
    assert good["majority"][0] < good["best of N"][0] < good["filter, probability"][0]
    assert good["filter, probability"][0] >= good["best of N"][1]  # with a quarter of the chains
    for name in ("beam", "DVTS", "filter, odds"):
        assert bad[name][2] < bad[name][0] - 0.2, f"{name} did not fall"
    assert bad["filter, probability"][2] >= bad["filter, probability"][0]
    assert bad["filter, probability"][2] > bad["filter, odds"][2] + 0.3


if __name__ == "__main__":
    main()
