"""Choices between nodes: what no longer matters is cancelled, and leaves no trace and no weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lmppl import LM, call, factor, program, sample
from lmppl.errors import GraphError
from lmppl.graphs import Node, Spawn, first, graph, thought_graph
from lmppl.inference import SMC, Enumerate, Importance, infer
from lmppl.inference.machine.growing import Growing
from lmppl.lm.table import TableLM
from lmppl.testing import LawBroken, assert_properly_weighted

AB = TableLM(
    ["a", "b", "<eos>"],
    {(): [0.5, 0.3, 0.2], (0,): [0.25, 0.35, 0.4], (1,): [0.6, 0.0, 0.4], (2,): [0.5, 0.3, 0.2]},
    name="ab",
)


def write(*read: str) -> Any:
    """A text that depends on the last letter of what it reads."""
    return sample("text", LM("a" + "".join(read), max_tokens=1))


def alternatives(speculate: bool) -> list[Node]:
    """Three strings of which the first "a" is taken; each weighs, and the second has an ancestor."""

    def weigh(name: str) -> Callable[..., Any]:
        def node(*read: str) -> Any:
            text = write(*read)
            factor("f", 0.9 if text == "b" else -0.4)
            return text

        return node

    return [
        Node("x", weigh("x")),
        Node("before_y", weigh("before_y")),
        Node("y", weigh("y"), ("before_y",)),
        Node("z", weigh("z")),
        first("win", ("x", "y", "z"), lambda text: text == "a", speculate=speculate),
        Node("end", lambda text: text or "none", ("win",), tolerant=True),
    ]


def lazily() -> Any:
    """What a choice means: the next alternative is only asked when the last one was refused."""

    def weigh(name: str, *read: str) -> str:
        text: str = call(write, *read, name=name)
        factor("f", 0.9 if text == "b" else -0.4)
        return text

    if weigh("x") == "a":
        return "a"
    if weigh("y", weigh("before_y")) == "a":
        return "a"
    return "a" if weigh("z") == "a" else "none"


@pytest.mark.parametrize("driver", ["greenlet", "eager"])
@pytest.mark.parametrize("speculate", [False, True])
def test_cancelled_branches_leave_no_weight(driver: str, speculate: bool) -> None:
    """Whatever the schedule, the law is that of the program that asks one after the other."""

    @program
    def together() -> Any:
        return graph("g", alternatives(speculate))["end"]

    exact = infer(program(lazily), engine=Enumerate(), lm=AB)
    found = infer(together, engine=Enumerate(), lm=AB, driver=driver)
    assert found.log_evidence == pytest.approx(exact.log_evidence, abs=1e-10)
    assert all(abs(p - exact.marginal()[v]) < 1e-10 for v, p in found.marginal().items())
    for trace in found.traces:
        record = thought_graph(trace)
        known = {n.id for n in record.nodes if n.status == "done"}
        drawn = {a.split("/")[1] for a in trace if a.endswith("/text")}
        assert drawn == known - {"win", "end"}


@pytest.mark.parametrize("driver", ["greenlet", "eager"])
def test_a_filter_that_cancels_is_properly_weighted(driver: str) -> None:
    """It has resampled by the weight of a node that it then cancels."""

    @program
    def together() -> Any:
        def short(times: int, weigh: float = 0.0) -> str:
            for _ in range(times):
                text = sample("text", LM("b", max_tokens=1))
                factor("f", weigh * len(text))
            return str(text)

        nodes = [
            Node("x", lambda: short(2)),
            Node("z", lambda: short(1, 0.9)),
            first("win", ("x", "z"), lambda text: text == "a", speculate=True),
        ]
        return graph("g", nodes)["win"] or "none"

    engine = SMC(2, resample_at="site", always=True)
    assert_properly_weighted(together, engine=engine, lm=AB, driver=driver, atol=1e-10)


def test_a_mutant_that_keeps_the_weight_of_cancelled_nodes_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def keep(self: Any, p: Any, branches: list[Any], cancelled: frozenset[str]) -> None:
        for branch in [b for b in branches if b.place in cancelled]:
            branch.cancel()
            branches.remove(branch)

    def short(times: int, weigh: float = 0.0) -> str:
        for _ in range(times):
            text = sample("text", LM("b", max_tokens=1))
            factor("f", weigh * len(text))
        return str(text)

    @program
    def together() -> Any:
        nodes = [
            Node("x", lambda: short(2)),
            Node("z", lambda: short(1, 0.9)),
            first("win", ("x", "z"), lambda text: text == "a", speculate=True),
        ]
        return graph("g", nodes)["win"] or "none"

    assert_properly_weighted(together, engine=Importance(1), lm=AB)
    monkeypatch.setattr(Growing, "_cancel", keep)
    with pytest.raises(LawBroken):
        assert_properly_weighted(together, engine=Importance(1), lm=AB)


def test_speculation_takes_fewer_rounds_and_more_tokens() -> None:
    @program
    def together(speculate: bool) -> Any:
        return graph("g", alternatives(speculate))["end"]

    passes, calls = [], []
    for speculate in (False, True):
        before = AB.usage.passes
        run = infer(together, speculate, engine=Importance(200), lm=AB, seed=2)
        passes.append(AB.usage.passes - before)
        calls.append(run.ledger.calls)
        assert sum(n.status == "cancelled" for n in thought_graph(run.traces[0]).nodes) in (0, 3)
    assert passes == [4, 2]
    assert calls[0] < calls[1] <= 800
    one, other = (infer(together, s, engine=Importance(200), lm=AB, seed=2) for s in (False, True))
    assert [t.result for t in one.traces] == [t.result for t in other.traces]
    assert one.log_weights == pytest.approx(other.log_weights, abs=1e-12)


def test_a_cancellable_node_cannot_kill() -> None:
    def hopeless() -> Any:
        factor("no", sample("text", LM("a", max_tokens=1)) == "never")

    nodes = [
        Node("x", lambda: (write(), write())[1]),
        Node("y", hopeless),
        first("win", ("x", "y"), lambda _: True, speculate=True),
    ]
    with pytest.raises(GraphError, match="'y' gives weight zero before it is known"):
        infer(program(lambda: graph("g", nodes)), engine=Importance(4), lm=AB)
    found = infer(program(lambda: graph("g", nodes)["win"]), engine=Enumerate(), lm=AB)
    assert found.log_evidence == pytest.approx(0.0, abs=1e-12)


def test_a_cancelled_node_runs_again_for_a_late_reader() -> None:
    def late(win: str) -> Any:
        return Spawn([Node("late.read", lambda z: f"{win}{z}", ("z",))], becomes="late.read")

    @program
    def woken() -> Any:
        nodes = [
            Node("x", lambda: "a"),
            Node("z", write),
            first("win", ("x", "z")),
            Node("late", late, ("win",)),
        ]
        return graph("g", nodes)["late"]

    found = infer(woken, engine=Enumerate(), lm=AB).marginal()
    assert {v: round(p, 10) for v, p in found.items()} == {"aa": 0.25, "ab": 0.35, "a": 0.4}


def test_only_what_an_output_needs_is_run() -> None:
    @program
    def pruned() -> Any:
        parents = {"n0": (), "n1": ("n0",), "n2": ("n0",), "n3": ("n2",)}
        nodes = [Node(name, write, above) for name, above in parents.items()]
        return graph("g", nodes, outputs=["n1"])

    run = infer(pruned, engine=Importance(1), lm=AB)
    assert set(run.traces[0].result) == {"n0", "n1"}
    assert [n.status for n in thought_graph(run.traces[0]).nodes] == [
        "done", "done", "unneeded", "unneeded",
    ]  # fmt: skip
    assert run.ledger.calls == 2
