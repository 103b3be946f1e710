"""Word problems: a scratchpad, a formula, a calculator, and a verifier as an observation.

The model notes the numbers that matter, then writes a formula; the calculator, not the model,
computes. What a careful reader checks becomes evidence about both: no number of the story should
be forgotten or made up, and the result should be about what one would have guessed. The verifier
is the same model asked for the answer outright, without a formula: a poor solver, but a fair judge
of whether 30 or 216 flowers are still in the bag.

Reference: Gao et al., PAL: Program-aided language models (2022), for formula and calculator; Cobbe
et al., Training verifiers to solve math word problems (2021), for the verifier.
"""

from __future__ import annotations

import re
from collections import Counter

from lmppl import LM, effect, factor, observe, program, sample
from lmppl.tools import calculate

NEEDS = "smollm2"

# question | numbers that matter | formula | answer
SHOTS = [
    line.split(" | ")
    for line in """\
Tom had 8 sweets and ate 3 of them. How many sweets has Tom now? | 8, 3 | 8 - 3 | 5
A box holds 6 pens. Lily has 4 boxes and 2 loose pens. How many pens has she? | 6, 4, 2 | 6 * 4 + 2 | 26
A rope of 20 meters is cut into 5 equal parts. How long is each part? | 20, 5 | 20 / 5 | 4
Mark earns 9 dollars and then 14, and spends 7. How much has he now? | 9, 14, 7 | 9 + 14 - 7 | 16
One ticket costs 12 dollars. What do 3 tickets cost? | 12, 3 | 12 * 3 | 36
There are 7 birds on a tree and 5 more come. How many birds are there? | 7, 5 | 7 + 5 | 12
Sue had 30 nuts. She eats 6 nuts a day for 4 days. How many nuts are left? | 30, 6, 4 | 30 - 6 * 4 | 6
""".splitlines()
]
SOLVE = "".join(f"Question: {q}\nNumbers: {n}\nFormula: {f}\n\n" for q, n, f, _ in SHOTS)
GUESS = "".join(f"Question: {q}\nAnswer: {a}\n\n" for q, _, _, a in SHOTS)


def evidence(told: str, used: str) -> float:
    """A log-weight: forgetting a number is bad, making one up is worse."""
    a, b = (Counter(re.findall(r"\d+", text)) for text in (told, used))
    return -1.5 * (a - b).total() - 3.0 * (b - a).total()


@program
def word_problem(question: str) -> str:
    prompt = f"{SOLVE}Question: {question}\nNumbers:"
    thought = sample(
        "thought", LM(prompt, regex=r" \d+(, \d+)*", stop="\n", max_tokens=16).tempered(0.7)
    )
    factor("nothing forgotten", evidence(question, thought))
    prompt += f"{thought}\nFormula:"
    formula = sample(
        "formula",
        LM(prompt, regex=r" [0-9+\-*/ ().]{1,24}", stop="\n", max_tokens=24).tempered(0.7),
    )
    factor("numbers used", evidence(thought, formula))
    answer = effect("calculator", calculate, formula, on_error="kill")
    factor("a whole number", answer.isdigit() and len(answer) < 5)
    observe("guess", LM(f"{GUESS}Question: {question}\nAnswer:", stop="\n"), f" {answer}")
    return str(answer)


def main(lm: str = NEEDS) -> None:
    from lmppl.inference import SMC, Greedy, infer

    question = "Jack has 6 pencils. Ida gives Jack 5 more. How many pencils does Jack have now?"
    for engine in (Greedy(), SMC(particles=8)):
        posterior = infer(word_problem, question, engine=engine, lm=lm)
        found = {answer: round(p, 3) for answer, p in list(posterior.marginal().items())[:3]}
        print(f"{type(engine).__name__:7} {found}  {posterior.ledger.tokens} tokens")
    assert posterior.marginal().best == "11"  # 6 + 5


if __name__ == "__main__":
    main()
