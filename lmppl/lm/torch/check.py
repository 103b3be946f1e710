"""Start-up probes of a loaded model: are its log-probabilities fit to make weights of?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from lmppl.errors import CapabilityError, LmpplError
from lmppl.lm.base import LanguageModel
from lmppl.lm.torch.buckets import Buckets
from lmppl.lm.torch.cache import Block
from lmppl.lm.torch.llama import Llama
from lmppl.lm.torch.network import Network
from lmppl.lm.torch.on_gpu import kernels_of
from lmppl.lm.torch.reproduces import different
from lmppl.lm.torch.store import RetainedRows
from lmppl.types import Ids

if TYPE_CHECKING:
    from lmppl.lm.torch import TorchLM

TEXT = "The capital of France is Paris. It"
BOUND, HALF_BOUND = 1e-3, 0.2
"""Largest difference allowed between two ways of scoring, in float32 and in half precision."""


@contextmanager
def _nothing_retained(lm: TorchLM) -> Iterator[None]:
    kept, lm.store = lm.store, RetainedRows(0)
    try:
        yield
    finally:
        lm.store = kept


def batch_gap(lm: TorchLM, ids: Ids) -> float:
    """The largest difference of log-probabilities between a row alone and in a batch of 8."""
    others = [tuple((t + n) % lm.vocab_size for t in ids) for n in range(8)]
    with _nothing_retained(lm):
        alone = lm.open([ids]).log_probs()[0]
        beside = lm.open(others).log_probs()[0]
    finite = np.isfinite(alone)
    return float(np.abs(alone[finite] - beside[finite]).max())


def self_check(lm: TorchLM, text: str = TEXT) -> dict[str, float]:
    """Score a known string in two ways, and a row in two batches.

    Returns:
        "scoring": largest difference of log-probabilities between one scoring pass and token by
        token; "batch": between a row alone and in a batch of 8 other rows.

    Raises:
        LmpplError: when the two scorings differ by more than 1e-3 (0.2 in half precision).
    """
    ids = lm.encode(text)
    with _nothing_retained(lm):
        at_once = lm.score([ids[:1]], [ids[1:]], [None], [1.0])[0]
        stepwise = LanguageModel.score(lm, [ids[:1]], [ids[1:]], [None], [1.0])[0]
    found = {"scoring": float(np.abs(at_once - stepwise).max()), "batch": batch_gap(lm, ids)}
    bound = BOUND if lm.dtype == torch.float32 else HALF_BOUND
    if not found["scoring"] <= bound:
        raise LmpplError(
            "scoring a text at once and token by token gives different log-probabilities",
            value=f"largest difference {found['scoring']:.3g}, bound {bound}",
            why="weights made from such numbers would be wrong",
            fix="load the model with dtype=torch.float32; report the architecture if it persists",
        )
    return found


def pad_steps(network: Network, wanted: bool | Literal["auto"], budget: int) -> None:
    """Let single steps be computed in padded shapes where they reproduce plain ones.

    By our kernels (`torch/fused`), where the model and the device allow them; else by its own layers
    (`torch/buckets`).

    Args:
        network: of the model.
        wanted: "auto" means on CUDA, and without a word where they do not.
        budget: bytes of all workspaces.

    Raises:
        CapabilityError: they are wanted, and cannot be had.
    """
    if wanted is False or (wanted == "auto" and network.device.type != "cuda"):
        return
    reason: str | None = "only passes over pages whose sums may take any order can be padded"
    if network.engine == "slots" and not network.same:
        reason = _fused(network, budget)
        if reason is None:
            return
        network.fused = None
        network.reasons.append(f"fused: {reason}")
        reason = _padded(network, budget)
    if reason is not None:
        network.buckets = None
        network.reasons.append(f"buckets: {reason}")
        if wanted is True:
            raise CapabilityError(
                "the steps of this model cannot be padded", value=reason, fix="leave buckets out"
            )


def _fused(network: Network, budget: int) -> str | None:
    """Use the kernels of `torch/fused`; why they cannot be, or None."""
    if kernels_of(network.device) is None:
        return "no CUDA device with Triton"
    if not isinstance(network.model, Llama) or any(map(_hooked, network.model.model.modules())):
        return "the model is no Llama alone"
    from lmppl.lm.torch.fused import FusedLlama

    def use() -> None:
        network.fused = FusedLlama(network.model, network.layout, budget)

    return _differ(network, use)


def _hooked(module: torch.nn.Module) -> bool:
    """Whether something is added to a layer: an adapter."""
    return bool(module._forward_hooks)


def _padded(network: Network, budget: int) -> str | None:
    """Use the workspaces of `torch/buckets`; why they cannot be, or None."""

    def use() -> None:
        network.buckets = Buckets(network.compute, network.layout, budget)

    return _differ(network, use)


def _differ(network: Network, use: Callable[[], None]) -> str | None:
    """Try two steps of three rows before and after `use`; why they are not the same, or None."""
    ids = tuple((7919 * i + 11) % network.width for i in range(10))
    block, rows = Block.empty(network.layout, 3), np.arange(3)
    network.forward(block, rows, [ids[:5], ids[:2], ids[:7]], [[], [], []], 8)
    twin, tokens = block.take(rows), np.array([ids[7:8], ids[8:9], ids[9:10]])
    try:
        plain = torch.cat([network.step(twin, tokens), network.step(twin, tokens)])
        use()
        found = torch.cat([network.step(block, tokens), network.step(block, tokens)])
    except Exception as error:  # whatever the capture of a graph raises, plain steps go on
        return f"{type(error).__name__}: {error}"
    return different(plain, found, network.dtype)
