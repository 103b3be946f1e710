"""A headless Chromium for tests, spoken to through a pipe: nothing but the standard library.

    with Browser() as browser:
        page = browser.open(path.as_uri())
        page.evaluate("document.title")
        page.screenshot(path, 1200, 800)

The DevTools protocol is JSON messages that end in a NUL byte, on descriptors 3 and 4 of the
browser (`--remote-debugging-pipe`). `page.log` keeps exceptions, console errors, refusals of the
content policy and dialogs; `page.requests` every address that was asked for.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
    "--disable-extensions", "--disable-background-networking", "--disable-dev-shm-usage",
    "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip


def chromium() -> str | None:
    """The program, or None where there is no Chromium (Debian: `apt-get install chromium`)."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session
        self.log: list[str] = []
        self.requests: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, params, self.session)

    def evaluate(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 20.0) -> float:
        """Wait until an expression is true; how long it took."""
        began = time.monotonic()
        while not self.evaluate(script):
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"{script} is not true after {seconds} s: {self.log}")
            time.sleep(0.02)
        return time.monotonic() - began

    def screenshot(self, path: Path, width: int, height: int, top: int = 0) -> None:
        """A picture of the page from `top` on."""
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def event(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.log.append(
                f"exception: {details.get('exception', {}).get('description', details)}"
            )
        elif method == "Log.entryAdded":
            self.log.append(f"{params['entry']['level']}: {params['entry']['text']}")
        elif method == "Page.javascriptDialogOpening":
            self.log.append(f"dialog: {params['message']}")
            self.browser.send("Page.handleJavaScriptDialog", {"accept": True}, self.session)
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


class Browser:
    """A browser of its own, with a profile that is thrown away."""

    def __init__(self) -> None:
        program = chromium()
        if program is None:
            raise FileNotFoundError("no Chromium: apt-get install chromium")
        self.profile = tempfile.mkdtemp(prefix="lmppl-browser-")
        theirs_in, self.out = os.pipe()
        self.into, theirs_out = os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (theirs_in, theirs_out)]
        command = [program, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{high[0]} 4>&{high[1]}', "bash", *command],
            pass_fds=high, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        for fd in (theirs_in, theirs_out, *high):
            os.close(fd)
        self.buffer, self.number = b"", 0
        self.pages: dict[str, Page] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # the group of our own browser
        except ProcessLookupError:
            pass
        self.process.wait()
        os.close(self.out)
        os.close(self.into)
        shutil.rmtree(self.profile, ignore_errors=True)

    def open(self, address: str, width: int = 1280, height: int = 900) -> Page:
        """A new tab at an address; returns as soon as it is asked for."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        page = self.pages[attached["sessionId"]] = Page(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        page.call("Page.navigate", url=address)
        return page

    def send(self, method: str, params: dict[str, Any], session: str | None = None) -> int:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        return self.number

    def call(
        self, method: str, params: dict[str, Any], session: str | None = None
    ) -> dict[str, Any]:
        number = self.send(method, params, session)
        while True:
            message = self.receive()
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return dict(message["result"])
            page = self.pages.get(message.get("sessionId", ""))
            if page is not None and "method" in message:
                page.event(message["method"], message["params"])

    def receive(self, seconds: float = 60.0) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.into], [], [], seconds)
            if not ready:
                raise TimeoutError("the browser does not answer")
            part = os.read(self.into, 1 << 20)
            if not part:
                raise EOFError("the browser has ended")
            self.buffer += part
        raw, _, self.buffer = self.buffer.partition(b"\0")
        return dict(json.loads(raw))
