"""Numbers between the host and the device.

A plain copy to a GPU waits until the GPU has done everything that was asked of it before. From pinned
memory it does not: the copy takes its turn behind the work, and the host goes on preparing the next
step. What comes back has to be waited for; `to_host` is the one place of the token loop that waits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmppl.types import Floats, Ints


def to_device(x: NDArray[Any], device: torch.device) -> Tensor:
    """An array on the device, dtype kept; on the CPU it may share the memory of the array."""
    found = torch.from_numpy(np.ascontiguousarray(x))
    if device.type == "cuda":  # the allocator keeps pinned memory until its copy is done
        return found.pin_memory().to(device, non_blocking=True)
    return found.to(device)


def as_index(rows: Ints, device: torch.device) -> Tensor:
    """Row numbers on the device."""
    return to_device(np.asarray(rows, dtype=np.int64), device)


def to_host(x: Tensor) -> Floats:
    """Numbers on the host, float64."""
    return np.asarray(x.detach().cpu().numpy(), dtype=np.float64)
