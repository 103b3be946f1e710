"""String distributions against sums over token sequences that are written here once more.

`reference` walks every token sequence of a table and knows nothing of the code under test.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from lmppl import LM, Chat, Choice, Mixture, Text, Uniform, observe, power, program, sample
from lmppl import handlers as H
from lmppl.batches import run_now
from lmppl.distributions import Distribution
from lmppl.errors import (
    BadArgument,
    CapabilityError,
    ContextOverflow,
    NoLanguageModel,
    NotFinite,
    TokenizerMismatch,
    UnsupportedValue,
)
from lmppl.inference import SMC, Enumerate, Importance, infer
from lmppl.jobs import Draw, Env, Generate, keys_of
from lmppl.ledger import Ledger
from lmppl.lm.base import Capabilities
from lmppl.lm.table import TableLM
from lmppl.random import fold
from lmppl.testing import outcomes
from lmppl.weights import NEG_INF

AB = TableLM(
    ["a", "b", "<eos>"],
    {(): [0.5, 0.3, 0.2], (0,): [0.1, 0.6, 0.3], (1,): [0.3, 0.3, 0.4], (2,): [1.0, 0.0, 0.0]},
    name="ab",
)
RICH = TableLM.random(["a", "b", "ab", "\n", ".\n", "a\nb", b"a", "<eos>"], seed=5, name="rich")
EURO = TableLM.random(
    ["a", "€".encode()[:1], "€".encode()[1:], b"\xff", "<eos>"], seed=2, name="euro"
)
SPARSE = TableLM.random(["a", "b", "ab", "\n", "<eos>"], seed=8, zeros=0.4, order=2, name="sparse")


def reference(
    lm: TableLM,
    length: int,
    *,
    stop: tuple[str, ...] = (),
    limit: str = "prefix",
    context: tuple[int, ...] = (),
    temperature: float = 1.0,
    beta: float = 1.0,
    regex: str | None = None,
    final: bool = False,
) -> dict[str, float]:
    """Mass of every text: Σ over token sequences, by the words of the documentation.

    `final` says that no match of the expression can be continued to a longer one.
    """
    out: dict[str, float] = defaultdict(float)
    eos = next(iter(lm.eos_ids))
    stops = [s.encode() for s in stop]

    def row(ids: tuple[int, ...]) -> Any:
        p = np.exp(lm.table[lm._row_of[(*context, *ids)[-lm.order :]]])
        p = np.where(p > 0, p, 0.0) ** (1.0 / temperature)
        return p / p.sum()

    def text(ids: tuple[int, ...]) -> str:
        found = b"".join(lm.words[i] for i in ids).decode("utf-8", "replace")
        if regex is not None:
            return next((found[: -len(s)] for s in stop if found.endswith(s)), found)
        return re.split("|".join(map(re.escape, stop)), found)[0] if stop else found

    def matches(ids: tuple[int, ...]) -> bool:
        found = b"".join(lm.words[i] for i in ids)
        ends = "|".join(map(re.escape, stop)) if stop else ""
        return re.fullmatch(f"(?:{regex})(?:{ends})".encode(), found) is not None

    def walk(ids: tuple[int, ...], p: float) -> None:
        for token, q in enumerate(row(ids).tolist()):
            if q == 0.0:
                continue
            longer, mass = (*ids, token), p * q**beta
            if token == eos:
                if regex is None or (not stop and matches(ids)):
                    out[text(ids)] += mass
                continue
            raw = b"".join(lm.words[i] for i in longer)
            if regex is not None and (stop or final) and matches(longer):
                out[text(longer)] += mass
            elif regex is None and any(s in raw for s in stops):
                out[text(longer)] += mass
            elif len(longer) < length:
                walk(longer, mass)
            elif limit == "prefix":
                if regex is None or (not stop and matches(longer)):
                    out[text(longer)] += mass
            elif limit == "eos" and (regex is None or matches(longer)):
                ends = [i for i, w in enumerate(lm.words) if any(w.startswith(s) for s in stops)]
                out[text(longer)] += mass * sum(row(longer)[[*ends, eos]]) ** beta

    walk((), 1.0)
    return {v: m for v, m in out.items() if m > 0}


def env(lm: TableLM, chance: Any = None) -> Env:
    return Env({"default": lm}) if chance is None else Env({"default": lm}, chance)


def value_of(dist: Distribution, lm: TableLM, value: Any) -> float:
    return math.exp(run_now(dist.score(value, env(lm)), env(lm), Ledger()))


def listed(dist: Distribution, lm: TableLM) -> dict[str, float]:
    out: dict[str, float] = defaultdict(float)
    for value, logp in run_now(dist.support(env(lm)), env(lm), Ledger()):
        out[str(value)] += math.exp(logp)
    return dict(out)


def drawn_mass(dist: Distribution, lm: TableLM) -> dict[str, float]:
    """Σ over every outcome of chance of probability × weight, by text."""
    out: dict[str, float] = defaultdict(float)
    for probability, d in outcomes(
        lambda chance: run_now(dist.draw(7, env(lm, chance)), env(lm, chance), Ledger())
    ):
        weight = math.exp(d.logp - d.logq) if d.logp > NEG_INF else 0.0
        out[str(d.value)] += probability * weight
    return {v: m for v, m in out.items() if m > 1e-15}


LAWS: list[tuple[TableLM, dict[str, Any], dict[str, Any]]] = [
    (AB, {}, {}),
    (AB, {"limit": "eos"}, {"limit": "eos"}),
    (AB, {"limit": "kill"}, {"limit": "kill"}),
    (AB, {"stop": "b"}, {"stop": ("b",)}),
    (AB, {"stop": "ab", "limit": "eos"}, {"stop": ("ab",), "limit": "eos"}),
    (RICH, {"stop": "\n"}, {"stop": ("\n",)}),
    (RICH, {"stop": ["\n", "ab"]}, {"stop": ("\n", "ab")}),
    (RICH, {"stop": "\n", "limit": "eos"}, {"stop": ("\n",), "limit": "eos"}),
    (RICH, {"stop": "b\n"}, {"stop": ("b\n",)}),
    (RICH, {"stop": ".\n", "limit": "kill"}, {"stop": (".\n",), "limit": "kill"}),
    (EURO, {}, {}),
    (EURO, {"stop": "€"}, {"stop": ("€",)}),
    (SPARSE, {"stop": "\n"}, {"stop": ("\n",)}),
    (SPARSE, {"limit": "eos"}, {"limit": "eos"}),
    (AB, {"regex": "a*b"}, {"regex": "a*b", "final": True}),
    (RICH, {"regex": "(ab)+"}, {"regex": "(ab)+"}),
    (RICH, {"regex": "a[ab]*", "stop": "\n"}, {"regex": "a[ab]*", "stop": ("\n",)}),
    (RICH, {"regex": "a\n?b", "stop": "\n"}, {"regex": "a\n?b", "stop": ("\n",)}),
    (RICH, {"regex": "a+", "limit": "eos"}, {"regex": "a+", "limit": "eos"}),
    (EURO, {"regex": "a*€a*"}, {"regex": "a*€a*"}),
]


@pytest.mark.parametrize("lm, options, words", LAWS, ids=lambda v: getattr(v, "name", str(v)))
def test_the_law_is_the_sum_over_token_sequences(
    lm: TableLM, options: dict[str, Any], words: dict[str, Any]
) -> None:
    want = reference(lm, 3, **words)
    dist = LM("", max_tokens=3, **options)
    assert listed(dist, lm) == pytest.approx(want, abs=1e-12)
    assert drawn_mass(LM("", max_tokens=2, **options), lm) == pytest.approx(
        reference(lm, 2, **words), abs=1e-12
    )
    if "regex" not in options and options.get("limit") is None:
        assert sum(want.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("lm, options, words", LAWS, ids=lambda v: getattr(v, "name", str(v)))
def test_drawn_texts_are_scored_by_their_own_tokens(
    lm: TableLM, options: dict[str, Any], words: dict[str, Any]
) -> None:
    """To the last digit what they were listed with; given as plain strings, a lower bound."""
    dist = LM("", max_tokens=3, **options)
    mass = reference(lm, 3, **words)
    for value, logp in run_now(dist.support(env(lm)), env(lm), Ledger()):
        assert math.log(value_of(dist, lm, value)) == pytest.approx(logp, abs=1e-9)
        if "\ufffd" in value or any(s in value for s in words.get("stop", ())):
            continue
        try:
            canonical = value_of(dist, lm, str(value))
        except UnsupportedValue:  # as canonical tokens it is too long, or never drawn
            continue
        assert canonical <= mass[str(value)] + 1e-12


@pytest.mark.parametrize(
    ("settings", "temperature"),
    [
        ({"temperature": 0.3}, 1.0),
        ({"temperature": 2.0}, 1.0),
        ({"top_p": 0.6, "mixture": 0.2}, 1.0),
        ({"top_k": 1, "mixture": 0.5, "temperature": 0.7}, 1.0),
    ],
)
def test_sampling_settings_are_a_proposal(settings: dict[str, Any], temperature: float) -> None:
    want = reference(AB, 2)
    assert drawn_mass(LM("", max_tokens=2, **settings), AB) == pytest.approx(want, abs=1e-12)
    proposed = LM("", max_tokens=2).proposed(**settings)
    assert drawn_mass(proposed, AB) == pytest.approx(want, abs=1e-12)
    assert listed(proposed, AB) == pytest.approx(want, abs=1e-12)


def test_truncation_restricts_and_says_so() -> None:
    dist = LM("", max_tokens=1, top_k=1)
    d = run_now(dist.draw(0, env(AB)), env(AB), Ledger())
    assert d.restricted and str(d.value) == "a"
    assert math.exp(d.logp - d.logq) == pytest.approx(0.5)
    mixed = run_now(LM("", top_k=1, mixture=0.1).draw(0, env(AB)), env(AB), Ledger())
    assert not mixed.restricted


def test_the_proposal_as_target() -> None:
    """What is drawn is what is meant: weight 1, and the list says the same."""
    dist = LM("", max_tokens=2, temperature=0.5, target="proposal")
    want = reference(AB, 2, temperature=0.5)
    assert drawn_mass(dist, AB) == pytest.approx(want, abs=1e-12)
    assert listed(dist, AB) == pytest.approx(want, abs=1e-12)
    assert value_of(dist, AB, "a") == pytest.approx(want["a"])
    cut = LM("", max_tokens=2, top_k=1, target="proposal")
    assert listed(cut, AB) == pytest.approx({"ab": 1.0})
    assert drawn_mass(cut, AB) == pytest.approx({"ab": 1.0})
    masked = LM("", max_tokens=2, regex="b+", target="proposal")
    assert sum(listed(masked, AB).values()) == pytest.approx(1.0)
    for law in (cut, masked, LM("", temperature=0.5, mixture=0.5, target="proposal")):
        with pytest.raises(BadArgument, match="truncated or masked"):
            value_of(law, AB, "b")


def test_tempered_is_another_target() -> None:
    for t in (0.1, 0.7, 2.0):
        dist = LM("", max_tokens=2).tempered(t)
        want = reference(AB, 2, temperature=t)
        assert listed(dist, AB) == pytest.approx(want, abs=1e-12)
        assert drawn_mass(dist, AB) == pytest.approx(want, abs=1e-12)
        assert value_of(dist, AB, "ab") == pytest.approx(want["ab"])
        assert value_of(dist, AB, "a") == pytest.approx(want["a"])
        other = dist.proposed(temperature=1.0)
        assert drawn_mass(other, AB) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0, 3.0])
@pytest.mark.parametrize("limit", ["prefix", "eos"])
def test_power_is_over_the_whole_string(beta: float, limit: Any) -> None:
    dist = power(LM("", max_tokens=2, limit=limit), beta)
    want = reference(AB, 2, beta=beta, limit=limit)
    assert listed(dist, AB) == pytest.approx(want, abs=1e-12)
    assert drawn_mass(dist, AB) == pytest.approx(want, abs=1e-12)
    assert value_of(dist, AB, "ab") == pytest.approx(want["ab"])
    twice = power(power(LM("", max_tokens=2, limit=limit), 0.5), 2 * beta)
    assert listed(twice, AB) == pytest.approx(want, abs=1e-12)


def test_a_given_string_is_scored_by_its_canonical_tokens_and_every_way_to_end() -> None:
    def table(*ids: int) -> float:
        p = 1.0
        for i, token in enumerate(ids):
            p *= math.exp(RICH.table[RICH._row_of[tuple(ids[max(i - 1, 0) : i])], token])
        return p

    dist = LM("", max_tokens=4, stop="\n")
    ends = [table(2, 3), table(2, 7)]  # ab, then a newline or the end; .\n does not begin with one
    assert value_of(dist, RICH, "ab") == pytest.approx(sum(ends))
    assert value_of(LM("", max_tokens=4, stop="\n", end=False), RICH, "ab") == pytest.approx(
        table(2)
    )
    # a stop that no token begins with is spelled
    spelled = LM("", max_tokens=4, stop="\n\n")
    assert value_of(spelled, RICH, "ab") == pytest.approx(table(2, 7) + table(2, 3, 3))
    # … but not beyond the limit
    assert value_of(LM("", max_tokens=2, stop="\n\n"), RICH, "ab") == pytest.approx(table(2, 7))
    # at the limit a prefix law cuts
    assert value_of(LM("", max_tokens=1, stop="\n"), RICH, "ab") == pytest.approx(table(2))
    # and a forced end multiplies by all single tokens that end
    forced = LM("", max_tokens=1, stop="\n", limit="eos")
    assert value_of(forced, RICH, "ab") == pytest.approx(sum(ends))


def test_a_drawn_text_under_another_law() -> None:
    """Its own tokens are read anew: what could not have been drawn has probability zero."""
    short = LM("", max_tokens=1)
    cut = next(v for v, _ in short.support(env(AB)) if v == "a")
    assert cut.finish == "length"
    longer = LM("", max_tokens=3)
    assert value_of(longer, AB, cut) == pytest.approx(0.5 * 0.3)  # now it must end there
    assert value_of(LM("", max_tokens=3, end=False), AB, cut) == pytest.approx(0.5 * 0.3)
    whole = next(v for v, _ in longer.support(env(AB)) if v == "ab" and v.finish == "eos")
    step = short.score(whole, env(AB))
    assert step == NEG_INF  # too long
    assert LM("", max_tokens=3, regex="a+").score(whole, env(AB)) == NEG_INF
    assert value_of(LM("", max_tokens=3, regex="[ab]+"), AB, whole) == pytest.approx(
        0.5 * 0.6 * 0.4
    )
    # under another stop, or another vocabulary, it is a string like any other
    assert value_of(LM("", max_tokens=3, stop="x"), AB, whole) == pytest.approx(0.5 * 0.6 * 0.4)
    other = TableLM(["b", "a", "<eos>"], {(): [0.3, 0.5, 0.2]}, name="ab")
    assert value_of(longer, other, whole) == pytest.approx(0.5 * 0.3 * 0.2)


def test_a_constrained_text_without_its_end_is_completed_by_another_law() -> None:
    fixed = LM("", max_tokens=3, regex="ab")
    value = fixed.support(env(AB))[0][0]
    assert value.finish == "constraint" and str(value) == "ab"
    assert value_of(fixed, AB, value) == pytest.approx(0.5 * 0.6)
    assert value_of(LM("", max_tokens=3), AB, value) == pytest.approx(0.5 * 0.6 * 0.4)


def test_power_and_scale_compose_with_engines() -> None:
    @program
    def model() -> Any:
        with H.scale(scale=2.0):
            return sample("x", LM("", max_tokens=2))

    post = infer(model, engine=Enumerate(), lm=AB)
    want = {v: p**2 for v, p in reference(AB, 2).items()}
    z = sum(want.values())
    assert math.exp(post.log_evidence) == pytest.approx(z)
    assert dict(post.marginal()) == pytest.approx({v: p / z for v, p in want.items()})


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "value", "message"),
    [
        ({"stop": "b"}, "ab", "contains its own stop string, from position 1"),
        ({"max_tokens": 1}, "ab", "has 2 tokens, max_tokens is 1"),
        ({"max_tokens": 1, "limit": "kill"}, "a", "has 1 tokens, max_tokens is 1"),
        ({"max_tokens": 3, "regex": "aa"}, "ab", "leaves the regex 'aa' at position 1"),
        ({"max_tokens": 3, "regex": "aa"}, "a", "leaves the regex 'aa' at its end"),
        ({"max_tokens": 3}, "xyz", "spell this text"),
        ({"max_tokens": 3}, 3, "scores text, got int"),
        ({"max_tokens": 3}, None, "scores text, got NoneType"),
    ],
)
def test_values_outside_the_support_say_where(options: Any, value: Any, message: str) -> None:
    with pytest.raises(UnsupportedValue, match=message) as raised:
        LM("", **options).score(value, env(AB))
    assert isinstance(raised.value, ValueError) and "fix:" in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": None},
        {"max_tokens": 2.5},
        {"max_tokens": True},
        {"max_tokens": [3]},
        {"temperature": 0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_p": math.nan},
        {"top_p": "x"},
        {"top_p": [0.5]},
        {"top_k": -1},
        {"top_k": 2.0},
        {"top_k": True},
        {"mixture": -0.1},
        {"mixture": 1.1},
        {"mixture": "x"},
        {"limit": "cut"},
        {"target": "posterior"},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": [3]},
        {"regex": 5},
    ],
    ids=repr,
)
def test_settings_out_of_range_are_refused_at_once(options: Any) -> None:
    for make in (LM, Chat):
        with pytest.raises(BadArgument) as raised:
            make("p", **options)
        assert "fix:" in str(raised.value)


def test_equal_numbers_of_another_type_are_still_checked() -> None:
    """Settings are cached by value, and True equals 1."""
    LM("p", max_tokens=1)
    with pytest.raises(BadArgument):
        LM("p", max_tokens=True)


def test_temperature_zero_says_what_to_use_instead() -> None:
    with pytest.raises(BadArgument, match="has no density") as raised:
        LM("p", temperature=0.0)
    assert "engine=Greedy()" in str(raised.value)
    with pytest.raises(BadArgument, match="has no density"):
        LM("p").tempered(0.0)
    with pytest.raises(BadArgument, match="has no density"):
        LM("p").proposed(temperature=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LM(3),  # type: ignore[arg-type]
        lambda: LM(None),  # type: ignore[arg-type]
        lambda: Chat([]),
        lambda: Chat([1]),  # type: ignore[list-item]
        lambda: Chat([("user",)]),  # type: ignore[list-item]
        lambda: Chat([{"role": "user"}]),
        lambda: Chat([("user", 3)]),  # type: ignore[list-item]
        lambda: Chat(["user"]),  # type: ignore[list-item]
        lambda: LM("p").tempered("x"),  # type: ignore[arg-type]
        lambda: LM("p").proposed(heat=1),
        lambda: power(LM("p"), math.nan),
        lambda: power(LM("p"), "2"),  # type: ignore[arg-type]
        lambda: power(Uniform(["a"]), 2.0),  # type: ignore[arg-type]
        lambda: Choice("p", []),
        lambda: Choice("p", "yes"),
        lambda: Choice("p", ["a", "a"]),
        lambda: Choice("p", ["a", ""]),
        lambda: Choice("p", ["a", 3]),  # type: ignore[list-item]
        lambda: Choice("p", {"x": ["a", "b"], "y": "a"}),
        lambda: Choice("p", ["a", "b"], end=True, stop=""),
        lambda: Choice([], ["a", "b"]),
    ],
)
def test_wrong_arguments_are_refused_with_a_fix(make: Any) -> None:
    with pytest.raises(BadArgument) as raised:
        make()
    assert "fix:" in str(raised.value)


def test_a_context_that_is_too_long_is_refused_before_anything_is_computed() -> None:
    small = TableLM(["a", "b", "<eos>"], {(): [0.4, 0.4, 0.2]}, name="small")
    small.max_context = 12
    before = small.usage.passes
    thought = Text("a" * 9, address="thought")
    with pytest.raises(ContextOverflow, match="need 15 tokens, the model takes 12") as raised:
        LM("b" + thought, max_tokens=5).draw(0, env(small))
    assert "longest part: site 'thought' (9 characters): 'aaaaaaaaa'" in str(raised.value)
    with pytest.raises(ContextOverflow):
        LM("a" * 10, max_tokens=5).score("bbb", env(small))
    with pytest.raises(ContextOverflow):
        Choice("a" * 12, ["a", "b"]).draw(0, env(small))
    with pytest.raises(ContextOverflow, match="message 1 .user, 12 characters."):
        Chat([("system", "a"), ("user", "b" * 12)], max_tokens=1).draw(0, env(small))
    assert small.usage.passes == before
    LM("a" * 7, max_tokens=5).draw(0, env(small))  # it just fits


def test_capabilities_are_asked_before_anything_is_computed() -> None:
    poor = TableLM(["a", "b", "<eos>"], {(): [0.4, 0.4, 0.2]}, name="poor")
    poor.capabilities = Capabilities(
        masks=False, full_rows=False, scores_text=False, empty_context=True
    )
    with pytest.raises(CapabilityError, match="masks"):
        LM("", regex="a").draw(0, env(poor))
    with pytest.raises(CapabilityError, match="scores_text"):
        LM("").score("a", env(poor))
    with pytest.raises(CapabilityError, match="full_rows"):
        LM("").support(env(poor))
    with pytest.raises(CapabilityError, match="scores_text"):
        Choice("", ["a", "b"]).draw(0, env(poor))
    assert poor.usage.passes == 0


def test_without_a_model_it_says_how_to_give_one() -> None:
    with pytest.raises(NoLanguageModel, match="none is given"):
        LM("p").draw(0, Env())
    with pytest.raises(CapabilityError, match="no language model is called 'judge'"):
        LM("p", lm="judge").draw(0, env(AB))
    named = Env({"default": AB, "judge": EURO})
    assert LM("", lm="judge", max_tokens=1).support(named)
    given = LM("", lm=AB, max_tokens=1).support(Env())
    assert len(given) == 3


def test_an_empty_prompt_needs_a_model_that_starts_from_nothing() -> None:
    strict = TableLM(["a", "<eos>"], {(): [0.5, 0.5]}, name="strict")
    strict.capabilities = Capabilities()
    with pytest.raises(BadArgument, match="the prompt is empty"):
        LM("").draw(0, env(strict))
    LM("a").draw(0, env(strict))


def test_a_large_vocabulary_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = TableLM([chr(i) for i in range(300, 600)], {(): [1 / 300] * 300}, order=1, name="wide")
    with pytest.raises(NotFinite, match="too many to list"):
        LM("", max_tokens=2).support(env(wide))
    monkeypatch.setattr("lmppl.strings.MAX_SUPPORT", 1000)
    with pytest.raises(NotFinite, match="more than 1,000 strings"):
        LM("", max_tokens=30).support(env(AB))


# -- proposals ----------------------------------------------------------------------------------


def evidence(program_: Any, lm: Any, n: int = 4000) -> float:
    return math.exp(infer(program_, engine=Importance(n), lm=lm, seed=0).log_evidence)


def test_a_language_model_proposes_token_sequences_for_another() -> None:
    """Every tokenisation counts once: a canonical score would count 'ab' twice."""
    lm = TableLM(["a", "b", "ab", "<eos>"], {(): [0.25] * 4})

    @program
    def model() -> Any:
        return sample("x", LM("", max_tokens=3), proposal=LM("", max_tokens=3, regex="a?b?"))

    reached = 0.25 + 2 * 0.25**2 + 0.25**2 + 0.25**3
    # weights are below 1, so five standard errors are at most 0.04
    assert evidence(model, lm) == pytest.approx(reached, abs=0.04)


def test_a_proposal_that_does_not_fit_is_refused() -> None:
    other = TableLM(["a", "c", "<eos>"], {(): [0.5, 0.25, 0.25]}, name="other")
    models = {"default": AB, "other": other}

    def run(target: Any, proposal: Any) -> None:
        for call in (
            lambda: infer(model, engine=Importance(2), lm=models),
            lambda: H.using(model, models)(),
        ):

            @program
            def model() -> Any:
                return sample("x", target, proposal=proposal)

            call()

    with pytest.raises(TokenizerMismatch, match="first at id 1: 'ab': b'b', 'other': b'c'"):
        run(LM(""), LM("", lm="other"))
    with pytest.raises(BadArgument, match="stop at different texts"):
        run(LM("", stop="a"), LM("", stop="b"))
    with pytest.raises(
        BadArgument, match="proposes token sequences, and Choice scores whole texts"
    ):
        run(Choice("", ["a", "b"]), LM(""))
    with pytest.raises(BadArgument, match="proposes token sequences, and Uniform scores"):
        run(Uniform(["a", "b"]), Mixture([LM(""), LM("a")]))
    run(LM("", max_tokens=2), Uniform(["a", "b"]))
    run(LM("", max_tokens=2), Choice("", ["a", "b"]))
    run(Choice("", ["a", "b"]), Uniform(["a", "b"]))


def test_what_the_target_cannot_have_has_weight_zero() -> None:
    @program
    def model() -> Any:
        return sample("x", Choice("", ["a", "b"]), proposal=Uniform(["a", "b", "z"]))

    post = infer(model, engine=Importance(3000), lm=AB, seed=0)
    assert post.marginal()["a"] == pytest.approx(0.5 / 0.8, abs=0.06)
    assert post.log_evidence == pytest.approx(0.0, abs=0.1)
    assert post.deaths["x"] > 800


def test_an_exact_proposal_has_no_variance() -> None:
    @program
    def model() -> Any:
        x = sample("x", LM("", max_tokens=2), proposal=LM("b", max_tokens=2).tempered(1.0))
        return str(x)

    @program
    def same() -> Any:
        return sample("x", LM("b", max_tokens=2), proposal=LM("b", max_tokens=2))

    assert evidence(same, AB, 50) == pytest.approx(1.0, abs=1e-12)
    assert evidence(model, AB, 4000) == pytest.approx(1.0, abs=0.1)


# -- Choice and Chat ----------------------------------------------------------------------------


def row(lm: TableLM, *context: int) -> Any:
    return np.exp(lm.table[lm._row_of[context[-lm.order :]]])


def test_choice_is_the_model_conditioned_on_the_options() -> None:
    p = row(AB)
    assert value_of(Choice("", ["a", "b"]), AB, "a") == pytest.approx(p[0] / (p[0] + p[1]))
    after_a = row(AB, 0)
    got = value_of(Choice("x a", ["a", "b"]), AB, "b")
    assert got == pytest.approx(after_a[1] / (after_a[0] + after_a[1]))


def test_choice_sums_over_surface_forms() -> None:
    p, pa = row(AB), row(AB, 0)
    dist = Choice("", {"long": ["aa", "ab"], "short": "b"})
    long = p[0] * (pa[0] + pa[1])
    assert value_of(dist, AB, "long") == pytest.approx(long / (long + p[1]))
    assert {v for v, _ in run_now(dist.support(env(AB)), env(AB), Ledger())} == {"long", "short"}
    numbers = Choice("", {1: "a", 2: "b"})
    assert value_of(numbers, AB, 2) == pytest.approx(p[1] / (p[0] + p[1]))


def test_choice_with_an_end() -> None:
    p, pa, pb = row(AB), row(AB, 0), row(AB, 1)
    dist = Choice("", ["a", "ab"], end=True)
    weights = [p[0] * pa[2], p[0] * pa[1] * pb[2]]
    assert value_of(dist, AB, "a") == pytest.approx(weights[0] / sum(weights))
    # "bb" is spelled by two tokens; after "ab" it would end the text one character earlier
    stopped = Choice("", ["a", "ab"], end=True, stop="bb")
    spelled = [p[0] * (pa[2] + pa[1] * pb[1]), p[0] * pa[1] * pb[2]]
    assert value_of(stopped, AB, "ab") == pytest.approx(spelled[1] / sum(spelled))


def test_overlapping_options_are_refused() -> None:
    with pytest.raises(BadArgument, match="option 'a' is the beginning of option 'ab'") as raised:
        Choice("", ["a", "ab"]).draw(0, env(AB))
    assert "end=True" in str(raised.value)
    merged = TableLM(["a", "b", "ab", "<eos>"], {(): [0.4, 0.3, 0.2, 0.1]})
    assert value_of(Choice("", ["a", "ab"]), merged, "ab") == pytest.approx(0.2 / 0.6)  # other ids


def test_choice_refuses_what_is_no_option() -> None:
    with pytest.raises(UnsupportedValue, match="none of the options"):
        Choice("", ["a", "b"]).score("c", env(AB))
    with pytest.raises(UnsupportedValue, match="spell"):
        Choice("", ["a", " b"]).draw(0, env(AB))


def test_impossible_options_have_weight_zero() -> None:
    lm = TableLM(["a", "b", "c", "<eos>"], {(): [0.0, 0.0, 1.0, 0.0]})
    d: Draw = run_now(Choice("", ["a", "b"]).draw(0, env(lm)), env(lm), Ledger())
    assert d.logp == NEG_INF
    assert run_now(Choice("", ["a", "b"]).support(env(lm)), env(lm), Ledger()) == []


def test_choice_draws_every_option() -> None:
    dist = Choice("", ["a", "b"])
    drawn = [run_now(dist.draw(fold(0, i), env(AB)), env(AB), Ledger()) for i in range(100)]
    assert {str(d.value) for d in drawn} == {"a", "b"}
    assert all(d.logp == d.logq and type(d.value) is Text for d in drawn)


def test_chat_reads_its_messages_in_order() -> None:
    assert Chat("ab").context(AB) == (0, 1)
    assert Chat([("user", "a"), {"role": "assistant", "content": "b"}]).context(AB) == (0, 1)
    assert listed(Chat("a", max_tokens=1), AB) == pytest.approx({"a": 0.1, "b": 0.6, "": 0.3})
    chat_choice = Choice([("user", "a")], ["a", "b"])
    assert value_of(chat_choice, AB, "b") == pytest.approx(0.6 / 0.7)
    assert "Chat" in repr(Chat("a")) and "LM" in repr(LM("a")) and "Choice" in repr(chat_choice)


# -- in programs --------------------------------------------------------------------------------


def test_the_value_of_a_site_knows_where_it_came_from() -> None:
    @program
    def model() -> Any:
        first = sample("first", LM("", max_tokens=2))
        second = sample("second", LM("b" + first, max_tokens=1))
        return first, second

    plain: tuple[Any, Any] = H.using(H.seed(model, 0), AB)()
    engine: tuple[Any, Any] = infer(model, engine=SMC(2), lm=AB).traces[0].result
    for first, second in (plain, engine):
        assert type(first) is Text and first.address == "first" and second.address == "second"
        ids, logps = first.token_ids, first.token_logprobs
        assert ids is not None and logps is not None and len(ids) == len(logps) >= len(first)
        assert first.log_prob == pytest.approx(float(logps.sum()))


def test_an_observed_string_weighs_its_probability() -> None:
    @program
    def model() -> Any:
        x = sample("x", LM("", max_tokens=1))
        observe("y", LM(x, max_tokens=1), "b")
        return str(x)

    post = infer(model, engine=Enumerate(), lm=AB)
    joint = {"a": 0.5 * 0.6, "b": 0.3 * 0.3, "": 0.2 * 0.3}
    assert math.exp(post.log_evidence) == pytest.approx(sum(joint.values()))
    assert post.marginal()["a"] == pytest.approx(joint["a"] / sum(joint.values()))


def test_a_model_named_in_a_program_is_loaded_once(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "toy.json"
    file.write_text('{"tokens": ["a", "<eos>"], "table": {"": [0.5, 0.5]}}')
    name = f"table:{file}"

    @program
    def model() -> Any:
        return str(sample("x", LM("", max_tokens=1, lm=name)))

    reads: list[Any] = []

    def reading(path: Any) -> TableLM:
        reads.append(path)
        return TableLM(["a", "<eos>"], {(): [0.5, 0.5]})

    monkeypatch.setattr(TableLM, "from_json", reading)
    infer(model, engine=Importance(20))
    model()
    infer(model, engine=SMC(4))
    assert len(reads) == 1


def test_a_job_without_a_key_has_that_of_its_particle_and_site() -> None:
    """`keys_of` a batch, mixed sites and given keys among them, are the keys one by one."""
    env = Env(models={"default": AB})
    for sites in (("x", "x", "x"), ("x", "y", "x")):
        jobs = [LM("a", max_tokens=1).ask(env) for _ in sites]
        for n, (job, site) in enumerate(zip(jobs, sites, strict=True)):
            job.root, job.site = fold(7, n), site
        expected = [fold(job.root, site) for job, site in zip(jobs, sites, strict=True)]
        assert keys_of(jobs).tolist() == expected
        assert [job.key for job in jobs] == keys_of(jobs).tolist() == expected
    given = LM("a", max_tokens=1).draw(5, env)
    assert isinstance(given, Generate)
    assert keys_of([jobs[0], given]).tolist() == [jobs[0].key, 5]
