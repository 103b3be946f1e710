"""Every bad input gives its documented error, with the message that `tests/golden/` keeps.

One file per case; `pytest tests/test_bad_input.py --update-golden` writes them anew, and the diff
is then read like code. A message says what happened, where (line of the program, site, particle,
question), shows the value, and says what to write instead. A part of the cases runs once more
under `python -O`, where `assert` is gone.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before anything is looked up: tests/lmppl would answer for lmppl
    sys.path[0] = str(Path(__file__).parent.parent)

import numpy as np
import pytest

from lmppl import (
    LM,
    Bernoulli,
    Categorical,
    Chat,
    Choice,
    Delta,
    Mixture,
    Text,
    Uniform,
    cached,
    call,
    effect,
    factor,
    load,
    loop,
    observe,
    plate,
    power,
    program,
    prompt,
    sample,
)
from lmppl import handlers as H
from lmppl.distributions import Distribution
from lmppl.errors import LmpplError, LmpplWarning
from lmppl.inference import (
    SMC,
    Block,
    Enumerate,
    Forward,
    Importance,
    MetropolisHastings,
    Rejection,
    infer,
    infer_many,
    tokens,
)
from lmppl.jobs import Draw, Env
from lmppl.lm.base import Capabilities
from lmppl.lm.table import TableLM

GOLDEN = Path(__file__).parent / "golden"
TOY = TableLM(["a", "b", "<eos>"], {(): [0.5, 0.3, 0.2], (0,): [0.1, 0.6, 0.3]}, name="toy")
ONE = Importance(1)

Case = Callable[[], Any]
CASES: dict[str, Case] = {}
NEED_TORCH = ("model_of_an_unknown_name",)
"""Without torch no model can be looked for by name, and the cure is another one."""
OPTIMISED: list[str] = []
"""The cases that run under `python -O` too."""


def bad(case: Case) -> Case:
    """A case: its name is that of its file."""
    CASES[case.__name__] = case
    return case


def bad_too(case: Case) -> Case:
    """A case that also runs without assertions."""
    OPTIMISED.append(case.__name__)
    return bad(case)


def shown(case: Case) -> str:
    """What a user sees: the error, or the warnings of the result."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LmpplWarning)
        try:
            result = case()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        else:
            warned = [*getattr(result, "warnings", ()), *(str(w.message) for w in caught)]
            found = list(dict.fromkeys(warned))
            text = "\n".join(f"warning: {w}" for w in found) or f"nothing: {result!r}"
    text = re.sub(r"(test_bad_input\.py):\d+", r"\1:LINE", text)
    text = re.sub(r"0x[0-9a-f]{6,}", "0xADDRESS", text)
    text = re.sub(r"fingerprint [0-9a-f]{16}|\([0-9a-f]{16}\)", "fingerprint", text)
    return (
        re.sub(r"table:\S*?/(\w+\.json)", r"table:FOLDER/\1", text.replace(str(Path.cwd()), "."))
        + "\n"
    )


# -- 1 to 3: names ------------------------------------------------------------------------------


@bad_too
def site_twice() -> Any:
    def model() -> Any:
        sample("x", Delta(1))
        sample("x", Delta(2))

    infer(model, engine=ONE, strict=True)


@bad
def site_twice_in_a_loop() -> Any:
    def step(carry: int, t: int) -> Any:
        for _ in range(2):
            sample("x", Delta(1))

    infer(lambda: loop(step, 0, n=3), engine=ONE, strict=True)


@bad
def site_twice_in_recursion() -> Any:
    def tree(depth: int) -> Any:
        sample("node", Delta(depth))
        return depth and tree(depth - 1)

    infer(tree, 2, engine=ONE, strict=True)


@bad
def call_named_like_a_plate() -> Any:
    def model() -> Any:
        plate("p", [1, 2], lambda i: sample("x", Delta(i)))
        call(lambda: sample("x", Delta(1)), name="p")

    infer(model, engine=ONE)


@bad_too
def name_empty() -> Any:
    infer(lambda: sample("", Delta(1)), engine=ONE)


@bad
def name_with_slash() -> Any:
    infer(lambda: sample("a/b", Delta(1)), engine=ONE)


@bad
def name_with_bracket() -> Any:
    infer(lambda: factor("a[0]", 0.0), engine=ONE)


@bad
def name_not_text() -> Any:
    infer(lambda: observe(3, Delta(1), 1), engine=ONE)  # type: ignore[arg-type]


@bad
def name_unhashable() -> Any:
    infer(lambda: sample(["x"], Delta(1)), engine=ONE)  # type: ignore[arg-type]


@bad
def name_of_ten_kilobytes() -> Any:
    infer(lambda: sample("x" * 10_000, Delta(1)), engine=ONE)


# -- 4 to 7: where and what a program is --------------------------------------------------------


@bad_too
def outside_of_a_program() -> Any:
    sample("x", Delta(1))


@bad
def from_another_thread() -> Any:
    def model() -> Any:
        errors: list[BaseException] = []

        def run() -> None:
            try:
                sample("x", Delta(1))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        raise errors[0]

    infer(model, engine=ONE)


@bad
def from_an_effect() -> Any:
    infer(lambda: effect("tool", lambda: factor("f", 0.0)), engine=ONE)


@bad
def from_another_greenlet() -> Any:
    import greenlet

    infer(lambda: greenlet.greenlet(lambda: sample("x", Uniform([1, 2]))).switch(), engine=ONE)


@bad
def request_of_another_run() -> Any:
    kept: list[Any] = []

    async def first() -> Any:
        kept.append(sample("x", Delta(1)))

    async def second() -> Any:
        return await kept[0]

    try:
        infer(first, engine=ONE)
    except LmpplError:
        infer(second, engine=ONE)


@bad_too
def not_awaited() -> Any:
    async def model() -> Any:
        sample("x", Delta(1))
        observe("y", Delta(1), 1)
        loop(lambda c, t: c, 0, n=1, name="z")
        return await sample("last", Delta(1))

    infer(model, engine=ONE)


@bad
def not_awaited_and_used() -> Any:
    async def model() -> Any:
        if sample("verdict", Delta("no")) == "yes":
            return 1

    infer(model, engine=ONE)


@bad
def awaited_twice() -> Any:
    async def model() -> Any:
        request = sample("x", Delta(1))
        return await request, await request

    infer(model, engine=ONE)


@bad
def awaited_something_foreign() -> Any:
    async def model() -> Any:
        await asyncio.sleep(0.1)

    infer(model, engine=ONE)


@bad
def generator_as_program() -> Any:
    @program
    def model() -> Any:
        yield sample("x", Delta(1))


@bad
def async_generator_as_program() -> Any:
    @program
    async def model() -> Any:
        yield 1


@bad
def class_as_program() -> Any:
    infer(dict)


@bad_too
def result_as_program() -> Any:
    infer("the answer")  # type: ignore[arg-type]


@bad
def plain_function_under_the_coroutine_driver() -> Any:
    infer(lambda: sample("x", Delta(1)), engine=ONE, driver="coroutine")


@bad
def unknown_driver() -> Any:
    infer(lambda: sample("x", Delta(1)), engine=ONE, driver="threads")


@bad
def blocking_inference_in_an_async_program() -> Any:
    async def model() -> Any:
        return infer(lambda: sample("x", Delta(1)))

    infer(model, engine=ONE)


@bad
def many_questions_in_a_program() -> Any:
    infer(lambda: infer_many(lambda x: sample("x", Delta(x)), [1, 2]), engine=ONE)


@bad
def caught_signal_of_the_eager_driver() -> Any:
    def model() -> Any:
        try:
            return sample("x", Delta(1))
        except BaseException:
            return None

    infer(model, engine=ONE, driver="eager")


@bad
def swallowed_kill() -> Any:
    def model() -> Any:
        while True:
            try:
                return factor("must", False)
            except:  # noqa: E722
                pass

    return infer(model, engine=ONE, on_dead="return")


# -- 9: replay ----------------------------------------------------------------------------------

FORKING = SMC(12, resampling="multinomial", always=True)


@bad_too
def clock_in_a_name() -> Any:
    clock = itertools.count()

    def model() -> Any:
        factor("f", 1.0 if sample("x", Bernoulli(0.5)) else 0.0)
        sample(f"at {next(clock)}", Bernoulli(0.5))
        factor("g", 0.0)

    infer(model, engine=FORKING)


@bad
def random_in_a_law() -> Any:
    clock = itertools.count(2)

    def model() -> Any:
        x = sample("x", Bernoulli(1.0 / next(clock)))
        factor("f", 1.0 if x else 0.0)
        return sample("y", Bernoulli(0.5))

    infer(model, engine=FORKING)


@bad
def global_that_changes_a_weight() -> Any:
    clock = itertools.count()

    def model() -> Any:
        x = sample("x", Bernoulli(0.5))
        factor("score", 0.001 * next(clock))
        factor("f", 1.0 if x else 0.0)
        return sample("y", Bernoulli(0.5))

    infer(model, engine=FORKING)


@bad
def another_end_on_replay() -> Any:
    clock = itertools.count()

    def model() -> Any:
        x = sample("x", Bernoulli(0.5))
        factor("f", 1.0 if x else 0.0)
        if next(clock) < 12:
            sample("y", Bernoulli(0.5))
            factor("g", 0.0)
            sample("z", Bernoulli(0.5))

    infer(model, engine=FORKING)


# -- 10: exceptions of the program --------------------------------------------------------------


@bad_too
def exception_in_a_particle() -> Any:
    def model(question: str) -> Any:
        x = sample("x", Uniform([1, 2, 3]))
        return {1: "one"}[x] + question

    infer_many(model, ["q?"], engine=Importance(5), ids=["q-0042"])


@bad
def exception_in_every_particle() -> Any:
    def model() -> Any:
        x = sample("x", Uniform([1, 2, 3]))
        raise ValueError(f"no answer for {x}")

    infer(model, engine=Importance(5), on_error="kill")


@bad
def exception_in_a_plate() -> Any:
    infer(lambda: plate("p", [1, 0], lambda i: sample("x", Delta(1)) // i), engine=ONE)


@bad
def exception_in_a_distribution() -> Any:
    class Broken(Distribution):
        kind = "Broken"

        def draw(self, key: int, env: Env) -> Draw:
            raise ZeroDivisionError("no draw")

        def score(self, value: Any, env: Env) -> float:
            return 0.0

        @property
        def fingerprint(self) -> int:
            return 1

    infer(lambda: sample("x", Broken()), engine=ONE)


@bad
def unknown_policy() -> Any:
    infer(lambda: sample("x", Delta(1)), engine=ONE, on_error="ignore")


# -- 12 to 15: weights --------------------------------------------------------------------------


@bad_too
def weight_nan() -> Any:
    def model() -> Any:
        text = sample("text", Uniform(["Sure! Here is"]))
        factor("is_polite", math.nan if text else 0.0)

    infer(model, engine=SMC(4))


@bad_too
def weight_plus_infinity() -> Any:
    infer(lambda: factor("is_polite", math.inf), engine=SMC(4))


@bad
def weight_nan_in_a_plain_call() -> Any:
    program(lambda: factor("is_polite", math.nan))()


@bad
def weight_nan_in_a_plate() -> Any:
    infer(lambda: plate("p", [0.0, math.nan], lambda w: factor("f", w)), engine=ONE)


@bad
def log_probability_nan() -> Any:
    class Nan(Distribution):
        kind = "Nan"

        def draw(self, key: int, env: Env) -> Draw:
            return Draw(1, math.nan, 0.0)

        def score(self, value: Any, env: Env) -> float:
            return math.nan

        @property
        def fingerprint(self) -> int:
            return 1

    infer(lambda: observe("y", Nan(), 1), engine=ONE)


@bad
def guide_nan() -> Any:
    infer(
        lambda: (sample("x", Bernoulli(0.5)), sample("y", Bernoulli(0.5))),
        engine=SMC(2, guide=lambda t: math.nan),
    )


@bad
def guide_zero() -> Any:
    infer(
        lambda: (sample("x", Bernoulli(0.5)), sample("y", Bernoulli(0.5))),
        engine=SMC(2, guide=lambda t: -math.inf),
    )


@bad_too
def weight_none() -> Any:
    infer(lambda: factor("score", None), engine=ONE)


@bad
def weight_text() -> Any:
    infer(lambda: factor("score", "0.7"), engine=ONE)


@bad
def weight_array() -> Any:
    infer(lambda: factor("score", np.array([0.1, 0.2])), engine=ONE)


@bad
def weight_with_gradient() -> Any:
    class Tensor:
        requires_grad = True
        shape = ()

        def item(self) -> float:
            return 0.5

        def __repr__(self) -> str:
            return "tensor(0.5000, requires_grad=True)"

    infer(lambda: factor("score", Tensor()), engine=ONE)


@bad
def probability_as_weight() -> Any:
    def model() -> Any:
        x = sample("x", Uniform([0.2, 0.7, 0.9]))
        factor("judge", x)

    return infer(model, engine=Importance(150))


# -- 16 and 17: engines -------------------------------------------------------------------------


@bad
def particles_zero() -> Any:
    SMC(particles=0)


@bad
def particles_negative() -> Any:
    Importance(-1)


@bad
def particles_fraction() -> Any:
    SMC(particles=1.5)  # type: ignore[arg-type]


@bad
def particles_bool() -> Any:
    SMC(particles=True)


@bad
def particles_text() -> Any:
    SMC(particles="8")  # type: ignore[arg-type]


@bad_too
def particles_too_many() -> Any:
    SMC(particles=10**9)


@bad_too
def threshold_above_one() -> Any:
    SMC(ess_threshold=1.5)


@bad
def threshold_nan() -> Any:
    SMC(ess_threshold=math.nan)


@bad
def unknown_resampling() -> Any:
    SMC(resampling="bootstrap")


@bad
def unknown_barrier() -> Any:
    SMC(resample_at="token")


@bad
def tokens_zero() -> Any:
    tokens(0)


@bad
def engine_by_name() -> Any:
    infer(lambda: sample("x", Delta(1)), engine="smc")  # type: ignore[arg-type]


@bad
def seed_fraction() -> Any:
    infer(lambda: sample("x", Delta(1)), seed=0.5)  # type: ignore[arg-type]


@bad
def unknown_option() -> Any:
    infer_many(lambda x: sample("x", Delta(x)), [1], particles=3)


@bad
def fewer_ids_than_questions() -> Any:
    infer_many(lambda x: sample("x", Delta(x)), [1, 2, 3], ids=["a"])


@bad
def prompt_that_is_a_number() -> Any:
    LM(3)  # type: ignore[arg-type]


@bad
def arguments_that_do_not_fit() -> Any:
    def word_problem(question: str, hint: str) -> Any:
        return question

    infer(word_problem, "why?", engine=ONE)


@bad
def observations_as_a_list() -> Any:
    infer(lambda: sample("x", Delta(1)), observations=["x"])  # type: ignore[arg-type]


@bad
def continuous_program_enumerated() -> Any:
    class Line(Distribution):
        kind = "Line"

        def draw(self, key: int, env: Env) -> Draw:
            return Draw(0.0, 0.0, 0.0)

        def score(self, value: Any, env: Env) -> float:
            return 0.0

        @property
        def fingerprint(self) -> int:
            return 1

    infer(lambda: sample("x", Line()), engine=Enumerate())


@bad
def rejection_without_a_bound() -> Any:
    infer(lambda: factor("reward", 1.0), engine=Rejection(samples=2))


# -- 18 to 20: strings --------------------------------------------------------------------------


@bad_too
def max_tokens_zero() -> Any:
    LM("p", max_tokens=0)


@bad
def max_tokens_none() -> Any:
    LM("p", max_tokens=None)  # type: ignore[arg-type]


@bad_too
def temperature_zero() -> Any:
    LM("p", temperature=0)


@bad
def temperature_negative() -> Any:
    LM("p", temperature=-1)


@bad
def temperature_nan() -> Any:
    LM("p", temperature=math.nan)


@bad
def tempered_zero() -> Any:
    LM("p").tempered(0)


@bad
def top_p_above_one() -> Any:
    LM("p", top_p=1.2)


@bad
def top_p_text() -> Any:
    LM("p", top_p="0.9")  # type: ignore[arg-type]


@bad
def top_k_negative() -> Any:
    Chat("p", top_k=-1)


@bad
def mixture_of_percent() -> Any:
    LM("p", mixture=10)


@bad
def limit_unknown() -> Any:
    LM("p", limit="cut")  # type: ignore[arg-type]


@bad
def target_unknown() -> Any:
    LM("p", target="posterior")  # type: ignore[arg-type]


@bad
def stop_empty() -> Any:
    LM("p", stop="")


@bad
def setting_unhashable() -> Any:
    LM("p", top_p=[0.9])  # type: ignore[arg-type]


@bad
def proposal_setting_unknown() -> Any:
    program(lambda: sample("x", LM("p"), proposal={"stop": "x"}))()


@bad
def proposal_mapping_for_a_number() -> Any:
    program(lambda: sample("x", Bernoulli(0.5), proposal={"temperature": 2.0}))()


@bad
def truncated_proposal() -> Any:
    return infer(lambda: sample("x", LM("", max_tokens=2, top_k=1)), engine=SMC(2), lm=TOY)


@bad
def truncated_law_scored() -> Any:
    infer(lambda: observe("x", LM("", top_k=1, target="proposal"), "a"), engine=ONE, lm=TOY)


@bad
def power_of_a_number() -> Any:
    power(LM("p"), math.inf)


@bad
def power_of_a_choice() -> Any:
    power(Choice("p", ["a", "b"]), 2.0)  # type: ignore[arg-type]


@bad_too
def regex_unbalanced() -> Any:
    infer(lambda: sample("x", LM("", regex="(a|b")), engine=ONE, lm=TOY)


@bad
def regex_with_look_around() -> Any:
    infer(lambda: sample("x", LM("", regex="(?=a)b")), engine=ONE, lm=TOY)


@bad
def prompt_not_text() -> Any:
    LM([("user", "hi")])  # type: ignore[arg-type]


@bad
def prompt_without_a_value() -> Any:
    prompt("Q: {question}\n", q="why?")


@bad
def prompt_with_a_format() -> Any:
    prompt("{price:.2f}", price=3)


@bad
def prompt_value_without_a_field() -> Any:
    prompt("Q:", question="why?")


@bad
def message_without_content() -> Any:
    Chat([{"role": "user"}])


@bad
def options_empty() -> Any:
    Choice("p", [])


@bad
def options_one_text() -> Any:
    Choice("p", "yes")


@bad
def options_that_overlap() -> Any:
    infer(lambda: sample("x", Choice("", ["a", "ab"])), engine=ONE, lm=TOY)


# -- 21 to 26: what a model can read, and what cannot be ----------------------------------------


@bad
def prompt_empty() -> Any:
    strict = TableLM(["a", "<eos>"], {(): [0.5, 0.5]}, name="strict")
    strict.capabilities = Capabilities()
    infer(lambda: sample("x", LM("")), engine=ONE, lm=strict)


def small() -> TableLM:
    lm = TableLM(["a", "b", "<eos>"], {(): [0.4, 0.4, 0.2]}, name="small")
    lm.max_context = 100
    return lm


@bad_too
def context_overflow_names_the_longest_site() -> Any:
    def model() -> Any:
        short = sample("short", LM("", max_tokens=3))
        thought = sample("thought", Delta(Text("ab" * 60)))
        return sample("answer", LM(prompt("{s}b{t}", s=short, t=thought), max_tokens=8))

    infer(model, engine=ONE, lm=small())


@bad
def context_overflow_of_a_prompt() -> Any:
    infer(lambda: sample("x", LM("a" * 500, max_tokens=8)), engine=ONE, lm=small())


@bad
def context_overflow_of_a_chat() -> Any:
    messages = [("system", "a" * 5), ("user", "b" * 200)]
    infer(lambda: sample("x", Chat(messages, max_tokens=8)), engine=ONE, lm=small())


@bad
def context_overflow_of_a_scored_text() -> Any:
    infer(lambda: observe("x", LM("a" * 90, max_tokens=99), "b" * 20), engine=ONE, lm=small())


@bad
def context_overflow_of_options() -> Any:
    infer(lambda: sample("x", Choice("a" * 100, ["a", "b"])), engine=ONE, lm=small())


@bad_too
def impossible_constraint() -> Any:
    def model() -> Any:
        x = sample("x", Uniform([1, 2, 3, 4]))
        factor("is even", x % 2 == 0)
        factor("is odd", x % 2 == 1)

    infer(model, engine=Importance(40))


@bad
def impossible_regex() -> Any:
    infer(lambda: sample("x", LM("", regex="zzz")), engine=SMC(8), lm=TOY)


@bad
def nearly_impossible_constraint() -> Any:
    def model() -> Any:
        x = sample("x", Uniform(list(range(1000))))
        factor("f", 12.0 * x)

    return infer(model, engine=Importance(8), seed=3)


@bad
def contradictory_observations() -> Any:
    def model() -> Any:
        x = sample("x", Bernoulli(0.5))
        observe("says yes", Delta(bool(x)), True)
        observe("says no", Delta(bool(x)), False)

    infer(model, engine=Importance(40))


@bad
def observed_value_outside_the_support() -> Any:
    infer(lambda: observe("colour", Categorical({"red": 0.5, "blue": 0.5}), "green"), engine=ONE)


@bad
def observed_text_with_its_stop() -> Any:
    infer(lambda: observe("x", LM("", stop="b"), "aba"), engine=ONE, lm=TOY)


@bad_too
def observed_text_too_long() -> Any:
    infer(lambda: observe("x", LM("", max_tokens=2), "aba"), engine=ONE, lm=TOY)


@bad
def observed_text_outside_the_regex() -> Any:
    infer(lambda: observe("x", LM("", regex="a+b"), "aaba"), engine=ONE, lm=TOY)


@bad
def observed_text_that_no_token_spells() -> Any:
    infer(lambda: observe("x", LM(""), "a cat"), engine=ONE, lm=TOY)


@bad
def observed_number_as_text() -> Any:
    infer(lambda: observe("x", LM(""), 42), engine=ONE, lm=TOY)


@bad
def observed_option_that_is_none() -> Any:
    infer(lambda: observe("x", Choice("", ["a", "b"]), "yes"), engine=ONE, lm=TOY)


@bad
def no_distribution() -> Any:
    infer(lambda: sample("x", "Tom has 3 apples"), engine=ONE)


@bad
def no_distribution_in_a_mixture() -> Any:
    Mixture([Delta(1), 0.5])  # type: ignore[list-item]


@bad
def weights_of_a_categorical() -> Any:
    Categorical({"a": 0.5, "b": -0.1})


@bad
def probability_above_one() -> Any:
    Bernoulli(1.5)


# -- 27: conditions -----------------------------------------------------------------------------


@program
def questionnaire() -> Any:
    thought = sample("thought", Delta("hm"))
    return sample("answer", Uniform([1, 2])), thought


@bad_too
def unused_observation() -> Any:
    infer(questionnaire, engine=ONE, observations={"ansr": 1})


@bad
def unused_condition() -> Any:
    infer(H.condition(questionnaire, {"answers": 1}), engine=ONE)


@bad
def unused_intervention() -> Any:
    infer(H.do(questionnaire, {"something else": 1}), engine=ONE)


@bad
def unused_condition_of_a_plain_call() -> Any:
    return H.condition(questionnaire, {"ansr": 1})()


@bad
def condition_on_an_observation() -> Any:
    infer(lambda: observe("y", Delta(1), 1), engine=ONE, observations={"y": 1})


@bad
def density_with_an_unknown_site() -> Any:
    H.log_density(questionnaire, {"answer": 1, "thought": "hm", "ansr": 2})


@bad
def density_without_a_value() -> Any:
    H.log_density(questionnaire, {"answer": 1})


@bad
def condition_without_data() -> Any:
    H.condition(questionnaire)


# -- 28 to 31: models ---------------------------------------------------------------------------


@bad_too
def proposal_of_another_tokenizer() -> Any:
    other = TableLM(["a", "c", "d", "<eos>"], {(): [0.25] * 4}, name="other")
    infer(
        lambda: sample("x", LM(""), proposal=LM("", lm="other")),
        engine=ONE,
        lm={"default": TOY, "other": other},
    )


@bad
def proposal_with_another_stop() -> Any:
    infer(lambda: sample("x", LM("", stop="a"), proposal=LM("", stop="b")), engine=ONE, lm=TOY)


@bad
def proposal_of_tokens_for_a_choice() -> Any:
    infer(lambda: sample("x", Choice("", ["a", "b"]), proposal=LM("")), engine=ONE, lm=TOY)


@bad
def table_file_missing() -> Any:
    load("table:nowhere/toy.json")


@bad
def table_that_is_none() -> Any:
    TableLM(["a", "b"], {(): [0.7, 0.7]})


@bad
def no_model_given() -> Any:
    infer(lambda: sample("x", LM("p")), engine=ONE)


@bad
def model_of_an_unknown_name() -> Any:
    infer(lambda: sample("x", LM("p", lm="judge")), engine=ONE, lm={"default": TOY, "critic": TOY})


@bad
def no_model() -> Any:
    infer(lambda: sample("x", LM("p")), engine=ONE, lm=42)


BLANK = program(lambda trace: None)


def silent() -> TableLM:
    lm = TableLM(["a", "b", "<eos>"], {(): [0.4, 0.4, 0.2]}, name="silent")
    lm.capabilities = Capabilities(
        logprobs="none", masks=False, scores_text=False, full_rows=False, empty_context=True
    )
    return lm


@bad_too
def engine_needs_log_probabilities() -> Any:
    lm = silent()
    try:
        infer(lambda: sample("x", LM("")), engine=SMC(4), lm=lm)
    finally:
        if lm.usage.passes:
            raise RuntimeError("tokens were drawn before the check")


@bad_too
def engine_needs_scores_of_texts() -> Any:
    lm = silent()
    lm.capabilities = Capabilities(scores_text=False, empty_context=True)
    try:
        infer(lambda: sample("x", LM("")), engine=MetropolisHastings(4, Block(BLANK)), lm=lm)
    finally:
        if lm.usage.passes:
            raise RuntimeError("tokens were drawn before the check")


@bad
def engine_needs_token_ids() -> Any:
    lm = silent()
    lm.capabilities = Capabilities(token_ids=False, empty_context=True)
    infer(lambda: sample("x", LM("")), engine=SMC(4, resample_at=tokens(2)), lm=lm)


@bad_too
def program_needs_masks() -> Any:
    @program(needs={"judge": "masks"})
    def judged() -> Any:
        thought = sample("thought", LM(""))
        return sample("verdict", LM(thought, regex="a|b", lm="judge"))

    lm = silent()
    lm.capabilities = Capabilities(masks=False, empty_context=True)
    infer(judged, engine=ONE, lm={"default": TOY, "judge": lm})


@bad_too
def program_needs_an_unknown_capability() -> Any:
    program(needs=("mask", "scores_text"))(lambda: sample("x", LM("")))


@bad
def model_of_a_site_without_log_probabilities() -> Any:
    infer(lambda: sample("x", LM("", lm=silent())), engine=ONE)


@bad_too
def proposal_that_cannot_be_weighted() -> Any:
    lm = silent()
    lm.capabilities = Capabilities(weighs_proposals=False, empty_context=True)
    law = LM("", temperature=0.7, top_p=0.9)
    infer(lambda: sample("x", law), engine=Forward(2), lm=lm)  # it weighs nothing
    infer(lambda: sample("x", LM("", top_p=0.9, target="proposal")), engine=ONE, lm=lm)
    lm.usage.passes = 0
    try:
        infer(lambda: sample("x", law), engine=ONE, lm=lm)
    finally:
        if lm.usage.passes:
            raise RuntimeError("tokens were drawn before the check")


SPACED = TableLM([":", " ", "a", " a", "0", "<eos>"], {(): [0.1, 0.2, 0.2, 0.2, 0.1, 0.2]})


@bad
def prompt_that_ends_in_a_space() -> Any:
    def model() -> Any:
        for _ in range(2):
            sample("word", LM(": ", max_tokens=2))
        return sample("number", LM(": ", regex="0", max_tokens=2))  # " 0" is two tokens anyway

    return infer(model, engine=Enumerate(), lm=SPACED)


@bad
def prompt_that_ends_inside_a_token() -> Any:
    def model() -> Any:
        observe("text", LM(": ", max_tokens=2), "a")
        return sample("option", Choice(": ", ["0", "a"]))

    return infer(model, engine=ONE, lm=SPACED)


@bad
def regex_without_masks() -> Any:
    lm = silent()
    lm.capabilities = Capabilities(masks=False, empty_context=True)
    infer(lambda: sample("x", LM("", regex="a")), engine=ONE, lm=lm)


@bad
def text_that_cannot_be_scored() -> Any:
    lm = silent()
    lm.capabilities = Capabilities(scores_text=False, empty_context=True)
    infer(lambda: observe("x", LM(""), "a"), engine=ONE, lm=lm)


# -- 38: tools ----------------------------------------------------------------------------------


@bad_too
def tool_raises() -> Any:
    def calculator(expression: str) -> Any:
        raise ZeroDivisionError("division by zero")

    infer(lambda: effect("calculator", calculator, "1/0"), engine=ONE)


@bad
def tool_times_out() -> Any:
    gate = threading.Event()
    try:
        infer(lambda: effect("search", gate.wait, timeout=0.05), engine=ONE)
    finally:
        gate.set()


@bad
def tool_with_wrong_arguments() -> Any:
    infer(lambda: effect("calculator", lambda expression: 1), engine=ONE)


@bad
def tool_that_is_none() -> Any:
    infer(lambda: effect("calculator", "calculate"), engine=ONE)  # type: ignore[arg-type]


@bad
def tool_that_always_fails() -> Any:
    def away() -> Any:
        raise ConnectionError("the server is away")

    infer(lambda: effect("search", away, on_error="kill"), engine=Importance(3))


@bad
def tool_policy_unknown() -> Any:
    infer(lambda: effect("search", print, on_error="skip"), engine=ONE)


@bad
def tool_limit_negative() -> Any:
    infer(lambda: effect("search", print, timeout=-1), engine=ONE)


@bad
def costly_function_raises() -> Any:
    infer(lambda: cached("parse", json.loads, "{"), engine=ONE)


@bad
def plate_over_a_set() -> Any:
    infer(lambda: plate("facts", {"a"}, lambda f: sample("x", Delta(f))), engine=ONE)


@bad
def loop_without_an_end() -> Any:
    infer(lambda: loop(lambda c, t: c, 0), engine=ONE)


# -- the tests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(CASES))
def test_message(name: str, request: pytest.FixtureRequest) -> None:
    if name in NEED_TORCH:
        pytest.importorskip("torch")
    found = shown(CASES[name])
    file = GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        file.write_text(found, "utf-8")
    assert file.exists(), "run pytest tests/test_bad_input.py --update-golden and read the file"
    assert found == file.read_text("utf-8")


@pytest.mark.parametrize("name", sorted(CASES))
def test_message_says_what_to_do(name: str) -> None:
    """A documented class, a cure, an excerpt that is cut, no assertion, no bare KeyError."""
    text = (GOLDEN / f"{name}.txt").read_text("utf-8")
    kind = text.partition(":")[0]
    assert kind not in ("AssertionError", "KeyError", "TypeError", "AttributeError", "nothing")
    if kind == "warning":
        return
    import lmppl.errors

    assert issubclass(getattr(lmppl.errors, kind), LmpplError)
    assert re.search(r"^  fix:   \S", text, re.M), text
    assert all(len(line) < 420 for line in text.splitlines())
    for label in ("where", "value", "why", "fix"):
        assert len(re.findall(rf"^  {label}: ", text, re.M)) <= 1


def test_no_golden_file_is_left_over() -> None:
    assert {f.stem for f in GOLDEN.glob("*.txt")} == set(CASES)


def test_messages_do_not_depend_on_assertions() -> None:
    """The same, once more, in a process where `assert` does nothing."""
    done = subprocess.run(
        [sys.executable, "-O", __file__, *OPTIMISED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    assert len(found) == len(OPTIMISED) > 15
    for name, text in found.items():
        assert text == (GOLDEN / f"{name}.txt").read_text("utf-8")


if __name__ == "__main__":
    if __debug__:
        raise SystemExit("run with python -O")
    print(json.dumps({name: shown(CASES[name]) for name in sys.argv[1:]}))
