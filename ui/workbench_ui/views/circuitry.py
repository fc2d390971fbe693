"""Circuit results for the pages: what is in them, prompts with their marks, headline numbers as sentences."""

from __future__ import annotations

import html
import re
from typing import Any

from workbench.exporting.kinds.circuits import NAMES
from workbench.markup.tags import div, span
from workbench.markup.tokens import chip, escape, number
from workbench.results.circuits import CircuitResult
from workbench_ui.kit import panels


def analyses(result: CircuitResult) -> list[str]:
    """Analyses that are shown as rankings, in the order of their names."""
    known = set(result.effects["analysis"].unique())
    return [a for a in NAMES if a in known and not a.endswith("_profile")]


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
            items.append(
                (name, shown, _interval(e, 100 if share else 1) + f"n = {e.get('n', about.get('n_prompts', '?'))}")
            )
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
    about = (
        f"answer {chip(str(prompt.get('answer', '')))} · predicted {chip(str(prompt.get('predicted', '–')))} ({right})"
        f" · logit difference {number(prompt.get('logit_diff'))}"
    )
    return div("wb-prompt", div("ctx", *parts), span("sub", about))


def task_of(id: str) -> str:
    """Task part of a circuit id ``<model>[@revision].<task>``."""
    return re.sub(r"^.*\.", "", id)
