"""Strings under a guide, by sequential Monte Carlo over tokens: score, resample, then draw.

    q(v) ∝ p(v | prefix) g_{t+1}(prefix v)       w_{t+1} = Σ_v p(v | prefix) g_{t+1}(prefix v) / g_t

w depends on the prefix alone, so that strings are resampled before their token is drawn: copies of
a string go on with tokens of their own, and no string about to die is drawn or read any further.

Reference: van der Meulen and Schauer (2020); Zhao, Brekelmans, Makhzani and Grosse, Probabilistic
inference in language models via twisted sequential Monte Carlo (2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmppl.arguments import check_numbers
from lmppl.inference.bffg.strings.automaton import HMMAutomaton
from lmppl.inference.smc.resampling import systematic
from lmppl.lm.base import LanguageModel
from lmppl.random import Chance, GumbelMax, fold, fold_array
from lmppl.types import Floats, Ints, Key
from lmppl.weights import NEG_INF, ess, log_mean_exp, log_sum, normalize


class GuidedStrings(NamedTuple):
    """Weighted strings."""

    tokens: Ints
    """[N, T]"""
    log_weights: Floats
    """[N]; the mean of exp is the estimate of Σ_x p(x) τ."""
    log_evidence: float
    sizes: Floats
    """ESS / N before each token, ahead of any resampling there [T]."""


def guided_strings(
    lm: LanguageModel,
    context: Sequence[int],
    guide: HMMAutomaton,
    n: int,
    key: Key,
    *,
    resample: float = 0.5,
    rare: float = 0.0,
    chance: Chance | None = None,
    end: int | None = None,
) -> GuidedStrings:
    """n strings of a language model under the guide, by SMC over tokens.

    Args:
        lm: a model with full rows; its next-token law, unchanged, is p.
        context: tokens of the prompt.
        guide: the guide; its horizon is the length of the strings.
        n: how many.
        key: all draws are a function of it.
        resample: resample when ESS < resample · n; 0 never does.
        rare: tokens that the model gives less than this are guided by the mean over their class. So a
            surrogate of many states that emits each token by itself is asked for a few; 1e-3 will do.
        chance: who answers the draws.
        end: the end token: a string that has it continues with it, and asks the model no more.

    >>> from lmppl.inference.bffg import HMM, automaton
    >>> from lmppl.lm.table import TableLM
    >>> lm = TableLM(["a", "b"], {(): [0.9, 0.1]})
    >>> dfa = automaton(lambda s, v: min(1, s + v), 0, 2)  # a "b" at least once
    >>> itself = HMM(np.ones(1), np.ones((1, 1)), np.array([[0.9, 0.1]]))
    >>> guide = HMMAutomaton(itself, dfa, 3, dfa.terminal(float))
    >>> round(float(np.exp(guided_strings(lm, (), guide, 4, 0).log_evidence)), 6)
    0.271
    """
    check_numbers("guided_strings", 0.0, 1.0, resample=resample, rare=rare)
    chance, T = chance or GumbelMax(), guide.horizon
    at, level = guide.start(n), 0.0
    used = lw = guide.log_g(at)
    tokens, sizes = np.zeros((n, T), dtype=np.int64), np.zeros(T)
    ended = np.zeros(n, dtype=bool)
    reading = np.arange(n)  # the strings that ask the model, in the order of its rows
    rows = lm.open([tuple(context)] * n)
    try:
        for t in range(T):
            log_p = np.full((n, lm.vocab_size), NEG_INF)
            if len(reading):
                log_p[reading] = rows.log_probs()
            if end is not None:
                log_p[ended, end] = 0.0
            # Score: over the number that the last step multiplied in, not one found anew
            if rare > 0:
                following = guide.log_among(at, log_p >= np.log(rare))
            else:
                following = guide.log_next(at)
            logits = log_p + following
            dead = ~np.isfinite(lw)
            lw = np.where(dead, NEG_INF, lw + log_sum(logits, (1,)) - np.where(dead, 0.0, used))
            sizes[t] = ess(lw) / n
            if sizes[t] == 0.0:
                return GuidedStrings(tokens, lw, NEG_INF, sizes)
            # Resample
            parents = np.arange(n)
            if sizes[t] < resample:
                parents = systematic(normalize(lw), fold(key, "resample", t), chance)
                level += log_mean_exp(lw)
                at, tokens = at.select(parents), tokens[parents]
                logits, following = logits[parents], following[parents]
                lw = np.zeros(n)
            # Draw
            keys = fold_array(
                np.full(n, fold(key, "token", t), dtype=np.uint64), np.arange(n, dtype=np.uint64)
            )
            dead = ~np.isfinite(lw)
            logits[dead] = 0.0
            tokens[:, t] = drawn = chance.categorical(keys, logits)
            used = following[np.arange(n), drawn]
            at = guide.advance(at, drawn)
            if end is not None:
                ended = drawn == end
            if t + 1 < T and len(reading):
                place = np.empty(n, dtype=np.int64)
                place[reading] = np.arange(len(reading))
                reading = np.flatnonzero(~dead & ~ended)
                if len(reading):
                    rows.select(place[parents[reading]])
                    rows.push(drawn[reading])
    finally:
        rows.close()
    return GuidedStrings(tokens, lw + level, level + log_mean_exp(lw), sizes)
