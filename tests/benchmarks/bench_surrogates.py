"""Does a better surrogate pay? The rule of examples/guided_text.py under surrogates of several sizes.

Run `python tests/benchmarks/bench_surrogates.py [--quick]`. SmolLM2-135M writes strings after the
prompt once; each surrogate is fitted to some of them, and its guide draws strings whose weights are
pooled over the seeds. "log P" is what the surrogate itself takes P(rule) for, "estimate" what the
weighted strings say. ESS is of weighted strings without resampling. Under the last surrogate strings are
drawn again with `sampler=TopK(50)`, and by `guided_strings`, which goes on behind the full stop.
"""

from __future__ import annotations

import argparse
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmppl import load
from lmppl.inference import Importance, bffg, infer
from lmppl.random import fold
from lmppl.token_potentials import TopK
from lmppl.weights import ess, log_mean_exp

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "guided_text.py"))
PROMPT, LENGTH = EXAMPLE["PROMPT"], EXAMPLE["LENGTH"]


class Kind(NamedTuple):
    """A surrogate to be fitted."""

    name: str
    strings: int
    clusters: int
    fit: Callable[..., bffg.HMM]


def hidden(states: int, strings: int, clusters: int) -> Kind:
    """A hidden Markov model by expectation maximisation."""

    def fit(x: Any, V: int, found: bffg.Clusters) -> bffg.HMM:
        return bffg.fit_hmm(x, states, V, clusters=found)

    return Kind(f"{states} states", strings, clusters, fit)


def bigram(strings: int, clusters: int) -> Kind:
    """Counts of pairs of clusters."""

    def fit(x: Any, V: int, found: bffg.Clusters) -> bffg.HMM:
        return bffg.fit_ngram(x, 2, V, clusters=found)

    return Kind("bigram", strings, clusters, fit)


def clusters_of(lm: Any, x: Any, many: int) -> bffg.Clusters:
    """Clusters of tokens over prefixes of the strings, as `bffg.distil` finds them."""
    context, rng = lm.context(PROMPT), np.random.default_rng(0)
    cuts = zip(rng.integers(0, len(x), 96), rng.integers(0, LENGTH, 96), strict=True)
    prefixes = [(*context, *x[i, :t].tolist()) for i, t in cuts]
    inside = [p for p in prefixes if not lm.eos_ids.intersection(p[len(context) :])]
    return bffg.token_clusters(lm, inside, many)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two surrogates, one seed")
    quick = parser.parse_args().quick
    lm = load("smollm2")
    most, seeds = (128, 1) if quick else (1024, 3)
    began = time.perf_counter()
    x = bffg.written(lm, lm.context(PROMPT), most, LENGTH, fold(0, "distil", 0), (".",))
    print(f"{most} strings of SmolLM2: {time.perf_counter() - began:.0f} s", flush=True)
    dfa = bffg.matching(rf"[^.]*{EXAMPLE['WORD']}[^.]*\.[\s\S]*").over(lm)
    kinds = [hidden(1, 128, 256), hidden(32, 128, 256)]
    if not quick:
        kinds = [
            hidden(1, 256, 256),
            hidden(8, 256, 256),
            hidden(32, 256, 256),
            bigram(256, 256),
            hidden(32, 1024, 256),
            bigram(1024, 256),
            hidden(128, 1024, 256),
            hidden(128, 1024, 1024),
        ]
    print(f"{'surrogate':12}{'clusters':>9}{'strings':>8}{'fit s':>7}{'log P':>8}{'estimate':>10}"
          f"{'ESS/N':>7}{'ESS per 1000 tokens':>21}")  # fmt: skip

    def row(name: str, spent: float, own: float, lw: Any, tokens: int, kind: Kind) -> None:
        size = ess(lw)
        print(f"{name:12}{kind.clusters:9}{kind.strings:8}{spent:7.1f}{own:8.2f}"
              f"{log_mean_exp(lw):10.2f}{size / len(lw):7.2f}{1000 * size / tokens:21.1f}", flush=True)  # fmt: skip

    def drawn(how: Any) -> tuple[Any, int]:
        posts = [
            infer(
                EXAMPLE["sentence"], kwargs=how, engine=Importance(128), lm=lm, seed=seed,
                on_dead="return",
            )
            for seed in range(seeds)
        ]  # fmt: skip
        return np.concatenate([p.log_weights for p in posts]), sum(
            p.ledger.tokens_out for p in posts
        )

    known: dict[tuple[int, int], bffg.Clusters] = {}
    for kind in kinds:
        began = time.perf_counter()
        sample = x[: kind.strings]
        key = kind.strings, kind.clusters
        if key not in known:
            known[key] = clusters_of(lm, sample, kind.clusters)
        hmm = kind.fit(sample, lm.vocab_size, known[key])
        guide = bffg.HMMAutomaton(hmm, dfa, LENGTH, dfa.terminal(lambda s: s.accepts))
        spent, own = time.perf_counter() - began, float(guide.log_g(guide.start())[0])
        how = {"potential": bffg.string_potential(guide)}
        row(kind.name, spent, own, *drawn(how), kind)
    # the last one again, asked for fewer tokens
    row("  TopK(50)", 0.0, own, *drawn({**how, "sampler": TopK(50)}), kind)
    for rare in (0.0, 1e-3):
        runs = [
            bffg.guided_strings(
                lm, lm.context(PROMPT), guide, 128, seed, resample=0.0, rare=rare,
                end=min(lm.eos_ids),
            )
            for seed in range(seeds)
        ]  # fmt: skip
        lw = np.concatenate([run.log_weights for run in runs])
        row(f"  rare={rare:g}", 0.0, own, lw, LENGTH * len(lw), kind)


if __name__ == "__main__":
    main()
