"""Speculation that keeps the law: a small model drafts, the large one checks, the output is its own.

    draft d_1 … d_k ~ q;  for i = 1, 2, …:  keep d_i with probability min(1, p_i(d_i) / q_i(d_i))
    at the first refusal draw from the residual  relu(p_i - q_i) / Σ relu(p_i - q_i)
    if all were kept, draw one token more from p_{k+1}

Each token has exactly the law p of the target: P(v) = min(p, q)(v) + P(refused) · residual(v) = p(v).
With several `candidates`, a refused token is followed by fresh drafts against the residual, before
the residual itself is drawn (multi-candidate speculation); the law is the same.

The target reads all k + 1 positions in one batch. References: Leviathan, Kalman and Matias, Fast
inference from transformers via speculative decoding (2023); Chen et al. (2023); Yang et al.,
Multi-candidate speculative decoding (2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.arguments import check_integers
from lmppl.errors import BadArgument
from lmppl.lm.base import LanguageModel
from lmppl.random import Chance, GumbelMax, draw, fold
from lmppl.types import Floats, Ids, Key


@dataclass(frozen=True)
class Speculated:
    """A text of the target model, and what drafting saved."""

    ids: Ids
    text: str
    drafted: int
    """Tokens that the draft model has proposed, further candidates included."""
    accepted: int
    """Of those that were kept."""
    target_passes: int
    """Batches that the target model has read; without drafts one a token."""


def speculate(
    prompt: str,
    *,
    target: LanguageModel,
    draft: LanguageModel,
    max_tokens: int = 64,
    ahead: int = 4,
    candidates: int = 1,
    seed: int = 0,
    chance: Chance | None = None,
) -> Speculated:
    """Draw a text from the target model with the help of a draft model.

    Args:
        prompt: the text before.
        target: whose law the text has.
        draft: proposes; it must have the target's token ids.
        max_tokens: the text is cut there.
        ahead: k, tokens drafted at a time.
        candidates: drafts that are tried at a refused position.
        seed: of the draws.
        chance: who answers them; tests enumerate with it.

    Returns:
        A `Speculated`; an end-of-text token is not part of its `text`.
    """
    if target.vocab_size != draft.vocab_size or target.eos_ids != draft.eos_ids:
        raise BadArgument(
            "the draft model has other token ids than the target",
            value=f"{draft.vocab_size} and {target.vocab_size} ids",
            fix="draft with a model of the same tokenizer",
        )
    check_integers("speculate", max_tokens=max_tokens, ahead=ahead, candidates=candidates)
    run = _Run(target, draft, candidates, chance or GumbelMax(), fold(0, "speculate", seed))
    context = target.context(prompt)
    while len(run.out) < max_tokens and not run.ended:
        run.round(context, min(ahead, max_tokens - len(run.out)), max_tokens)
    text = target.decode([i for i in run.out if i not in target.eos_ids])
    return Speculated(tuple(run.out), text, run.drafted, run.accepted, run.passes)


def residual(p: Floats, q: Floats) -> Floats:
    """relu(p - q), normalised; p itself where rounding leaves nothing.

    >>> residual(np.array([0.5, 0.5]), np.array([0.75, 0.25])).tolist()
    [0.0, 1.0]
    """
    rest = np.maximum(p - q, 0.0)
    mass = float(rest.sum())
    return rest / mass if mass > 0.0 else p


class _Run:
    """The text so far and the counts."""

    def __init__(
        self, target: LanguageModel, draft: LanguageModel, candidates: int, chance: Chance, key: Key
    ) -> None:
        self.target, self.draft, self.candidates = target, draft, candidates
        self.chance, self.key = chance, key
        self.out: list[int] = []
        self.drafted = self.accepted = self.passes = 0
        self.ended = False

    def _draw(self, at: int, what: str, p: Any) -> int:
        with np.errstate(divide="ignore"):
            logs = np.log(np.asarray(p, dtype=np.float64))
        return draw(self.chance, fold(self.key, len(self.out), at, what), logs)

    def round(self, context: Ids, ahead: int, most: int) -> None:
        """Draft, check, keep."""
        before = (*context, *self.out)
        tokens: list[int] = []
        laws: list[Floats] = []
        rows = self.draft.open([before])
        try:
            for i in range(ahead):
                q = np.exp(rows.log_probs()[0])
                token = self._draw(i, "draft", q)
                tokens.append(token)
                laws.append(q)
                if token in self.target.eos_ids:
                    break
                if i + 1 < ahead:
                    rows.push(np.array([token], dtype=np.int64))
        finally:
            rows.close()
        checked = self.target.open([(*before, *tokens[:i]) for i in range(len(tokens) + 1)])
        try:
            truth = np.exp(checked.log_probs())
        finally:
            checked.close()
        self.passes += 1
        self.drafted += len(tokens)
        for i, (token, q) in enumerate(zip(tokens, laws, strict=True)):
            kept, last = self._check(token, truth[i], q)
            self._append(kept)
            if self.ended or last:
                return
        if len(self.out) < most:
            self._append(self._draw(0, "more", truth[len(tokens)]))

    def _check(self, token: int, p: Floats, q: Floats) -> tuple[int, bool]:
        """The token of one position, and whether the draft after it is void."""
        for trial in range(self.candidates):
            if trial:
                token = self._draw(trial, "candidate", q)
                self.drafted += 1
            ratio = min(1.0, float(p[token] / q[token]))
            if self._draw(trial, "accept", [ratio, 1.0 - ratio]) == 0:
                self.accepted += 1
                return token, trial > 0
            p = residual(p, q)
        return self._draw(0, "residual", p), True

    def _append(self, token: int) -> None:
        self.out.append(token)
        self.ended = token in self.target.eos_ids
