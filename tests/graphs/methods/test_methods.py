"""Methods on thought graphs: each does what its paper says, and keeps the law of its program."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from lmppl import LM, Bernoulli, Uniform, factor, observe, program, sample
from lmppl.errors import BadArgument, GraphError
from lmppl.graphs import Failed, NodeFailed, thought_graph
from lmppl.graphs.methods import (
    Card,
    Operations,
    Step,
    Task,
    blackboard,
    debate,
    divide_then_aggregate,
    fast_slow,
    fork_join,
    majority,
    map_reduce,
    run_dag,
    run_plan,
    steps_of,
    traced,
    tree_of_thoughts,
    tree_to_dag,
    use,
    weave,
)
from lmppl.graphs.methods.fork_join import prefix_saving
from lmppl.graphs.methods.parallel_tools import Ref, Traced, depth, reduced
from lmppl.inference import SMC, Enumerate, Importance, infer
from lmppl.lm.table import TableLM

AB = TableLM(
    ["a", "b", "<eos>"],
    {(): [0.5, 0.3, 0.2], (0,): [0.25, 0.35, 0.4], (1,): [0.6, 0.0, 0.4], (2,): [0.5, 0.3, 0.2]},
    name="ab",
)


def once(fn: Any, **options: Any) -> Any:
    return infer(program(fn), engine=Importance(1), **options).traces[0]


def law(fn: Any, **options: Any) -> dict[Any, float]:
    return dict(infer(program(fn), engine=Enumerate(), **options).marginal())


# -- map and reduce, fork and join ----------------------------------------------------------------


@pytest.mark.parametrize(("items", "width", "rounds"), [(1, 2, 1), (2, 2, 2), (9, 2, 5), (9, 3, 3)])
def test_map_reduce_keeps_the_order(items: int, width: int, rounds: int) -> None:
    def fn(i: int) -> str:
        observe("read", LM("a", max_tokens=1), "a")
        return str(i)

    def combine(*parts: str) -> str:
        observe("read", LM("a", max_tokens=1), "a")
        return "".join(parts)

    trace = once(lambda: map_reduce(range(items), fn, combine, width=width), lm=AB)
    assert trace.result == "".join(map(str, range(items)))
    assert thought_graph(trace).rounds == rounds == 1 + math.ceil(math.log(items, width) - 1e-9)
    with pytest.raises(BadArgument, match="width must be an integer of at least 2"):
        once(lambda: map_reduce("ab", str, "".join, width=1))


def test_weave_has_the_law_of_the_same_factorisation() -> None:
    """Against a program that draws the same texts one after the other."""

    def text(name: str, prompt: str) -> str:
        return str(sample(name, LM(prompt, max_tokens=1)))

    def outlines(prefix: str) -> list[str]:
        return ["a", "b" + text("outline", "a")]

    def woven() -> str:
        out = weave(
            "q ", outlines, lambda p: text("t", p[-4:-3] + "b"), lambda p: text("rest", "a")
        )
        return out.partition("<Thread>")[2]

    def in_turn() -> str:
        plans = outlines("")
        del plans
        threads = [text(f"t{i}", "b") for i in range(2)]
        body = "".join(f"<Thread>\n{i}:{t}\n</Thread>\n" for i, t in enumerate(threads, 1))
        return (body + "</Parallel>\n" + text("rest", "a")).partition("<Thread>")[2]

    one, other = law(woven, lm=WORDS), law(in_turn, lm=WORDS)
    assert one.keys() == other.keys()
    assert sum(abs(one[k] - other[k]) for k in one) / 2 < 1e-12


def _row(a: float, b: float) -> list[float]:
    return [a, b, *(0.0 for _ in SIGNS), 1.0 - a - b]


SIGNS = ["q", " ", "<", ">", "\n", "1", "2", ":"]
WORDS = TableLM(
    ["a", "b", *SIGNS, "<eos>"], {(): _row(0.5, 0.3), (0,): _row(0.2, 0.7), (1,): _row(0.6, 0.1)}
)
SURE = TableLM(["a", "<eos>"], {(): [1.0, 0.0]}, name="sure")
"""Counts calls without a choice."""


def test_fork_join_retries_one_thread() -> None:
    tries: list[int] = []

    def thread(i: int) -> int:
        tries.append(i)
        if i == 1 and tries.count(1) < 3:
            raise NodeFailed("again")
        return i * i

    assert once(lambda: fork_join([0, 1, 2], thread, lambda *t: sum(t), retries=2)).result == 5
    assert sorted(tries) == [0, 1, 1, 1, 2]
    assert prefix_saving(8, 343, 657) >= 0.3 > prefix_saving(8, 342, 658)


# -- Graph of Thoughts ----------------------------------------------------------------------------


def test_operations_do_what_they_say() -> None:
    def double(x: int) -> int:
        return 2 * x

    def run() -> Any:
        ops = Operations()
        start = ops.start(3, 1, 2)
        two = ops.generate(double, start, k=2)
        scored = ops.score(two, float)
        best = ops.keep_best(scored, 3)
        worst = ops.keep_best(scored, 1, highest=False)
        better = ops.improve(lambda x: x + 1, best)
        checked = ops.validate_and_improve(lambda x: x > 8, lambda x: x + 1, better, tries=2)
        good = ops.keep_valid(checked)
        merged = ops.aggregate(sum, good, worst, k=2)
        picked = ops.select(lambda states: states[:1], merged)
        truth = ops.ground_truth(picked, lambda x: x == 20)
        found = ops.run()
        return {k: found[k] for k in (two, best, worst, checked, good, merged, truth)}

    two, best, worst, checked, good, merged, truth = once(run).result.values()
    assert [t.state for t in two] == [6, 6, 2, 2, 4, 4]
    assert [t.state for t in best] == [6, 6, 4] and [t.state for t in worst] == [2]
    assert [(t.state, t.valid) for t in checked] == [(9, True), (9, True), (7, False)]
    assert [t.state for t in good] == [9, 9]
    assert [t.state for t in merged] == [20, 20]
    assert [(t.state, t.solved) for t in truth] == [(20, True)]
    with pytest.raises(BadArgument, match="a thought has none"):
        once(lambda: (o := Operations(), o.keep_best(o.start(1)), o.run()))


def test_weighed_scores_are_factors_of_the_program() -> None:
    def run(weigh: bool) -> Any:
        ops = Operations()
        drawn = ops.generate(lambda _: sample("x", Uniform([0, 1])), ops.start(None), k=2)
        best = ops.keep_best(ops.score(drawn, float, weigh=(lambda s: s) if weigh else None))
        return ops.run()[best][0].state

    assert law(lambda: run(False)) == pytest.approx({0: 0.25, 1: 0.75})
    e = math.e
    total = (1 + e) ** 2
    assert law(lambda: run(True)) == pytest.approx({0: 1 / total, 1: 1 - 1 / total})
    for engine in (SMC(600), SMC(600, resample_at="factor", always=True)):
        found = infer(program(lambda: run(True)), engine=engine, seed=1).marginal()
        assert found[1] == pytest.approx(1 - 1 / total, abs=0.06)


def test_tree_of_thoughts_is_one_batch_per_level() -> None:
    def step(x: str) -> str:
        return x + str(sample("step", LM(x, max_tokens=1)))

    before = AB.usage.passes
    found = once(lambda: tree_of_thoughts("a", step, len, depth=3, branch=4, keep=2), lm=AB)
    assert AB.usage.passes - before == 3 == thought_graph(found).rounds
    assert thought_graph(found).sequential_rounds == 4 + 8 + 8
    assert len(found.result) == 2


# -- debate, blackboard ---------------------------------------------------------------------------


def test_debate_is_that_of_its_factorisation() -> None:
    def agent(question: str, who: int, others: tuple[str, ...]) -> str:
        return str(sample("say", LM(question + "".join(others), max_tokens=1)))

    def in_turn() -> str:
        last: tuple[str, ...] = ()
        for t in range(2):
            last = tuple(
                str(sample(f"say{t}{i}", LM("a" + "".join(last), max_tokens=1))) for i in range(2)
            )
        return str(majority(last))

    one, other = law(lambda: debate("a", 2, agent), lm=AB), law(in_turn, lm=AB)
    assert all(abs(one[k] - other[k]) < 1e-12 for k in other)
    trace = once(lambda: debate("a", 3, agent, rounds=4), lm=AB)
    assert (thought_graph(trace).rounds, thought_graph(trace).sequential_rounds) == (4, 12)


def cover(workers: int, sees: bool, seed: int) -> tuple[int, int]:
    """A set-cover toy: each line takes one of 12 items; rounds and duplicates until all are taken."""

    def write(worker: int, board: Sequence[Any]) -> int:
        own = {line.text for line in board if sees or line.worker == worker}
        left = [i for i in range(12) if i not in own] or [0]
        mine = left[worker * len(left) // workers :] if sees else left
        return int(sample("item", Uniform(mine or left)))

    def done(board: Sequence[Any]) -> bool:
        return len({line.text for line in board}) == 12

    board = once(lambda: blackboard(workers, write, rounds=40, done=done), seed=seed).result
    return board[-1].turn + 1, len(board) - 12


def test_a_blackboard_saves_rounds_and_duplicates() -> None:
    alone = [cover(1, True, seed)[0] for seed in range(20)]
    seeing, blind = ([cover(4, sees, s) for s in range(20)] for sees in (True, False))
    assert sum(r for r, _ in seeing) <= 0.5 * sum(alone)
    assert sum(d for _, d in seeing) <= 0.7 * sum(d for _, d in blind)


# -- plans with tools -----------------------------------------------------------------------------


def test_a_plan_is_revised_and_a_failed_step_done_another_way() -> None:
    log: list[str] = []

    def fetch(what: str, *read: str) -> str:
        log.append(what)
        if what == "broken":
            raise OSError("404")
        return f"{what}({','.join(read)})"

    def act(what: str, *read: str) -> Any:
        return use("fetch", fetch, what, *read)

    seen: list[tuple[list[str], list[str]]] = []

    def revise(known: Any, pending: Sequence[Step]) -> list[Step]:
        seen.append((sorted(known), [s.name for s in pending]))
        extra = [Step("extra", "extra", ("b",))] if len(seen) == 1 else []
        return [s for s in pending if s.name != "useless"] + extra

    plan = [
        Step("a", "a"),
        Step("b", "broken", ("a",)),
        Step("c", "c", ("b",)),
        Step("useless", "useless", ("b",)),
        Step("d", "d", ("c",)),
    ]

    def run() -> Any:
        return run_plan(
            plan, act, revise=revise, every=2,
            repair=lambda what, reason, read: f"again after {reason}",
        )  # fmt: skip

    found = once(run).result
    assert found["d"] == "d(c(again after OSError: 404(a())))"
    assert found["extra"] == "extra(again after OSError: 404(a()))"
    assert log.count("a") == log.count("broken") == 1 and "useless" not in log
    assert seen[0] == (["a", "b"], ["c", "useless", "d"])
    with pytest.raises(GraphError, match="which is no node"):
        once(lambda: run_plan([Step("a", "a", ("zz",))], act))
    with pytest.raises(GraphError, match="cycle"):
        once(lambda: run_plan([Step("a", "a", ("b",)), Step("b", "b", ("a",))], act, revise=revise))


def test_a_plan_equals_its_sequential_order() -> None:
    def act(what: str, *read: str) -> str:
        return str(sample("text", LM("a" + "".join(read), max_tokens=1)))

    tasks = [Task("x"), Task("y", (1,)), Task("z", (1,)), Task("end", (2, 3))]

    def in_turn() -> Any:
        done: list[str] = []
        for i, task in enumerate(tasks):
            read = [done[n - 1] for n in task.after]
            done.append(str(sample(f"s{i}", LM("a" + "".join(read), max_tokens=1))))
        return tuple(done)

    def planned(every: int | None) -> Any:
        steps = steps_of(tasks)
        found = run_plan(
            steps, act, every=every or 1, revise=None if every is None else (lambda _, left: left)
        )
        return tuple(found[s.name] for s in steps)

    exact = law(in_turn, lm=AB)
    for every in (None, 1, 2):
        found = law(lambda every=every: planned(every), lm=AB)
        assert all(abs(found[k] - exact[k]) < 1e-12 for k in exact)


def random_tree(rng: random.Random, n: int) -> list[Traced]:
    """A depth-first trace: a call reads the results of some calls on the way to it."""
    calls: list[Traced] = []
    above: dict[str, list[str]] = {}
    for i in range(n):
        parent = rng.choice(calls).name if calls and rng.random() < 0.8 else None
        line = [] if parent is None else [*above[parent], parent]
        reads = rng.sample(line, k=min(len(line), rng.randint(0, 2)))
        calls.append(traced(f"c{i}", "join", f"c{i}", *(Ref(r) for r in reads)))
        above[f"c{i}"] = line
    return calls


def test_traces_of_calls_become_dags() -> None:
    """All dependencies kept (by executing again), no longer path, ≥ 30 % fewer rounds."""
    rng = random.Random(5)
    tools = {"join": lambda *parts: "(" + " ".join(parts) + ")"}
    shares = []
    for _ in range(60):
        trace = random_tree(rng, 14)
        values: dict[str, str] = {}
        for c in trace:
            args = [values[a.name] if isinstance(a, Ref) else a for a in c.call.args]
            values[c.name] = tools["join"](*args)
        dag = tree_to_dag(trace)
        found = once(lambda dag=dag: dict(run_dag(dag, tools))).result
        assert found == values
        assert depth(reduced(dag)) == depth(dag) <= len(trace)
        shares.append(depth(dag) / len(trace))
        last = trace[-1].name
        kept = tree_to_dag(trace, kept=[last])
        assert once(lambda kept=kept: dict(run_dag(kept, tools))).result[last] == values[last]
        assert {c.name for c in kept} <= set(values)
    assert sum(shares) / len(shares) <= 0.7
    with pytest.raises(GraphError, match="no earlier call"):
        tree_to_dag([traced("a", "join", Ref("b")), traced("b", "join")])


def test_divide_then_aggregate_survives_bad_calls() -> None:
    def think(question: str, past: tuple[Any, ...]) -> Any:
        if not past:
            return [("add", (1, 2)), ("ad", (1,)), ("add", (1,)), ("div", (1, 0)), ("add", (3, 4))]
        return sum(r.value for r in past[0] if not isinstance(r.value, Failed))

    tools = {"add": lambda x, y: x + y, "div": lambda x, y: x / y}
    trace = once(lambda: divide_then_aggregate("q", think, tools))
    assert trace.result == 10
    record = thought_graph(trace)
    assert [n.status for n in record.nodes if n.kind == "call"] == [
        "done", "failed", "failed", "failed", "done",
    ]  # fmt: skip
    assert record["r0.c1"].reason == "no tool is called 'ad'; there are add, div"
    assert "ZeroDivisionError" in (record["r0.c3"].reason or "")
    endless = once(
        lambda: divide_then_aggregate("q", lambda *_: [("add", (1, 1))], tools, rounds=2)
    )
    assert endless.result == Failed("no answer after 2 rounds")


# -- fast and slow --------------------------------------------------------------------------------


def hybrid(attempts: int, speculate: bool = False) -> Any:
    """Fast is right with 0.7, slow with 0.9 each time; the check is right with 0.98."""

    def right(name: str, p: float) -> bool:
        sample("asked", LM("a", max_tokens=1, lm=SURE))
        return bool(sample(name, Bernoulli(p)))

    def check(question: str, answer: bool) -> float:
        return 0.9 if sample("check", Bernoulli(0.98)) == answer else 0.1

    def slow(question: str, attempt: int) -> list[Card]:
        facts = [Card(name, partial(right, name, 1.0)) for name in ("a", "b", "c")]
        return [*facts, Card("solve", lambda *_: right("solve", 0.9), ("a", "b", "c"))]

    def run() -> Any:
        found = fast_slow(
            "q", lambda q: right("fast", 0.7), check, slow, attempts=attempts, speculate=speculate
        )
        return found.value, found.by

    return run


FAST, SLOW, SAYS = 0.7, 0.9, 0.98
FAST_YES, SLOW_YES = (p * SAYS + (1 - p) * (1 - SAYS) for p in (FAST, SLOW))
FAST_GOOD, SLOW_GOOD = FAST * SAYS, SLOW * SAYS


def test_fast_slow_has_the_law_of_asking_in_turn() -> None:
    found = law(hybrid(2))
    refused = (1 - SLOW_YES) ** 2
    exact = {
        (True, "fast"): FAST_GOOD + refused * (FAST - FAST_GOOD),  # or the earliest of the refused
        (True, "slow0"): (1 - FAST_YES) * SLOW_GOOD,
        (True, "slow1"): (1 - FAST_YES) * (1 - SLOW_YES) * SLOW_GOOD,
    }
    assert all(found[k] == pytest.approx(p, abs=1e-12) for k, p in exact.items())
    again = infer(program(hybrid(2, True)), engine=Importance(400), seed=3)
    other = infer(program(hybrid(2, False)), engine=Importance(400), seed=3)
    assert [t.result for t in again.traces] == [t.result for t in other.traces]
    assert again.ledger.calls > other.ledger.calls
    assert again.log_weights.tolist() == other.log_weights.tolist()


def test_hybrid_is_as_good_as_slow_at_a_fraction_of_its_calls() -> None:
    """Within 1 point of always-slow at ≤ 60 % of its calls, both exact."""
    run = infer(program(hybrid(2)), engine=Enumerate())
    good = run.expectation(lambda t: float(t.result[0])).value
    calls = run.expectation(lambda t: float(sum(a.endswith("asked") for a in t))).value
    always = SLOW_GOOD * (2 - SLOW_YES) + (1 - SLOW_YES) * (SLOW - SLOW_GOOD)
    assert good >= always - 0.01
    assert calls == pytest.approx(1 + (1 - FAST_YES) * 4 * (2 - SLOW_YES))
    assert calls <= 0.6 * 4 * (2 - SLOW_YES)


def test_everything_takes_any_engine() -> None:
    def run() -> Any:
        def solve(i: int) -> str:
            text = str(sample("text", LM("a", max_tokens=1)))
            factor("long", 0.5 * len(text))
            return text

        return fork_join(range(2), solve, lambda *t: "|".join(t))

    exact = infer(program(run), engine=Enumerate(), lm=AB)
    weights = {t: p * math.exp(0.5 * len(t)) for t, p in (("a", 0.25), ("b", 0.35), ("", 0.4))}
    total = sum(weights.values())
    assert exact.log_evidence == pytest.approx(2 * math.log(total), abs=1e-10)
    for s, t in itertools.product(weights, repeat=2):
        assert exact.marginal()[f"{s}|{t}"] == pytest.approx(weights[s] * weights[t] / total**2)
    for engine in (Importance(600), SMC(600), SMC(600, resample_at="factor", always=True)):
        found = infer(program(run), engine=engine, lm=AB, seed=2)
        assert found.log_evidence == pytest.approx(exact.log_evidence, abs=0.1)
