"""Graph: which latents make which latents, and which make the next token."""

from __future__ import annotations

import json
from collections.abc import Mapping

import streamlit as st

from sae.errors import UserError
from sae.files import read_json
from ui.components.enhance import enhance, latent_link
from ui.kit import data, panels, state
from ui.kit.choose import check_version, choose
from ui.kit.index import Entry
from ui.views.graphs import GraphFile, GraphNode, describe, dictionary_of, neighbours_of, open_graph, picture
from workbench.markup.tokens import clip, escape, markdown, visible
from workbench.results.labels import MAX_LENGTH, GraphLabels, read_labels, save_label, with_labels


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
            clears=("pin", "links"),
            width=560,
        )
        if entry is None:
            return
        check_version(entry, "gr")
        graph = open_graph(str(entry.path), entry.version)
        labels = labels_of(entry)
        own = {id: x.shown(entry.version) for id, x in labels.labels.items()} if labels else {}
        numbers(entry)
        with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
            most = max(10, min(2000, len(graph.links)))
            n_links = st.slider(
                "Links shown, strongest first",
                10,
                most,
                step=1,
                width=320,
                **state.tie_number("links", 10, most, min(150, most)),
            )
            share = st.slider(
                "Nodes with at least this influence",
                0.0,
                1.0,
                step=0.01,
                width=320,
                help="Relative to the largest; tokens and outputs always stay",
                **state.tie_float("share", 0.0, 1.0, 0.0),
            )
        largest = max((n.influence for n in graph.nodes), default=0.0)
        chosen = state.get("pin") if state.get("pin") in graph.by_id else None
        event = st.plotly_chart(
            picture(graph, entry.metadata, n_links=n_links, min_influence=share * largest, chosen=chosen, own=own),
            key=f"gr_{entry.id}",
            on_select="rerun",
            selection_mode="points",
            config={"displaylogo": False, "scrollZoom": True},
            alt=f"Attribution graph with {len(graph.nodes)} nodes",
        )
        picked = [p.get("customdata") for p in event.selection.points]
        if picked and picked[0] in graph.by_id and picked[0] != chosen:
            state.put(pin=picked[0])
            st.rerun(scope="fragment")
        node(entry, graph, chosen, labels, own)
        download(entry, labels)
        enhance("graph_enhance")


def _text(e: Entry) -> str:
    """The prompt, the model that read it, and what the graph is drawn over where that is not the residual stream."""
    over = "  ·  transcoders" if e.metadata.get("site") == "TC" else ""
    return (
        f"{clip(visible(str(e.metadata.get('prompt') or e.id)), 60)}  · "
        f" {visible(str(e.metadata.get('model', '')))}{over}"
    )


def numbers(entry: Entry) -> None:
    """What was kept when the graph was pruned."""
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
    return found


def node(
    entry: Entry, graph: GraphFile, chosen: str | None, labels: GraphLabels | None, own: Mapping[str, str]
) -> None:
    """The chosen node with its strongest sources and targets; before a choice, the strongest links."""
    if chosen is None:
        panels.heading("Strongest links", "click a node to see its own")
        links = graph.links[:25]
        if _by_layer():
            links = sorted(links, key=lambda x: (graph.by_id[x[1]].layer, graph.by_id[x[0]].layer))
        rows = [
            [_name(entry, graph, graph.by_id[s], own), _name(entry, graph, graph.by_id[t], own), f"{w:+.3g}"]
            for s, t, w in links
        ]
        st.html(panels.table(["from", "to", "weight"], rows, numeric=frozenset({2})))
    else:
        panels.heading("Chosen node", _name(entry, graph, graph.by_id[chosen], own))
        if labels is not None:
            label_field(entry, chosen, labels)
        by_layer = _by_layer()
        for column, incoming, title in zip(
            st.columns(2, gap="large"), (True, False), ("Made by", "Makes"), strict=True
        ):
            with column:
                found = neighbours_of(graph, chosen, entry.metadata, incoming=incoming)
                if by_layer:
                    found = sorted(found, key=lambda x: x[0].layer)
                rows = [[_name(entry, graph, other, own), f"{w:+.3g}"] for other, w, _ in found]
                st.html(
                    panels.table([title, "weight"], rows, numeric=frozenset({1}))
                    if rows
                    else '<div class="wb-panel info">none kept</div>'
                )
        st.button("Clear the choice", on_click=state.put, kwargs={"pin": None}, key="gr_clear")


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
    try:
        save_label(data.workspace_folder(), entry.id, chosen, str(st.session_state["gr_label"] or ""), entry.version)
    except (UserError, OSError) as e:
        st.toast(markdown(str(e)))


def download(entry: Entry, labels: GraphLabels | None) -> None:
    """The graph's file, with one's own labels where there are any."""
    path = entry.path / "graph.json"

    def content() -> bytes:
        if labels is None or not labels.labels:
            return path.read_bytes()
        return (
            json.dumps(with_labels(read_json(path), labels, entry.version), indent=2, ensure_ascii=False) + "\n"
        ).encode()

    st.download_button(
        "Graph as JSON",
        content,
        file_name=f"{entry.id}.json",
        mime="application/json",
        icon=":material/download:",
        on_click="ignore",
        key="gr_down",
        help="In the schema Neuronpedia publishes; your labels are the names (clerp) of their nodes",
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
    d = data.index().dictionaries.get(dictionary_of(entry.metadata, n.layer) or "") if n.latent is not None else None
    if d is None or d.records is None or n.latent is None:
        return text
    name = f"L{n.layer} #{n.latent}"
    return latent_link(d, n.latent, name) + text.removeprefix(name)


body()
