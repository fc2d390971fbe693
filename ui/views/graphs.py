"""Attribution graphs for the page: read with bounds, laid out by token and layer, thresholded on the server."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import streamlit as st

from sae.errors import CorruptError
from sae.files import read_json
from ui.kit import data
from ui.kit.plotting import SMALL
from workbench.markup.tokens import cell, clip, escape, number, visible

MAX_NODES, MAX_LINKS = 5_000, 200_000
KINDS = {
    "embedding": ("token", "square", "#7a7a7a"),
    "logit": ("output", "star", "#D55E00"),
    "error": ("error", "x", "#b07aa1"),
    "latent": ("latent", "circle", "#1f86c7"),
}


@dataclass(frozen=True)
class GraphNode:
    """One node. ``layer`` counts from -1 (tokens); outputs lie above the last layer."""

    id: str
    kind: str
    layer: int
    position: int
    latent: int | None
    influence: float
    activation: float | None
    text: str


@dataclass(frozen=True)
class GraphFile:
    """A graph in the schema Neuronpedia publishes, checked."""

    tokens: list[str]
    nodes: list[GraphNode]
    links: list[tuple[str, str, float]]  # source, target, weight; strongest first

    @cached_property
    def by_id(self) -> dict[str, GraphNode]:
        return {n.id: n for n in self.nodes}

    @property
    def top(self) -> int:
        """Row of the outputs."""
        return max((n.layer for n in self.nodes), default=0)


@st.cache_resource(show_spinner=False, max_entries=6)
def open_graph(path: str, version: str) -> GraphFile:
    """Read ``graph.json`` of a result.

    Raises:
        CorruptError: it is no such graph, or larger than a page can show.
    """
    return parse_graph(read_json(Path(path) / "graph.json"), Path(path).name)


def parse_graph(values: Any, where: str) -> GraphFile:
    """Check a document and take what the page needs. Unknown keys are ignored, wrong types are errors."""
    try:
        raw, links = values["nodes"], values["links"]
        if len(raw) > MAX_NODES or len(links) > MAX_LINKS:
            raise CorruptError(
                f"{where} has {len(raw):,} nodes and {len(links):,} links; prune it (at most {MAX_NODES:,} and"
                f" {MAX_LINKS:,})."
            )
        layers = [
            int(n["layer"]) for n in raw if str(n["layer"]).lstrip("-").isdecimal() and not n.get("is_target_logit")
        ]
        above = max(layers, default=0) + 1
        nodes = [_node(n, above) for n in raw]
        known = {n.id for n in nodes}
        pairs = [(str(x["source"]), str(x["target"]), float(x["weight"])) for x in links]
        tokens = [str(t) for t in values["metadata"]["prompt_tokens"]]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise CorruptError(
            f"{where} is not an attribution graph ({type(e).__name__}: {e}). Run `workbench graph` again."
        ) from e
    kept = sorted((p for p in pairs if p[0] in known and p[1] in known), key=lambda p: -abs(p[2]))
    return GraphFile(tokens, nodes, kept)


def _node(n: dict[str, Any], above: int) -> GraphNode:
    kind = str(n.get("feature_type", ""))
    kind = (
        "logit"
        if n.get("is_target_logit")
        else "embedding"
        if kind == "embedding"
        else "error"
        if "error" in kind
        else "latent"
    )
    layer = above if kind == "logit" else -1 if str(n["layer"]) == "E" else int(n["layer"])
    latent = n.get("feature")
    activation = n.get("activation")
    return GraphNode(
        id=str(n["node_id"]),
        kind=kind,
        layer=layer,
        position=int(n["ctx_idx"]),
        latent=int(latent) if kind == "latent" and latent is not None else None,
        influence=float(n.get("influence") or 0.0),
        activation=float(activation) if activation is not None else None,
        text=str(n.get("clerp") or ""),
    )


def dictionary_of(about: dict[str, Any], layer: int) -> str | None:
    """Id of the dictionary that a layer's latents belong to, from the graph's metadata (hook -> id)."""
    for hook, id in (about.get("dictionaries") or {}).items():
        m = re.match(r"blocks\.(\d+)\.", str(hook))
        if m and int(m[1]) == layer:
            return str(id)
    return None


def describe(node: GraphNode, graph: GraphFile, about: dict[str, Any], own: Mapping[str, str] | None = None) -> str:
    """What a node is, as plain text: the token, the latent with its label or peak token, the output.

    A reader's ``own`` label (node id -> text) stands in quotation marks, in place of a latent's label or behind the
    others.
    """
    token = cell(graph.tokens[node.position], 20) if 0 <= node.position < len(graph.tokens) else "?"
    label = f"“{visible(own[node.id])}”" if own and node.id in own else ""
    if node.kind != "latent":
        known = {"embedding": f"token {token}", "error": f"error of layer {node.layer} at {token}"}
        text = known.get(node.kind) or visible(node.text) or "output"
        return f"{text} · {label}" if label else text
    d = data.index().dictionaries.get(dictionary_of(about, node.layer) or "")
    records = data.records(d) if d else None
    named = label
    if not named and records is not None and node.latent is not None and 0 <= node.latent < len(records):
        row = records.row(node.latent)
        named = next(
            (clip(visible(str(row[c])), 50) for c in ("label", "peak_text") if isinstance(row.get(c), str)), ""
        )
    return (
        f"L{node.layer} #{node.latent} at {token}"
        + (f" · {named}" if named else "")
        + (f" · {number(node.activation)}" if node.activation else "")
    )


def picture(
    graph: GraphFile,
    about: dict[str, Any],
    *,
    n_links: int,
    min_influence: float,
    chosen: str | None,
    own: Mapping[str, str] | None = None,
) -> Any:
    """Nodes over tokens (across) and layers (up), the strongest links between shown nodes; the chosen node's links
    stand out.
    """
    import plotly.graph_objects as go

    shown = [
        n for n in graph.nodes if n.influence >= min_influence or n.kind in ("logit", "embedding") or n.id == chosen
    ]
    at = _places(shown)
    links = [x for x in graph.links if x[0] in at and x[1] in at]
    touching = [x for x in links if chosen in (x[0], x[1])]
    figure = go.Figure()
    for part, width, opacity in ((links[:n_links], 1.0, 0.22 if chosen else 0.5), (touching[:60], 2.2, 0.95)):
        for sign, colour in ((1, "#1f86c7"), (-1, "#D55E00")):
            x: list[float | None] = []
            y: list[float | None] = []
            for s, t, w in part:
                if w * sign > 0:
                    x += [at[s][0], at[t][0], None]
                    y += [at[s][1], at[t][1], None]
            if x:
                figure.add_trace(
                    go.Scatter(
                        x=x,
                        y=y,
                        mode="lines",
                        line={"color": colour, "width": width},
                        opacity=opacity,
                        hoverinfo="skip",
                        showlegend=False,
                    )
                )
    for kind, (name, symbol, colour) in KINDS.items():
        part_nodes = [n for n in shown if n.kind == kind]
        if part_nodes:
            size = [14 if n.id == chosen else 9 for n in part_nodes]
            text = [escape(describe(n, graph, about, own)) for n in part_nodes]
            figure.add_trace(
                go.Scatter(
                    x=[at[n.id][0] for n in part_nodes],
                    y=[at[n.id][1] for n in part_nodes],
                    mode="markers",
                    name=name,
                    marker={
                        "symbol": symbol,
                        "color": colour,
                        "size": size,
                        "opacity": 1,
                        "line": {"width": 1, "color": "rgba(127,127,127,.6)"},
                    },
                    text=text,
                    customdata=[n.id for n in part_nodes],
                    hovertemplate="%{text}<extra></extra>",
                )
            )
    ticks = [escape(cell(t, 14)) for t in graph.tokens]
    rows = [-1, *range(graph.top), graph.top]
    names = ["tokens", *(f"layer {r}" for r in range(graph.top)), "output"]
    figure.update_xaxes(
        tickfont=SMALL,
        tickvals=list(range(len(ticks))),
        ticktext=ticks,
        showgrid=False,
        zeroline=False,
        range=[-0.7, len(ticks) - 0.3],
    )
    figure.update_yaxes(tickfont=SMALL, tickvals=rows, ticktext=names, zeroline=False)
    figure.update_layout(
        height=130 + 90 * len(rows),
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "font": SMALL},
        hovermode="closest",
        dragmode="pan",
        uirevision="graph",
    )
    return figure


def _places(nodes: list[GraphNode]) -> dict[str, tuple[float, float]]:
    """Where nodes are drawn: those of one token and layer side by side, strongest first."""
    groups: dict[tuple[int, int], list[GraphNode]] = defaultdict(list)
    for n in nodes:
        groups[n.position, n.layer].append(n)
    found = {}
    for (position, layer), group in groups.items():
        group.sort(key=lambda n: -n.influence)
        across = min(5, len(group))
        for j, n in enumerate(group):
            found[n.id] = (position + (j % across - (across - 1) / 2) * 0.15, layer + (j // across) * 0.14)
    return found


def neighbours_of(
    graph: GraphFile, id: str, about: dict[str, Any], *, incoming: bool, most: int = 20
) -> list[tuple[GraphNode, float, str]]:
    """Strongest sources (or targets) of a node: node, weight, description."""
    here = [(s if incoming else t, w) for s, t, w in graph.links if (t if incoming else s) == id]
    return [(graph.by_id[other], w, describe(graph.by_id[other], graph, about)) for other, w in here[:most]]
