"""Induction and state: the same task in a Transformer and a Mamba, token offset by token offset."""

from __future__ import annotations

from typing import Any

import streamlit as st

from sae.errors import UserError
from workbench.exporting.kinds.circuits import NAMES, OWN, metric_name
from workbench.markup.glossary import badge
from workbench.markup.tags import div
from workbench.markup.tokens import escape, visible
from workbench.results.circuits import CircuitResult
from workbench_ui.components.near import when_near
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.choose import check_version, choose_of
from workbench_ui.kit.figures import chart, drawn
from workbench_ui.kit.index import Entry
from workbench_ui.views import substitutions
from workbench_ui.views.circuitry import analyses, headline, metrics, prompt_html, sentences, task_of
from workbench_ui.views.front import HALF, right_answers

SIDES = (("transformer", "Transformer", "tf"), ("mamba", "Mamba", "mb"))
ABOUT = {
    "induction": (
        "The prompt holds a pair of tokens <b>A B</b>, later <b>A</b> again, and the model has to say <b>B</b>. Each"
        " effect is what changes when one path carries the activations of a prompt with another pair: where an effect"
        " is strong, that path carries the answer."
    )
}


@st.fragment(key="induction_body")
def body() -> None:
    """Task and metric on top; one column per architecture."""
    with panels.guarded("The circuits"):
        panels.page_title("Induction & state", "where a Transformer reads and where a Mamba writes what it needs")
        entries = data.index().of("circuits")
        if not entries:
            panels.not_computed("Circuits", "workbench circuits mini-pythia")
        else:
            both_sides(entries)
    if data.index().of("substitutions"):
        when_near("in_substitutions", 560, "The substitutions", substitutions.section)


def both_sides(entries: list[Entry]) -> None:
    """One column per architecture."""
    with panels.guarded("The circuits"):
        task, shown, metric, shared = controls(entries)
        for entry, key in shown:
            check_version(entry, key)
        if task in ABOUT:
            panels.note(ABOUT[task])
        largest = _largest([e for e, _ in shown], metric) if shared else None
        for column, (entry, key) in zip(st.columns(max(1, len(shown)), gap="large"), shown, strict=False):
            with column, panels.guarded(entry.id):
                side(entry, data.open_circuit(str(entry.path), entry.version), metric, key, largest)


def controls(entries: list[Entry]) -> tuple[str, list[tuple[Entry, str]], str, bool]:
    """Task, the two results with their keys, metric, and whether both heatmaps share one colour scale."""
    tasks = list(dict.fromkeys(task_of(e.id) for e in entries))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.session_state["in_task"] = state.get_choice("task", tasks, tasks[0])
        task = st.selectbox(
            "Task",
            tasks,
            key="in_task",
            format_func=visible,
            on_change=lambda: state.put(task=st.session_state["in_task"]),
            width=200,
        )
        state.put(task=task)
        here = sorted(
            (e for e in entries if task_of(e.id) == task), key=lambda e: (len(e.id), e.id)
        )  # a model before its seeds
        shown = []
        for architecture, name, key in SIDES:
            group = [e for e in here if _side_of(e) == architecture]
            if group:
                entry = choose_of(group, name, key, what="Circuits", command="circuits MODEL", text=_model, width=250)
                if entry is not None:
                    shown.append((entry, key))
        known = _metrics(shown)
        st.session_state["in_metric"] = state.get_choice("met", known, known[0])
        metric = st.selectbox(
            "Metric",
            known,
            key="in_metric",
            format_func=lambda m: visible(metric_name(m)),
            on_change=lambda: state.put(met=st.session_state["in_metric"]),
            width=190,
        )
        shared = st.toggle("one colour scale", **state.tie_flag("shared", True)) if len(shown) > 1 else False
    return task, shown, str(metric), shared


def _side_of(e: Entry) -> str:
    """The column of a result: a hybrid stands with the Mambas, for its states."""
    architecture = str(e.metadata.get("architecture"))
    return "mamba" if architecture == "hybrid" else architecture


def _model(e: Entry) -> str:
    """The model of a result, with its snapshot where it is not the last."""
    about = e.metadata
    revision = f" @ {about['revision']}" if about.get("revision") else ""
    return visible(f"{about.get('model') or e.id}{revision}")


def _metrics(shown: list[tuple[Entry, str]]) -> list[str]:
    """Metrics of the first result that can be read."""
    for e, _ in shown:
        try:
            return metrics(data.open_circuit(str(e.path), e.version)) or ["logit_diff"]
        except (UserError, OSError, ValueError, KeyError):
            continue  # its own column says what is wrong
    return ["logit_diff"]


def _largest(entries: list[Entry], metric: str) -> float | None:
    """The largest effect of both profiles, for one colour scale; None where one cannot be drawn."""
    try:
        frames = [drawn("circuit_profile", e, {"metric": metric}).panels[0].frame for e in entries]
    except (UserError, OSError, ValueError, KeyError):
        return None
    return max((float(f["effect"].abs().max()) for f in frames if len(f)), default=None)


def side(entry: Entry, result: CircuitResult, metric: str, key: str, largest: float | None) -> None:
    """One model on the task."""
    about = result.manifest.metadata
    names = {"hybrid": "Hybrid", **{a: n for a, n, _ in SIDES}}
    name = names.get(str(about.get("architecture")), "Transformer")
    chips = [
        badge("architecture", name, name[0].lower()),
        badge("prompts", f"{about.get('n_prompts', '?')} prompts"),
        badge("data version", escape(entry.version), "v"),
    ]
    st.html(div("wb-head", f"<h2>{escape(_model(entry))}</h2>", div("sub", " ".join(chips))))
    st.html(headline(result) or div("wb-panel missing", "no headline numbers"))
    right = right_answers(result.manifest.numbers)
    if right is not None and right < HALF:
        panels.trap(
            f"The model gives the right answer on {100 * right:.0f} % of the prompts: what follows pushes towards the"
            " answer, and is not enough to solve the task."
        )
    for sentence in sentences(result):
        panels.note(escape(sentence))
    with panels.guarded("The effects"):
        panels.heading(NAMES[OWN.get(name.lower(), "read_profile")])
        options = {"metric": metric}
        scaled = {**options, "scale": largest} if largest else options
        chart(f"in_profile_{key}", "circuit_profile", entry, scaled, height=_height("circuit_profile", entry, options))
        when_near(f"in_curve_{key}", 340, "The strongest row", lambda: strongest_row(entry, metric, key))
        if name != "Transformer":
            when_near(f"in_taps_{key}", 310, "The convolution", lambda: taps(entry, metric, key))
        when_near(f"in_rank_{key}", 400, "The single effects", lambda: ranking(entry, result, metric, key))
    when_near(f"in_prompts_{key}", 300, "The example prompts", lambda: prompts(result))


def strongest_row(entry: Entry, metric: str, key: str) -> None:
    """Effects of the row that holds the strongest one, offset by offset."""
    panels.heading("Its strongest row", "band: 95 % interval over prompts")
    chart(f"in_curve_{key}", "circuit_curve", entry, {"metric": metric}, height=250)


def taps(entry: Entry, metric: str, key: str) -> None:
    """Effects of the convolution's taps."""
    panels.heading(NAMES["conv_profile"])
    chart(f"in_taps_{key}", "circuit_taps", entry, {"metric": metric}, height=220)


def ranking(entry: Entry, result: CircuitResult, metric: str, key: str) -> None:
    """Single effects of one analysis, largest first."""
    known = analyses(result)
    if not known:
        return
    panels.heading("Single effects", "largest first, with 95 % intervals over prompts")
    what = st.selectbox(
        "Effects",
        known,
        format_func=lambda a: NAMES[a],
        label_visibility="collapsed",
        width=300,
        **state.tie_choice(f"what_{key}", known, known[0]),
    )
    options: dict[str, Any] = {"metric": metric, "analysis": what}
    height = _height("circuit_effects", entry, options)
    chart(f"in_rank_{key}", "circuit_effects", entry, options, height=height)


def _height(figure: str, entry: Entry, options: dict[str, Any]) -> int:
    """Pixels for as many rows as the figure has."""
    panel = drawn(figure, entry, options).panels[0]
    return min(460, max(200, 120 + 26 * panel.frame[panel.x if panel.kind == "points" else panel.y].nunique()))


def prompts(result: CircuitResult) -> None:
    """Example prompts with their marks."""
    found = result.prompts[:3]
    if found:
        panels.heading("Example prompts", "marked: where the analysis looks")
        st.html("".join(prompt_html(p) for p in found))


body()
