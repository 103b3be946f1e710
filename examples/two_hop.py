"""Two hops: select a fact, infer from it, select the next; the question itself is evidence.

The facts come in any order, with two other people's among them. A first fact is selected by
reading facts and question, a second one by what should follow the first; what it says last is the
answer. A small model selects badly but asks well: given a fact, it knows which question it would
ask. So the program observes the question *given* the first fact (Bayes' rule), and particles that
started from the wrong person lose their weight.

Reference: Creswell, Shanahan and Higgins, Selection-Inference (2022); reading the model backwards
is the noisy channel of Min et al. (2022).
"""

from __future__ import annotations

from lmppl import LM, Choice, deterministic, observe, program, sample

NEEDS = "smollm2"

SELECT = """\
Facts: Lena rides the pony. The mule is gray. Otto rides the mule. The pony is brown.
Question: What color is the animal that Otto rides?
Reason: Otto rides the mule. The mule is gray.

Facts: Diaz lives in Oslo. Rosa is helped by Kim. Kim lives in Bonn. Max is helped by Diaz.
Question: In which city does the helper of Max live?
Reason: Max is helped by Diaz. Diaz lives in Oslo.

"""
FOLLOW = """\
Otto rides the mule. The mule is gray.
Max is helped by Diaz. Diaz lives in Oslo.
Rita sleeps in the tent. The tent is made of silk.
Eric plays for Rovers. Rovers is a team from Leeds.
"""
ASK = """\
Otto rides the mule. So ask: What color is the animal that Otto rides?
Max is helped by Diaz. So ask: In which city does the helper of Max live?
Rita sleeps in the tent. So ask: What is the place that Rita sleeps in made of?
"""


@program
def two_hop(facts: list[str], question: str) -> str:
    reading = f"{SELECT}Facts: {' '.join(facts)}\nQuestion: {question}\nReason:"
    first = sample("first", Choice(reading, [f" {fact}" for fact in facts]))
    observe("question", LM(f"{ASK}{first.strip()} So ask:", stop="\n"), f" {question}")
    others = [f" {fact}" for fact in facts if f" {fact}" != first]
    second = sample("second", Choice(FOLLOW + first.strip(), others))
    return str(deterministic("answer", second.rstrip(".").split()[-1]))


def main(lm: str = NEEDS) -> None:
    from lmppl.inference import SMC, Enumerate, Greedy, infer

    facts = [
        "Anna works for Corvus.",
        "Velano is based in Tokyo.",
        "Corvus is based in Lima.",
        "Ida works for Velano.",
    ]
    question = "In which city is the firm that Ida works for?"
    for engine in (Greedy(), SMC(particles=8), Enumerate()):
        posterior = infer(two_hop, facts, question, engine=engine, lm=lm)
        found = {answer: round(p, 3) for answer, p in posterior.marginal().items()}
        print(f"{type(engine).__name__:10} {found}  {posterior.ledger.tokens} tokens")
    assert posterior.marginal().best == "Tokyo"
    assert posterior.marginal()["Tokyo"] > 0.9  # exact: both facts have to be the right ones


if __name__ == "__main__":
    main()
