"""`posterior.report("run.html")`: everything about a posterior in one HTML file.

The file needs nothing but itself: no network, no library. Its own content policy forbids every
request and every script but the one whose hash it names, so that no text of a run can do anything
but be read. The state (`lmppl.inference.view.state`) stands in it as JSON, or deflated where it is
large, and the script makes the page of it; without scripts there is the page of
`lmppl.inference.view.report`.

| section | |
| --- | --- |
| Answers | the posterior, ± 2 standard errors; a click filters by an answer |
| Program | the graph of the program, where it can be replayed |
| Thoughts | the graph of one particle: text, weight, parents, cost of each thought |
| Tree | the thoughts of all particles, equal beginnings once, branches that died out too |
| Through time | ESS, ancestors, evidence, weights, answers and the genealogy, by barrier |
| Particles, Story | all particles, and one of them told in order |
| Cost | strings, tokens and seconds by site |
| Landscape | distance of every state to every answer, a map, three curves |
| ArviZ | its plots, when asked for |
"""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmppl.arguments import check_integers
from lmppl.atomic import write_atomic
from lmppl.errors import BadArgument, GraphError, excerpt
from lmppl.html import text
from lmppl.inference.view.charts import STYLE
from lmppl.inference.view.forest import LONGEST, Forest
from lmppl.inference.view.landscape import Landscape, landscape
from lmppl.inference.view.report import posterior_html
from lmppl.inference.view.state import number, run_state
from lmppl.plainjson import dump

if TYPE_CHECKING:
    from lmppl.inference.results.posterior import Posterior

SCRIPTS = ("base.js", "pictures.js", "thoughts.js", "page.js")
LIMIT = 3_000_000
"""Bytes that a page has at most, where cutting texts can achieve it."""
PLAIN = 150_000
"""A state of fewer bytes stands in the page as it is."""
MOST_SITES = 40
"""Programs of more sites are replayed for their graph only when asked: it takes seconds."""


def write_report(posterior: Posterior, path: str | os.PathLike[str], **options: Any) -> Path:
    """Write `report_page` to a file, replaced as a whole; returns where it is."""
    page = report_page(posterior, **options)
    write_atomic(path, [page.encode("utf-8", "backslashreplace")])
    return Path(path)


def report_page(
    posterior: Posterior,
    *,
    title: str = "",
    graph: bool | None = None,
    land: bool | Landscape = True,
    arviz: bool = False,
    limit: int = LIMIT,
) -> str:
    """The report of a posterior.

    Args:
        posterior: of any engine, in memory or loaded.
        title: the heading.
        graph: replay the program for its graph; by default where it has few sites. A loaded
            posterior has no program.
        land: the landscape of thoughts; one that was made elsewhere may be given.
        arviz: add the plots of ArviZ (needs arviz and matplotlib).
        limit: bytes; long texts are cut so that the page keeps to it.
    """
    check_integers("write_report", 100_000, limit=limit)
    forest = Forest()
    state = run_state(posterior, title=title or "lmppl report", forest=forest)
    svg, state["edges"], state["graph_note"] = _program(posterior, graph)
    state["landscape"] = None
    if land is not False and not posterior.dead:
        found = landscape(posterior, forest=forest) if land is True else land
        state["landscape"] = _landscape(found)
    plots = ""
    if arviz and not posterior.dead:
        from lmppl.inference.view.arviz_plots import arviz_images

        plots = arviz_images(posterior)
    static = posterior_html(posterior)
    head = _head(str(state["title"]), bool(plots))
    room = limit - len(head) - len(svg) - len(plots) - len(static) - len(script()) - 10_000
    encoding, data = island(state, max(room, 10_000))
    return "\n".join(
        [
            head,
            _body(state, svg, plots),
            f"<noscript>{static}</noscript>",
            f'<script type="application/json" id="state" data-encoding="{encoding}">{data}</script>',
            f"<script>{script()}</script></body></html>",
        ]
    )


@cache
def script() -> str:
    """The script of every page; its hash is in the page's policy."""
    here = files(__package__)
    parts = [(here / name).read_text("utf-8").replace('"use strict";\n', "") for name in SCRIPTS]
    return '\n"use strict";\n' + "\n".join(parts)


@cache
def policy(images: bool = False) -> str:
    """The content policy: nothing is fetched, and no script runs but ours."""
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    pictures = "img-src data:; " if images else ""
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; {pictures}"
        "base-uri 'none'; form-action 'none'"
    )


def island(state: dict[str, Any], room: int) -> tuple[str, str]:
    """The state inside the page, and how it is encoded; texts are cut until it has room."""
    strings = state["strings"]
    for most in (2 * LONGEST, 1000, 400, 200, 100, 50, 25):
        state["strings"] = [s if len(s) <= most else f"{s[:most]} …" for s in strings]
        state["cut"] = most if any(len(s) > most for s in strings) else None
        data = dump(state)
        if len(data) <= min(PLAIN, room):
            return "plain", quiet(data.decode())
        packed = base64.b64encode(zlib.compress(data, 6)).decode()
        if len(packed) <= room:
            break
    return "deflate", packed


def quiet(json: str) -> str:
    r"""JSON without a character that could end a script or begin markup.

    >>> print(quiet('["</script>"]'))
    ["\u003c/script\u003e"]
    """
    for character in "<>&\u2028\u2029":
        json = json.replace(character, f"\\u{ord(character):04x}")
    return json


def _head(title: str, images: bool) -> str:
    style = (files(__package__) / "page.css").read_text("utf-8")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(images)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}{style}</style></head>"
    )


def _body(state: dict[str, Any], svg: str, plots: str) -> str:
    made = state["engine"] if state["seed"] is None else f"{state['engine']}, seed={state['seed']}"
    program = ""
    if svg or state["graph_note"]:
        note = f'<p class="sub">{text(state["graph_note"])}</p>' if state["graph_note"] else ""
        drawn = f'<div class="program scroll">{svg}</div>' if svg else ""
        program = f"<section><h2>Program</h2>{note}{drawn}</section>"
    target = f'<section><h2>Target</h2><pre class="mono">{text(state["target"])}</pre></section>'
    images = f"<section><h2>ArviZ</h2>{plots}</section>" if plots else ""
    return f"""<body class="lmppl auto"><header><h1>{text(state["title"])}</h1>
<div class="sub mono">{text(made)}</div><div class="tiles" id="tiles"></div><div id="warnings"></div></header>
<div class="bar"><div><input type="search" id="query" placeholder="search thoughts and sites" aria-label="search">
<label>answer <select id="answer"></select></label>
<label>step <input type="range" id="step" min="0" max="0" value="0"></label><span class="sub" id="step-label"></span>
<label><button id="before" title="the one before">◀</button><span id="which"></span><button id="after" title="the next one">▶</button></label>
<span class="sub" id="found"></span></div></div><main>
<section><h2>Answers</h2><div id="answers"></div></section>
{program}
<section id="thoughts-section"><h2>Thoughts of a particle</h2><div id="graph-pick"></div><div class="side"><div id="thought-graph"></div><div id="thought-detail"></div></div></section>
<section id="tree-section"><h2>Tree of thoughts</h2><label class="sub"><input type="checkbox" id="died" checked> branches that died out</label>
<div class="scroll" id="tree"></div><div id="node-detail"></div></section>
<section id="through-section"><h2>Through time</h2><p class="sub" id="whose"></p><div class="charts" id="curves"></div>
<div id="genealogy-box"><h3>Genealogy: who descends from whom; a click chooses a particle</h3><div><canvas id="genealogy"></canvas></div></div></section>
<div class="two"><section><h2>Particles</h2><div class="scroll" id="particles"></div></section>
<section><h2>Story</h2><div class="scroll" id="story"></div></section></div>
<section><h2>Cost</h2><div id="costs"></div></section>
<section id="landscape-section"><h2>Landscape of thoughts</h2><div id="landscape"></div></section>
{images}{target}</main>"""


def _program(posterior: Posterior, wanted: bool | None) -> tuple[str, list[list[str]], str]:
    """The program's graph as SVG and edges, and what is to be said of it."""
    asked = posterior.asked
    if wanted is False:
        return "", [], ""
    if asked is None:
        return "", [], "the program is not known here, so its graph is not drawn"
    best = None if posterior.dead else posterior.traces[int(np.argmax(posterior.weights))]
    if wanted is None and best is not None and len(best.sites) > MOST_SITES:
        return "", [], f"more than {MOST_SITES} sites: report(path, graph=True) draws the graph"
    from lmppl.graphs.structure.program_graph import graph_of
    from lmppl.graphs.structure.render import render_svg

    try:
        graph = graph_of(
            asked.program,
            *asked.args,
            trace=best,
            observations=asked.observations,
            kwargs=asked.kwargs,
        )
        drawn = render_svg(graph)
    except (GraphError, BadArgument, ImportError) as error:
        said = error.fields["what"] if isinstance(error, GraphError | BadArgument) else str(error)
        return "", [], f"the graph of the program could not be drawn: {said}"
    return drawn, [[str(u), str(v)] for u, v in graph.edges], ""


def _landscape(found: Landscape) -> dict[str, Any]:
    """The landscape for the state: probabilities, map, curves, distances by progress."""
    p = np.exp(found.log_probs - found.log_probs.max(axis=1, keepdims=True, initial=-np.inf))
    p = p / p.sum(axis=1, keepdims=True)
    heat = []
    for low in range(0, 100, 20):
        inside = (found.progress >= low / 100) & (
            (found.progress < low / 100 + 0.2) | ((low == 80) & (found.progress >= 0.8))
        )
        w = found.mass[inside]
        total = float(w.sum())
        row = (w @ found.distances[inside]) / total if total > 0 else [None] * len(found.answers)
        heat.append([f"{low} to {low + 20} %", [None if v is None else number(v, 3) for v in row]])
    return {
        "nodes": list(found.nodes),
        "answers": [v if isinstance(v, str) else excerpt(v, 200) for v in found.answers],
        "p": [[number(v, 3) for v in row] for row in p],
        "xy": [[number(v, 3) for v in row] for row in found.xy],
        "axy": [[number(v, 3) for v in row] for row in found.answers_xy],
        "mass": [number(v, 3) for v in found.mass],
        "progress": [number(v, 3) for v in found.progress],
        "consistency": [number(v) for v in found.consistency],
        "uncertainty": [number(v) for v in found.uncertainty],
        "perplexity": [number(v) for v in found.perplexity],
        "heat": heat,
    }
