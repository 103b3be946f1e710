"""A dialogue pinned at its goal: how did they come to shake hands on 90?

A toy model writes what a seller and a buyer say in turn, each utterance a few tokens after the one
before. They begin at 50 and mostly stay low; we condition on the eighth utterance being " 90." and
ask what was said between. Such dialogues are rare, and the goal is eight texts away.

Guidance between the steps and inside them is one object. Plain runs of the program give tables of
how utterances follow each other, by an abstraction: the last price that was named. Messages go back
from the goal through these tables. At each step the message is

* the terminal weight of a filter over the *tokens* of the utterance (`string_potential`), and
* what the finished utterance counts until the next one begins (`step_guide`).

Every weight is exact whatever the tables are, so the evidence is that of the model: a sum over all
dialogues, which the toy allows by multiplying matrices.

Reference: van der Meulen and Schauer, Automatic backward filtering forward guiding for Markov
processes and graphical models (2020).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lmppl import LM, factor, program, sample
from lmppl.inference import SMC, Forward, Importance, infer, tokens
from lmppl.lm.table import TableLM

NEEDS = "jax"
SLOW = True
PRICES = [" 50", " 60", " 70", " 80", " 90"]
WORDS = [*PRICES, " no,", ".", "<eos>"]
NO, STOP = 5, 6
TURNS, START, GOAL = 8, " 50", " 90"
LONGEST = 4
"""Tokens of an utterance: " no, 60 70." is one."""


def near(price: int, stay: float) -> list[float]:
    """The next price: mostly this one, sometimes one step up or down, a little more often down."""
    w = [stay if q == price else 0.1 if q == price + 1 else 0.15 if q == price - 1 else 0.0
         for q in range(5)]  # fmt: skip
    return [x / sum(w) for x in w]


def model() -> TableLM:
    """The next token given the last two: an utterance answers the price before it."""
    rows: dict[tuple[int, ...], list[float]] = {(): [1.0, 0, 0, 0, 0, 0, 0, 0]}
    for p in range(5):
        answer = [*(0.8 * x for x in near(p, 0.6)), 0.2, 0.0, 0.0]
        rows[p, STOP] = answer  # a new utterance, after one that ended in price p
        rows[STOP, p] = rows[p, p] = [*(0.2 * x for x in near(p, 0.1)), 0.0, 0.8, 0.0]
        rows[p, NO] = [*near(max(p - 1, 0), 0.5), 0.0, 0.0, 0.0]  # "no" to p: lower
        for q in range(5):
            if q != p:
                rows[p, q] = [0.0] * 6 + [1.0, 0.0]  # a second price ends it
        rows[NO, p] = [*(0.1 * x for x in near(p, 0.0)), 0.0, 0.9, 0.0]
    rows[STOP, NO] = [*near(0, 0.5), 0.0, 0.0, 0.0]
    return TableLM(WORDS, rows, order=2, name="bargain")


MODEL = model()


def price(said: str) -> str:
    """The abstraction: the last price that was named."""
    return max(PRICES, key=lambda p: said.rfind(p))


def dialogue(guides: dict[tuple[int, str], Any] | None = None) -> Any:
    """Eight utterances; the last one must name the goal last."""

    @program
    def talk(pinned: bool = True) -> list[str]:
        said = [START]
        for t in range(TURNS):
            law = LM(said[-1] + ".", stop=".", max_tokens=LONGEST, limit="kill",
                     potential=None if guides is None else guides[t, price(said[-1])])  # fmt: skip
            said.append(str(sample("said", law)))
        if pinned:
            factor("goal", price(said[-1]) == GOAL)
        return said

    return talk


def address(t: int) -> str:
    return "said" if t == 0 else f"said[{t}]"


def reader(table: dict[Any, float]) -> Any:
    return lambda said: table[price(said)]


def utterances(before: str) -> dict[str, float]:
    """P(utterance) after one that ended in this price."""
    context = MODEL.encode(f"{before}.")
    found: dict[str, float] = {}
    waiting: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while waiting:
        ids, p = waiting.pop()
        row = np.exp(MODEL.open([(*context, *ids)]).log_probs()[0])
        for v in np.flatnonzero(row > 0).tolist():
            if v == STOP:
                found[MODEL.decode(ids)] = p * row[v]
            elif len(ids) < LONGEST - 1:
                waiting.append(((*ids, v), p * row[v]))
    return found


def truth() -> tuple[float, Any]:
    """P(goal), and P(last price at turn t | goal) [TURNS + 1, 5], by the chain of prices."""
    K = np.zeros((5, 5))
    for i, before in enumerate(PRICES):
        for said, p in utterances(before).items():
            K[i, PRICES.index(price(said))] += p
    ahead = [np.eye(5)[0]]
    back = [np.eye(5)[4]]
    for _ in range(TURNS):
        ahead.append(ahead[-1] @ K)
        back.append(K @ back[-1])
    z = float(ahead[-1][4])
    return z, np.array([a * b for a, b in zip(ahead, reversed(back), strict=True)]) / z


def guided() -> tuple[Any, Any]:
    """The program with its filters, and the guide between the steps, from 2,000 plain runs."""
    from lmppl.inference import bffg

    runs = infer(dialogue(), False, engine=Forward(2000), lm=MODEL, seed=1, on_dead="return")
    classes = [[price(s) for s in talk] for talk in runs.values() if talk is not None]
    pairs = [p for talk in classes for p in zip(talk, talk[1:], strict=False)]
    worth: list[dict[Any, float]] = [
        {p: float(p == GOAL) for p in PRICES}
    ]  # of the last utterance, then backwards
    for _ in range(TURNS - 1):
        worth.insert(0, bffg.step_message(pairs, worth[0], classes=PRICES, smoothing=0.1))

    def named(state: tuple[str, bool], v: int) -> tuple[str, bool]:
        last, over = state
        return (PRICES[v] if v < 5 and not over else last, over or v in (STOP, 7))

    dfa = bffg.automaton(named, ("", False), len(WORDS))
    guides = {}
    for before in PRICES:  # the surrogate of an utterance belongs to what it answers
        hmm = bffg.distil(MODEL, f"{before}.", length=LONGEST, order=2, strings=500, stop=(".",))
        for t, table in enumerate(worth):
            tau = np.array([over * table.get(last, 0.0) for last, over in dfa.states])
            filter_ = bffg.HMMAutomaton(hmm, dfa, LONGEST, tau)
            guides[t, before] = bffg.string_potential(filter_, rule=False)
    messages = [
        bffg.StepMessage(address(t), address(t + 1), reader(worth[t])) for t in range(TURNS - 1)
    ]
    return dialogue(guides), bffg.step_guide(messages)


def main(particles: int = 100, runs: int = 10) -> None:
    z, path = truth()
    talk, guide = guided()
    print(f'P(" 90." after {TURNS} utterances) = {z:.6f}; {particles} particles, {runs} runs')
    print(f"{'':30}{'mean Ẑ / Z':>11}{'sd Ẑ / Z':>10}{'ESS / N':>9}")
    spread = {}
    for name, program_, engine in (
        ("plain runs", dialogue(), Importance(particles)),
        ("particle filter", dialogue(), SMC(particles)),
        ("messages and token filters", talk, SMC(particles, guide=guide, resample_at=tokens(1))),
    ):
        found = [
            infer(program_, engine=engine, lm=MODEL, seed=s, on_dead="return") for s in range(runs)
        ]
        ratio = np.exp([p.log_evidence for p in found]) / z
        spread[name] = float(ratio.std(ddof=1))
        ess = np.mean([p.ess for p in found]) / particles
        print(f"{name:30}{ratio.mean():11.3f}{spread[name]:10.3f}{ess:9.3f}")
        if name == "messages and token filters":
            # Unbiased: within 5 standard errors, and the path of prices is the exact one
            assert abs(ratio.mean() - 1) < 5 * spread[name] / math.sqrt(runs)
    print("\nmean price     " + " ".join(f"{t:5d}" for t in range(TURNS + 1)))
    values = np.arange(50, 100, 10)
    shown = np.zeros(TURNS + 1)
    for p, r in zip(found, ratio / ratio.sum(), strict=True):
        for said, w in zip(p.values(), p.weights, strict=True):
            if w > 0:
                shown += r * w * np.array([int(price(s)) for s in said])
    print("exact          " + " ".join(f"{x:5.1f}" for x in path @ values))
    print("guided         " + " ".join(f"{x:5.1f}" for x in shown))
    assert np.abs(shown - path @ values).max() < 3.0
    at = int(np.argmax(found[0].weights))
    print("one of them:" + ".".join(found[0].values()[at]) + ".")
    assert spread["messages and token filters"] < 0.3


if __name__ == "__main__":
    main()
