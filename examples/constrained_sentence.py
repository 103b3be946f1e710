"""A sentence that must match a regular expression: masks alone draw from the wrong law.

Forbidding tokens that leave the language keeps every draw valid, but not its probability: a beginning
that is likely and then hard to continue is drawn too often. The right law is the model's own, given
that the sentence matches,

    P(x | x matches) = p(x) 1(x matches) / Z,      Z = P(match),

and the weight of a masked draw is the product of the masses that the masks left. `LM(regex=...)`
keeps this weight; importance sampling and SMC use it, plain masked sampling throws it away.

Reference: Lew et al., Sequential Monte Carlo steering of large language models (2023); Park et al.,
Grammar-aligned decoding (2024); Loula et al., Syntactic and semantic control of large language
models via sequential Monte Carlo (2025).
"""

from __future__ import annotations

import math
import re

from lmppl import LM, program, sample
from lmppl.inference import SMC, Engine, Enumerate, Forward, Importance, infer, tokens
from lmppl.lm.table import TableLM

WORDS = [" the", " a", " cat", " dog", " sat", " ran", ".", "<eos>"]
MODEL = TableLM(
    WORDS,
    {
        (): [0.30, 0.70, 0, 0, 0, 0, 0, 0],
        (0,): [0, 0, 0.60, 0.20, 0.10, 0.10, 0, 0],  # after " the"
        (1,): [0, 0, 0.85, 0.05, 0.05, 0.05, 0, 0],  # after " a": seldom " dog"
        (2,): [0, 0, 0, 0, 0.50, 0.40, 0.10, 0],
        (3,): [0, 0, 0, 0, 0.20, 0.70, 0.10, 0],
        (4,): [0.10, 0.10, 0, 0, 0, 0, 0.80, 0],
        (5,): [0.30, 0.30, 0, 0, 0, 0, 0.40, 0],
        (6,): [0, 0, 0, 0, 0, 0, 0, 1.0],
    },
)
PATTERN = r"( the cat| a dog)( sat| ran)\."


@program
def sentence() -> str:
    return str(sample("sentence", LM("", regex=PATTERN, max_tokens=6)))


def main(particles: int = 1000) -> None:
    everything = MODEL.enumerate(max_tokens=6)
    matching = {x: p for x, p in everything.items() if re.fullmatch(PATTERN, x)}
    z = sum(matching.values())
    truth = {x: p / z for x, p in matching.items()}
    engines: list[Engine] = [
        Enumerate(),
        Forward(particles),
        Importance(particles),
        SMC(particles, resample_at=tokens(1)),
    ]
    print(f"P(match) = {z:.6f}")
    print(f"{'':12}" + "".join(f"{x:>15}" for x in truth) + f"{'Ẑ':>10}")
    print(f"{'by hand':12}" + "".join(f"{p:15.4f}" for p in truth.values()) + f"{z:10.4f}")
    found = {}
    for engine in engines:
        name = type(engine).__name__
        posterior = infer(sentence, engine=engine, lm=MODEL, seed=0)
        found[name] = posterior.marginal()
        shares = "".join(f"{found[name].get(x, 0.0):15.4f}" for x in truth)
        estimate = "" if name == "Forward" else f"{math.exp(posterior.log_evidence):10.4f}"
        print(f"{name:12}{shares}{estimate}")
        if name == "Enumerate":
            assert math.isclose(posterior.log_evidence, math.log(z), abs_tol=1e-12)
            assert all(math.isclose(found[name][x], p, abs_tol=1e-12) for x, p in truth.items())
        elif name != "Forward":
            assert abs(math.exp(posterior.log_evidence) - z) < 0.02
            assert all(abs(found[name].get(x, 0) - p) < 0.06 for x, p in truth.items())
    # The mask alone takes " a dog" 70 times in 100, as often as the model begins with " a".
    masked = sum(p for x, p in found["Forward"].items() if x.startswith(" a"))
    right = sum(p for x, p in truth.items() if x.startswith(" a"))
    print(f"P(a dog …): {masked:.3f} by masks alone, {right:.3f} is right")
    assert masked > 0.6 and right < 0.2


if __name__ == "__main__":
    main()
