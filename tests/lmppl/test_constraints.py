"""Regular languages over tokens, against Python's `re` on every short byte string."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

import lmppl.constraints
from lmppl import LM, program, sample
from lmppl.constraints import Constraint
from lmppl.errors import ConstraintError
from lmppl.inference import SMC, Enumerate, Importance, infer
from lmppl.lm.table import TableLM

TOKENS: list[str | bytes] = [
    "a", "b", "ab", "ba", "abb", "\n", "b\n", "€".encode()[:1], "€".encode()[1:], b"a", "<eos>",
]  # fmt: skip
LM_ = TableLM.random(TOKENS, seed=1)
EOS = len(TOKENS) - 1
DEPTH = 4

LANGUAGES = [
    "a",
    "ab",
    "a*",
    "a+b?",
    "(ab)*",
    "(a|ab)(b|bb)",
    "a{2,3}",
    "abb",
    "[ab]*b",
    "€",
    "a?€a?",
    "",
    "(a|€)+",
]


def prefixes(regex: str) -> dict[bytes, bool]:
    """Every byte string that begins a match of up to 8 bytes, and whether it is one."""
    matches = set()
    pieces = [b"a", b"b", "€".encode(), b"\n"]
    for n in range(7):
        for parts in itertools.product(pieces, repeat=n):
            word = b"".join(parts)
            if re.fullmatch(regex.encode(), word):
                matches.add(word)
    return {w[:i]: w[:i] in matches for w in matches for i in range(len(w) + 1)}


@pytest.mark.parametrize("regex", LANGUAGES)
def test_masks_allow_every_tokenisation_and_nothing_else(regex: str) -> None:
    """A token is allowed exactly if it leads to the beginning of a match; the end where it is one.

    So tokens that reach past the language, and all but the last token of one, are told apart.
    """
    known = prefixes(regex)
    states = [(b"", Constraint(LM_, regex).start())]
    seen = 0
    for _ in range(DEPTH):
        grown = []
        for text, state in states:
            assert state.accepting == known[text]
            for token in range(EOS):
                longer = text + LM_.token_bytes(token)
                if len(longer) <= 5:  # beyond, the oracle's list is cut
                    assert bool(state.mask[token]) == (longer in known), (text, TOKENS[token])
                    seen += 1
                    if state.mask[token]:
                        grown.append((longer, state.advance(token)))
            assert bool(state.mask[EOS]) == known[text]
        states = grown[:60]
    assert seen > 5


@pytest.mark.parametrize("stop", ["\n", "b", "b\n", "€"])
def test_a_stop_follows_the_language(stop: str) -> None:
    constraint = Constraint(LM_, "a+", (stop,))
    for n in (1, 2, 3):
        state = constraint.start()
        assert not state.accepting and not state.mask[EOS]
        for _ in range(n):
            state = state.advance(0)
        for token in LM_.encode(stop):
            assert state.mask[token]
            state = state.advance(token)
        assert state.accepting


@pytest.mark.parametrize(
    "stop",
    ["\n", "\n\n", "\t", " ", ".", "*", "(", ")", "[x]", "{", "}", "|", "^", "$", "\\", "\\n", "#",
     "&", "~", "-", "<", ">", "<|end|>", "/", '"', "'", "é", "€", "漢", "👍", "a", "0", "_", "\r\n"],
)  # fmt: skip
def test_any_text_can_be_a_stop(stop: str) -> None:
    """Terminators are literal, whatever they mean in a regex."""
    lm = TableLM([bytes([i]) for i in range(1, 256)], {(): [1 / 255] * 255}, order=1)
    state = Constraint(lm, "x[0-9]", (stop,)).start()
    for byte in b"x7" + stop.encode():
        assert state.mask[byte - 1], bytes([byte])
        state = state.advance(byte - 1)
    assert state.accepting
    other = Constraint(lm, "x[0-9]", (stop,)).start().advance(b"x"[0] - 1)
    assert not other.mask[b"x"[0] - 1]


def test_several_stops() -> None:
    state = Constraint(LM_, "a", ("b", "\n")).start().advance(0)
    assert {int(i) for i in np.flatnonzero(state.mask)} == {
        1,
        5,
    }  # "b\n" ends with more than a stop


def test_two_tokens_with_one_surface_are_both_allowed() -> None:
    state = Constraint(LM_, "ab").start()
    assert state.mask[0] and state.mask[9] and state.mask[2] and not state.mask[1]
    assert state.advance(0) is state.advance(9)  # one state per byte prefix


def test_half_characters_step_through_a_character() -> None:
    state = Constraint(LM_, "€a").start()
    assert np.flatnonzero(state.mask).tolist() == [7]
    inside = state.advance(7)
    assert np.flatnonzero(inside.mask).tolist() == [8] and not inside.accepting
    assert inside.advance(8).mask[0]


def test_finished_is_when_nothing_longer_matches() -> None:
    done = Constraint(LM_, "ab").start().advance(2)
    assert done.accepting and done.finished
    open_ended = Constraint(LM_, "ab*").start().advance(2)
    assert open_ended.accepting and not open_ended.finished


def test_masks_are_shared_and_read_only() -> None:
    constraint = Constraint(LM_, "a*")
    state = constraint.start()
    assert state.mask is state.mask
    with pytest.raises(ValueError, match="read-only"):
        state.mask[0] = False
    assert constraint.start() is state


def test_a_token_outside_the_language_is_an_error() -> None:
    state = Constraint(LM_, "ab").start()
    for token in (1, 5, EOS):
        with pytest.raises(ConstraintError, match="does not continue"):
            state.advance(token)
    assert state.mask[0]  # the state is as before


def test_forgotten_states_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmppl.constraints, "KEEP_STATES", 3)
    constraint = Constraint(LM_, "[ab]*")
    state = constraint.start()
    for _ in range(5):
        for token in (0, 1):
            again = constraint.start().advance(token).advance(0)
            assert again.consumed == LM_.token_bytes(token) + b"a"
            assert again.mask[:2].all()
    assert state.advance(0).mask[0]


@pytest.mark.parametrize("regex", ["(", "[a", "a{2", "*a", "(?=a)b", r"(a)\1", "a**b("])
def test_an_expression_that_is_none_is_named(regex: str) -> None:
    with pytest.raises(ConstraintError) as raised:
        Constraint(LM_, regex)
    message = str(raised.value)
    assert repr(regex)[:20] in message and "fix:" in message


def test_brackets_around_an_expression_do_not_repair_it() -> None:
    """With a terminator the expression is put in a group; this one would close and open it."""
    with pytest.raises(ConstraintError, match="unopened group"):
        Constraint(LM_, "a)|(b", ("\n",))


def test_it_is_named_in_the_program_too() -> None:
    @program
    def model() -> Any:
        return sample("x", LM("", regex="(a"))

    with pytest.raises(ConstraintError, match="site 'x'"):
        infer(model, engine=Importance(2), lm=LM_)


def test_a_constraint_the_model_cannot_meet_kills_one_particle_not_the_run() -> None:
    lm = TableLM(
        ["a", "b", "c", "<eos>"], {(): [0.5, 0.5, 0, 0], (0,): [0, 1, 0, 0], (1,): [0, 0, 0, 1]}
    )

    @program
    def model() -> Any:
        return str(sample("x", LM("", regex="(ab|bc)", max_tokens=4)))

    for engine in (Importance(200), SMC(200, always=True), Enumerate()):
        post = infer(model, engine=engine, lm=lm, seed=3)
        assert set(post.marginal()) == {"ab"}
        assert abs(post.log_evidence - np.log(0.5)) < 0.4
    assert post.log_evidence == pytest.approx(np.log(0.5))


def test_an_impossible_constraint_kills_all_and_names_the_site() -> None:
    from lmppl.errors import AllParticlesDead

    @program
    def model() -> Any:
        return sample("x", LM("", regex="zzz", max_tokens=4))

    with pytest.raises(AllParticlesDead, match=r"killed at: x \(8\)"):
        infer(model, engine=Importance(8), lm=LM_)
    dead = infer(model, engine=Importance(8), lm=LM_, on_dead="return")
    assert dead.log_evidence == -np.inf and dead.dead and dead.deaths == {"x": 8}


def test_max_tokens_inside_a_language() -> None:
    """A prefix of a match is no value: it is impossible, not cut."""

    @program
    def model() -> Any:
        return str(sample("x", LM("", regex="a{3}", max_tokens=2)))

    dead = infer(model, engine=Enumerate(), lm=LM_, on_dead="return")
    assert dead.log_evidence == -np.inf

    @program
    def either() -> Any:
        return str(sample("x", LM("", regex="a{1,3}", max_tokens=2)))

    assert set(infer(either, engine=Enumerate(), lm=LM_).marginal()) == {"a", "aa"}


def test_the_compiled_constraint_is_shared_by_equal_sites() -> None:
    a, b = LM("p", regex="a+", stop="\n"), LM("q", regex="a+", stop="\n")
    first, second = a.law(LM_).constraint, b.law(LM_).constraint
    assert first is not None and first is second
    assert a.law(TableLM.random(TOKENS, seed=2)).constraint is not first
