"""Why think step by step: reasoning pays where experience is local.

The world is a chain of seven binary variables. A model that counts which word follows which reads
about it in small windows, three neighbours at a time, so it never sees A and G together. Asked for
G given A it can answer

    directly    p(G | A) as it was learnt: nothing was, so it says the marginal p(G)
    scaffolded  Σ p(B | A) p(C | B) … p(G | F), each factor learnt from neighbours
    freely      the same, over the variables that the model itself goes on to mention

The direct answer has a bias that no amount of data removes, (p(G | A) - p(G))², which is a theorem;
the others have none beyond noise. When all variables are read about together, direct answers are
as good: the gap is one of locality, not of reasoning. (Free answers are then worse: the model goes on
to mention what it likes, and what it has said before is drawn again.)

Reference: Prystawski, Li and Goodman, Why think step by step? Reasoning emerges from the locality of
experience (2023).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from lmppl import LM, Choice, program, sample
from lmppl.inference import Enumerate, infer_many
from lmppl.inference.learning import TabularLM

NAMES = "ABCDEFG"
N = len(NAMES)
WORDS = [f"{name}{value}" for name in NAMES for value in (0, 1)]
UP = np.array([[0.05, 0.9], [0.15, 0.95], [0.1, 0.8], [0.05, 0.9], [0.2, 0.95], [0.1, 0.9]])  # fmt: skip
"""P(variable k + 1 is 1 | variable k is 0, 1)."""
FAR = [(i, j) for i in range(N) for j in range(i + 3, N)]
"""Pairs that no window holds."""
QUERIES = [(f"{NAMES[i]}{v}", NAMES[j]) for i, j in FAR for v in (0, 1)]


def options(name: str) -> list[str]:
    return [f"{name}0", f"{name}1"]


@program
def direct(given: str, target: str) -> int:
    return int(sample("target", Choice(given, options(target)))[1])


@program
def scaffolded(given: str, target: str) -> int:
    said = given
    for name in NAMES[NAMES.index(given[0]) + 1 : NAMES.index(target)]:
        said += sample(name, Choice(said, options(name)))
    return int(sample("target", Choice(said, options(target)))[1])


@program
def free(given: str, target: str) -> int:
    said = given
    for step in range(N):
        word = sample(f"step {step}", LM(said, max_tokens=1))
        said += word
        if word[0] == target:
            return int(word[1])
        if word[0] > target:  # it went past
            break
    return int(sample("target", Choice(said, options(target)))[1])


def worlds(n: int, seed: int) -> np.ndarray:
    """Values of all variables [n, N]."""
    u = np.random.default_rng(seed).random((n, N))
    x = np.empty((n, N), dtype=int)
    x[:, 0] = u[:, 0] < 0.5
    for k in range(N - 1):
        x[:, k + 1] = u[:, k + 1] < UP[k][x[:, k]]
    return x


def read(x: np.ndarray, local: bool, seed: int) -> TabularLM:
    """A model that has read one text about each world."""
    rng = np.random.default_rng(seed)
    texts: Counter[str] = Counter()
    for row in x:
        if local:  # three neighbours, each left out now and then, so that it can skip one
            start = rng.integers(N - 2)
            seen = [k for k in range(start, start + 3) if rng.random() < 0.8]
        else:
            seen = list(rng.permutation(N))
        texts["".join(f"{NAMES[k]}{row[k]}" for k in seen)] += 1
    return TabularLM(WORDS, smoothing=1.0, prior="shorter").fit(texts.items())


def truth() -> tuple[np.ndarray, np.ndarray]:
    """p(target = 1 | given) and p(target = 1) of each query, by matrix products."""
    steps = [np.stack([1 - up, up], axis=1) for up in UP]  # [from, to]
    given, alone = [], []
    for (i, j), v in ((pair, v) for pair in FAR for v in (0, 1)):
        product = np.linalg.multi_dot([np.eye(2), *steps[i:j]])
        given.append(product[v, 1])
        alone.append(np.linalg.multi_dot([np.full((1, 2), 0.5), *steps[:j], np.eye(2)])[0, 1])
    return np.array(given), np.array(alone)


def estimates(lm: TabularLM) -> dict[str, np.ndarray]:
    """P(target = 1) of each query, by each way to answer."""
    engines = {direct: Enumerate(), scaffolded: Enumerate(), free: Enumerate(min_mass=2e-3)}
    found = {}
    for way, engine in engines.items():
        posteriors = infer_many(way, QUERIES, engine=engine, lm=lm)
        found[way.__name__] = np.array([p.marginal().get(1, 0.0) for p in posteriors])
    return found


def draw(errors: dict[str, dict[str, float]], bias: float, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for training, by_way in errors.items():
        axes.plot(list(by_way), list(by_way.values()), "o", markersize=10, label=training)
    axes.axhline(bias, color="black", linewidth=1, linestyle=":", label="bias of the marginal")
    axes.set(yscale="log", ylabel="mean squared error", xlim=(-0.5, 2.5), ylim=(5e-5, 0.1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main(sizes: Sequence[int] = (500, 8000), out: str | None = None) -> None:
    known, alone = truth()
    bias = float(np.mean((known - alone) ** 2))
    print(
        f"{len(QUERIES)} questions about pairs that no window holds; bias of the marginal {bias:.4f}"
    )
    print(f"{'read about':26}{'worlds':>8}{'direct':>11}{'scaffolded':>12}{'free':>11}")
    errors: dict[str, dict[str, float]] = {}
    for training, local in (("windows of three", True), ("all variables together", False)):
        for n in sizes:
            found = estimates(read(worlds(n, seed=1), local, seed=2))
            errors[training] = {w: float(np.mean((p - known) ** 2)) for w, p in found.items()}
            print(f"{training:26}{n:8}" + "".join(f"{e:11.6f} " for e in errors[training].values()))
    near, full = errors["windows of three"], errors["all variables together"]
    assert abs(near["direct"] / bias - 1) < 0.1  # the theorem: it answers with the marginal
    assert near["direct"] > 10 * near["scaffolded"] and near["direct"] > 10 * near["free"]
    assert max(full["direct"], full["scaffolded"]) < bias / 50  # no gap
    if find_spec("matplotlib"):
        folder = Path(out or tempfile.mkdtemp(prefix="lmppl-"))
        folder.mkdir(parents=True, exist_ok=True)
        draw(errors, bias, folder / "reasoning_gap.png")
        print(f"picture: {folder / 'reasoning_gap.png'}")


if __name__ == "__main__":
    main()
