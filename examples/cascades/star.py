"""Cascades, 3: STaR. A hint at the answer proposes the rationale; the weight takes the hint back.

The posterior of a rationale r given question and answer is

    p(r | q, a) ∝ p(r | q) p(a | q, r).

STaR draws rationales from the model, keeps those that lead to the answer (rejection), and for the
rest asks again with the answer as a hint. Taken as it is, the hinted rationale follows another law.
Taken as a *proposal* with weight p(r | q) / p(r | q, hint) it is exact, and wastes far fewer draws.

Reference: Zelikman et al., STaR (2022); Dohan et al., Language model cascades (2022), section 4.2.
"""

from __future__ import annotations

from lmppl import LM, observe, program, sample
from lmppl.inference import SMC, Engine, Enumerate, Importance, Posterior, Rejection, infer
from lmppl.lm.table import TableLM

MODEL = TableLM(
    ["Q", "H", " carry", " skip", " guess", " 41", " 31"],
    {
        (): [0.0, 0.0, 0.05, 0.35, 0.60, 0.0, 0.0],  # after the question
        (1,): [0.0, 0.0, 0.60, 0.10, 0.30, 0.0, 0.0],  # after the hint
        (2,): [0.0, 0.0, 0.0, 0.0, 0.0, 0.95, 0.05],
        (3,): [0.0, 0.0, 0.0, 0.0, 0.0, 0.02, 0.98],
        (4,): [0.0, 0.0, 0.0, 0.0, 0.0, 0.03, 0.97],
    },
)


@program
def rationale(answer: str, hinted: bool) -> str:
    hint = LM("QH", max_tokens=1) if hinted else None
    reason = sample("rationale", LM("Q", max_tokens=1), proposal=hint)
    observe("answer", LM(f"Q{reason}", max_tokens=1), answer)
    return str(reason)


def ask(engine: Engine, hinted: bool) -> Posterior:
    return infer(rationale, " 41", hinted, engine=engine, lm=MODEL, seed=5)


def main(particles: int = 4096) -> None:
    exact = ask(Enumerate(), False).marginal()
    z = 0.05 * 0.95 + 0.35 * 0.02 + 0.60 * 0.03
    assert abs(exact[" carry"] - 0.05 * 0.95 / z) < 1e-12
    print(f"{'':24}{'P(carry | 41)':>14}{'distance':>10}{'ESS / N':>9}")
    print(f"{'exact':24}{exact[' carry']:14.4f}")
    sizes = {}
    for name, engine, hinted in (
        ("without a hint", Importance(particles), False),
        ("with the hint", Importance(particles), True),
        ("with the hint, SMC", SMC(particles), True),
        ("rejection", Rejection(particles), False),
    ):
        post = ask(engine, hinted)
        found = post.marginal()
        sizes[name] = post.ess / len(post)
        far = found.total_variation(exact)
        print(f"{name:24}{found[' carry']:14.4f}{far:10.4f}{sizes[name]:9.3f}")
        if name != "without a hint":  # some 120 effective draws of 4,096
            assert far <= 0.02
    hinted_law = {" carry": 0.60, " skip": 0.10, " guess": 0.30}
    print(f"hinted rationales taken as they are: distance {exact.total_variation(hinted_law):.4f}")
    assert sizes["with the hint"] > 5 * sizes["without a hint"]


if __name__ == "__main__":
    main()
