"""Cascades, 2: verifiers. A thought and an answer, observed to pass three checks.

    p(thought, answer | all pass) ∝ p(thought) p(answer | thought) Π_k p(pass_k | thought, answer)

Verifiers here are as good as coins that lean a little; three of them together turn the answer round.
The plain vote over samples says the wrong answer for every number of samples.

Reference: Dohan et al., Language model cascades (2022), section 4.3; Cobbe et al., Training
verifiers to solve math word problems (2021).
"""

from __future__ import annotations

from lmppl import LM, Choice, observe, program, sample
from lmppl.inference import SMC, Enumerate, Importance, Rejection, infer
from lmppl.lm.table import TableLM

SLOW = True
MODEL = TableLM(
    ["Q", " short", " long", " 8", " 12", " pass", " fail"],
    {
        (): [0.0, 0.7, 0.3, 0.0, 0.0, 0.0, 0.0],
        (1,): [0.0, 0.0, 0.0, 0.8, 0.2, 0.0, 0.0],
        (2,): [0.0, 0.0, 0.0, 0.1, 0.9, 0.0, 0.0],
        (3,): [0.0, 0.0, 0.0, 0.0, 0.0, 0.4, 0.6],  # a wrong answer passes in 4 of 10 checks
        (4,): [0.0, 0.0, 0.0, 0.0, 0.0, 0.7, 0.3],
    },
)


@program
def verified(checks: int) -> str:
    thought = sample("thought", LM("Q", max_tokens=1))
    answer = sample("answer", LM(f"Q{thought}", max_tokens=1))
    for _ in range(checks):
        observe("check", Choice(f"Q{thought}{answer}", [" pass", " fail"]), " pass")
    return str(answer)


def main(particles: int = 4096) -> None:
    eight = 0.7 * 0.8 + 0.3 * 0.1
    print(
        f"{'checks':>8}{'P(12) exact':>13}"
        + "".join(f"{n:>13}" for n in ("Importance", "SMC", "Rejection"))
    )
    for checks in range(4):
        exact = infer(verified, checks, engine=Enumerate(), lm=MODEL).marginal()
        by_hand = (1 - eight) * 0.7**checks / ((1 - eight) * 0.7**checks + eight * 0.4**checks)
        assert abs(exact[" 12"] - by_hand) < 1e-12
        shown = []
        for engine in (Importance(particles), SMC(particles), Rejection(particles)):
            found = infer(verified, checks, engine=engine, lm=MODEL, seed=7).marginal()
            assert found.total_variation(exact) <= 0.02
            shown.append(f"{found[' 12']:13.4f}")
        print(f"{checks:>8}{exact[' 12']:13.4f}" + "".join(shown))
    assert exact.best == " 12"


if __name__ == "__main__":
    main()
