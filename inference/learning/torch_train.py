"""`TrainableLM`: a torch model that learns from weighted texts, by the same callback as a table.

    loss(θ) = - Σ_i w_i log p_θ(completion_i | prompt_i) / Σ_i w_i

The weights are posterior ones, so a gradient step is a generalised M-step of Monte Carlo EM. Only
completions are learnt, with the event that they end; where several tokens may end a text, their
summed probability. Meant for small models and for teaching; `export_sft` writes the same examples
for a real trainer.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmppl.errors import BadArgument, excerpt
from lmppl.inference.learning.tabular import as_text
from lmppl.inference.learning.texts import WeightedText
from lmppl.lm.base import LanguageModel
from lmppl.lm.tokenizer import byte_alphabet
from lmppl.lm.torch import TorchLM
from lmppl.types import Ids


@dataclass(frozen=True)
class Training:
    """How to train.

    Args:
        epochs: passes over the texts.
        rate: of AdamW, falling to a tenth along a cosine.
        batch: texts in a step.
        decay: of the weights.
        clip: the largest norm of a gradient.
        seed: of the order of the texts.
    """

    epochs: int = 10
    rate: float = 3e-3
    batch: int = 32
    decay: float = 0.0
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.epochs < 1 or self.batch < 1:
            raise BadArgument("training needs epochs ≥ 1 and batch ≥ 1", value=repr(self))
        if not (self.rate > 0 and self.clip > 0 and self.decay >= 0):
            raise BadArgument("training needs rate > 0, clip > 0, decay ≥ 0", value=repr(self))


class Tokens(NamedTuple):
    """One text as tokens."""

    context: Ids
    ids: Ids
    ends: tuple[int, ...]
    weight: float


class TrainableLM(TorchLM):
    """A `TorchLM` with `fit(texts)`, which returns a trained copy.

    Args:
        model: a `…ForCausalLM`; it is copied, and stays as it is.
        tokenizer: its fast tokenizer.
        training: how to train.
        options: those of `TorchLM`.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, training: Training | None = None, **options: Any
    ) -> None:
        """Keep a plain copy for training: what runs has another attention function."""
        self.plain = model
        self.fast_tokenizer = tokenizer
        self.training = training or Training()
        self.options = {"name": "trainable", **options}
        self.losses: list[float] = []
        """Mean loss of each epoch that made this model."""
        running: Any = copy.deepcopy(model)
        super().__init__(running.eval(), tokenizer, **self.options)

    @classmethod
    def tiny(
        cls,
        *,
        hidden: int = 32,
        layers: int = 2,
        context: int = 128,
        seed: int = 0,
        training: Training | None = None,
        **options: Any,
    ) -> TrainableLM:
        """A random Llama over bytes, of some 40,000 weights: it knows nothing yet."""
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=257, hidden_size=hidden, intermediate_size=2 * hidden,
            num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4,
            max_position_embeddings=context, bos_token_id=None, eos_token_id=0, pad_token_id=None,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            make: Any = LlamaForCausalLM
            model = make(config).eval()
        return cls(model, byte_tokenizer(), training=training, **options)

    def fit(self, texts: Iterable[WeightedText | str | tuple[str, float]]) -> TrainableLM:
        """A copy of this model, trained on the texts; the optimiser starts anew."""
        data = joined(self, texts)
        model = copy.deepcopy(self.plain)
        losses = train(model, data, self.training)
        new = TrainableLM(model, self.fast_tokenizer, training=self.training, **self.options)
        new.losses = losses
        return new

    def loss(self, texts: Iterable[WeightedText | str | tuple[str, float]]) -> float:
        """The loss of the module's first lines, on some texts."""
        data = joined(self, texts)
        total = sum(s.weight for s in data)
        with torch.no_grad():
            parts = [
                float((_weights(batch) * _nll(self.plain, batch)).sum())
                for batch in _slices(data, 64)
            ]
        return math.fsum(parts) / total


def joined(
    lm: LanguageModel, texts: Iterable[WeightedText | str | tuple[str, float]]
) -> list[Tokens]:
    """The texts as tokens; equal ones are one, and what has no weight is left out."""
    found: dict[tuple[Ids, Ids, tuple[int, ...]], float] = {}
    for item in texts:
        text = as_text(item)
        if not (math.isfinite(text.weight) and text.weight >= 0):
            raise BadArgument(
                f"a weight must be a number ≥ 0, got {text.weight!r}",
                value=excerpt(text.completion),
            )
        sequences = text.endings(lm)
        if not sequences:
            raise BadArgument(
                f"no token sequence of {lm.name!r} is this completion under its law",
                value=excerpt(text.completion),
            )
        first = sequences[0]  # the canonical one; others differ in how a stop string is spelled
        key = (text.context(lm), tuple(first.ids), tuple(first.ends or ()))
        if key[1] or key[2]:
            found[key] = found.get(key, 0.0) + text.weight
    data = [Tokens(*key, weight) for key, weight in found.items() if weight > 0]
    if not data:
        raise BadArgument("no text with positive weight to learn from")
    return data


def train(model: Any, data: Sequence[Tokens], how: Training) -> list[float]:
    """Train in place; the mean loss of each epoch."""
    rng = np.random.default_rng(how.seed)
    total = sum(s.weight for s in data)
    steps = how.epochs * math.ceil(len(data) / how.batch)
    model.requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=how.rate, weight_decay=how.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda k: 0.55 + 0.45 * math.cos(math.pi * min(k / steps, 1.0))
    )
    losses = []
    with torch.enable_grad():
        for _ in range(how.epochs):
            spent = 0.0
            order = [data[i] for i in rng.permutation(len(data))]
            for batch in _slices(order, how.batch):
                summed = (_weights(batch) * _nll(model, batch)).sum()
                optimiser.zero_grad()
                loss: Any = summed * (len(data) / (total * len(batch)))
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), how.clip)
                optimiser.step()
                schedule.step()
                spent += float(summed.detach())
            losses.append(spent / total)
    if not math.isfinite(losses[-1]):
        raise BadArgument("training diverged", fix=f"lower the rate, which is {how.rate:g}")
    model.requires_grad_(False)
    return losses


def _nll(model: Any, batch: Sequence[Tokens]) -> Tensor:
    """-log p of each completion and its end [B]."""
    rows = [s.context + s.ids for s in batch]
    width = max(map(len, rows))
    device = next(model.parameters()).device
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    seen = torch.zeros((len(rows), width), dtype=torch.long)
    learnt = torch.zeros((len(rows), width), dtype=torch.bool)
    for b, (row, s) in enumerate(zip(rows, batch, strict=True)):
        ids[b, : len(row)] = torch.tensor(row)
        seen[b, : len(row)] = 1
        learnt[b, len(s.context) : len(row)] = True
    ids, seen, learnt = ids.to(device), seen.to(device), learnt.to(device)
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits
    logp = torch.log_softmax(logits.float(), dim=-1)
    each = logp[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    found: Tensor = -(each * learnt[:, 1:]).sum(dim=1)
    ending = [b for b, s in enumerate(batch) if s.ends]
    if ending:
        ends = [logp[b, len(rows[b]) - 1, list(batch[b].ends)].logsumexp(0) for b in ending]
        found = found.index_add(0, torch.tensor(ending, device=device), -torch.stack(ends))
    return found


def _weights(batch: Sequence[Tokens]) -> Tensor:
    return torch.tensor([s.weight for s in batch])


def _slices(data: Sequence[Tokens], size: int) -> Iterator[Sequence[Tokens]]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def byte_tokenizer() -> Any:
    """A fast tokenizer of 257 tokens: one that begins and ends a text, and the bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    fast: Any = PreTrainedTokenizerFast

    end = "<|end|>"
    alphabet = byte_alphabet()
    letters = sorted(alphabet, key=lambda letter: alphabet[letter])
    vocab = {word: i for i, word in enumerate([end, *letters])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(end, special=True, normalized=False)])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{end} $A", pair=f"{end} $A $B", special_tokens=[(end, 0)]
    )
    return fast(tokenizer_object=backend, bos_token=end, eos_token=end)
