"""Token-level potentials: their laws, their algebra, byte borders, what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lmppl import LM, Chat
from lmppl.batches import run_now
from lmppl.errors import BadArgument, CapabilityError, LmpplError, UnsupportedValue
from lmppl.grammars import Grammar
from lmppl.jobs import Env
from lmppl.ledger import Ledger
from lmppl.lm.base import LanguageModel
from lmppl.lm.table import TableLM
from lmppl.testing import assert_potential_laws, check_distribution
from lmppl.testing.enumerator import LawBroken
from lmppl.token_potentials import (
    AWRS,
    BytePotential,
    Canonical,
    Exact,
    Lookahead,
    Matches,
    Normalized,
    OnText,
    StartsWith,
    TokenPotential,
    TokenState,
    TopK,
    as_potential,
    healed,
)
from lmppl.weights import NEG_INF

WORDS: list[str | bytes] = ["a", "b", "ab", "é", b"\xc3", b"\xa9", "<eos>"]
TINY = TableLM.random(["a", "b", "ab", "<eos>"], seed=1)
BYTES = TableLM.random(WORDS, seed=2)


def no_bb(text: str) -> bool:
    return "bb" not in text


def few_a(text: str) -> float:
    return -0.7 * text.count("a")


class Falling(TokenPotential):
    """Half the weight for every token."""

    def log_prefix(self, ids: Sequence[int]) -> float:
        return -math.log(2) * len(ids)

    log_complete = log_prefix


class Raw(BytePotential):
    """Texts of whole characters."""

    def complete_bytes(self, raw: bytes) -> float:
        try:
            raw.decode()
        except UnicodeDecodeError:
            return NEG_INF
        return 0.0


POTENTIALS: dict[str, Any] = {
    "function": no_bb,
    "weights": OnText(few_a),
    "with prefix": OnText(few_a, few_a),
    "forbids": OnText(no_bb, no_bb),
    "tokens": Falling(),
    "bytes": Raw(),
    "regex": Matches("a*b?a"),
    "choices": Matches(choices=["ab", "b"]),
    "json": Matches(json_schema={"enum": ["a", "b"]}),
    "lark": Matches(grammar='start: "a" start "b" | "ab"'),
    "canonical": Canonical(),
    "beginning": StartsWith("ab"),
    "product": OnText(few_a, few_a) * Matches("(a|b)+") * Canonical(),
    "tempered": (OnText(few_a, few_a) * Matches("(a|b)+")) ** 0.3,
    "look-ahead": Lookahead(OnText(few_a, few_a)),
    "look-ahead at a grammar": Lookahead(Matches("a*b")),
    "normalised": Normalized(OnText(few_a, few_a) * OnText(no_bb, no_bb)),
    "normalised grammar": Normalized(Matches("a*b?")),
}


@pytest.mark.parametrize("name", POTENTIALS)
@pytest.mark.parametrize("stop", [(), ("b",), ("ab", "ba")])
def test_laws(name: str, stop: tuple[str, ...]) -> None:
    assert assert_potential_laws(POTENTIALS[name], TINY, stop=stop) == 40


@pytest.mark.parametrize("name", POTENTIALS)
def test_laws_inside_characters(name: str) -> None:
    assert assert_potential_laws(POTENTIALS[name], BYTES, max_tokens=2) == 43


class Late(TokenPotential):
    """Mutant: a beginning of weight zero that recovers."""

    def log_prefix(self, ids: Sequence[int]) -> float:
        return NEG_INF if len(ids) == 1 else 0.0

    def log_complete(self, ids: Sequence[int]) -> float:
        return 0.0


class Lost(TokenPotential):
    """Mutant: weight at the end where the beginning has none."""

    def log_prefix(self, ids: Sequence[int]) -> float:
        return NEG_INF if 0 in ids else 0.0

    def log_complete(self, ids: Sequence[int]) -> float:
        return 0.0


class Counter(TokenState):
    """Mutant: a state that changes when it is advanced, or weighs otherwise at once."""

    def __init__(self, lm: LanguageModel, how: str) -> None:
        self.lm, self.how, self.n = lm, how, 0

    @property
    def log_prefix(self) -> float:
        return -1.0 * self.n

    @property
    def log_complete(self) -> float:
        return math.nan if self.how == "nan" else -1.0 * self.n

    def advance(self, token: int) -> TokenState:
        new = self if self.how == "mutable" else Counter(self.lm, self.how)
        new.n = self.n + 1
        return new

    def log_next(self, tokens: Sequence[int] | None = None) -> Any:
        row = super().log_next(tokens)
        if self.how == "vectorised" and tokens is None:
            row[0] += 0.5
        if self.how == "few" and tokens is not None:
            row[0] += 0.5
        if self.how == "shape":
            row = np.append(row, 0.0)
        return row


class Counting(TokenPotential):
    def __init__(self, how: str) -> None:
        self.how = how

    def start(self, lm: LanguageModel, stop: tuple[str, ...] = ()) -> TokenState:
        return Counter(lm, self.how)


class NotCancelled(Lookahead):
    """Mutant: a guide that stays in the target."""

    def start(self, lm: LanguageModel, stop: tuple[str, ...] = ()) -> TokenState:
        return self.potential.start(lm, stop)


class Unnormalised(Normalized):
    """Mutant: its weights do not add up to 1."""

    def start(self, lm: LanguageModel, stop: tuple[str, ...] = ()) -> TokenState:
        return self.potential.start(lm, stop)


@pytest.mark.parametrize(
    "wrong",
    [
        Late(),
        Lost(),
        *map(Counting, ("mutable", "vectorised", "few", "shape", "nan")),
        NotCancelled(OnText(few_a, few_a)),
        Unnormalised(OnText(few_a, few_a)),
    ],
    ids=lambda p: getattr(p, "how", type(p).__name__),
)
def test_mutants_are_rejected(wrong: TokenPotential) -> None:
    with pytest.raises(LawBroken):
        assert_potential_laws(wrong, TINY)


def test_counting_without_a_mistake_is_accepted() -> None:
    assert assert_potential_laws(Counting("right"), TINY) == 40


def weights(potential: TokenPotential, ids: Sequence[int]) -> tuple[float, float]:
    state = potential.start(TINY)
    for v in ids:
        state = state.advance(v)
    return state.log_prefix, state.log_complete


def test_products_and_powers() -> None:
    p, q = OnText(few_a, few_a), Falling()
    for ids in ((), (0,), (0, 1), (2, 0, 1)):
        a, b = weights(p, ids), weights(q, ids)
        assert weights(p * q, ids) == pytest.approx((a[0] + b[0], a[1] + b[1]))
        assert weights(p * q, ids) == pytest.approx(weights(q * p, ids))
        assert weights((p * q) * p, ids) == pytest.approx(weights(p * (q * p), ids))
        assert weights(p**2.0, ids) == pytest.approx(weights(p * p, ids))
        assert weights(no_bb * p, ids) == pytest.approx(weights(p * no_bb, ids))


def test_a_token_is_the_same_as_its_bytes() -> None:
    p = OnText(few_a, few_a) * Matches("a*b*")
    assert weights(p, (2,)) == weights(p, (0, 1))


def test_half_characters_wait() -> None:
    seen: list[str] = []

    def beginning(text: str) -> bool:
        seen.append(text)
        return True

    p = OnText(lambda text: True, beginning)
    state = p.start(BYTES).advance(0).advance(4)
    assert state.log_prefix == 0.0 and seen[-1] == "a"
    assert state.advance(5).log_prefix == 0.0 and seen[-1] == "aé"


def test_impossible_bytes_are_not_continued() -> None:
    """The trie stops at the first impossible byte."""
    asked: list[bytes] = []

    class NoA(BytePotential):
        def prefix_bytes(self, raw: bytes) -> float:
            asked.append(raw)
            return NEG_INF if b"a" in raw else 0.0

        def complete_bytes(self, raw: bytes) -> float:
            return self.prefix_bytes(raw)

    row = NoA().start(TINY).log_next()
    assert row.tolist() == [NEG_INF, 0.0, NEG_INF, 0.0]
    assert b"ab" not in asked


def test_a_stop_may_have_begun() -> None:
    """Before the stop "ba" the text "a" is allowed, though "ab" is not one."""
    p = Matches("a+") * OnText(lambda text: set(text) <= {"a"}, lambda text: set(text) <= {"a"})
    state = OnText(p.factors[1].complete, p.factors[1].prefix).start(TINY, ("ba",))  # type: ignore[attr-defined]
    half = state.advance(0).advance(1)
    assert half.log_prefix == 0.0
    assert half.advance(0).log_complete == 0.0
    assert half.advance(1).log_prefix == NEG_INF


def test_canonical_sequences_are_those_of_the_tokenizer() -> None:
    assert weights(Canonical(), (2,)) == (0.0, 0.0)
    assert weights(Canonical(), (0, 1)) == (NEG_INF, NEG_INF)
    assert weights(Canonical(), (1, 0)) == (0.0, 0.0)
    assert weights(Canonical(), (0,)) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["weights", "product", "canonical", "tempered", "look-ahead"])
@pytest.mark.parametrize("limit", ["prefix", "eos", "kill"])
@pytest.mark.parametrize("stop", [None, "b"])
def test_as_a_distribution(name: str, limit: Any, stop: str | None) -> None:
    """Support, draw and score agree."""
    law = LM("", potential=POTENTIALS[name], max_tokens=2, limit=limit, stop=stop)
    check_distribution(law, lm=TINY, mass=None)


def test_tokens_of_a_stop_are_weighed_one_by_one() -> None:
    """A token-level potential sees the token that ends the string: score must ask which it was."""
    lm = TableLM.random(["a", "b", "bb", "<eos>"], seed=4)

    class Likes(TokenPotential):
        def log_complete(self, ids: Sequence[int]) -> float:
            return 1.0 * (2 in ids)

    law = LM("", potential=Likes(), stop="b", max_tokens=2)
    env = Env({"default": lm})
    found = run_now(law.score("a", env), env, Ledger())
    p = np.exp(lm.open([()]).log_probs()[0][0])
    row = np.exp(lm.open([(0,)]).log_probs()[0])
    assert math.exp(found) == pytest.approx(p * (row[1] + math.e * row[2] + row[3]))


def test_text_of_weight_zero() -> None:
    env = Env({"default": TINY})
    law = LM("", potential=no_bb, max_tokens=3)
    assert run_now(law.score("bb", env), env, Ledger()) == NEG_INF
    with pytest.raises(UnsupportedValue, match="leaves the choices"):
        run_now(LM("", choices=["a"], max_tokens=3).score("b", env), env, Ledger())


def test_healing_gives_the_cut_back() -> None:
    """After "h:" the token "://" is possible again, with the probability that it had after "h"."""
    lm = TableLM.random(["h", ":", "://", "/", "<eos>"], seed=7)
    prompt, begun = healed(lm, "h:")
    assert (prompt, begun) == ("h", ":")
    env = Env({"default": lm})
    law = LM(prompt, potential=StartsWith(begun), max_tokens=1)
    found = {str(v): math.exp(p) for v, p in run_now(law.support(env), env, Ledger())}
    row = np.exp(lm.open([lm.context("h")]).log_probs()[0])
    assert found == pytest.approx({":": row[1], "://": row[2]})


def test_healing_refuses_to_eat_the_prompt() -> None:
    lm = TableLM.random(["h", ":", "<eos>"], seed=7)
    assert healed(lm, "hh:h", 2) == ("hh", ":h")
    for tokens in (0, 4, True):
        with pytest.raises(BadArgument):
            healed(lm, "hh:h", tokens)


# -- the arguments of LM --------------------------------------------------------------------------


def texts(law: Any, lm: LanguageModel) -> set[str]:
    env = Env({"default": lm})
    return {str(v) for v, _ in run_now(law.support(env), env, Ledger())}


CHARS = TableLM.random([*'{}": ,[]ab12', "<eos>"], seed=5)


def test_choices() -> None:
    law = LM("", choices=["a", "ab", "1 2"], max_tokens=4)
    assert texts(law, CHARS) == {"a", "ab", "1 2"}
    assert texts(Chat("a", choices=["b", "["], max_tokens=4), CHARS) == {"b", "["}


@pytest.mark.parametrize(
    "text", [".", "a+", "(", "\\", "a|b", "[x]", "{2}", "$^", "a\nb", "#", "&"]
)
def test_choices_are_literal(text: str) -> None:
    lm = TableLM.random([*sorted(set(text + "ax")), "<eos>"], seed=1)
    assert texts(LM("", choices=[text], max_tokens=len(text) + 1), lm) == {text}


def test_a_grammar_that_is_not_regular() -> None:
    law = LM("", grammar='start: "a" start "b" | "1"', max_tokens=5)
    assert texts(law, CHARS) == {"1", "a1b", "aa1bb"}
    stopped = LM("", grammar='start: "a" start "b" | "1"', stop="2", max_tokens=4)
    assert texts(stopped, CHARS) == {"1", "a1b"}


class Schema:
    """As pydantic's classes answer."""

    @staticmethod
    def model_json_schema() -> dict[str, Any]:
        return {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 1}


@pytest.mark.parametrize(
    "schema",
    [Schema, Schema.model_json_schema(), '{"type":"array","items":{"enum":[1,2]},"maxItems":1}'],
    ids=["class", "dict", "text"],
)
def test_json_schema(schema: Any) -> None:
    assert texts(LM("", json_schema=schema, max_tokens=3), CHARS) == {"[]", "[1]", "[2]"}


def test_json_is_spaced_as_python_does_it() -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    assert texts(LM("", json_schema=schema, max_tokens=8), CHARS) == {'{"a": 1}'}


def test_grammars_are_compared_by_what_they_say() -> None:
    assert Grammar.json_schema({"type": "integer"}) == Grammar.json_schema('{"type": "integer"}')
    one, two = (LM("a", choices=c) for c in (["a"], ["b"]))
    assert one.fingerprint != two.fingerprint
    assert LM("a", choices=["a"]).fingerprint == one.fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "a", "choices": ["b"]}, "one of regex and choices"),
        ({"choices": []}, "non-empty"),
        ({"choices": "ab"}, "choices"),
        ({"choices": ["a", 1]}, "non-empty texts"),
        ({"json_schema": 3}, "json_schema must be a mapping"),
        ({"json_schema": "{"}, "not JSON"),
        ({"json_schema": {"enum": {1, 2}}}, "not JSON"),
        ({"grammar": 3}, "grammar must be text"),
        ({"potential": 3}, "is no potential"),
        ({"sampler": "awrs"}, "sampler must be"),
        ({"sampler": AWRS}, "sampler must be"),
        ({"potential": no_bb, "target": "proposal"}, "target"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        LM("a", **options)


@pytest.mark.parametrize(
    "options",
    [{"regex": "(a"}, {"grammar": "start: x"}, {"json_schema": {"type": "nonsense"}}],
    ids=["regex", "grammar", "json_schema"],
)
def test_invalid_grammars_say_which(options: dict[str, Any]) -> None:
    with pytest.raises(LmpplError, match=f"this {next(iter(options))} is not valid"):
        LM("a", **options).law(CHARS)


def test_refused_samplers_and_powers() -> None:
    for make in (lambda: AWRS(-1), lambda: TopK(0), lambda: Falling() ** 0.0):
        with pytest.raises(BadArgument):
            make()
    with pytest.raises(BadArgument):
        as_potential("a")


def test_a_model_without_rows_is_refused() -> None:
    lm = TableLM.random(["a", "<eos>"], seed=0)
    lm.capabilities = type(lm.capabilities)(full_rows=False)
    with pytest.raises(CapabilityError, match="potential"):
        LM("a", potential=Falling()).law(lm)


def test_nan_names_the_potential() -> None:
    with pytest.raises(LmpplError, match="OnText"):
        assert_potential_laws(OnText(lambda text: math.nan), TINY)


def test_exact_is_the_default() -> None:
    assert LM("a").fingerprint != LM("a", potential=Falling()).fingerprint
    assert Exact() == Exact()
