"""Self-consistency, and what an observation adds to it.

Many paths of thought lead to one answer. Greedy decoding takes the most probable path; sampling
paths and voting takes the most probable *answer*, summed over paths (self-consistency). Both are
engines of the same program, `Greedy()` and `Forward(n)`, and both ignore observations. With a
verifier as an observation the posterior weighs each path by p(" yes" | answer),

    P(answer | yes) ∝ Σ_path p(path, answer) p(yes | answer).

Reference: Wang et al., Self-consistency improves chain of thought reasoning (2023).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lmppl import LM, Choice, observe, program, sample
from lmppl.inference import Engine, Enumerate, Forward, Greedy, Importance, infer, infer_many
from lmppl.lm.table import TableLM

TOKENS = [" quick", " careful", " slow", " 7", " 12", " 5", " yes", " no"]
MODEL = TableLM(
    TOKENS,
    {
        (): [0.40, 0.30, 0.30, 0, 0, 0, 0, 0],
        (0,): [0, 0, 0, 1.0, 0, 0, 0, 0],  # a quick thought gives 7
        (1,): [0, 0, 0, 0.10, 0.90, 0, 0, 0],
        (2,): [0, 0, 0, 0, 0.80, 0.20, 0, 0],
        (3,): [0, 0, 0, 0, 0, 0, 0.30, 0.70],  # "Is 7 right?"
        (4,): [0, 0, 0, 0, 0, 0, 0.80, 0.20],
        (5,): [0, 0, 0, 0, 0, 0, 0.10, 0.90],
    },
)
RIGHT = " 12"


@program
def solve(question: str) -> str:
    thought = sample("thought", LM(f"{question} A", max_tokens=1))
    answer = sample("answer", LM(f"{question} A{thought} thought gives", max_tokens=1))
    observe("verdict", Choice(f"{question} Is it{answer}?", [" yes", " no"]), " yes")
    return str(answer)


def accuracy(engine: Engine, runs: int) -> float:
    """The share of runs whose best answer is right."""
    questions = ["Why?"] * runs
    found = infer_many(solve, questions, engine=engine, lm=MODEL, concurrency=runs)
    return [p.marginal().best for p in found].count(RIGHT) / runs


def draw(sizes: Sequence[int], rows: dict[str, list[float]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for name, shares in rows.items():
        axes.plot(sizes, shares, marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="samples per question", ylabel="share of right answers", ylim=(0.4, 1.02))
    axes.set_xticks(list(sizes), [str(n) for n in sizes])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main(runs: int = 100, sizes: Sequence[int] = (1, 4, 16, 64), out: str | None = None) -> None:
    greedy = infer(solve, "Why?", engine=Greedy(), lm=MODEL).marginal().best
    exact = infer(solve, "Why?", engine=Enumerate(), lm=MODEL)
    vote = {" 7": 0.40 + 0.30 * 0.10, " 12": 0.30 * 0.90 + 0.30 * 0.80, " 5": 0.30 * 0.20}
    seen = {a: p * y for (a, p), y in zip(vote.items(), (0.3, 0.8, 0.1), strict=True)}
    print(f"{'answer':8}{'vote':>8}{'given yes':>11}")
    for a in vote:
        p = exact.marginal()[a]
        print(f"{a!r:8}{vote[a]:8.3f}{p:11.3f}")
        assert math.isclose(p, seen[a] / sum(seen.values()), abs_tol=1e-12)
    assert greedy == " 7"  # the most probable path is not the most probable answer
    print(f"greedy decoding says{greedy}; share of right answers over {runs} questions:")
    engines = {"vote (Forward)": Forward, "posterior (Importance)": Importance}
    rows = {name: [accuracy(engine(n), runs) for n in sizes] for name, engine in engines.items()}
    print(f"{'samples':24}" + "".join(f"{n:8}" for n in sizes))
    for name, shares in rows.items():
        print(f"{name:24}" + "".join(f"{s:8.3f}" for s in shares))
    # The vote is right with the share that P(12) = 0.51 against 0.43 gives; the posterior has 0.75.
    assert rows["posterior (Importance)"][-1] > rows["vote (Forward)"][-1]
    if find_spec("matplotlib"):
        folder = Path(out or tempfile.mkdtemp(prefix="lmppl-"))
        folder.mkdir(parents=True, exist_ok=True)
        draw(sizes, rows, folder / "self_consistency.png")
        print(f"picture: {folder / 'self_consistency.png'}")


if __name__ == "__main__":
    main()
