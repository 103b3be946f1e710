"""Whatever an argument of an engine is: it works, or the error is ours and says what to write.

Every field of every public engine is given values of all kinds. That the engine can then be made,
shown and asked for its target is tested here for all; that it also runs, in the slow test.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

import lmppl.inference
from lmppl import LM, factor, program, sample
from lmppl.arguments import (
    as_numbers,
    check_functions,
    check_integers,
    check_known,
    check_mappings,
    check_names,
    check_numbers,
    check_word,
)
from lmppl.errors import BadArgument, LmpplError
from lmppl.inference import Engine, infer
from lmppl.inference.checks import check_actions
from lmppl.lm.table import TableLM

WORDS = TableLM(
    [" yes", " no", "<eos>"], {(): [0.5, 0.4, 0.1], (0,): [0.2, 0.6, 0.2], (1,): [0.5, 0.1, 0.4]}
)
STRANGE: tuple[Any, ...] = (
    None, "x", "", -1, 0, 1.5, math.nan, math.inf, True, [], [1.5], (1, 2), {"a": 1}, object(),
)  # fmt: skip
NEEDED = {"ParticleMarginalMH": {"sites": ["word"]}}
ENGINES = sorted(
    name
    for name in lmppl.inference.__all__
    if isinstance(kind := getattr(lmppl.inference, name), type)
    and issubclass(kind, Engine)
    and dataclasses.is_dataclass(kind)
)


@program
def word() -> str:
    """One string and a factor."""
    x = sample("word", LM("?", max_tokens=2))
    factor("yes", 1.0 if "yes" in x else 0.0)
    return str(x)


def strange(name: str) -> Iterator[tuple[str, Any, Engine]]:
    """The engines of a class with one strange argument, where they can be made."""
    kind: Any = getattr(lmppl.inference, name)
    for field in dataclasses.fields(kind):
        for value in STRANGE if field.init else ():
            try:
                yield field.name, value, kind(**{**NEEDED.get(name, {}), field.name: value})
            except LmpplError as error:
                assert error.fields.get("fix"), f"{name}({field.name}={value!r}): {error}"


def test_there_are_engines() -> None:
    assert {"SMC", "Enumerate", "Beam", "ParticleGibbs"} < set(ENGINES)


@pytest.mark.parametrize("name", ENGINES)
def test_arguments_of_any_kind(name: str) -> None:
    for _, _, engine in strange(name):
        assert name in repr(engine)
        assert engine.target()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ENGINES)
def test_engines_with_arguments_of_any_kind_run(name: str) -> None:
    for field, value, engine in strange(name):
        try:
            infer(word, engine=engine, lm=WORDS, seed=0)
        except LmpplError:
            continue
        except Exception as error:
            raise AssertionError(f"{name}({field}={value!r}) ended in {error!r}") from error


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_integers("E", 2, n=1), "E: n must be an integer of at least 2, got 1"),
        (lambda: check_numbers("E", x=math.nan), "E: x must be a finite number, got nan"),
        (lambda: check_numbers("E", 0.0, x=-1), "x must be a finite number at least 0, got -1"),
        (lambda: check_numbers("E", 0.0, below=1.0, x=1.0), "at least 0 and below 1, got 1.0"),
        (lambda: check_numbers("E", above=0.0, infinite=True, x=0), "x must be a number above 0"),
        (lambda: as_numbers("E", t=3), "t must be a list of numbers, got 3"),
        (lambda: as_numbers("E", t=(1.0, "a")), "t must be a finite number, got 'a'"),
        (lambda: check_names("E", at=("a", "a")), "at must be a list of different names"),
        (lambda: check_word("E", to="a b"), "to must be the name of a keyword argument"),
        (lambda: check_actions("E", ["a"]), "actions must be a mapping from name"),
        (lambda: check_mappings("E", 2, start=[{}]), "start must be a list of 2 mappings"),
        (lambda: check_functions("E", key=3), "key must be a function, or left out, got 3"),
        (lambda: check_known("E", ("a", "b"), by="c"), "by must be one of a, b, got 'c'"),
    ],
)
def test_what_the_errors_say(check: Any, message: str) -> None:
    with pytest.raises(BadArgument, match=re.escape(message)) as error:
        check()
    assert error.value.fields["fix"]


def test_what_fits() -> None:
    check_integers("E", 0, n=0, m=5)
    check_numbers("E", 0.0, 1.0, x=0, y=1.0)
    check_numbers("E", 0.0, infinite=True, x=math.inf)
    assert as_numbers("E", t=[2, 1.0]) == (2, 1.0)
    check_functions("E", key=None, score=len)
