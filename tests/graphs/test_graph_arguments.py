"""Whatever an argument of the functions of `lmppl.graphs` is: it works, or the error says what to write."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmppl import Bernoulli, Categorical, program, sample
from lmppl.errors import LmpplError
from lmppl.graphs import (
    BayesNet,
    Budget,
    CliqueTree,
    Factor,
    FactorGraph,
    LogJoint,
    Node,
    Variable,
    d_separated,
    dot,
    eliminate,
    genealogy,
    graph,
    graph_of,
    markov_blanket,
    mermaid,
    most_probable,
    propagate,
    relevant,
    render,
    render_svg,
    tables_of,
    thought_graph,
    thought_graphs,
)
from lmppl.graphs.methods.adaptive import Limits
from lmppl.graphs.methods.operations import Operations
from lmppl.inference import Importance, infer

STRANGE: tuple[Any, ...] = (
    None, "x", "", -1, 0, 1.5, math.nan, math.inf, True, [], [1.5], (1, 2), ["a"], {"a": 1},
    object(), b"x", {1, 2}, np.int64(3),
)  # fmt: skip
LAW = np.log(np.full((2, 2), 0.25))
TABLE = Factor(("a", "b"), LAW)
TWO = {"a": (0, 1), "b": (0, 1)}
FACTORS = FactorGraph(TWO, (TABLE,))
TREE = CliqueTree(FACTORS)
RAIN = Variable("rain", ["no", "yes"], [0.8, 0.2])
WET = Variable("wet", ["no", "yes"], [[0.9, 0.1], [0.05, 0.95]], ["rain"])
NET = BayesNet([RAIN, WET])
STEPS = [np.array([0, 0, 2]), None, np.array([0, 1, 1])]


@program
def pair() -> bool:
    """Two finite sites."""
    x = sample("x", Bernoulli(0.5))
    sample("y", Categorical(["a", "b"], [0.5, 0.5]))
    return bool(x)


@program
def thinks() -> Any:
    """A thought graph of one node."""
    return graph("plan", [Node("a", lambda: 1)])["a"]


GRAPH = graph_of(pair)
TRACE = infer(thinks, engine=Importance(1), seed=0).traces[0]
RECORD = thought_graph(TRACE)

Call = Callable[[Any], Any]


def of(fn: Callable[..., Any], /, **good: Any) -> dict[str, Call]:
    """One call per argument: all others are good."""
    name = getattr(fn, "__qualname__", str(fn))
    return {f"{name}({k})": given(fn, k, **good) for k in good}


def given(fn: Callable[..., Any], name: str, /, *args: Any, **good: Any) -> Call:
    """A call with the value as the argument of this name."""
    return lambda value: fn(*args, **{**good, name: value})


CALLS: dict[str, Call] = {
    **of(Factor, scope=("a", "b"), table=LAW),
    **of(FactorGraph, domains=TWO, factors=(TABLE,)),
    "domain": lambda v: FactorGraph({"a": v, "b": (0, 1)}, (TABLE,)),
    "factor": lambda v: FactorGraph(TWO, (v,)),
    **of(FactorGraph.of, domains=TWO, function=lambda *_: 0.0, scope=("a",)),
    "FactorGraph.of(value)": lambda v: FactorGraph.of(TWO, lambda a: v, ("a",)),
    "FactorGraph.index(name)": lambda v: FACTORS.index(v, 0),
    "FactorGraph.given": FACTORS.given,
    "FactorGraph.given(value)": lambda v: FACTORS.given({"a": v}),
    "FactorGraph.log_value": FACTORS.log_value,
    "FactorGraph *": lambda v: FACTORS * v,
    **of(CliqueTree, graph=FACTORS, order=["a", "b"], most=100),
    "CliqueTree.marginal": TREE.marginal,
    "CliqueTree.joint": TREE.joint,
    "CliqueTree.draw": TREE.draw,
    **of(eliminate, graph=FACTORS, keep=["a"], most=100),
    **of(most_probable, graph=FACTORS, most=100),
    **of(propagate, graph=FACTORS, iterations=3, damping=0.1, tolerance=1e-3),
    **of(Variable, name="a", values=[0, 1], table=[0.5, 0.5], parents=[]),
    "BayesNet": BayesNet,
    "BayesNet[0]": lambda v: BayesNet([v]),
    "net[...]": lambda v: NET[v],
    **of(NET.query, of="rain", given={"wet": "yes"}, most=100),
    "log_evidence": NET.log_evidence,
    "tables_of": tables_of,
    **{
        f"tables_of({k})": given(tables_of, k, pair)
        for k in ("observations", "probes", "exhaustive", "seed")
    },
    **{
        f"{make.__name__}({k})": given(make, k, pair)
        for make in (graph_of, LogJoint)
        for k in ("observations", "kwargs")
    },
    "graph_of(trace)": lambda v: graph_of(pair, trace=v),
    "LogJoint.set": LogJoint(pair).set,
    "mermaid": mermaid,
    "dot": dot,
    **of(render_svg, graph=GRAPH, title="two sites"),
    **of(d_separated, graph=GRAPH, x="x", y="y", given=()),
    **of(markov_blanket, graph=GRAPH, node="x"),
    **of(relevant, graph=GRAPH, targets="x"),
    **of(genealogy.ancestors, steps=STEPS, particles=3),
    **of(genealogy.unique_ancestors, steps=STEPS, particles=3, weights=None),
    **of(genealogy.coalescence_time, steps=STEPS, particles=3, weights=None),
    **of(genealogy.to_networkx, steps=STEPS, particles=3, weights=None),
    **of(genealogy.genealogy_svg, steps=STEPS, particles=3, weights=None, width=9, height=9),
    "a step": lambda v: genealogy.ancestors([v], 3),
    **of(Node, name="a", fn=abs, parents=(), retries=0, on_failure="skip"),
    **of(Budget, nodes=1, depth=1, tokens=1, calls=1),
    **of(Limits, max_depth=1, max_tasks=1, max_layers=1, retries=1, threshold=0.5),
    "generate": lambda v: Operations().generate(str, "start0", v),
    "keep_best": lambda v: Operations().keep_best("start0", v),
    "thought_graphs": thought_graphs,
    **of(thought_graph, trace=TRACE, name="plan"),
    "record[...]": lambda v: RECORD[v],
    "record.total": RECORD.total,
    "record.critical": RECORD.critical,
    "from_dict": type(RECORD).from_dict,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_strange_value_works_or_is_refused(name: str) -> None:
    for value in STRANGE:
        try:
            CALLS[name](value)
        except LmpplError as error:
            assert error.fields.get("fix"), f"{name} of {value!r}: {error}"


def test_a_strange_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in STRANGE:
        with pytest.raises(LmpplError) as caught:
            render(GRAPH, value)
        assert caught.value.fields.get("fix"), value
    assert not list(tmp_path.iterdir())


def test_lists_serve_as_tuples() -> None:
    made = FactorGraph({"a": [0, 1]}, [Factor(["a"], [0.0, 1.0])])  # type: ignore[dict-item,arg-type]
    assert made.domains == {"a": (0, 1)}
    assert CliqueTree(made, ["a"]).log_z == pytest.approx(math.log(1.0 + math.e))
