"""Attribution graphs for the page: read with bounds, their nodes told in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import streamlit as st

from sae.errors import CorruptError
from sae.files import read_json
from workbench.markup.tokens import cell, clip, number, visible
from workbench_ui.kit import data

MAX_NODES, MAX_LINKS = 5_000, 200_000


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
    named = label or _known(node, about)
    return (
        f"L{node.layer} #{node.latent} at {token}"
        + (f" · {named}" if named else "")
        + (f" · {number(node.activation)}" if node.activation else "")
    )


def name_of(node: GraphNode, graph: GraphFile, about: dict[str, Any], own: Mapping[str, str] | None = None) -> str:
    """The short name a node has in the picture: the reader's label, a latent's label or the token it fires on most, the
    token, the output.
    """
    if own and node.id in own:
        return visible(own[node.id])
    if node.kind == "latent":
        return _known(node, about) or f"#{node.latent}"
    if node.kind == "error":
        return "error"
    if node.kind == "embedding":
        return cell(graph.tokens[node.position], 20) if 0 <= node.position < len(graph.tokens) else "?"
    found = re.fullmatch(r"output '(.*)' \(p = ([0-9.]+)\)", node.text, re.S)
    if found:
        return f"{100 * float(found[2]):.0f} % {cell(found[1], 20)}"
    return visible(node.text.removeprefix("output ")) or "output"


def _known(node: GraphNode, about: dict[str, Any]) -> str:
    """What the records call a latent: its label, else the token on which it fires most, else nothing."""
    d = data.index().dictionaries.get(dictionary_of(about, node.layer) or "")
    records = data.records(d) if d else None
    if records is None or node.latent is None or not 0 <= node.latent < len(records):
        return ""
    row = records.row(node.latent)
    for column in ("label", "peak_text"):
        if isinstance(row.get(column), str):
            return clip(visible(str(row[column])) if column == "label" else cell(str(row[column])), 50)
    return ""


def neighbours_of(
    graph: GraphFile, id: str, about: dict[str, Any], *, incoming: bool, most: int = 20
) -> list[tuple[GraphNode, float, str]]:
    """Strongest sources (or targets) of a node: node, weight, description."""
    here = [(s if incoming else t, w) for s, t, w in graph.links if (t if incoming else s) == id]
    return [(graph.by_id[other], w, describe(graph.by_id[other], graph, about)) for other, w in here[:most]]
