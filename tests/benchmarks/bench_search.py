"""Search and bandit allocators: time and memory per node, A* expansions, peers if installed.

Run `python tests/benchmarks/bench_search.py`. Times are processor time of one process. The task of
the bandits costs nothing: a fresh score in [0, 0.3], and refinements that close 10 % of the rest.
treequest is compared when it can be imported (`make peers`), and the No-U-Turn sampler when NumPyro
can.
"""

from __future__ import annotations

import importlib.util
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from timing import least

from lmppl import LM, program, sample
from lmppl.inference import ABMCTS_A, ABMCTS_M, MCTS, AStar, Beam, Found, infer
from lmppl.inference.search.hierarchical import Groups, Prior, ScalePosterior
from lmppl.inference.search.priors import BetaPrior
from lmppl.inference.search.results import ResultTree
from lmppl.lm.table import TableLM


def outcome(rng: Any, state: Any) -> float:
    """A new score."""
    if state is None:
        return float(rng.uniform(0.0, 0.3))
    return float(np.clip(state + 0.1 * (1 - state) * rng.uniform(0.0, 2.0), 0, 1))


def grow(tree: ResultTree, nodes: int, batch: int = 1) -> ResultTree:
    """A tree of so many nodes."""
    rng = np.random.default_rng(0)
    for _ in range(nodes // batch):
        for trial in tree.ask(batch):
            score = outcome(rng, trial.state)
            tree.tell(trial.id, score, score)
    return tree


def fresh(make: Callable[[], ResultTree], nodes: int, batch: int) -> ResultTree:
    """`grow` of a new tree."""
    return grow(make(), nodes, batch)


def megabytes(fn: Callable[[], Any]) -> float:
    """What a result keeps."""
    tracemalloc.start()
    kept = fn()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return size / 1e6


def bandits() -> None:
    """Time and memory by size."""
    print(
        f"{'tree':12} {'nodes':>6} {'batch':>5} {'s':>8} {'µs/node':>8} {'kB/node':>8} {'depth':>5}"
    )
    makers: list[tuple[str, Callable[[], ResultTree], tuple[int, ...]]] = [
        ("A, NIX2", lambda: ABMCTS_A(), (400, 1600, 6400)),
        ("A, beta", lambda: ABMCTS_A(prior=BetaPrior()), (400,)),
        ("M", lambda: ABMCTS_M(), (50, 200)),
    ]
    for name, make, sizes in makers:
        for n in sizes:
            for batch in (1, 8):
                took = least(partial(fresh, make, n, batch), 3 if n < 1000 else 1)
                tree = grow(make(), n, batch)
                depth = max(tree.depth(i) for i in tree.nodes)
                size = megabytes(partial(fresh, make, n, batch)) * 1e3 / n
                print(
                    f"{name:12} {n:6} {batch:5} {took:8.3f} {took / n * 1e6:8.0f} {size:8.2f} {depth:5}"
                )


def peer() -> None:
    """Treequest's in-place mode on the same task, in the same run."""
    if importlib.util.find_spec("treequest") is None:
        print("treequest is not installed: run `make peers`")
        return
    import treequest as tq

    for n in (400, 800):
        rng = np.random.default_rng(0)

        def step(state: Any, rng: Any = rng) -> Any:
            score = outcome(rng, state)
            return score, score

        algo = tq.ABMCTSA(dist_type="gaussian")
        began = time.process_time()
        state = algo.init_tree()
        for _ in range(n):
            state = algo.step(state, {"A": step}, inplace=True)
        theirs = time.process_time() - began
        ours = least(partial(fresh, ABMCTS_A, n, 1), 1)
        print(
            f"{n} nodes: treequest in place {theirs:.3f} s, ours {ours:.3f} s, {theirs / ours:.1f}×"
        )


def against_nuts() -> None:
    """One posterior of the mixed model: the collapsed grid and the No-U-Turn sampler."""
    if importlib.util.find_spec("numpyro") is None:
        return
    import jax
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS

    rng = np.random.default_rng(1)
    owner = np.array([0] * 6 + [1] * 3 + [2] * 2 + [3])
    r = np.clip(rng.normal(0.5, 0.15, 4)[owner] + rng.normal(0, 0.1, 12), 0, 1)

    def model() -> None:
        mu = numpyro.sample("mu", dist.Normal(0.5, 0.2))
        sa = numpyro.sample("sa", dist.HalfNormal(0.2))
        sy = numpyro.sample("sy", dist.HalfNormal(0.3))
        e = numpyro.sample("e", dist.Normal(0, 1).expand([4]))
        numpyro.sample("r", dist.Normal((mu + sa * e)[owner], sy), obs=r)

    began = time.process_time()
    mcmc = MCMC(
        NUTS(model), num_warmup=1000, num_samples=1000, num_chains=4, chain_method="sequential",
        progress_bar=False,
    )  # fmt: skip
    mcmc.run(jax.random.PRNGKey(0))
    nuts = time.process_time() - began
    groups = Groups(
        np.array([float((owner == j).sum()) for j in range(4)]),
        np.array([r[owner == j].mean() for j in range(4)]),
        np.array([((r[owner == j] - r[owner == j].mean()) ** 2).sum() for j in range(4)]),
    )
    grid = least(lambda: ScalePosterior(groups, Prior()), 20)
    print(
        f"one fit: NUTS, 4 chains of 2,000: {nuts:.2f} s; grid {grid * 1e3:.2f} ms, {nuts / grid:.0f}×"
    )


LETTERS = "abcd"


@program
def writing(steps: int) -> Any:
    """A string, letter by letter."""
    text = ""
    for _ in range(steps):
        text = text + sample("letter", LM(text, max_tokens=1))
    return text


def programs() -> None:
    """Search over a program: 8 steps, 65,536 strings."""
    rng = np.random.default_rng(3)
    rows: dict[tuple[int, ...], list[float]] = {(): [0.25] * 4 + [0.0]}
    rows |= {(i,): [*rng.dirichlet(np.full(4, 0.5)), 0.0] for i in range(4)}
    lm = TableLM([*LETTERS, "<eos>"], rows, name="random")
    engines = [AStar(), Beam(width=16), Beam(width=64), MCTS(simulations=256, batch=16)]
    print(f"{'engine':40} {'s':>7} {'grown':>6} {'nodes':>6} {'µs/node':>8} {'log γ of best':>14}")
    for engine in engines:
        began = time.process_time()
        post = infer(writing, 8, engine=engine, lm=lm)
        took = time.process_time() - began
        if isinstance(post, Found):
            print(
                f"{repr(engine)[:40]:40} {took:7.3f} {post.expansions:6} {post.nodes:6} "
                f"{took / post.nodes * 1e6:8.0f} {post.map().log_joint:14.4f}"
            )


if __name__ == "__main__":
    bandits()
    print()
    peer()
    against_nuts()
    print()
    programs()
