"""Tool calls side by side: a sequential trace becomes a DAG, a plan runs with its dead links.

Three ways to use the same tools (a table of populations, one of areas, a calculator):

1. rounds of calls: a thought asks for several, they run together, the next thought reads them;
2. a trace that called one tool after another is turned into the DAG of its data, and run again: the
   same values in fewer rounds;
3. a plan as a DAG, in which a step fails and is done another way; its ancestors do not run again.

References: Zhu et al., Divide-Then-Aggregate (ACL 2025); Qin et al., Flash-Searcher (2025).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmppl import program
from lmppl.graphs import thought_graph
from lmppl.graphs.methods import (
    Ref,
    Step,
    divide_then_aggregate,
    run_dag,
    run_plan,
    traced,
    tree_to_dag,
    use,
)
from lmppl.inference import Importance, infer
from lmppl.tools import calculate

PEOPLE = {"Ardin": 120_000, "Belm": 90_000, "Corva": 45_000}
AREA = {"Ardin": 60, "Belm": 30, "Corva": 90}
calls: list[str] = []


def people(town: str) -> int:
    """The census."""
    calls.append(f"people {town}")
    return PEOPLE[town]


def area(town: str) -> int:
    """The land register; its page about Belm is gone."""
    calls.append(f"area {town}")
    if town == "Belm":
        raise OSError("404")
    return AREA[town]


def almanac(town: str) -> int:
    """A slower source of areas."""
    calls.append(f"almanac {town}")
    return AREA[town]


def divide(a: int, b: int) -> int:
    """Exactly, by the calculator."""
    return int(calculate(f"{a} // {b}"))


TOOLS: dict[str, Callable[..., Any]] = {
    "people": people,
    "area": area,
    "almanac": almanac,
    "divide": divide,
    "max": max,
}


@program
def rounds(towns: tuple[str, ...]) -> Any:
    """People per area of the densest town, in rounds."""

    def think(question: str, past: tuple[Any, ...]) -> Any:
        if len(past) == 0:
            return [(tool, (town,)) for town in towns for tool in ("people", "almanac")]
        if len(past) == 1:
            found = [result.value for result in past[0]]
            return [("divide", tuple(found[i : i + 2])) for i in range(0, len(found), 2)]
        return max(result.value for result in past[1])

    return divide_then_aggregate("densest", think, TOOLS)


@program
def plan(towns: tuple[str, ...]) -> Any:
    """The same as a plan; a source that fails is replaced."""

    def act(what: tuple[str, ...], *read: int) -> Any:
        tool, *args = what
        return use("tool", TOOLS[tool], *args, *read)

    def another(what: tuple[str, ...], reason: str, read: Any) -> tuple[str, ...]:
        return ("almanac", what[1])

    steps = [Step(f"{tool} {town}", (tool, town)) for town in towns for tool in ("people", "area")]
    steps += [Step(f"d {t}", ("divide",), (f"people {t}", f"area {t}")) for t in towns]
    steps.append(Step("max", ("max",), tuple(f"d {t}" for t in towns)))
    return run_plan(steps, act, repair=another)["max"]


TRACE = [
    traced("p1", "people", "Ardin"),
    traced("a1", "almanac", "Ardin"),
    traced("d1", "divide", Ref("p1"), Ref("a1")),
    traced("lost", "almanac", "Corva"),
    traced("p2", "people", "Belm"),
    traced("a2", "almanac", "Belm"),
    traced("d2", "divide", Ref("p2"), Ref("a2")),
    traced("best", "max", Ref("d1"), Ref("d2")),
]


@program
def again(kept: tuple[str, ...]) -> Any:
    return run_dag(tree_to_dag(TRACE, kept), TOOLS)["best"]


def main() -> None:
    towns = ("Ardin", "Belm", "Corva")
    print(f"{'way':8} {'answer':>6} {'nodes':>5} {'rounds':>6}")
    for name, way, given in (
        ("rounds", rounds, towns),
        ("plan", plan, towns),
        ("trace", again, ("best",)),
    ):
        calls.clear()
        trace = infer(way, given, engine=Importance(1)).traces[0]
        record = thought_graph(trace)
        effects = record.total(lambda node: node.effects)
        longest = record.critical(lambda node: float(node.effects > 0))
        print(f"{name:8} {trace.result:6} {effects:5.0f} {longest:6.0f}")
        assert trace.result == 3000  # Belm: 90,000 on 30
        if name == "plan":
            assert sorted(calls).count("people Belm") == 1 and "almanac Belm" in calls
            assert record["area Belm"].status == "replaced"
    assert (effects, longest) == (7, 3)  # the trace made 8 calls, one after another


if __name__ == "__main__":
    main()
