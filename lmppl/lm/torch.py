"""`TorchLM`: any causal language model of transformers, with a forkable cache.

    lm = TorchLM.load("folder-or-hub-name")        # safetensors only, no remote code

What makes it fit for inference with many particles:

* a prefix that several contexts share is computed once, and stored once (`torch_prefill`);
* closed batches are retained: a resample (`close`, then `open` of the survivors) re-indexes their
  keys and values and computes nothing (`torch_store`);
* drawing and weighting run beside the logits; three numbers per row reach the host (`torch_draw`).

On the CPU in float32 a row does not depend on its batch beyond rounding, and Gumbel-max draws turn
rounding into the same token except at near ties: `self_check` reports the rounding.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmppl.errors import BadArgument, ContextOverflow, CorruptModel, LmpplError
from lmppl.lm.base import Capabilities, LanguageModel
from lmppl.lm.prefix import as_key_matrix
from lmppl.lm.tokenizer import HFTokenizer
from lmppl.lm.torch_cache import ACTIVE, NAME, SPARE, Block, Pass, SlotCache, register
from lmppl.lm.torch_draw import Logits
from lmppl.lm.torch_prefill import Limits, Places, Prefill
from lmppl.lm.torch_rows import TorchRows
from lmppl.lm.torch_score import Scoring
from lmppl.lm.torch_store import RetainedRows
from lmppl.types import Floats, Ids, Ints

DEFAULT_CPU_BYTES = 1 << 30
SCORE_BYTES = 256 << 20
"""Memory of the next-token scores of one scoring pass."""


class TorchLM(LanguageModel):
    """A causal LM of transformers as a `LanguageModel`.

    Args:
        model: a loaded `…ForCausalLM`; its attention function is replaced by ours.
        tokenizer: its fast tokenizer.
        name: what the ledger calls it.
        source: which copy of the weights this is; part of the fingerprint.
        threads: CPU threads during passes; None leaves torch's own number, and nothing global is
            changed either way.
        kv_bytes: budget for retained rows; None means 1 GiB on the CPU and a quarter of the free
            memory on a GPU. 0 retains nothing.
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
    ) -> None:
        """Wrap a loaded model; see `load` for models by name."""
        head = model.get_output_embeddings()
        if head is None:
            raise BadArgument(f"{type(model).__name__} has no language-model head")
        width = int(head.weight.shape[0])
        self.tokenizer = HFTokenizer(tokenizer, width, _eos(model))
        limit = getattr(model.config, "max_position_embeddings", None)
        self.model = model.eval()
        self.device = torch.device(model.device)
        self.dtype = model.dtype
        exact = self.device.type == "cpu" and self.dtype == torch.float32
        super().__init__(
            name=name,
            vocab_size=width,
            max_context=int(limit or 1 << 20),
            eos_ids=self.tokenizer.eos_ids,
            bos_id=self.tokenizer.bos_id,
            capabilities=Capabilities(batch_invariant=exact),
        )
        self.source = source
        self.threads = threads
        self.spare = SPARE
        self.store = RetainedRows(_budget(self.device) if kv_bytes is None else kv_bytes)
        tokens = 1024 if self.device.type == "cpu" else 16384
        self.limits = Limits(tokens, max(64, SCORE_BYTES // (4 * width)), 48)
        self._lock = threading.RLock()
        self._missing = self._missing_ids()
        self._cache_name = _cache_argument(model)
        self._bare_mask = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=self.device)
        register()
        model.set_attn_implementation(NAME)
        head.register_forward_pre_hook(_keep_wanted)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        name: str | None = None,
        source: str = "",
        threads: int | None = None,
        kv_bytes: int | None = None,
    ) -> TorchLM:
        """Load a model folder (safetensors; pickled weights and remote code are refused).

        Args:
            path: a folder with config, tokenizer and weights; `lmppl.lm.load` finds it by name.
            device: "cuda", "mps" or "cpu"; None takes the first of these that exists.
            dtype: a torch dtype or its name; None means bfloat16 on CUDA and float32 elsewhere.
            name: what the ledger calls it; None takes the folder's name.
            source: which copy of the weights this is.
            threads: see the class.
            kv_bytes: see the class.
        """
        folder = Path(path)
        check_folder(folder)
        from transformers import AutoModelForCausalLM, AutoTokenizer

        where = torch.device(device or best_device())
        kind = _dtype(dtype, where)
        try:
            with _quiet():
                tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
                model = AutoModelForCausalLM.from_pretrained(
                    str(folder), dtype=kind, use_safetensors=True, trust_remote_code=False
                )
        except Exception as error:  # damaged files raise whatever their parser raises
            raise CorruptModel(
                "the model cannot be read",
                where=str(folder),
                value=f"{type(error).__name__}: {str(error)[:300]}",
                fix="download it again; only causal models that transformers itself implements work",
            ) from error
        return cls(
            model.to(where),
            tokenizer,
            name=name or folder.name,
            source=source,
            threads=threads,
            kv_bytes=kv_bytes,
        )

    # -- tokenizer ---------------------------------------------------------------------------

    def encode(self, text: str) -> Ids:
        """Canonical ids; control tokens typed by a user stay text."""
        return self.tokenizer.encode(text)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token."""
        return self.tokenizer.token_bytes(token)

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> Ids:
        """The model's own template; see `HFTokenizer.encode_chat` for what it may insert."""
        return self.tokenizer.encode_chat(messages)

    def chat_preview(self, messages: Sequence[tuple[str, str]]) -> str:
        """The text that the template makes of these turns, its default system message included."""
        return self.tokenizer.chat_preview(messages)

    @property
    def special_ids(self) -> frozenset[int]:
        """Control tokens."""
        return self.tokenizer.special_ids

    @property
    def fingerprint(self) -> str:
        """Name, copy of the weights, dtype, and a hash of some weights and the vocabulary."""
        if not hasattr(self, "_fingerprint"):
            seen = hashlib.blake2b(digest_size=6)
            for word in self.tokenizer.words:
                seen.update(word + b"\0")
            for tensor in self.model.parameters():
                part = tensor.detach().flatten()[:64].float().cpu().numpy()
                seen.update(np.asarray(part, dtype=np.float32).tobytes())
            kind = str(self.dtype).removeprefix("torch.")
            parts = [self.name, self.source, kind, seen.hexdigest()]
            self._fingerprint = ":".join(p for p in parts if p)
        return self._fingerprint

    # -- model -------------------------------------------------------------------------------

    def open(self, contexts: Sequence[Ids]) -> TorchRows:
        """Rows at these contexts; what was computed before or is shared is not computed again."""
        with self.computing():
            self._check(contexts)
            unique = sorted(set(contexts))
            plan = Prefill(
                unique,
                [len(c) - 1 for c in unique],
                self.store.index,
                self.forward,
                lambda scores, places: parts.append((scores, places)),
                self.limits,
                single=len(contexts) == 1,
            )
            parts: list[tuple[Tensor, Places]] = []
            for u, match in enumerate(plan.matches):
                if match is None:
                    continue
                self.store.touch(match.owner)
                exact = match.shared == match.length == len(unique[u])
                if exact and match.owner.logits is not None:
                    plan.needs[u] = len(unique[u])
                    row = torch.tensor([match.row], device=self.device)
                    parts.append((match.owner.logits.scores.index_select(0, row), [(u, -1)]))
            block, order = plan.run()
            row_of = np.argsort(order)
            place = {c: u for u, c in enumerate(unique)}
            which = np.array([place[c] for c in contexts], dtype=np.int64)
            index = row_of[which]
            if len(index) != len(order) or bool((index != np.arange(len(order))).any()):
                block = block.select(index, self.spare)
            logits = Logits(_assemble(parts, which, self.device))
            self.usage.cached_tokens += sum(map(len, contexts)) - plan.computed
            ids, lens = as_key_matrix(contexts, self.spare)
            return TorchRows(self, block, logits, ids, lens)

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
            self._check([c + t for c, t in zip(contexts, continuations, strict=True)])
            if work.seqs:
                plan = Prefill(
                    work.seqs, work.needs, self.store.index, self.forward, work.take, self.limits
                )
                for match in plan.matches:
                    if match is not None:
                        self.store.touch(match.owner)
                block, order = plan.run()
                total = sum(len(work.seqs[u]) * n for u, n in work.counts.items())
                self.usage.cached_tokens += total - plan.computed
                self._retain(block, [work.seqs[u] for u in order])
            return work.result()

    def step(self, block: Block, tokens: Ints) -> Tensor:
        """Append tokens [B, Q] to all rows of a block; next-token scores [B, V] of the last."""
        rows, width = tokens.shape
        last = [[width - 1]] * rows
        return self.forward(block, 0, rows, [tuple(t) for t in tokens.tolist()], last)

    def forward(
        self,
        block: Block,
        lo: int,
        hi: int,
        tokens: Sequence[Ids],
        wanted: Sequence[Sequence[int]],
    ) -> Tensor:
        """One pass of rows lo … hi - 1: append `tokens`, return scores where they are wanted."""
        counts = np.array([len(t) for t in tokens], dtype=np.int64)
        width = int(counts.max())
        ids = np.zeros((hi - lo, width), dtype=np.int64)
        for r, one in enumerate(tokens):
            ids[r, : len(one)] = one
        flat = [r * width + offset for r, offsets in enumerate(wanted) for offset in offsets]
        block.reserve(int(block.lens[lo:hi].max(initial=0)) + width)
        current = Pass(block, lo, hi, width, self.device, torch.tensor(flat, device=self.device))
        positions = (current.own + block.trunk.length).clamp_(max=self.max_context - 1)
        ACTIVE.current = current
        try:
            out = self.model(
                input_ids=torch.from_numpy(ids).to(self.device),
                attention_mask=self._bare_mask,
                position_ids=positions,
                use_cache=True,
                **{self._cache_name: SlotCache(current)},
            )
        finally:
            ACTIVE.current = None
        block.lens[lo:hi] += counts
        self.usage.passes += 1
        self.usage.computed_tokens += int(counts.sum())
        scores: Tensor = out.logits[0].float()
        if self._missing is not None:
            scores = scores.index_fill(1, self._missing, -torch.inf)
        return scores

    @contextmanager
    def computing(self) -> Iterator[None]:
        """No gradients, one thread at a time, and this model's number of CPU threads."""
        with self._lock, torch.inference_mode():
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

    def self_check(self, text: str = "The capital of France is Paris. It") -> dict[str, float]:
        """Score a known string in two ways and a batch in two sizes.

        Returns:
            "scoring": largest difference of log-probabilities between one scoring pass and token
            by token; "batch": between a row alone and in a batch of 8.

        Raises:
            LmpplError: when the two scorings differ by more than 1e-3 (0.2 in half precision).
        """
        ids = self.encode(text)
        kept, self.store = self.store, RetainedRows(0)
        try:
            at_once = self.score([ids[:1]], [ids[1:]], [None], [1.0])[0]
            stepwise = LanguageModel.score(self, [ids[:1]], [ids[1:]], [None], [1.0])[0]
            alone = self.open([ids]).log_probs()[0]
            eight = self.open([ids[: len(ids) - n % 4] for n in range(8)]).log_probs()[0]
        finally:
            self.store = kept
        finite = np.isfinite(alone)
        found = {
            "scoring": float(np.abs(at_once - stepwise).max()),
            "batch": float(np.abs(alone[finite] - eight[finite]).max()),
        }
        bound = 1e-3 if self.dtype == torch.float32 else 0.2
        if not found["scoring"] <= bound:
            raise LmpplError(
                "scoring a text at once and token by token gives different log-probabilities",
                value=f"largest difference {found['scoring']:.3g}, bound {bound}",
                why="weights made from such numbers would be wrong",
                fix="load the model with dtype=torch.float32; report the architecture if it persists",
            )
        return found

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
            raise BadArgument(f"token ids must lie in 0 … {self.vocab_size - 1}", value=f"{low}, {high}")

    def _retain(self, block: Block, seqs: Sequence[Ids]) -> None:
        from lmppl.lm.prefix import key_of
        from lmppl.lm.torch_prefill import Retained

        self.store.add(Retained(block, None), [key_of(s) for s in seqs])

    def _missing_ids(self) -> Tensor | None:
        absent = self.tokenizer.missing_ids
        return torch.tensor(absent, device=self.device) if absent else None


def check_folder(folder: Path) -> None:
    """Refuse folders whose weights are pickled, before anything opens them."""
    if any(folder.glob("*.safetensors")):
        return
    pickled = [p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern)]
    raise CorruptModel(
        "no safetensors file" + (f", only {pickled[0]}" if pickled else ""),
        where=str(folder),
        why="pickled weights can run code when they are opened",
        fix="convert the weights with safetensors, or take a repository that has them",
    )


def best_device() -> str:
    """cuda, mps or cpu: the first that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise BadArgument(f"{dtype!r} is no torch dtype", fix='write "float32" or "bfloat16"')
    return found


def _budget(device: torch.device) -> int:
    if device.type != "cuda":
        return DEFAULT_CPU_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return int(free // 4)


def _eos(model: Any) -> list[int]:
    found: list[int] = []
    for config in (getattr(model, "generation_config", None), model.config):
        value = getattr(config, "eos_token_id", None)
        if value is not None:
            found += [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return found


def _cache_argument(model: Any) -> str:
    """transformers renamed `past_key_values` to `cache` in the course of version 5."""
    import inspect

    names = inspect.signature(type(model).forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def _keep_wanted(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Before the head: keep the hidden states whose scores are wanted, [1, n, hidden]."""
    current = ACTIVE.current
    if current is None:
        return None
    hidden = args[0]
    return (hidden.flatten(0, 1).index_select(0, current.gather)[None],)


def _assemble(
    parts: Sequence[tuple[Tensor, Places]], which: Ints, device: torch.device
) -> Tensor:
    """Scores [B, V] in the caller's order from what the passes gave."""
    at: dict[int, int] = {}
    n = 0
    for scores, places in parts:
        for u, _ in places:
            at[u] = n
            n += 1
    index = np.array([at[int(u)] for u in which], dtype=np.int64)
    whole = parts[0][0] if len(parts) == 1 else torch.cat([scores for scores, _ in parts])
    if len(index) == len(whole) and bool((index == np.arange(len(index))).all()):
        return whole
    return whole.index_select(0, torch.from_numpy(index).to(device))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of transformers; its setting is restored."""
    from transformers.utils import logging

    on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if on:
            logging.enable_progress_bar()
