"""Graph: which latents make which latents, and which make the next token."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import streamlit as st

from sae.errors import UserError
from sae.files import read_json
from workbench.markup.charts import logit_bars
from workbench.markup.latent import contexts_html
from workbench.markup.tokens import clip, escape, markdown, visible
from workbench.results.labels import (
    MAX_LENGTH,
    GraphLabels,
    Subgraph,
    read_labels,
    save_group,
    save_label,
    save_pin,
    with_labels,
)
from workbench_ui.components.enhance import enhance, latent_link
from workbench_ui.components.network import network
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.choose import check_version, choose
from workbench_ui.kit.index import Dictionary, Entry
from workbench_ui.views import graph_making, graph_parts, graph_touch
from workbench_ui.views.graph_drawing import Drawing, drawing, pdf, svg
from workbench_ui.views.graphs import GraphFile, GraphNode, describe, dictionary_of, neighbours_of, open_graph


@st.fragment(key="graph_body")
def body() -> None:
    """Choice of graph, thresholds, the picture, the chosen node."""
    with panels.guarded("The graph"):
        panels.page_title("Graph", "latent to latent, token to output: what makes the next token")
        entry = choose(
            "graphs",
            "Prompt",
            "gr",
            what="Graphs",
            command="graph PROMPT",
            text=_text,
            clears=("pin", "links", "do"),
            width=560,
        )
        if entry is None:
            return
        check_version(entry, "gr")
        graph = open_graph(str(entry.path), entry.version)
        labels = labels_of(entry)
        own = {id: x.shown(entry.version) for id, x in labels.labels.items()} if labels else {}
        numbers(entry, graph)
        mine = labels.subgraph if labels else Subgraph()
        alone, n_links, share = controls(graph, mine)
        chosen = state.get("pin") if state.get("pin") in graph.by_id else None
        largest = max((n.influence for n in graph.nodes), default=0.0)
        picture = drawing(
            graph,
            entry.metadata,
            min_influence=share * largest,
            chosen=chosen,
            own=own,
            mine=mine,
            only_mine=alone,
        )
        left, right = st.columns([17, 8], gap="medium")
        with left:
            network(
                picture.message(n_links, chosen),
                key=f"gr_{entry.id}",
                chosen=lambda id: _choose(graph, mine, id),
                pinned=lambda id: _pin(entry, graph, mine, id),
            )
            downloads(entry, labels, picture, n_links)
            graph_making.own_prompt(entry)
        with right:
            node(entry, graph, chosen, labels, own)
        enhance("graph_enhance")


def controls(graph: GraphFile, mine: Subgraph) -> tuple[bool, int, float]:
    """(Only what the reader pinned, links drawn, least influence of a node as a share of the largest.)"""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        ways = ["whole graph", "my subgraph"]
        alone = (
            st.segmented_control(
                "Shown",
                ways,
                required=True,
                help="The nodes you pinned and the outputs alone; the nodes of a group are drawn as one, with the sums"
                " of their links",
                **state.tie_choice("sub", ways, ways[0]),
            )
            == ways[1]
        )
        most = max(1, min(2000, len(graph.links)))
        n_links = (
            st.slider(
                "Links drawn, strongest first",
                0,
                most,
                step=1,
                width=280,
                **state.tie_number("links", 0, most, min(150, most)),
            )
            if graph.links
            else 0
        )
        share = st.slider(
            "Nodes with at least this influence",
            0.0,
            1.0,
            step=0.01,
            width=280,
            help="Influence: how much of what reaches the outputs, along all paths, goes through the node. Relative to"
            " the largest; tokens, outputs and pinned nodes always stay",
            **state.tie_float("share", 0.0, 1.0, 0.0),
        )
    if alone and not any(n in graph.by_id for n in mine.pins):
        panels.note("Nothing is pinned yet: choose a node in the whole graph and pin it (button, or the key P).")
    return alone, n_links, share


def _choose(graph: GraphFile, mine: Subgraph, id: str) -> None:
    """A node was clicked; of a group the strongest one is meant."""
    inside = mine.groups.get(id.removeprefix("group:"), []) if id.startswith("group:") else [id]
    known = sorted((graph.by_id[n] for n in inside if n in graph.by_id), key=lambda n: -n.influence)
    if known:
        state.put(pin=known[0].id)


def _pin(entry: Entry, graph: GraphFile, mine: Subgraph, id: str) -> None:
    """Pin a node, or take it out."""
    if id in graph.by_id:
        with _told():
            save_pin(data.workspace_folder(), entry.id, id, id not in mine.pins, entry.version)


@contextmanager
def _told() -> Iterator[None]:
    """What cannot be kept is said, and changes nothing."""
    try:
        yield
    except (UserError, OSError) as e:
        st.toast(markdown(str(e)))


def _text(e: Entry) -> str:
    """The prompt, the model that read it, and what the graph is drawn over where that is not the residual stream."""
    over = "  ·  transcoders" if e.metadata.get("site") == "TC" else ""
    return (
        f"{clip(visible(str(e.metadata.get('prompt') or e.id)), 60)}  · "
        f" {visible(str(e.metadata.get('model', '')))}{over}"
    )


def numbers(entry: Entry, graph: GraphFile) -> None:
    """What was kept when the graph was pruned, and how much of it the dictionaries do not explain."""
    n = entry.numbers
    items = []
    for kept, before, name in (("nodes", "nodes_before", "Nodes"), ("edges", "edges_before", "Links")):
        if kept in n:
            items.append((name, f"{int(n[kept]):,}", f"of {int(n.get(before, n[kept])):,} before pruning"))
    for key, name, about in (
        ("node_influence_kept", "Kept by the nodes", "of all influence on the outputs"),
        ("edge_influence_kept", "Kept by the links", "of all influence on the outputs"),
        ("logit_probability_covered", "Outputs shown", "of the next token's probability"),
    ):
        if key in n:
            items.append((name, f"{100 * float(n[key]):.0f} %", about))
    if "replacement" in n:
        score = float(n["replacement"])
        carried = f"of 1; error nodes carry {100 * (1 - score):.0f} % to the outputs"
        items.append(("Replacement", f"{score:.2f}", carried))
    if "completeness" in n:
        items.append(("Completeness", f"{float(n['completeness']):.2f}", "of 1: inputs of nodes that no error made"))
    errors = [x.influence for x in graph.nodes if x.kind == "error"]
    whole = sum(x.influence for x in graph.nodes if x.kind in ("error", "latent", "embedding"))
    if errors and whole:
        items.append(
            ("Errors' influence", f"{100 * sum(errors) / whole:.0f} %", f"{len(errors):,} error nodes are kept")
        )
    if items:
        st.html(panels.stats(items))


def labels_of(entry: Entry) -> GraphLabels | None:
    """The reader's own labels; None with a panel where their file cannot be read. Those of other data are counted."""
    try:
        found = read_labels(data.workspace_folder(), entry.id)
    except (UserError, OSError) as e:
        panels.problem(f"labels/{entry.id}.json cannot be read", str(e))
        return None
    old = sum(x.version != entry.version for x in found.labels.values())
    if old:
        panels.note(
            f"{old:,} of {len(found.labels):,} labels of your own were given on another data version of this graph; "
            "each names it, and may be on a node that is something else today.",
            "warn",
        )
    if found.subgraph.pins and found.subgraph.version != entry.version:
        panels.note(
            "Your subgraph was made on another data version of this graph; its nodes may be something else today.",
            "warn",
        )
    return found


def node(
    entry: Entry, graph: GraphFile, chosen: str | None, labels: GraphLabels | None, own: Mapping[str, str]
) -> None:
    """The chosen node with its strongest sources and targets; before a choice, the strongest links."""

    def text(id: str) -> str:
        known = graph.by_id.get(id)
        return id if known is None else describe(known, graph, entry.metadata, own)

    def marked(id: str) -> str:
        known = graph.by_id.get(id)
        return escape(id) if known is None else _name(entry, graph, known, own)

    if chosen is None:
        with panels.guarded("The changes"):
            graph_touch.answer(entry, graph, text)
        panels.heading("Strongest links", "choose a node to see its own")
        links = graph.links[:25]
        if _by_layer():
            links = sorted(links, key=lambda x: (graph.by_id[x[1]].layer, graph.by_id[x[0]].layer))
        rows = [
            [_name(entry, graph, graph.by_id[s], own), _name(entry, graph, graph.by_id[t], own), f"{w:+.3g}"]
            for s, t, w in links
        ]
        st.html(panels.table(["from", "to", "weight"], rows, numeric=frozenset({2})))
        return
    panels.heading("Chosen node", _name(entry, graph, graph.by_id[chosen], own))
    if labels is not None:
        label_field(entry, chosen, labels)
        subgraph_fields(entry, graph, chosen, labels.subgraph)
    else:
        st.button("Clear the choice", on_click=state.put, kwargs={"pin": None}, key="gr_clear")
    with panels.guarded("The changes"):
        mine = labels.subgraph if labels is not None else Subgraph()
        graph_touch.controls(graph, chosen, mine.group_of(chosen), mine.groups, text)
        graph_touch.answer(entry, graph, text)
    with panels.guarded("The latent"):
        latent_details(entry, graph.by_id[chosen])
    links_of(entry, graph, chosen, own)
    with panels.guarded("The parts"):
        graph_parts.by_units(entry, graph, chosen, marked)


def links_of(entry: Entry, graph: GraphFile, chosen: str, own: Mapping[str, str]) -> None:
    """Strongest sources and targets of the chosen node, each with the head or channel that carries most of it."""
    by_layer, splits = _by_layer(), graph_parts.splits_of(entry)
    for incoming, title in ((True, "Made by"), (False, "Makes")):
        found = neighbours_of(graph, chosen, entry.metadata, incoming=incoming)
        if by_layer:
            found = sorted(found, key=lambda x: x[0].layer)
        rows = [[_name(entry, graph, other, own), f"{w:+.3g}"] for other, w, _ in found]
        if splits is not None:
            ends = [(other.id, chosen) if incoming else (chosen, other.id) for other, _, _ in found]
            rows = [[*row, splits.strongest(*pair)] for row, pair in zip(rows, ends, strict=True)]
        heads = [title, "weight", *(["mostly through"] if splits is not None else [])]
        st.html(
            panels.table(heads, rows, numeric=frozenset({1}))
            if rows
            else f'<div class="wb-panel info">{title}: none kept</div>'
        )


def latent_details(entry: Entry, chosen: GraphNode) -> None:
    """Where the chosen latent fires and which tokens its direction raises."""
    d = _dictionary(entry, chosen)
    records = data.records(d) if d is not None else None
    if d is None or records is None or chosen.latent is None or not 0 <= chosen.latent < len(records):
        return
    vmax = float(records.row(chosen.latent).get("max") or 0.0)
    kinds = data.sequence_kinds(d)
    st.html(
        contexts_html(
            records,
            chosen.latent,
            "Top",
            n=3,
            window=8,
            breaks=False,
            vmax=vmax,
            kinds=None if kinds is None else kinds.tolist(),
        )
    )
    effects = records.logits(chosen.latent)
    if effects is not None:
        st.html(logit_bars(effects, 5))


def subgraph_fields(entry: Entry, graph: GraphFile, chosen: str, mine: Subgraph) -> None:
    """Pin the chosen node, and put it into a group that is drawn as one node."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.button(
            "Unpin" if chosen in mine.pins else "Pin",
            icon=":material/keep:",
            key="gr_pin",
            help="Your subgraph is what you pinned; it is kept in the workspace (labels/) and goes into the JSON",
            on_click=_pin,
            args=(entry, graph, mine, chosen),
        )
        st.session_state["gr_group"] = mine.group_of(chosen) or ""
        st.text_input(
            "Your group",
            key="gr_group",
            max_chars=MAX_LENGTH,
            placeholder="a name; Enter adds the node to that group",
            help="A supernode: in your subgraph all nodes of a group are drawn as one. Empty takes the node out",
            on_change=_group,
            args=(entry, chosen),
        )
        st.button("Clear the choice", on_click=state.put, kwargs={"pin": None}, key="gr_clear")


def _group(entry: Entry, chosen: str) -> None:
    with _told():
        save_group(data.workspace_folder(), entry.id, chosen, str(st.session_state["gr_group"] or ""), entry.version)


def label_field(entry: Entry, chosen: str, labels: GraphLabels) -> None:
    """The chosen node's label of one's own, to write, change or empty."""
    key = "gr_label"
    st.session_state[key] = labels.labels[chosen].text if chosen in labels.labels else ""
    st.text_input(
        "Your label",
        key=key,
        max_chars=MAX_LENGTH,
        placeholder="what this node stands for; Enter keeps it, empty removes it",
        on_change=_label,
        args=(entry, chosen),
        width=560,
    )


def _label(entry: Entry, chosen: str) -> None:
    with _told():
        save_label(data.workspace_folder(), entry.id, chosen, str(st.session_state["gr_label"] or ""), entry.version)


def downloads(entry: Entry, labels: GraphLabels | None, picture: Drawing, n_links: int) -> None:
    """The picture as vectors, and the graph's file, with one's own labels and subgraph where there are any."""
    path = entry.path / "graph.json"

    def content() -> bytes:
        if labels is None or not (labels.labels or labels.subgraph.pins):
            return path.read_bytes()
        return (
            json.dumps(with_labels(read_json(path), labels, entry.version), indent=2, ensure_ascii=False) + "\n"
        ).encode()

    def drawn(how: Callable[[Drawing, int, str, str], bytes]) -> bytes:
        made = f"graphs/{entry.id}@{entry.version}"
        return how(picture, n_links, f"Attribution graph of “{visible(str(entry.metadata.get('prompt') or ''))}”", made)

    with st.container(horizontal=True, gap="small"):
        for name, how, mime in (("SVG", svg, "image/svg+xml"), ("PDF", pdf, "application/pdf")):
            st.download_button(
                f"Figure as {name}",
                partial(drawn, how),
                file_name=f"{entry.id}.{name.lower()}",
                mime=mime,
                icon=":material/download:",
                on_click="ignore",
                key=f"gr_{name.lower()}",
                help="What is drawn above, as vectors on white, with its legend",
            )
        st.download_button(
            "Graph as JSON",
            content,
            file_name=f"{entry.id}.json",
            mime="application/json",
            icon=":material/download:",
            on_click="ignore",
            key="gr_down",
            help="In the schema Neuronpedia publishes; your labels are the names (clerp) of their nodes, your pins and"
            " groups its pinned nodes and supernodes",
        )


def _by_layer() -> bool:
    """Whether lists of links are sorted by layer instead of weight."""
    orders = ["strongest first", "by layer"]
    return (
        st.segmented_control(
            "Order", orders, required=True, label_visibility="collapsed", **state.tie_choice("by", orders, orders[0])
        )
        == "by layer"
    )


def _name(entry: Entry, graph: GraphFile, n: GraphNode, own: Mapping[str, str]) -> str:
    """A node as HTML: latents link to their page."""
    text = escape(describe(n, graph, entry.metadata, own))
    d = _dictionary(entry, n)
    if d is None or d.records is None or n.latent is None:
        return text
    name = f"L{n.layer} #{n.latent}"
    return latent_link(d, n.latent, name) + text.removeprefix(name)


def _dictionary(entry: Entry, n: GraphNode) -> Dictionary | None:
    """The dictionary a node is a latent of."""
    return data.index().dictionaries.get(dictionary_of(entry.metadata, n.layer) or "") if n.latent is not None else None


body()
