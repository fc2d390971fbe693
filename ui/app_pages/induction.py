"""Induction and state: the same task in a Transformer and a Mamba, token offset by token offset."""

from __future__ import annotations

import streamlit as st

from ui.kit import data, panels, state
from ui.kit.circuitry import (
    TITLES,
    analyses,
    headline,
    metrics,
    open_circuit,
    profile,
    prompt_html,
    ranking,
    sentences,
    strongest_curve,
    taps,
    task_of,
)
from ui.kit.export import export_button
from ui.kit.figures import DIVERGING, plot, table
from ui.kit.index import Entry
from workbench.circuits import CircuitResult
from workbench.export.figures import Panel
from workbench.markup.tags import div, span
from workbench.markup.tokens import escape, visible

CONFIG = {"displaylogo": False, "displayModeBar": False}


@st.fragment(key="induction_body")
def body() -> None:
    """Task and metric on top; one column per architecture."""
    with panels.guarded("The circuits"):
        panels.page_title("Induction & state", "where a Transformer reads and where a Mamba writes what it needs")
        entries = data.index().of("circuits")
        if not entries:
            panels.not_computed("Circuits", f"workbench circuits mini-pythia --workspace {data.workspace_folder().name}")
            return
        shown, metric, shared = controls(entries)
        results = [(e, open_circuit(str(e.path), e.version)) for e in shown]
        largest = _largest([profile(r, metric) for _, r in results]) if shared else None
        for column, (entry, result) in zip(st.columns(max(1, len(results)), gap="large"), results, strict=True):
            with column, panels.guarded(entry.id):
                side(entry, result, metric, largest)


def controls(entries: list[Entry]) -> tuple[list[Entry], str, bool]:
    """Task, the two results, metric, and whether both heatmaps share one colour scale."""
    tasks = list(dict.fromkeys(task_of(e.id) for e in entries))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.session_state["in_task"] = state.get_choice("task", tasks, tasks[0])
        task = st.selectbox(
            "Task", tasks, key="in_task", format_func=visible, on_change=lambda: state.put(task=st.session_state["in_task"]), width=200
        )
        state.put(task=task)
        here = sorted(
            (e for e in entries if task_of(e.id) == task), key=lambda e: (len(e.id), e.id)
        )  # a model before its seeds and snapshots
        groups = [[e for e in here if e.metadata.get("architecture") == a] for a in ("transformer", "mamba")]
        shown = []
        for name, group in zip(("Transformer", "Mamba"), groups, strict=True):
            if group:
                ids = [e.id for e in group]
                key = f"in_{name}"
                if st.session_state.get(key) not in ids:
                    st.session_state[key] = ids[0]
                id = st.selectbox(name, ids, key=key, format_func=visible, width=250)
                shown.append(next(e for e in group if e.id == id))
        known = metrics(open_circuit(str(shown[0].path), shown[0].version)) if shown else ["logit_diff"]
        if st.session_state.get("in_metric") not in known:
            st.session_state["in_metric"] = known[0]
        metric = st.selectbox("Metric", known, key="in_metric", format_func=lambda m: m.replace("_", " "), width=190)
        shared = st.toggle("one colour scale", value=True, key="in_shared") if len(shown) > 1 else False
    return shown, str(metric), shared


def _largest(found: list[Panel | None]) -> float:
    return max((float(p.frame["effect"].abs().max()) for p in found if p is not None and len(p.frame)), default=1.0)


def side(entry: Entry, result: CircuitResult, metric: str, largest: float | None) -> None:
    """One model on the task."""
    about = result.manifest.metadata
    name = "Mamba" if about.get("architecture") == "mamba" else "Transformer"
    badge = span(f"wb-badge {'m' if name == 'Mamba' else 't'}", name)
    st.html(
        div(
            "wb-head",
            f"<h2>{escape(entry.id)}</h2>",
            div("sub", f"{badge} {about.get('n_prompts', '?')} prompts · {escape(entry.version)}"),
        )
    )
    st.html(headline(result) or div("wb-panel missing", "no headline numbers"))
    for sentence in sentences(result):
        panels.note(escape(sentence))
    chart(profile(result, metric), TITLES["write_profile" if name == "Mamba" else "read_profile"], f"in_profile_{name}", largest)
    export_button("circuit_profile", f"circuits/{entry.id}", {"metric": metric}, key=f"in_export_{name}")
    chart(strongest_curve(result, metric), "Its strongest row", f"in_curve_{name}")
    if name == "Mamba":
        chart(taps(result, metric), TITLES["conv_profile"], f"in_taps_{name}")
    known = analyses(result)
    if known:
        what = st.selectbox(
            "Effects", known, key=f"in_what_{name}", format_func=lambda a: TITLES[a], label_visibility="collapsed", width=300
        )
        chart(ranking(result, what, metric), TITLES[what], f"in_rank_{name}")
        export_button("circuit_effects", f"circuits/{entry.id}", {"metric": metric, "analysis": what}, key=f"in_rank_export_{name}")
    prompts(result)


def chart(panel: Panel | None, title: str, key: str, largest: float | None = None) -> None:
    """A panel with its table; ``largest`` puts two heatmaps on one colour scale."""
    if panel is None:
        return
    panels.heading(title)
    height = 120 + 26 * panel.frame[panel.x if panel.kind == "points" else panel.y].nunique() if panel.kind in ("heat", "points") else 220
    figure = plot(panel, height=min(460, max(200, height)))
    if largest is not None:
        figure.update_traces(zmin=-largest, zmax=largest, colorscale=DIVERGING, zmid=0)
    st.plotly_chart(figure, key=key, config=CONFIG, alt=title)
    with st.expander("Show as table", key=f"{key}_t", on_change="rerun") as box:
        if box.open:
            table(panel.frame)


def prompts(result: CircuitResult) -> None:
    """Example prompts with their marks."""
    with panels.guarded("The example prompts"):
        found = result.prompts[:3]
        if found:
            panels.heading("Example prompts", "marked: where the analysis looks")
            st.html("".join(prompt_html(p) for p in found))


body()
