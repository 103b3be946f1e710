"""Structure: addresses, independence, folded replay, and that a fork costs O(1) in a loop."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from lmppl import (
    LM,
    Bernoulli,
    Categorical,
    Delta,
    Uniform,
    call,
    factor,
    loop,
    markov,
    observe,
    plate,
    program,
    sample,
)
from lmppl import handlers as H
from lmppl.errors import BadProgram, DuplicateSite, ReplayDivergence
from lmppl.inference import SMC, Enumerate, Importance, infer, tokens
from lmppl.lm.table import TableLM

DRIVERS = ["greenlet", "eager"]
ALWAYS = SMC(particles=6, always=True)


def addresses(model: Any, *args: Any, **options: Any) -> list[str]:
    """The same for a plain call and for every driver, forked at every site."""
    plain = H.trace(H.seed(model, 0)).get_trace(*args)
    found = [e.address for e in plain.sites]
    shapes = [(e.op, e.address) for e in plain.sites]
    for driver in DRIVERS:
        for t in infer(model, *args, engine=ALWAYS, driver=driver, **options).traces:
            assert [(e.op, e.address) for e in t.sites] == shapes
    return found


# -- addresses ----------------------------------------------------------------------------------


def test_nested_addresses() -> None:
    @program
    def leaf() -> Any:
        return sample("x", Uniform([1]))

    @program
    def mid(_: Any = None) -> Any:
        a = call(leaf)
        b = call(leaf)
        c = call(leaf, name="other")
        return a + b + c + sample("x", Uniform([1]))

    def step(carry: int, t: int) -> int:
        return carry + call(leaf) + sample("y", Uniform([t]))  # type: ignore[no-any-return]

    @program
    def model() -> Any:
        call(mid)
        plate("p", ["u", "v"], lambda item: call(mid))
        loop(step, 0, n=2)
        loop(step, 0, n=1)
        loop(step, 0, n=1, name="walk")
        for item in plate("scoped", [1, 2]):
            sample("z", Uniform([item]))
        return sample("x", Uniform([1]))

    inner = ["leaf/x", "leaf", "leaf[1]/x", "leaf[1]", "other/x", "other", "x"]
    want = [f"mid/{a}" for a in inner] + ["mid"]
    want += [f"p[{i}]/mid/{a}" for i in (0, 1) for a in inner] + []
    got = addresses(model)
    assert len(got) == len(set(got))
    assert got[:8] == want[:8]
    assert [a for a in got if a.startswith("p[1]")] == [f"p[1]/mid/{a}" for a in inner] + [
        "p[1]/mid"
    ]
    assert [a for a in got if a.startswith("loop")] == [
        "loop[0]/leaf/x", "loop[0]/leaf", "loop[0]/y",
        "loop[1]/leaf/x", "loop[1]/leaf", "loop[1]/y",
        "loop[1][0]/leaf/x", "loop[1][0]/leaf", "loop[1][0]/y",
    ]  # fmt: skip
    assert [a for a in got if a.startswith("walk")] == [
        "walk[0]/leaf/x",
        "walk[0]/leaf",
        "walk[0]/y",
    ]
    assert [a for a in got if a.startswith("scoped")] == ["scoped[0]/z", "scoped[1]/z"]
    assert got[-1] == "x"


def test_names_are_unique_across_kinds() -> None:
    @program
    def x() -> Any:
        return sample("x", Delta(1))

    @program
    def model() -> Any:
        sample("x", Delta(1))
        call(x)
        loop(lambda c, t: sample("x", Delta(c)), 1, n=2, name="y")
        sample("y", Delta(2))
        plate("z", [1, 2], lambda i: sample("x", Delta(i)))
        return sample("z", Delta(3))

    got = addresses(model)
    assert len(got) == len(set(got))
    assert got[:3] == ["x", "x[1]/x", "x[1]"] and "y[1]" in got and got[-1] == "z[1]"


def test_a_call_that_would_share_the_scope_of_an_item_is_refused() -> None:
    @program
    def sub() -> Any:
        return sample("x", Delta(1))

    @program
    def model() -> Any:
        plate("p", [1, 2], lambda i: sample("x", Delta(i)))
        return call(sub, name="p")

    with pytest.raises(BadProgram, match="a name of its own"):
        model()


def test_strict_names_both_lines_in_a_loop() -> None:
    def step(carry: int, t: int) -> Any:
        sample("x", Delta(1))
        return sample("x", Delta(1))

    with pytest.raises(DuplicateSite, match=r"'loop\[0\]/x' occurs twice"):
        infer(program(lambda: loop(step, 0, n=2)), engine=Importance(1), strict=True)


def test_scopes_survive_break_zip_and_errors() -> None:
    @program
    def model() -> Any:
        for i in plate("a", [1, 2, 3]):
            sample("x", Delta(i))
            if i == 2:
                break
        sample("after break", Delta(0))
        for i, j in zip(plate("b", [1, 2]), plate("c", [1, 2]), strict=False):
            sample("x", Delta(i + j))
        sample("after zip", Delta(0))
        try:
            for i in plate("d", [1]):
                raise KeyError(i)
        except KeyError:
            pass
        try:
            call(failing)
        except KeyError:
            pass
        return sample("end", Delta(0))

    def failing() -> Any:
        sample("x", Delta(1))
        raise KeyError

    got = addresses(model)
    assert got == [
        "a[0]/x", "a[1]/x", "after break", "c[0]/x", "c[1]/x", "after zip", "failing/x", "end",
    ]  # fmt: skip


# -- call ---------------------------------------------------------------------------------------


def test_a_finished_call_replays_in_one_step() -> None:
    ran: list[int] = []

    @program
    def long() -> Any:
        ran.append(1)
        return [sample(f"x{i}", Bernoulli(0.5)) for i in range(30)]

    @program
    def model() -> Any:
        xs = call(long)
        assert isinstance(xs, tuple)  # frozen: particles share it
        for _ in range(5):
            factor("f", 0.1 * sum(xs))
        return sum(xs)

    post = infer(model, engine=SMC(particles=8, resample_at="factor", always=True))
    assert len(ran) <= 8  # once per particle of the first population: never again on replay
    assert post.ledger.replayed <= 8 * 5 * 6
    assert all(len([e for e in t.sites if e.op == "sample"]) == 30 for t in post.traces)


def test_a_call_takes_arguments_and_handlers() -> None:
    @program
    def sub(a: int, *, b: int = 0) -> Any:
        return a + b + sample("x", Uniform([0, 1]))

    @program
    def model() -> Any:
        first = call(sub, 10, b=5)
        second = call(H.do(sub, {"sub[1]/x": 1}), 100)
        return first, second

    assert set(infer(model, engine=Enumerate()).marginal()) == {(15, 101), (16, 101)}


# -- loop ---------------------------------------------------------------------------------------


def test_a_loop_carries_its_state() -> None:
    def step(carry: int, t: int) -> int:
        return carry * 2 + sample("bit", Bernoulli(0.5))  # type: ignore[no-any-return]

    @program
    def model() -> Any:
        return loop(step, 0, n=3)

    post = infer(model, engine=Enumerate())
    assert dict(post.marginal()) == pytest.approx({i: 1 / 8 for i in range(8)})


def test_until_ends_after_the_carry_it_accepts() -> None:
    def step(carry: int, t: int) -> int:
        return carry + sample("up", Bernoulli(0.5))  # type: ignore[no-any-return]

    @program
    def model() -> Any:
        return loop(step, 0, n=3, until=lambda c: c >= 1)

    for driver in DRIVERS:
        post = infer(model, engine=Enumerate(), driver=driver)
        lengths = {
            tuple(t[a] for a in t if a.endswith("up")): w
            for t, w in zip(post.traces, post.weights, strict=True)
        }
        assert lengths == pytest.approx(
            {(True,): 0.5, (False, True): 0.25, (False, False, True): 0.125, (False,) * 3: 0.125}
        )
        forked = infer(model, engine=SMC(200, always=True), driver=driver, seed=2)
        assert forked.marginal()[1] == pytest.approx(7 / 8, abs=0.12)


def test_until_is_read_again_on_replay() -> None:
    """A particle that forks right at the end of a loop must not start another iteration."""

    @program
    def model() -> Any:
        last = loop(lambda c, t: sample("x", Uniform([c + 1])), 0, until=lambda c: c == 3)
        factor("f", -0.1)
        second = loop(lambda c, t: sample("x", Uniform([c + 1])), last, until=lambda c: c == 5)
        return second, sample("end", Delta(0))

    for driver in DRIVERS:
        post = infer(model, engine=SMC(5, always=True), driver=driver)
        assert set(post.values()) == {(5, 0)}
        assert list(post.traces[0]) == [
            "loop[0]/x", "loop[1]/x", "loop[2]/x", "f", "loop[1][0]/x", "loop[1][1]/x", "end",
        ]  # fmt: skip


def test_loops_without_iterations_and_without_sites() -> None:
    @program
    def model() -> Any:
        a = loop(lambda c, t: c + sample("x", Delta(1)), 7, n=0)
        b = loop(lambda c, t: c + t, 0, n=4, name="quiet")
        return a, b, sample("end", Delta(0))

    assert addresses(model) == ["end"]
    assert infer(model, engine=Enumerate()).values() == [(7, 6, 0)]


def test_carries_are_frozen_from_the_first() -> None:
    def step(carry: Any, t: int) -> Any:
        assert isinstance(carry, tuple)
        return [*carry, sample("x", Delta(t))]

    @program
    def model() -> Any:
        return loop(step, [], n=3)

    assert model() == (0, 1, 2)
    assert infer(model, engine=ALWAYS).values() == [(0, 1, 2)] * 6


def test_markov_gives_each_step_its_item() -> None:
    @program
    def model() -> Any:
        return markov(lambda c, x: c + x * sample("b", Bernoulli(0.5)), 0, [1, 2, 4])

    post = infer(model, engine=Enumerate())
    assert dict(post.marginal()) == pytest.approx({i: 1 / 8 for i in range(8)})
    assert list(post.traces[0]) == ["markov[0]/b", "markov[1]/b", "markov[2]/b"]


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("length", [20, 80])
def test_a_fork_in_a_loop_replays_one_iteration(driver: str, length: int) -> None:
    """Replayed entries per fork do not grow with the length of the loop."""

    def step(carry: int, t: int) -> int:
        x = sample("x", Bernoulli(0.5))
        factor("f", 0.5 if x else -0.5)
        return carry + x  # type: ignore[no-any-return]

    @program
    def folded() -> Any:
        return loop(step, 0, n=length)

    @program
    def flat() -> Any:
        carry = 0
        for t in range(length):
            carry = step(carry, t)
        return carry

    n = 10
    post = infer(folded, engine=SMC(n, always=True), seed=0, driver=driver)
    barriers = 2 * length
    # at most the loop's entry and the two of its iteration, for each particle and barrier
    assert post.ledger.replayed <= 3 * n * barriers
    if driver == "greenlet":  # moved frames replay nothing
        assert post.ledger.replayed <= 3 * n * barriers * 0.8
        grown = infer(flat, engine=SMC(n, always=True), seed=0, driver=driver).ledger.replayed
        assert grown > 2 * post.ledger.replayed
    assert len([e for e in post.traces[0].sites if e.op == "sample"]) == length


def test_a_loop_and_its_unrolled_form_have_one_law() -> None:
    @program
    def folded() -> Any:
        return loop(lambda c, t: c + sample("x", Categorical([0, 1], [1, 2 + t])), 0, n=3)

    @program
    def flat() -> Any:
        return sum(sample("x", Categorical([0, 1], [1, 2 + t])) for t in range(3))

    a, b = (infer(m, engine=Enumerate()).marginal() for m in (folded, flat))
    assert dict(a) == pytest.approx(dict(b))


# -- plate --------------------------------------------------------------------------------------


def test_plate_results_are_in_the_order_of_the_items() -> None:
    """Branches that need more steps end later; their place does not change."""

    @program
    def model() -> Any:
        def branch(n: int) -> Any:
            return n, [sample("x", Uniform([0, 1])) for _ in range(n)]

        return plate("p", [3, 0, 1, 2], branch)

    for driver in DRIVERS:
        for t in infer(model, engine=ALWAYS, driver=driver).traces:
            assert [n for n, _ in t.result] == [3, 0, 1, 2]
            assert [len(xs) for _, xs in t.result] == [3, 0, 1, 2]
            assert [a for a in t if a.startswith("p[")] == [
                "p[0]/x", "p[0]/x[1]", "p[0]/x[2]", "p[2]/x", "p[3]/x", "p[3]/x[1]",
            ]  # fmt: skip


def test_branches_are_independent() -> None:
    @program
    def model() -> Any:
        xs = plate("p", range(3), lambda i: sample("x", Bernoulli(0.25 + 0.25 * i)))
        observe("some", Bernoulli(1.0 if any(xs) else 0.0), True)
        return xs

    p = [0.25, 0.5, 0.75]
    joint = {
        xs: math.prod(p[i] if x else 1 - p[i] for i, x in enumerate(xs))
        for xs in itertools.product([True, False], repeat=3)
        if any(xs)
    }
    z = sum(joint.values())
    for driver in DRIVERS:
        post = infer(model, engine=Enumerate(), driver=driver)
        assert math.exp(post.log_evidence) == pytest.approx(z)
        assert dict(post.marginal()) == pytest.approx({xs: w / z for xs, w in joint.items()})
    branches = infer(model, engine=Importance(300), seed=0).values()
    assert len({xs for xs in branches if xs}) >= 5  # not one draw for all branches


def test_a_kill_inside_a_branch_kills_the_particle() -> None:
    reached: list[int] = []

    @program
    def model() -> Any:
        def branch(i: int) -> Any:
            x = sample("x", Bernoulli(0.5))
            factor("must", x)
            y = sample("y", Bernoulli(0.5))
            return x, y

        out = plate("p", [0, 1], branch)
        reached.append(1)
        return out

    for driver in DRIVERS:
        for engine in (Importance(200), SMC(200, always=True)):
            reached.clear()
            post = infer(model, engine=engine, seed=1, driver=driver)
            assert math.exp(post.log_evidence) == pytest.approx(0.25, abs=0.13)
            assert all(r is None or all(x for x, _ in r) for r in post.values())
            assert set(post.deaths) <= {"p[0]/must", "p[1]/must"}
        exact = infer(model, engine=Enumerate(), driver=driver)
        assert math.exp(exact.log_evidence) == pytest.approx(0.25)


def test_empty_plates_and_plates_in_plates() -> None:
    @program
    def model() -> Any:
        none = plate("none", [], lambda i: sample("x", Delta(i)))
        deep = plate(
            "outer",
            [1, 2],
            lambda i: plate("inner", [10, 20], lambda j: sample("x", Uniform([i + j]))),
        )
        return none, deep

    got = addresses(model)
    assert [a for a in got if "inner" in a] == [
        f"outer[{i}]/inner[{j}]/x" for i in (0, 1) for j in (0, 1)
    ]
    for driver in DRIVERS:
        assert set(infer(model, engine=ALWAYS, driver=driver).values()) == {
            ((), ((11, 21), (12, 22)))
        }


def test_loops_calls_and_plates_in_each_other() -> None:
    @program
    def sub(i: int) -> Any:
        return loop(lambda c, t: c + sample("x", Bernoulli(0.5)), 0, n=2)

    def step(carry: int, t: int) -> Any:
        return carry + sum(plate("p", [0, 1], lambda i: call(sub, i)))

    @program
    def model() -> Any:
        total = loop(step, 0, n=2)
        factor("f", 0.3 * total)
        return total

    exact = infer(model, engine=Enumerate())
    want = {k: math.comb(8, k) * math.exp(0.3 * k) for k in range(9)}
    z = sum(want.values())
    assert dict(exact.marginal()) == pytest.approx({k: w / z for k, w in want.items()})
    for driver in DRIVERS:
        post = infer(model, engine=SMC(100, always=True), driver=driver, seed=0)
        assert post.log_evidence == pytest.approx(exact.log_evidence, abs=0.6)
        assert "loop[1]/p[1]/sub/loop[0]/x" in post.traces[0]


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_forked_plate_sees_its_own_variables(driver: str) -> None:
    """The live frame goes on to the next plate and rebinds `t`, which the branches of others read."""

    @program
    def model() -> Any:
        out = []
        for t in range(3):

            def branch(item: int) -> Any:
                n = 1 + sample("n", Uniform([0, 1, 2]))  # branches of different lengths
                xs = [sample("x", Delta((t, item, i))) for i in range(n)]  # noqa: B023
                factor("w", 0.3 * n)
                return t, tuple(xs)  # noqa: B023

            out.append(plate("p", [0, 1], branch))
        return tuple(out)

    post = infer(model, engine=SMC(12, always=True), seed=3, driver=driver)
    for result in post.values():
        for t, pair in enumerate(result):
            for item, (seen, xs) in enumerate(pair):
                assert seen == t and xs == tuple((t, item, i) for i in range(len(xs)))


def test_strings_of_a_plate_resample_inside() -> None:
    lm = TableLM(["a", "b", "<eos>"], {(): [0.4, 0.3, 0.3]})

    @program
    def model() -> Any:
        xs = plate("p", ["a", "b"], lambda c: str(sample("x", LM(c, max_tokens=3))))
        factor("f", 0.5 * sum(x.count("a") for x in xs))
        return xs

    exact = infer(model, engine=Enumerate(), lm=lm)
    for driver in DRIVERS:
        post = infer(
            model, engine=SMC(300, resample_at=tokens(1), always=True), lm=lm, driver=driver, seed=0
        )
        assert post.log_evidence == pytest.approx(exact.log_evidence, abs=0.35)


def test_divergence_inside_structure_is_found() -> None:
    calls = []

    def step(carry: int, t: int) -> Any:
        calls.append(1)
        x = sample(f"x{len(calls)}", Bernoulli(0.5))  # not a function of carry and t
        factor("f", 0.0)
        return carry + x

    with pytest.raises(ReplayDivergence, match=r"loop\["):
        infer(
            program(lambda: loop(step, 0, n=5)),
            engine=SMC(6, resampling="multinomial", always=True),
        )
