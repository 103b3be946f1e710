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
import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from lmppl.errors import BadArgument, excerpt
from lmppl.types import Floats


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


def check_instances(caller: str, kind: Any, what: str, /, **arguments: Any) -> None:
    """Values of a class, which messages call `what`."""
    for name, value in arguments.items():
        if not isinstance(value, kind):
            raise _wrong(caller, name, what, value, f"give {what}")


def check_mapping(caller: str, /, **arguments: Any) -> None:
    """Mappings from name to value, or None."""
    for name, value in arguments.items():
        if not (value is None or isinstance(value, Mapping)):
            what = "a mapping from name to value"
            raise _wrong(caller, name, what, value, f'write {name}={{"name": value}}')


def check_path(caller: str, path: Any) -> None:
    """The path of a file."""
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise _wrong(caller, "path", "the path of a file", path, 'write path="out/name"')


def check_seed(seed: Any) -> int:
    """The integer of a seed, of Python or numpy."""
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise BadArgument(f"seed must be an integer, got {excerpt(seed, 40)}", fix="write seed=0")
    return int(seed)


def as_number(caller: str, /, **arguments: Any) -> float:
    """The number of one argument, whatever its class; nan is none."""
    ((name, value),) = arguments.items()
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise _wrong(caller, name, "a number", value, f"give {name}=0.5")
    return number


def as_array(caller: str, /, **arguments: Any) -> Floats:
    """The array of one argument, of numbers."""
    ((name, value),) = arguments.items()
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise _wrong(
            caller, name, "an array of numbers", value, f"write {name}=[0.5, 0.5]"
        ) from None


def _wrong(caller: str, name: str, what: str, value: Any, fix: str) -> BadArgument:
    return BadArgument(f"{caller}: {name} must be {what}, got {excerpt(value, 40)}", fix=fix)
