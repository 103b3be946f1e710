"""What engines spent and how often they were right: table, paired comparisons, Pareto plot.

An engine is on the Pareto frontier when no other one is at least as often right for at most the
same tokens. Pairs are compared on the questions that both have answered (`compare.paired`); with
several pairs the p-values are Holm's (1979), which hold the 5 % level over all of them together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import Any

from lmppl.atomic import write_atomic
from lmppl.html import text
from lmppl.inference.questions.budget import Sized
from lmppl.inference.questions.compare import Paired
from lmppl.inference.questions.runs import compare, summarise
from lmppl.inference.results.estimates import Interval
from lmppl.inference.view.charts import number, rows
from lmppl.records import ResultRecord

COLOURS = ("#4477aa", "#cc5566", "#2f8f5b", "#b8860b", "#7a5195", "#2a9d8f", "#6b7280", "#c2569b")
MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Line:
    """One engine at one budget: what it spent and how often it was right."""

    engine: str
    asked: str
    budget: str | None
    size: int | None
    expected: float | None
    """Spend per question that the probes promised."""
    questions: int
    failed: int
    answered: int
    """Questions with an expected answer."""
    right: int
    interval: Interval | None
    """Wilson's, 95 %."""
    tokens: float
    """Per question that has a posterior, as the three below."""
    calls: float
    passes: float
    seconds: float | None
    frontier: bool = False
    note: str = ""

    @property
    def accuracy(self) -> float | None:
        """Share of right answers; an error is wrong."""
        return self.right / self.answered if self.answered else None


@dataclass(frozen=True)
class Pair:
    """Two engines on the same questions."""

    first: str
    second: str
    pair: Paired
    holm: float
    """p-value, adjusted for the number of pairs."""

    @property
    def verdict(self) -> str:
        """In words, at the 5 % level over all pairs together."""
        if self.holm >= 0.05:
            return "no clear difference"
        return "better" if self.pair.wins > self.pair.losses else "worse"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        more = {"difference": self.pair.difference, "holm": self.holm, "verdict": self.verdict}
        return {"first": self.first, "second": self.second} | asdict(self.pair) | more


def lines(
    records: Sequence[ResultRecord], plan: Sequence[Sized], wall: Mapping[str, Sequence[float]]
) -> list[Line]:
    """One line for each engine that has a result, in the order of the plan.

    Args:
        records: results of one program.
        plan: the engines and their sizes.
        wall: (seconds, questions) that each engine has taken.
    """
    summaries = {s.engine: s for s in summarise(records)}
    found = []
    for sized in plan:
        s = summaries.get(sized.engine)
        if s is None:
            continue
        costs = [_costs(r) for r in records if r.engine == sized.engine and _ledger(r)]
        tokens, calls, passes = (sum(c[k] for c in costs) / max(len(costs), 1) for k in range(3))
        seconds, asked = wall.get(sized.engine, (0.0, 0))
        found.append(
            Line(
                sized.engine, sized.asked, sized.budget, sized.size, sized.expected,
                s.questions, s.failed, s.answered, s.right, s.interval, tokens, calls, passes,
                seconds=seconds / asked if asked else None, note=sized.note,
            )
        )  # fmt: skip
    return [Line(**{**vars(line), "frontier": _efficient(line, found)}) for line in found]


def _ledger(record: ResultRecord) -> dict[str, Any]:
    return dict((record.model_extra or {}).get("ledger") or {})


def _costs(record: ResultRecord) -> tuple[float, float, float]:
    models = _ledger(record).get("models", {}).values()
    total = [float(sum(m[k] for m in models)) for k in ("calls", "passes")]
    return float(record.tokens_in + record.tokens_out), total[0], total[1]


def _efficient(line: Line, others: Sequence[Line]) -> bool:
    mine = line.accuracy
    if mine is None or line.failed == line.questions:
        return False
    for other in others:
        theirs = None if other.failed == other.questions else other.accuracy
        if theirs is not None and other.tokens <= line.tokens and theirs >= mine:
            if other.tokens < line.tokens or theirs > mine:
                return False
    return True


def pairs(records: Sequence[ResultRecord], found: Sequence[Line]) -> list[Pair]:
    """Every two engines of the same budget (those without a size belong to each)."""
    judged = [line for line in found if line.answered]
    both = [
        (b, a)
        for a, b in combinations(judged, 2)
        if a.budget == b.budget or None in (a.size, b.size)
    ]
    compared = [compare(records, None, x.engine, y.engine) for x, y in both]
    adjusted = holm([pair.p_value for pair in compared])
    return [
        Pair(x.engine, y.engine, pair, p)
        for (x, y), pair, p in zip(both, compared, adjusted, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: the k-th smallest of m times m - k + 1, made monotone.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = largest
    return adjusted


# -- HTML ---------------------------------------------------------------------------------------


def section(found: Sequence[Line], compared: Sequence[Pair], picture: str) -> str:
    """The comparison as a section of the report; `picture` is inline SVG or nothing."""
    body = [
        (
            f'<span class="mono">{text(line.engine)}</span>'
            + (f'<div class="sub">{text(line.note)}</div>' if line.note else ""),
            text(line.budget or "–") if line.size is not None else "–",
            "–" if line.accuracy is None else f"<b>{line.accuracy:.1%}</b>{_range(line.interval)}",
            number(round(line.tokens)),
            number(round(line.calls)),
            number(round(line.passes)),
            number(line.seconds, 3),
            "yes" if line.frontier else "",
        )
        for line in found
    ]
    header = ("engine", "budget", "accuracy", "tokens", "calls", "passes", "seconds", "frontier")
    tests = [
        (
            f'<span class="mono">{text(p.first)}</span>',
            f'<span class="mono">{text(p.second)}</span>',
            f"{p.pair.difference:+.3f} "
            f'<span class="sub">[{p.pair.low:+.3f}, {p.pair.high:+.3f}]</span>',
            f"{p.pair.wins} : {p.pair.losses}",
            f"{p.holm:.2g}",
            text(p.verdict),
        )
        for p in compared
    ]
    table = rows(header, body, "  nnnnn ")
    matched = rows(("engine", "against", "difference", "wins", "p (Holm)", ""), tests, "  nnn ")
    shown = f"<h3>Paired, on the same questions</h3>{matched}" if tests else ""
    figure = f'<figure style="max-width:860px">{picture}</figure>' if picture else ""
    return (
        "<section><h2>At equal cost</h2>"
        '<div class="sub">Tokens, calls, passes and seconds are means per question; intervals are '
        f'95 %.</div>{figure}<div class="scroll">{table}{shown}</div></section>'
    )


def _range(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f' <span class="sub">[{interval.low:.1%}, {interval.high:.1%}]</span>'


# -- the plot -----------------------------------------------------------------------------------


def plot(found: Sequence[Line], title: str, png: Path) -> str:
    """Tokens against accuracy: writes a PNG, returns the same picture as inline SVG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with rc_context({"svg.hashsalt": "lmppl", "font.size": 9.5}):
        figure = _figure(found, title)
        raster, drawing = BytesIO(), BytesIO()
        canvas: Any = FigureCanvasAgg(figure)
        canvas.print_png(raster)
        canvas = FigureCanvasSVG(figure)
        canvas.print_svg(drawing, metadata={"Date": None})
    write_atomic(png, [raster.getvalue()])
    svg = drawing.getvalue().decode()
    svg = svg[svg.index("<svg") :]
    # its style sheet would hold for the whole page, and its comments and metadata say nothing
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%" role="img"', svg, count=1)


def _figure(found: Sequence[Line], title: str) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
    from matplotlib.transforms import ScaledTranslation

    shown = [line for line in found if line.accuracy is not None and line.tokens > 0]
    figure = Figure(figsize=(8.2, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    best = sorted((line for line in shown if line.frontier), key=lambda line: line.tokens)
    if best:
        xs, ys = [b.tokens for b in best], [b.accuracy or 0.0 for b in best]
        right = max(line.tokens for line in shown) * 1.15
        axes.step([*xs, right], [*ys, ys[-1]], where="post", color="#d3dae2", lw=4, zorder=1,
                  label="Pareto frontier", solid_capstyle="butt")  # fmt: skip
    names = list(dict.fromkeys(line.asked for line in shown))
    for k, asked in enumerate(names):
        # a few points aside, so that engines with the same numbers are all seen
        aside = ScaledTranslation(2.4 * (k - (len(names) - 1) / 2) / 72, 0, figure.dpi_scale_trans)
        series = sorted((s for s in shown if s.asked == asked), key=lambda s: s.tokens)
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        xs, ys = [s.tokens for s in series], [s.accuracy or 0.0 for s in series]
        spans = [s.interval or Interval(y, y) for s, y in zip(series, ys, strict=True)]
        error = [
            [max(y - i.low, 0.0) for y, i in zip(ys, spans, strict=True)],
            [max(i.high - y, 0.0) for y, i in zip(ys, spans, strict=True)],
        ]
        name = series[0].engine
        if len(series) > 1:
            name = f"{asked.partition(':')[0]}, size {series[0].size} to {series[-1].size}"
        axes.errorbar(xs, ys, yerr=error, color=colour, marker=marker, ms=6.5, lw=1.4,
                      elinewidth=1, capsize=2.5, zorder=3, label=_short(name),
                      transform=axes.transData + aside)  # fmt: skip
    budgets = {line.budget for line in shown if line.budget and line.size is not None}
    for budget in budgets:
        unit, _, amount = budget.partition("=")
        if unit == "tokens":
            axes.axvline(int(amount), color="#5d6b7a", lw=0.9, ls=(0, (2, 3)), zorder=0)
    tokens = [line.tokens for line in shown] or [1.0]
    if max(tokens) / min(tokens) > 3:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=12))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(
        xlabel="tokens per question", ylabel="right answers, 95 % interval", ylim=(-0.02, 1.04)
    )
    axes.set_title(_short(title, 70), loc="left", fontsize=11, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6eaef", lw=0.8, zorder=0)
    axes.set_axisbelow(True)
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8.5)
    for label in legend.get_texts():
        label.set_parse_math(False)
    return figure


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
