"""Adaptive graph of thoughts: split a question only when it is too hard to answer at once.

First with a simulated solver, where the truth is known: an expression of k operations is answered
directly with probability .97^(k^1.6), halves are put together with .995, and the check sees the
success probability with noise. The threshold trades accuracy for calls.

Then with SmolLM2 on a question of two hops over given facts. The model says whether one fact is
enough, chooses a split (JSON with a placeholder for the first answer), selects a fact for each part,
and is asked backwards whether that fact would raise this question: an observation, by Bayes' rule.
All of these are sites, so the graph has an exact posterior over its answer, by enumeration, and
particles with a poor split lose their weight.

References: Pandey et al., Adaptive Graph of Thoughts (2025); Creswell et al., Selection-Inference
(2022).
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

from lmppl import LM, Choice, Uniform, observe, program, sample
from lmppl.graphs import thought_graph
from lmppl.graphs.methods import Limits, Task, agot, parse_tasks
from lmppl.graphs.methods.adaptive import Known

NEEDS = "smollm2"
SIZES = (1, 2, 3, 4, 6, 8, 12)
NOISE = Uniform([NormalDist(0, 0.7).inv_cdf((i + 0.5) / 200) for i in range(200)])


class Simulated:
    """A task is its number of operations; an answer is (probability of being right, calls)."""

    def initial(self, k: int, most: int) -> list[int]:
        return [k // 2, k - k // 2]

    def simple(self, k: int, known: Known, depth: int) -> float:
        p = 0.97 ** (k**1.6)
        odds = p / (1 - p) * 2.718281828 ** sample("noise", NOISE)
        return 1.0 if k == 1 else odds / (1 + odds)

    def execute(self, k: int, known: Known) -> tuple[float, int]:
        return 0.97 ** (k**1.6), 1

    def more(self, k: int, known: Known, most: int) -> None:
        return None

    def final(self, k: int, known: Known) -> tuple[float, int]:
        right = 0.995
        for _, (p, _) in known:
            right *= p
        return right, 1 + sum(calls for _, (_, calls) in known)


@program
def simulated(threshold: float) -> Any:
    k, steps = sample("k", Uniform(SIZES)), Simulated()
    if steps.simple(k, (), 0) >= threshold:
        return steps.execute(k, ())
    return agot(k, steps, Limits(max_depth=4, max_tasks=9, threshold=threshold))


SPLIT = """\
Question: What color is the animal that Otto rides?
Tasks: ["Which animal does Otto ride?", "What color is {1}?"]
Question: In which country is the club that Eric plays for?
Tasks: ["Which club does Eric play for?", "In which country is {1}?"]
"""
ENOUGH = """\
Question: What color is the animal that Otto rides? Facts needed: two
Question: Which animal does Otto ride? Facts needed: one
Question: In which country is the club that Eric plays for? Facts needed: two
Question: In which country is Rovers? Facts needed: one
"""
ASK = """\
Otto rides the mule. So ask: Which animal does Otto ride?
The mule is gray. So ask: What color is the mule?
Eric plays for Rovers. So ask: Which club does Eric play for?
Rovers is a team from Peru. So ask: In which country is Rovers?
"""


SPLITS = (
    ' ["Which firm does Ida work for?", "In which city is {1}?"]',
    ' ["In which city is Ida?", "Which firm is in {1}?"]',
    ' ["Which color does Ida like?", "What color is {1}?"]',
)


class Reader:
    """Questions over facts, with a language model."""

    def __init__(self, facts: tuple[str, ...]) -> None:
        self.facts = facts

    def initial(self, task: Any, most: int) -> tuple[Task, ...]:
        asked = f"{SPLIT}Question: {task}\nTasks:"
        first, second = parse_tasks(sample("tasks", Choice(asked, SPLITS)), most=most)
        return first, Task(second.text, (1,))

    def simple(self, task: Any, known: Known, depth: int) -> float:
        asked = f"{ENOUGH}Question: {question_of(task, known)} Facts needed:"
        return float(sample("enough", Choice(asked, [" one", " two"])) == " one")

    def execute(self, task: Any, known: Known) -> str:
        """Select a fact that would raise the question; its last word answers."""
        question = question_of(task, known)
        options = [f" {fact}" for fact in self.facts]
        fact = sample("fact", Choice(f"{' '.join(self.facts)} {question}", options))
        observe("question", LM(f"{ASK}{fact.strip()} So ask:", stop="\n"), f" {question}")
        return str(fact.rstrip(".").split()[-1])

    def more(self, task: Any, known: Known, most: int) -> None:
        return None

    def final(self, task: Any, known: Known) -> Any:
        return known[-1][1]


def question_of(task: Any, known: Known) -> str:
    """The text of a task, with the answer that it reads."""
    text = task.text if isinstance(task, Task) else str(task)
    return text.replace("{1}", known[0][1]) if known else text


@program
def read(facts: tuple[str, ...], question: str) -> Any:
    steps = Reader(facts)
    if steps.simple(question, (), 0) >= 0.5:
        return steps.execute(question, ())
    return agot(question, steps, Limits(max_depth=0, max_layers=1))


def main(questions: int = 300, lm: str = NEEDS) -> None:
    from lmppl.inference import SMC, Enumerate, Importance, infer

    print(f"{'threshold':>9} {'accuracy':>8} {'calls':>6}")
    table = []
    for threshold in (0.0, 0.8, 0.85, 0.9, 0.96, 1.0):
        run = infer(simulated, threshold, engine=Importance(questions), seed=0)
        means = [sum(t.result[i] for t in run.traces) / questions for i in (0, 1)]
        table.append(means)
        print(f"{threshold:9.2f} {means[0]:8.3f} {means[1]:6.2f}")
    exact = sum(0.97 ** (k**1.6) for k in SIZES) / len(SIZES)
    assert abs(table[0][0] - exact) < 0.06 and table[0][1] == 1.0
    assert table[2][0] - table[0][0] > 0.5 * (table[-1][0] - table[0][0])
    assert table[2][1] < 0.6 * table[-1][1]

    facts = (
        "Anna works for Corvus.",
        "Velano is based in Tokyo.",
        "Corvus is based in Lima.",
        "Ida works for Velano.",
    )
    question = "In which city is the firm that Ida works for?"
    for engine in (SMC(particles=16), Enumerate()):
        posterior = infer(read, facts, question, engine=engine, lm=lm)
        found = {a: round(p, 3) for a, p in posterior.marginal().items()}
        print(f"{type(engine).__name__:9} {found}  {posterior.ledger.tokens} tokens")
    for node in thought_graph(posterior.map()).nodes:
        print(f"  {node.id:8} {node.status:9} {node.weight:7.2f}  {node.text}")
    assert posterior.marginal().best == "Tokyo"  # Ida, Velano, Tokyo


if __name__ == "__main__":
    main()
