"""The network of a transformers model, run in one of three ways.

* "slots": our pages and attention (`torch/cache`). For full and sliding-window attention.
* "native": the model's own cache and attention, rows grouped by length (`torch/native`).
* "recompute": no cache at all.

"auto" tries them in this order on a short known sequence and takes the first that reproduces an
uncached pass of the untouched model; an architecture that silently does something else with its
positions, masks or state is found out here and not in somebody's posterior.
"""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from lmppl.errors import BadArgument, CapabilityError
from lmppl.lm.base import Usage
from lmppl.lm.torch.attend import ACTIVE, NAME, Current, PagedCache, Pass, register
from lmppl.lm.torch.buckets import Buckets
from lmppl.lm.torch.cache import Block
from lmppl.lm.torch.llama import Llama
from lmppl.lm.torch.native import NativeBlock
from lmppl.lm.torch.pages import Layout, Shape
from lmppl.lm.torch.prefill import Limits, Sink
from lmppl.lm.torch.reproduces import different
from lmppl.lm.torch.same import same_bits
from lmppl.lm.torch.transfer import as_index, to_device
from lmppl.types import Ids, Ints

if TYPE_CHECKING:
    from lmppl.lm.torch.fused import FusedLlama

Engine = Literal["slots", "native", "recompute"]
ENGINES: tuple[Engine, ...] = ("slots", "native", "recompute")
SWITCHING_ROPE = ("dynamic", "longrope")
"""Rotary scalings that change all positions once a batch grows beyond the original length."""


class Network:
    """Forward passes of one model.

    Args:
        model: a loaded `…ForCausalLM`.
        engine: one of the three ways, or "auto".
        same: whether a row must have the same bits in every batch (see `torch/same`).
    """

    def __init__(
        self, model: Any, engine: Engine | Literal["auto"] = "auto", *, same: bool = False
    ) -> None:
        """Choose the way to run it."""
        self.same = same
        self.model = model.eval()
        self.head = model.get_output_embeddings()
        if self.head is None:
            raise BadArgument(f"{type(model).__name__} has no language-model head")
        self.width = int(self.head.weight.shape[0])
        self.device = torch.device(model.device)
        self.dtype: torch.dtype = model.dtype
        self.max_context = _max_context(model.config)
        self.usage = Usage()
        self.layout = Layout((), self.dtype, self.device)
        """What a token leaves in the cache, in the way of "slots"."""
        self._own_attention = model.config._attn_implementation
        names = inspect.signature(type(model).forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        self._takes_positions = "position_ids" in names
        self._heard: dict[int, int] = {}
        self.engine: Engine = "recompute"
        self.fused: FusedLlama | None = None
        """The kernels of single steps; None: steps are those of the model."""
        self.buckets: Buckets | None = None
        """Padded shapes of single steps; None: each step has its own."""
        self._bare_mask = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=self.device)
        with torch.inference_mode(), one_thread():
            self.engine = self._choose(ENGINES if engine == "auto" else (engine,))
        self.usage = Usage()

    @property
    def padded(self) -> bool:
        """Whether a single step costs about the same for a few rows more."""
        return self.fused is not None or self.buckets is not None

    # -- slots -------------------------------------------------------------------------------

    def forward(
        self,
        block: Block,
        rows: Ints,
        tokens: Sequence[Ids],
        wanted: Sequence[Sequence[int]],
        room: int,
    ) -> Tensor:
        """One pass of some rows: append `tokens`, return scores where they are wanted.

        Args:
            block: the batch, changed in place.
            rows: which of its rows [b], in order.
            tokens: new tokens of each row; lengths may differ.
            wanted: for each row, offsets into its new tokens.
            room: slots of the pages that are begun if there are none to append to.

        Returns:
            Next-token scores [n, V] in float32, rows in order, offsets in order.
        """
        counts = np.array([len(t) for t in tokens], dtype=np.int64)
        width = int(counts.max())
        if self.padded and width == 1 and len(rows) == len(block) and all(map(len, wanted)):
            return self.step(block, np.array(tokens, dtype=np.int64))
        ids = np.zeros((len(rows), width), dtype=np.int64)
        for r, one in enumerate(tokens):
            ids[r, : len(one)] = one
        flat = [r * width + offset for r, offsets in enumerate(wanted) for offset in offsets]
        gather = as_index(np.array(flat, dtype=np.int64), self.device)
        return self._run(Pass(block, rows, width, room, gather, self.same), ids, counts)

    def step(self, block: Block, tokens: Ints) -> Tensor:
        """Append tokens [B, Q] to all rows of a block; the scores [B, V] after the last."""
        count, width = tokens.shape
        for way in (self.fused, self.buckets) if width == 1 else ():
            scores = None if way is None else way.step(block, tokens[:, 0])
            if scores is not None:
                self._count(count)
                return scores
        gather = torch.arange(width - 1, count * width, width, device=self.device)
        current = Pass(block, np.arange(count), width, block.fresh_room(), gather, self.same)
        return self._run(current, tokens, np.full(count, width, dtype=np.int64))

    def _run(self, current: Pass, ids: Ints, counts: Ints) -> Tensor:
        scores = self.compute(current, to_device(ids, self.device))
        current.done(counts)
        self._count(int(counts.sum()))
        return scores

    def compute(self, current: Current, ids: Tensor) -> Tensor:
        """One pass of the model: next-token scores [n, V] in float32 where they are wanted."""
        ACTIVE.current = current
        try:
            with same_bits(self.same):
                out = self.model(
                    input_ids=ids,
                    attention_mask=self._bare_mask,
                    position_ids=current.positions.clamp(max=self.max_context - 1),
                    use_cache=True,
                    **{self._cache_name: PagedCache(current)},
                )
        finally:
            ACTIVE.current = None
        self._heard = current.heard
        scores: Tensor = out.logits[0].float()
        return scores

    def twin(self) -> Network:
        """The same model with workspaces and a count of its own."""
        new = copy.copy(self)
        new.usage = Usage()
        if self.buckets is not None:
            new.buckets = Buckets(new.compute, new.layout, self.buckets.budget)
        return new

    # -- the model's own ways ----------------------------------------------------------------

    def call(self, ids: Tensor, cache: Any, last: bool) -> tuple[Tensor, Any]:
        """The untouched model on rows of equal length: scores of the last or of all positions."""
        options: dict[str, Any] = {"use_cache": self.engine == "native"}
        if cache is not None:
            options[self._cache_name] = cache
        out = self.model(input_ids=ids, **options)
        self._count(ids.numel())
        found = getattr(out, self._cache_name, None) if options["use_cache"] else None
        scores: Tensor = out.logits
        return (scores[:, -1] if last else scores).float(), found

    def start(self, contexts: Sequence[Ids]) -> tuple[NativeBlock, Tensor]:
        """A batch at these contexts, in the native way or by recomputation."""
        return NativeBlock.start(self.call, self.engine == "native", contexts, self.device)

    def score_native(
        self, seqs: Sequence[Ids], needs: Sequence[int], sink: Sink, limits: Limits
    ) -> None:
        """Next-token scores of sequences from position needs[u] on, without padding."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for u, seq in enumerate(seqs):
            by_length[len(seq)].append(u)
        for length, members in by_length.items():
            size = max(1, min(limits.tokens, limits.scores) // length)
            for lo in range(0, len(members), size):
                part = members[lo : lo + size]
                ids = torch.tensor([seqs[u] for u in part], device=self.device)
                scores, _ = self.call(ids, None, False)
                rows = torch.cat([scores[i, needs[u] :] for i, u in enumerate(part)])
                sink(rows, [(u, p) for u in part for p in range(needs[u], length)])

    def _count(self, tokens: int) -> None:
        self.usage.passes += 1
        self.usage.computed_tokens += tokens

    # -- choosing ----------------------------------------------------------------------------

    def _choose(self, engines: Sequence[Engine]) -> Engine:
        """The first of these that reproduces an uncached pass."""
        ids = tuple((7919 * i + 11) % self.width for i in range(12))
        self.engine = "recompute"
        reference = self.call(torch.tensor([ids], device=self.device), None, False)[0][0]
        self.reasons: list[str] = []
        for engine in engines:
            self.engine = engine
            try:
                if engine == "slots":
                    self._install()
                    reason = self._compared(reference, self._try_slots(ids)) or self._windows()
                else:
                    reason = self._compared(reference, self._try_native(ids))
            except Exception as error:  # whatever an architecture raises, the next way is tried
                reason = f"{type(error).__name__}: {error}"
            if reason is None:
                return engine
            if engine == "slots":
                self._uninstall()
            self.reasons.append(f"{engine}: {reason}")
        raise CapabilityError(
            f"{type(self.model).__name__} gives no reproducible next-token scores",
            value="; ".join(self.reasons),
            fix="load it with dtype=torch.float32, or report the architecture",
        )

    def _install(self) -> None:
        if not isinstance(self.model, Llama):
            register()
        self.model.set_attn_implementation(NAME)
        self._hook = self.head.register_forward_pre_hook(_keep_wanted)

    def _uninstall(self) -> None:
        self._hook.remove()
        self.model.set_attn_implementation(self._own_attention)

    def _try_slots(self, ids: Ids) -> list[tuple[int, Tensor]]:
        """(position, scores) by rows of unequal length, then a step, then over shared pages."""
        if not self._takes_positions:
            raise NotImplementedError("the model takes no position_ids")
        self.layout = self._find_layout(ids[:2])
        block = Block.empty(self.layout, 2)
        both = np.arange(2)
        first = self.forward(block, both, [ids[:5], ids[:8]], [[4], [7]], 8)
        second = self.forward(block, both, [ids[5:6], ids[8:9]], [[0], [0]], 8)
        shared = block.take(np.array([1, 1, 1]), np.array([6, 6, 7]))
        three = np.arange(3)
        third = self.forward(shared, three, [ids[6:8], ids[6:11], ids[7:8]], [[1], [4], [0]], 8)
        fourth = self.forward(shared, three, [ids[8:9], ids[11:12], ids[8:9]], [[0], [0], [0]], 8)
        places = [4, 7, 5, 8, 7, 10, 7, 8, 11, 8]
        return list(zip(places, torch.cat([first, second, third, fourth]), strict=True))

    def _find_layout(self, ids: Ids) -> Layout:
        """What each layer hands to its cache."""
        probe = _Probe()
        n = len(ids)  # a mask of the whole shape: fused kernels refuse a broadcast one
        self.model(
            input_ids=torch.tensor([ids], device=self.device),
            position_ids=torch.arange(n, device=self.device)[None],
            attention_mask=torch.ones((1, 1, n, n), dtype=torch.bool, device=self.device),
            use_cache=True,
            **{self._cache_name: probe},
        )
        layers = sorted(probe.shapes)
        if layers != list(range(len(layers))) or not layers:
            raise NotImplementedError(f"layers {layers} have keys and values")
        return Layout(tuple(probe.shapes[n] for n in layers), self.dtype, self.device)

    def _try_native(self, ids: Ids) -> list[tuple[int, Tensor]]:
        """(position, scores) after a fork and a step."""
        block, first = self.start([ids[:5], ids[:8]])
        block = block.select(np.array([1, 0, 1]))
        second = block.step(np.array([[ids[8]], [ids[5]], [ids[8]]]))
        third = block.select(np.array([2, 0])).step(np.array([[ids[9]], [ids[9]]]))
        places = [4, 7, 8, 5, 8, 9, 9]
        return list(zip(places, torch.cat([first, second, third]), strict=True))

    def _compared(self, reference: Tensor, found: Sequence[tuple[int, Tensor]]) -> str | None:
        """Why these scores at positions are not those of the reference, or None."""
        places = [position for position, _ in found]
        return different(reference[places], torch.stack([s for _, s in found]), self.dtype)

    def _windows(self) -> str | None:
        """Whether every layer told the attention function the window that its mask has, or None."""
        config = self.model.config
        window = int(getattr(config, "sliding_window", None) or 0)
        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            layers = int(config.num_hidden_layers)
            kinds = ["sliding_attention" if window else "full_attention"] * layers
        expected = {"full_attention": 0, "sliding_attention": window}
        for layer, kind in enumerate(kinds):
            if kind not in expected:
                return f"layer {layer} is of type {kind}"
            if self._heard.get(layer) != expected[kind]:
                return f"layer {layer} ({kind}) attends with window {self._heard.get(layer)}"
        return None


class _Probe(PagedCache):
    """A cache that keeps nothing but the shapes of what it is given."""

    def __init__(self) -> None:
        self.shapes: dict[int, Shape] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.shapes[layer_idx] = Shape(
            int(key_states.shape[1]), int(key_states.shape[3]), int(value_states.shape[3])
        )
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


@contextmanager
def one_thread() -> Iterator[None]:
    """A few tiny passes on one CPU thread: two that fight for busy cores are slower by far."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _max_context(config: Any) -> int:
    limit = int(getattr(config, "max_position_embeddings", None) or 1 << 20)
    rope = getattr(config, "rope_parameters", None) or {}
    if isinstance(rope, dict) and rope.get("rope_type") in SWITCHING_ROPE:
        original = rope.get("original_max_position_embeddings") or limit
        return min(limit, int(original))
    return limit


def _keep_wanted(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Before the head: keep the hidden states whose scores are wanted, [1, n, hidden]."""
    current = ACTIVE.current
    if current is None:
        return None
    return (args[0].flatten(0, 1).index_select(0, current.gather)[None],)
