"""What an argument may be: a check for each kind, in one wording.

Every check takes the name of the function or class that is called and the arguments by their own
names, and raises `BadArgument` with the first that does not fit, what it was and what to write:

    >>> check_integers("TopK", k=0)
    Traceback (most recent call last):
    lmppl.errors.BadArgument: TopK: k must be a positive integer, got 0
      fix:   write k=4
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmppl.errors import BadArgument, excerpt


def check_integers(caller: str, least: int = 1, /, **arguments: Any) -> None:
    """Integers of at least `least`; a bool is none."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            what = "a positive integer" if least == 1 else f"an integer of at least {least}"
            raise _wrong(caller, name, what, value, f"write {name}={max(least, 4)}")


def check_numbers(
    caller: str,
    least: float = -math.inf,
    most: float = math.inf,
    /,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    infinite: bool = False,
    **arguments: Any,
) -> None:
    """Numbers x with least ≤ x ≤ most and above < x < below, finite unless `infinite`."""
    for name, value in arguments.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and least <= value <= most and (infinite or math.isfinite(value)):
            if (above < value < below) or (infinite and math.isinf(value)):
                continue
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (
                ("at least", least), ("at most", most), ("above", above), ("below", below),
            )
            if math.isfinite(bound)
        ]  # fmt: skip
        what = " ".join(["a number" if infinite else "a finite number", " and ".join(bounds)])
        low, high = max(least, above), min(most, below)
        good = low + 1.0 if math.isfinite(low) else 0.0
        if math.isfinite(low) and math.isfinite(high):
            good = (low + high) / 2.0
        raise _wrong(caller, name, what.rstrip(), value, f"write {name}={good:g}")


def check_functions(caller: str, /, **arguments: Any) -> None:
    """Functions, or None."""
    for name, value in arguments.items():
        if value is not None and not callable(value):
            raise _wrong(caller, name, "a function, or left out", value, f"write {name}=function")


def check_known(caller: str, known: Sequence[str], /, **arguments: Any) -> None:
    """One of some words."""
    for name, value in arguments.items():
        if not isinstance(value, str) or value not in known:
            what = f"one of {', '.join(known)}"
            raise _wrong(caller, name, what, value, f'write {name}="{known[0]}"')


def check_word(caller: str, /, **arguments: Any) -> None:
    """Names that Python takes as keywords."""
    for name, value in arguments.items():
        if not isinstance(value, str) or not value.isidentifier():
            what = "the name of a keyword argument"
            raise _wrong(caller, name, what, value, f'write {name}="{name}"')


def check_names(caller: str, /, **arguments: Any) -> None:
    """Lists of texts, each once, at least one of them."""
    for name, value in arguments.items():
        fine = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
        if not (fine and all(isinstance(v, str) for v in value) and len({*value}) == len(value)):
            what = "a list of different names"
            raise _wrong(caller, name, what, value, f'write {name}=["first", "second"]')


def check_mappings(caller: str, count: int, /, **arguments: Any) -> None:
    """Sequences of `count` mappings."""
    for name, value in arguments.items():
        fine = isinstance(value, Sequence) and len(value) == count
        if not (fine and all(isinstance(one, Mapping) for one in value)):
            what = f"a list of {count} mappings from site to value"
            raise _wrong(caller, name, what, value, f'write {name}=[{{"site": value}}, ...]')


def as_numbers(caller: str, /, **arguments: Any) -> tuple[float, ...]:
    """The finite numbers of one sequence."""
    ((name, value),) = arguments.items()
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise _wrong(caller, name, "a list of numbers", value, f"write {name}=(2.0, 1.0)")
    numbers = tuple(value)
    for number in numbers:
        check_numbers(caller, **{name: number})
    return numbers


def _wrong(caller: str, name: str, what: str, value: Any, fix: str) -> BadArgument:
    return BadArgument(f"{caller}: {name} must be {what}, got {excerpt(value, 40)}", fix=fix)
