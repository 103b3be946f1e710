"""Where glibc gets the memory of large tensors from.

A pass over B rows makes several tensors of B x V numbers and frees them again. By default glibc
gives such blocks back to the kernel, and every pass pays for zeroed pages: on a busy machine that
is a visible part of the time. With higher thresholds freed blocks stay in the process and are used
again; the peak of the memory is the same, but less of it is returned between passes.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters in glibc's malloc.h."""
THRESHOLD = 512 << 20
"""Bytes: blocks below come from the heap, and that much of its free end is kept."""
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""What a user sets to decide this alone; then nothing is changed."""


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Raise both thresholds for this process, once; whether that was done.

    It does nothing outside of Linux with glibc, or when one of `VARIABLES` is set.
    """
    if not sys.platform.startswith("linux") or any(os.environ.get(name) for name in VARIABLES):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version") or not hasattr(libc, "mallopt"):
        return False
    done = [libc.mallopt(name, THRESHOLD) for name in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD)]
    return all(done)
