"""The page of a whole run: accuracies, paired comparisons, and every question with its posterior.

One self-contained HTML file: no script, nothing fetched (its own content policy forbids both), all
text escaped. Filters are radio buttons and style rules; details open by themselves. It is meant to
stay usable with a few thousand questions: long texts are cut, bars are styled boxes, and a browser
lays out only what is seen.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmppl.atomic import write_atomic
from lmppl.errors import DataError, excerpt
from lmppl.html import text
from lmppl.inference.questions.compare import paired, wilson
from lmppl.inference.questions.rundir import PAGES, key, page_name
from lmppl.inference.view.charts import AMBER, GREEN, STYLE, interval_bar, number, rows, tile

if TYPE_CHECKING:
    from lmppl.records import ResultRecord

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
VALUES = 6
"""Answers shown of one posterior."""

PAGE_STYLE = """
body{margin:0;background:var(--page)}
.lmppl{background:var(--page);min-height:100vh}
.lmppl main{max-width:1280px;margin:0 auto;padding:28px 24px 60px}
.lmppl section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:6px 20px 16px;margin:16px 0}
.lmppl section h2{margin-top:14px}
.lmppl .filter{display:flex;flex-wrap:wrap;gap:4px 18px;margin:18px 0 0;align-items:center}
.lmppl .scroll{overflow-x:auto}
.lmppl .list{min-width:720px}
.lmppl .grid{display:grid;grid-template-columns:16px 78px minmax(200px,2.2fr) minmax(60px,.7fr) repeat(var(--k),minmax(128px,1fr));gap:0 12px;align-items:center}
.lmppl .head{font-size:12px;font-weight:600;color:var(--soft);border-bottom:1px solid var(--line);padding:5px 0}
.lmppl .q{border-bottom:1px solid var(--line);content-visibility:auto;contain-intrinsic-size:auto 33px}
.lmppl .q>summary{list-style:none;padding:5px 0}
.lmppl .q>summary::-webkit-details-marker{display:none}
.lmppl .q>summary::before{content:"▸";color:var(--soft)}
.lmppl .q[open]>summary::before{content:"▾"}
.lmppl .q>summary:hover{background:var(--tint)}
.lmppl .q>summary>*{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.lmppl .cell{display:flex;align-items:center;gap:6px}
.lmppl .cell>span:last-child{overflow:hidden;text-overflow:ellipsis}
.lmppl .b{display:inline-block;position:relative;flex:none;width:44px;height:9px;border-radius:2px;background:rgba(128,128,128,.2);overflow:hidden}
.lmppl .b::before{content:"";position:absolute;inset:0 auto 0 0;width:calc(var(--p)*1%);background:#4477aa}
.lmppl .w .b{width:170px;height:11px}
.lmppl .b.z::after{content:"";position:absolute;top:4px;height:2px;left:calc(var(--a)*1%);width:calc((var(--z) - var(--a))*1%);background:var(--ink);opacity:.75}
.lmppl .body{padding:4px 0 16px 28px}
.lmppl .panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:14px}
.lmppl .panel{border:1px solid var(--line);border-radius:8px;padding:8px 14px;min-width:0}
.lmppl .panel h3{margin:4px 0 8px;overflow-wrap:anywhere}
.lmppl .panel td{border:0;padding:2px 10px 2px 0;overflow-wrap:anywhere}
.lmppl .nowrap{white-space:nowrap}
.lmppl:has(#f-differ:checked) .q:not(.differ),.lmppl:has(#f-wrong:checked) .q:not(.wrong),
.lmppl:has(#f-error:checked) .q:not(.error){display:none}
"""


def run_report(
    results: Iterable[Mapping[str, Any] | ResultRecord],
    path: str | os.PathLike[str],
    title: str = "lmppl run",
    extra: str = "",
) -> None:
    """Write the report of a run.

    Args:
        results: result objects as `lmppl run` writes them (`lmppl.records.ResultRecord`), of any
            number of programs and engines; the same question of several engines is one row.
        path: the HTML file, replaced as a whole.
        title: heading of the page.
        extra: HTML to show before the summary.

    Raises:
        DataError: a result without the fields it needs; says which and why.
    """
    folder = os.path.dirname(os.path.abspath(path))
    made = page(check(results), title, extra, pages_of(folder))
    write_atomic(path, [made.encode(errors="backslashreplace")])


def pages_of(folder: str) -> frozenset[str]:
    """The pages of single posteriors that a folder has, relative to it."""
    try:
        names = os.listdir(os.path.join(folder, PAGES))
    except OSError:
        return frozenset()
    return frozenset(f"{PAGES}/{name}" for name in names)


def check(results: Iterable[Mapping[str, Any] | ResultRecord]) -> list[ResultRecord]:
    """The results as records; of two for the same question and engine, the later one."""
    from pydantic import ValidationError

    from lmppl.records import ResultRecord

    found: dict[tuple[str, str, str], ResultRecord] = {}
    for i, item in enumerate(results):
        try:
            record = item if isinstance(item, ResultRecord) else ResultRecord.model_validate(item)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise DataError(
                f"result {i + 1} is no result record: {field or 'it'}: {first['msg']}",
                value=excerpt(first.get("input")),
                fix="give the objects that `lmppl run` wrote; lmppl/records.py lists their fields",
            ) from None
        found[record.program, record.engine, str(record.id)] = record
    return list(found.values())


def page(
    records: Sequence[ResultRecord],
    title: str,
    extra: str = "",
    pages: frozenset[str] = frozenset(),
) -> str:
    """The whole page; `pages` are files that it may link to."""
    programs = list(dict.fromkeys(r.program for r in records))
    engines = list(dict.fromkeys(r.engine for r in records))
    counts = Counter(kind for group in _questions(records).values() for kind in _kinds(group))
    questions = len({(r.program, str(r.id)) for r in records})
    tiles = [
        tile(f"{questions:,}", "questions"),
        tile(f"{len(programs):,}", "programs" if len(programs) != 1 else "program"),
        tile(f"{len(engines):,}", "engines" if len(engines) != 1 else "engine"),
        tile(f"{sum(r.tokens_in + r.tokens_out for r in records):,}", "tokens in and out"),
        tile(f"{number(math.fsum(r.seconds for r in records), 4)} s", "time, summed over results"),
    ]
    choices = [("all", "all questions", questions), ("differ", "engines differ", counts["differ"]),
               ("wrong", "some engine wrong", counts["wrong"]), ("error", "errors", counts["error"])]  # fmt: skip
    filters = "".join(
        f'<label><input type="radio" name="f" id="f-{key}"{" checked" if key == "all" else ""}> {label} ({n:,})</label>'
        for key, label, n in choices
    )
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}{PAGE_STYLE}</style></head>",
        f'<body class="lmppl auto"><main><h1>{text(title)}</h1>',
        f'<div class="tiles">{"".join(tiles)}</div>',
        extra,
        f"<section><h2>Summary</h2>{_summary(records)}{_pairs(records)}{_warnings(records)}</section>",
        f'<div class="filter"><b>Show</b>{filters}</div>',
        *(_program(name, [r for r in records if r.program == name], pages) for name in programs),
        "</main></body></html>",
    ]
    return "\n".join(parts)


def _cells(records: Sequence[ResultRecord]) -> dict[tuple[str, str], list[ResultRecord]]:
    """Results by program and engine."""
    out: dict[tuple[str, str], list[ResultRecord]] = {}
    for name in dict.fromkeys(r.program for r in records):
        for r in records:
            if r.program == name:
                out.setdefault((name, r.engine), []).append(r)
    return out


def _questions(records: Sequence[ResultRecord]) -> dict[tuple[str, str], dict[str, ResultRecord]]:
    """Results by question, then engine."""
    out: dict[tuple[str, str], dict[str, ResultRecord]] = {}
    for r in records:
        out.setdefault((r.program, str(r.id)), {})[r.engine] = r
    return out


def _kinds(group: Mapping[str, ResultRecord]) -> list[str]:
    """The filters that show a question."""
    found = list(group.values())
    kinds = {
        "differ": len({_answer(r) for r in found if r.error is None}) > 1,
        "wrong": any(r.correct is False for r in found),
        "error": any(r.error is not None for r in found),
    }
    return [kind for kind, holds in kinds.items() if holds]


def _answer(record: ResultRecord) -> str:
    return record.answer if isinstance(record.answer, str) else repr(record.answer)


def gold_mass(record: ResultRecord) -> float | None:
    """Posterior probability of the right answer; None when the record cannot tell."""
    if record.gold is None or record.error is not None or not record.posterior:
        return None
    gold = str(record.gold).strip()
    return math.fsum(
        p for v, p, _ in record.posterior if v == record.gold or str(v).strip() == gold
    )


def _mean(values: Iterable[float | None]) -> float | None:
    found = [v for v in values if v is not None and math.isfinite(v)]
    return math.fsum(found) / len(found) if found else None


def _summary(records: Sequence[ResultRecord]) -> str:
    body = []
    before = None
    for (name, engine), found in _cells(records).items():
        judged = [r.correct for r in found if r.correct is not None]
        accuracy, drawn = "–", ""
        if judged:
            right = sum(judged)
            low, high = wilson(right, len(judged))
            accuracy = (
                f"{right} / {len(judged)} = <b>{right / len(judged):.1%}</b> "
                f'<span class="sub">[{low:.1%}, {high:.1%}]</span>'
            )
            drawn = interval_bar(right / len(judged), low, high, colour=GREEN)
        mass = _mean(gold_mass(r) for r in found)
        share = _mean(
            r.ess / r.particles if r.ess is not None and r.particles else None for r in found
        )
        errors = sum(r.error is not None for r in found)
        body.append(
            (
                "" if name == before else f"<b>{text(name)}</b>",
                f'<span class="mono">{text(engine)}</span>',
                f"{len(found):,}",
                accuracy,
                drawn,
                "–" if mass is None else f"{mass:.3f}",
                "–" if share is None else f"{share:.2f}",
                number(_mean(r.tokens_in + r.tokens_out for r in found)),
                number(_mean(r.seconds for r in found), 3),
                f'<span class="bad">{errors:,}</span>' if errors else "0",
            )
        )
        before = name
    header = ("program", "engine", "questions", "accuracy, 95 % Wilson interval", "", "mass on gold",
              "ESS share", "tokens each", "seconds each", "errors")  # fmt: skip
    return f'<div class="scroll">{rows(header, body, "  n  nnnnn")}</div>'


def _pairs(records: Sequence[ResultRecord]) -> str:
    """Every engine against the baseline of its program, on the questions that both answered."""
    body = []
    cells = _cells(records)
    for name in dict.fromkeys(program for program, _ in cells):
        engines = [engine for program, engine in cells if program == name]
        base = next((e for e in engines if e.lower().startswith("greedy")), engines[0])
        judged = {
            e: {str(r.id): r.correct for r in cells[name, e] if r.correct is not None}
            for e in engines
        }
        for engine in engines:
            ids = [i for i in judged[engine] if i in judged[base]]
            if engine == base or not ids:
                continue
            p = paired([judged[engine][i] for i in ids], [judged[base][i] for i in ids])
            kind = {"better": "good", "worse": "bad"}.get(p.verdict, "sub")
            body.append(
                (
                    text(name),
                    f'<span class="mono">{text(engine)}</span> against <span class="mono">{text(base)}</span>',
                    f"{p.n:,}",
                    f"{p.wins:,}",
                    f"{p.losses:,}",
                    f'{p.difference:+.1%} <span class="sub">[{p.low:+.1%}, {p.high:+.1%}]</span>',
                    f"{p.p_value:.3g}",
                    f'<span class="{kind} nowrap">{p.verdict}</span>',
                )
            )
    if not body:
        return ""
    header = ("program", "engines", "pairs", "only first right", "only second right",
              "difference, 95 % paired interval", "exact p", "")  # fmt: skip
    return f'<h3>The same questions, pair by pair</h3><div class="scroll">{rows(header, body, "  nnn n ")}</div>'


def _warnings(records: Sequence[ResultRecord]) -> str:
    counts = Counter(w for r in records for w in r.warnings)
    if not counts:
        return ""
    lines = "".join(f"<p>⚠ {n:,} × {text(w)}</p>" for w, n in counts.most_common(12))
    rest = f"<p>… {len(counts) - 12:,} more kinds</p>" if len(counts) > 12 else ""
    return f'<h3>Warnings</h3><div class="warn">{lines}{rest}</div>'


def _program(name: str, records: Sequence[ResultRecord], pages: frozenset[str]) -> str:
    """The questions of one program, one line each."""
    engines = list(dict.fromkeys(r.engine for r in records))
    groups = _questions(records)
    heads = "".join(f'<span class="mono">{text(_cut(e, 40))}</span>' for e in engines)
    lines = "".join(_question(group, engines, pages) for group in groups.values())
    return (
        f'<section><h2>{text(name)}</h2><div class="scroll"><div class="list" style="--k:{len(engines)}">'
        f'<div class="grid head"><span></span><span>id</span><span>question</span><span>gold</span>{heads}</div>'
        f"{lines}</div></div></section>"
    )


def _question(
    group: Mapping[str, ResultRecord], engines: Sequence[str], pages: frozenset[str]
) -> str:
    any_one = next(iter(group.values()))
    asked = any_one.question
    shown = asked if isinstance(asked, str) else "" if asked is None else repr(asked)
    gold = "–" if any_one.gold is None else _cut(_plain(any_one.gold), 40)
    cells = "".join(_cell(group.get(e)) for e in engines)
    panels = "".join(_panel(group[e], pages) for e in engines if e in group)
    full = f'<pre class="mono">{text(shown)}</pre>' if shown else ""
    return (
        f'<details class="q {" ".join(_kinds(group))}"><summary class="grid">'
        f'<span class="mono">{text(_cut(str(any_one.id), 24))}</span><span>{text(_cut(shown, 110))}</span>'
        f"<span>{text(gold)}</span>{cells}</summary>"
        f'<div class="body">{full}<div class="panels">{panels}</div></div></details>\n'
    )


def _cell(record: ResultRecord | None) -> str:
    if record is None:
        return '<span class="sub">–</span>'
    if record.error is not None:
        return '<span class="bad">error</span>'
    mark = {True: '<span class="good">✓</span>', False: '<span class="bad">✗</span>', None: ""}
    p = record.posterior[0][1] if record.posterior else None
    drawn = "" if p is None else f"{_box(p)}<span>{p:.2f}</span>"
    return (
        f'<span class="cell">{mark[record.correct]}{drawn}'
        f"<span>{text(_cut(_plain(record.answer), 60))}</span></span>"
    )


def _box(p: float, se: float | None = None) -> str:
    """A probability as a styled box, far smaller than a picture; the whisker is ± 2 se."""
    p = 100 * max(0.0, min(1.0, p)) if math.isfinite(p) else 0.0
    if se is None or not math.isfinite(se) or se <= 0:
        return f'<i class="b" style="--p:{p:.3g}"></i>'
    low, high = max(0.0, p - 200 * se), min(100.0, p + 200 * se)
    return f'<i class="b z" style="--p:{p:.3g};--a:{low:.3g};--z:{high:.3g}"></i>'


def _panel(record: ResultRecord, pages: frozenset[str]) -> str:
    """Everything about one answer."""
    parts = [f'<div class="panel"><h3 class="mono">{text(_cut(record.engine, 200))}</h3>']
    if record.error is not None:
        parts.append(f'<pre class="mono bad">{text(record.error)}</pre>')
    elif record.answer is not None and not record.posterior:
        parts.append(f"<div>answer {text(_cut(_plain(record.answer), 300))}</div>")
    if record.posterior:
        body = [
            f'<tr><td class="w">{_box(p, se)}</td><td class="n">{p:.3f}</td>'
            f"<td>{text(_cut(_plain(v), 300))}</td></tr>"
            for v, p, se in record.posterior[:VALUES]
        ]
        rest = len(record.posterior) - VALUES
        more = f'<div class="sub">{rest} more answers</div>' if rest > 0 else ""
        parts.append(f"<table>{''.join(body)}</table>{more}")
    facts = []
    if record.log_evidence is not None:
        se = record.log_evidence_se
        spread = f" ± {number(se, 2)}" if se is not None and math.isfinite(se) else ""
        facts.append(f"log evidence {number(record.log_evidence)}{spread}")
    if record.ess is not None:
        facts.append(f"ESS {number(record.ess, 3)} of {record.particles:,}")
    if record.particles > 1 and record.unique_ancestors:
        facts.append(f"{record.unique_ancestors:,} first ancestors")
    facts.append(f"{record.tokens_in:,} tokens in, {record.tokens_out:,} out")
    facts.append(f"{number(record.seconds, 3)} s")
    parts.append(f'<div class="sub">{" · ".join(facts)}</div>')
    if (link := page_name(key(record))) in pages:
        parts.append(f'<a href="{link}">graph, particles, story and cost of this posterior</a>')
    parts += [f'<div style="color:{AMBER}">⚠ {text(_cut(w, 300))}</div>' for w in record.warnings]
    return f"{''.join(parts)}</div>"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else "none" if value is None else repr(value)


def _cut(value: str, most: int) -> str:
    flat = " ".join(value.split()) if most <= 120 else value
    return flat if len(flat) <= most else f"{flat[:most]} …"
