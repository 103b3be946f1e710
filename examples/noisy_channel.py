"""The noisy channel: what did the writer mean, given what was typed?

A language model is the prior over sentences, a keyboard with slips is the likelihood, and the
posterior is Bayes' rule,

    P(meant | typed) ∝ p(meant) Π_i p(typed letter i | meant letter i).

Each typed letter is one `observe`. All randomness is in one site, so there is nothing to resample for:
`Importance` draws sentences from the prior and weighs them. The language model decides between words that are equally near
to what was typed: after " the" a " cat" is more likely than a " cot", after " a" it is the reverse.

Reference: Shannon, A mathematical theory of communication (1948); Kernighan, Church and Gale, A
spelling correction program based on a noisy channel model (1990).
"""

from __future__ import annotations

import math

from lmppl import LM, Categorical, factor, observe, plate, program, sample
from lmppl.inference import Enumerate, Importance, infer
from lmppl.lm.table import TableLM

WORDS = [" the", " a", " cat", " cot", " sat", " set", "<eos>"]
MODEL = TableLM(
    WORDS,
    {
        (): [0.6, 0.4, 0, 0, 0, 0, 0],
        (0,): [0, 0, 0.70, 0.30, 0, 0, 0],
        (1,): [0, 0, 0.30, 0.70, 0, 0, 0],
        (2,): [0, 0, 0, 0, 0.90, 0.10, 0],
        (3,): [0, 0, 0, 0, 0.50, 0.50, 0],
        (4,): [0, 0, 0, 0, 0, 0, 1],
        (5,): [0, 0, 0, 0, 0, 0, 1],
    },
)
ALPHABET = " abcdefghijklmnopqrstuvwxyz"
RIGHT = 0.9


def key_press(letter: str) -> Categorical:
    """The letter itself with probability 0.9, any other one with the rest."""
    slip = (1 - RIGHT) / (len(ALPHABET) - 1)
    return Categorical({c: RIGHT if c == letter else slip for c in ALPHABET})


KEYS = {c: key_press(c) for c in ALPHABET}


@program
def correct(typed: str) -> str:
    meant = sample("meant", LM("", max_tokens=4))
    factor("length", len(meant) == len(typed))  # a slip neither adds nor drops a letter
    for letter, key in plate("keys", zip(meant, typed, strict=False)):
        observe("typed", KEYS[letter], key)
    return str(meant)


def by_hand(typed: str) -> dict[str, float]:
    """Prior times likelihood over all sentences, normalised."""
    slip = (1 - RIGHT) / (len(ALPHABET) - 1)
    joint = {
        meant: p * math.prod(RIGHT if a == b else slip for a, b in zip(meant, typed, strict=True))
        for meant, p in MODEL.enumerate(max_tokens=4).items()
        if len(meant) == len(typed)
    }
    return {meant: p / sum(joint.values()) for meant, p in joint.items()}


def main(particles: int = 1000) -> None:
    for typed in (" the cxt sat", " a cxt sxt"):
        truth = by_hand(typed)
        exact = infer(correct, typed, engine=Enumerate(), lm=MODEL)
        guess = infer(correct, typed, engine=Importance(particles), lm=MODEL, seed=0).marginal()
        print(f"typed {typed!r}\n  {'meant':14} {'by hand':>8} {'exact':>8} {'sampled':>17}")
        for meant, p in exact.marginal().items():
            found, se = guess.get(meant, 0.0), guess.se.get(meant, 0.0)
            print(f"  {meant!r:14} {truth[meant]:8.4f} {p:8.4f} {found:8.4f} ± {se:.4f}")
            assert math.isclose(p, truth[meant], abs_tol=1e-12)
            assert abs(found - p) < 4.5 * se + 0.01
        if typed == " the cxt sat":
            assert exact.map().result == " the cat sat"


if __name__ == "__main__":
    main()
