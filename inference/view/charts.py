"""The pictures and the style of the reports: inline SVG and CSS, everything escaped, no script.

Colours are attributes of the shapes and text takes `currentColor`, so a picture is legible on a
light and on a dark page, and where a notebook strips the style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lmppl.html import text

BLUE, RED, GREEN, AMBER = "#4477aa", "#cc5566", "#2f8f5b", "#b8860b"

STYLE = """
.lmppl{--ink:#1d2733;--soft:#5d6b7a;--line:#dfe5ec;--card:#fff;--page:#f4f6f9;--tint:#eef3f9;
--good:#1d7a4a;--bad:#b3394b;--warn:#8a6100;--warnbg:#fff6df;color:var(--ink);
font:14px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
@media (prefers-color-scheme:dark){.lmppl.auto{--ink:#e4e9ef;--soft:#9aa7b5;--line:#35404d;
--card:#1b222b;--page:#12171e;--tint:#222c38;--good:#63c591;--bad:#f08a98;--warn:#e8bf5e;--warnbg:#352b12}}
.lmppl *{box-sizing:border-box}
.lmppl.box{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 20px;max-width:1000px}
.lmppl h1{font-size:24px;margin:0 0 4px}
.lmppl h2{font-size:18px;margin:26px 0 10px}
.lmppl h3{font-size:13px;margin:18px 0 6px;color:var(--soft);font-weight:600;letter-spacing:.02em}
.lmppl .sub{color:var(--soft)}
.lmppl .mono{font:12.5px/1.45 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}
.lmppl pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:4px 0;background:var(--tint);padding:8px 10px;border-radius:6px}
.lmppl .tiles{display:flex;flex-wrap:wrap;gap:10px;margin:14px 0}
.lmppl .tile{background:var(--tint);border-radius:8px;padding:8px 14px;min-width:120px}
.lmppl .tile b{display:block;font-size:18px;font-variant-numeric:tabular-nums}
.lmppl .tile span{color:var(--soft);font-size:12px}
.lmppl .charts{display:flex;flex-wrap:wrap;gap:14px}
.lmppl figure{margin:0}
.lmppl figcaption{font-size:12px;color:var(--soft)}
.lmppl table{border-collapse:collapse;font-variant-numeric:tabular-nums;background:none}
.lmppl th{font-size:12px;font-weight:600;color:var(--soft);text-align:left;padding:5px 12px 5px 0;border-bottom:1px solid var(--line);background:none}
.lmppl td{padding:5px 12px 5px 0;border-bottom:1px solid var(--line);vertical-align:top;text-align:left;background:none}
.lmppl th.n,.lmppl td.n{text-align:right}
.lmppl td.v{white-space:pre-wrap;overflow-wrap:anywhere;max-width:560px}
.lmppl details>summary{cursor:pointer}
.lmppl .warn{background:var(--warnbg);color:var(--warn);border-radius:8px;padding:8px 14px;margin:10px 0}
.lmppl .warn p{margin:2px 0}
.lmppl .good{color:var(--good)}.lmppl .bad{color:var(--bad)}
.lmppl svg{vertical-align:middle}
"""


def number(value: object, digits: int = 4) -> str:
    """A number for people: thousands apart, `-inf` and missing ones shown as such."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return "?"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value + 0.0:.{digits}g}"  # -0.0 is 0


def tile(value: str, label: str) -> str:
    """One key figure."""
    return f'<div class="tile"><b>{text(value)}</b><span>{text(label)}</span></div>'


def rows(header: Sequence[str], body: Iterable[Sequence[str]], numeric: str = "") -> str:
    """A table of cells that are HTML already; `numeric` marks right-aligned columns by an n."""
    kind = [f' class="{c}"' if c in "nv" else "" for c in numeric.ljust(len(header))]
    head = "".join(f"<th{k}>{text(h)}</th>" for h, k in zip(header, kind, strict=False))
    lines = "".join(
        "<tr>"
        + "".join(f"<td{k}>{cell}</td>" for cell, k in zip(row, kind, strict=False))
        + "</tr>"
        for row in body
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def warnings(found: Sequence[str]) -> str:
    """A box of warnings; nothing when there are none."""
    lines = "".join(f"<p>⚠ {text(w)}</p>" for w in found)
    return f'<div class="warn">{lines}</div>' if found else ""


def bar(share: float, se: float | None = None, *, width: int = 180, colour: str = BLUE) -> str:
    """A probability as a bar, with a whisker of ± 2 standard errors."""
    p = max(0.0, min(1.0, share))
    low, high = p, p
    if se is not None and se > 0 and math.isfinite(se):
        low, high = max(0.0, p - 2 * se), min(1.0, p + 2 * se)
    return interval_bar(p, low, high, width=width, colour=colour)


def interval_bar(p: float, low: float, high: float, *, width: int = 180, colour: str = BLUE) -> str:
    """A share as a bar, with an interval as a whisker."""
    at = [round(v * (width - 2) + 1, 1) for v in (p, low, high)]
    whisker = ""
    if high > low:
        whisker = (
            f'<path d="M{at[1]} 7H{at[2]}M{at[1]} 4V10M{at[2]} 4V10" stroke="currentColor" '
            'stroke-opacity=".75" stroke-width="1.2"/>'
        )
    return (
        f'<svg width="{width}" height="14" viewBox="0 0 {width} 14" role="img" aria-label="{p:.3f}" fill="none">'
        f'<rect x="1" y="2" width="{width - 2}" height="10" rx="2" fill="#888" fill-opacity=".16"/>'
        f'<rect x="1" y="2" width="{max(at[0] - 1, 0):.1f}" height="10" rx="2" fill="{colour}"/>{whisker}</svg>'
    )


def curve(
    values: Sequence[float],
    caption: str,
    *,
    marks: Sequence[int] = (),
    top: float | None = None,
    bottom: float | None = None,
    colour: str = BLUE,
    width: int = 300,
    height: int = 130,
) -> str:
    """A number per barrier as a line; `marks` are barriers at which the population was resampled.

    Values that are not finite leave a gap. Long runs are thinned to one point per pixel.
    """
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return ""
    lo = min(finite) if bottom is None else bottom
    hi = max(finite) if top is None else top
    if hi - lo < 1e-12 * max(abs(hi), 1.0):
        lo, hi = lo - 0.5, hi + 0.5
    x0, x1, y0, y1 = 44.0, width - 8.0, 8.0, height - 22.0
    n = len(values)

    def x(i: float) -> float:
        return round(x0 + (x1 - x0) * (i / (n - 1) if n > 1 else 0.5), 1)

    def y(v: float) -> float:
        return round(y1 - (y1 - y0) * (v - lo) / (hi - lo), 1)

    stride = max(1, math.ceil(n / (x1 - x0)))
    path, pen = [], "M"
    for i in sorted({*range(0, n, stride), n - 1}):
        if math.isfinite(values[i]):
            path.append(f"{pen}{x(i)} {y(values[i])}")
            pen = "L"
        else:
            pen = "M"
    dots = ""
    if n <= 40:
        dots = "".join(
            f'<circle cx="{x(i)}" cy="{y(v)}" r="2.2" fill="{colour}"/>'
            for i, v in enumerate(values)
            if math.isfinite(v)
        )
    few = marks if len(marks) <= 200 else marks[:: math.ceil(len(marks) / 200)]
    ticks = "".join(f"M{x(i)} {y1}V{y1 - 5}" for i in few)
    axis = f"M{x0} {y0}V{y1}H{x1}M{x0 - 3} {y(hi)}H{x0}M{x0 - 3} {y(lo)}H{x0}"
    label = 'font-size="10" fill="currentColor" fill-opacity=".75"'
    shown = text(caption)
    return (
        f'<figure><svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{shown}" fill="none" style="max-width:100%">'
        f'<path d="{axis}" stroke="currentColor" stroke-opacity=".4"/>'
        f'<path d="{ticks}" stroke="{RED}" stroke-width="1.5"/>'
        f'<path d="{"".join(path)}" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round"/>{dots}'
        f'<text x="{x0 - 6}" y="{y(hi) + 4}" text-anchor="end" {label}>{text(number(hi, 3))}</text>'
        f'<text x="{x0 - 6}" y="{y(lo) + 4}" text-anchor="end" {label}>{text(number(lo, 3))}</text>'
        f'<text x="{x0}" y="{height - 8}" {label}>0</text>'
        f'<text x="{x1}" y="{height - 8}" text-anchor="end" {label}>barrier {n - 1}</text></svg>'
        f"<figcaption>{shown}</figcaption></figure>"
    )
