"""The wire: JSON requests to one server, many at once, each to its end or to an error.

    client = Client("http://127.0.0.1:8000", policy=Policy(concurrency=64))
    replies = client.ask([Post("/v1/completions", make), ...])     # all in flight together

Requests run on an event loop of the client's own thread, so that it serves scripts, notebooks and
servers alike. A batch waits for all of its requests: the answers of those that succeed are handed
over even when others fail, since they are paid. The transport is httpx2, imported when a client is
made.
"""

from __future__ import annotations

import asyncio
import json
import threading
import weakref
import zlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lmppl.errors import LmpplError, ModelNotFound
from lmppl.lm.http.errors import (
    BadResponse,
    ResponseCut,
    ResponseTooLarge,
    ServerError,
    ServerTimeout,
    ServerUnreachable,
    refuse_error,
)
from lmppl.lm.http.retry import Breaker, Clock, Policy, again, pause
from lmppl.lm.http.status import refusal
from lmppl.lm.http.stream import Merge, Stream
from lmppl.lm.http.url import Address

POOL = 8
"""Connections of one pool: httpx2 looks at all of a pool for each request."""


class Post(NamedTuple):
    """One request."""

    path: str
    make: Callable[[], tuple[Mapping[str, Any] | None, Callable[[Any], Any]]]
    """The body of one attempt (None: a GET), and what its JSON means; the latter raises a
    `ServerError` where it means nothing."""
    merge: Merge | None = None
    """For a stream: how its chunks become one JSON value."""


@dataclass
class Traffic:
    """What went over the wire since the client was made."""

    sent: int = 0
    """Attempts."""
    retried: int = 0
    unknown: int = 0
    """Attempts that failed and may have been computed and paid."""
    failed: int = 0
    """Requests that were given up."""


class Client:
    """Requests to one server.

    Args:
        address: where it is.
        key: the API key; sent to this server alone, shown nowhere.
        policy: limits.
        clock: real time, or a test's.
    """

    def __init__(
        self,
        address: Address,
        *,
        key: str | None = None,
        policy: Policy | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Start nothing yet."""
        self.address = address
        self.policy = policy or Policy()
        self.clock = clock or Clock()
        self.traffic = Traffic()
        self.breaker = Breaker(self.policy, self.clock, address.base)
        self._key = key
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: Callable[[], object] | None = None
        self._slots: asyncio.LifoQueue[Any] | None = None
        """A pool of connections for each request that may be in flight."""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Client({self.address.base!r})"

    def ask(self, posts: Sequence[Post]) -> list[Any]:
        """What each request gives, in order; an exception in the place of one that failed."""
        if not posts:
            return []
        self.breaker.check()
        return list(self._wait(self._all(posts)))

    def one(self, post: Post) -> Any:
        """What one request gives.

        Raises:
            ServerError: or whatever `read` found.
        """
        found = self.ask([post])[0]
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        """End the connections and the thread; also done when nobody holds the client any more."""
        with self._lock:
            self._loop, end, self._end = None, self._end, None
        if end is not None:
            end()

    # -- inside ------------------------------------------------------------------------------

    def _wait(self, work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
        future = asyncio.run_coroutine_threadsafe(work, self._started())
        try:
            return future.result()
        except BaseException:  # Ctrl-C: what is in flight is given up
            future.cancel()
            raise

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                size = self.policy.concurrency
                pools = self._connected(-(-size // POOL))
                self._slots = asyncio.LifoQueue()
                for i in reversed(range(size)):
                    self._slots.put_nowait(pools[i // POOL])
                loop = self._loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_run, args=(loop,), name="lmppl-http", daemon=True)
                thread.start()
                self._end = weakref.finalize(self, _end, loop, pools, thread)
            return self._loop

    def _connected(self, n: int) -> list[Any]:
        """Pools of connections."""
        try:
            import httpx2
        except ImportError:
            raise ModelNotFound(
                self.address.base,
                looked_for=["the Python package httpx2"],
                fix='run: pip install "lmppl-lang[http]"',
            ) from None
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        p = self.policy
        secure = self.address.base.startswith("https:")
        options: dict[str, Any] = {
            "base_url": self.address.base,
            "headers": headers,
            "timeout": httpx2.Timeout(p.timeout, connect=p.connect, pool=None),
            "limits": httpx2.Limits(max_connections=POOL),
            "follow_redirects": False,
            "trust_env": not self.address.loopback,
            "verify": httpx2.create_ssl_context() if secure else False,
        }
        return [httpx2.AsyncClient(**options) for _ in range(n)]

    async def _all(self, posts: Sequence[Post]) -> list[Any]:
        found = await asyncio.gather(*map(self._to_the_end, posts), return_exceptions=True)
        return list(found)

    async def _to_the_end(self, post: Post) -> Any:
        """One request with its retries."""
        began, attempt = self.clock.now(), 0
        slots = self._slots
        while slots is not None:
            attempt += 1
            try:
                pool = await slots.get()
                try:
                    self.breaker.check()
                    self.traffic.sent += 1
                    found = await self._once(pool, post)
                finally:
                    slots.put_nowait(pool)
                self.breaker.succeeded()
                return found
            except ServerError as error:
                error.add_where(f"server {self.address.base}{post.path}, attempt {attempt}")
                self.traffic.unknown += error.paid
                if error.retry:
                    self.breaker.failed(error)
                if not again(self.policy, error, attempt, self.clock.now() - began):
                    self.traffic.failed += 1
                    raise
                await self.clock.sleep(pause(self.policy, error, attempt, self.clock))
                self.traffic.retried += 1
            except LmpplError as error:
                error.add_where(f"server {self.address.base}{post.path}")
                self.traffic.failed += 1
                raise
        raise ServerUnreachable("the client is closed", fix="load the model again")

    async def _once(self, pool: Any, post: Post) -> Any:
        """One attempt."""
        import httpx2

        try:
            async with asyncio.timeout(self.policy.timeout):
                body, read = post.make()
                return read(await self._data(pool, post, body))
        except TimeoutError:
            raise ServerTimeout(
                f"no complete response after {self.policy.timeout:g} s",
                fix="lower max_tokens or the concurrency, or give the model a longer timeout=",
            ) from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise ServerUnreachable(
                f"no connection: {_said(error)}",
                fix="start the server, or correct host and port; nothing was sent",
            ) from None
        except httpx2.TimeoutException as error:
            raise ServerTimeout(
                f"the server stopped sending: {_said(error)}",
                fix="look at its log; a longer timeout= helps where it is only slow",
            ) from None
        except httpx2.TransportError as error:
            raise ResponseCut(
                f"the connection broke before the response was complete: {_said(error)}",
                fix="look at the server's log; what had arrived is dropped",
            ) from None
        except zlib.error as error:
            raise BadResponse(
                f"the response cannot be unpacked: {_said(error)}", fix="switch compression off"
            ) from None

    async def _data(self, pool: Any, post: Post, body: Mapping[str, Any] | None) -> Any:
        """The JSON of a response, or of all chunks of a stream."""
        method = "GET" if body is None else "POST"
        async with pool.stream(method, post.path, json=body) as response:
            if post.merge is not None and response.status_code == 200:
                stream = Stream(post.merge, self.policy.max_bytes)
                async for piece in response.aiter_raw():
                    stream.feed(piece)
                return stream.finish()
            most = self.policy.max_bytes
            unpack = _unpacker(response.headers.get("content-encoding", "identity"), most)
            raw = bytearray()
            async for piece in response.aiter_raw():
                raw += piece if unpack is None else unpack(piece)
                if len(raw) > most:
                    raise ResponseTooLarge(
                        f"the response is larger than {most:,} bytes",
                        fix="nothing of it is used; is this the server of a language model?",
                    )
            if response.status_code != 200:
                raise refusal(response.status_code, response.headers, bytes(raw))
            return parsed(bytes(raw))


def parsed(raw: bytes) -> Any:
    """The JSON object of a body.

    Raises:
        ResponseCut: it begins like one and does not end.
        BadResponse: it is something else, or says that it is an error.
    """
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        if raw.lstrip()[:1] in (b"{", b"["):
            raise ResponseCut(
                f"the response ends inside its JSON, after {len(raw):,} bytes",
                fix="what had arrived is dropped",
            ) from None
        raise BadResponse(
            "the response is no JSON",
            value=repr(raw[:80].decode("utf-8", "replace")),
            fix="a proxy or another service answers at this address; correct host and port",
        ) from None
    refuse_error(data, "the response has status 200 and is an error")
    return data


def _unpacker(encoding: str, most: int) -> Callable[[bytes], bytes] | None:
    """Unpacks pieces of a response that came compressed, to at most `most` bytes each.

    None was asked to be; and some kilobytes can unpack to gigabytes.
    """
    if encoding == "identity":
        return None
    if encoding not in ("gzip", "deflate"):
        raise BadResponse(
            f"the response is packed as {encoding!r}, which was not asked for",
            fix="switch compression off in the server or proxy",
        )
    packed = zlib.decompressobj(wbits=47)
    return lambda piece: packed.decompress(packed.unconsumed_tail + piece, most + 1)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _end(loop: asyncio.AbstractEventLoop, pools: Sequence[Any], thread: threading.Thread) -> None:
    """Close the pools on their loop, and end its thread."""

    async def close() -> None:
        for pool in pools:
            await pool.aclose()
        loop.stop()

    if thread.is_alive():
        loop.call_soon_threadsafe(lambda: loop.create_task(close()))
        if threading.current_thread() is not thread:
            thread.join(5)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    loop.close()
