"""`lmppl view`: a run's pages over HTTP, for the browser of this machine alone.

Read-only, on a loopback address. A page of another site cannot reach it by a name of its own that
resolves to us (its `Host` is not ours: 400), nor by a request from its scripts (its `Origin` or
`Sec-Fetch-Site` is not ours: 403), nor put it in a frame. Paths stay inside of the folder, after
symbolic links are followed. Connections are few and short, so that a slow one holds up nobody.

| answer | when |
| --- | --- |
| 200 | a page, a picture, or a data file as plain text |
| 400 | `Host` is missing, doubled, or another authority |
| 403 | another origin, or any method but GET and HEAD |
| 404 | everything that is not a visible file of a known kind in the folder |

Beyond `MOST` connections at once a new one is closed unread.
"""

from __future__ import annotations

import ipaddress
import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lmppl.errors import BadArgument, DataError

MOST = 128
"""Connections at once."""
TIMEOUT = 10.0
"""Seconds that a connection may stay silent."""
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".json": "text/plain; charset=utf-8",
    ".jsonl": "text/plain; charset=utf-8",
    ".csv": "text/plain; charset=utf-8",
    ".png": "image/png",
}
"""What is served; a picture in SVG could run scripts, so it is not."""
HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'; base-uri 'none'; form-action 'none'; object-src 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Viewer(socketserver.ThreadingMixIn, HTTPServer):
    """Serves a folder, or one page.

    Args:
        what: a folder, or the bytes of a page.
        index: the file of the folder that `/` shows.
        host: a loopback address.
        port: 0 takes a free one; `address` has it.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = MOST

    def __init__(
        self,
        what: Path | bytes,
        index: str = "report.html",
        *,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Bind; `serve_forever` serves."""
        self.what = what if isinstance(what, bytes) else what.resolve()
        self.index = index
        self.address_family = socket.AF_INET6 if ":" in check_host(host) else socket.AF_INET
        self.free = threading.BoundedSemaphore(MOST)
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise DataError(
                f"cannot listen on {host} port {port}: {error.strerror or error}",
                fix="leave --port out: a free one is taken",
            ) from None
        number = self.server_address[1]
        self.hosts = {f"127.0.0.1:{number}", f"localhost:{number}", f"[::1]:{number}"}
        shown = f"[{host}]" if ":" in host else host
        self.hosts.add(f"{shown}:{number}")
        self.address = f"http://{shown}:{number}/"

    def find(self, path: str) -> tuple[bytes, str] | None:
        """The content and kind of a path, or None."""
        decoded = unquote(urlsplit(path).path)
        if isinstance(self.what, bytes):
            return (self.what, KINDS[".html"]) if decoded == "/" else None
        name = self.index if decoded == "/" else decoded.removeprefix("/")
        parts = name.split("/")
        if not decoded.startswith("/") or "\x00" in name or "\\" in name:
            return None
        if any(part in ("", ".", "..") or part.startswith(".") for part in parts):
            return None
        try:
            file = (self.what / name).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            return None
        kind = KINDS.get(file.suffix.lower())
        if kind is None or not file.is_file() or not file.is_relative_to(self.what):
            return None
        return file.read_bytes(), kind

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, while there is room."""
        if self.free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Until it is answered, or has been silent for too long."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks off is no news."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Viewer
    server_version, sys_version = "lmppl", ""
    timeout = TIMEOUT

    def do_GET(self) -> None:
        """A file."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Its headers."""
        self._answer(body=False)

    def refuse(self) -> None:
        """Any other method."""
        self._send(403, b"read-only\n")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = refuse

    def _answer(self, body: bool) -> None:
        code = self._trusted()
        found = self.server.find(self.path) if code == 200 else None
        if code != 200:
            self._send(code, b"this viewer answers its own pages alone\n", body=body)
        elif found is None:
            self._send(404, b"no such page\n", body=body)
        else:
            self._send(200, *found, body=body)

    def _trusted(self) -> int:
        """200, or the code of the refusal."""
        host = self.headers.get_all("Host", [])
        if len(host) != 1 or host[0].strip().lower() not in self.server.hosts:
            return 400
        for origin in self.headers.get_all("Origin", []):
            if origin.strip().lower() not in {f"http://{h}" for h in self.server.hosts}:
                return 403
        for site in self.headers.get_all("Sec-Fetch-Site", []):
            if site.strip().lower() not in ("same-origin", "none"):
                return 403
        return 200

    def _send(
        self, code: int, content: bytes, kind: str = "text/plain; charset=utf-8", body: bool = True
    ) -> None:
        self.close_connection = True  # a body that was sent with the request is never read
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def check_host(host: str) -> str:
    """A loopback address, or a refusal that says how else.

    >>> check_host("127.0.0.1")
    '127.0.0.1'
    """
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        raise BadArgument(
            f"lmppl view listens on this machine alone, not on {host}",
            why="whoever reaches the port could read the run",
            fix="forward the port: ssh -L 8000:127.0.0.1:8000 MACHINE, there lmppl view --port 8000",
        )
    return host
