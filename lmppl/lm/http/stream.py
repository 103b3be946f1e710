"""Server-sent events: a response that comes in chunks, each a JSON value, the last one `[DONE]`.

A stream is an answer only when it is whole: `[DONE]` (or the server's own last chunk) has come, and
the dialect's `Merge` finds a finish reason and as many tokens as the server counted. Bytes are
decoded when a line is complete, so a character that is cut between two pieces stays itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from lmppl.lm.http.errors import ResponseCut, ResponseTooLarge, refuse_error

Merge: TypeAlias = Callable[[Sequence[Any], bool], Any]
"""Makes one JSON value of the chunks; the flag says whether `[DONE]` came."""


class Stream:
    """The lines of one stream, as they arrive."""

    def __init__(self, merge: Merge, max_bytes: int) -> None:
        """Nothing has come yet."""
        self._merge = merge
        self._most = max_bytes
        self._seen = 0
        self._rest = b""
        self._chunks: list[Any] = []
        self._done = False

    def feed(self, piece: bytes) -> None:
        """Take bytes, cut anywhere."""
        self._seen += len(piece)
        if self._seen > self._most:
            raise ResponseTooLarge(
                f"the stream is longer than {self._most:,} bytes",
                fix="lower max_tokens; nothing of it is used",
            )
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._take(line.rstrip(b"\r"))

    def _take(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            return  # a comment, a keep-alive, or the end of an event
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            self._done = True
            return
        try:
            chunk = json.loads(data.decode("utf-8"))
        except ValueError:
            raise ResponseCut(
                "a chunk of the stream is no JSON",
                value=repr(data[:80].decode("utf-8", "replace")),
                fix="what had arrived is dropped",
            ) from None
        refuse_error(chunk, "the stream ends in an error")
        self._chunks.append(chunk)

    def finish(self) -> Any:
        """The answer.

        Raises:
            ResponseCut: it is not whole.
        """
        if self._rest.strip():
            self._take(self._rest)
        if not self._chunks:
            raise ResponseCut("the stream is empty", fix="look at the server's log")
        return self._merge(self._chunks, self._done)
