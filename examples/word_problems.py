"""Word problems: a scratchpad, a formula, a calculator, and a verifier as an observation.

The model writes what to do, then a formula; the calculator, not the model, computes. What a
careful reader checks becomes evidence about the formula: the numbers of the story should be used,
and a second opinion about the operation should agree. Conditioning on that evidence turns many
bad guesses into a posterior.

Reference: Gao et al., PAL: Program-aided language models (2022), for formula and calculator; Cobbe
et al., Training verifiers to solve math word problems (2021), for the verifier, which is here a
prompt to the same model.
"""

from __future__ import annotations

import re
from collections import Counter

from lmppl import LM, effect, factor, program, sample
from lmppl.tools import calculate

NEEDS = "smollm2"

SHOTS = """\
Question: Tom had 8 sweets and ate 3 of them. How many sweets has Tom now?
Thought: some are gone, so subtract.
Formula: 8 - 3

Question: A box holds 6 pens. Lily has 4 full boxes and 2 loose pens. How many pens has she?
Thought: 4 groups of 6, then add 2.
Formula: 4 * 6 + 2

Question: A rope of 20 meters is cut into 5 equal parts. How long is each part?
Thought: equal parts, so divide.
Formula: 20 / 5

Question: Mark earns 9 dollars on Sunday and 14 on Monday, then spends 7. How much has he now?
Thought: add the two, then subtract.
Formula: 9 + 14 - 7

Question: One ticket costs 12 dollars. What do 3 tickets cost?
Thought: the same 3 times, so multiply.
Formula: 3 * 12

Question: There are 7 birds on a tree and 5 more come. How many birds are there?
Thought: more come, so add.
Formula: 7 + 5

"""
NUMBER = re.compile(r"\d+")


def mismatch(question: str, formula: str) -> int:
    """Numbers of the question that the formula leaves out, and numbers it makes up."""
    asked, used = Counter(NUMBER.findall(question)), Counter(NUMBER.findall(formula))
    return ((asked - used) + (used - asked)).total()


@program
def word_problem(question: str) -> str:
    prompt = f"{SHOTS}Question: {question}\nThought:"
    thought = sample("thought", LM(prompt, stop="\n", max_tokens=20))
    prompt += f"{thought}\nFormula:"
    formula = sample("formula", LM(prompt, regex=r" [0-9+\-*/ ().]{1,24}\n", max_tokens=20))
    factor("numbers", -2.0 * mismatch(question, formula))
    answer = effect("calculator", calculate, formula, on_error="kill")
    return str(answer)
