"""The report of a posterior: complete, self-contained, and no text of a run does anything in it."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lmppl import LM, Bernoulli, Choice, Uniform, effect, observe, program, sample
from lmppl.errors import BadArgument
from lmppl.graphs import Node, graph
from lmppl.inference import SMC, Beam, Enumerate, Greedy, Importance, Posterior, infer
from lmppl.inference.results.posterior import Asked, History
from lmppl.inference.search.found import Found
from lmppl.inference.view.page import policy, report_page, script
from lmppl.ledger import Ledger, ModelCost, SiteCost
from lmppl.lm.table import TableLM
from lmppl.trace import Entry, Trace

DO = "window.pwned=1"
EVIL = [
    f"<script>{DO}</script>",
    f"</script><script>{DO}</script>",
    f"<img src=x onerror={DO}>",
    f"</noscript></style></title><img src=x onerror={DO}>",
    f"\"><svg onload='{DO}'>",
    f"' onmouseover='{DO}' autofocus onfocus='{DO}",
    f"<!--<script>{DO}//-->",
    f"javascript:{DO}",
    f"<a href=javascript:{DO}>click</a>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<img src=http://127.0.0.1:9/leak.png><link rel=stylesheet href=http://127.0.0.1:9/leak.css>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'><base href=http://127.0.0.1:9/>",
    "data:text/html,<script>opener.pwned=1</script>",
    f"{{{{constructor.constructor('{DO}')()}}}}",
    f"\u2028{DO}\u2029\x00\u202e\ud800 ]]>",
    "$&$`<b>${1}</b>`${window.pwned=1}`",
]
TAGS = set(
    "html head meta title style body header main section div span p pre b i h1 h2 h3 table thead tbody tr th td "
    "details summary label input select button canvas script noscript figure figcaption img "
    "svg path rect circle ellipse line text g defs marker tspan".split()
)
ATTRIBUTES = set(
    "class style lang charset http-equiv content name type id checked open role aria-label width height viewbox fill "
    "fill-opacity stroke stroke-width stroke-opacity stroke-linejoin stroke-dasharray d x y cx cy r rx ry text-anchor "
    "font-size font-family font-weight font-style transform data-encoding placeholder min max value title alt xmlns "
    "x1 x2 y1 y2 refx refy markerwidth markerheight orient marker-end src opacity points data-site".split()
)
VOID = {"meta", "input", "br", "img"}


class Markup(HTMLParser):
    """Every tag and attribute of a page, as a browser without scripts reads it."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.texts: list[str] = []
        self.policy = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == [], "everything that is opened is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        found = dict(attrs)
        for name, value in attrs:
            assert name in ATTRIBUTES, f"{tag} {name}={value!r}"
            if name == "src":
                assert tag == "img" and str(value).startswith("data:image/png;base64,")
            if name == "style":
                assert not re.search(r"url|expression|import", str(value)), value
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(found["content"])
        if tag == "script":
            self.scripts.append((found, ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            given, before = self.scripts.pop()
            self.scripts.append((given, before + data))
        elif self.open[-1:] != ["style"]:
            self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def state_of(page: str) -> dict[str, Any]:
    """What the island of a page holds."""
    found = re.search(r'<script type="application/json" id="state" data-encoding="(\w+)">(.*?)</script>', page, re.S)  # fmt: skip
    assert found is not None
    data = found[2].encode()
    if found[1] == "deflate":
        data = zlib.decompress(base64.b64decode(data))
    return dict(json.loads(data))


# -- runs -----------------------------------------------------------------------------------------

LM_ = TableLM(["up ", "down ", "yes", "no", "\n"], {(): [0.3, 0.3, 0.1, 0.1, 0.2]})


@program
def walk(steps: int) -> Any:
    told = ""
    for i in range(steps):
        told += sample(f"step{i}", LM(f"go{told}", max_tokens=5, stop="\n"))
        observe(f"liked{i}", Bernoulli(0.2 + 0.6 / (1 + told.count("down"))), True)
    effect("count", len, told)
    return sample("answer", Choice(f"{told}: ", ["yes", "no"]))


@program
def planned() -> str:
    def ask() -> str:
        return str(sample("said", LM("say ", max_tokens=3, stop="\n")))

    def join(a: str, b: str) -> str:
        return f"{a}|{b}"

    found = graph("plan", [Node("a", ask), Node("b", ask), Node("both", join, parents=("a", "b"))])
    return "yes" if "yes" in found["both"] else "no"


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    return infer(walk, 3, engine=SMC(particles=30, ess_threshold=0.9), lm=LM_, seed=1)


def evil_posterior(texts: Sequence[str] = EVIL) -> Posterior:
    """Hostile text in every field that a report shows."""
    traces, heads = [], []
    for i, evil in enumerate(texts):
        entry = Entry(None, "sample", f"site {texts[i - 1]}", evil, logp=-1.0)
        heads.append(entry)
        entry = Entry(entry, "observe", f"seen {evil}", [evil], logp=-0.5, logw=-0.5)
        entry = Entry(entry, evil, "an operation", evil)
        nodes = [
            {"id": f"first {evil}", "text": evil, "parents": (), "kind": evil, "status": evil},
            {"id": evil, "text": evil, "parents": (f"first {evil}",), "reason": evil, "tokens": 3},
        ]
        entry = Entry(
            entry,
            "deterministic",
            f"graph {evil}",
            {"thoughts": "x", "thoughts.": 1, "nodes": nodes},
        )
        traces.append(Trace(entry, evil))
    n = len(traces)
    history = History(n)
    history.log_weights.append(np.zeros(n))
    history.heads.append(list(heads))
    parents = np.maximum(np.arange(n) - 1, 0)
    history.record(n / 2, -1.0, parents, parents.tolist())
    history.end(np.linspace(0, 1, n), parents.tolist())
    book = Ledger(models={e: ModelCost(1, 2, 3, 4) for e in texts})
    book.sites = {e: SiteCost(1, 2, 3, 0.1) for e in texts}
    post = Posterior(
        traces, np.linspace(0, 1, n), -1.0, engine=texts[0], target="\n".join(texts), ledger=book,
        history=history, eves=parents.tolist(), deaths={e: 1 for e in texts}, death_examples=texts, warnings=texts,
    )  # fmt: skip

    def named() -> Any:
        for i, e in enumerate(texts):
            sample(f"{i} {e}".replace("/", "⁄").replace("[", "("), Uniform([e, "other"]))

    named.__name__ = texts[1]
    post.asked = Asked(named, (), {}, {})
    return post


# -- the file -------------------------------------------------------------------------------------


def test_a_report_is_one_file_that_fetches_nothing(posterior: Posterior, tmp_path: Path) -> None:
    posterior.report(tmp_path / "run.html", title="Up or down?")
    page = (tmp_path / "run.html").read_text("utf-8")
    found = Markup(page)
    assert (
        "default-src 'none'" in found.policy and "unsafe-inline'; base-uri 'none'" in found.policy
    )
    (island, _), (ours, code) = found.scripts
    assert island["type"] == "application/json" and ours == {}
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in found.policy and code == script()
    assert set(re.findall(r"https?://[^\s\"'<)]*", page)) <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in page and "url(#" not in page.replace("url(#lmppl-arrow)", "")
    assert list(tmp_path.iterdir()) == [tmp_path / "run.html"]


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


def test_the_state_has_the_numbers_of_the_posterior(posterior: Posterior) -> None:
    state = state_of(report_page(posterior))
    strings, nodes, history = state["strings"], state["nodes"], posterior.history
    assert history is not None and len(history.heads) == len(history.ess) - 1
    rows = {strings[text]: p for text, p, _ in state["answers"]}
    for value, p in posterior.marginal().items():
        assert rows[value] == pytest.approx(p, abs=1e-4)
    parent = [i - up for i, up in enumerate(nodes["up"])]
    for leaf, trace, weight in zip(
        state["particles"]["leaf"], posterior.traces, state["particles"]["lw"], strict=True
    ):
        told = []
        while leaf:
            op, address = state["sites"][nodes["site"][leaf]]
            told.append((op, address, strings[nodes["text"][leaf]]))
            leaf = parent[leaf]
        shown = [(e.op, e.address, e.value if isinstance(e.value, str) else repr(e.value)) for e in trace.sites]  # fmt: skip
        assert told[::-1] == shown
        assert weight == pytest.approx(
            posterior.log_weights[posterior.traces.index(trace)], rel=1e-4
        )
    for t, step in enumerate(state["steps"]):
        assert step["ess"] == pytest.approx(history.ess[t], rel=1e-3)
        assert ("parents" in step) == (history.ancestors[t] is not None)
        assert len(step["at"]) == len(step["lw"]) == 30
    tokens = sum(row[3] for row in state["costs"])
    assert tokens == posterior.ledger.tokens_out == state["tokens"][1]
    assert ["step0", "step1"] in state["edges"]


def test_those_that_died_out_are_told(posterior: Posterior) -> None:
    """Nodes of the tree that no final particle descends from: what resampling left behind."""
    state = state_of(report_page(posterior, graph=False, land=False))
    parent = [i - up for i, up in enumerate(state["nodes"]["up"])]
    alive = {0}
    for leaf in state["particles"]["leaf"]:
        while leaf not in alive:
            alive.add(leaf)
            leaf = parent[leaf]
    dead = set(range(len(parent))) - alive
    assert dead and {n for step in state["steps"] for n in step["at"]} >= {
        d for d in dead if d not in parent
    }


@pytest.mark.parametrize("engine", [Importance(5), Enumerate(), Greedy(), SMC(1)], ids=repr)
def test_every_engine_has_a_report(engine: Any) -> None:
    state = state_of(report_page(infer(coins, engine=engine, seed=0)))
    assert state["answers"] and state["landscape"] is not None
    assert len(state["particles"]["leaf"]) == state["size"]


@program
def coins() -> Any:
    a, b = sample("a", Uniform([0, 1])), sample("b", Uniform([0, 1]))
    observe("sum", Bernoulli(0.9 if a + b == 1 else 0.1), True)
    return a


def test_a_dead_population_has_a_report() -> None:
    @program
    def never() -> int:
        observe("impossible <b>", Bernoulli(0.0), True)
        return 1

    dead = infer(never, engine=SMC(4), on_dead="return")
    state = state_of(report_page(dead))
    assert state["dead"] and state["deaths"] == [["impossible <b>", 4]] and state["answers"] == []


def test_a_loaded_posterior_has_a_report(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path / "p.jsonl")
    loaded = state_of(report_page(Posterior.load(tmp_path / "p.jsonl")))
    before = state_of(report_page(posterior))
    assert loaded["answers"] and loaded["costs"] == before["costs"] and loaded["edges"] == []
    assert [s["lw"] for s in loaded["steps"]] == [s["lw"] for s in before["steps"]]
    assert "is not known" in loaded["graph_note"]


def test_recorded_thought_graphs_are_told() -> None:
    post = infer(planned, engine=SMC(4), lm=LM_, seed=0)
    state = state_of(report_page(post))
    (first, *_) = state["graphs"].values()
    names = [state["strings"][row[0]] for row in first["rows"]]
    assert names == ["a", "b", "both"] and first["rows"][2][2] == [0, 1]
    assert first["totals"][0] >= first["totals"][1] > 0, "tokens, and those on the critical path"


def test_long_texts_are_cut_and_the_page_keeps_to_its_limit() -> None:
    noise = np.random.default_rng(0)
    big = "x" * 50_000_000
    words = ["".join(map(chr, noise.integers(97, 123, 3000))) for _ in range(400)]
    traces = [Trace(Entry(None, "sample", "t", w), w) for w in [big, *words]]
    page = report_page(Posterior(traces, np.zeros(401), 0.0), limit=400_000, land=False)
    assert len(page) < 400_000
    state = state_of(page)
    assert state["cut"] and max(map(len, state["strings"])) <= state["cut"] + 2


def test_many_particles_are_told_by_the_heaviest() -> None:
    many = infer(coins, engine=Importance(4500), seed=0)
    state = state_of(report_page(many, land=False))
    assert len(state["particles"]["leaf"]) == 4000 and state["size"] == 4500
    left = set(range(4500)) - set(state["particles"]["index"])
    assert max(many.weights[list(left)]) <= min(many.weights[state["particles"]["index"]])


def test_wrong_options_are_named(posterior: Posterior) -> None:
    with pytest.raises(BadArgument, match="limit must be at least 100,000"):
        report_page(posterior, limit=10)


# -- hostile text ---------------------------------------------------------------------------------


def test_hostile_text_is_never_markup() -> None:
    page = report_page(evil_posterior(), title=EVIL[3])
    found = Markup(page.encode("utf-8", "backslashreplace").decode())
    assert len(found.scripts) == 2
    read = "".join(found.texts)
    for evil in EVIL:
        clean = evil.encode("utf-8", "backslashreplace").decode().replace("\x00", "")
        assert clean in read.replace("\x00", ""), evil
    strings = state_of(page)["strings"]
    assert set(EVIL) <= set(strings), "texts are exact in the state"


@pytest.fixture(scope="module")
def driver(root: Path) -> ModuleType:
    """`tests/browser.py`."""
    spec = importlib.util.spec_from_file_location("lmppl_tests_browser", root / "tests/browser.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lmppl_tests_browser"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser(driver: ModuleType) -> Iterator[Any]:
    if driver.chromium() is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with driver.Browser() as found:
        yield found


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


def test_hostile_text_does_nothing_in_a_browser(browser: Any, tmp_path: Path) -> None:
    evil_posterior().report(tmp_path / "evil.html", title=EVIL[0])
    page = browser.open((tmp_path / "evil.html").as_uri())
    page.wait(READY)
    assert page.evaluate(EVERYTHING.replace("TEXTS", json.dumps(EVIL[:2]))) == "clean"
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


def test_the_test_sees_a_report_that_executes(browser: Any, tmp_path: Path) -> None:
    """Negative control: markup from texts is seen, and the policy alone would have stopped it."""
    page = report_page(evil_posterior([e for e in EVIL if "refresh" not in e]))
    for keep, said in ((False, True), (True, False)):
        path = tmp_path / f"weak-{keep}.html"
        path.write_bytes(weak(page, keep_policy=keep).encode("utf-8", "backslashreplace"))
        opened = browser.open(path.as_uri())
        opened.wait(f"document.body && (window.pwned || {READY})")
        opened.evaluate("new Promise((r) => setTimeout(r, 500))")
        assert opened.evaluate("window.pwned === 1") is said
        assert any("Content Security Policy" in line for line in opened.log) is keep


def test_a_reader_finds_their_way(browser: Any, posterior: Posterior, tmp_path: Path) -> None:
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
    answers = state_of(report_page(posterior))["answers"]
    give("answer", "1", "change")
    second = state_of(report_page(posterior))["strings"][answers[1][0]]
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


def test_a_large_state_is_inflated_by_the_page(browser: Any, tmp_path: Path) -> None:
    post = infer(walk, 4, engine=Importance(600), lm=LM_, seed=0)
    post.report(tmp_path / "large.html")
    assert 'data-encoding="deflate"' in (tmp_path / "large.html").read_text("utf-8")
    page = browser.open((tmp_path / "large.html").as_uri())
    page.wait(READY)
    assert page.evaluate("document.getElementById('found').textContent") == "600 of 600 particles"
    assert page.log == []


def test_what_a_search_gave_up_is_told() -> None:
    found = infer(walk, 2, engine=Beam(width=2, expand=3), lm=LM_, seed=0)
    state = state_of(report_page(found, graph=False, land=False))
    parent = [i - up for i, up in enumerate(state["nodes"]["up"])]
    alive = {0}
    for leaf in state["particles"]["leaf"]:
        while leaf not in alive:
            alive.add(leaf)
            leaf = parent[leaf]
    texts = [state["strings"][t] for t in state["nodes"]["text"]]
    assert isinstance(found, Found) and found.nodes > len(found) and len(parent) > len(alive)
    assert {texts[n] for n in set(range(len(parent))) - alive} - {"True", ""}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of ArviZ and matplotlib are theirs
def test_the_plots_of_arviz_are_pictures_in_the_page() -> None:
    pytest.importorskip("arviz")
    pytest.importorskip("matplotlib")

    @program
    def named() -> Any:
        return sample("<b>side", Uniform(["<i>heads", "tails"])), sample("n", Uniform([1, 2, 3]))

    page = report_page(infer(named, engine=SMC(50), seed=0), arviz=True)
    found = Markup(page)
    assert page.count('<img class="shot"') == 2 and "img-src data:;" in found.policy
    assert "<b>side_code: 0 = <i>heads, 1 = tails" in "".join(found.texts)
    assert "img-src" not in Markup(report_page(infer(named, engine=SMC(5), seed=0))).policy
