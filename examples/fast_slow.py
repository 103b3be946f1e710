"""Fast and slow: answer at once, check, and think in a workflow only where the check says no.

Questions are sums of k numbers. The fast answer is right with probability .9^(k-1); a check notices
what is right or wrong with 0.95. The slow way makes one card for each addition, in a balanced tree:
cards that do not need each other run together, each is right with 0.99. All of it are sites, so the
accuracy and the calls of every policy are exact expectations here, by enumeration.

Reference: Yao, Yao and Dong, HDFlow: Enhancing LLM complex problem-solving with hybrid thinking and
dynamic workflows (2024).
"""

from __future__ import annotations

from lmppl import Bernoulli, deterministic, program, sample
from lmppl.graphs import thought_graphs
from lmppl.graphs.methods import Card, fast_slow
from lmppl.inference import Enumerate, Importance, infer

FAST, CARD, CHECK = 0.9, 0.99, 0.95
SIZES = (2, 4, 8)


def call(name: str, p: float) -> bool:
    """One call of a model, right with probability p."""
    return bool(sample(f"call {name}", Bernoulli(p)))


def check(k: int, right: bool) -> float:
    """The verifier's opinion."""
    return 0.9 if sample("check", Bernoulli(CHECK)) == right else 0.1


def workflow(k: int, attempt: int) -> list[Card]:
    """One card per addition, in a tree."""
    cards: list[Card] = []
    level = [""] * k
    while len(level) > 1:
        above = []
        for i in range(0, len(level) - 1, 2):
            name = f"add{len(cards)}"
            reads = tuple(n for n in level[i : i + 2] if n)
            cards.append(Card(name, lambda *parts: call("add", CARD) and all(parts), reads))
            above.append(name)
        level = above + level[len(level) - len(level) % 2 :]
    return cards


@program
def ask(k: int, threshold: float, speculate: bool = False) -> bool:
    found = fast_slow(
        k, lambda k: call("fast", FAST ** (k - 1)), check, workflow,
        threshold=threshold, attempts=1, speculate=speculate,
    )  # fmt: skip
    deterministic("by", found.by)
    return bool(found.value)


def exact(k: int, threshold: float) -> tuple[float, float]:
    """Accuracy and calls."""
    posterior = infer(ask, k, threshold, engine=Enumerate())
    calls = posterior.expectation(lambda t: float(sum("call " in site for site in t)))
    return posterior.marginal()[True], calls.value


def main() -> None:
    # thresholds that the check never reaches, reaches when it says yes, always reaches
    policies = {"fast": 0.0, "hybrid": 0.5, "slow": 1.0}
    print(f"{'numbers':8}" + "".join(f"{name:>18}" for name in policies))
    table = {}
    for k in SIZES:
        row = {name: exact(k, threshold) for name, threshold in policies.items()}
        table[k] = row
        print(f"{k:8}" + "".join(f"{p:10.3f} {calls:5.2f} c" for p, calls in row.values()))
    runs = [infer(ask, 8, 0.5, s, engine=Importance(200), seed=1) for s in (False, True)]
    same = [[t.result for t in run.traces] for run in runs]
    record = next(g for t in runs[0].traces if t["by"] != "fast" for g in thought_graphs(t))
    print(
        f"speculation: the same answers ({same[0] == same[1]}), {len(record.nodes)} nodes in a graph"
    )

    assert same[0] == same[1]
    for k, row in table.items():
        assert abs(row["fast"][0] - FAST ** (k - 1)) < 1e-12
        right, yes = FAST ** (k - 1), CHECK * FAST ** (k - 1) + (1 - CHECK) * (1 - FAST ** (k - 1))
        assert abs(row["hybrid"][1] - (1 + (1 - yes) * (k - 1))) < 1e-12  # by hand
        assert row["fast"][0] <= row["hybrid"][0] and right < 1
    assert table[8]["hybrid"][1] < table[8]["slow"][1] < 8.01


if __name__ == "__main__":
    main()
