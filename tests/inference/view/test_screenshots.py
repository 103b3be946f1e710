"""The report of docs/reading_a_report.md in a browser, as the pictures of that page.

`LMPPL_SCREENSHOTS=docs/images pytest tests/inference/view/test_screenshots.py` writes them anew.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

PICTURES = {
    "head": "header,.bar,main>section:nth-of-type(1)",
    "thoughts": "#thoughts-section",
    "tree": "#tree-section",
    "time": "#through-section",
    "story": ".two",
    "landscape": "#landscape-section",
}
READY = "document.body && document.body.dataset.ready"
BOX = """(() => {
  const boxes = [...document.querySelectorAll(QUERY)].map((n) => n.getBoundingClientRect());
  const top = Math.min(...boxes.map((b) => b.top)) + scrollY, bottom = Math.max(...boxes.map((b) => b.bottom)) + scrollY;
  return [Math.max(top - 8, 0), bottom - top + 16];
})()"""


def pixels(png: bytes) -> tuple[int, int, int]:
    """Width, height, and how many different bytes the picture has."""
    width, height = struct.unpack(">II", png[16:24])
    data = b"".join(
        png[m.start() + 4 : m.start() + 4 + struct.unpack(">I", png[m.start() - 4 : m.start()])[0]]
        for m in re.finditer(b"IDAT", png)
    )
    return width, height, len(set(zlib.decompressobj().decompress(data)))


def test_the_pictures_of_the_page(
    root: Path, browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (root / "docs/reading_a_report.md").read_text()
    first = re.search(r"```python\n(.*?)```", page, re.S)
    assert first is not None
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(first[1], "docs/reading_a_report.md", "exec"), {"__name__": "page"})
    asked = os.environ.get("LMPPL_SCREENSHOTS")
    folder = root / asked if asked else tmp_path
    opened = browser.open((tmp_path / "run.html").as_uri(), width=1180)
    opened.wait(READY)
    for name, query in PICTURES.items():
        top, height = opened.evaluate(BOX.replace("QUERY", repr(query)))
        path = folder / f"report_{name}.png"
        opened.screenshot(path, 1180, int(height), int(top))
        width, tall, colours = pixels(path.read_bytes())
        assert width == 1180 and tall == int(height) > 150 and colours > 20, name
        assert f"images/report_{name}.png" in page
    assert opened.log == []
    for name in re.findall(r"images/(report_\w+\.png)", page):
        assert (root / "docs/images" / name).is_file(), f"{name} is missing: see the first lines"
