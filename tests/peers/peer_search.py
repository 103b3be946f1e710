"""treequest 0.3.3 and ours on one task, side by side: speed, width of a batch, seeds, order.

Run by `make peers`, outside of the default suite.
"""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import treequest as tq

from lmppl.inference import ABMCTS_A


def outcome(rng: Any, state: Any) -> float:
    """A fresh score in [0, 0.3]; a refinement closes 10 % of the rest on average."""
    if state is None:
        return float(rng.uniform(0.0, 0.3))
    return float(np.clip(state + 0.1 * (1 - state) * rng.uniform(0.0, 2.0), 0, 1))


def theirs(nodes: int, seed: int, batch: int = 1) -> tuple[float, int, float]:
    """Processor time, children of the root, best score."""
    rng = np.random.default_rng(seed)
    np.random.seed(seed)
    random.seed(seed)
    algo = tq.ABMCTSA(dist_type="gaussian")
    state = algo.init_tree()
    began = time.process_time()
    if batch == 1:
        for _ in range(nodes):
            state = algo.step(
                state, {"A": lambda s: (lambda r: (r, r))(outcome(rng, s))}, inplace=True
            )
    else:
        for _ in range(nodes // batch):
            state, trials = algo.ask_batch(state, batch, ["A"])
            for t in trials:
                score = outcome(rng, t.parent_state)
                state = algo.tell(state, t.trial_id, (score, score))
    took = time.process_time() - began
    best = tq.top_k(state, algo, k=1)[0][1]
    return took, len(state.tree.root.children), best


def ours(nodes: int, seed: int, batch: int = 1) -> tuple[float, int, float]:
    """The same."""
    rng = np.random.default_rng(seed)
    tree = ABMCTS_A(seed=seed)
    began = time.process_time()
    for _ in range(nodes // batch):
        for trial in tree.ask(batch):
            score = outcome(rng, trial.state)
            tree.tell(trial.id, score, score)
    took = time.process_time() - began
    return took, len(tree.nodes[0].children), tree.top(1)[0][1]


def main() -> None:
    """The table."""
    print(
        f"{'nodes':>6} {'batch':>5}   {'treequest: s':>12} {'width':>6} {'best':>6}   {'ours: s':>8} {'width':>6} {'best':>6}   {'ratio':>6}"
    )
    for nodes, batch in ((400, 1), (256, 8), (256, 64)):
        seeds = range(3)
        a = np.mean([theirs(nodes, s, batch) for s in seeds], axis=0)
        b = np.mean([ours(nodes, s, batch) for s in seeds], axis=0)
        print(
            f"{nodes:6} {batch:5}   {a[0]:12.3f} {a[1]:6.0f} {a[2]:6.3f}   "
            f"{b[0]:8.3f} {b[1]:6.0f} {b[2]:6.3f}   {a[0] / b[0]:6.1f}"
        )


if __name__ == "__main__":
    main()
