"""genlm-control 0.4.1: constrained SMC of one prompt, for the comparison of bench_constraints.py.

Run by an interpreter that has genlm-control (`make peers` says how). One line of JSON for each run:
tokens, seconds, log-evidence. A string ends, on both sides, at the first moment at which it matches
(`terminate_when`), so the targets are the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

warnings.simplefilter("ignore")
from genlm.control import (  # noqa: E402
    AWRS,
    BoolFSA,
    JsonSchema,
    PromptedLLM,
    direct_token_sampler,
    eager_token_sampler,
)


def sampler(kind: str, llm: Any, constraint: Any) -> Any:
    """Their three ways of drawing a token."""
    if kind == "eager":
        return eager_token_sampler(llm, constraint)
    coerced = constraint.coerce(llm, f=b"".join)
    return direct_token_sampler(llm * coerced) if kind == "direct" else AWRS(llm, coerced)


async def main() -> None:
    """Run the settings of the command line."""
    options = argparse.ArgumentParser()
    options.add_argument("--model", required=True)
    options.add_argument("--prompt", required=True)
    options.add_argument("--regex")
    options.add_argument("--schema")
    options.add_argument("--sampler", default="awrs")
    options.add_argument("--particles", type=int, default=32)
    options.add_argument("--max-tokens", type=int, default=32)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    o = options.parse_args()
    torch.set_num_threads(o.threads)
    llm = PromptedLLM.from_name(o.model, backend="hf", temperature=1.0)
    llm.prompt_ids = llm.model.tokenizer.encode(o.prompt, add_special_tokens=False)
    if o.regex:
        constraint: Any = BoolFSA.from_regex(o.regex)
        whole: Callable[[bytes], Any] = re.compile(o.regex.encode()).fullmatch
    else:
        constraint = JsonSchema(json.loads(o.schema))

        def closed(text: bytes) -> bool:
            return text.endswith(b"}")

        whole = closed

    smc = None
    for run in range(o.runs):
        np.random.seed(run)
        torch.manual_seed(run)
        if smc is None:
            from genlm.control import SMC

            smc = SMC(sampler(o.sampler, llm, constraint))
        began = time.perf_counter()
        found = await smc(
            n_particles=o.particles,
            ess_threshold=0.5,
            max_tokens=o.max_tokens,
            terminate_when=lambda context: bool(whole(b"".join(map(bytes, context)))),
        )
        seconds = time.perf_counter() - began
        tokens = sum(sum(isinstance(t, bytes) for t in c) for c in found.contexts)
        texts = {
            b"".join(t for t in c if isinstance(t, bytes)).decode(errors="replace")
            for c in found.contexts
        }
        line = {
            "run": run,
            "tokens": tokens,
            "seconds": seconds,
            "log_evidence": float(found.log_ml),
            "texts": sorted(texts)[:3],
        }
        print(json.dumps(line), flush=True)
    await llm.cleanup() if hasattr(llm, "cleanup") else None


if __name__ == "__main__":
    asyncio.run(main())
    sys.exit(0)
