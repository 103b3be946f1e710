"""`lmppl view`: its own pages to its own machine, and nothing else to anybody."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmppl import Uniform, program, sample
from lmppl.commands import run as runner
from lmppl.commands.view import seen
from lmppl.errors import BadArgument, DataError
from lmppl.inference import Importance, infer
from lmppl.inference.questions.rundir import PAGES, page_name
from lmppl.inference.view.run_report import run_report
from lmppl.inference.view.server import HEADERS, Viewer
from lmppl.records import ResultRecord


@program
def coin() -> Any:
    return sample("side <b>", Uniform(["heads", "tails"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a run, with things around it that are nobody's business."""
    outer = tmp_path_factory.mktemp("outer")
    run = outer / "run"
    (run / "reports").mkdir(parents=True)
    (outer / "secret.html").write_text("secret")
    (run / "report.html").write_text("<!DOCTYPE html><title>the run</title>")
    (run / "reports" / "one.html").write_text("one")
    (run / "results.jsonl").write_text("{}\n")
    (run / ".hidden.html").write_text("hidden")
    (run / "program.py").write_text("print('code')")
    (run / "picture.svg").write_text("<svg onload=alert(1)>")
    os.symlink(outer / "secret.html", run / "link.html")
    os.symlink(run / "report.html", run / "inner.html")
    os.symlink(outer, run / "up")
    return run


@pytest.fixture(scope="module")
def viewer(folder: Path) -> Iterator[Viewer]:
    with Viewer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def raw(viewer: Viewer, request: str) -> tuple[int, dict[str, str], bytes]:
    """Exactly these bytes, and what comes back."""
    port = int(viewer.server_address[1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request.replace("PORT", str(port)).encode("latin-1"))
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, body


def get(viewer: Viewer, path: str = "/", *lines: str, method: str = "GET") -> int:
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *(lines or ("Host: 127.0.0.1:PORT",))])
    return raw(viewer, f"{head}\r\n\r\n")[0]


def test_it_serves_the_run(viewer: Viewer) -> None:
    code, headers, body = raw(viewer, "GET / HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n")
    assert code == 200 and b"the run" in body and headers["Content-Type"].startswith("text/html")
    assert HEADERS.items() <= headers.items()
    assert headers["X-Frame-Options"] == "DENY"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert get(viewer, "/reports/one.html") == get(viewer, "/inner.html") == 200
    code, headers, _ = raw(viewer, "GET /results.jsonl HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n")
    assert code == 200 and headers["Content-Type"].startswith("text/plain")
    code, headers, body = raw(viewer, "HEAD / HTTP/1.1\r\nHost: [::1]:PORT\r\n\r\n")
    assert code == 200 and body == b"" and int(headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    "host",
    [
        "Host: evil.com", "Host: evil.com:PORT", "Host: 127.0.0.1.evil.com:PORT", "Host: 127.0.0.1",
        "Host: 127.0.0.1:1", "Host: localhost", "Host: 0.0.0.0:PORT", "Host: user@127.0.0.1:PORT",
        "Host:", "X-Forwarded-Host: 127.0.0.1:PORT",
        "Host: 127.0.0.1:PORT\r\nHost: evil.com", "Host: 127.0.0.1:PORT\r\nHost: 127.0.0.1:PORT",
    ],
)  # fmt: skip
def test_another_authority_is_refused(viewer: Viewer, host: str) -> None:
    code, _, body = raw(viewer, f"GET / HTTP/1.1\r\n{host}\r\n\r\n")
    assert code == 400 and b"the run" not in body


@pytest.mark.parametrize(
    "header",
    [
        "Origin: https://evil.com", "Origin: null", "Origin: http://127.0.0.1:1",
        "Origin: https://127.0.0.1:PORT", "Origin: http://127.0.0.1.evil.com:PORT",
        "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site", "Sec-Fetch-Site: whatever",
        "Origin: http://127.0.0.1:PORT\r\nOrigin: https://evil.com",
    ],
)  # fmt: skip
def test_another_origin_is_refused(viewer: Viewer, header: str) -> None:
    code, _, body = raw(viewer, f"GET / HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n{header}\r\n\r\n")
    assert code == 403 and b"the run" not in body


def test_its_own_origin_is_not(viewer: Viewer) -> None:
    own = ("Host: 127.0.0.1:PORT", "Origin: http://127.0.0.1:PORT", "Sec-Fetch-Site: same-origin")
    assert get(viewer, "/", *own) == 200
    assert get(viewer, "/", "Host: 127.0.0.1:PORT", "Sec-Fetch-Site: none") == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_it_is_read_only(viewer: Viewer, method: str) -> None:
    assert get(viewer, method=method) == 403


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.html", "/%2e%2e/secret.html", "/..%2fsecret.html", "/reports/../../secret.html",
        "/..\\secret.html", "/%5c..%5csecret.html", "//etc/passwd", "/etc/passwd", "/report.html%00.txt",
        "/link.html", "/up/secret.html", "/.hidden.html", "/.lock", "/program.py", "/picture.svg", "/reports",
        "/reports/", "/nothing.html", "/./report.html", "report.html", "http://evil.com/../secret.html",
    ],
)  # fmt: skip
def test_paths_stay_in_the_folder(viewer: Viewer, path: str) -> None:
    code, _, body = raw(viewer, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n")
    assert code == 404 and b"secret" not in body and b"hidden" not in body


def test_slow_and_large_requests_hold_up_nobody(viewer: Viewer) -> None:
    port = int(viewer.server_address[1])
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
    for connection in slow:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
    began = time.monotonic()
    assert get(viewer) == 200
    large = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    large.putrequest("POST", "/", skip_host=True)
    large.putheader("Host", f"127.0.0.1:{port}")
    large.putheader("Content-Length", "100000000")
    large.endheaders()
    assert large.getresponse().status == 403, "answered without reading the body"
    large.close()
    assert time.monotonic() - began < 8
    for connection in slow:
        connection.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.1", "::", "example.org"])
def test_only_this_machine_may_look(folder: Path, host: str) -> None:
    with pytest.raises(BadArgument, match="this machine alone") as caught:
        Viewer(folder, host=host)
    assert "ssh -L" in str(caught.value)


def test_what_can_be_seen(folder: Path, tmp_path: Path) -> None:
    assert seen(folder) == (folder, "report.html")
    (tmp_path / "page.html").write_text("a page")
    assert seen(tmp_path / "page.html")[0] == b"a page"
    infer(coin, engine=Importance(5)).save(tmp_path / "p.jsonl")
    page, _ = seen(tmp_path / "p.jsonl")
    assert isinstance(page, bytes) and b"default-src 'none'" in page and b"side <b>" not in page
    with pytest.raises(DataError, match="no folder of a run"):
        seen(tmp_path)


def test_a_run_report_links_the_pages_that_there_are(tmp_path: Path) -> None:
    records = [
        ResultRecord(id=i, program="p", engine="e", answer="a", posterior=[("a", 1.0, 0.0)])
        for i in ("first", "</a><script>")
    ]
    (tmp_path / PAGES).mkdir()
    (tmp_path / page_name(("p", "e", "</a><script>"))).write_text("one")
    run_report(records, tmp_path / "report.html")
    report = (tmp_path / "report.html").read_text()
    assert report.count("<a href=") == 1
    assert f'<a href="{page_name(("p", "e", "</a><script>"))}">' in report


def test_the_command(folder: Path) -> None:
    command = [sys.executable, "-m", "lmppl", "view", str(folder), "--no-open"]
    done = subprocess.run(
        [*command, "--host", "0.0.0.0"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "this machine alone" in done.stderr and "ssh -L" in done.stderr
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        port = int(address.rsplit(":", 1)[1].rstrip("/"))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/")
        assert b"the run" in connection.getresponse().read()
        connection.close()
        process.terminate()


def test_a_run_leaves_pages_and_links_them(tmp_path: Path) -> None:
    (tmp_path / "coin.py").write_text(
        "from lmppl import Bernoulli, Uniform, observe, program, sample\n\n\n"
        "@program\ndef coin(p):\n"
        "    side = sample('side', Uniform(['heads', '</script>']))\n"
        "    observe('seen', Bernoulli(p if side == 'heads' else 1 - p), True)\n"
        "    return side\n"
    )
    lines = [f'{{"id": "q{i}", "p": 0.{i + 5}}}\n' for i in range(4)]
    (tmp_path / "data.jsonl").write_text("".join(lines))
    outcome = runner.run(
        runner.Request(
            str(tmp_path / "coin.py"), str(tmp_path / "data.jsonl"), str(tmp_path / "out"),
            engines=("smc:particles=6", "greedy"), models=("none",), pages=2,
        )
    )  # fmt: skip
    runner.write_report(outcome, "coins")
    pages = sorted((tmp_path / "out" / PAGES).iterdir())
    assert len(pages) == 2, "of two questions; a single particle has nothing to show"
    report = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert sorted(re.findall(r'<a href="reports/([^"]+)">', report)) == [p.name for p in pages]
    assert all("coin: q" in p.read_text("utf-8") for p in pages)
