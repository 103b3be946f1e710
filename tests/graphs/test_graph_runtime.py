"""Thought graphs run in parallel and mean what the sequential program means."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from lmppl import LM, Uniform, call, factor, observe, program, sample
from lmppl.graphs import Failed, Node, NodeFailed, Spawn, graph
from lmppl.inference import SMC, Enumerate, Importance, infer, tokens
from lmppl.lm.table import TableLM
from lmppl.testing import assert_properly_weighted

AB = TableLM(
    ["a", "b", "<eos>"],
    {(): [0.5, 0.3, 0.2], (0,): [0.25, 0.35, 0.4], (1,): [0.6, 0.0, 0.4], (2,): [0.5, 0.3, 0.2]},
    name="ab",
)
Edges = Sequence[Sequence[int]]
DIAMOND: Edges = ((), (0,), (0,), (1, 2))


def write(*read: str) -> Any:
    """A node of every test: a text that depends on the last letter of what it reads."""
    return sample("text", LM("a" + "".join(read), max_tokens=1))


def random_dag(rng: np.random.Generator, n: int) -> Edges:
    """Node j has one or two random earlier parents."""
    some = [rng.choice(j, size=min(j, int(rng.integers(1, 3))), replace=False) for j in range(n)]
    return [tuple(sorted(int(p) for p in parents)) for parents in some]


def nodes_of(edges: Edges, fn: Callable[..., Any] = write) -> list[Node]:
    return [Node(f"n{j}", fn, tuple(f"n{p}" for p in ps)) for j, ps in enumerate(edges)]


@program
def parallel(edges: Edges, weigh: bool = False) -> Any:
    """All nodes, the last ones first: the order in which they are given plays no part."""
    found = graph("g", reversed(nodes_of(edges)))
    texts = tuple(found[f"n{j}"] for j in range(len(edges)))
    if weigh:
        factor("good", 0.7 * sum(t == "a" for t in texts))
    return texts


@program
def sequential(edges: Edges, weigh: bool = False) -> Any:
    """The same, one node after the other, at the same addresses."""

    def body() -> tuple[str, ...]:
        texts: list[str] = []
        for j, parents in enumerate(edges):
            texts.append(call(write, *(texts[p] for p in parents), name=f"n{j}"))
        return tuple(texts)

    texts = call(body, name="g")
    if weigh:
        factor("good", 0.7 * sum(t == "a" for t in texts))
    return texts


@pytest.mark.parametrize("driver", ["greenlet", "eager"])
@pytest.mark.parametrize("edges", [DIAMOND, ((), (), (0, 1), (0,), (2,)), ((),)], ids=str)
def test_law_is_that_of_the_sequential_program(edges: Edges, driver: str) -> None:
    one = infer(parallel, edges, True, engine=Enumerate(), lm=AB, driver=driver)
    other = infer(sequential, edges, True, engine=Enumerate(), lm=AB)
    assert one.log_evidence == pytest.approx(other.log_evidence, abs=1e-10)
    a, b = one.marginal(), other.marginal()
    assert set(a) == set(b)
    assert all(abs(a[v] - b[v]) < 1e-10 for v in b)


@pytest.mark.parametrize("seed", range(12))
def test_bit_equal_to_the_sequential_program(seed: int) -> None:
    """Draws are keyed by address: values and weights agree to the last bit, forks included."""
    edges = random_dag(np.random.default_rng(seed), 12)
    runs = [
        infer(p, edges, True, engine=Importance(5), lm=AB, seed=seed)
        for p in (parallel, sequential)
    ]
    for mine, theirs in zip(*(r.traces for r in runs), strict=True):
        assert mine.result == theirs.result
        for address in (f"g/n{j}/text" for j in range(12)):
            x, y = mine.site(address), theirs.site(address)
            assert (x.value, x.logp, x.logq, x.logw) == (y.value, y.logp, y.logq, y.logw)
            assert x.value.token_ids.tolist() == y.value.token_ids.tolist()
    assert runs[0].log_weights.tolist() == runs[1].log_weights.tolist()


@pytest.mark.slow
def test_total_variation_at_20000_runs() -> None:
    """TV between the drawn joint law of two nodes and the exact one of the sequential program.

    The standard error of a frequency is at most ½ / √R = 0.0035; that the two programs have the
    same draws is tested above.
    """

    def ends(trace: Any) -> Any:
        return trace.result[0], trace.result[3]

    exact = infer(sequential, DIAMOND, engine=Enumerate(), lm=AB).marginal(ends)
    drawn = infer(parallel, DIAMOND, engine=Importance(20_000), lm=AB, seed=3).marginal(ends)
    keys = set(exact) | set(drawn)
    assert 0.5 * sum(abs(drawn.get(k, 0.0) - exact.get(k, 0.0)) for k in keys) <= 0.01


@program
def weighted_inside() -> Any:
    """Nodes that weigh, a node that draws twice, one that spawns: everything SMC forks through."""

    def hint() -> Any:
        text = sample("text", LM("a", max_tokens=1))
        factor("long", 0.5 if text else -0.5)
        return text

    def judge(text: str) -> Any:
        observe("verdict", LM(f"b{text}", max_tokens=1), "a")
        return text

    def plan(text: str) -> Any:
        if text != "a":
            return "done"
        more = Node("plan.more", lambda t: t + sample("again", LM(t, max_tokens=1)), ("hint",))
        return Spawn([more], becomes="plan.more")

    found = graph(
        "g",
        [
            Node("hint", hint),
            Node("judge", judge, ("hint",)),
            Node("plan", plan, ("hint",)),
            Node("both", lambda a, b: f"{a}+{b}", ("judge", "plan")),
        ],
    )
    return found["both"]


@pytest.mark.parametrize("driver", ["greenlet", "eager"])
@pytest.mark.parametrize(
    "engine",
    [
        Importance(2),
        SMC(2, resample_at="site", always=True),
        SMC(2, resample_at="factor", always=True),
        pytest.param(
            SMC(2, resample_at=tokens(1), always=True, resampling="multinomial"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda e: f"{type(e).__name__}-{getattr(e, 'resample_at', '')}",
)
def test_properly_weighted(engine: Any, driver: str) -> None:
    assert_properly_weighted(weighted_inside, engine=engine, lm=AB, driver=driver, atol=1e-10)


def test_engines_agree_on_an_async_program() -> None:
    @program
    async def asynchronous(edges: Edges) -> Any:
        async def node(*read: str) -> Any:
            return await sample("text", LM("a" + "".join(read), max_tokens=1))

        found = await graph("g", nodes_of(edges, node))
        return tuple(found[f"n{j}"] for j in range(len(edges)))

    exact = infer(parallel, DIAMOND, engine=Enumerate(), lm=AB).marginal()
    for driver in ("greenlet", "coroutine", "eager"):
        found = infer(asynchronous, DIAMOND, engine=Enumerate(), lm=AB, driver=driver).marginal()
        assert all(abs(found[v] - exact[v]) < 1e-10 for v in exact)


@pytest.mark.parametrize("driver", ["greenlet", "coroutine", "eager"])
def test_async_nodes_try_again_and_plan_anew(driver: str) -> None:
    @program
    async def asynchronous() -> Any:
        async def picky() -> Any:
            text = await sample("text", LM("a", max_tokens=1))
            if text != "a":
                raise NodeFailed("no a")
            return text

        async def anew(failed: Failed) -> Any:
            return "none"

        return (await graph("g", [Node("n", picky, retries=1, replan=anew)]))["n"]

    found = infer(asynchronous, engine=Enumerate(), lm=AB, driver=driver).marginal()
    assert found["a"] == pytest.approx(0.25 + 0.75 * 0.25, abs=1e-12)


def test_retries_have_the_law_of_a_program_that_tries_again() -> None:
    @program
    def retried() -> Any:
        def picky() -> Any:
            text = write()
            if text == "b":
                raise NodeFailed("b")
            factor("liked", 0.5 * (text == "a"))
            return text

        return graph("g", [Node("n", picky, retries=2, on_failure="skip")])["n"] or "none"

    found = infer(retried, engine=Enumerate(), lm=AB)
    tries = sum(0.35**i for i in range(3))
    mass = {"a": 0.25 * np.exp(0.5) * tries, "none": 0.4 * tries + 0.35**3}
    assert np.exp(found.log_evidence) == pytest.approx(sum(mass.values()), abs=1e-10)
    for value, m in mass.items():
        assert found.marginal()[value] == pytest.approx(m / sum(mass.values()), abs=1e-10)


def test_forks_keep_the_variables_of_their_own_frames() -> None:
    """A fork that starts a node later must not see what the live frame did meanwhile."""

    @program
    def turns() -> Any:
        out: list[str] = []

        def turn() -> int:
            return len(out)  # the frame's own variable: it changes after each graph

        def node() -> Any:
            return f"{turn()}{sample('text', LM('a', max_tokens=1))}"

        def then(text: str) -> Any:
            return f"{turn()}:{text}{sample('more', LM('b', max_tokens=1))}"

        for t in range(3):
            found = graph(f"g{t}", [Node("x", node), Node("y", then, ("x",))])
            factor(f"f{t}", 0.4 * len(found["y"]))
            out.append(found["y"])
        return tuple(out)

    for driver in ("greenlet", "eager"):
        engine = SMC(12, resample_at="site", always=True, resampling="multinomial")
        posterior = infer(turns, engine=engine, lm=AB, seed=1, driver=driver)
        for trace in posterior.traces:
            assert [text[:3] for text in trace.result] == ["0:0", "1:1", "2:2"]


def test_values_without_sites_and_empty_graphs() -> None:
    @program
    def trivial() -> Any:
        chain = [Node("n0", lambda: 0)]
        chain += [Node(f"n{i}", lambda x: x + 1, (f"n{i - 1}",)) for i in range(1, 3000)]
        return graph("g", chain)["n2999"] + len(graph("none", []))

    assert infer(trivial, engine=Importance(1)).traces[0].result == 2999


def test_numbers_are_nodes_too() -> None:
    @program
    def dice() -> Any:
        nodes = [Node(n, lambda: sample("eyes", Uniform([1, 2]))) for n in "abc"]
        found = graph("g", [*nodes, Node("sum", lambda *x: sum(x), ("a", "b", "c"))])
        return found["sum"]

    found = infer(dice, engine=Enumerate()).marginal()
    exact = [sum(x) for x in itertools.product((1, 2), repeat=3)]
    assert all(abs(found[k] - exact.count(k) / 8) < 1e-12 for k in exact)
