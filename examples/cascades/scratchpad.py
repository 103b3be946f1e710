"""Cascades, 1: scratchpad. A thought between question and answer, summed out.

    p(answer | question) = Σ_thought p(thought | question) p(answer | question, thought)

The answer that the model gives at once is not the answer that its thoughts lead to. And the same
program runs backwards: observe the answer, ask for the thought.

Reference: Dohan et al., Language model cascades (2022), section 4.1; Nye et al., Show your work (2021).
"""

from __future__ import annotations

from lmppl import LM, observe, program, sample
from lmppl.inference import SMC, Enumerate, Importance, Rejection, infer
from lmppl.lm.table import TableLM

MODEL = TableLM(
    ["Q", " add", " guess", " seven", " twelve", " nine"],
    {
        (): [0.0, 0.6, 0.4, 0.0, 0.0, 0.0],  # after the question: a thought
        (1,): [0.0, 0.0, 0.0, 0.1, 0.8, 0.1],  # who adds, is mostly right
        (2,): [0.0, 0.0, 0.0, 0.6, 0.2, 0.2],
    },
)


@program
def scratchpad(answer: str | None = None) -> tuple[str, str]:
    thought = sample("thought", LM("Q", max_tokens=1))
    law = LM(f"Q{thought}", max_tokens=1)
    if answer is None:
        return str(thought), str(sample("answer", law))
    return str(thought), str(observe("answer", law, answer))


def main(particles: int = 4096) -> None:
    engines = [Importance(particles), SMC(particles), Rejection(particles)]
    print(f"{'':24}{'P(twelve)':>10}{'P(add | seven)':>16}{'distance':>10}")
    forward = infer(scratchpad, engine=Enumerate(), lm=MODEL).marginal()
    backward = infer(scratchpad, " seven", engine=Enumerate(), lm=MODEL).marginal()
    exact = forward[" add", " twelve"] + forward[" guess", " twelve"]
    print(f"{'exact':24}{exact:10.4f}{backward[' add', ' seven']:16.4f}")
    assert abs(exact - (0.6 * 0.8 + 0.4 * 0.2)) < 1e-12
    assert abs(backward[" add", " seven"] - 0.06 / 0.30) < 1e-12
    for engine in engines:
        there = infer(scratchpad, engine=engine, lm=MODEL, seed=3).marginal()
        back = infer(scratchpad, " seven", engine=engine, lm=MODEL, seed=4).marginal()
        far = max(there.total_variation(forward), back.total_variation(backward))
        right = sum(p for (_, answer), p in there.items() if answer == " twelve")
        name = type(engine).__name__
        print(f"{name:24}{right:10.4f}{back[' add', ' seven']:16.4f}{far:10.4f}")
        assert far <= 0.02


if __name__ == "__main__":
    main()
