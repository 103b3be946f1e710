"""Masks of the word problems' two expressions over SmolLM2's tokens; no model is run.

Run `python tests/benchmarks/bench_constraints.py [--texts 1000]`.

The texts are what particles would write: random matches of each expression, in SmolLM2's own
tokens and, every third one, byte by byte. Every text is walked from the start, and the mask is
asked for before each token, as the token loop does. "new" is a state that no text reached before.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import Any

from transformers import AutoTokenizer

from lmppl.constraints import Constraint, vocabulary_of
from lmppl.lm.smollm2 import locate
from lmppl.lm.tokenizer import HFTokenizer

THOUGHT = r" \d+(, \d+)*"
FORMULA = r" [0-9+\-*/ ().]{1,24}"


class Words:
    """As much of a language model as masks need."""

    def __init__(self, tokenizer: HFTokenizer) -> None:
        """Its tokens."""
        self.vocab_size = tokenizer.width
        self.token_bytes = tokenizer.token_bytes
        self.eos_ids = tokenizer.eos_ids


def texts(kind: str, count: int) -> list[str]:
    """Random matches, newline included."""
    rng = random.Random(0)
    found = []
    for _ in range(count):
        numbers = [str(rng.randint(1, 300)) for _ in range(rng.randint(2, 4))]
        if kind == "thought":
            found.append(f" {', '.join(numbers)}\n")
        else:
            signs = [rng.choice("+-*/") for _ in numbers[1:]]
            rest = "".join(f" {s} {n}" for s, n in zip(signs, numbers[1:], strict=True))
            found.append(f" {numbers[0]}{rest}\n")
    return found


def main() -> None:
    """Print one line per expression."""
    options = argparse.ArgumentParser()
    options.add_argument("--texts", type=int, default=1000)
    count = options.parse_args().texts
    fast: Any = AutoTokenizer.from_pretrained(locate().path)
    tokenizer = HFTokenizer(fast, len(fast))
    lm: Any = Words(tokenizer)
    alone = {tokenizer.token_bytes(i): i for i in range(tokenizer.width)}
    began = time.perf_counter()
    vocabulary_of(lm)
    print(f"vocabulary of {lm.vocab_size:,} tokens: {time.perf_counter() - began:.2f} s")
    for kind, regex in (("thought", THOUGHT), ("formula", FORMULA)):
        walks = [
            [alone[bytes([b])] for b in text.encode()] if n % 3 == 2 else tokenizer.encode(text)
            for n, text in enumerate(texts(kind, count))
        ]
        constraint = Constraint(lm, regex, ("\n",))
        fresh: list[float] = []
        seen = 0.0
        steps = 0
        known: set[bytes] = set()
        for walk in walks:
            state = constraint.start()
            for token in walk:
                new = state.consumed not in known
                known.add(state.consumed)
                began = time.perf_counter()
                allowed = state.mask[token]
                state = state.advance(token) if allowed else state
                spent = time.perf_counter() - began
                if not allowed:
                    raise SystemExit(f"{tokenizer.token_bytes(token)!r} is not allowed")
                steps += 1
                if new:
                    fresh.append(spent)
                else:
                    seen += spent
        if not state.accepting:
            raise SystemExit("a text did not match")
        total = sum(fresh) + seen
        print(
            f"{kind}: {steps:,} steps, {total:.3f} s, {1e6 * total / steps:.0f} µs a step; "
            f"{len(fresh):,} new states, median {1e6 * statistics.median(fresh):.0f} µs, "
            f"slowest {1e3 * max(fresh):.1f} ms"
        )


if __name__ == "__main__":
    main()
