"""How the benchmarks time a function."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def least(
    fn: Callable[[], Any], repeats: int = 3, clock: Callable[[], float] = time.process_time
) -> float:
    """The least time of some runs: what the work takes when nothing disturbs it, in seconds."""
    times = []
    for _ in range(repeats):
        began = clock()
        fn()
        times.append(clock() - began)
    return min(times)
