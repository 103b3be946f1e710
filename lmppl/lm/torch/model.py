"""`TorchLM`: any causal language model of transformers, with a forkable cache.

    lm = TorchLM.load("folder-or-hub-name")        # safetensors only, no remote code

What makes it fit for inference with many particles:

* a prefix that several contexts share is computed once, and stored once (`torch/prefill`);
* closed batches are retained: a resample (`close`, then `open` of the survivors) re-indexes their
  keys and values and computes nothing (`torch/store`);
* drawing and weighting run beside the logits; three numbers per row reach the host (`torch/draw`).

A row depends on its batch by rounding alone, and Gumbel-max draws turn rounding into the same token
except at near ties: `batch_gap` reports the rounding. With `deterministic=True` there is none.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lmppl.errors import BadArgument, CapabilityError, ContextOverflow
from lmppl.lm.base import Capabilities, Rows, Usage
from lmppl.lm.continuous import advance_queue
from lmppl.lm.generate import StringState
from lmppl.lm.prefix import as_key_matrix, key_of
from lmppl.lm.tokenized import Tokenized
from lmppl.lm.tokenizer import HFTokenizer
from lmppl.lm.torch import files as torch_files
from lmppl.lm.torch import lora as torch_lora
from lmppl.lm.torch.cache import Block
from lmppl.lm.torch.check import TEXT, batch_gap, pad_steps, self_check
from lmppl.lm.torch.draw import Logits
from lmppl.lm.torch.lora import Adapter
from lmppl.lm.torch.memory import keep_freed_memory
from lmppl.lm.torch.native import NativeBlock
from lmppl.lm.torch.network import Engine, Network, one_thread
from lmppl.lm.torch.pages import PAGE
from lmppl.lm.torch.prefill import Limits, Places, Prefill, Retained, Sink
from lmppl.lm.torch.room import fitting, free_memory, retained_bytes
from lmppl.lm.torch.rows import TorchRows, is_identity
from lmppl.lm.torch.score import Scoring
from lmppl.lm.torch.store import RetainedRows
from lmppl.lm.torch.tidy import tidy
from lmppl.lm.torch.transfer import as_index
from lmppl.random import Chance
from lmppl.types import Floats, Ids, Ints

SCORE_BYTES = 256 << 20
"""Memory of the next-token scores of one scoring pass."""
LEAST_BYTES = 64 << 20
"""Keys and values that one portion of a scoring may hold, whatever the budget."""
WASTE = 48
"""Padded token positions that cost less than one more pass."""


class TorchLM(Tokenized):
    """A causal LM of transformers as a `LanguageModel`.

    Args:
        model: a loaded `…ForCausalLM`; its attention function is replaced by ours where that
            reproduces the model (see `torch/network`).
        tokenizer: its fast tokenizer.
        name: what the ledger calls it.
        source: which copy of the weights this is; part of the fingerprint.
        threads: CPU threads during passes; None leaves torch's own number. The number outside
            of passes is not changed. (What is, on Linux: freed memory of CPU passes stays in the
            process, see `torch/memory`.)
        kv_bytes: memory for keys and values: of rows that are retained, and of a batch that runs
            (strings that do not fit wait, see `lmppl.lm.continuous`). None means 1 GiB of retained
            rows on the CPU and a quarter of the free memory on a GPU, and half of the free memory
            for running ones. 0 retains nothing.
        engine: how passes run; "auto" takes the fastest way that reproduces the model.
        adapters: folders of LoRA adapters by name; see `adapter`.
        deterministic: whether a row must have the same bits in every batch, so that a string has
            the same tokens whatever is drawn beside it; on the CPU in float32 (see `torch/same`).
        buckets: whether single steps are computed in padded shapes, on CUDA as captured graphs (see
            `torch/buckets`); "auto": on CUDA, where that reproduces plain steps.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "torch",
        source: str = "",
        threads: int | None = None,
        kv_bytes: int | None = None,
        engine: Engine | Literal["auto"] = "auto",
        adapters: Mapping[str, str | Path] | None = None,
        deterministic: bool = False,
        buckets: bool | Literal["auto"] = "auto",
    ) -> None:
        """Wrap a loaded model; see `load` for models by name."""
        self.threads = threads
        self._lock = threading.RLock()
        self._adapter: Adapter | None = None
        self._adapters = {n: torch_lora.read(n, Path(f)) for n, f in (adapters or {}).items()}
        for one in self._adapters.values():
            torch_lora.install(model, one)
        exact = model.device.type == "cpu" and model.dtype == torch.float32
        if deterministic and not exact:
            raise CapabilityError(
                f"{name!r} cannot be deterministic on {model.device} in {model.dtype}",
                fix='load it with device="cpu", dtype="float32", or leave deterministic out',
            )
        with self.computing():
            # only our own attention can keep rows apart
            self.network = Network(model, "slots" if deterministic else engine, same=deterministic)
        self.tokenizer = HFTokenizer(tokenizer, self.network.width, torch_files.eos_of(model))
        self.device = self.network.device
        self.dtype = self.network.dtype
        on_cpu = self.device.type == "cpu"
        if on_cpu:
            keep_freed_memory()
        super().__init__(
            name=name,
            vocab_size=self.network.width,
            max_context=self.network.max_context,
            eos_ids=self.tokenizer.eos_ids,
            bos_id=self.tokenizer.bos_id,
            capabilities=Capabilities(batch_invariant=deterministic),
            usage=self.network.usage,
        )
        self.source = source
        kept = retained_bytes(self.device) if kv_bytes is None else kv_bytes
        self.store: RetainedRows[TorchRows] = RetainedRows(kept)
        self.live_bytes = kv_bytes or free_memory(self.device) // 2
        """Memory for keys and values of a batch that runs."""
        with self.computing(), one_thread():
            pad_steps(self.network, buckets, self.live_bytes // 4)
        scores = max(64, SCORE_BYTES // (4 * self.vocab_size))
        self.limits = Limits(1024 if on_cpu else 16384, scores, WASTE)
        absent = self.tokenizer.missing_ids
        self._absent = torch.tensor(absent, device=self.device) if absent else None
        with one_thread():
            self.batch_gap = batch_gap(self, tuple(range(3, min(6, self.vocab_size))))
        """Largest difference of log-probabilities between a row alone and in a batch of 8."""
        self._forget_usage()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        name: str | None = None,
        **options: Any,
    ) -> TorchLM:
        """Load a model folder (safetensors; pickled weights and remote code are refused).

        Args:
            path: a folder with config, tokenizer and weights; `lmppl.lm.load` finds it by name.
            device: "cuda", "mps" or "cpu"; None takes the first of these that exists.
            dtype: a torch dtype or its name; None means bfloat16 on CUDA and float32 elsewhere.
            name: what the ledger calls it; None takes the folder's name.
            options: source, threads, kv_bytes, engine, adapters, deterministic, buckets: see the class.
        """
        folder = Path(path)
        engine = options.get("engine", "auto")
        model, tokenizer = torch_files.read(folder, device, dtype, engine)
        return cls(model, tokenizer, name=name or folder.name, **options)

    def _forget_usage(self) -> None:
        self.network.usage = self.usage = Usage()

    def adapter(self, name: str) -> TorchLM:
        """This model with one of its LoRA adapters: a model of its own over the same weights.

        It has its own name in the ledger, its own fingerprint and its own retained rows.
        """
        if name not in self._adapters:
            raise BadArgument(
                f"{self.name!r} has no adapter {name!r}",
                value=str(sorted(self._adapters)),
                fix=f'load it with adapters={{"{name}": "folder"}}',
            )
        new = copy.copy(self)
        new.network = self.network.twin()
        new.usage = new.network.usage
        new._adapter = self._adapters[name]
        new.name = f"{self.name}+{name}"
        new.store = RetainedRows(self.store.budget)
        new.__dict__.pop("_fingerprint", None)
        return new

    def with_adapters(self) -> dict[str, TorchLM]:
        """The model as "default" and its adapters by their names: what `lm=` of `infer` takes."""
        return {"default": self, **{name: self.adapter(name) for name in self._adapters}}

    @property
    def fingerprint(self) -> str:
        """Name, copy of the weights, dtype, and a hash of some weights and the vocabulary."""
        if not hasattr(self, "_fingerprint"):
            seen = hashlib.blake2b(digest_size=6)
            for word in self.tokenizer.words:
                seen.update(word + b"\0")
            for tensor in self.network.model.parameters():
                part = tensor.detach().flatten()[:64].float().cpu().numpy()
                seen.update(np.asarray(part, dtype=np.float32).tobytes())
            kind = str(self.dtype).removeprefix("torch.")
            adapter = "" if self._adapter is None else self._adapter.digest
            parts = [self.name, self.source, kind, seen.hexdigest(), adapter]
            self._fingerprint = ":".join(p for p in parts if p)
        return self._fingerprint

    # -- model -------------------------------------------------------------------------------

    bounded = True

    def fits(
        self,
        contexts: Sequence[Ids],
        tokens: Sequence[int],
        running: Rows | None = None,
        growth: int = 0,
    ) -> int:
        """How many contexts fit in the memory for running batches; see the base class.

        Each is taken to draw all its tokens; what it shares with the one before is counted once.
        """
        slots = self.live_bytes // max(1, self.network.layout.token_bytes)
        if isinstance(running, TorchRows) and isinstance(running.block, Block):
            slots -= running.block.slots + growth
        found = fitting(slots, contexts, tokens)
        return max(found, 1) if running is None else found

    def advance(
        self, states: Sequence[StringState], chance: Chance, limit: int | None = None
    ) -> int:
        """More strings than fit at once; see `lmppl.lm.continuous`."""
        return advance_queue(self, states, chance, limit)

    def open(self, contexts: Sequence[Ids]) -> TorchRows:
        """Rows at these contexts; what was computed before or is shared is not computed again."""
        with self.computing():
            resting, before = self.store.take_up(contexts), self.usage.computed_tokens
            if resting is not None:
                batch, places = resting
                rows = batch.take_up(places, contexts)
                waiting = rows.pending * len(rows) + self.usage.computed_tokens - before
                self.usage.cached_tokens += int(rows.lens.sum()) - waiting
                return rows
            self._check(contexts)
            unique = sorted(set(contexts))
            place = {c: u for u, c in enumerate(unique)}
            which = np.array([place[c] for c in contexts], dtype=np.int64)
            block: Block | NativeBlock
            if self.network.engine == "slots":
                block, at, scores = self._prefill(unique, which)
            else:
                native, scores = self.network.start(unique)
                block, scores = native.select(which), self._rows_of(scores, which)
                at = np.arange(len(which))
            computed = self.usage.computed_tokens - before
            self.usage.cached_tokens += sum(map(len, contexts)) - computed
            ids, lens = as_key_matrix(contexts, 2 * PAGE)
            return TorchRows(self, block, at, self._logits(scores), ids, lens, contexts)

    def _prefill(self, unique: Sequence[Ids], which: Ints) -> tuple[Block, Ints, Tensor]:
        """The block of a batch, the place of each row in it, and the scores of its rows."""
        parts: list[tuple[Tensor, Places]] = []
        needs = [len(c) - 1 for c in unique]
        plan = self._planned(unique, needs, lambda scores, places: parts.append((scores, places)))
        for u, match in enumerate(plan.matches):
            if match is None:
                continue
            exact = match.shared == match.length == len(unique[u])
            if exact and match.owner.logits is not None:
                needs[u] = len(unique[u])
                row = np.array([match.row], dtype=np.int64)
                parts.append((self._rows_of(match.owner.logits.scores, row), [(u, -1)]))
        block, order = plan.run()
        rows = np.argsort(order)[which]  # row of the block that each row of the batch forks
        outer = np.argsort(rows, kind="stable")
        if not is_identity(rows[outer], len(order)):
            block = block.take(rows[outer], moving=True)
        tidy(block)
        found = {u: n for n, u in enumerate(u for _, places in parts for u, _ in places)}
        scores = parts[0][0] if len(parts) == 1 else torch.cat([scores for scores, _ in parts])
        index = np.array([found[u] for u in which[outer].tolist()], dtype=np.int64)
        return block, np.argsort(outer), self._rows_of(scores, index)

    def _planned(self, seqs: Sequence[Ids], needs: Sequence[int], sink: Sink) -> Prefill:
        network = self.network
        plan = Prefill(
            seqs, needs, self.store.index, network.forward, sink, self.limits, network.layout
        )
        for match in plan.matches:
            if match is not None:
                self.store.touch(match.owner)
        return plan

    def score(
        self,
        contexts: Sequence[Ids],
        continuations: Sequence[Ids],
        ends: Sequence[Sequence[int] | None],
        temperatures: Sequence[float],
    ) -> list[Floats]:
        """Log-probabilities of given continuations by one batched prefill; see the base class."""
        with self.computing():
            work = Scoring(contexts, continuations, ends, temperatures)
            if not work.seqs:
                return work.result()
            self._check([c + t for c, t in zip(contexts, continuations, strict=True)])
            before = self.usage.computed_tokens
            if self.network.engine == "slots":
                self._score_slots(work)
            else:
                self.network.score_native(work.seqs, work.needs, self._taker(work, 0), self.limits)
            computed = self.usage.computed_tokens - before
            self.usage.cached_tokens += work.asked_tokens - computed
            return work.result()

    def _score_slots(self, work: Scoring) -> None:
        """Sequences in their sorted order, as many at a time as the memory budget allows."""
        room = max(self.store.budget // 2, LEAST_BYTES) // self.network.layout.token_bytes
        lo = 0
        while lo < len(work.seqs):
            hi, positions = lo + 1, len(work.seqs[lo])
            while hi < len(work.seqs) and positions + len(work.seqs[hi]) <= room:
                positions += len(work.seqs[hi])
                hi += 1
            part = work.seqs[lo:hi]
            sink = self._taker(work, lo)
            block, order = self._planned(part, work.needs[lo:hi], sink).run()
            block.release()
            self.store.add(Retained(block, None), [key_of(part[u]) for u in order])
            lo = hi

    def _taker(self, work: Scoring, first: int) -> Sink:
        """Where the scores of a portion of sequences, from number `first` on, go."""
        return lambda scores, places: work.take(
            self._logits(scores), [(first + u, at) for u, at in places]
        )

    def step(self, block: Block | NativeBlock, tokens: Ints) -> Logits:
        """Append tokens [B, Q] to all rows of a block; next-token scores of the last."""
        if isinstance(block, NativeBlock):
            return self._logits(block.step(tokens))
        return self._logits(self.network.step(block, tokens))

    @contextmanager
    def computing(self) -> Iterator[None]:
        """No gradients, this model's adapter and CPU threads, and nobody else meanwhile."""
        adapter = None if self._adapter is None else self._adapter.name
        with self._lock, torch.inference_mode(), torch_lora.active(adapter):
            before = torch.get_num_threads()
            if self.threads is None or self.threads == before:
                yield
                return
            torch.set_num_threads(self.threads)
            try:
                yield
            finally:
                torch.set_num_threads(before)

    def clear_cache(self) -> None:
        """Free all retained rows."""
        self.store.clear()

    def self_check(self, text: str = TEXT) -> dict[str, float]:
        """Score a string in two ways and a row in two batches; see `torch/check`."""
        return self_check(self, text)

    # -- inside ------------------------------------------------------------------------------

    def _check(self, contexts: Sequence[Ids]) -> None:
        if not contexts or min(map(len, contexts)) < 1:
            raise BadArgument("every context needs at least one token", fix="start with bos_id")
        longest = max(map(len, contexts))
        if longest > self.max_context:
            text = next(c for c in contexts if len(c) == longest)
            raise ContextOverflow(longest, self.max_context, longest=self.decode(text[-200:]))
        low, high = min(map(min, contexts)), max(map(max, contexts))
        if low < 0 or high >= self.vocab_size:
            bound = self.vocab_size - 1
            raise BadArgument(f"token ids must lie in 0 … {bound}", value=f"{low}, {high}")

    def _logits(self, scores: Tensor) -> Logits:
        if self._absent is not None:
            scores = scores.index_fill(1, self._absent, -torch.inf)
        return Logits(scores)

    def _rows_of(self, scores: Tensor, index: Ints) -> Tensor:
        if is_identity(index, len(scores)):
            return scores
        return scores.index_select(0, as_index(index, self.device))
