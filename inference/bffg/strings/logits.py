"""The backward filter inside `generate` of transformers: a logits processor (torch) that also weighs.

    guided = bffg.GuidedLogits(filter, prompt_length=ids.shape[1], eos=tokenizer.eos_token_id)
    out = model.generate(ids, logits_processor=[guided], max_new_tokens=filter.horizon,
                         do_sample=True, top_k=0, num_return_sequences=32)
    log_w = guided.log_weights(out)

`generate` draws from q ∝ p g, which is not p under the rule. The processor sees p, and so it keeps what
makes up for that,

    W(x) = τ(x) Π_t Z_t / g_{t+1}(x_1 … x_{t+1}),      Z_t = Σ_v p(v | x_1 … x_t) g_{t+1}(x_1 … x_t v),

whose mean is Σ_x p(x) τ(x). p is the law of the scores that reach it: processors may stand before it;
behind it temperature, top-k and top-p must be off, or the weights are those of another law.

Reference: van der Meulen and Schauer (2020); Zhang, Kung, Yoshida, Van den Broeck and Peng, Adaptable
logical control for large language models (2024), for generation without weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.bffg.strings.automaton import HMMAutomaton, Prefixes
from lmppl.inference.bffg.strings.guide import filtered
from lmppl.types import Floats
from lmppl.weights import NEG_INF, log_sum


class GuidedLogits:
    """The filter as an entry of `generate(logits_processor=[...])`, for one call of it.

    Args:
        automaton: the filter; its horizon is at least `max_new_tokens`.
        prompt_length: tokens before the string, padding included.
        eos: the end token; what comes behind it is padding.
    """

    def __init__(self, automaton: HMMAutomaton, prompt_length: int, eos: int | None = None) -> None:
        """Nothing is read."""
        self.automaton, self.prompt_length, self.eos = automaton, prompt_length, eos
        self._known: dict[tuple[int, ...], Prefixes] = {(): automaton.start()}
        # log Π Z / g of strings that arrived; the same with Z, and log g, of those that go on
        self._level: dict[tuple[int, ...], float] = {(): 0.0}
        self._last: dict[tuple[int, ...], tuple[float, Floats]] = {}

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """log p + log g of the next token [B, V]; strings that have ended or died are let through."""
        import torch

        V = self.automaton.hmm.tokens
        if scores.shape[1] < V:
            raise BadArgument(
                f"a filter over {V} tokens, and the scores are of {scores.shape[1]}",
                fix="make the surrogate and the automaton of the model that generates",
            )
        log_p = torch.log_softmax(scores.double(), dim=1).cpu().numpy()
        tilt = np.zeros(scores.shape)
        strings = self._strings(input_ids)
        levels = {ids: self._arrive(ids) for ids in strings}
        living = [ids for ids in levels if self.eos not in ids]
        last: dict[tuple[int, ...], tuple[float, Floats]] = {}
        if living:
            known = [filtered(self.automaton, ids, self._known) for ids in living]
            following = self.automaton.log_next(Prefixes.together(known))
            for ids, row in zip(living, following, strict=True):
                total = float(log_sum(log_p[strings.index(ids), :V] + row, (0,)))
                last[ids] = levels[ids] + total, row if total > NEG_INF else np.zeros(V)
        for row, ids in enumerate(strings):
            if ids in last:
                tilt[row, :V], tilt[row, V:] = last[ids][1], NEG_INF
        self._last = last
        return scores + torch.from_numpy(tilt).to(scores)

    def log_weights(self, sequences: Any) -> Floats:
        """log W of what `generate` returned [B]; the mean of W estimates Σ_x p(x) τ(x)."""
        out = []
        for ids in self._strings(sequences):
            state = int(filtered(self.automaton, ids, self._known).s[0])
            tau = float(self.automaton.terminal[state])
            out.append(self._arrive(ids) + (np.log(tau) if tau > 0 else NEG_INF))
        return np.array(out)

    def _strings(self, sequences: Any) -> list[tuple[int, ...]]:
        """The tokens behind the prompt, up to an end."""
        found = []
        for ids in sequences[:, self.prompt_length :].tolist():
            cut = ids.index(self.eos) + 1 if self.eos in ids else len(ids)
            found.append(tuple(ids[:cut]))
        return found

    def _arrive(self, ids: tuple[int, ...]) -> float:
        """log Π Z / g of a string that was just drawn, or was known."""
        known = self._level.get(ids)
        if known is not None:
            return known
        if ids[:-1] not in self._last:
            raise BadArgument(
                f"a string of {len(ids)} tokens that this processor has not seen grow",
                fix="make a new GuidedLogits for every call of generate, with the right "
                "prompt_length and eos",
            )
        level, following = self._last[ids[:-1]]
        g = float(following[ids[-1]])
        self._level[ids] = level = level - g if g > NEG_INF else NEG_INF  # -inf: never drawn
        return level
