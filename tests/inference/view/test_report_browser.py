"""The report in a browser: it can be used, and no text of a run does anything in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest

from lmppl.inference import Cascade, Importance, ParticleGibbs, Posterior, infer
from lmppl.inference.view.page import policy, report_page, script

READY = "document.body && document.body.dataset.ready"
EVERYTHING = """(async () => {
  for (const query of [".answer", ".vertex", ".thought", "#particles tr", "button", "summary", "#step"])
    for (const node of [...document.querySelectorAll(query)].slice(0, 4)) {
      node.dispatchEvent(new MouseEvent("click", { bubbles: true }));
      node.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
    }
  const set = (id, value, event) => { const n = document.getElementById(id); n.value = value; n.dispatchEvent(new Event(event)); };
  for (const text of TEXTS) { set("query", text, "input"); await new Promise((r) => setTimeout(r, 140)); }
  set("query", "", "input"); set("step", "0", "input"); set("answer", "1", "change");
  await new Promise((r) => setTimeout(r, 300));
  return window.pwned === undefined ? "clean" : "executed";
})()"""


@pytest.fixture(scope="module")
def posterior(reports: ModuleType) -> Posterior:
    return cast("Posterior", reports.walked())


def test_scripts_never_make_markup_of_text() -> None:
    """One way into the page: text nodes."""
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
    ):
        assert word not in script()


def test_hostile_text_is_never_markup(reports: ModuleType) -> None:
    page = report_page(reports.evil_posterior(), title=reports.EVIL[3])
    found = reports.Markup(page.encode("utf-8", "backslashreplace").decode())
    assert len(found.scripts) == 2
    read = "".join(found.texts)
    for evil in reports.EVIL:
        clean = evil.encode("utf-8", "backslashreplace").decode().replace("\x00", "")
        assert clean in read.replace("\x00", ""), evil
    strings = reports.state_of(page)["strings"]
    assert set(reports.EVIL) <= set(strings), "texts are exact in the state"


def test_hostile_text_does_nothing_in_a_browser(
    reports: ModuleType, browser: Any, tmp_path: Path
) -> None:
    reports.evil_posterior().report(tmp_path / "evil.html", title=reports.EVIL[0])
    page = browser.open((tmp_path / "evil.html").as_uri())
    page.wait(READY)
    assert page.evaluate(EVERYTHING.replace("TEXTS", json.dumps(reports.EVIL[:2]))) == "clean"
    assert page.log == [], "no exception, no dialog, nothing that the policy had to refuse"
    assert page.requests == [(tmp_path / "evil.html").as_uri()]
    assert page.evaluate("document.querySelectorAll('script').length") == 2
    assert (
        page.evaluate("document.querySelectorAll('iframe,link,base,a,img,object,embed').length")
        == 0
    )


def weak(page: str, *, keep_policy: bool) -> str:
    """The report with a script that makes markup of texts, with or without its policy."""
    broken = script().replace(
        "node.append(child.nodeType ? child : document.createTextNode(String(child)));",
        "if (child.nodeType) node.append(child); else node.insertAdjacentHTML('beforeend', String(child));",
    )
    assert broken != script()
    page = page.replace(script(), broken)
    digest = base64.b64encode(hashlib.sha256(broken.encode()).digest()).decode()
    new = re.sub(r"sha256-[^']+", f"sha256-{digest}", policy()) if keep_policy else ""
    return page.replace(policy(), new)


def test_the_test_sees_a_report_that_executes(
    reports: ModuleType, browser: Any, tmp_path: Path
) -> None:
    """Negative control: markup from texts is seen, and the policy alone would have stopped it."""
    page = report_page(reports.evil_posterior([e for e in reports.EVIL if "refresh" not in e]))
    for keep, said in ((False, True), (True, False)):
        path = tmp_path / f"weak-{keep}.html"
        path.write_bytes(weak(page, keep_policy=keep).encode("utf-8", "backslashreplace"))
        opened = browser.open(path.as_uri())
        opened.wait(f"document.body && (window.pwned || {READY})")
        opened.evaluate("new Promise((r) => setTimeout(r, 500))")
        assert opened.evaluate("window.pwned === 1") is said
        assert any("Content Security Policy" in line for line in opened.log) is keep


def test_a_reader_finds_their_way(
    reports: ModuleType, browser: Any, posterior: Posterior, tmp_path: Path
) -> None:
    """Search, filter, slider, story."""
    posterior.report(tmp_path / "run.html")
    page = browser.open((tmp_path / "run.html").as_uri())
    page.wait(READY)

    def told(query: str) -> str:
        return str(page.evaluate(f"document.querySelector({query!r}).textContent"))

    def give(name: str, value: str, event: str) -> None:
        page.evaluate(f"(() => {{ const n = document.getElementById('{name}'); n.value = '{value}'; n.dispatchEvent(new Event('{event}')); }})()")  # fmt: skip
        page.evaluate("new Promise((r) => setTimeout(r, 250))")

    assert told("#found") == "30 of 30 particles" and told("#step-label").startswith("end: ESS")
    with_up = sum(any("up up" in str(e.value) for e in t.sites) for t in posterior.traces)
    give("query", "up up", "input")
    assert told("#found") == f"{with_up} of 30 particles" and 0 < with_up < 30
    assert page.evaluate("document.querySelectorAll('mark').length") > 0
    give("query", "", "input")
    answers = reports.state_of(report_page(posterior))["answers"]
    give("answer", "1", "change")
    second = reports.state_of(report_page(posterior))["strings"][answers[1][0]]
    many = sum(str(r) == second for r in posterior.values())
    assert told("#found") == f"{many} of 30 particles"
    give("answer", "-2", "change")
    give("step", "0", "input")
    assert told("#step-label").startswith("barrier 0 of 6: ESS")
    assert page.evaluate("document.querySelectorAll('.event.later').length") > 0
    best = posterior.traces[int(np.argmax(posterior.weights))]
    story = told("#story")
    assert all(e.address in story for e in best.sites) and "drew step0" in story
    assert page.log == []


@pytest.mark.parametrize(
    "engine", [Cascade(12), ParticleGibbs(6, sweeps=9, always=True)], ids=lambda e: type(e).__name__
)
def test_barriers_of_other_populations_can_be_walked(
    reports: ModuleType, browser: Any, tmp_path: Path, engine: Any
) -> None:
    """The slider, and clicks all over the genealogy."""
    post = infer(reports.walk, 3, engine=engine, lm=reports.UP_DOWN, seed=1)
    post.report(tmp_path / "run.html")
    page = browser.open((tmp_path / "run.html").as_uri())
    page.wait(READY)
    found = page.evaluate("""(async () => {
      const n = document.getElementById("step"), canvas = document.getElementById("genealogy");
      const box = () => canvas.getBoundingClientRect(), seen = new Set();
      for (let t = Number(n.max); t >= 0; t--) {
        n.value = String(t); n.dispatchEvent(new Event("input"));
        await new Promise((r) => setTimeout(r, 160));
        for (const up of [0.1, 0.5, 0.9]) {
          const at = { clientX: box().left + (t / Number(n.max)) * (box().width - 26) + 10, clientY: box().top + up * 260 };
          canvas.dispatchEvent(new MouseEvent("click", at));
        }
        seen.add(document.querySelectorAll("#curves figure").length);
      }
      return [Number(n.max), [...seen], document.getElementById("whose").textContent];
    })()""")
    assert post.history is not None
    assert found[0] == len(post.history.ess) - 1 and found[1] == [5]
    said = "the barriers of the last sweep" if "Gibbs" in repr(engine) else ""
    assert found[2] == said
    assert page.log == []


def test_a_large_state_is_inflated_by_the_page(
    reports: ModuleType, browser: Any, tmp_path: Path
) -> None:
    post = infer(reports.walk, 4, engine=Importance(600), lm=reports.UP_DOWN, seed=0)
    post.report(tmp_path / "large.html")
    assert 'data-encoding="deflate"' in (tmp_path / "large.html").read_text("utf-8")
    page = browser.open((tmp_path / "large.html").as_uri())
    page.wait(READY)
    assert page.evaluate("document.getElementById('found').textContent") == "600 of 600 particles"
    assert page.log == []
