"""Mistakes that other systems shipped, each as a test: the name says what, the docstring says whose."""

from __future__ import annotations

import math
import threading
import tracemalloc
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lmppl import (
    LM,
    Bernoulli,
    Categorical,
    Text,
    Uniform,
    cached,
    call,
    check,
    deterministic,
    effect,
    factor,
    loop,
    observe,
    plate,
    program,
    sample,
)
from lmppl.errors import AllParticlesDead, NonFiniteWeight, ReplayDivergence, UnboundedWeight
from lmppl.inference import SMC, Enumerate, Importance, Rejection, infer, infer_many, tokens
from lmppl.lm.generate import StringLaw, StringState
from lmppl.lm.table import TableLM
from lmppl.testing import assert_properly_weighted, check_distribution, check_keys, enumerate_exact

ALWAYS = SMC(particles=4, always=True)


# -- language models -----------------------------------------------------------------------------


def test_equal_suffixes_in_one_batch(programs: ModuleType) -> None:
    """genlm-backend 0.3.1 looked cached prompts up by their suffix, 15 nats off."""
    lm = programs.MERGES
    contexts = [(0, 0), (1, 0), (0, 1, 0), (0, 0, 0), (1, 1, 0)]
    alone = [lm.open([c]).log_probs()[0] for c in contexts]
    np.testing.assert_array_equal(lm.open(contexts).log_probs(), np.array(alone))
    assert not np.array_equal(alone[0], alone[1])


def test_adding_to_a_text_leaves_it_unchanged() -> None:
    """llamppl's TokenSequence.__add__ mutated its operand."""
    text = Text("ab", token_ids=[0, 1], token_logprobs=[-1.0, -2.0], address="x")
    for made in (text + "c", "c" + text, text + text, text[:1] + "z", text.strip() + ""):
        assert isinstance(made, Text)
    assert text == "ab"
    assert text.token_ids is not None and text.token_ids.tolist() == [0, 1]
    assert text.log_prob == -3.0
    assert [tuple(s) for s in text.spans] == [(0, 2, "x")]


@pytest.mark.parametrize("temperature", [0.1, 0.7, 2.0])
def test_temperatures_are_normalised(programs: ModuleType, temperature: float) -> None:
    """llamppl's Transformer(temp=0.7) raised, and its log_prob was not normalised."""
    for dist in (
        LM("", max_tokens=2).tempered(temperature),
        LM("", max_tokens=2, temperature=temperature, target="proposal"),
        LM("", max_tokens=2, temperature=temperature),
    ):
        assert abs(check_distribution(dist, lm=programs.AB).z - 1.0) <= 1e-12


def test_forking_does_not_touch_the_vocabulary() -> None:
    """llamppl deep-copied a set as large as the vocabulary: 47 to 150 ms a fork."""

    def bytes_of_a_fork(words: int) -> int:
        lm = TableLM([f"w{i} " for i in range(words)], {(): [1 / words] * words})
        state = StringState(StringLaw(8), (0,), 1)
        for token in range(5):
            state.extend(lm, token, -1.0, -1.0)
        state.fork(2)
        tracemalloc.start()
        children = [state.fork(n) for n in range(50)]
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(children) == 50
        return size

    few, many = bytes_of_a_fork(8), bytes_of_a_fork(1_500)
    assert abs(few - many) <= 0.05 * few


def test_user_objects_are_never_copied() -> None:
    class Precious:
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("copied")

        __copy__ = __reduce_ex__ = __deepcopy__

    precious = Precious()

    @program
    def keeps(thing: Any) -> Any:
        held = {"thing": thing}
        for _ in range(3):
            factor("w", 0.1 if sample("b", Bernoulli(0.5)) else 0.0)
        return held["thing"]

    post = infer(keeps, precious, engine=ALWAYS)
    assert all(t.result is precious for t in post.traces)


def test_one_batch_per_wave_and_no_timers(programs: ModuleType) -> None:
    """genlm-backend waits 20 ms, genlm-control sleeps until the queue stops growing."""
    lm = TableLM(["a", "b", "<eos>"], {(): [0.5, 0.5, 0.0]}, name="counted")

    @program
    def branch(i: int) -> Any:
        return sample("x", LM("", max_tokens=1))

    @program
    def waves() -> Any:
        first = plate("p", range(3), branch)
        second = infer(branch, 0, engine=Importance(particles=2)).traces[0].result
        return first, str(second)

    before = lm.usage.passes
    infer_many(waves, [()] * 5, engine=Importance(particles=4), lm=lm)
    assert lm.usage.passes - before == 2  # one for all plates, one for all inner runs
    before = lm.usage.passes
    infer(branch, 0, engine=Importance(particles=1), lm=lm)
    assert lm.usage.passes - before == 1


def test_two_inferences_on_one_model_do_not_interact(programs: ModuleType) -> None:
    """genlm-control #142, #143; PPDL's threads share a configuration."""
    engine = SMC(particles=6, always=True)
    alone = {
        seed: infer(programs.duel, engine=engine, lm=programs.AB, seed=seed).log_evidence
        for seed in range(8)
    }
    together: dict[int, float] = {}

    def run(seed: int) -> None:
        found = infer(programs.duel, engine=engine, lm=programs.AB, seed=seed)
        together[seed] = found.log_evidence

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert together == alone


# -- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("resample_at", ["site", "factor", tokens(1)], ids=str)
def test_an_impossible_mask_kills_one_particle(programs: ModuleType, resample_at: Any) -> None:
    """llamppl #47, f29489a: one impossible particle aborted the run."""

    @program
    def masked() -> Any:
        x = sample("x", LM("", max_tokens=1))
        return x, sample("y", LM(x, regex="b", max_tokens=1))  # b never follows b

    expected = {(x, "b"): programs.p(x, "") * programs.p("b", x) for x in ("a",)}
    expected["", "b"] = programs.p(".", "") * programs.p("b", "")
    engine = SMC(particles=2, always=True, resample_at=resample_at)
    assert_properly_weighted(masked, engine=engine, lm=programs.AB, exact=expected)
    post = infer(masked, engine=SMC(particles=64, ess_threshold=0.0), lm=programs.AB)
    assert post.deaths == {"y": sum(1 for w in post.log_weights if w == -math.inf)}


@pytest.mark.parametrize(
    "engine", [Importance(3), SMC(3), ALWAYS, Enumerate(), Rejection(2)], ids=repr
)
def test_every_engine_runs_what_comes_first(engine: Any) -> None:
    """llamppl #13: one engine left the program's first step out."""

    @program
    def starts() -> Any:
        first = deterministic("first", 7)
        factor("w", -0.1)
        return first + sample("b", Categorical([0, 1]))

    for trace in infer(starts, engine=engine).traces:
        assert list(trace) == ["first", "w", "b"]
        assert trace.result in (7, 8)


@pytest.mark.parametrize("engine", [Importance(8), SMC(8), ALWAYS, Enumerate()], ids=repr)
def test_a_dead_population_names_its_killers(engine: Any) -> None:
    """smc_steer gives NaN, genlm-control a silent -inf, PPDL its first value, Gen #117 crashed."""

    @program
    def dies() -> Any:
        x = sample("x", Uniform(["p", "q"]))
        factor("is_p", x == "p")
        observe("is_q", Uniform(["q"]), x)
        return x

    with pytest.raises(AllParticlesDead) as caught:
        infer(dies, engine=engine)
    assert "is_p" in str(caught.value) and "is_q" in str(caught.value)
    post = infer(dies, engine=engine, on_dead="return")
    assert post.log_evidence == -math.inf
    assert post.ess == 0.0
    assert set(post.deaths) == {"is_p", "is_q"}
    with pytest.raises(AllParticlesDead):
        post.marginal()


def test_a_weight_that_is_no_number_is_an_error() -> None:
    """PyMC #7292: one NaN made every ancestor 0; particles and genlm-control read it as -inf."""

    @program
    def bad(value: float) -> Any:
        x = sample("x", Uniform(["p", "q"]))
        factor("fine", 0.0)
        factor("rotten", value if x == "p" else 0.0)
        return x

    for value in (math.nan, math.inf):
        for engine in (Importance(8), ALWAYS, Enumerate()):
            with pytest.raises(NonFiniteWeight, match="rotten"):
                infer(bad, value, engine=engine)
    with pytest.raises(NonFiniteWeight, match="guide"):
        infer(bad, 0.0, engine=SMC(particles=4, always=True, guide=lambda trace: math.nan))


def test_rejection_needs_a_bound() -> None:
    """PPDL accepts positive factors as they are: 0.515 where 0.881 is right."""

    @program
    def loved() -> Any:
        x = sample("x", Bernoulli(0.5))
        factor("love", 2.0 if x else 0.0)
        return x

    with pytest.raises(UnboundedWeight, match="log_bound"):
        infer(loved, engine=Rejection(samples=10))
    post = infer(loved, engine=Rejection(samples=400, log_bound=2.0), seed=1)
    assert abs(post.marginal()[True] - math.exp(2) / (1 + math.exp(2))) < 4.9 * 0.017


def test_without_replacement() -> None:
    """cascades' Choose: k of n without replacement is log 1 / (n (n - 1) …)."""

    @program
    def pick_two() -> Any:
        left = ["p", "q", "r"]
        first = sample("first", Uniform(left))
        left.remove(first)
        return first, sample("second", Uniform(left))

    exact = enumerate_exact(pick_two)
    assert len(exact) == 6
    assert all(abs(mass - 1 / 6) <= 1e-15 for mass in exact.values())
    assert_properly_weighted(pick_two, engine=SMC(particles=2, always=True), exact=exact)


def test_log_prob_depends_on_its_argument() -> None:
    """cascades' UniformCategorical gave one number for everything."""
    law = Uniform(["p", "q"])
    assert law.log_prob("p") == pytest.approx(math.log(0.5))
    assert law.log_prob("z") == -math.inf


def test_evidence_survives_renormalisation() -> None:
    """Pyro's SMCFilter drops it: three factors of e^-2 are e^-6, however often one resamples."""

    @program
    def steps() -> Any:
        for _ in range(3):
            sample("x", Uniform([0, 1]))
            factor("w", -2.0)
        return 0

    for resampling in ("systematic", "stratified", "residual", "multinomial"):
        for n in (1, 2, 7):
            post = infer(steps, engine=SMC(particles=n, resampling=resampling, always=True))
            assert abs(post.log_evidence + 6.0) <= 1e-12


def test_resampling_points_need_not_align() -> None:
    """TreePPL #64: log Z came out 0 in place of -0.69 when particles met other factors."""

    @program
    def unaligned() -> Any:
        if sample("x", Bernoulli(0.5)):
            factor("half", math.log(0.5))
        else:
            factor("first", math.log(0.25))
            factor("second", math.log(2.0))
        return 0

    for engine in (
        SMC(particles=2, always=True),
        SMC(particles=3, always=True),
        SMC(particles=2, always=True, resample_at="factor"),
    ):
        found = assert_properly_weighted(unaligned, engine=engine)
        assert abs(found.exact.log_z - math.log(0.5)) <= 1e-15


def test_finished_particles_stay() -> None:
    """They absorb and keep their weight: leaving them out biases the evidence."""

    @program
    def early() -> Any:
        if sample("stop", Bernoulli(0.5)):
            return "early"
        for _ in range(2):
            factor("low", -3.0)
        return "late"

    exact = {"early": 0.5, "late": 0.5 * math.exp(-6.0)}
    engine = SMC(particles=3, always=True)
    assert_properly_weighted(early, engine=engine, exact=exact)


@pytest.mark.parametrize("limit", ["prefix", "eos", "kill"])
def test_the_end_at_max_tokens_is_weighed(programs: ModuleType, limit: Any) -> None:
    """genlm-control 0ee8a85, #145: an end that is forced and not weighed. Its weights stay finite."""

    @program
    def short() -> Any:
        return sample("x", LM("", max_tokens=1, limit=limit))

    p = programs.p
    full = {"prefix": 1.0, "kill": 0.0}
    expected = {x: p(x, "") * full.get(limit, p(".", x)) for x in "ab"}
    expected[""] = p(".", "")
    for engine in (Importance(2), SMC(particles=2, always=True, resample_at=tokens(1))):
        found = assert_properly_weighted(
            short, engine=engine, lm=programs.AB, exact={v: m for v, m in expected.items() if m}
        )
        assert all(math.isfinite(m) for m in found.estimate.values())


def test_a_feasible_token_is_never_lost(programs: ModuleType) -> None:
    """genlm-control fb4dd00: zero weight where truncation met a mask."""

    @program
    def squeezed() -> Any:
        # the likeliest token is a; only b is allowed
        return sample("x", LM("", regex="b", max_tokens=1, top_k=1))

    assert_properly_weighted(
        squeezed, engine=Importance(2), lm=programs.AB, exact={"b": programs.p("b", "")}
    )


# -- programs ------------------------------------------------------------------------------------


def test_a_deterministic_site_does_not_overwrite_a_sample() -> None:
    """NumPyro #1280."""

    @program
    def same_name() -> Any:
        sample("x", Uniform([1, 2]))
        return deterministic("x", 9)

    trace = infer(same_name, engine=Importance(1)).traces[0]
    assert trace["x"] in (1, 2)
    assert trace["x[1]"] == 9


def diverging(change: str) -> Any:
    """A program that sends something else every second time it is run."""
    runs = [0]

    @program
    def impure() -> Any:
        runs[0] += 1
        later = runs[0] % 2 == 0
        names = ("second", "first") if later and change == "swapped" else ("first", "second")
        if later and change == "renamed":
            names = ("third", "second")
        first = sample(names[0], Uniform([1, 2]))
        sample(names[1], Uniform([1, 2]))
        if later and change == "kind":
            sample("w", Uniform([1]))
        else:
            factor("w", 0.5 if later and change == "weight" else 0.0)
        sample("last", Uniform([1, 2, 3] if later and change == "law" else [1, 2]))
        factor("end", 0.0)
        return first

    return impure


@pytest.mark.parametrize("change", ["swapped", "renamed", "kind", "weight", "law"])
@pytest.mark.parametrize("driver", ["greenlet", "eager"])
def test_another_path_on_replay_is_an_error(change: str, driver: str) -> None:
    """cascades checks by name alone, LMQL by position alone."""
    first_only = SMC(
        particles=3,
        always=True,
        resampling=lambda w, key, chance: np.zeros(len(w), dtype=np.int64),
    )
    infer(diverging("nothing"), engine=first_only, driver=driver)
    with pytest.raises(ReplayDivergence, match="took another path"):
        infer(diverging(change), engine=first_only, driver=driver)


def test_effects_run_once_per_lineage() -> None:
    """Replay reads the result; offspring share what their ancestor did."""
    calls: list[int] = []

    def tool(x: int) -> int:
        calls.append(x)
        return 10 * x

    @program
    def uses() -> Any:
        got = effect("tool", tool, sample("x", Uniform([1, 2])))
        for _ in range(4):
            factor("w", -0.1 * sample("y", Uniform([0, 1])))
        return got

    post = infer(uses, engine=SMC(particles=6, always=True))
    assert len(calls) == 6
    assert all(t.result == 10 * t["x"] for t in post.traces)


def test_cached_functions_are_told_apart() -> None:
    """Two lambdas of one function, captured values and objects are different calls."""

    class Box:
        def __init__(self, value: int) -> None:
            self.value = value

    boxes = {1: Box(1), 2: Box(2)}

    @program
    def caches() -> Any:
        x = sample("x", Uniform([1, 2]))
        one = cached("one", lambda v: v + 1, 3)
        two = cached("two", lambda v: v * 2, 3)
        captured = cached("captured", lambda: x)
        boxed = cached("boxed", lambda box: box.value, boxes[x])
        return one, two, captured == x, boxed == x

    for driver in ("greenlet", "eager"):
        post = infer(caches, engine=Importance(12), driver=driver)
        assert {t.result for t in post.traces} == {(4, 6, True, True)}


def test_pure_functions_are_computed_once() -> None:
    calls: list[int] = []

    def slow(x: int) -> int:
        calls.append(x)
        return x

    @program
    def caches() -> Any:
        cached("slow", slow, 5)
        factor("w", 0.0)
        return cached("slow", slow, sample("x", Uniform([5])))

    infer(caches, engine=SMC(particles=9, always=True))
    assert calls == [5]


def test_suspension_inside_a_sort_key() -> None:
    """greenlet #513: a switch through C frames."""

    @program
    def ranks() -> Any:
        return sorted([3, 1, 2], key=lambda i: sample(f"rank{i}", Uniform([0, 1])))

    exact = enumerate_exact(ranks, of=lambda t: tuple(t.result))
    assert abs(exact.z - 1.0) <= 1e-15
    engine = SMC(particles=2, always=True)
    assert_properly_weighted(ranks, engine=engine, exact=exact, of=lambda t: tuple(t.result))


def test_a_call_may_not_take_the_scope_of_an_item() -> None:
    """`name[1]/x` would be two sites with one key."""

    @program
    def flip() -> Any:
        return sample("x", Bernoulli(0.5))

    @program
    def clash() -> Any:
        plate("a", (0, 1), lambda i: flip())
        return call(flip, name="a")

    from lmppl.errors import BadProgram

    with pytest.raises(BadProgram, match="scope of an item"):
        infer(clash, engine=Importance(1))

    @program
    def fine() -> Any:
        call(flip, name="a")
        call(flip, name="a")
        plate("a", (0, 1), lambda i: flip())
        return loop(lambda carry, t: carry + flip(), 0, n=2, name="a")

    assert check_keys(fine, engine=ALWAYS) > 0


# -- nested inference ----------------------------------------------------------------------------


@program
def guess() -> Any:
    x = sample("x", Bernoulli(0.3))
    factor("w", 1.0 if x else 0.0)
    return x


@pytest.mark.parametrize("driver", ["greenlet", "eager"])
def test_inner_runs_do_not_share_draws(driver: str) -> None:
    """E[Ẑ₁ Ẑ₂] = Z₁ Z₂ needs independent inner runs, in one scope too."""

    @program
    def twice() -> Any:
        first = infer(guess, engine=Importance(particles=1))
        second = infer(guess, engine=Importance(particles=1))
        factor("both", first.log_evidence + second.log_evidence)
        return 0

    z = 0.3 * math.e + 0.7
    for engine in (Importance(particles=1), SMC(particles=2, always=True)):
        assert_properly_weighted(twice, engine=engine, exact={0: z * z}, driver=driver)
    assert check_keys(twice, engine=SMC(particles=3, always=True), driver="greenlet") > 0


@pytest.mark.parametrize(
    "inner", [Importance(particles=2), SMC(particles=2, always=True), Enumerate()], ids=repr
)
def test_evidence_of_an_inner_run_is_unbiased(programs: ModuleType, inner: Any) -> None:
    @program
    def outer() -> Any:
        x = sample("x", LM("", max_tokens=1))
        factor("inner", infer(programs.guess, x, engine=inner).log_evidence)
        return x

    exact = {
        x: q * sum(r * math.exp(0.8 if y == "a" else -0.2) for y, r in programs.strings(x, 1))
        for x, q in programs.strings("", 1)
    }
    assert_properly_weighted(outer, engine=Importance(particles=1), lm=programs.AB, exact=exact)


def test_plain_calls_hand_their_chance_to_inner_runs() -> None:
    @program
    def outer() -> Any:
        factor("inner", infer(guess, engine=Importance(particles=2)).log_evidence)
        return 0

    assert abs(enumerate_exact(outer).z - (0.3 * math.e + 0.7)) <= 1e-12


def test_many_questions_are_not_asked_inside_a_program() -> None:
    from lmppl.errors import BadArgument

    @program
    def outer() -> Any:
        return infer_many(guess, [(), ()], engine=Importance(particles=1))

    with pytest.raises(BadArgument, match="inside a program"):
        infer(outer, engine=Importance(particles=1))


# -- the law of replay ---------------------------------------------------------------------------


def test_check_accepts_the_fixture_programs(case: Any, async_programs: ModuleType) -> None:
    twin = next(c for c in async_programs.CASES if c.name == case.name)
    for chosen in (case, twin):
        report = check(chosen.program, *chosen.args, lm=chosen.lm)
        assert report.ok, str(report)


@pytest.mark.parametrize("change", ["swapped", "renamed", "kind", "weight", "law"])
def test_check_sees_impure_programs(change: str) -> None:
    assert not check(diverging(change)).ok
