"""Constrained SMC on SmolLM2, beside genlm-control.

    python tests/benchmarks/bench_constrained_smc.py [--peer .venv-peers-genlm/bin/python]

One string under a regex, one under a JSON schema: tokens/s and the spread of the log-evidence over
runs. `--peer` names an interpreter with genlm-control 0.4.1; its runs are made in turn with ours, on
the same model, prompt, constraint, number of particles and of threads, with its samplers `AWRS` and,
for the regex, `eager_token_sampler` (tests/peers/peer_constraints.py). Both sides end a string at
the first moment at which it is complete.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

import lmppl
from lmppl import LM, program, sample
from lmppl.inference import SMC, infer, tokens
from lmppl.lm.base import LanguageModel
from lmppl.lm.smollm2 import locate
from lmppl.token_potentials import AWRS

SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green", "blue"]}},
    "required": ["color"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": True},
}
PEER = Path(__file__).resolve().parents[1] / "peers" / "peer_constraints.py"


class Setting(NamedTuple):
    """One constrained string."""

    name: str
    prompt: str
    options: dict[str, Any]
    max_tokens: int
    peers: tuple[str, ...]


SETTINGS = (
    Setting(
        "regex",
        "The largest city of Italy and that of France:",
        {"regex": r" [A-Z][a-z]+(, [A-Z][a-z]+)?\."},
        8,
        ("awrs", "eager"),
    ),
    Setting("JSON", "The color of the sky as JSON: ", {"json_schema": SCHEMA}, 12, ("awrs",)),
)


class Run(NamedTuple):
    """What one run cost and found."""

    tokens: int
    seconds: float
    log_evidence: float


def ours(lm: LanguageModel, setting: Setting, sampler: Any, particles: int, runs: int) -> list[Run]:
    """SMC with a barrier at every token."""

    @program
    def string() -> str:
        law = LM(setting.prompt, max_tokens=setting.max_tokens, sampler=sampler, **setting.options)
        return str(sample("x", law))

    engine = SMC(particles, resample_at=tokens(1))
    infer(string, engine=engine, lm=lm, seed=-1)
    found = []
    for seed in range(runs):
        began = time.perf_counter()
        post = infer(string, engine=engine, lm=lm, seed=seed)
        seconds = time.perf_counter() - began
        drawn = sum(len(t["x"].token_ids) for t in post.traces)
        found.append(Run(drawn, seconds, post.log_evidence))
    return found


def theirs(o: argparse.Namespace, setting: Setting, sampler: str) -> list[Run]:
    """The same by genlm-control; the first run is dropped."""
    command = [
        o.peer, str(PEER), "--model", str(locate().path), "--prompt", setting.prompt, "--sampler", sampler,
        "--particles", str(o.particles), "--max-tokens", str(setting.max_tokens), "--runs",
        str(o.peer_runs + 1), "--threads", str(o.threads),
    ]  # fmt: skip
    if "regex" in setting.options:
        command += ["--regex", setting.options["regex"]]
    else:
        command += ["--schema", json.dumps(SCHEMA)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return [Run(x["tokens"], x["seconds"], x["log_evidence"]) for x in lines[1:]]


def show(name: str, who: str, runs: list[Run]) -> float:
    """One row; tokens/s."""
    speed = sum(r.tokens for r in runs) / sum(r.seconds for r in runs)
    spread = statistics.variance([r.log_evidence for r in runs]) if len(runs) > 1 else float("nan")
    mean = statistics.fmean(r.log_evidence for r in runs)
    print(f"{name:6} {who:24} {len(runs):4} {speed:12.1f} {mean:12.3f} {spread:12.4f}", flush=True)
    return speed


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser()
    options.add_argument("--particles", type=int, default=32)
    options.add_argument("--runs", type=int, default=20)
    names = [setting.name for setting in SETTINGS]
    options.add_argument("--settings", nargs="+", choices=names, default=names)
    options.add_argument("--peer")
    options.add_argument("--peer-runs", type=int, default=4)
    options.add_argument("--threads", type=int, default=1)
    o = options.parse_args()
    torch.set_num_threads(o.threads)
    lm = lmppl.load("smollm2")
    print(f"{o.particles} particles, {o.threads} threads")
    print(f"{'':6} {'':24} {'runs':>4} {'tokens/s':>12} {'E[log Ẑ]':>12} {'Var[log Ẑ]':>12}")
    for setting in (s for s in SETTINGS if s.name in o.settings):
        speed = show(setting.name, "lmppl, masks", ours(lm, setting, None, o.particles, o.runs))
        show(setting.name, "lmppl, AWRS", ours(lm, setting, AWRS(), o.particles, o.runs))
        for sampler in setting.peers if o.peer else ():
            other = show(setting.name, f"genlm-control, {sampler}", theirs(o, setting, sampler))
            print(f"{'':6} {'ratio':24} {'':4} {speed / other:12.1f}")


if __name__ == "__main__":
    main()
