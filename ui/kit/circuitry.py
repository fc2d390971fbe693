"""Circuit results for the pages: effects as panels, prompts with their marks, headline numbers as sentences."""

from __future__ import annotations

import html
import re
from typing import Any

import pandas as pd
import streamlit as st

from ui.kit import panels
from workbench.circuits import CircuitResult
from workbench.export.figures import Panel
from workbench.markup.tags import div, span
from workbench.markup.tokens import chip, escape, number

PROFILES = {"transformer": "read_profile", "mamba": "write_profile"}
TITLES = {
    "read_profile": "What each head reads, by offset",
    "write_profile": "Where the state is written, by offset",
    "conv_profile": "Convolution taps behind the write",
    "head_to_logit": "Heads to the answer",
    "state_to_logit": "States to the answer",
    "y_to_logit": "Mixer outputs to the answer",
    "head_to_head": "Heads to heads",
    "activation": "Activation patching",
    "ablation": "Ablations",
}


@st.cache_resource(show_spinner=False, max_entries=12)
def open_circuit(folder: str, version: str) -> CircuitResult:
    """A result, kept; ``version`` makes a new one be read anew."""
    return CircuitResult.open(folder)


def rows_of(effects: pd.DataFrame) -> pd.Series:
    """Names of the rows of a heatmap: ``L1H3`` for heads, ``L1`` for layers."""
    unit = effects["unit"]
    return "L" + effects["layer"].astype(str) + unit.map(lambda u: f"H{u}" if u >= 0 else "")


def profile(result: CircuitResult, metric: str) -> Panel | None:
    """Effect by layer (or head) and offset from the focus mark; None where not computed."""
    about = result.manifest.metadata
    found = result.select(analysis=PROFILES.get(str(about.get("architecture")), ""), metric=metric)
    found = found[found["offset"].notna()]
    if found.empty:
        return None
    found = found.assign(row=rows_of(found), offset=found["offset"].astype(int)).sort_values(["layer", "unit", "offset"])
    keep = found.groupby("row", sort=False)["effect"].apply(lambda e: e.abs().max()).nlargest(14).index
    found = found[found["row"].isin(keep)]
    focus = str(about.get("focus", "focus"))
    frame = found[["row", "offset", "effect", "low", "high", "n"]].reset_index(drop=True)
    return Panel(
        "heat",
        frame,
        "offset",
        "row",
        value="effect",
        x_label=f"token offset from {focus}",
        y_label=" ",
        value_label=metric.replace("_", " "),
    )


def strongest_curve(result: CircuitResult, metric: str) -> Panel | None:
    """The profile of the row with the largest effect, with its interval."""
    panel = profile(result, metric)
    if panel is None:
        return None
    row = panel.frame.loc[panel.frame["effect"].abs().idxmax(), "row"]
    frame = panel.frame[panel.frame["row"] == row]
    return Panel(
        "line",
        frame,
        "offset",
        "effect",
        low="low",
        high="high",
        x_label=panel.x_label,
        y_label=f"{metric.replace('_', ' ')} through {row}",
    )


def taps(result: CircuitResult, metric: str) -> Panel | None:
    """Mamba: effect by offset and convolution tap, in the layer with the largest one."""
    found = result.select(analysis="conv_profile", metric=metric)
    found = found[found["offset"].notna()]
    if found.empty:
        return None
    layer = int(found.loc[found["effect"].abs().idxmax(), "layer"])
    found = found[found["layer"] == layer].assign(
        offset=lambda f: f["offset"].astype(int), back=lambda f: f["tap"].map(lambda t: f"{t} back")
    )
    frame = found.sort_values(["tap", "offset"])[["back", "offset", "effect", "low", "high", "n"]].reset_index(drop=True)
    focus = str(result.manifest.metadata.get("focus", "focus"))
    return Panel(
        "heat",
        frame,
        "offset",
        "back",
        value="effect",
        x_label=f"written at offset from {focus} (layer {layer})",
        y_label="convolution tap",
        value_label=metric,
    )


def ranking(result: CircuitResult, analysis: str, metric: str, *, most: int = 12) -> Panel | None:
    """The largest effects of one analysis with their intervals."""
    found = result.select(analysis=analysis, metric=metric)
    if found.empty:
        return None
    names = rows_of(found)
    more = [c for c in ("receiver", "site", "position", "source") if found[c].nunique() > 1]
    for column in more:
        names = names + found[column].map(lambda v: f" {v}" if v else "")
    frame = found.assign(what=names)[["what", "path", "effect", "low", "high", "n"]]
    keep = frame.groupby("what", sort=False)["effect"].apply(lambda e: e.abs().max()).nlargest(most).index
    frame = frame[frame["what"].isin(keep)]
    order = {name: j for j, name in enumerate(keep)}
    frame = frame.sort_values("what", key=lambda s: s.map(order), kind="stable").reset_index(drop=True)
    series = "path" if frame["path"].nunique() > 1 else None
    return Panel("points", frame, "what", "effect", series=series, low="low", high="high", y_label=metric.replace("_", " "))


def analyses(result: CircuitResult) -> list[str]:
    """Analyses that are shown as rankings, in the order of :data:`TITLES`."""
    known = set(result.effects["analysis"].unique())
    return [a for a in TITLES if a in known and a not in ("read_profile", "write_profile", "conv_profile")]


def metrics(result: CircuitResult) -> list[str]:
    """Metrics of a result, the logit difference first."""
    found = list(dict.fromkeys(result.effects["metric"]))
    return sorted(found, key=lambda m: m != "logit_diff")


def headline(result: CircuitResult) -> str:
    """How well the model does the task, and where the motif sits, as a strip."""
    numbers, about = result.manifest.numbers, result.manifest.metadata
    items: list[tuple[str, str, str]] = []
    for key, name in (("accuracy", "Right answers"), ("clean_logit_diff", "Logit difference")):
        e = numbers.get(key)
        if isinstance(e, dict) and e.get("value") is not None:
            share = key == "accuracy"
            shown = f"{100 * e['value']:.0f} %" if share else number(e["value"])
            items.append((name, shown, _interval(e, 100 if share else 1) + f"n = {e.get('n', about.get('n_prompts', '?'))}"))
    for key, name in (("read_peak", "Strongest read"), ("write_peak", "Strongest write")):
        peak = numbers.get(key)
        if isinstance(peak, dict):
            head = f"H{peak['unit']}" if "unit" in peak else ""
            items.append(
                (
                    name,
                    f"L{peak['layer']}{head} at {peak['position']}",
                    f"the same cell in {100 * peak.get('same', float('nan')):.0f} % of resamples",
                )
            )
    conv = numbers.get("conv_peak")
    if isinstance(conv, dict):
        offset = conv.get("source_offset")
        read = f"reads {about.get('focus')}{offset:+d}" if offset is not None else f"layer {conv.get('layer')}"
        items.append(("Convolution", f"tap {conv['tap']} back", read))
    return panels.stats([(k, v, panels.clip(n, 44)) for k, v, n in items]) if items else ""


def _interval(e: dict[str, Any], factor: float) -> str:
    if e.get("low") is None:
        return ""
    return f"95 % {factor * e['low']:.3g} – {factor * e['high']:.3g}, "


def sentences(result: CircuitResult) -> list[str]:
    """What the analysis says about heads, in its own words."""
    found = [result.manifest.numbers.get(k) for k in ("induction_heads", "previous_token_heads")]
    return [str(x["sentence"]) for x in found if isinstance(x, dict) and x.get("sentence")]


def prompt_html(prompt: dict[str, Any]) -> str:
    """One example prompt: marked tokens outlined with their names; answer and prediction below."""
    names: dict[int, list[str]] = {}
    for name, at in (prompt.get("marks") or {}).items():
        if isinstance(at, int) and at >= 0:
            names.setdefault(at, []).append(str(name))
    parts = []
    for j, token in enumerate(prompt.get("tokens") or []):
        text = escape(token)
        if j in names:
            label = html.escape(" ".join(names[j]))
            parts.append(f'<b class="t4 pk" data-v="{label} · pos {j}">{text}</b><sub class="mk">{label}</sub>')
        else:
            parts.append(text)
    right = "right" if prompt.get("correct") else "wrong"
    about = f"answer {chip(str(prompt.get('answer', '')))} · predicted {chip(str(prompt.get('predicted', '–')))} ({right}) · logit difference {number(prompt.get('logit_diff'))}"
    return div("wb-prompt", div("ctx", *parts), span("sub", about))


def task_of(id: str) -> str:
    """Task part of a circuit id ``<model>[@revision].<task>``."""
    return re.sub(r"^.*\.", "", id)
