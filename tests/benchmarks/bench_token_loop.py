"""What the token loop itself costs: Python per particle-token, with a model that costs nothing.

Run `python tests/benchmarks/bench_token_loop.py`. Rows that hand out a ready-made draw stand for the
model, so what is left is the loop of `lmppl.lm.generate`: keys, weights, ends, the record of what was
drawn. CPU time of the process, the least of five runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from timing import least

from lmppl.lm.base import Drawn
from lmppl.lm.generate import StringLaw, StringState, advance
from lmppl.lm.table import TableLM
from lmppl.random import GumbelMax
from lmppl.types import Ids

LENGTH = 256
BOUND = 1.0
"""Microseconds per particle-token, from 256 particles on."""


class Ready:
    """Rows that draw token 0 of every row, at no cost."""

    def __init__(self, count: int) -> None:
        """Make the draw."""
        logs = np.full(count, -1.0)
        self.drawn = Drawn(np.zeros(count, dtype=np.int64), logs, logs)

    def draw(self, *args: Any) -> Drawn:
        """The ready one."""
        return self.drawn

    def push(self, tokens: Any) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Free(TableLM):
    """A model whose passes cost nothing."""

    def open(self, contexts: Sequence[Ids]) -> Any:
        """Rows that are ready."""
        return Ready(len(contexts))


def microseconds(lm: TableLM, count: int) -> float:
    """Per particle-token, of `count` strings of `LENGTH` tokens."""
    law = StringLaw(LENGTH)

    def run() -> None:
        advance(lm, [StringState(law, (0,), key) for key in range(count)], GumbelMax())

    return least(run, repeats=5) / (count * LENGTH) * 1e6


def main() -> None:
    """Print the table."""
    lm = Free.random([*"abcdefghijklmnopqrstuvwxyz", "<eos>"], seed=0)
    print(f"{'particles':>9} {'µs per particle-token':>22}")
    for count in (64, 256, 1024):
        bound = f"  (≤ {BOUND:g})" if count >= 256 else ""
        print(f"{count:9} {microseconds(lm, count):22.2f}{bound}")


if __name__ == "__main__":
    main()
