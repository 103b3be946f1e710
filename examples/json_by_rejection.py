"""JSON under a schema and a check of your own, drawn by rejection: the posterior, not the mask.

A model writes a record. The schema is a grammar; that the two numbers add up to ten is a Python
function, which no grammar holds, and which is asked only about tokens that were drawn. The right law
is the model's own, given both,

    P(x | valid) = p(x) 1(schema) 1(sum is ten) / Z .

Masks alone follow the model's first choice and repair the second number. `AWRS` draws a token,
rejects it if it is impossible, and pays for that by an unbiased estimate of the allowed mass; its
posterior and its evidence are those of the exact sum.

Reference: Lipkin et al., Fast controlled generation from language models with adaptive weighted
rejection sampling (2025); Loula et al., Syntactic and semantic control of large language models via
sequential Monte Carlo (2025).
"""

from __future__ import annotations

import json
import math
import re

from lmppl import LM, program, sample
from lmppl.inference import SMC, Engine, Enumerate, Forward, infer, tokens
from lmppl.lm.table import TableLM
from lmppl.token_potentials import AWRS, OnText

DIGITS = "23578"
WORDS = ["[", *DIGITS, ", ", "]", "<eos>"]
OPEN, COMMA, CLOSE = 0, 6, 7
AFTER = {"2": 0.05, "3": 0.10, "5": 0.15, "7": 0.30, "8": 0.40}
"""What the model likes as a first number; the second one depends on it."""


def model() -> TableLM:
    """Writes a list of two digits; after 8 it seldom writes 2."""
    numbers = [AFTER[d] for d in DIGITS]
    table: dict[tuple[int, ...], list[float]] = {
        (): [1, 0, 0, 0, 0, 0, 0, 0, 0],
        (OPEN,): [0, *numbers, 0, 0, 0],
        (CLOSE,): [0, 0, 0, 0, 0, 0, 0, 0, 1],
        (COMMA,): [0, 0.2, 0.2, 0.2, 0.2, 0.2, 0, 0, 0],
    }
    second = {"8": [0.02, 0.18, 0.2, 0.3, 0.3], "5": [0.1, 0.1, 0.6, 0.1, 0.1]}
    for n, digit in enumerate(DIGITS, 1):
        table[OPEN, n] = [0, 0, 0, 0, 0, 0, 1, 0, 0]
        table[COMMA, n] = [0, 0, 0, 0, 0, 0, 0, 1, 0]
        table[n, COMMA] = [0, *second.get(digit, [0.2] * 5), 0, 0, 0]
    return TableLM(WORDS, table, order=2)


MODEL = model()
SCHEMA = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}


def adds_up(text: str) -> bool:
    """Whether the numbers of a finished list add up to ten."""
    try:
        return bool(sum(json.loads(text)) == 10)
    except ValueError:
        return False


def can_add_up(text: str) -> bool:
    """False once two numbers are there and miss ten: a third digit would only make more of it."""
    numbers = re.findall(r"\d+", text)
    return len(numbers) < 2 or sum(map(int, numbers)) == 10


@program
def record() -> str:
    law = LM(
        "", json_schema=SCHEMA, potential=OnText(adds_up, can_add_up), sampler=AWRS(), max_tokens=6
    )
    return str(sample("record", law))


def main(particles: int = 1000) -> None:
    first = dict(zip(DIGITS, (AFTER[d] for d in DIGITS), strict=True))
    second = {"8": 0.02, "7": 0.2, "5": 0.6, "3": 0.2, "2": 0.2}
    exact = {f"[{d}, {10 - int(d)}]": first[d] * second[d] for d in DIGITS}
    z = sum(exact.values())
    engines: list[Engine] = [
        Enumerate(),
        Forward(particles),
        SMC(particles, resample_at=tokens(1, ess=0.7)),
    ]
    print(f"{'':10}" + "".join(f"{x:>9}" for x in exact) + f"{'Z':>9}")
    print(f"{'by hand':10}" + "".join(f"{p / z:9.3f}" for p in exact.values()) + f"{z:9.4f}")
    found = {}
    for engine in engines:
        name = type(engine).__name__
        post = infer(record, engine=engine, lm=MODEL, seed=0, on_dead="return")
        shares = found[name] = post.marginal()
        evidence = math.exp(post.log_evidence)
        row = "".join(f"{shares.get(x, 0.0):9.3f}" for x in exact)
        print(f"{name:10}{row}" + ("" if name == "Forward" else f"{evidence:9.4f}"))
        if name == "Enumerate":
            assert math.isclose(evidence, z, abs_tol=1e-12)
        elif name == "SMC":
            assert abs(evidence - z) < 0.04
            assert all(abs(shares.get(x, 0.0) - p / z) < 0.09 for x, p in exact.items())
    masked = found["Forward"]["[8, 2]"]
    print(
        f"P([8, 2]): {masked:.3f} by masks alone, {exact['[8, 2]'] / z:.3f} is right; Z = {z:.3f}"
    )
    assert masked > 0.3
    assert math.isclose(z, 0.188)


if __name__ == "__main__":
    main()
