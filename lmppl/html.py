"""Small pieces of HTML with everything escaped; no script, no outside request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

LONGEST = 2000
STYLE = (
    "border-collapse:collapse;font:13px/1.4 ui-monospace,SFMono-Regular,Menlo,monospace",
    "text-align:left;padding:2px 10px;border-bottom:1px solid #999",
    "padding:2px 10px;border-bottom:1px solid #ddd;white-space:pre-wrap;vertical-align:top",
)


def text(value: object) -> str:
    """A value as escaped text, cut when very long."""
    shown = value if isinstance(value, str) else repr(value)
    shown = str(shown)
    if len(shown) > LONGEST:
        shown = f"{shown[:LONGEST]} … (cut, {len(shown):,} chars)"
    return escape(shown)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table of plain values."""
    head = "".join(f'<th style="{STYLE[1]}">{escape(h)}</th>' for h in header)
    body = "".join(
        "<tr>" + "".join(f'<td style="{STYLE[2]}">{text(v)}</td>' for v in row) + "</tr>"
        for row in rows
    )
    return f'<table style="{STYLE[0]}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def bar(share: float, width: int = 160) -> str:
    """A horizontal bar of a probability."""
    filled = round(max(0.0, min(1.0, share)) * width)
    return (
        f'<svg width="{width}" height="12" role="img" aria-label="{share:.3f}">'
        f'<rect width="{width}" height="12" fill="#eee"/><rect width="{filled}" height="12" fill="#4477aa"/></svg>'
    )
