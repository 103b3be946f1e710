"""vLLM for `bench_torch.py`: runs in vLLM's own environment, which knows nothing of lmppl.

A line on stdin is (prompts as token ids, strings of each, tokens of each); the answer is the
seconds that `LLM.generate` took, with the sampled token's log-probability asked for.
"""

from __future__ import annotations

import ast
import sys
import time


def main() -> None:
    """Load the model of the first argument, then answer."""
    from vllm import LLM, SamplingParams

    lm = LLM(
        model=sys.argv[1],
        dtype=sys.argv[2],
        enforce_eager=sys.argv[2] == "float32",
        max_model_len=512,
        max_num_seqs=256,
        seed=0,
    )
    for line in sys.stdin:
        if line.startswith("ready?"):
            print("answer yes", flush=True)
            continue
        prompts, each, count = ast.literal_eval(line)
        params = SamplingParams(
            n=each, max_tokens=count, temperature=1.0, ignore_eos=True, detokenize=False, logprobs=0
        )
        began = time.perf_counter()
        out = lm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        taken = time.perf_counter() - began
        if sum(len(o.token_ids) for r in out for o in r.outputs) != len(prompts) * each * count:
            raise RuntimeError("vLLM stopped early")
        lm.reset_prefix_cache()
        print(f"answer {taken}", flush=True)


if __name__ == "__main__":
    main()
