"""Interventions from the Graph page: latents are held at other values, and the model answers beside the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from sae.errors import UserError
from workbench.markup.tags import div
from workbench.markup.tokens import cell, escape
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.index import Entry
from workbench_ui.views.graphs import GraphFile

WAYS = ("ablate", "set to", "scale by", "swap with")
LONGEST = 2000  # characters of changes in the address
SWAP = "~"


@st.cache_resource(show_spinner="tracing the whole graph …", max_entries=2)
def _traced(root: str, id: str, version: str) -> Any:
    """The graph with its model, kept: the first change waits for it, every further one is a forward pass."""
    from workbench.analysis.graph.run import traced_again
    from workbench.workspace import Workspace

    return traced_again(Workspace(root, create=False), id, max_tokens=1024)


def changes() -> list[str]:
    """The changes of the address: ``NODE=0``, ``NODE=x2``, ``A~B``."""
    return [c for c in (state.get("do") or "")[:LONGEST].split(";") if c.strip()]


def controls(
    graph: GraphFile, chosen: str, group: str | None, groups: Mapping[str, Sequence[str]], name: Callable[[str], str]
) -> None:
    """What to do with the chosen latent, or with all of its group.

    Args:
        group: the chosen one's group, None without one. groups: the nodes of every group. name: id -> plain text.
    """
    node = graph.by_id[chosen]
    if node.kind != "latent":
        return
    panels.heading("Change it", "hold it at another value, and see what the model says")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        way = st.selectbox("Way", WAYS, key="gt_way", width=130)
        value, other = 0.0, ""
        if way in ("set to", "scale by"):
            start = 2.0 if way == "scale by" else float(node.activation or 0.0)
            value = st.number_input("Value", value=start, step=0.5, key=f"gt_value_{way}_{chosen}", width=130)
        elif way == "swap with":
            others = [n.id for n in graph.nodes if n.kind == "latent" and n.id != chosen]
            other = st.selectbox("Latent", others, format_func=name, key="gt_other", width=260) or ""
        whole = bool(group) and st.checkbox("its whole group", key="gt_group")
        nodes = _latents(graph, groups[group]) if whole and group else [chosen]
        if whole and way == "swap with":
            fit = {g: _latents(graph, members) for g, members in groups.items() if g != group}
            fit = {g: members for g, members in fit.items() if len(members) == len(nodes)}
            chosen_group = st.selectbox(
                "Group",
                list(fit),
                key="gt_other_group",
                width=220,
                placeholder="none of as many latents",
                help=f"Groups of {len(nodes)} latents: activations are exchanged one by one, in the groups' order",
            )
            other = ",".join(fit[chosen_group]) if chosen_group in fit else ""
        said = {"ablate": "=0", "set to": f"={value:g}", "scale by": f"=x{value:g}", "swap with": f"{SWAP}{other}"}[way]
        st.button(
            "Add",
            icon=":material/add:",
            key="gt_add",
            type="primary",
            disabled=way == "swap with" and not other,
            on_click=_add,
            args=(",".join(nodes) + said, nodes),
        )


def _latents(graph: GraphFile, nodes: Sequence[str]) -> list[str]:
    """Those of a group's nodes that can be changed."""
    return [n for n in nodes if n in graph.by_id and graph.by_id[n].kind == "latent"]


def _add(change: str, nodes: list[str]) -> None:
    """A new change takes the place of earlier ones of the same nodes."""
    named = {*nodes, *_nodes(change)}
    kept = [c for c in changes() if not named & _nodes(c)]
    state.put(do=";".join([*kept, change]) or None)


def _nodes(change: str) -> set[str]:
    return set(change.split("=")[0].replace(SWAP, ",").split(","))


def _drop(change: str) -> None:
    state.put(do=";".join(c for c in changes() if c != change) or None)


def answer(entry: Entry, graph: GraphFile, name: Callable[[str], str]) -> None:
    """The changes that are held, and what the model says with them, beside what the graph predicts."""
    held = changes()
    if not held:
        return
    panels.heading(
        "With these changes", "next token before and after; what the graph predicts beside what the model does"
    )
    for change in held:
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.button(
                "",
                icon=":material/close:",
                key=f"gt_drop_{change}",
                help="Take it back",
                on_click=_drop,
                args=(change,),
            )
            st.html(div("", escape(_said(change, graph, name))))
    ways = ["as drawn", "frozen", "free"]
    how = st.segmented_control(
        "Attention",
        ways,
        required=True,
        help="Attention patterns, norms and gates: held at this prompt's values, as the graph assumes, or free",
        **state.tie_choice("att", ways, ways[0]),
    )
    try:
        found = _touch(entry, held, {"frozen": True, "free": False}.get(str(how)))
    except UserError as e:
        panels.problem("This cannot be changed", str(e))
        return
    made = found.intervention
    rows = [
        [f"<code>{escape(cell(word, 20))}</code>", f"{100 * b:.1f} %", f"{100 * a:.1f} %", f"{100 * (a - b):+.1f}"]
        for word, b, a in zip(found.words, made.before, made.after, strict=True)
    ]
    st.html(
        panels.stats(
            [("KL", f"{made.kl:.3g}", f"nats, before to after; attention {'frozen' if found.frozen else 'free'}")]
        )
    )
    st.html(panels.table(["next token", "before", "after", "points"], rows, numeric=frozenset({1, 2, 3})))
    rows = [
        [escape(name(target)), f"{says:+.3f}", f"{did:+.3f}"]
        for target, says, did in zip(made.targets, made.predicted, made.measured, strict=True)
    ]
    st.html(panels.table(["output's logit, less the mean", "predicted", "measured"], rows, numeric=frozenset({1, 2})))


def _touch(entry: Entry, held: list[str], freeze: bool | None) -> Any:
    from workbench.analysis.graph.run import touch

    on = _traced(str(data.workspace_folder()), entry.id, entry.version)
    sets = [c for c in held if SWAP not in c]
    return touch(on, sets, [c.replace(SWAP, "=") for c in held if SWAP in c], freeze=freeze)


def _said(change: str, graph: GraphFile, name: Callable[[str], str]) -> str:
    """``L2 #17 at “the”: ablated``."""
    if SWAP in change:
        a, _, b = change.partition(SWAP)
        return f"{_some(a, name)} ⇄ {_some(b, name)}"
    nodes, _, value = change.partition("=")
    how = "ablated" if value == "0" else f"× {value[1:]}" if value.startswith("x") else f"held at {value}"
    return f"{_some(nodes, name)}: {how}"


def _some(nodes: str, name: Callable[[str], str]) -> str:
    shown = [name(n) for n in nodes.split(",")]
    return f"{', '.join(shown[:3])}{f' and {len(shown) - 3} more' if len(shown) > 3 else ''}"
