"""SmolLM2 in our loop against transformers' `generate`, in one process, in turn.

Run `python tests/benchmarks/bench_torch.py [--threads 2] [--rounds 3] [--rows 64] [--tokens 64]`.

Every way produces rows x tokens tokens from the same prompt at temperature 1 without truncation.
Ours also returns log p and log q of each token. `generate` runs on a second copy of the model that
we have not touched. The floor is what the matrix products of the linear layers alone would take.
Each round times all ways one after the other; ratios are made within a round, then their median is
taken. On a machine whose cores are busy with other work the numbers mean nothing: two threads that
fight for a core slow tiny products a hundred times.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from lmppl import LM, program, sample
from lmppl.inference import SMC, infer, tokens
from lmppl.lm import smollm2
from lmppl.lm.base import TokenLaw
from lmppl.lm.torch import TorchLM
from lmppl.random import GumbelMax, fold_array

PROMPT = "The old lighthouse keeper climbed the stairs one last time. At the top he"
EVERY = 8
"""Tokens between two resamplings."""


@program
def story(count: int) -> str:
    """One string of `count` tokens."""
    return str(sample("story", LM(PROMPT, max_tokens=count)))


def seconds(fn: Callable[[], Any]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    fn()
    return time.perf_counter() - began


def loop(lm: TorchLM, rows: int, count: int, every: int = 0) -> None:
    """Our plain loop; with `every`, close and open at random survivors, as a resampler does."""
    rng = np.random.default_rng(0)
    contexts = [lm.encode(PROMPT)] * rows
    keys = np.arange(rows, dtype=np.uint64)
    laws = [TokenLaw()] * rows
    chance = GumbelMax()
    batch = lm.open(contexts)
    for step in range(count):
        if every and step and step % every == 0:
            batch.close()
            contexts = [contexts[i] for i in rng.integers(0, rows, rows)]
            batch = lm.open(contexts)
        drawn = batch.draw(fold_array(keys, step), laws, None, chance)
        contexts = [c + (t,) for c, t in zip(contexts, drawn.tokens.tolist(), strict=True)]
        batch.push(drawn.tokens)
    batch.close()


def generate(model: Any, ids: tuple[int, ...], rows: int, count: int) -> None:
    """The same number of tokens by transformers."""
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([ids] * rows),
            attention_mask=torch.ones((rows, len(ids)), dtype=torch.long),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            max_new_tokens=count,
            pad_token_id=0,
        )
    if out.shape != (rows, len(ids) + count):
        raise RuntimeError(f"generate stopped early: {tuple(out.shape)}")


def floor(model: Any, rows: int, count: int) -> float:
    """Seconds of `count` steps if the linear layers were everything (the median of 8 steps)."""
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {m.in_features: torch.randn(rows, m.in_features) for m in linear}

    def step() -> None:
        with torch.inference_mode():
            for m in linear:
                torch.nn.functional.linear(inputs[m.in_features], m.weight)

    step()
    return statistics.median(seconds(step) for _ in range(8)) * count


def smc(lm: TorchLM, rows: int, count: int) -> None:
    """The same through the engine: programs, weights, resampling at every 8th token."""
    engine = SMC(particles=rows, resample_at=tokens(EVERY), always=True)
    infer(story, count, engine=engine, lm=lm, seed=0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    for name, default in (("threads", 2), ("rounds", 3), ("rows", 64), ("tokens", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = smollm2.locate()
    lm = TorchLM.load(found.path, name="smollm2", source=found.source, device="cpu")
    lm.eos_ids = frozenset()  # every way makes the same number of tokens
    plain: Any = AutoModelForCausalLM.from_pretrained(str(found.path), use_safetensors=True)
    plain.eval()
    plain.generation_config.eos_token_id = None
    ids = lm.encode(PROMPT)
    rows, count = args.rows, args.tokens
    ways: dict[str, Callable[[], Any]] = {
        "transformers generate": lambda: generate(plain, ids, rows, count),
        "open, draw, push": lambda: loop(lm, rows, count),
        f"close and open each {EVERY}": lambda: loop(lm, rows, count, EVERY),
        f"SMC engine, each {EVERY}": lambda: smc(lm, rows, count),
    }
    generate(plain, ids, 2, 4)
    loop(lm, 2, 4)
    taken: dict[str, list[float]] = {name: [] for name in [*ways, "linear layers alone"]}
    for _ in range(args.rounds):
        for name, way in ways.items():
            lm.clear_cache()
            taken[name].append(seconds(way))
        taken["linear layers alone"].append(floor(plain, rows, count))
    print(
        f"SmolLM2 ({found.source}, float32), {rows} rows x {count} tokens, prompt of {len(ids)}; "
        f"{args.threads} threads of {os.cpu_count()} cores, {args.rounds} rounds in turn, medians"
    )
    print(f"{'way':28}{'s':>8}{'tokens/s':>10}{'vs generate':>13}{'of the floor':>14}")
    base, bottom = taken["transformers generate"], taken["linear layers alone"]
    for name, times in taken.items():
        ratio = statistics.median(b / t for b, t in zip(base, times, strict=True))
        share = statistics.median(f / t for f, t in zip(bottom, times, strict=True))
        middle = statistics.median(times)
        print(f"{name:28}{middle:8.2f}{rows * count / middle:10.0f}{ratio:12.2f}x{share:13.2f}")


if __name__ == "__main__":
    main()
