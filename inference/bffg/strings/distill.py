"""Distilling a language model: strings that it writes, clusters of its tokens, a surrogate of both.

    hmm = distil(lm, "The old sailor", length=24, states=32)

1. the model writes strings after the prompt, at the length that the guide will use;
2. a large vocabulary is clustered: k-means of the profiles log p(v | prefix) - log p̄(v) of each
   token over some prefixes of these strings, so that tokens that rise and fall together are one
   cluster; their share is p̄, the mean of the model's rows, in which no token has zero;
3. expectation maximisation over the clusters (`fit_hmm`), or counts (`fit_ngram`).

It costs the tokens of the strings, and a pass for the prefixes. The surrogate belongs to the prompt.

Reference: Zhang, Dang, Peng and Van den Broeck, Tractable control for autoregressive language
generation (2023), for the distillation; Brown et al. (1992), for classes of words.
"""

from __future__ import annotations

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.bffg.strings.baum_welch import fit_hmm
from lmppl.inference.bffg.strings.hmm import HMM, Clusters
from lmppl.inference.bffg.strings.ngram import fit_ngram
from lmppl.lm.base import LanguageModel
from lmppl.lm.generate import StringLaw, StringState, advance
from lmppl.lm.needs import require
from lmppl.random import GumbelMax, fold
from lmppl.types import Floats, Ids, Ints, Key

SMALL = 1024
"""Tokens up to which a vocabulary is not clustered."""
BATCH = 64
"""Strings that are written together."""


def written(
    lm: LanguageModel, context: Ids, n: int, length: int, key: Key, stop: tuple[str, ...] = ()
) -> Ints:
    """Strings that a model writes after a context [n, length], padded by its end token.

    Args:
        lm: any model.
        context: token ids of the prompt.
        n: how many.
        length: tokens of each.
        key: all draws are a function of it.
        stop: texts at which a string ends.
    """
    law, out = StringLaw(length, stop), np.full((n, length), min(lm.eos_ids, default=0))
    states = [StringState(law, context, fold(key, "string", i)) for i in range(n)]
    for i in range(0, n, BATCH):
        advance(lm, states[i : i + BATCH], GumbelMax())
    for row, state in zip(out, states, strict=True):
        row[: len(state.ids)] = state.ids
    return out


def token_clusters(
    lm: LanguageModel, prefixes: list[Ids], clusters: int, seed: int = 0, rounds: int = 12
) -> Clusters:
    """Clusters of tokens that rise and fall together over some prefixes.

    Args:
        lm: a model with full rows.
        prefixes: token ids, prompt included; a hundred will do.
        clusters: how many at most.
        seed: of where k-means starts.
        rounds: of k-means.
    """
    require(lm, "full_rows", "token_clusters", "cluster another model with the same tokens")
    parts = []
    for i in range(0, len(prefixes), BATCH):
        rows = lm.open(prefixes[i : i + BATCH])
        parts.append(np.asarray(rows.log_probs(), dtype=np.float32))
        rows.close()
    log_p = np.maximum(np.concatenate(parts), -40.0)
    mean = np.exp(log_p.astype(np.float64)).mean(axis=0)
    profile = log_p.T - np.log(mean)[:, None].astype(np.float32)  # [V, P]
    of = _k_means(profile, mean, clusters - 1, seed, rounds) + 1
    of[sorted(lm.eos_ids)] = 0  # alone: no other token ends a text
    _, of = np.unique(of, return_inverse=True)
    return Clusters(of, mean / np.bincount(of, mean)[of])


def _k_means(x: Floats, mass: Floats, k: int, seed: int, rounds: int) -> Ints:
    """The nearest of k centres for each row, where rows count by the root of their mass."""
    rng = np.random.default_rng(seed)
    w = np.sqrt(mass)[:, None].astype(x.dtype)
    chances = np.sqrt(mass) / np.sqrt(mass).sum()
    centres = x[rng.choice(len(x), min(k, len(x)), replace=False, p=chances)]
    of = np.zeros(len(x), dtype=np.int64)
    for _ in range(rounds):
        of = (0.5 * (centres**2).sum(1) - x @ centres.T).argmin(axis=1)
        by_centre = np.argsort(of, kind="stable")
        kept, first = np.unique(of[by_centre], return_index=True)
        sums = np.add.reduceat((x * w)[by_centre], first)
        centres[kept] = sums / np.add.reduceat(w[by_centre], first)
    return np.asarray(of, dtype=np.int64)


def distil(
    lm: LanguageModel,
    prompt: str | Ids,
    *,
    length: int,
    states: int = 32,
    order: int | None = None,
    strings: int = 512,
    clusters: int | None = None,
    stop: tuple[str, ...] = (),
    steps: int = 20,
    seed: int = 0,
) -> HMM:
    """A hidden Markov surrogate of a model after a prompt.

    Args:
        lm: any model; one of many tokens needs full rows.
        prompt: text, or token ids.
        length: tokens of a string: the horizon of the guide.
        states: hidden states.
        order: fit an n-gram of this order in place of hidden states.
        strings: how many the model writes.
        clusters: of tokens; 256 where the vocabulary is large, none where it is small.
        stop: texts at which a string ends.
        steps: of expectation maximisation.
        seed: all randomness is a function of it.

    >>> from lmppl.lm.table import TableLM
    >>> lm = TableLM(["a", "b", "<eos>"], {(): [0.5, 0.3, 0.2], (0,): [0.1, 0.7, 0.2]})
    >>> hmm = distil(lm, "", length=4, order=2, strings=2000)
    >>> bool(abs(hmm.A[0, 1] - 0.7) < 0.05)
    True
    """
    context = lm.context(prompt) if isinstance(prompt, str) else prompt
    if length < 1 or strings < 1:
        raise BadArgument(
            f"distil: length={length!r} and strings={strings!r} must be positive",
            fix="give the horizon of the guide as length, and a few hundred strings",
        )
    x = written(lm, context, strings, length, fold(0, "distil", seed), stop)
    V = lm.vocab_size
    many = clusters if clusters is not None else 256 if V > SMALL else None
    found = None
    if many is not None:
        rng = np.random.default_rng(seed)
        cuts = zip(rng.integers(0, len(x), 96), rng.integers(0, length, 96), strict=True)
        prefixes = [(*context, *x[i, :t].tolist()) for i, t in cuts]
        inside = [p for p in prefixes if not lm.eos_ids.intersection(p[len(context) :])]
        found = token_clusters(lm, inside or [context], many, seed)
    if order is not None:
        return fit_ngram(x, order, V, clusters=found)
    return fit_hmm(x, states, V, steps, seed, clusters=found)
