"""Arithmetic by a graph of thoughts: one node per operation, in parallel where they do not depend.

A small model cannot compute (2 + 3) * 4 + 3 * 3 in one go, but it knows many single steps. The
expression is a graph: each operation is a node that reads two results and asks the model for one
number. Independent operations are one batch, and the answer has a posterior.

The draws of a node are tempered (a target of its own), and the model checks itself in other
directions: after 2 + 3 = 5 it should find 5 - 3 = 2 likely, and 5 = 2 + 3. Both are observations, so
runs with a wrong step lose their weight.

Reference: Besta et al., Graph of Thoughts (2024); decomposition into single steps: Khot et al.,
Decomposed Prompting (2023).
"""

from __future__ import annotations

from functools import partial

from lmppl import LM, observe, program, sample
from lmppl.graphs import Node, graph, thought_graph

NEEDS = "smollm2"

STEPS = """\
2 + 3 = 5
9 - 4 = 5
3 * 4 = 12
12 / 4 = 3
8 + 6 = 14
20 - 7 = 13
6 * 5 = 30
30 / 6 = 5
16 - 5 = 11
11 + 5 = 16
"""
BACK = "5 = 2 + 3\n5 = 9 - 4\n12 = 3 * 4\n14 = 8 + 6\n13 = 20 - 7\n30 = 6 * 5\n"

Tree = int | tuple["Tree", str, "Tree"]
EXPRESSION: Tree = (((2, "+", 3), "*", 4), "+", (3, "*", 3))


def written(tree: Tree) -> str:
    """With parentheses."""
    return (
        str(tree) if isinstance(tree, int) else f"({written(tree[0])} {tree[1]} {written(tree[2])})"
    )


def inverse(op: str, left: str, right: str, number: str) -> tuple[str, str]:
    """The question that undoes a step, and its answer."""
    if op == "+":
        return f"{number} - {right}", left
    if op == "-":
        return f"{number} + {right}", left
    return f"{number} / {left}", right


def step(op: str, left: str, right: str) -> str:
    """One operation: the model's number, and the model's opinions of it."""
    question = f"{left} {op} {right}"
    law = LM(f"{STEPS}{question} =", regex=r" \d{1,3}", stop="\n", max_tokens=5)
    number = str(sample("number", law.tempered(0.7))).strip()
    undo, answer = inverse(op, left, right, number)
    observe("undone", LM(f"{STEPS}{undo} =", stop="\n", max_tokens=12), f" {answer}")
    observe("backwards", LM(f"{BACK}{number} =", stop="\n", max_tokens=12), f" {question}")
    return number


def nodes_of(tree: Tree, found: list[Node]) -> str:
    """Adds the nodes of an expression; the name of its own."""
    name = f"n{len(found)}"
    if isinstance(tree, int):
        found.append(Node(name, partial(str, tree), kind="number"))
        return name
    left, op, right = tree
    parents = (nodes_of(left, found), nodes_of(right, found))
    name = f"n{len(found)}"
    found.append(Node(name, partial(step, op), parents))
    return name


@program
def direct(tree: Tree) -> str:
    prompt = f"{STEPS}(2 + 3) * 4 = 20\n(9 - 4) - (1 + 2) = 2\n{written(tree)[1:-1]} ="
    return str(sample("answer", LM(prompt, regex=r" \d{1,3}", stop="\n", max_tokens=5))).strip()


@program
def by_graph(tree: Tree) -> str:
    nodes: list[Node] = []
    last = nodes_of(tree, nodes)
    return str(graph("steps", nodes)[last])


def main(lm: str = NEEDS) -> None:
    from lmppl.inference import SMC, infer

    print(f"{written(EXPRESSION)[1:-1]} = 29")
    for way in (direct, by_graph):
        posterior = infer(way, EXPRESSION, engine=SMC(particles=16), lm=lm, seed=0)
        found = {a: round(p, 3) for a, p in list(posterior.marginal().items())[:3]}
        print(f"{way.__name__:9} {found}  {posterior.ledger.tokens} tokens")
    record = thought_graph(posterior.traces[0])
    print(f"{record.sequential_rounds} strings in {record.rounds} rounds")
    assert (record.sequential_rounds, record.rounds) == (12, 9)
    assert posterior.marginal().best == "29"  # (2 + 3) * 4 + 3 * 3


if __name__ == "__main__":
    main()
