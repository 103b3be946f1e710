"""Records: one order is extracted from a note with a change of mind in it, as a noisy channel.

The order is drawn under a regular expression: a number, a thing, a day. Reading forwards, a small
model takes whatever number or day stands nearest. So the note is observed *given* the order: of
the orders that were drawn, the one from which this note would most likely have been written wins.

Reference: Min et al., Noisy channel language model prompting (2022); Shannon (1948).
"""

from __future__ import annotations

from lmppl import LM, observe, program, sample

NEEDS = "smollm2"

READ = """\
Note: Hello, Rosa here. The 3 sofas came. Now I need 8 stools, on Sunday.
Order: 8 stools, Sunday

Note: I said 4 beds, but please make it 6 beds, and come on Friday.
Order: 6 beds, Friday

Note: Not on Monday! Bring the 2 vases on Thursday, says Max.
Order: 2 vases, Thursday

"""
WRITE = """\
Order: 8 stools, Sunday
Note: Hello, Rosa here. The 3 sofas came. Now I need 8 stools, on Sunday.

Order: 6 beds, Friday
Note: I said 4 beds, but please make it 6 beds, and come on Friday.

Order: 2 vases, Thursday
Note: Not on Monday! Bring the 2 vases on Thursday, says Max.

"""
DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
ORDER = rf" [1-9][0-9]? [a-z]{{3,10}}, (?:{DAYS})"


@program
def record(note: str) -> str:
    order = sample(
        "order", LM(f"{READ}Note: {note}\nOrder:", regex=ORDER, stop="\n", max_tokens=16)
    )
    observe("note", LM(f"{WRITE}Order:{order}\nNote:", stop="\n", max_tokens=80), f" {note}")
    return str(order).strip()


def main(lm: str = NEEDS) -> None:
    from lmppl.inference import SMC, Greedy, infer

    note = "Hi, Emma here. I asked for 3 mirrors, but we need 4. Please bring them on Monday."
    for engine in (Greedy(), SMC(particles=8)):
        posterior = infer(record, note, engine=engine, lm=lm)
        found = {order: round(p, 3) for order, p in list(posterior.marginal().items())[:3]}
        print(f"{type(engine).__name__:7} {found}  {posterior.ledger.tokens} tokens")
    number, thing, day = posterior.marginal().best.replace(",", "").split()
    assert number.isdigit() and thing.isalpha() and day in DAYS  # whatever is drawn, it is a record


if __name__ == "__main__":
    main()
