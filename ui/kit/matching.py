"""Comparisons of dictionaries for the pages: opened once, and turned into the panels and tables that are shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from ui.kit import panels
from ui.kit.choose import choose
from ui.kit.index import Entry
from workbench.export.figures import Panel
from workbench.markup.tags import div
from workbench.markup.tokens import number, visible
from workbench.matches import MatchRecords, Pair

REFERENCES = ("random", "random partner", "shuffle", "shift", "neurons", "untrained", "model seed", "sae seed", "even")
QUANTITIES = {"mean r": "mean", "median r": "median", "90 % quantile of r": "q90", "share with r ≥ 0.5": "share_50"}


@st.cache_resource(show_spinner=False, max_entries=6)
def open_matches(folder: str, version: str) -> MatchRecords:
    """A comparison, kept; ``version`` makes a new one be read anew."""
    return MatchRecords.open(folder)


def chosen(width: int = 420) -> tuple[Entry, MatchRecords] | None:
    """The comparison of the address (``m``), by a selector; None with a panel where there is none."""
    entry = choose(
        "matches",
        "Comparison",
        "m",
        what="Comparisons",
        command="compare A B",
        why="A and B are two dictionaries, or two models.",
        text=lambda e: visible(e.id.replace("__", "  ×  ")),
        clears=("i", "i2", "d", "d2", "v"),
        width=width,
    )
    return None if entry is None else (entry, open_matches(str(entry.path), entry.version))


def headline(m: MatchRecords, direction: str) -> str:
    """What came out, as a strip of statistics."""
    summary = m.table("summary")
    cross = summary[(summary["direction"] == direction) & (summary["series"] == "cross")].iloc[0]
    best = m.best[m.best["direction"] == direction]
    order = m.table("order")
    order = order[order["direction"] == direction]
    holds = "not computed" if order.empty else "holds" if bool(order["holds"].all()) else "does not hold"
    level = m.metadata.get("level", 0.5)
    items = [
        ("Mean max r", number(float(cross["mean"])), f"95 % {number(float(cross['low']))} – {number(float(cross['high']))}"),
        ("Latents", f"{int(cross['n']):,}", f"of {len(best):,}, fired ≥ {m.metadata.get('min_firings', '?')} times"),
        ("Matched", f"{int(best['matched'].sum()):,}", f"r ≥ {level:g} and above chance"),
        ("Mutual", f"{int((best['mutual'] & best['matched']).sum()):,}", "each other's best"),
        ("Above chance", f"{100 * float(cross['share_null']):.1f} %" if np.isfinite(cross["share_null"]) else "–", "of the null's 99 %"),
        ("Order of baselines", holds, "random < neurons < cross < seeds"),
        ("Tokens", f"{int(m.metadata['n_tokens']):,}" if m.metadata.get("n_tokens") else "–", "compared on"),
    ]
    return panels.stats(items)


def distribution(m: MatchRecords, direction: str, series: list[str], *, cdf: bool) -> Panel:
    """Distribution of maximal correlations per series, as a density over bins of 0.025 or cumulative from the right."""
    table = m.table("baselines")
    edges = np.linspace(-0.1, 1.0, 45)
    rows = []
    for name in series:
        r = table[(table["direction"] == direction) & (table["series"] == name)]["r"].dropna().to_numpy()
        if not len(r):
            continue
        label = f"{name} (n {len(r):,})"
        if cdf:
            share = [float((r >= e).mean()) for e in edges]
            rows += [(label, float(e), s) for e, s in zip(edges, share, strict=True)]
        else:
            counts = np.histogram(r.clip(edges[0], edges[-1]), edges)[0] / len(r)
            rows += [(label, float(e), float(s)) for e, s in zip(edges, [*counts, 0.0], strict=True)]
    frame = pd.DataFrame(rows, columns=["series", "r", "share"])
    dashed = tuple(dict.fromkeys(s for s in frame["series"] if s.split(" (n")[0] in REFERENCES))
    ylabel = "share of latents with max r at least this" if cdf else "share of latents"
    return Panel(
        "line" if cdf else "step",
        frame,
        "r",
        "share",
        series="series",
        x_label="max Pearson r with any latent of the other",
        y_label=ylabel,
        dashed=dashed,
    )


def heatmap(m: MatchRecords, direction: str, quantity: str) -> Panel:
    """Best partner within each pair of layers."""
    table = m.table("layers")
    table = table[table["direction"] == direction]
    a, b = m.names(direction)
    frame = pd.DataFrame(
        {"own": [f"L{v}" for v in table["layer"]], "other": [f"L{v}" for v in table["partner_layer"]], quantity: table[quantity].to_numpy()}
    )
    return Panel("heat", frame, "other", "own", value=quantity, x_label=f"layer of {b}", y_label=f"layer of {a}", value_label=quantity)


def shifts(m: MatchRecords, direction: str) -> Panel:
    """Mean correlation when one side is moved along the tokens."""
    table = m.table("shifts")
    table = table[table["direction"] == direction].sort_values("shift")
    return Panel("line", table, "shift", "mean", low="low", high="high", x_label="token shift s: A at t, B at t + s", y_label="mean max r")


def rows(m: MatchRecords, direction: str, lo: float, hi: float, *, mutual: bool, layer: int | None) -> pd.DataFrame:
    """Latents whose best correlation lies in [lo, hi], best first."""
    best = m.best
    keep = (best["direction"] == direction) & (best["r"] >= lo) & (best["r"] <= hi)
    if mutual:
        keep &= best["mutual"]
    if layer is not None:
        keep &= best["layer"] == layer
    return best[keep].sort_values("r", ascending=False, kind="stable").reset_index(drop=True)


def joint_html(pair: Pair) -> str:
    """The joint histogram of two latents' activations: 32 × 32 cells, log counts; row and column 0 are "not active"."""
    counts = np.asarray(pair.joint, dtype=np.float64).copy()
    silent = int(counts[0, 0])
    counts[0, 0] = 0
    top = np.log10(1 + counts.max()) or 1.0
    cells = []
    for y in range(counts.shape[1] - 1, -1, -1):
        for x in range(counts.shape[0]):
            n = int(counts[x, y])
            if n == 0:
                cells.append("<i></i>")
            else:
                step = min(8, int(9 * np.log10(1 + n) / top))
                cells.append(f'<i class="t{step}" data-v="{n:,} tokens"></i>')
    alt = f"Joint histogram of both activations: {pair.n_cofire:,} tokens with both, {silent:,} with neither"
    axis = div("jx", f"A → {number(pair.maxima[0])}") + div("jy", f"B ↑ {number(pair.maxima[1])}")
    return div("joint", div("grid hist", *cells), axis, attrs=f'role="img" aria-label="{alt}"')


def pair_stats(pair: Pair, a: str, b: str) -> str:
    """How two latents go together."""
    union = pair.n_fired[0] + pair.n_fired[1] - pair.n_cofire
    items: list[tuple[str, str, str]] = [
        ("Pearson r", f"{pair.r:.3f}" if np.isfinite(pair.r) else "–", f"on {pair.n_tokens:,} tokens"),
        ("Chance, 99 %", f"{pair.null_q99:.3f}" if pair.null_q99 is not None else "–", "for latents that fire as often as A"),
        ("Both fire", f"{pair.n_cofire:,}", "tokens"),
        ("A fires", f"{pair.n_fired[0]:,}", a),
        ("B fires", f"{pair.n_fired[1]:,}", b),
        ("Jaccard", f"{pair.n_cofire / union:.3f}" if union else "–", "both / either"),
    ]
    return panels.stats(items)


def partner_of(m: MatchRecords, dictionary: str, latent: int) -> dict[str, Any] | None:
    """The best partner of a latent in this comparison, as a row of ``best``; None where there is none."""
    best = m.best
    found = best[(best["dictionary"] == dictionary) & (best["latent"] == latent)]
    if found.empty or pd.isna(found.iloc[0]["partner"]):
        return None
    return found.iloc[0].to_dict()
