"""The pages: complete, well formed, and no text from a run ever becomes markup."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmppl import LM, Bernoulli, Choice, Uniform, factor, program, sample
from lmppl.errors import DataError
from lmppl.inference import SMC, Enumerate, Greedy, Importance, Posterior, infer
from lmppl.inference.questions.compare import wilson
from lmppl.inference.results.files import posterior_summary
from lmppl.inference.results.history import History
from lmppl.inference.view.charts import bar, curve, interval_bar, number
from lmppl.inference.view.report import posterior_html, run_report
from lmppl.inference.view.run_report import POLICY, check, gold_mass
from lmppl.ledger import Ledger
from lmppl.lm.table import TableLM
from lmppl.records import ResultRecord
from lmppl.trace import Entry, Trace

EVIL = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\"><svg onload='x'>",
    "' onmouseover='x",
    "javascript:alert(1)",
    "</style></details></title><b>bold</b>",
    "&lt;i&gt; &#60;",
    "<!-- --> ]]> \x00\u2028",
]
VOID = {"meta", "input", "br"}
TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "section", "div", "span", "p", "pre", "b", "i",
    "h1", "h2", "h3", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "label", "input",
    "figure", "figcaption", "svg", "path", "rect", "circle", "text",
}  # fmt: skip
ATTRIBUTES = {
    "class", "style", "lang", "charset", "http-equiv", "content", "name", "type", "id", "checked", "open",
    "role", "aria-label", "width", "height", "viewbox", "fill", "fill-opacity", "stroke", "stroke-width",
    "stroke-opacity", "stroke-linejoin", "d", "x", "y", "cx", "cy", "r", "rx", "text-anchor", "font-size",
}  # fmt: skip


class Page(HTMLParser):
    """Reads a page as a browser does and refuses whatever should not be there."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.texts: list[str] = []
        self.labels: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], "everything that is opened is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        for name, value in attrs:
            assert name in ATTRIBUTES, f"{tag} {name}={value!r}"
            if name == "style":
                assert re.fullmatch(r"(--[kpaz]:[\d.e-]+;?)+|max-width:100%|color:#[0-9a-f]{6}", value or ""), value  # fmt: skip
            if name == "aria-label":
                self.labels.append(value or "")
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    @property
    def text(self) -> str:
        return "".join(self.texts)


def style_of(html: str) -> str:
    return "".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))


def fetches_nothing(html: str) -> None:
    """`Page` refuses every tag and attribute that could fetch; these are the ways left to a style."""
    assert "url(" not in html and "@import" not in html


# -- one posterior --------------------------------------------------------------------------------


@program
def texts() -> Any:
    t = sample("thought", LM("", max_tokens=4, stop=" "))
    n = sample("n", Uniform([1, 2, 3]))
    factor("prefer", -0.5 * n)
    return sample("answer", Choice("a", ["a", "b"])), n, len(t)


LM_ = TableLM(["a", "b", " ", "<eos>"], {(): [0.4, 0.3, 0.2, 0.1]})


def test_a_posterior_shows_its_numbers() -> None:
    post = infer(texts, engine=SMC(particles=20, always=True), lm=LM_, seed=0)
    html = post._repr_html_()
    page = Page(html)
    fetches_nothing(html)
    low, high = post.log_evidence_interval()
    assert (
        f"{number(post.log_evidence)}log evidence, 95 %: {number(low)} … {number(high)}"
        in page.text
    )
    assert f"{number(post.ess)}effective sample size of 20 particles" in page.text
    assert f"{post.unique_ancestors}first ancestors left" in page.text
    marginal = post.marginal()
    for value, p in list(marginal.items())[:3]:
        assert f"{value!r}" in page.text and f"{p:.4f}" in page.text
    assert f"{post.ledger.tokens_in:,} + {post.ledger.tokens_out:,}tokens in + out" in page.text
    assert "table" in page.text and post.target.splitlines()[0] in page.text
    for site in ("thought", "n", "prefer", "answer"):
        assert site in page.text
    assert page.count["figure"] == 3, "ESS, ancestors, evidence"
    assert any("20 particles, " in label for label in page.labels), "the genealogy"


@pytest.mark.parametrize(
    ("engine", "absent"),
    [(Importance(6), "Genealogy"), (Greedy(), "By barrier"), (Enumerate(), "first ancestors")],
    ids=repr,
)
def test_every_engine_has_a_page(engine: Any, absent: str) -> None:
    page = Page(posterior_html(infer(texts, engine=engine, lm=LM_, seed=0)))
    assert absent not in page.text and "Answers" in page.text


def test_an_exact_posterior_says_so() -> None:
    page = Page(posterior_html(infer(texts, engine=Enumerate(), lm=LM_)))
    assert "log evidence, exact" in page.text and "±" not in page.text.replace("± 2 standard", "")


def test_a_dead_posterior_says_where_it_died() -> None:
    @program
    def never() -> None:
        sample("x", Bernoulli(0.5))
        factor("the judge", False)

    page = Page(posterior_html(infer(never, engine=SMC(4), on_dead="return")))
    assert "All particles have weight zero" in page.text and "the judge" in page.text
    assert "−∞" in page.text and "Answers" not in page.text


@pytest.mark.parametrize("evil", EVIL)
def test_no_text_of_a_posterior_becomes_markup(evil: str) -> None:
    head = Entry(Entry(None, "sample", evil, evil, logp=-1.0), evil, f"{evil}[1]", {evil: evil})
    history = History(2, [1.5, 2.0], [-1.0, -2.0], [np.array([0, 0]), None], [1, 1])
    ledger = Ledger()
    ledger.model(evil).calls += 1
    html = posterior_html(
        Posterior(
            [Trace(head, evil), Trace(head, (evil, 1))],
            np.zeros(2),
            -2.0,
            engine=evil,
            target=evil,
            ledger=ledger,
            history=history,
            deaths={evil: 3},
            death_examples=[evil],
            warnings=[evil],
        )
    )
    page = Page(html)
    fetches_nothing(html)
    assert page.text.count(evil) >= 7, "engine, target, model, site, answer, death, warning"
    assert "bold</b>" not in html


def test_the_small_tables_escape_too() -> None:
    for evil in EVIL:
        shown = Trace(Entry(None, "sample", evil, evil), evil)._repr_html_()
        shown += Posterior([Trace(None, evil)], np.zeros(1), 0.0).marginal()._repr_html_()
        found = set(re.findall(r"<(/?[a-z]+)", shown))
        assert {t.strip("/") for t in found} <= {
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "svg",
            "rect",
        }


def test_a_large_posterior_makes_a_small_page() -> None:
    rng = np.random.default_rng(0)
    n, t = 2000, 300
    steps = [np.sort(rng.integers(0, n, n)) for _ in range(t)]
    history = History(
        n, [n / 2] * t, [-float(i) for i in range(t)], list(steps), [n // (i + 1) for i in range(t)]
    )
    found = [Trace(Entry(None, "sample", "x", "long " * 2000), i) for i in range(n)]
    html = posterior_html(Posterior(found, rng.normal(size=n), -1.0, history=history))
    Page(html)
    assert len(html) < 600_000
    assert "more answers share" in html and "(cut, 10,000 chars)" in html


# -- pieces ---------------------------------------------------------------------------------------


def test_bars_are_as_long_as_their_share() -> None:
    for share in (0.0, 0.25, 1.0):
        widths = [
            float(w) for w in re.findall(r'width="([\d.]+)" height="10"', bar(share, width=102))
        ]
        assert widths == [100.0, pytest.approx(100 * share)]
    assert "path" not in bar(0.5, 0.0) and "path" not in bar(0.5, math.nan)
    low, high = re.findall(r"M([\d.]+) 7H([\d.]+)", bar(0.5, 0.1, width=102))[0]
    assert (float(low), float(high)) == (31.0, 71.0), "plus and minus two standard errors"
    assert re.findall(r"M([\d.]+) 7H([\d.]+)", interval_bar(0.5, 0.4, 0.9, width=102)) == [
        ("41.0", "91.0")
    ]


def test_curves_break_where_there_is_no_number() -> None:
    svg = curve([1.0, math.nan, 3.0, 4.0], "caption", marks=[1])
    assert svg.count("<circle") == 3
    line = re.findall(r'<path d="(M[^"]*)" stroke="#4477aa"', svg)[0]
    assert line.count("M") == 2 and line.count("L") == 1
    assert curve([math.nan], "c") == "" and curve([], "c") == ""
    Page(curve([5.0, 5.0, 5.0], "<b>flat</b>"))
    assert len(curve([float(i) for i in range(100_000)], "long", marks=range(100_000))) < 20_000


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (3, "3"), (-0.0, "0"), (1234567, "1,234,567"), (0.123456, "0.1235"), (math.nan, "?"),
     (-math.inf, "−∞"), (math.inf, "∞"), (123456.7, "123,457"), ("x", "x")],
)  # fmt: skip
def test_numbers_for_people(value: object, shown: str) -> None:
    assert number(value) == shown


# -- a run ----------------------------------------------------------------------------------------


def record(i: int, engine: str, correct: bool | None, **more: Any) -> dict[str, Any]:
    return {
        "id": f"q{i}", "program": "sums", "engine": engine, "question": f"What is {i} + {i}?",
        "answer": str(2 * i) if correct else "no", "gold": None if correct is None else str(2 * i),
        "correct": correct, "posterior": [[str(2 * i), 0.75, 0.1], ["no", 0.25, {"$f": "nan"}]],
        "log_evidence": -1.5, "log_evidence_se": {"$f": "nan"}, "ess": 8.0, "particles": 16,
        "unique_ancestors": 3, "tokens_in": 100, "tokens_out": 20, "seconds": 0.5, "warnings": [],
        "error": None, **more,
    }  # fmt: skip


def written(results: Any, tmp_path: Path, **more: Any) -> tuple[str, Page]:
    run_report(results, tmp_path / "report.html", **more)
    html = (tmp_path / "report.html").read_text()
    fetches_nothing(html)
    return html, Page(html)


@pytest.fixture
def two_engines() -> list[dict[str, Any]]:
    """Greedy: 3 of 10 right; SMC: 7 of 10, with 5 that greedy missed and 1 that it lost."""
    greedy = [True, True, True] + [False] * 7
    smc = [True, True, False] + [True] * 5 + [False] * 2
    return [record(i, "Greedy()", c) for i, c in enumerate(greedy)] + [
        record(i, "SMC(16)", c) for i, c in enumerate(smc)
    ]


def test_the_summary_of_a_run(two_engines: list[dict[str, Any]], tmp_path: Path) -> None:
    html, page = written(two_engines, tmp_path, title="My run")
    assert page.text.startswith("My run") and f'content="{POLICY}"' in html
    for right in (3, 7):
        low, high = wilson(right, 10)
        assert f"{right} / 10 = {right / 10:.1%} [{low:.1%}, {high:.1%}]" in page.text
    cells = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    row = next(Page(f"<table><tr>{c}</tr></table>").texts for c in cells if "against" in c)
    assert "".join(row).startswith("sumsSMC(16) against Greedy()1051+40.0%")
    assert "0.219" in row and "no clear difference" in row, "exact McNemar of 5 against 1"
    assert page.count["details"] == 10, "a question of two engines is one row"
    assert "10questions" in page.text and "2,400tokens in and out" in page.text
    assert "0.750" in page.text, "mass on gold"


def test_filters_find_their_questions(two_engines: list[dict[str, Any]], tmp_path: Path) -> None:
    two_engines[0].update(error="boom", answer=None, posterior=[], correct=False)
    html, page = written(two_engines, tmp_path)
    kinds = re.findall(r'<details class="q ([^"]*)"', html)
    assert sum("error" in k for k in kinds) == 1
    assert sum("wrong" in k for k in kinds) == 9
    assert sum("differ" in k for k in kinds) == 6, "of an error no answer is known to differ"
    for label in (
        "all questions (10)",
        "engines differ (6)",
        "some engine wrong (9)",
        "errors (1)",
    ):
        assert label in page.text
    rules = style_of(html)
    for key, kind in (("differ", "differ"), ("wrong", "wrong"), ("error", "error")):
        assert f".lmppl:has(#f-{key}:checked) .q:not(.{kind})" in rules and f'id="f-{key}"' in html


def test_several_programs_have_their_own_lists(tmp_path: Path) -> None:
    results = [record(1, "SMC(16)", True), record(1, "SMC(16)", False, program="other")]
    html, page = written(results, tmp_path)
    assert page.count["section"] == 3 and page.count["details"] == 2
    assert "against" not in page.text, "different programs are never compared"


def test_a_run_without_gold_answers(tmp_path: Path) -> None:
    _, page = written([record(1, "SMC(16)", None)], tmp_path)
    assert "✓" not in page.text and "✗" not in page.text and "against" not in page.text


def test_an_empty_run_is_a_page_too(tmp_path: Path) -> None:
    _, page = written([], tmp_path)
    assert "0questions" in page.text


def test_a_question_run_again_counts_once(tmp_path: Path) -> None:
    _, page = written([record(1, "SMC(16)", False), record(1, "SMC(16)", True)], tmp_path)
    assert "1 / 1 = 100.0%" in page.text


def test_a_summary_of_a_posterior_is_a_row(tmp_path: Path) -> None:
    post = infer(texts, engine=SMC(particles=8), lm=LM_, seed=0)
    row = {"id": 1, "program": "texts", "engine": post.engine, **posterior_summary(post)}
    _, page = written([row], tmp_path)
    assert f"ESS {number(post.ess, 3)} of 8" in page.text


@pytest.mark.parametrize("evil", EVIL)
def test_no_text_of_a_run_becomes_markup(evil: str, tmp_path: Path) -> None:
    row = record(1, evil, True, id=evil, program=evil, question=evil, answer=evil, gold=evil,
                 posterior=[[evil, 1.0, 0.0], [{evil: evil}, 0.0, 0.0]], warnings=[evil])  # fmt: skip
    bad = record(2, f"{evil}2", False, program=evil, error=evil)
    html, page = written([row, bad], tmp_path, title=evil)
    flat = " ".join(evil.split())
    assert page.text.count(evil[:20]) + page.text.count(flat[:20]) >= 10
    assert "bold</b>" not in html and "<script" not in html and "<img" not in html


def test_half_characters_do_not_stop_a_report(tmp_path: Path) -> None:
    _, page = written([record(1, "SMC(16)", True, answer="\ud800")], tmp_path)
    assert "\\ud800" in page.text


def test_a_thousand_questions_stay_readable(tmp_path: Path) -> None:
    long = "word " * 5000
    results = [
        record(i, e, i % 3 == 0, question=f"{i} {long}", posterior=[[long, 0.1, 0.01]] * 10)
        for i in range(1000)
        for e in ("Greedy()", "SMC(16)")
    ]
    html, page = written(results, tmp_path)
    assert page.count["details"] == 1000
    assert len(html) < 15_000_000
    assert len(max(re.findall(r"<summary[^>]*>(.*?)</summary>", html, re.DOTALL), key=len)) < 2000


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"id": None}, "result 2 is no result record: id"),
        ({"posterior": [["a", "x", 0]]}, "posterior.0.1"),
        ({"tokens_in": "many"}, "tokens_in"),
        ({"program": None}, "program"),
    ],
)
def test_a_broken_record_is_named(broken: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        run_report([record(0, "e", True), record(1, "e", True, **broken)], tmp_path / "r.html")
    assert "fix:" in str(caught.value) and not (tmp_path / "r.html").exists()


def test_a_missing_field_is_named() -> None:
    with pytest.raises(DataError, match="program: Field required"):
        check([{"id": 1, "engine": "e"}])


def test_mass_on_gold_compares_as_text_too() -> None:
    def mass(gold: Any, posterior: list[Any]) -> float | None:
        return gold_mass(
            ResultRecord(id=1, program="p", engine="e", gold=gold, posterior=posterior)
        )

    assert mass("7", [[7, 0.5, 0], [" 7", 0.25, 0], ["8", 0.25, 0]]) == 0.75
    assert mass([1, 2], [[[1, 2], 0.5, 0]]) == 0.5
    assert mass(None, [["a", 1.0, 0]]) is None and mass("a", []) is None
