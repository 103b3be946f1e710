"""The filter inside a loop of transformers: all strings of a toy, and `generate` itself."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
torch = pytest.importorskip("torch")

from lmppl.errors import BadArgument  # noqa: E402
from lmppl.inference import bffg  # noqa: E402

V, T, EOS = 4, 4, 3
LAW = np.log(np.random.default_rng(0).dirichlet(np.ones(V), V + 1))  # after no token, after each
PROMPT = (1, 1)


def rule(state: str, v: int) -> str:
    """0 turns up before the end."""
    if state in ("over", "dead") or v == EOS:
        return "over" if v == EOS and state in ("found", "over") else "dead"
    return "found" if state == "found" or v == 0 else ""


def wrong_filter() -> bffg.HMMAutomaton:
    rng = np.random.default_rng(1)
    hmm = bffg.HMM(
        rng.dirichlet(np.ones(2)), rng.dirichlet(np.ones(2), 2), rng.dirichlet(np.ones(V), 2)
    )
    dfa = bffg.automaton(rule, "", V)
    return bffg.HMMAutomaton(hmm, dfa, T, dfa.terminal(lambda s: 2.0 * (s == "over")))


def strings() -> list[tuple[int, ...]]:
    """All that end, padded by zeros, which is what generate may pad with."""
    out = []
    for n in range(T):
        out += [(*x, EOS) for x in itertools.product(range(EOS), repeat=n)]
    return out


def test_weights_make_up_for_the_proposal_on_all_strings() -> None:
    """Σ q W = Σ p τ, and q W = p τ string by string, to 1e-12, whatever the scores' offsets."""
    x = strings()
    padded = torch.tensor([PROMPT + s + (0,) * (T - len(s)) for s in x])
    guided = bffg.GuidedLogits(wrong_filter(), len(PROMPT), EOS)
    log_q, log_p = np.zeros(len(x)), np.zeros(len(x))
    for t in range(T):
        before = padded[:, : len(PROMPT) + t]
        law = LAW[[s[t - 1] + 1 if t and t <= len(s) else 0 for s in x]]
        q = torch.log_softmax(guided(before, torch.from_numpy(law + 5.0 * t)), dim=1).numpy()
        for i, s in enumerate(x):
            if t < len(s):
                log_p[i] += law[i, s[t]]
                log_q[i] += q[i, s[t]]
    found = np.exp(log_q + guided.log_weights(padded))
    tau = np.array([2.0 * (0 in s) for s in x])
    assert np.allclose(found, np.exp(log_p) * tau, rtol=1e-12, atol=0)
    unweighted = np.exp(log_q) / np.exp(log_q).sum()
    assert np.abs(unweighted - found / found.sum()).sum() > 0.1


def test_what_it_has_not_seen_is_refused() -> None:
    guided = bffg.GuidedLogits(wrong_filter(), len(PROMPT), EOS)
    guided(torch.tensor([PROMPT]), torch.zeros(1, V))
    with pytest.raises(BadArgument, match="has not seen grow"):
        guided.log_weights(torch.tensor([(*PROMPT, 0, 0, EOS)]))
    with pytest.raises(BadArgument, match="scores are of 3"):
        guided(torch.tensor([PROMPT]), torch.zeros(1, 3))


@pytest.mark.slow
def test_inside_generate() -> None:
    """A tiny random network: E[W] = Σ p τ by z-test (1e-6) over 4,000 strings."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, initializer_range=1.0, eos_token_id=EOS, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    x = strings()
    padded = torch.tensor([PROMPT + s + (0,) * (T - len(s)) for s in x])
    with torch.inference_mode():
        rows = torch.log_softmax(model(padded).logits.double(), dim=2).numpy()
    at = len(PROMPT) - 1
    log_p = [sum(rows[i, at + t, v] for t, v in enumerate(s)) for i, s in enumerate(x)]
    truth = sum(2.0 * np.exp(p) for s, p in zip(x, log_p, strict=True) if 0 in s)
    guided = bffg.GuidedLogits(wrong_filter(), len(PROMPT), EOS)
    out: Any = model.generate(
        torch.tensor([PROMPT] * 4000), attention_mask=torch.ones(4000, 2, dtype=torch.long),
        logits_processor=transformers.LogitsProcessorList([guided]), do_sample=True, top_k=0,
        max_new_tokens=T,
    )  # fmt: skip
    w = np.exp(guided.log_weights(out))
    assert w.std() > 0 and abs(w.mean() - truth) < 4.9 * w.std() / np.sqrt(len(w))
