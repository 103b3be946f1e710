"""What the tests of reports share: a program, its page read back, hostile text in every field."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Sequence
from functools import cache
from html.parser import HTMLParser
from typing import Any

import numpy as np

from lmppl import LM, Bernoulli, Choice, Uniform, effect, observe, program, sample
from lmppl.inference import SMC, Posterior, infer
from lmppl.inference.results.history import History
from lmppl.inference.results.posterior import Asked
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


UP_DOWN = TableLM(["up ", "down ", "yes", "no", "\n"], {(): [0.3, 0.3, 0.1, 0.1, 0.2]})


@program
def walk(steps: int) -> Any:
    told = ""
    for i in range(steps):
        told += sample(f"step{i}", LM(f"go{told}", max_tokens=5, stop="\n"))
        observe(f"liked{i}", Bernoulli(0.2 + 0.6 / (1 + told.count("down"))), True)
    effect("count", len, told)
    return sample("answer", Choice(f"{told}: ", ["yes", "no"]))


@cache
def walked() -> Posterior:
    """A run of `walk` that resamples."""
    engine = SMC(particles=30, ess_threshold=0.9)
    return infer(walk, 3, engine=engine, lm=UP_DOWN, seed=1)


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
