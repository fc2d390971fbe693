"""One drawing of an attribution graph for the screen and the file: tokens across, layers that exist upwards, names on
the nodes, and of a reader's subgraph each group as one node.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.markup.tokens import cell, clip, visible
from workbench.results.labels import Subgraph
from workbench_ui.views.graphs import GraphFile, GraphNode, describe, name_of

NAMED = 6  # nodes of one token and layer that stand below each other with their names; further ones are dots under them
SENT = 6_000  # links the browser is given; it draws those asked for, and all of a node it is pointed at
LINE, WIDE, NARROW, LEFT, DOT = 17, 136, 74, 72, 11  # lengths in pixels
COLOURS = {  # light paper, as KINDS of the legend
    "embedding": "#5c6670",
    "latent": "#0072b2",
    "error": "#8a4f7d",
    "logit": "#b34700",
    "group": "#00684b",
}
LEGEND = (
    ("embedding", "token"),
    ("latent", "latent"),
    ("error", "error: what the dictionary leaves out"),
    ("logit", "output"),
    ("group", "group of yours"),
)


@dataclass(frozen=True)
class Dot:
    """What is drawn as one node, its centre in pixels. ``name`` is empty where there is no room for one."""

    id: str
    kind: str
    x: float
    y: float
    name: str
    full: str
    pinned: bool


@dataclass(frozen=True)
class Drawing:
    """Nodes, links between them (source, target, weight; strongest first), and what is written at the edges."""

    width: float
    height: float
    dots: list[Dot]
    links: list[tuple[int, int, float]]
    rows: list[tuple[float, str]]  # lower edge, name
    columns: list[tuple[float, str]]  # left edge, token

    def message(self, n_links: int, chosen: str | None) -> dict[str, Any]:
        """What the browser needs."""
        body = {
            "width": self.width,
            "height": self.height,
            "dots": [[d.id, d.kind, d.x, d.y, d.name, d.full, int(d.pinned)] for d in self.dots],
            "links": [[s, t, float(f"{w:.4g}")] for s, t, w in self.links[:SENT]],
            "rows": self.rows,
            "columns": self.columns,
            "n": n_links,
        }
        digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()[:16]
        return {**body, "chosen": chosen, "same": digest}


def drawing(
    graph: GraphFile,
    about: dict[str, Any],
    *,
    min_influence: float = 0.0,
    chosen: str | None = None,
    own: Mapping[str, str] | None = None,
    mine: Subgraph | None = None,
    only_mine: bool = False,
) -> Drawing:
    """Lay a graph out. With ``only_mine`` the pinned nodes and the outputs alone, each group of them as one node, and
    the links between two of them summed.
    """
    mine = mine or Subgraph()
    pins = set(mine.pins)
    if only_mine:
        shown = [n for n in graph.nodes if n.id in pins or n.kind == "logit"]
    else:
        shown = [
            n
            for n in graph.nodes
            if n.influence >= min_influence or n.kind in ("logit", "embedding") or n.id == chosen or n.id in pins
        ]
    stands: dict[str, str] = {n.id: n.id for n in shown}  # node -> what it is drawn as
    heads: dict[str, GraphNode] = {n.id: n for n in shown}
    members: dict[str, list[GraphNode]] = {}
    if only_mine:
        for name, ids in mine.groups.items():
            inside = sorted((heads[i] for i in ids if i in heads), key=lambda n: -n.influence)
            if inside:
                members[f"group:{name}"] = inside
                stands.update({n.id: f"group:{name}" for n in inside})
    drawn: dict[str, GraphNode] = {n.id: n for n in shown if stands[n.id] == n.id}
    drawn.update({key: inside[0] for key, inside in members.items()})  # a group stands where its strongest node does

    cells: dict[tuple[int, int], list[str]] = defaultdict(list)
    for key, n in drawn.items():
        cells[n.layer, n.position].append(key)
    for keys in cells.values():
        keys.sort(key=lambda k: -drawn[k].influence)
    layers = sorted({layer for layer, _ in cells})
    n_tokens = max(len(graph.tokens), 1 + max((p for _, p in cells), default=0))
    wide = {p for (layer, p) in cells if layer >= 0}
    left, columns = float(LEFT), []
    for p in range(n_tokens):
        token = cell(graph.tokens[p], 18 if p in wide else 9) if p < len(graph.tokens) else ""
        columns.append((left, token))
        left += WIDE if p in wide else NARROW
    width = left + 8

    def lines(count: int, across: int) -> int:
        more = max(0, count - NAMED)
        return min(count, NAMED) + -(-more * DOT // across)

    tall = {
        layer: max(
            (
                lines(len(cells[layer, p]), (WIDE if p in wide else NARROW) - 16)
                for p in range(n_tokens)
                if (layer, p) in cells
            ),
            default=1,
        )
        for layer in layers
    }
    y, places, rows = 10.0, {}, []
    for layer in reversed(layers):
        height = tall[layer] * LINE + 26
        for (row, p), keys in cells.items():
            if row != layer:
                continue
            across = max(1, int(((WIDE if p in wide else NARROW) - 16) // DOT))
            for j, key in enumerate(keys):
                named = j < NAMED
                k = j - NAMED
                places[key] = (
                    columns[p][0] + 8 + (0 if named else (k % across) * DOT),
                    y + 12 + (j if named else NAMED + k // across) * LINE,
                    named,
                )
        name = "tokens" if layer < 0 else "outputs" if layer == graph.top and _outputs(graph) else f"layer {layer}"
        rows.append((round(y + height - 6, 1), name))
        y += height
    dots: list[Dot] = []
    index: dict[str, int] = {}
    for key in sorted(places, key=lambda k: (places[k][1], places[k][0])):
        n, (x, at, named) = drawn[key], places[key]
        inside = members.get(key, [])
        letters = 18 if n.position in wide else 9
        title = visible(key.removeprefix("group:")) if inside else name_of(n, graph, about, own)
        full = (
            f"group {title}: " + "; ".join(describe(m, graph, about, own) for m in inside)
            if inside
            else describe(n, graph, about, own)
        )
        group = None if inside else mine.group_of(n.id)
        if group and not only_mine:
            full += f" · in your group “{visible(group)}”"
        index[key] = len(dots)
        dots.append(
            Dot(
                key,
                "group" if inside else n.kind,
                round(x, 1),
                round(at, 1),
                clip(title, letters) if named else "",
                full,
                bool(inside) or n.id in pins,
            )
        )
    weights: dict[tuple[int, int], float] = defaultdict(float)
    for s, t, w in graph.links:
        a, b = stands.get(s), stands.get(t)
        if a is not None and b is not None and a != b:
            weights[index[a], index[b]] += w
    links = sorted(((s, t, w) for (s, t), w in weights.items()), key=lambda x: -abs(x[2]))
    return Drawing(width, y + 26, dots, links, rows, columns)


def _outputs(graph: GraphFile) -> bool:
    return any(n.kind == "logit" for n in graph.nodes)


def curve(a: Dot, b: Dot) -> str:
    """The path of a link, from the upper edge of its source to the lower edge of its target."""
    (x, y), (_, high), (_, low), (to, end) = bent(a, b)
    return f"M{x} {y}C{x} {high:.1f} {to} {low:.1f} {to} {end}"


def bent(a: Dot, b: Dot) -> list[tuple[float, float]]:
    """The same path as the four points of a cubic Bézier curve."""
    bend = max(14.0, abs(a.y - b.y) / 2.4)
    return [(a.x, a.y - 5), (a.x, a.y - 5 - bend), (b.x, b.y + 5 + bend), (b.x, b.y + 5)]


def links_line(found: Drawing, n_links: int) -> str:
    """What the links of a file mean."""
    return (
        "links: solid blue raises, dashed orange lowers; thicker is stronger;"
        f" {min(n_links, len(found.links)):,} of {len(found.links):,} drawn"
    )


def _mark(d: Dot) -> str:
    """A node's sign, another shape for each kind."""
    x, y, colour = d.x, d.y, COLOURS[d.kind]
    ring = ' stroke="#18212b" stroke-width="2"' if d.pinned else ""
    if d.kind == "embedding":
        return f'<rect x="{x - 4.5}" y="{y - 4.5}" width="9" height="9" fill="{colour}"{ring}/>'
    if d.kind == "error":
        return f'<path d="M{x} {y - 6}L{x + 6} {y}L{x} {y + 6}L{x - 6} {y}Z" fill="{colour}"{ring}/>'
    if d.kind == "logit":
        return f'<path d="M{x} {y - 6}L{x + 6} {y + 5}L{x - 6} {y + 5}Z" fill="{colour}"{ring}/>'
    if d.kind == "group":
        return f'<rect x="{x - 6}" y="{y - 5}" width="12" height="10" rx="4" fill="{colour}"{ring}/>'
    return f'<circle cx="{x}" cy="{y}" r="5" fill="{colour}"{ring}/>'


def svg(found: Drawing, n_links: int, title: str, note: str) -> bytes:
    """The drawing as a file for a paper: vectors and text, on white."""
    strongest = max((abs(w) for _, _, w in found.links), default=1.0) or 1.0
    bottom = found.height
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{found.width}" height="{bottom + 44}" viewBox="0 0'
        f' {found.width} {bottom + 44}" font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#18212b">',
        f"<title>{html.escape(title)}</title><desc>{html.escape(note)}</desc>",
        f'<rect width="{found.width}" height="{bottom + 44}" fill="#ffffff"/>',
    ]
    for y, name in found.rows:
        out.append(f'<line x1="0" x2="{found.width}" y1="{y}" y2="{y}" stroke="#e2e6ea"/>')
        out.append(f'<text x="4" y="{y - 6}" fill="#566373">{html.escape(name)}</text>')
    for s, t, w in reversed(found.links[:n_links]):
        colour, dash = ("#0072b2", "") if w > 0 else ("#b34700", ' stroke-dasharray="5 3"')
        out.append(
            f'<path d="{curve(found.dots[s], found.dots[t])}" fill="none" stroke="{colour}" stroke-opacity="0.5"'
            f' stroke-width="{0.5 + 3 * abs(w) / strongest:.2f}"{dash}/>'
        )
    for d in found.dots:
        out.append(f"<g><title>{html.escape(d.full)}</title>{_mark(d)}")
        if d.name:
            out.append(f'<text x="{d.x + 10}" y="{d.y + 4}">{html.escape(d.name)}</text>')
        out.append("</g>")
    for x, token in found.columns:
        out.append(f'<text x="{x + 2}" y="{bottom - 6}" font-family="Courier, monospace">{html.escape(token)}</text>')
    kinds, x = {d.kind for d in found.dots}, 8.0
    for kind, name in LEGEND:
        if kind in kinds:
            out.append(_mark(Dot("", kind, x + 4, bottom + 12, "", "", False)))
            out.append(f'<text x="{x + 14}" y="{bottom + 16}">{name}</text>')
            x += 32 + 6.4 * len(name)
    out.append(f'<text x="8" y="{bottom + 36}" fill="#566373">{links_line(found, n_links)}</text></svg>')
    return "".join(out).encode()


PIXEL = 72 / 96  # points of a file for paper


def pdf(found: Drawing, n_links: int, title: str, note: str) -> bytes:
    """The same as :func:`svg` in the format that LaTeX includes: vectors, embedded type, the same bytes every time."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
    from matplotlib.path import Path

    from workbench.exporting.render import settings
    from workbench.exporting.render import visible as printable
    from workbench.exporting.spec import Style

    high = found.height + 44
    ink, soft = "#18212b", "#566373"
    with settings(Style()):
        figure = Figure(figsize=(found.width / 96, high / 96))
        FigureCanvasAgg(figure)
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_xlim(0, found.width)
        ax.set_ylim(high, 0)
        ax.set_axis_off()

        def write(x: float, y: float, text: str, colour: str = ink, family: str = "DejaVu Sans") -> None:
            ax.text(
                x,
                y,
                printable(text, family),
                fontsize=(11 if family == "DejaVu Sans" else 10.5) * PIXEL,
                family=family,
                color=colour,
                va="baseline",
                parse_math=False,
            )

        def mark(d: Dot) -> None:
            edge: dict[str, Any] = {
                "edgecolor": ink if d.pinned else "none",
                "linewidth": 2 * PIXEL,
                "facecolor": COLOURS[d.kind],
            }
            x, y = d.x, d.y
            shapes: dict[str, list[tuple[float, float]]] = {
                "embedding": [(-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)],
                "error": [(0, -6), (6, 0), (0, 6), (-6, 0)],
                "logit": [(0, -6), (6, 5), (-6, 5)],
            }
            corners = shapes.get(d.kind)
            if d.kind == "group":
                box = "round,pad=0,rounding_size=4"
                ax.add_patch(FancyBboxPatch((x - 6, y - 5), 12, 10, boxstyle=box, zorder=3, **edge))
            elif corners is not None:
                ax.add_patch(Polygon([(x + a, y + b) for a, b in corners], zorder=3, **edge))
            else:
                ax.add_patch(PathPatch(Path.circle((x, y), 5), zorder=3, **edge))

        for y, name in found.rows:
            ax.plot([0, found.width], [y, y], color="#e2e6ea", linewidth=PIXEL, zorder=1)
            write(4, y - 6, name, soft)
        strongest = max((abs(w) for _, _, w in found.links), default=1.0) or 1.0
        moves = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
        for s, t, w in reversed(found.links[:n_links]):
            ax.add_patch(
                PathPatch(
                    Path(bent(found.dots[s], found.dots[t]), moves),
                    facecolor="none",
                    edgecolor="#0072b2" if w > 0 else "#b34700",
                    alpha=0.5,
                    linewidth=(0.5 + 3 * abs(w) / strongest) * PIXEL,
                    linestyle="-" if w > 0 else (0, (5, 3)),
                    zorder=2,
                )
            )
        for d in found.dots:
            mark(d)
            if d.name:
                write(d.x + 10, d.y + 4, d.name)
        for x, token in found.columns:
            write(x + 2, found.height - 6, token, family="DejaVu Sans Mono")
        x = 8.0
        for kind, name in LEGEND:
            if kind in {d.kind for d in found.dots}:
                mark(Dot("", kind, x + 4, found.height + 12, "", "", False))
                write(x + 14, found.height + 16, name)
                x += 32 + 6.4 * len(name)
        write(8, found.height + 36, links_line(found, n_links), soft)
        sink = io.BytesIO()
        about = {"CreationDate": None, "ModDate": None, "Title": title, "Keywords": note}
        figure.savefig(sink, format="pdf", metadata=about)
    return sink.getvalue()
