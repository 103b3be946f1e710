"""`lmppl serve`: a program and an engine behind the OpenAI chat protocol. Part of the command line.

Any chat client can talk to it; what it gets are answers of a posterior (`lmppl.commands.chat_api`). Requests
that arrive together share the batches of the language model. The application is one of starlette,
served by uvicorn; both come with the extra `serve`.

It listens on this machine alone unless told otherwise, and then only with an API key. Requests of
web pages (an Origin, or another Host than its own) are refused while there is no key: a page that
somebody visits must not use the server of his own machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lmppl.commands.chat_api import Arguments, Chat, Refused, checked, chunks, error_json, response
from lmppl.errors import AllParticlesDead, LmpplError, Suspended
from lmppl.inference.questions.arrivals import Arrivals, Busy
from lmppl.inference.questions.runs import one_line
from lmppl.inference.results.posterior import Posterior

ALIVE = 10.0
"""Seconds between signs of life on a stream whose answer is not there yet."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass
class Settings:
    """How a server answers.

    Args:
        model: what clients call the program.
        key: the API key; "" asks for none.
        seed: of requests that name none; None makes one for each.
        max_body: bytes of a request.
        hosts: values of the Host header that are accepted while there is no key; empty takes all.
    """

    model: str
    key: str = ""
    seed: int | None = None
    max_body: int = 1 << 20
    hosts: tuple[str, ...] = ()


Handler = Callable[[Request], Awaitable[Response]]


class Service:
    """The requests of one server."""

    def __init__(self, program: Any, line: Arrivals, settings: Settings) -> None:
        """Look at the program's arguments."""
        self.line = line
        self.settings = settings
        self.arguments = Arguments(program)

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/health", self.health),
                Route("/v1/models", self._guarded(self.models)),
                Route("/v1/models/{name:path}", self._guarded(self.models)),
                Route("/v1/chat/completions", self._guarded(self.chat), methods=["POST"]),
            ],
            exception_handlers={404: _no_route, 405: _no_route},
        )

    async def health(self, request: Request) -> Response:
        """That it lives."""
        return JSONResponse({"status": "ok", "running": self.line.running})

    async def models(self, request: Request) -> Response:
        """The program, as a model."""
        name = self.settings.model
        entry = {"id": name, "object": "model", "created": 0, "owned_by": "lmppl"}
        asked = request.path_params.get("name")
        if asked is None:
            return JSONResponse({"object": "list", "data": [entry]})
        if asked != name:
            raise Refused(f"no model {asked!r}", status=404, code="model_not_found")
        return JSONResponse(entry)

    async def chat(self, request: Request) -> Response:
        """An answer, or a stream of one."""
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise Refused("the content type must be application/json", status=415)
        raw = await self._body(request)
        try:
            data = json.loads(raw)
        except (ValueError, RecursionError):
            raise Refused("the body is no JSON") from None
        asked = checked(data, self.settings.model, self.arguments, self.settings.seed)
        name = f"chatcmpl-{secrets.token_hex(12)}"
        future = asyncio.wrap_future(self.line.submit(asked.kwargs, seed=asked.seed))
        if asked.stream:
            events = self._events(asked, future, name)
            return StreamingResponse(events, media_type="text/event-stream")
        posterior = await future
        return JSONResponse(response(asked, posterior, self.settings.model, name))

    # -- inside ------------------------------------------------------------------------------

    async def _body(self, request: Request) -> bytes:
        most = self.settings.max_body
        raw = bytearray()
        try:
            async for piece in request.stream():
                raw += piece
                if len(raw) > most:
                    raise Refused(f"the body is larger than {most:,} bytes", status=413)
        except ClientDisconnect:
            raise Refused("the client has gone") from None
        return bytes(raw)

    async def _events(
        self, asked: Chat, future: asyncio.Future[Posterior], name: str
    ) -> AsyncIterator[bytes]:
        """Signs of life until the answer is there, then its chunks."""
        while not future.done():
            await asyncio.wait([future], timeout=ALIVE)
            if not future.done():
                yield b": working\n\n"
        try:
            whole = response(asked, future.result(), self.settings.model, name)
        except Exception as error:  # the status is sent already: the error is an event
            _, body = failure(error)
            yield _event(body)
            yield b"data: [DONE]\n\n"
            return
        for chunk in chunks(asked, whole):
            yield _event(chunk)
        yield b"data: [DONE]\n\n"

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            try:
                self._admit(request)
                return await handler(request)
            except Exception as error:
                status, body = failure(error)
                more = {"Retry-After": "5"} if status in (429, 503) else {}
                more |= {"Connection": "close"} if status == 413 else {}
                return JSONResponse(body, status, more)

        return guarded

    def _admit(self, request: Request) -> None:
        s = self.settings
        if s.key:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), s.key.encode()):
                raise Refused("the API key is missing or wrong", status=401, code="invalid_api_key")
            return
        if s.hosts and request.headers.get("host", "") not in s.hosts:
            raise Refused("the Host header names another server", status=400)
        if "origin" in request.headers or request.headers.get("sec-fetch-site", "none") != "none":
            raise Refused("requests of web pages need an API key", status=403)


def failure(error: Exception) -> tuple[int, Any]:
    """The status and the error object of an exception."""
    if isinstance(error, Refused):
        kind = "authentication_error" if error.status == 401 else "invalid_request_error"
        return error.status, error_json(str(error), kind, error.param, error.code)
    if isinstance(error, Busy):
        return 429, error_json(one_line(error), "rate_limit_error", code="busy")
    if isinstance(error, Suspended):
        return 503, error_json(one_line(error), "server_error", code="model_unavailable")
    if isinstance(error, AllParticlesDead):
        return 422, error_json(one_line(error), "posterior_error", code="all_particles_dead")
    if isinstance(error, LmpplError):
        return 500, error_json(one_line(error), "server_error", code=type(error).__name__)
    return 500, error_json(f"the program raised {type(error).__name__}", "server_error")


async def _no_route(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    message = f"no {request.method} {request.url.path} here"
    return JSONResponse(error_json(message, "invalid_request_error"), status)


def _event(data: Any) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"


def accepted_hosts(host: str, port: int) -> tuple[str, ...]:
    """The Host headers of a server on this machine; empty for one that others reach."""
    if host not in LOOPBACK:
        return ()
    return (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}")


def run(app: Starlette, host: str, port: int, ready: Callable[[], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; requests that run are answered first, for ten seconds.

    Args:
        app: what answers.
        host: where to listen.
        port: where to listen.
        ready: called once a request would be answered.
    """
    import uvicorn

    class Announced(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            ready()

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
        limit_concurrency=1024,
    )
    with contextlib.suppress(KeyboardInterrupt):
        Announced(config).run()
