"""Values, sites and traces as JSON and back, exactly; the grammar of a saved posterior.

| value | JSON |
| --- | --- |
| None, bool, str, int, finite float | itself |
| nan, inf, -inf | `{"$f": "nan"}` … |
| tuple (what lists of a program become) | array |
| frozen dict with text keys | object; a key that starts with `$` gets one more |
| `Text` | `{"$text": "…", "ids": […], "logps": […], "finish": …, "at": …, "spans": […]}` |
| other dict, list, set, bytes, complex, int beyond 64 bits | `$map`, `$list`, `$set`, `$bytes`, `$complex`, `$int` |
| array (also of JAX and torch) and its scalars | `{"$array": data, "dtype": "<f8", "shape": […]}`, `$scalar` |
| a posterior of nested inference | `{"$posterior": [header, particles]}` |

A named tuple comes back as a tuple. Anything else is refused with its site named, or, when asked
for, kept as its `repr` (`Opaque`). Nothing in a file is ever executed.
"""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

from lmppl.errors import BadArgument, excerpt
from lmppl.plainjson import decode_float, encode_float
from lmppl.text import Span, Text
from lmppl.trace import Entry
from lmppl.values import FrozenDict

ARRAY_KINDS = "biufcU"
"""dtype kinds that are written: bool, integers, floats, complex, text."""


class Opaque:
    """A value that was saved as its `repr` only."""

    __slots__ = ("shown",)

    def __init__(self, shown: str) -> None:
        """Keep how it was shown."""
        self.shown = shown

    def __repr__(self) -> str:
        return self.shown

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and other.shown == self.shown

    def __hash__(self) -> int:
        return hash(self.shown)


def encode(value: Any, opaque: bool = False) -> Any:
    """A value as JSON.

    Raises:
        BadArgument: a value of a kind that cannot be written, unless `opaque`.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, Text):
        return _encode_text(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, np.generic) and not isinstance(value, float):
        return _encode_array(np.asarray(value), opaque)
    if isinstance(value, int):
        number = int(value)
        return number if -(1 << 63) <= number < 1 << 63 else {"$int": hex(number)}
    if isinstance(value, float):
        return encode_float(value)
    if isinstance(value, tuple):
        return [encode(v, opaque) for v in value]
    if isinstance(value, dict):
        if isinstance(value, FrozenDict) and all(isinstance(k, str) for k in value):
            return {
                f"${k}" if k.startswith("$") else str(k): encode(v, opaque)
                for k, v in value.items()
            }
        pairs = [[encode(k, opaque), encode(v, opaque)] for k, v in value.items()]
        return {"$map": pairs} | ({} if isinstance(value, FrozenDict) else {"free": True})
    if isinstance(value, list):
        return {"$list": [encode(v, opaque) for v in value]}
    if isinstance(value, (frozenset, set)):
        items = [encode(v, opaque) for v in sorted(value, key=repr)]
        return {"$set": items} | ({} if isinstance(value, frozenset) else {"free": True})
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, complex):
        return {"$complex": [encode_float(value.real), encode_float(value.imag)]}
    if isinstance(value, Opaque):
        return {"$repr": value.shown}
    return _encode_object(value, opaque)


def _encode_object(value: Any, opaque: bool) -> Any:
    from lmppl.inference.results.posterior import Posterior

    if isinstance(value, Posterior):
        from lmppl.inference.results.files import header, particle_lines

        return {"$posterior": [header(value, opaque), list(particle_lines(value, opaque))]}
    if hasattr(value, "__array__"):
        try:
            return _encode_array(np.asarray(value), opaque)
        except (TypeError, ValueError, RuntimeError):
            pass  # a tensor that will not become an array is a value like any other
    if opaque:
        return {"$repr": repr(value)}
    raise BadArgument(
        f"a {type(value).__name__} cannot be saved",
        value=excerpt(value, 60),
        fix="return or record numbers, texts, tuples, dicts or arrays; or save(path, opaque=True), "
        "which keeps its repr",
    )


def _encode_array(array: Any, opaque: bool) -> Any:
    widest = {"f": 8, "c": 16}.get(array.dtype.kind)
    if array.dtype.kind not in ARRAY_KINDS or (widest and array.dtype.itemsize > widest):
        if opaque:
            return {"$repr": repr(array)}
        raise BadArgument(
            f"an array of {array.dtype} cannot be saved", fix="save numbers, bools or texts"
        )
    flat = array.ravel().tolist()
    if array.dtype.kind == "f":
        flat = [encode_float(v) for v in flat]
    elif array.dtype.kind == "c":
        flat = [[encode_float(v.real), encode_float(v.imag)] for v in flat]
    if isinstance(array, np.ndarray) and array.shape == ():
        return {"$scalar": flat[0], "dtype": array.dtype.str}
    return {"$array": flat, "dtype": array.dtype.str, "shape": list(array.shape)}


def _encode_text(value: Text) -> dict[str, Any]:
    out: dict[str, Any] = {"$text": str(value)}
    if value.token_ids is not None:
        out["ids"] = value.token_ids.tolist()
    if value.token_logprobs is not None:
        out["logps"] = [encode_float(v) for v in value.token_logprobs.tolist()]
    whole = (Span(0, len(value), value.address),) if value.address is not None and value else ()
    for name, part in (("finish", value.finish), ("at", value.address), ("scheme", value.scheme)):
        if part is not None:
            out[name] = part
    if value.spans != whole:
        out["spans"] = [list(s) for s in value.spans]
    return out


def decode(value: Any) -> Any:
    """What `encode` wrote.

    Raises:
        ValueError: a tag or a shape that `encode` never writes.
    """
    if isinstance(value, list):
        return tuple(decode(v) for v in value)
    if not isinstance(value, dict):
        return value
    tag = next((k for k in value if k.startswith("$") and not k.startswith("$$")), None)
    if tag is None:
        return FrozenDict({k.removeprefix("$"): decode(v) for k, v in value.items()})
    content, free = value[tag], value.get("free", False)
    if tag == "$f":
        return decode_float(value)
    if tag == "$text":
        return _decode_text(value)
    if tag == "$int" and isinstance(content, str):
        return int(content, 16)
    if tag == "$map":
        pairs = {decode(k): decode(v) for k, v in content}
        return pairs if free else FrozenDict(pairs)
    if tag == "$list":
        return [decode(v) for v in content]
    if tag == "$set":
        items = [decode(v) for v in content]
        return set(items) if free else frozenset(items)
    if tag == "$bytes":
        return base64.b64decode(content, validate=True)
    if tag == "$complex":
        return complex(*(decode_float(v) for v in content))
    if tag in ("$array", "$scalar"):
        return _decode_array(value)
    if tag == "$repr" and isinstance(content, str):
        return Opaque(content)
    if tag == "$posterior":
        from lmppl.inference.results.files import rebuild

        return rebuild(content[0], content[1])
    raise ValueError(f"unknown kind of value {excerpt(tag, 40)}")


def _decode_array(value: dict[str, Any]) -> Any:
    dtype = np.dtype(_text(value["dtype"]))
    if dtype.kind not in ARRAY_KINDS:
        raise ValueError(f"an array of {dtype} is never written")
    single = "$scalar" in value
    flat = [value["$scalar"]] if single else value["$array"]
    if dtype.kind == "f":
        flat = [decode_float(v) for v in flat]
    elif dtype.kind == "c":
        flat = [complex(decode_float(re), decode_float(im)) for re, im in flat]
    shape = () if single else tuple(value["shape"])
    if len(flat) != math.prod(shape):
        raise ValueError(f"an array of shape {shape} with {len(flat)} entries")
    array = np.array(flat, dtype=dtype).reshape(shape)
    if single:
        return array[()]
    array.setflags(write=False)
    return array


def _decode_text(value: dict[str, Any]) -> Text:
    ids, logps, spans = value.get("ids"), value.get("logps"), value.get("spans")
    if ids is not None and logps is not None and len(ids) != len(logps):
        raise ValueError(f"a text with {len(ids)} ids and {len(logps)} log-probabilities")
    return Text(
        _text(value["$text"]),
        token_ids=ids,
        token_logprobs=None if logps is None else [decode_float(v) for v in logps],
        address=value.get("at"),
        finish=value.get("finish"),
        scheme=value.get("scheme"),
        spans=None if spans is None else tuple(Span(int(a), int(b), _text(c)) for a, b, c in spans),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, got {excerpt(value, 60)}")
    return value


def encode_entry(entry: Entry, opaque: bool = False) -> dict[str, Any]:
    """A site as JSON; numbers that are 0 are left out."""
    out: dict[str, Any] = {"op": entry.op, "at": entry.address}
    try:
        out["value"] = encode(entry.value, opaque)
    except BadArgument as error:
        error.add_where(f"site {entry.address!r}")
        raise
    for name in ("logp", "logq", "logw"):
        number = getattr(entry, name)
        if number != 0.0:
            out[name] = encode_float(number)
    return out


def decode_entry(prev: Entry | None, value: dict[str, Any]) -> Entry:
    """What `encode_entry` wrote, as the entry after `prev`."""
    logp, logq, logw = (decode_float(value.get(name, 0.0)) for name in ("logp", "logq", "logw"))
    site = decode(value["value"])
    return Entry(prev, _text(value["op"]), _text(value["at"]), site, logp, logq, logw)
