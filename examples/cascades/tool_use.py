"""Cascades, 5: tool use. The model writes a sum, a calculator works it out, the model reads on.

    p(answer | question) = Σ_expression p(expression | question) p(answer | question, f(expression))

`effect` runs the tool once per lineage and keeps its result on the tape. An answer that is observed
tells, backwards, which sum the model must have written.

Reference: Dohan et al., Language model cascades (2022), section 4.5; Cobbe et al. (2021), calculator
annotations.
"""

from __future__ import annotations

from lmppl import LM, Choice, effect, observe, program, sample
from lmppl.inference import SMC, Enumerate, Importance, Rejection, infer
from lmppl.lm.table import TableLM
from lmppl.tools import calculate

MODEL = TableLM(
    ["Q", "3", "4", "+", "*", "=", " yes", " no"],
    {
        (): [0, 0.5, 0.5, 0, 0, 0, 0, 0],
        (1,): [0, 0, 0, 0.6, 0.4, 0, 0, 0],  # after a 3: an operator
        (2,): [0, 0, 0, 0.5, 0.5, 0, 0, 0],
        (3,): [0, 0.3, 0.7, 0, 0, 0, 0, 0],  # after +
        (4,): [0, 0.6, 0.4, 0, 0, 0, 0, 0],
        (5,): [0, 0, 0, 0, 0, 0, 0.5, 0.5],
    },
)


@program
def word_problem(good: tuple[int, ...]) -> int:
    """What the tool says of the model's sum, if the model then says that it fits."""
    expression = sample("expression", LM("Q", max_tokens=3))
    value = int(effect("calculator", calculate, str(expression)))
    # A model that knows the size of the answer: sure where it fits, doubtful elsewhere.
    sure = Choice("Q=", [" yes", " no"]) if value not in good else Choice("=", [" yes"])
    observe("fits", sure, " yes")
    return value


def by_hand(good: tuple[int, ...]) -> dict[int, float]:
    """P(value | it fits)."""
    plus = {"3": 0.6, "4": 0.5}
    weights: dict[int, float] = {}
    for a in (3, 4):
        for b in (3, 4):
            for value, p in (
                (a + b, plus[str(a)] * {3: 0.3, 4: 0.7}[b]),
                (a * b, (1 - plus[str(a)]) * {3: 0.6, 4: 0.4}[b]),
            ):
                fits = 1.0 if value in good else 0.5
                weights[value] = weights.get(value, 0.0) + 0.5 * p * fits
    total = sum(weights.values())
    return {value: w / total for value, w in weights.items()}


def main(particles: int = 4096) -> None:
    good = (12, 16)
    exact = infer(word_problem, good, engine=Enumerate(), lm=MODEL).marginal()
    assert exact.total_variation(by_hand(good)) < 1e-12
    print(f"{'':14}" + "".join(f"{v:>8}" for v in sorted(exact)) + f"{'distance':>10}")
    print(f"{'exact':14}" + "".join(f"{exact[v]:8.4f}" for v in sorted(exact)))
    for engine in (Importance(particles), SMC(particles), Rejection(particles)):
        found = infer(word_problem, good, engine=engine, lm=MODEL, seed=3).marginal()
        far = found.total_variation(exact)
        row = "".join(f"{found.get(v, 0.0):8.4f}" for v in sorted(exact))
        print(f"{type(engine).__name__:14}{row}{far:10.4f}")
        assert far <= 0.02


if __name__ == "__main__":
    main()
