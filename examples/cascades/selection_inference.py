"""Cascades, 4: selection-inference. Choose a fact, draw a conclusion, and again, to the answer.

    p(answer | question) = Σ_paths Π_t p(fact_t | so far) p(conclusion_t | fact_t)

Facts are chosen by `Choice`, the model's law over the listed ones. An observation that the path
ends where the question asks turns a random walk over facts into a proof.

Reference: Creswell, Shanahan and Higgins, Selection-inference (2023); Dohan et al., Language model
cascades (2022), section 4.4.
"""

from __future__ import annotations

from lmppl import LM, Choice, observe, program, sample
from lmppl.inference import SMC, Enumerate, Importance, Rejection, infer
from lmppl.lm.table import TableLM

FACTS = [" wolf", " mouse", " sheep"]
MODEL = TableLM(
    ["Q", *FACTS, " afraid", " bold", " yes", " no"],
    {
        (): [0, 0.2, 0.3, 0.5, 0, 0, 0, 0],
        (1,): [0, 0, 0, 0, 0.3, 0.7, 0, 0],  # what the model makes of the fact about the wolf
        (2,): [0, 0, 0, 0, 0.9, 0.1, 0, 0],
        (3,): [0, 0, 0, 0, 0.6, 0.4, 0, 0],
        (4,): [0, 0.05, 0.3, 0.15, 0, 0, 0.45, 0.05],
        (5,): [0, 0.3, 0.1, 0.1, 0, 0, 0.1, 0.4],
    },
)  # fmt: skip


@program
def argue(steps: int) -> tuple[str, str]:
    """The last fact and the last conclusion, when the question is answered with yes."""
    said = "Q"
    for _ in range(steps):
        fact = sample("select", Choice(said, FACTS))
        conclusion = sample("infer", LM(f"{said}{fact}", max_tokens=1))
        said = f"{said}{fact}{conclusion}"
    observe("answered", Choice(said, [" yes", " no"]), " yes")
    return str(fact), str(conclusion)


def by_hand() -> float:
    """P(last conclusion is "afraid") after two steps, by sums."""
    first = {" wolf": 0.2, " mouse": 0.3, " sheep": 0.5}
    again = {
        " afraid": {" wolf": 0.1, " mouse": 0.6, " sheep": 0.3},
        " bold": {" wolf": 0.6, " mouse": 0.2, " sheep": 0.2},
    }
    afraid = {" wolf": 0.3, " mouse": 0.9, " sheep": 0.6}
    before = sum(p * afraid[f] for f, p in first.items())
    end = sum(
        share * p * afraid[f]
        for said, share in ((" afraid", before), (" bold", 1 - before))
        for f, p in again[said].items()
    )
    return end * 0.9 / (end * 0.9 + (1 - end) * 0.2)


def main(particles: int = 4096) -> None:
    exact = infer(argue, 2, engine=Enumerate(), lm=MODEL).marginal()
    print(f"{'':14}{'P(afraid | yes)':>16}{'distance':>10}")
    afraid = sum(p for (_, conclusion), p in exact.items() if conclusion == " afraid")
    print(f"{'exact':14}{afraid:16.4f}")
    assert abs(afraid - by_hand()) < 1e-12
    for engine in (Importance(particles), SMC(particles), Rejection(particles)):
        found = infer(argue, 2, engine=engine, lm=MODEL, seed=11).marginal()
        share = sum(p for (_, conclusion), p in found.items() if conclusion == " afraid")
        far = found.total_variation(exact)
        print(f"{type(engine).__name__:14}{share:16.4f}{far:10.4f}")
        assert far <= 0.02


if __name__ == "__main__":
    main()
