"""A posterior as one piece of HTML: what a notebook shows, and a page to keep.

Everything that comes from a run (texts, site names, engine names) is escaped; there is no script,
and nothing is fetched. `run_report`, the page of a whole run, is `lmppl.inference.view.run_report`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmppl.graphs.genealogy import genealogy_svg
from lmppl.html import text
from lmppl.inference.results.summary import made_by
from lmppl.inference.view.bands import in_order, named_answers
from lmppl.inference.view.charts import (
    BLUE,
    GREEN,
    RED,
    STYLE,
    bar,
    curve,
    number,
    rows,
    tile,
    warnings,
)
from lmppl.inference.view.run_report import run_report

if TYPE_CHECKING:
    from lmppl.inference.results.posterior import Posterior
    from lmppl.trace import Trace

__all__ = ["posterior_html", "run_report"]

ANSWERS, TRACES, SITES = 12, 5, 200
"""What is shown at most: answers, traces, sites of a trace."""


def posterior_html(posterior: Posterior) -> str:
    """The posterior as a self-contained HTML fragment.

    Heading, warnings, evidence with its interval, ESS, the answers with two standard errors,
    curves over the barriers, the genealogy, the heaviest traces, and what it cost.
    """
    parts = [
        f"<style>{STYLE}</style>",
        f'<div class="lmppl box"><h1>Posterior</h1><div class="sub mono">{text(made_by(posterior))}</div>',
        warnings(posterior.warnings),
        _figures(posterior),
    ]
    if posterior.dead:
        parts.append(_deaths(posterior))
    else:
        parts += [_answers(posterior), _curves(posterior), _traces(posterior)]
        if posterior.deaths:
            parts.append(
                f"<details><summary>Particles killed</summary>{_deaths(posterior)}</details>"
            )
    parts += [_ledger(posterior), _target(posterior), "</div>"]
    return "".join(parts)


def _figures(posterior: Posterior) -> str:
    low, high = posterior.log_evidence_interval()
    if posterior.exact and high <= low:
        spread = "exact"
    elif math.isfinite(low) and math.isfinite(high):
        spread = f"95 %: {number(low)} … {number(high)}"
    else:
        spread = "no interval"
    n = len(posterior)
    size = "of 1 trace" if n == 1 else f"of {n:,} {'traces' if posterior.exact else 'particles'}"
    tiles = [
        tile(number(posterior.log_evidence), f"log evidence, {spread}"),
        tile(number(posterior.ess), f"effective sample size {size}"),
    ]
    if not posterior.exact:
        tiles.append(tile(number(posterior.unique_ancestors), "first ancestors left"))
    book = posterior.ledger
    tiles.append(tile(f"{book.tokens_in:,} + {book.tokens_out:,}", "tokens in + out"))
    tiles.append(tile(f"{number(book.seconds, 3)} s", "wall time"))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _answers(posterior: Posterior) -> str:
    found, name = named_answers(posterior)
    shown = in_order(found, name)[:ANSWERS]
    body = [
        (
            text(value),
            bar(p, found.se.get(value), colour=GREEN if value == found.best else BLUE),
            f"{p:.4f}",
            "exact" if posterior.exact else f"± {number(found.se.get(value, math.nan), 2)}",
        )
        for value, p in shown
    ]
    rest = len(found) - len(shown)
    more = ""
    if rest:
        left = 1.0 - math.fsum(p for _, p in shown)
        more = f'<div class="sub">{rest:,} more answers share {max(left, 0.0):.4f}</div>'
    return (
        f"<h3>Answers</h3>{rows(('answer', '± 2 standard errors', 'p', 'se'), body, 'v nn')}{more}"
    )


def _curves(posterior: Posterior) -> str:
    history = posterior.history
    if history is None or len(history.ess) < 2:
        return ""
    sizes = history.sizes
    most = max(sizes)
    marks = [t for t, a in enumerate(history.ancestors) if a is not None]
    drawn = "".join(
        [
            curve(history.ess, f"ESS of {most:,}", marks=marks, bottom=0, top=most),
            curve(
                history.eves,
                "first ancestors left",
                marks=marks,
                bottom=0,
                top=sizes[0],
                colour=GREEN,
            ),
            curve(history.log_evidence, "log evidence so far", marks=marks, colour=RED),
        ]
    )
    resampled = (
        f"{len(marks):,} resamplings (marked red below the lines)" if marks else "never resampled"
    )
    tree = ""
    own = history.fixed and not history.whose
    if own and marks and most > 1:
        tree = f"<h3>Genealogy</h3>{genealogy_svg(history.ancestors, most, posterior.weights)}"
    of = f" of {text(history.whose)}" if history.whose else ""
    return f'<h3>By barrier{of}: {resampled}</h3><div class="charts">{drawn}</div>{tree}'


def _heaviest(posterior: Posterior) -> list[tuple[Trace, float, int]]:
    """Distinct traces with the weight and number of their particles, heaviest first."""
    merged: dict[tuple[object, ...], tuple[Trace, float, int]] = {}
    order = np.argsort(-posterior.weights, kind="stable")[:1000]
    for i in order.tolist():
        if posterior.weights[i] > 0:
            trace = posterior.traces[i]
            key = tuple((e.address, repr(e.value)) for e in trace.sites if e.op != "jobs")
            first, weight, count = merged.get(key, (trace, 0.0, 0))
            merged[key] = first, weight + float(posterior.weights[i]), count + 1
    return sorted(merged.values(), key=lambda item: -item[1])[:TRACES]


def _traces(posterior: Posterior) -> str:
    out: list[str] = []
    for trace, weight, count in _heaviest(posterior):
        sites = [e for e in trace.sites if e.op != "jobs"]
        body = [
            (text(e.op), text(e.address), _value(e.value), number(e.logp), number(e.logw))
            for e in sites[:SITES]
        ]
        cut = (
            f'<div class="sub">{len(sites) - SITES:,} more sites</div>'
            if len(sites) > SITES
            else ""
        )
        copies = f", {count:,} particles" if count > 1 else ""
        table = rows(("", "site", "value", "log p", "log w"), body, "  vnn")
        out.append(
            f"<details{' open' if not out else ''}><summary>weight {weight:.4f}{copies}, answer "
            f"{_short(trace.result)}</summary>{table}{cut}</details>"
        )
    return f"<h3>Heaviest traces</h3>{''.join(out)}"


def _value(value: object) -> str:
    return f'<span class="mono">{text(value)}</span>'


def _short(value: object) -> str:
    shown = value if isinstance(value, str) else repr(value)
    return text(shown if len(shown) <= 80 else f"{shown[:80]} …")


def _deaths(posterior: Posterior) -> str:
    body = [(text(site), f"{count:,}") for site, count in posterior.deaths.items()]
    examples: Sequence[str] = posterior.death_examples
    listed = "".join(f"<pre class='mono'>{text(e)}</pre>" for e in examples)
    head = "<h3>All particles have weight zero</h3>" if posterior.dead else ""
    return f"{head}{rows(('killed at', 'particles'), body, ' n')}{listed}"


def _ledger(posterior: Posterior) -> str:
    book = posterior.ledger
    body = [
        (text(name), *(f"{v:,}" for v in (m.calls, m.passes, m.tokens_in, m.tokens_out)))
        for name, m in book.models.items()
    ]
    table = rows(("model", "strings", "passes", "tokens in", "tokens out"), body, " nnnn")
    other = (
        f'<div class="sub">{book.effects:,} effects in {book.effect_seconds:.3g} s, '
        f"{book.replayed:,} tape entries replayed</div>"
    )
    return f"<details><summary>Cost</summary>{table if body else ''}{other}</details>"


def _target(posterior: Posterior) -> str:
    if not posterior.target:
        return ""
    return f"<details><summary>Target</summary><pre class='mono'>{text(posterior.target)}</pre></details>"
