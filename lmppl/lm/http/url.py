"""How a server is named: `http://host:port#MODEL?option=value`, or `vllm:` before it.

    http://localhost:8000                       whatever answers there, and its only model
    vllm:http://gpu1:8000#Qwen/Qwen3-8B         one of several models; the kind of server is known
    vllm:Qwen/Qwen3-8B                          on localhost, at the port that vLLM uses by default
    http://localhost:8080?tokenizer=smollm2&concurrency=8

The part after `?` are the options of `HTTPLM`, for places that take a name only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmppl.errors import BadArgument

PORTS = {"vllm": 8000, "sglang": 30000, "llamacpp": 8080, "openai": 8000}
"""Kinds of servers, and where they listen unless told otherwise."""
NUMBERS = {"concurrency": int, "attempts": int, "timeout": float, "tolerance": float}
WORDS = ("tokenizer", "model", "on_unknown", "cache", "name")


@dataclass(frozen=True)
class Address:
    """Where a server is, and what is asked of it."""

    base: str
    """Without the part that the API adds, such as /v1."""
    kind: str = ""
    model: str = ""
    loopback: bool = False


def is_server(name: str) -> bool:
    """Whether the name of a model names a server."""
    head = name.partition(":")[0]
    return head in PORTS or head in ("http", "https")


def parse(name: str) -> tuple[Address, dict[str, Any]]:
    """The address, and the options after `?`.

    >>> parse("vllm:Qwen/Qwen3-8B")[0]
    Address(base='http://localhost:8000', kind='vllm', model='Qwen/Qwen3-8B', loopback=True)
    """
    from urllib.parse import urlsplit  # here, since `import lmppl` reads this file

    kind, _, rest = name.partition(":")
    if kind not in PORTS:
        kind, rest = "", name
    if not rest.startswith(("http://", "https://")):
        model, question, query = rest.partition("?")
        rest = f"http://localhost:{PORTS[kind]}{question}{query}#{model}"
    whole, _, after = rest.partition("#")
    model, question, query = after.partition("?")
    parts = urlsplit(whole + (question + query if question else ""))
    if not parts.hostname or parts.username or parts.password:
        raise BadArgument(
            f"{parts.scheme}://… is no address of a server",
            why="a password in an address ends up in logs and run files"
            if parts.username
            else None,
            fix="write http://host:port#MODEL, and the API key as LMPPL_API_KEY",
        )
    path = parts.path.rstrip("/").removesuffix("/v1")
    host = parts.hostname
    local = host == "localhost" or host == "::1" or host.startswith("127.")
    base = f"{parts.scheme}://{parts.netloc}{path}"
    return Address(base, kind, model, local), _options(parts.query)


def _options(query: str) -> dict[str, Any]:
    from urllib.parse import parse_qsl

    found: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in NUMBERS:
            try:
                found[key] = NUMBERS[key](value)
            except ValueError:
                raise BadArgument(f"{key}={value!r} is no number", fix=f"write ?{key}=8") from None
        elif key in WORDS:
            found[key] = value
        elif key == "stream":
            found[key] = value.lower() in ("1", "true", "yes")
        else:
            raise BadArgument(
                f"a server's address has no option {key!r}",
                fix=f"the options are {', '.join([*WORDS, *NUMBERS, 'stream'])}",
            )
    return found
