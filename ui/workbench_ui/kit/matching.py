"""Comparisons of dictionaries for the pages: opened once, and turned into the panels and tables that are shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from workbench.exporting.drawing import drawing
from workbench.exporting.figures import Panel
from workbench.markup.tags import div
from workbench.markup.tokens import cell, clip, escape, number, visible
from workbench.results.family import UNKNOWN
from workbench.results.matches import RAW, MatchRecords, Pair
from workbench_ui.kit import data, panels
from workbench_ui.kit.choose import choose_of
from workbench_ui.kit.index import Entry, Index

SERIES = {
    "cross": "the best partner in the other dictionary",
    "even": "the same, with as many candidates on both sides",
    "shuffle": "the other side's tokens permuted: what frequency alone gives",
    "shift": "the other side's tokens shifted in a circle",
    "random": "random directions in place of the other dictionary",
    "random partner": "a latent of the other dictionary taken blindly",
    "neurons": "neurons in place of latents, on both sides",
    "untrained": "dictionaries of both models before training",
    "model seed": "the same architecture, initialised anew: the ceiling",
    "sae seed": "the same model, its dictionary initialised anew: the ceiling",
    "inliers": "the best partner, on the rows that are massive on neither side",
    "inliers shuffle": "the same with the other side's tokens permuted: chance without massive rows",
    "same-token": "the other side's tokens exchanged among occurrences of the same token: the token's part",
    "token-conditional": "the other dictionary, both codes minus their mean per token: what the token leaves over",
    "token-conditional null": "the same with tokens exchanged: chance given the token",
    "untrained token-conditional": "dictionaries of both models before training, given the token",
    "model seed token-conditional": "the same architecture, initialised anew, given the token",
    "sae seed token-conditional": "the same model, its dictionary initialised anew, given the token",
    "neurons token-conditional": "neurons in place of latents, given the token",
    "neurons shift": "neurons against the other model's neurons on other text: their chance level",
}
QUANTITIES = {"mean r": "mean", "median r": "median", "90 % quantile of r": "q90", "share with r ≥ 0.5": "share_50"}


@st.cache_resource(show_spinner=False, max_entries=6)
def open_matches(folder: str, version: str) -> MatchRecords:
    """A comparison, kept; ``version`` makes a new one be read anew."""
    return MatchRecords.open(folder)


def between_architectures(e: Entry) -> bool:
    """Whether a comparison has models of two architectures, both known."""
    index = data.index()
    ids = [(e.metadata.get(side) or {}).get("dictionaries") or () for side in ("a", "b")]
    a, b = ({index.dictionaries[i].architecture for i in side if i in index.dictionaries} for side in ids)
    a, b = a - {UNKNOWN}, b - {UNKNOWN}
    return bool(a) and bool(b) and a.isdisjoint(b)


def comparisons() -> list[Entry]:
    """All comparisons, those between architectures first: that is what they are looked at for."""
    return sorted(data.index().of("matches"), key=lambda e: not between_architectures(e))


def chosen(width: int = 420) -> tuple[Entry, MatchRecords] | None:
    """The comparison of the address (``m``), by a selector; None with a panel where there is none."""
    entry = choose_of(
        comparisons(),
        "Comparison",
        "m",
        what="Comparisons",
        command="compare A B",
        why="A and B are two dictionaries, or two models.",
        text=lambda e: visible(e.id.replace("__", "  ×  ")),
        clears=("i", "i2", "d", "d2", "v", "tr", "trv"),
        width=width,
    )
    return None if entry is None else (entry, open_matches(str(entry.path), entry.version))


def headline(m: MatchRecords, direction: str) -> str:
    """What came out, as a strip of statistics."""
    summary = m.table("summary")
    cross = summary[(summary["direction"] == direction) & (summary["series"] == "cross")].iloc[0]
    best = m.best[m.best["direction"] == direction]
    order = m.table("order")
    order = order[(order["direction"] == direction) & (order["reading"] == RAW)]
    given = summary[(summary["direction"] == direction) & (summary["series"] == "token-conditional")]
    holds = "not computed" if order.empty else "holds" if bool(order["holds"].all()) else "does not hold"
    level = m.metadata.get("level", 0.5)
    items = [
        (
            "Mean max r",
            number(float(cross["mean"])),
            f"95 % {number(float(cross['low']))} – {number(float(cross['high']))}",
        ),
        (
            "Given the token",
            number(float(given["mean"].iloc[0])) if len(given) else "–",
            "mean max r, token-conditional" if len(given) else "not computed",
        ),
        ("Latents", f"{int(cross['n']):,}", f"of {len(best):,}, fired ≥ {m.metadata.get('min_firings', '?')} times"),
        ("Matched", f"{int(best['matched'].sum()):,}", f"r ≥ {level:g} and above chance"),
        ("Mutual", f"{int((best['mutual'] & best['matched']).sum()):,}", "each other's best"),
        (
            "Above chance",
            f"{100 * float(cross['share_null']):.1f} %" if np.isfinite(cross["share_null"]) else "–",
            "above the null's 99 %",
        ),
        ("Order of baselines", holds, "see below"),
        ("Tokens", f"{int(m.metadata['n_tokens']):,}" if m.metadata.get("n_tokens") else "–", _tokens_note(m)),
    ]
    return panels.stats(items)


def massive_note(m: MatchRecords, direction: str) -> str:
    """How many of the compared rows are massive, and what correlation and chance are with them and without; nothing
    where a comparison does not say.
    """
    about = m.metadata.get("massive")
    if not isinstance(about, dict) or not about.get("of"):
        return ""
    if not about["n"]:
        return f"None of the {about['of']:,} rows is massive on either side."
    summary = m.table("summary")
    mean = summary[summary["direction"] == direction].set_index("series")["mean"]

    def both(what: str, every: str, without: str) -> str:
        given = [f"{mean[s]:.3f}" if s in mean.index and np.isfinite(mean[s]) else "–" for s in (every, without)]
        return f"{what} {given[0]} with them, {given[1]} without"

    said = [both("mean max r", "cross", "inliers"), both("chance", "shuffle", "inliers shuffle")]
    return f"{about['n']:,} of {about['of']:,} rows are massive on a side: {'; '.join(said)}."


def _tokens_note(m: MatchRecords) -> str:
    """What the compared tokens are: the same ids, or where two tokenizers end at the same character."""
    spans = m.metadata.get("spans")
    if not isinstance(spans, dict):
        return "both models read"
    return f"end at the same character, of {spans['of_a']:,} and {spans['of_b']:,}; the tokenizers differ"


def with_names(index: Index, found: pd.DataFrame) -> pd.DataFrame:
    """Rows of a comparison with what both latents fire on, in ``fires on`` and ``partner fires on``."""
    out = found.copy()
    for dictionary, latent, name in (
        ("dictionary", "latent", "fires on"),
        ("partner_dictionary", "partner", "partner fires on"),
    ):
        out[name] = ""
        for id, part in found.groupby(dictionary, sort=False):
            known = part[part[latent].notna()]
            out.loc[known.index, name] = fires_on(index, str(id), [int(v) for v in known[latent]])
    return out


def rows(m: MatchRecords, direction: str, lo: float, hi: float, *, mutual: bool, layer: int | None) -> pd.DataFrame:
    """Latents whose best correlation lies in [lo, hi], best first."""
    best = m.best
    keep = (best["direction"] == direction) & (best["r"] >= lo) & (best["r"] <= hi)
    if mutual:
        keep &= best["mutual"]
    if layer is not None:
        keep &= best["layer"] == layer
    return best[keep].sort_values("r", ascending=False, kind="stable").reset_index(drop=True)


def fires_on(index: Index, dictionary: str, latents: list[int]) -> list[str]:
    """What each latent fires on, as text for a table cell: its label, else its peak token, else nothing."""
    d = index.dictionaries.get(dictionary)
    records = data.records(d) if d else None
    if records is None or not latents or max(latents) >= len(records):
        return [""] * len(latents)
    at = [records.position(i) for i in latents]
    found = [""] * len(latents)
    for column, show in (("peak_text", cell), ("label", lambda v: clip(visible(" ".join(v.split())), 60))):
        if column in records.table:
            values = records.table[column].iloc[at].tolist()
            found = [
                show(v) if isinstance(v, str) and v.strip() else known for v, known in zip(values, found, strict=True)
            ]
    return found


def joint_html(panel: Panel, pair: Pair) -> str:
    """The joint histogram of two latents' activations as the figure has it: A across, B up, marks in their units."""
    found = drawing(panel)
    assert found.cells is not None
    values, tokens = (
        found.cells.values,
        panel.frame.pivot(index="partner_bin", columns="bin", values="tokens").to_numpy(),
    )
    cells = [
        "<i></i>"
        if np.isnan(values[y, x])
        else f'<i class="t{found.cells.step(values[y, x])}" data-v="{int(tokens[y, x]):,} tokens"></i>'
        for y in reversed(range(values.shape[0]))
        for x in range(values.shape[1])
    ]
    neither = int(tokens[0, 0])
    alt = f"Joint histogram of both activations: {pair.n_cofire:,} tokens with both, {neither:,} with neither"
    share = 100 / values.shape[0]
    ticks = "".join(f'<span style="left:{share * (v + 0.5):.1f}%">{escape(s)}</span>' for v, s in panel.x_ticks)
    rungs = "".join(f'<span style="bottom:{share * (v + 0.5):.1f}%">{escape(s)}</span>' for v, s in panel.y_ticks)
    return div(
        "joint",
        div("jl", "B ↑"),
        div("jy", rungs),
        div("grid hist", *cells),
        div("jx", ticks),
        div("jl r", "A →"),
        attrs=f'role="img" aria-label="{alt}"',
    )


def pair_stats(pair: Pair, a: str, b: str) -> str:
    """How two latents go together."""
    union = pair.n_fired[0] + pair.n_fired[1] - pair.n_cofire
    items: list[tuple[str, str, str]] = [
        ("Pearson r", f"{pair.r:.3f}" if np.isfinite(pair.r) else "–", f"on {pair.n_tokens:,} tokens"),
        (
            "Chance, 99 %",
            f"{pair.null_q99:.3f}" if pair.null_q99 is not None else "–",
            "for latents that fire as often as A",
        ),
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
