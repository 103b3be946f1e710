"""How much memory a torch device has, and how many strings fit in a part of it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from lmppl.lm.prefix import common, key_of
from lmppl.lm.torch.pages import PAGE
from lmppl.types import Ids

CPU_BYTES = 1 << 30
"""Default budget for retained rows in main memory."""


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, or 1 TiB where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 1 << 40


def retained_bytes(device: torch.device) -> int:
    """Default budget for retained rows."""
    return free_memory(device) // 4 if device.type == "cuda" else CPU_BYTES


def fitting(slots: int, contexts: Sequence[Ids], tokens: Sequence[int]) -> int:
    """How many contexts, in order, fit in so many slots of the cache with all they may draw.

    What a context shares with the one before it is counted once.
    """
    if sum(map(len, contexts)) + sum(tokens) + PAGE * len(contexts) <= slots:
        return len(contexts)  # whatever they share
    before = b""
    for n, (context, more) in enumerate(zip(contexts, tokens, strict=True)):
        key = key_of(context)
        slots -= len(context) - (common(before, key) if n else 0) + more + PAGE
        if slots < 0:
            return n
        before = key
    return len(contexts)
