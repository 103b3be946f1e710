"""A sentence of SmolLM2 with a given word in it, closed within a given length: four ways to draw it.

Conditioning a language model on a rule, p(x | rule) ∝ p(x) 1(rule), can be done by

* rejection: right, and wasteful;
* masks: forbid what makes the rule impossible *now*; too late for a word that must still come;
* a guide without weights: q ∝ p g, g a hidden Markov surrogate of the model times an automaton of
  the rule. The rule holds more often, the law is wrong;
* the same guide with weights, also resampled token by token: right again.

All four have one target, so their estimates of P(rule) must agree. How wrong a law q is without its
weights W is found from them: the total variation from the target is E_q |W / E_q W - 1| / 2. The
surrogate is distilled from what SmolLM2 writes after the prompt, its 49,152 tokens clustered. On the
toy of `guided_text_toy.py` the same figures are exact sums.

Reference: Zhang, Kung, Yoshida, Van den Broeck and Peng, Adaptable logical control for large
language models (2024), for the surrogate; van der Meulen and Schauer (2020), for the weights.
"""

from __future__ import annotations

import math
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lmppl import LM, factor, load, program, sample
from lmppl.inference import SMC, Importance, infer, tokens

NEEDS = ("smollm2", "jax")
SLOW = True

PROMPT = "The children packed some bread, and after lunch they walked down to"
WORD, LENGTH = " lake", 14


@program
def sentence(**how: Any) -> str:
    """What follows the prompt: it has the word, and a full stop within `LENGTH` tokens."""
    text = sample("text", LM(PROMPT, stop=".", max_tokens=LENGTH, limit="kill", **how))
    factor("rule", text.finish == "stop" and WORD in text)
    return f"{text}."


def filtered(lm: Any, strings: int) -> Any:
    """The backward filter: a surrogate of the model times the automaton of the rule."""
    from lmppl.inference import bffg

    began = time.perf_counter()
    hmm = bffg.distil(lm, PROMPT, length=LENGTH, strings=strings, stop=(".",))
    # what the token of the full stop may bring behind it plays no part
    dfa = bffg.matching(rf"[^.]*{WORD}[^.]*\.[\s\S]*").over(lm)
    found = bffg.HMMAutomaton(hmm, dfa, LENGTH, dfa.terminal(lambda s: s.accepts))
    print(f"{len(dfa.states)} states of the rule, {len(hmm.start)} of the surrogate, "
          f"{time.perf_counter() - began:.0f} s; it has log P(rule) = "
          f"{found.log_g(found.start())[0]:.2f}")  # fmt: skip
    return found


def off(post: Any) -> float:
    """Total variation between what was drawn, without weights, and the target."""
    return float(0.5 * np.abs(post.weights - 1 / len(post)).sum())


def draw(found: dict[str, Any], file: Path) -> None:
    """What a token buys, and how much of the weight the heaviest strings have."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    rate = [1000 * post.ess / post.ledger.tokens_out for post in found.values()]
    bars = left.barh(list(found), rate, color=[f"C{i}" for i in range(len(found))])
    left.bar_label(bars, fmt="%.1f", padding=3)
    left.invert_yaxis()
    left.margins(x=0.15)
    left.set(xlabel="effective strings per 1000 tokens")
    for i, (name, post) in enumerate(found.items()):
        share = np.cumsum(np.sort(post.weights)[::-1])
        right.plot(np.arange(1, len(share) + 1) / len(share), share, color=f"C{i}", label=name)
    right.plot([0, 1], [0, 1], "k:", linewidth=0.8)
    right.set(xlabel="part of the strings, heaviest first", ylabel="part of the weight")
    right.legend(loc="lower right")
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main(
    particles: int = 128, plain: int = 512, strings: int = 256, out: str | None = None
) -> None:
    from lmppl.inference import bffg

    lm = load(NEEDS[0])
    guide = {"potential": bffg.string_potential(filtered(lm, strings))}
    ways: dict[str, tuple[dict[str, Any], Any]] = {
        "rejection": ({}, Importance(plain)),
        "masks": ({"regex": rf"[^.]*{WORD}[^.]*"}, Importance(particles)),
        "guide": (guide, Importance(particles)),
        "guide, resampled": (guide, SMC(particles // 2, resample_at=tokens(1))),
    }
    print(f"{'':18}{'strings':>8}{'log P(rule)':>16}{'ESS/N':>7}{'tokens':>8}"
          f"{'ESS per 1000':>14}{'TV unweighted':>15}{'s':>5}")  # fmt: skip
    found: dict[str, Any] = {}
    for name, (how, engine) in ways.items():
        began = time.perf_counter()
        post = infer(sentence, kwargs=how, engine=engine, lm=lm, seed=0, on_dead="return")
        found[name], spent = post, post.ledger.tokens_out
        wrong = f"{off(post):15.2f}" if name in ("masks", "guide") else " " * 15
        print(f"{name:18}{len(post):8}{post.log_evidence:9.2f} ± {post.log_evidence_se:4.2f}"
              f"{post.ess / len(post):7.3f}{spent:8}{1000 * post.ess / spent:14.2f}{wrong}"
              f"{time.perf_counter() - began:5.0f}")  # fmt: skip
    guided = found["guide, resampled"]
    for text, share in list(guided.marginal().items())[:3]:
        print(f"{share:.2f}  {PROMPT}{text}")
    if find_spec("matplotlib"):
        folder = Path(out or tempfile.mkdtemp(prefix="lmppl-"))
        folder.mkdir(parents=True, exist_ok=True)
        draw(found, folder / "guided_text.png")
        print(f"picture: {folder / 'guided_text.png'}")

    reference = found["rejection"]
    for name in ("guide", "guide, resampled"):
        post = found[name]
        se = math.hypot(post.log_evidence_se, reference.log_evidence_se)
        assert abs(post.log_evidence - reference.log_evidence) < 5 * se
        assert post.ess / post.ledger.tokens_out > 3 * reference.ess / reference.ledger.tokens_out


if __name__ == "__main__":
    main()
