"""Whether our GPU kernels (`torch/kernels`) run on a device: on CUDA, where Triton is installed."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch


def kernels_of(device: torch.device) -> ModuleType | None:
    """The kernels, or None where torch's own operations do the same."""
    return _kernels() if device.type == "cuda" else None


@cache
def _kernels() -> ModuleType | None:
    try:
        from lmppl.lm.torch import kernels
    except ImportError:  # torch for Windows, say, comes without Triton
        return None
    return kernels
