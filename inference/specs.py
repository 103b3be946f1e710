"""Engines as text: `smc:particles=16,resample_at=tokens(8)`.

    spec  = name [":" key "=" value {"," key "=" value}]
    value = integer | number | true | false | text | "quoted text" | tokens(k) | tokens(k,ess=τ)

Every engine that `lmppl.inference` offers has a name here, its own in lower case, and takes those of
its arguments that have a plain value. A spec has one canonical form, which run files keep: the
arguments in the engine's order, without those at their default except `particles`.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lmppl.errors import BadArgument, LmpplError
from lmppl.inference.base import Engine
from lmppl.inference.smc.particle_filter import tokens

PLAIN = (bool, int, float, str)
ALIASES = {
    "mh": "metropolis_hastings",
    "pg": "particle_gibbs",
    "pmmh": "particle_marginal_mh",
    "pt": "parallel_tempering",
}
SHOWN = "particles"
"""The argument that a canonical spec always has."""


class Spec(NamedTuple):
    """An engine and its canonical text."""

    text: str
    engine: Engine


class _Kind(NamedTuple):
    """An engine class: its arguments that text can give, with their defaults; and the others."""

    make: type[Engine]
    plain: dict[str, Any]
    others: list[str]


def engine_names() -> list[str]:
    """The engines that can be named."""
    return sorted(_kinds())


def parse_engine(text: str) -> Spec:
    """The engine of a spec.

    Raises:
        BadArgument: with the nearest name.

    >>> parse_engine("smc:ess_threshold=1,particles=8").text
    'smc:particles=8,ess_threshold=1.0'
    """
    name, colon, rest = text.strip().partition(":")
    name = name.strip().lower().replace("-", "_")
    name = ALIASES.get(name, name)
    kinds = _kinds()
    if name not in kinds:
        raise BadArgument(
            f"there is no engine {name!r}", fix=_nearest(name, list(kinds), "the engines are")
        )
    kind = kinds[name]
    given: dict[str, Any] = {}
    for part in split_spec(rest) if colon else ():
        key, equals, raw = (s.strip() for s in part.partition("="))
        if not equals or not key or not raw:
            raise BadArgument(
                f"engine {name}: {part.strip()!r} is not key=value",
                fix=f"write {name}:key=value,key=value",
            )
        if key in given:
            raise BadArgument(f"engine {name}: {key} is given twice")
        given[key] = _argument(name, kind, key, raw)
    try:
        engine = kind.make(**given)
    except LmpplError as error:
        what = error.fields["what"].removeprefix(f"{kind.make.__name__}: ")
        raise BadArgument(f"engine {name}: {what}", fix=error.fields.get("fix")) from error
    shown = {
        key: getattr(engine, key, default)
        for key, default in kind.plain.items()
        if key == SHOWN or (key in given and given[key] != default)
    }
    arguments = ",".join(f"{key}={_show(value)}" for key, value in shown.items())
    return Spec(f"{name}:{arguments}" if arguments else name, engine)


def parse_engines(texts: Sequence[str]) -> list[Spec]:
    """Several engines, none of them twice."""
    specs = [parse_engine(text) for text in texts]
    for i, spec in enumerate(specs):
        if spec.text in [s.text for s in specs[:i]]:
            raise BadArgument(f"engine {spec.text} is given twice", fix="leave one out")
    return specs


def _kinds() -> Mapping[str, _Kind]:
    import lmppl.inference as offered

    found: dict[str, _Kind] = {}
    for name in offered.__all__:
        make = getattr(offered, name)
        if not (inspect.isclass(make) and issubclass(make, Engine)) or inspect.isabstract(make):
            continue
        parameters = inspect.signature(make).parameters.values()
        plain = {p.name: p.default for p in parameters if isinstance(p.default, PLAIN)}
        others = [p.name for p in parameters if p.name not in plain]
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        found[snake] = _Kind(make, plain, others)
    return found


def _argument(name: str, kind: _Kind, key: str, raw: str) -> Any:
    if key in kind.others:
        raise BadArgument(
            f"engine {name}: {key} has no text form", fix="call infer(...) from Python"
        )
    if key not in kind.plain:
        near = _nearest(key, list(kind.plain), "it takes") if kind.plain else "it takes none"
        raise BadArgument(f"engine {name} has no argument {key!r}", fix=near)
    default, value = kind.plain[key], _value(raw)
    wanted = next(t for t in PLAIN if isinstance(default, t))
    if wanted is float and type(value) is int:
        value = float(value)
    if wanted is str and isinstance(value, tokens):
        return value
    if type(value) is not wanted:
        word = {bool: "true or false", int: "an integer", float: "a number", str: "a word"}[wanted]
        raise BadArgument(
            f"engine {name}: {key} must be {word}, got {raw}", fix=f"such as {key}={_show(default)}"
        )
    return value


def _value(raw: str) -> Any:
    """The value of its text; what is nothing else is a string."""
    if len(raw) >= 2 and raw[0] == raw[-1] and raw[0] in "'\"":
        return raw[1:-1]
    if raw.lower() in ("true", "false"):
        return raw.lower() == "true"
    if re.fullmatch(r"[+-]?\d[\d_]*", raw):
        return int(raw)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", raw, re.IGNORECASE):
        return float(raw)
    if call := re.fullmatch(r"tokens\(\s*([+-]?\d+)\s*(?:,\s*ess\s*=\s*([\d.]+)\s*)?\)", raw):
        return tokens(int(call[1]), None if call[2] is None else float(call[2]))
    return raw


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tokens):
        return f"tokens({value.k})" if value.ess is None else f"tokens({value.k},ess={value.ess})"
    if isinstance(value, str) and (_value(value) != value or set(value) & set(",'\"() ")):
        return f'"{value}"'
    return str(value)


def split_spec(text: str) -> Iterator[str]:
    """Parts between commas that are neither in brackets nor in quotes."""
    depth, quote, start = 0, "", 0
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "()":
            depth += 1 if letter == "(" else -1
        elif letter == "," and depth == 0:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def _nearest(name: str, known: Sequence[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}{otherwise} {', '.join(sorted(known))}"
