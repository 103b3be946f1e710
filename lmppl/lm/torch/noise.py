"""Keyed Gumbel noise on the device: the numbers of `lmppl.random`, in int64 tensors.

torch has no uint64 arithmetic, but two's complement products and sums wrap the same way; only the
right shifts must be made logical. The uniforms equal those of numpy bit for bit, so a draw is the
same token wherever it is made, up to the rounding of the logits themselves.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from lmppl.lm.torch.on_gpu import kernels_of
from lmppl.lm.torch.transfer import to_device
from lmppl.random import BLOCK, BLOCK_STREAM, GOLDEN, MUL1, MUL2, WIDE, fold_array
from lmppl.types import Keys


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


_GOLDEN, _MUL1, _MUL2 = _signed(GOLDEN), _signed(MUL1), _signed(MUL2)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: the sign bits that an arithmetic shift brings in are masked off."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def uniforms(keys: Tensor, counters: Tensor) -> Tensor:
    """`lmppl.random.uniforms` of int64 tensors, float64."""
    x = keys + (counters + 1) * _GOLDEN
    x = (x ^ _shift(x, 30)) * _MUL1
    x = (x ^ _shift(x, 27)) * _MUL2
    x = x ^ _shift(x, 31)
    return (_shift(x, 12).double() + 0.5) * 2.0**-52


def gumbels(keys: Tensor, counters: Tensor) -> Tensor:
    """Standard Gumbel noise, float64."""
    return -torch.log(-torch.log(uniforms(keys, counters)))


def _move(keys: Keys, device: torch.device) -> Tensor:
    return to_device(keys.view(np.int64).copy(), device)


def noise_device(device: torch.device) -> torch.device:
    """Where noise is made: beside the logits, except on devices without float64 (MPS)."""
    return torch.device("cpu") if device.type == "mps" else device


def block_masses(x: Tensor) -> Tensor:
    """log Σ exp(x) over each block of ids of each row of `x` [B, V], float64 [B, ceil(V / BLOCK)]."""
    kernels = kernels_of(x.device)
    count = -(-x.shape[1] // BLOCK)
    if kernels is not None:
        out = torch.empty((len(x), count), dtype=torch.float64, device=x.device)
        kernels.block_masses[tuple(out.shape)](
            x.contiguous(), out, x.shape[1], count, BLOCK=BLOCK, num_warps=1
        )
        return out
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    top = x.amax(dim=1, keepdim=True)
    top = torch.where(top == -torch.inf, 0.0, top)
    mass = torch.sub(x, top).exp_()
    whole = x.shape[1] // BLOCK * BLOCK
    blocks = mass[:, :whole].view(len(mass), -1, BLOCK).sum(dim=2)
    if whole < x.shape[1]:
        blocks = torch.cat([blocks, mass[:, whole:].sum(dim=1, keepdim=True)], dim=1)
    return blocks.to(wide).log_().add_(top)


def _chosen(
    kernels: ModuleType, keys: Keys, x: Tensor, masses: Tensor, rows: Tensor | None
) -> Tensor:
    """`gumbel_max` of wide rows in one kernel."""
    pairs = np.stack([keys, fold_array(keys, BLOCK_STREAM)], axis=1).view(np.int64)
    tokens = torch.empty(len(keys), dtype=torch.int64, device=x.device)
    count = masses.shape[1]
    kernels.choose[(len(keys),)](
        x.contiguous(), masses.contiguous(), to_device(pairs, x.device),
        tokens if rows is None else rows, tokens, x.shape[1], count, SOME=rows is not None,
        COUNT=1 << (count - 1).bit_length(), BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return tokens


def gumbel_max(
    keys: Keys, x: Tensor, block_mass: Tensor | None, rows: Tensor | None = None
) -> Tensor:
    """The index that `lmppl.random.GumbelMax` draws from each row of `x` [B, V], int64 [B].

    Args:
        keys: one key per row, on the host.
        x: log-weights, not necessarily normalised, any float type.
        block_mass: float64 [B, ceil(V / BLOCK)], the log-mass of each block of ids up to one
            constant per row; needed when V > WIDE.
        rows: which rows of `x` are meant, one per key and row of `block_mass`; None: all.
    """
    width = x.shape[1]
    where = noise_device(x.device)
    inner = _move(keys, where)[:, None]
    if width <= WIDE:
        counters = torch.arange(width, device=where)
        x = x if rows is None else x.index_select(0, rows)
        picked = (x.to(where).double() + gumbels(inner, counters)).argmax(dim=1)
        return picked.to(x.device)
    if block_mass is None:
        raise ValueError("rows wider than WIDE need the log-mass of their blocks")
    kernels = kernels_of(x.device)
    if kernels is not None:
        return _chosen(kernels, keys, x, block_mass, rows)
    outer = _move(fold_array(keys, BLOCK_STREAM), where)[:, None]
    numbers = torch.arange(block_mass.shape[1], device=where)
    block = (block_mass.to(where) + gumbels(outer, numbers)).argmax(dim=1)
    ids = block[:, None] * BLOCK + torch.arange(BLOCK, device=where)
    at = ids.clamp(max=width - 1).to(x.device)
    inside = (x.gather(1, at) if rows is None else x[rows[:, None], at]).to(where).double()
    inside = inside.masked_fill(ids >= width, -torch.inf)
    pick = (inside + gumbels(inner, ids)).argmax(dim=1)
    return (block * BLOCK + pick).to(x.device)
