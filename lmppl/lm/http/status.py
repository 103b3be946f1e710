"""What a status other than 200 means."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from lmppl.errors import ContextOverflow, LmpplError
from lmppl.lm.http.errors import (
    BadResponse,
    KeyRefused,
    NotServed,
    Redirected,
    RequestRefused,
    ServerBusy,
)
from lmppl.lm.http.retry import retry_after

LATER = {408, 425, 429, 500, 502, 503, 504, 529}
"""Worth asking again."""
UNPAID = {408, 425, 429}
"""Of these, those after which nothing can have been computed."""


def refusal(status: int, headers: Mapping[str, str], raw: bytes) -> LmpplError:
    """The error that a response with this status is."""
    said = message(raw)
    value = repr(said[:200]) if said else None
    if status in LATER:
        busy = ServerBusy(
            f"the server answers {status}",
            value=value,
            fix="lower concurrency=, or wait: it may be starting, overloaded or broken",
        )
        busy.wait = retry_after(headers.get("retry-after"))
        busy.paid = status not in UNPAID
        return busy
    if status in (401, 403):
        return KeyRefused(
            f"the server answers {status}: the API key is missing or not accepted",
            fix="set LMPPL_API_KEY, or pass key= to load",
        )
    if status == 404:
        return NotServed(
            "the server answers 404: it has no such model or no such request",
            value=value,
            fix="correct the address; name the model: http://host:port#NAME",
        )
    if 300 <= status < 400:
        return Redirected(
            f"the server redirects ({status})",
            value=repr(headers.get("location", ""))[:200],
            why="the API key would go to another address",
            fix="give the address that it redirects to, if it is yours",
        )
    if status in (400, 413, 422):
        numbers = [int(n.replace(",", "")) for n in re.findall(r"\b\d[\d,]*\b", said)]
        if "context" in said.lower() and len(numbers) >= 2 and max(numbers) > min(numbers):
            return ContextOverflow(max(numbers), min(numbers))
        return RequestRefused(
            f"the server refuses the request ({status})",
            value=value,
            fix="shorten the prompt"
            if status == 413
            else "read its message; the request is as docs/backends.md says for this server",
        )
    return BadResponse(
        f"the server answers {status}, which is no status of this protocol",
        value=value,
        fix="a proxy or another service answers at this address; correct host and port",
    )


def message(raw: bytes) -> str:
    """The text of an error body, in any of the forms that servers write it."""
    try:
        data: Any = json.loads(raw)
    except ValueError:
        return raw[:300].decode("utf-8", "replace").strip()
    for name in ("error", "message", "detail"):
        if isinstance(data, dict) and name in data:
            data = data[name]
    return data if isinstance(data, str) else json.dumps(data)[:300]
