"""How a server fails, on the socket, where it happens in life: for `Stub(breaks=fail)`.

A fault is named "kind" or "kind:value", such as "status:503,2" (and when to come again), "edit:null"
(a good answer with one change), "sse:undone" (a stream without its end), "stall" or "bomb:16".
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
import socket
import struct
from collections.abc import Callable
from typing import Any


async def fail(
    stub: Any, name: str, writer: asyncio.StreamWriter, body: dict[str, Any], path: str
) -> bool:
    """Answer a request with the fault of this name; whether the connection goes on."""
    going: bool
    data = stub.reply(path, body)
    raw = json.dumps(data, ensure_ascii=False).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    sized = head + b"Content-Length: %d\r\n\r\n" % len(raw)
    kind, _, value = name.partition(":")
    if kind == "status":
        code, _, after = value.partition(",")
        more = {"Retry-After": after} if after else {}
        message = {"error": {"message": f"status {code}", "type": "x"}}
        if code == "400":
            message = {"error": {"message": "maximum context length is 4096, got 9000 tokens"}}
        going = await stub.send(writer, int(code), message, more)
        return going
    if kind == "redirect":
        there = {"Location": f"http://127.0.0.1:{stub.other}{path}"}
        going = await stub.send(writer, 307, {}, there)
        return going
    if kind == "silent":
        await asyncio.sleep(30)
    elif kind == "stall":
        writer.write(sized + raw[: len(raw) // 2])
        await writer.drain()
        await asyncio.sleep(30)
    elif kind == "drip":
        writer.write(sized)
        for byte in raw:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)
    elif kind == "reset":
        writer.write(sized + raw[: len(raw) // 2])
        await writer.drain()
        await asyncio.sleep(0.02)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    elif kind == "eof":
        writer.write(head + b"Connection: close\r\n\r\n" + raw[: len(raw) // 2])
        await writer.drain()
    elif kind == "html":
        page = b"<html><body>Welcome</body></html>"
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(page) + page)
        await writer.drain()
        return True
    elif kind == "bomb":
        packed = bomb(int(value))
        writer.write(head + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed))
        writer.write(packed)
        await writer.drain()
    elif kind == "endless":
        writer.write(head + b"Connection: close\r\n\r\n" + b'{"x": "')
        for _ in range(10_000):
            writer.write(b"a" * 65536)
            await writer.drain()
    elif kind == "swap":
        await asyncio.sleep(0.05)
        latest = stub.asked[-1] if stub.asked[-1] is not body else stub.asked[-2]
        going = await stub.send(writer, 200, stub.reply(path, latest))
        return going
    elif kind == "edit":
        EDITS[value](data)
        going = await stub.send(writer, 200, data)
        return going
    elif kind == "sse":
        going = await stub.stream(writer, *broken_stream(value, stub.chunks(data)))
        return going
    else:
        raise LookupError(name)
    return False


def _choice(key: str, value: Any) -> Callable[[Any], None]:
    def edit(data: Any) -> None:
        data["choices"][0][key] = value

    return edit


def _logprob(value: Any) -> Callable[[Any], None]:
    def edit(data: Any) -> None:
        data["choices"][0]["logprobs"]["token_logprobs"][-1] = value

    return edit


def _no_logprobs(data: Any) -> None:
    data["choices"][0]["logprobs"] = {"tokens": [], "token_logprobs": []}


def _shorter(data: Any) -> None:
    data["choices"][0]["logprobs"]["token_logprobs"].pop()


def _cut(data: Any) -> None:
    choice = data["choices"][0]
    choice["token_ids"] = choice["token_ids"][:1]
    choice["finish_reason"] = "length"
    data["usage"]["completion_tokens"] = 1
    for part in choice["logprobs"].values():
        del part[1:]


EDITS: dict[str, Callable[[Any], None]] = {
    "error": lambda data: (data.clear(), data.update(error={"message": "boom"})) and None,
    "cut": _cut,
    "filter": _choice("finish_reason", "content_filter"),
    "reason": _choice("finish_reason", "tea_break"),
    "model": lambda data: data.update(model="another"),
    "choices": lambda data: data.update(choices=[]),
    "usage": lambda data: data.pop("usage") and None,
    "absent": _no_logprobs,
    "shorter": _shorter,
    "null": _logprob(None),
    "nan": _logprob(float("nan")),
    "positive": _logprob(0.3),
    "floor": _logprob(-9999.0),
}
"""What is done to a good answer."""


@functools.cache
def bomb(mebibytes: int) -> bytes:
    """A little that unpacks to a lot."""
    return gzip.compress(b'{"x": "' + b"a" * (mebibytes << 20), 1)


def broken_stream(name: str, events: list[bytes]) -> tuple[list[bytes], int]:
    """The events of a stream with something wrong, and in how many bytes they are sent."""
    if name == "undone":
        return events[:-1], 0
    if name == "unfinished":
        first = [e.replace(b'"finish_reason": "length"', b'"finish_reason": null') for e in events]
        return [e.replace(b'"finish_reason": "stop"', b'"finish_reason": null') for e in first], 0
    if name == "doubled":
        return [events[0], *events], 0
    if name == "bytes":
        return events, 1
    raise LookupError(name)
