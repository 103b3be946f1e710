"""A computation with fixed shapes and addresses: on CUDA captured once as a graph, then replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM = 2
"""Runs before a capture: kernels are compiled, and libraries choose theirs in the first ones."""


def pool_of(device: torch.device) -> Any:
    """Memory for several graphs of which no two run at once; None where there are none."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


class Captured:
    """A graph of a computation; it holds on to its memory alone, not to the computation.

    Args:
        device: where it computes.
        pool: where the graph has its memory.
    """

    def __init__(self, device: torch.device, pool: Any) -> None:
        """Nothing is captured yet."""
        self.device, self.pool = device, pool
        self._graph: Any = None
        self._result: Tensor | None = None

    def __call__(self, compute: Callable[[], Tensor]) -> Tensor:
        """The result for what the inputs hold now; the next call writes to the same place.

        Args:
            compute: the same each time, with inputs that stay where they are; may run several times.
        """
        if self.device.type != "cuda":
            return compute()
        if self._graph is None:
            self._capture(compute)
        self._graph.replay()
        if self._result is None:
            raise RuntimeError("a captured computation has no result")
        return self._result

    def _capture(self, compute: Callable[[], Tensor]) -> None:
        ahead, behind = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        ahead.wait_stream(behind)
        with torch.cuda.stream(ahead):
            for _ in range(WARM):
                compute()
        behind.wait_stream(ahead)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            self._result = compute()
        self._graph = graph
