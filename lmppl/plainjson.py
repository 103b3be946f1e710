"""Numbers and values in JSON that every reader accepts: no NaN, no Infinity, nothing lost silently.

A float is written by its shortest exact decimal form; one that is not finite is an object,
`{"$f": "nan"}`, never null (which a reader would take for missing, or for 0).
"""

from __future__ import annotations

import json
import math
from typing import Any

from lmppl.errors import excerpt

_NAMES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode_float(value: float) -> Any:
    """A float as JSON.

    >>> encode_float(0.1), encode_float(float("-inf"))
    (0.1, {'$f': '-inf'})
    """
    value = float(value)
    if math.isfinite(value):
        return value
    return {"$f": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}


def decode_float(value: Any) -> float:
    """What `encode_float` wrote.

    Raises:
        ValueError: no number.
    """
    if isinstance(value, dict) and len(value) == 1 and value.get("$f") in _NAMES:
        return _NAMES[value["$f"]]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise ValueError(f"expected a number, got {excerpt(value, 60)}")


def readable(value: Any) -> Any:
    """A value as plain JSON for people and other tools; `lmppl.inference.results.files` keeps it exactly.

    Tuples and sets become lists, keys strings, what JSON cannot hold its `repr`.

    >>> readable(({"a": 1}, float("nan"), b"x"))
    [{'a': 1}, {'$f': 'nan'}, "b'x'"]
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value) if abs(value) < 1 << 63 else excerpt_int(value)
    if isinstance(value, float):
        return encode_float(value)
    if isinstance(value, dict):
        return {k if isinstance(k, str) else repr(k): readable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [readable(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return [readable(v) for v in sorted(value, key=repr)]
    tolist = getattr(value, "tolist", None)  # arrays and their scalars
    if callable(tolist):
        plain = tolist()
        if type(plain) is not type(value):
            return readable(plain)
    return repr(value)


def excerpt_int(value: int) -> str:
    """A large integer as text: decimal where Python allows it, else hexadecimal."""
    return str(value) if value.bit_length() < 10_000 else hex(value)


def dump(value: Any) -> bytes:
    """One line of strict JSON in UTF-8; lone surrogates are written as escapes."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        return line.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
