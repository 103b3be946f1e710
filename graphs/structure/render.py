"""Pictures of a program's graph: SVG without any tool, Mermaid and DOT as text.

Latent sites are white, observed ones grey, derived values and effects are boxes, factors small
squares; a plate is one box with its number of items. Every text is escaped: prompts and values
come from a model.

| function | |
| --- | --- |
| `render_svg(graph)` | one `<svg>` element, readable on a light and a dark page |
| `mermaid(graph)` | for Markdown pages |
| `dot(graph)` | for Graphviz |
| `render(graph, "out.svg")` | one of them into a file, by its ending: svg, mmd, dot |

The graph comes from `graph_of`; any DAG of networkx will do, its nodes are latent then.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from lmppl.arguments import check_instances, check_path
from lmppl.atomic import write_atomic
from lmppl.errors import BadArgument, excerpt
from lmppl.graphs.structure.independence import check_graph
from lmppl.graphs.structure.layout import Layout, layered

INK, PAPER, GREY, LINE = "#1f2933", "#ffffff", "#c8ced6", "#6b7785"
FILL = {
    "latent": PAPER,
    "observed": GREY,
    "deterministic": "#eaf2fb",
    "effect": "#fdf0dc",
    "factor": INK,
    "param": "#eef5ea",
}
LONGEST = 26
FONT = "ui-sans-serif,system-ui,Helvetica,Arial,sans-serif"


def collapse(graph: Any) -> Any:
    """Each plate as one item: `fact[0]/true`, `fact[1]/true`, … are one node `fact[i]/true`."""
    import networkx

    check_graph("collapse", graph)
    names = {n: _stencil(n, d.get("plates", ())) for n, d in graph.nodes(data=True)}
    out = networkx.DiGraph(**graph.graph)
    for n, data in graph.nodes(data=True):
        if names[n] not in out:
            out.add_node(names[n], **data)
    for u, v, data in graph.edges(data=True):
        if names[u] == names[v]:
            return graph  # items that read each other are no plate
        out.add_edge(names[u], names[v], **data)
    return out if networkx.is_directed_acyclic_graph(out) else graph


def _stencil(node: Any, plates: Sequence[tuple[str, int]]) -> Any:
    name = str(node)
    for address, index in reversed(tuple(plates)):
        start = f"{address}[{index}]"
        if name.startswith(start):
            name = f"{address}[i]{name[len(start) :]}"
    return name if plates else node


def render_svg(graph: Any, *, plates: bool = True, title: str | None = None) -> str:
    """The graph as one SVG element.

    Args:
        graph: a DAG.
        plates: draw each plate as one box; `False` shows all of its items.
        title: what a reader who cannot see it is told.
    """
    check_instances("render_svg", (str, type(None)), "a text", title=title)
    shown = collapse(graph) if plates else graph
    order = _topological(shown)
    labels = {n: _labels(n, shown.nodes[n]) for n in order}
    widths = {n: _width(shown.nodes[n], labels[n]) for n in order}
    groups = {n: p[0][0] if plates else p[0] for n in order if (p := _plates(shown.nodes[n]))}
    layout = layered(order, list(shown.edges), widths, groups=groups)
    kinds = sorted({_kind(shown.nodes[n]) for n in order})
    say = title or f"graph of {shown.graph.get('program', 'a program')}: " + (
        f"{shown.number_of_nodes()} sites, {shown.number_of_edges()} edges ({', '.join(kinds)})"
    )
    parts = [_box(n, members, shown, layout, widths) for n, members in _boxes(groups).items()]
    parts += [_edge(shown, layout, u, v, widths) for u, v in shown.edges]
    parts += [_node(n, shown.nodes[n], layout.at[n], widths[n], labels[n]) for n in order]
    width, height = round(layout.width), round(layout.height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(say)}" style="max-width:100%;height:auto" '
        f'font-family="{FONT}" text-anchor="middle"><title>{escape(say)}</title>'
        '<defs><marker id="lmppl-arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="{LINE}"/></marker></defs>'
        f"{''.join(parts)}</svg>"
    )


def _topological(graph: Any) -> list[Any]:
    import networkx

    if not networkx.is_directed_acyclic_graph(graph):
        raise BadArgument(
            "only an acyclic graph can be drawn in layers", fix="use mermaid(graph) or dot(graph)"
        )
    place = {n: i for i, n in enumerate(graph.nodes)}
    return list(networkx.lexicographical_topological_sort(graph, key=place.__getitem__))


def _kind(data: Any) -> str:
    kind = data.get("kind", "latent")
    return kind if kind in FILL else "latent"


def _plates(data: Any) -> tuple[tuple[str, int], ...]:
    return tuple(data.get("plates", ()))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _labels(node: Any, data: Any) -> tuple[str, str]:
    plates = _plates(data)
    name = str(node)
    if plates and name.startswith(f"{plates[-1][0]}[i]/"):
        name = name[len(plates[-1][0]) + 4 :]  # the box says the rest
    return _cut(name), _cut(str(data.get("law", "")))


def _width(data: Any, labels: tuple[str, str]) -> float:
    text = max(7.4 * len(labels[0]), 6.2 * len(labels[1]))
    return max(64.0, text + (16.0 if _kind(data) == "factor" else 34.0))


def _boxes(groups: Any) -> dict[Any, list[Any]]:
    out: dict[Any, list[Any]] = {}
    for node, group in groups.items():
        out.setdefault(group, []).append(node)
    return out


def _box(group: Any, members: Any, graph: Any, layout: Layout, widths: Any) -> str:
    """The frame of a plate, its name and number in a corner."""
    xs = [layout.at[n][0] for n in members]
    x0 = min(x - widths[n] / 2 for x, n in zip(xs, members, strict=True)) - 12
    x1 = max(x + widths[n] / 2 for x, n in zip(xs, members, strict=True)) + 12
    y0 = min(layout.at[n][1] for n in members) - 34
    y1 = max(layout.at[n][1] for n in members) + 46
    if isinstance(group, tuple):
        label = f"{group[0]}[{group[1]}]"
    else:
        n = graph.graph.get("plates", {}).get(group)
        label = str(group) if n is None else f"{group} × {n}"
    return (
        f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" rx="10" '
        f'fill="{LINE}" fill-opacity=".08" stroke="{LINE}"/><text x="{x1 - 8:.1f}" y="{y1 - 6:.1f}" '
        f'font-size="11" fill="{LINE}" text-anchor="end">{escape(_cut(label))}</text>'
    )


def _half(data: Any) -> float:
    return 9.0 if _kind(data) == "factor" else 21.0


def _edge(graph: Any, layout: Layout, u: Any, v: Any, widths: Any) -> str:
    """A smooth line through the bends, from the bottom of one node to the top of another."""
    (x0, y0), (x1, y1) = layout.at[u], layout.at[v]
    bends = layout.bends.get((u, v), [])
    start, end = (x0, y0 + _half(graph.nodes[u])), (x1, y1 - _half(graph.nodes[v]) - 2)
    if not bends and abs(x1 - x0) > 1:  # leave and enter where the straight line does
        start = (x0 + _lean(x1 - x0, _across(graph, u, widths)), start[1] - 2)
        end = (x1 - _lean(x1 - x0, _across(graph, v, widths)), end[1] + 1)
    points = [start, *bends, end]
    path = f"M{start[0]:.1f} {start[1]:.1f}"
    for (ax, ay), (bx, by) in zip(points, points[1:], strict=False):
        pull = (by - ay) * 0.42
        path += f"C{ax:.1f} {ay + pull:.1f} {bx:.1f} {by - pull:.1f} {bx:.1f} {by:.1f}"
    via = graph.edges[u, v].get("via", "")
    dash = ' stroke-dasharray="5 4"' if via in ("control", "error") else ""
    tip = f"{u} → {v}" + (f" ({via})" if via else "")
    return (
        f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.5"{dash} '
        f'marker-end="url(#lmppl-arrow)"><title>{escape(tip)}</title></path>'
    )


def _across(graph: Any, node: Any, widths: Any) -> float:
    """The width of a shape, without its label."""
    return 18.0 if _kind(graph.nodes[node]) == "factor" else float(widths[node])


def _lean(dx: float, width: float) -> float:
    most = width * 0.22
    return max(-most, min(most, dx * 0.18))


def _node(node: Any, data: Any, at: tuple[float, float], width: float, labels: Any) -> str:
    x, y = at
    kind = _kind(data)
    half = _half(data)
    look = f'fill="{FILL[kind]}" stroke="{INK}" stroke-width="1.4"'
    if data.get("optional"):
        look += ' stroke-dasharray="4 3"'
    if kind in ("latent", "observed"):
        shape = f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="{width / 2:.1f}" ry="{half}" {look}/>'
    elif kind == "factor":
        shape = f'<rect x="{x - half:.1f}" y="{y - half:.1f}" width="{2 * half}" height="{2 * half}" {look}/>'
    else:
        round_ = 4 if kind == "effect" else 14
        shape = (
            f'<rect x="{x - width / 2:.1f}" y="{y - half:.1f}" width="{width:.1f}" '
            f'height="{2 * half}" rx="{round_}" {look}/>'
        )
    name, law = (escape(t) for t in labels)
    if kind == "factor":
        # a label on the open page takes the colour of the page's own text
        text = f'<text x="{x:.1f}" y="{y + 23:.1f}" font-size="11" fill="{LINE}">{name}</text>'
    else:
        text = f'<text x="{x:.1f}" y="{y + (-1 if law else 4):.1f}" font-size="13" fill="{INK}">{name}</text>'
        if law:
            text += f'<text x="{x:.1f}" y="{y + 13:.1f}" font-size="10" fill="{LINE}">{law}</text>'
    tip = [f"{node}: {kind}"]
    tip += [
        f"{key}: {str(data[key])[:400]}" for key in ("prompt", "value") if data.get(key) is not None
    ]
    return f'<g data-site="{escape(str(node))}">{shape}{text}<title>{escape(chr(10).join(tip))}</title></g>'


# -- as text ------------------------------------------------------------------------------------

MERMAID = {
    "latent": ("([", "])"),
    "observed": ("([", "])"),
    "deterministic": ("(", ")"),
    "effect": ("[", "]"),
    "factor": ("{{", "}}"),
    "param": ("(", ")"),
}
DOT = {
    "latent": "shape=ellipse",
    "observed": 'shape=ellipse, style=filled, fillcolor="#c8ced6"',
    "deterministic": 'shape=box, style="rounded,filled", fillcolor="#eaf2fb"',
    "effect": 'shape=box, style=filled, fillcolor="#fdf0dc"',
    "factor": 'shape=square, style=filled, fillcolor="#1f2933", fontcolor=white',
    "param": 'shape=box, style="rounded,filled", fillcolor="#eef5ea"',
}


def mermaid(graph: Any, *, plates: bool = True) -> str:
    """The graph as a Mermaid flowchart."""
    shown = collapse(graph) if plates else graph
    ids = {n: f"n{i}" for i, n in enumerate(shown.nodes)}
    lines = ["flowchart TD"]
    inside: dict[str, list[str]] = {}
    for n, data in shown.nodes(data=True):
        left, right = MERMAID[_kind(data)]
        line = f'{ids[n]}{left}"{_mermaid_text(n)}"{right}:::{_kind(data)}'
        group = _plates(data)
        inside.setdefault(group[0][0] if group and plates else "", []).append(line)
    lines += [f"  {line}" for line in inside.pop("", [])]
    for k, (group_name, members) in enumerate(inside.items()):
        n = shown.graph.get("plates", {}).get(group_name)
        label = _mermaid_text(group_name if n is None else f"{group_name} × {n}")
        lines += [f'  subgraph p{k}["{label}"]', *(f"    {m}" for m in members), "  end"]
    for u, v, data in shown.edges(data=True):
        arrow = "-.->" if data.get("via") in ("control", "error") else "-->"
        lines.append(f"  {ids[u]} {arrow} {ids[v]}")
    lines += [
        "  classDef latent fill:#ffffff,stroke:#1f2933,color:#1f2933",
        "  classDef observed fill:#c8ced6,stroke:#1f2933,color:#1f2933",
        "  classDef deterministic fill:#eaf2fb,stroke:#1f2933,color:#1f2933",
        "  classDef effect fill:#fdf0dc,stroke:#1f2933,color:#1f2933",
        "  classDef factor fill:#1f2933,stroke:#1f2933,color:#ffffff",
        "  classDef param fill:#eef5ea,stroke:#1f2933,color:#1f2933",
    ]
    return "\n".join(lines) + "\n"


def _mermaid_text(value: Any) -> str:
    """Only letters, digits and a few signs stand as they are; all else is a numeric entity."""
    return re.sub(r"[^\w .:/\[\]×-]", lambda m: f"#{ord(m[0])};", str(value))


def dot(graph: Any, *, plates: bool = True) -> str:
    """The graph in Graphviz's language."""
    shown = collapse(graph) if plates else graph
    lines = ["digraph program {", "  node [fontname=Helvetica, fontsize=12];"]
    inside: dict[str, list[str]] = {}
    for n, data in shown.nodes(data=True):
        look = DOT[_kind(data)]
        group = _plates(data)
        inside.setdefault(group[0][0] if group and plates else "", []).append(
            f"{_quoted(n)} [{look}];"
        )
    lines += [f"  {line}" for line in inside.pop("", [])]
    for k, (name, members) in enumerate(inside.items()):
        count = shown.graph.get("plates", {}).get(name)
        label = name if count is None else f"{name} × {count}"
        lines += [f"  subgraph cluster_{k} {{", f"    label={_quoted(label)};"]
        lines += [*(f"    {m}" for m in members), "  }"]
    for u, v, data in shown.edges(data=True):
        style = " [style=dashed]" if data.get("via") in ("control", "error") else ""
        lines.append(f"  {_quoted(u)} -> {_quoted(v)}{style};")
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(value: Any) -> str:
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'


def render(graph: Any, path: str | Path, *, plates: bool = True) -> Path:
    """Write the picture that the ending of the path asks for: .svg, .mmd (Mermaid) or .dot.

    Args:
        graph: of `graph_of`, any DAG of networkx, or the record of a thought graph.
        path: where it goes.
        plates: draw each plate as one box.
    """
    check_path("render", path)
    target = Path(path)
    if hasattr(graph, "to_networkx"):
        graph = graph.to_networkx()
    if not hasattr(graph, "adj"):
        raise BadArgument(
            f"a {type(graph).__name__} is no graph",
            value=excerpt(graph),
            fix="write render(graph_of(program, ...), path), or render(thought_graph(trace), path)",
        )
    makers = {".svg": render_svg, ".mmd": mermaid, ".mermaid": mermaid, ".dot": dot, ".gv": dot}
    maker = makers.get(target.suffix.lower())
    if maker is None:
        raise BadArgument(
            f"no picture has the ending {target.suffix!r}",
            fix=f"use one of {', '.join(makers)}",
        )
    write_atomic(target, [maker(graph, plates=plates).encode()])
    return target
