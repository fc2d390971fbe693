"""Evolutions for the pages: opened once, turned into panels and tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from ui.kit import panels
from workbench.evolution import Evolution
from workbench.export.figures import Panel
from workbench.markup.tokens import escape, number

NORMS = {"training": "training scale", "raw": "model's own units", "free": "norm-free"}
_WORDS = {
    "loss": "loss of the language model",
    "kl_unigram": "KL to unigram frequencies",
    "kl_bigram": "KL to bigrams",
    "h1": "entropy H1",
    "h2": "entropy H2",
    "ev": "explained variance",
    "dimensionality": "feature dimensionality",
    "mean_norm": "mean decoder norm",
    "cosine_next": "cosine with the next snapshot",
}


@st.cache_resource(show_spinner=False, max_entries=4)
def open_evolution(folder: str, version: str) -> Evolution:
    """An evolution, kept; ``version`` makes a new one be read anew."""
    return Evolution.open(folder)


def phase_quantities(e: Evolution) -> dict[str, str]:
    """Words -> column of everything known per snapshot."""
    if e.phases is None:
        return {}
    known = [c for c in e.phases.columns if c not in ("step", "tokens") and e.phases[c].notna().any() and e.phases[c].dtype.kind in "fiu"]
    return {_WORDS.get(c, c.replace("_", " ")): c for c in known}


def phase_panel(e: Evolution, column: str, name: str) -> Panel:
    """One quantity over snapshots."""
    assert e.phases is not None
    frame = e.phases[["step", column]].dropna().rename(columns={column: name})
    frame["step"] = _drawable(frame["step"].to_numpy())
    return Panel("line", frame, "step", name, x_label="training step (0 is drawn left of the first)", log_x=True)


def _drawable(steps: np.ndarray) -> np.ndarray:
    """Steps on a log axis: 0 is put a factor of two left of the first positive step."""
    steps = np.asarray(steps, dtype=np.float64)
    positive = steps[steps > 0]
    return np.where(steps > 0, steps, (positive.min() if len(positive) else 2.0) / 2)


def curves(e: Evolution, latents: list[int], kind: str, *, relative: bool, log: bool) -> Panel | None:
    """Norm curves of some latents; None where this kind was not computed."""
    norms = e.norms(latents, kind)
    if norms is None:
        return None
    if relative:
        peak = np.nanmax(norms, axis=1, keepdims=True) if norms.size else norms
        norms = norms / np.where(peak > 0, peak, 1.0)
    x = _drawable(e.steps) if log else e.steps
    rows = [
        (f"latent {latent}", float(s), float(v))
        for latent, curve in zip(latents, norms, strict=True)
        for s, v in zip(x, curve, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["latent", "step", "norm"])
    label = "norm / its peak" if relative else f"decoder norm, {NORMS[kind]}"
    return Panel(
        "line",
        frame,
        "step",
        "norm",
        series="latent",
        x_label="training step" + (" (0 is drawn left of the first)" if log else ""),
        y_label=label,
        log_x=log,
    )


def statistics_table(statistics: pd.DataFrame) -> str:
    """Claims with value, interval, null and verdict."""
    rows = []
    for x in statistics.to_dict("records"):
        interval = f"{number(x.get('low'))} … {number(x.get('high'))}" if pd.notna(x.get("low")) else "–"
        null = (
            f"{number(x.get('null_mean'))} ({number(x.get('null_low'))} … {number(x.get('null_high'))})"
            if pd.notna(x.get("null_mean"))
            else "–"
        )
        n = f"{int(x['n']):,}" if pd.notna(x.get("n")) else "–"
        p = number(x.get("p")) if pd.notna(x.get("p")) else "–"
        rows.append([escape(x.get("claim", "")), number(x.get("value")), interval, null, p, n, escape(x.get("verdict") or "–")])
    return panels.table(["claim", "value", "95 %", "null", "p", "n", "verdict"], rows, numeric=frozenset({1, 2, 3, 4, 5}))
