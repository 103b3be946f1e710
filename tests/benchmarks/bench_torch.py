"""SmolLM2 in our loop against transformers' `generate`, vLLM and the matrix products alone.

Run `python tests/benchmarks/bench_torch.py [--rows 64] [--tokens 64] [--rounds 3] [--threads 2]
[--device cpu] [--vllm PYTHON] [--shape 1b]`; on a GPU the same with `--device cuda`. `--shape` takes
random weights of the shape of a larger Llama in place of SmolLM2: speed is the same.

Every way produces rows x tokens tokens at temperature 1 without truncation; ours also returns log p
and log q of each. `generate` runs on a second copy of the model that we have not touched, vLLM in a
process of its own, which PYTHON starts (`.venv-servers/bin/python` when it is there). The floor is
what the matrix products of the linear layers alone would take. Each round times all ways one after
the other; ratios are made within a round, then their median is taken. On a machine whose cores are
busy with other work wall time means little: the load stands above the table, and `--clock cpu` with
`--threads 1` counts this process's own CPU seconds (vLLM, another process, is then left out).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from lmppl import LM, program, sample
from lmppl.inference import SMC, Importance, infer, tokens
from lmppl.lm import smollm2
from lmppl.lm.base import TokenLaw
from lmppl.lm.torch import TorchLM
from lmppl.random import GumbelMax, fold_array
from lmppl.types import Ids

STORY = "The old lighthouse keeper climbed the stairs one last time. At the top he found a letter. "
TABLES = ("shared", "ragged")
GENERATE, OURS, FLOOR = "transformers generate", "open, draw, push", "linear layers alone"
CLOCK = {"wall": time.perf_counter, "cpu": time.process_time}
clock = time.perf_counter
FIRST = """
import time; began = time.perf_counter()
from lmppl import load
lm = load("smollm2")
rows = lm.open([lm.context("The capital of France is")])
rows.log_mass([(5,)], [1.0])
print(time.perf_counter() - began)
"""


SHAPES = {  # layers, hidden, feed-forward, heads, key-value heads, of a head; of the family's models
    "135m": (30, 576, 1536, 9, 3, 64),
    "1b": (16, 2048, 8192, 32, 8, 64),
    "8b": (32, 4096, 14336, 32, 8, 128),
}


def random_llama(shape: str, like: Path, device: str) -> Path:
    """A folder with random weights of a shape, and the tokenizer and vocabulary of a model."""
    from safetensors.torch import save_file

    layers, hidden, inner, heads, kv, size = SHAPES[shape]
    folder = Path(tempfile.mkdtemp(prefix=f"llama-{shape}-"))
    for file in like.glob("*token*"):
        shutil.copy(file, folder)
    config = json.loads((like / "config.json").read_text())
    config |= {
        "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner,
        "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": size,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    dtype = torch.float32 if device == "cpu" else torch.bfloat16

    def matrix(rows: int, columns: int) -> torch.Tensor:
        made: torch.Tensor = (torch.randn(rows, columns, device=device) * columns**-0.5).to(dtype)
        return made.cpu()

    weights = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden)}
    ones = torch.ones(hidden, dtype=dtype)
    for n in range(layers):
        name = f"model.layers.{n}"
        parts = {"q": heads, "k": kv, "v": kv}
        for part, count in parts.items():
            weights[f"{name}.self_attn.{part}_proj.weight"] = matrix(count * size, hidden)
        weights[f"{name}.self_attn.o_proj.weight"] = matrix(hidden, heads * size)
        for part in ("gate", "up"):
            weights[f"{name}.mlp.{part}_proj.weight"] = matrix(inner, hidden)
        weights[f"{name}.mlp.down_proj.weight"] = matrix(hidden, inner)
        for part in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{name}.{part}.weight"] = ones.clone()
    weights["model.norm.weight"] = ones.clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@program
def story(prompt: str, count: int) -> str:
    """One string of `count` tokens."""
    return str(sample("story", LM(prompt, max_tokens=count)))


def seconds(fn: Callable[[], Any], device: str) -> float:
    """Time of one call, the device's work included."""
    began = clock()
    fn()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - began


def loop(lm: TorchLM, contexts: Sequence[Ids], count: int, resampled: bool = False) -> Any:
    """Our plain loop; with `resampled`, forks random survivors after every token."""
    rng = np.random.default_rng(0)
    rows = len(contexts)
    keys = np.arange(rows, dtype=np.uint64)
    laws, chance = [TokenLaw()] * rows, GumbelMax()
    batch = lm.open(contexts)
    for step in range(count):
        drawn = batch.draw(fold_array(keys, step), laws, None, chance)
        batch.push(drawn.tokens)
        if resampled:
            batch.select(np.sort(rng.integers(0, rows, rows)))
    block = batch.block
    batch.close()
    return block


def generate(model: Any, contexts: Sequence[Ids], count: int) -> None:
    """The same number of tokens by transformers, prompts padded on the left."""
    longest = max(map(len, contexts))
    ids = torch.tensor([(0,) * (longest - len(c)) + tuple(c) for c in contexts])
    mask = torch.tensor([(0,) * (longest - len(c)) + (1,) * len(c) for c in contexts])
    with torch.inference_mode():
        out = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            max_new_tokens=count,
            pad_token_id=0,
        )
    if out.shape != (len(contexts), longest + count):
        raise RuntimeError(f"generate stopped early: {tuple(out.shape)}")


def floor(model: Any, rows: int, count: int, device: str) -> float:
    """Seconds of `count` steps if the linear layers were everything (the median of 8 steps)."""
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    kind = {"device": model.device, "dtype": model.dtype}
    inputs = {m.in_features: torch.randn(rows, m.in_features, **kind) for m in linear}

    def step() -> None:
        with torch.inference_mode():
            for m in linear:
                torch.nn.functional.linear(inputs[m.in_features], m.weight)

    step()
    return statistics.median(seconds(step, device) for _ in range(8)) * count


class VLLM:
    """vLLM in a process of its own: a line with the number of tokens in, a line of seconds out."""

    def __init__(self, python: str, folder: str, threads: int, device: str) -> None:
        env = dict(os.environ, HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")
        if device == "cpu":
            env |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
            env["OMP_NUM_THREADS"] = str(threads)
        script = str(Path(__file__).parent / "vllm_loop.py")
        command = [python, script, folder, "float32" if device == "cpu" else "bfloat16"]
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ask("ready?")

    def ask(self, line: str) -> str:
        """The answer to one line; other output of vLLM is skipped."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("vLLM has no pipes")
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        for answer in self.process.stdout:
            if answer.startswith("answer "):
                return answer.removeprefix("answer ").strip()
        raise RuntimeError(f"vLLM ended with {self.process.wait()}")

    def run(self, prompts: Sequence[Ids], each: int, count: int) -> float:
        """Seconds for `each` strings of `count` tokens after each prompt."""
        return float(self.ask(repr((list(map(list, prompts)), each, count))))


def table(title: str, ways: dict[str, Callable[[], float]], rounds: int, made: int) -> None:
    """Time all ways in turn; print the medians and their ratios to `generate` and the floor."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            taken[name].append(way())
    print(f"\n{title}; load {os.getloadavg()[0]:.1f}")
    peers = {"vs generate": GENERATE, "of the floor": FLOOR, "vs ours": OURS}
    print(f"{'way':30}{'s':>8}{'tokens/s':>10}" + "".join(f"{title:>13}" for title in peers))
    for name, times in taken.items():
        middle = statistics.median(times)
        line = f"{name:30}{middle:8.2f}{made / middle:10.0f}"
        for peer in peers.values():
            ratios = [b / t for b, t in zip(taken.get(peer, []), times, strict=False)]
            line += f"{statistics.median(ratios):12.2f}x" if ratios else f"{'-':>13}"
        print(line)


def main() -> None:
    """Print the tables."""
    global clock
    parser = argparse.ArgumentParser()
    defaults = {"threads": 2, "rounds": 3, "rows": 64, "tokens": 64, "prompt": 200}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--without", nargs="*", default=[], metavar="WAY", help="leave a way out")
    parser.add_argument("--clock", choices=CLOCK, default="wall")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    parser.add_argument("--vllm", default=".venv-servers/bin/python")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = CLOCK[args.clock]
    device, rows, count = args.device, args.rows, args.tokens
    found = smollm2.locate()
    if args.shape:
        found = smollm2.Located(
            random_llama(args.shape, found.path, device), f"random {args.shape}"
        )
    lm = TorchLM.load(found.path, name="smollm2", source=found.source, device=device)
    lm.eos_ids = frozenset()  # every way makes the same number of tokens
    plain: Any = AutoModelForCausalLM.from_pretrained(
        str(found.path), use_safetensors=True, dtype=lm.dtype
    )
    plain.to(device).eval()
    plain.generation_config.eos_token_id = None
    server = None
    wanted = args.clock == "wall" and "vLLM" not in args.without
    if wanted and Path(args.vllm).is_file():
        server = VLLM(args.vllm, str(found.path), args.threads, device)
    text = STORY * 14
    shared = lm.encode(text)[: args.prompt]
    ragged = [lm.encode(text[7 * n :])[: 20 + 12 * n] for n in range(16)]
    where = torch.cuda.get_device_name() if device.startswith("cuda") else device
    print(
        f"SmolLM2 ({found.source}, {lm.dtype}), {where}, {args.threads} threads of "
        f"{os.cpu_count()} cores, {args.rounds} rounds in turn, medians, {args.clock} time"
    )

    def timed(fn: Callable[[], Any]) -> Callable[[], float]:
        def run() -> float:
            lm.clear_cache()
            return seconds(fn, device)

        return run

    each_of = max(1, rows // 4)
    settings = {
        "shared": (f"{rows} particles, shared prompt of {args.prompt} tokens", [shared], rows),
        "ragged": (f"16 prompts of 20 to 200 tokens x {each_of} particles", ragged, each_of),
    }
    for title, prompts, each in (settings[name] for name in args.tables):
        contexts = [p for p in prompts for _ in range(each)]
        n = len(contexts)
        prompt = lm.decode(shared)

        def smc(every: bool, n: int = n, prompt: str = prompt) -> None:
            engine = SMC(n, resample_at=tokens(1), always=True) if every else Importance(n)
            infer(story, prompt, count, engine=engine, lm=lm, seed=0)

        ways: dict[str, Callable[[], float]] = {
            GENERATE: timed(lambda c=contexts: generate(plain, c, count)),  # type: ignore[misc]
            OURS: timed(lambda c=contexts: loop(lm, c, count)),  # type: ignore[misc]
            "the same, resampled each token": timed(lambda c=contexts: loop(lm, c, count, True)),  # type: ignore[misc]
        }
        if len(prompts) == 1:
            ways["Importance engine"] = timed(lambda: smc(False))
            ways["SMC engine, each token"] = timed(lambda: smc(True))
        if server is not None:
            ways["vLLM"] = lambda p=prompts, e=each: server.run(p, e, count)  # type: ignore[misc]
        ways[FLOOR] = lambda n=n: floor(plain, n, count, device)  # type: ignore[misc]
        ways = {name: way for name, way in ways.items() if name not in args.without}
        table(f"{title}, {count} tokens each", ways, args.rounds, n * count)

    block = loop(lm, [shared] * rows, count, True)
    bound = args.prompt + count + 4 * rows * math.log(rows)
    print(f"\ncache after resampling each token: {block.slots} slots, T + 4 N ln N = {bound:.0f}")
    print(f"batch 1 against batch 8: log-probabilities differ by at most {lm.batch_gap:.1e}")
    if args.shape:
        return
    first = subprocess.run(
        [sys.executable, "-c", FIRST], capture_output=True, text=True, check=True
    )
    print(f"import to first token in a new process: {float(first.stdout.split()[-1]):.1f} s")


if __name__ == "__main__":
    main()
