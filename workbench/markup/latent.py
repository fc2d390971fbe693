"""What is shown of a latent, as HTML: pure functions of its records, the same for the pages, the notebook and exported
files.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from workbench.markup.charts import legend
from workbench.markup.glossary import badge
from workbench.markup.tables import stats, table
from workbench.markup.tags import div, span
from workbench.markup.tokens import chip, clip, escape, number, strip, visible

if TYPE_CHECKING:
    from workbench.results.records import Context, LatentRecords

GROUP_TITLES = {
    "top": ("Top activations", "strongest tokens, one per sequence"),
    "q4": ("Quantile 4 of 4", "strongest quarter of the tokens it fires on"),
    "q3": ("Quantile 3 of 4", "second strongest quarter of the tokens it fires on"),
    "q2": ("Quantile 2 of 4", "third quarter of the tokens it fires on"),
    "q1": ("Quantile 1 of 4", "weakest quarter of the tokens it fires on"),
    "random": ("Random positives", "drawn evenly from all tokens it fires on"),
    "near_miss": ("Near misses", "silent here, though it came close to firing"),
}
VIEWS = {
    "All": ("top", "q4", "q3", "q2", "q1", "random", "near_miss"),
    "Top": ("top",),
    "Quantiles": ("q4", "q3", "q2", "q1"),
    "Random": ("random",),
    "Near misses": ("near_miss",),
}
WINDOWS = {"±8": 8, "±16": 16, "Full": None}


def stats_strip(row: dict[str, Any], n_tokens: int) -> str:
    """Statistics of a latent, each with what it is over; a value that was not computed shows a dash."""
    fired = row.get("n_fired")
    density = row.get("density")
    one_in = f"one token in {1 / density:,.0f}" if density else "never fired"
    items = [
        ("Density", f"{100 * density:.3g} %" if density is not None else "–", one_in),
        ("Fired on", number(fired), f"of {n_tokens:,} tokens"),
        (
            "Max",
            number(row.get("max")),
            f"on {visible(row['peak_text']).strip() or '␣'!r}" if isinstance(row.get("peak_text"), str) else "",
        ),
        ("Mean", number(row.get("mean")), "over tokens it fires on"),
        ("Std", number(row.get("std")), "over tokens it fires on"),
        ("Skew", number(row.get("skew")), "of its activations"),
        ("Kurtosis", number(row.get("kurtosis")), "of its activations"),
    ]
    if row.get("decoder_norm") is not None:
        items.append(("Decoder norm", number(row.get("decoder_norm")), "length of its direction"))
    if row.get("n_massive"):
        items.append(("Massive rows", number(row["n_massive"]), "of its firings are on them"))
    return stats([(k, v, clip(n, 34)) for k, v, n in items])


def label_line(row: dict[str, Any]) -> str:
    """The label, marked as such and with its score; labels that are no labels (several lines, too long) are clipped."""
    label = row.get("label")
    if not isinstance(label, str) or not label.strip():
        return ""
    score = row.get("label_score")
    source = row.get("label_source")
    scored = f"fits {score:.2f} of 1" if isinstance(score, float) else "not scored"
    by = "by rule" if source == "rules" else f"by {escape(clip(source, 40))}" if isinstance(source, str) else ""
    scored = f"label {by} · {scored}" if by else scored
    return span("wb-label", escape(clip(" ".join(label.split()), 160)), " ", badge("label score", scored))


def contexts_html(
    records: LatentRecords,
    latent: int,
    view: str,
    *,
    n: int,
    window: int | None,
    breaks: bool,
    vmax: float,
    kinds: Sequence[int] | None = None,
) -> str:
    """Contexts of the groups of a view, each group with its sampling scheme and n shown / n available. ``kinds`` says
    of every sequence what it is (:data:`KINDS`), so that text made by a program is not taken for somebody's.
    """
    parts = [legend(vmax), '<div class="wb-ctxs">']
    for group in VIEWS[view]:
        if group not in records.groups:
            continue
        found = records.contexts(latent, group, n)
        title, scheme = GROUP_TITLES.get(group, (group, ""))
        about = f"{scheme} · {len(found)} shown of {records.available(latent, group):,}"
        parts.append(div("g", html.escape(title), span("", html.escape(about))))
        parts.extend(_context(c, vmax, window, breaks, kinds) for c in found)
    parts.append("</div>")
    return "".join(parts)


KINDS = {1: "synthetic repeat", 2: "synthetic sentence"}


def _context(c: Context, vmax: float, window: int | None, breaks: bool, kinds: Sequence[int] | None = None) -> str:
    value = number(c.value) if c.value > 0 else "silent"
    row = strip(c.tokens, c.acts, vmax, peak=c.peak, start=c.start, window=window, breaks=breaks)
    same = f' <span title="sequences with this very text">×{c.copies:,}</span>' if c.copies > 1 else ""
    made = KINDS.get(int(kinds[c.seq])) if kinds is not None and 0 <= c.seq < len(kinds) else None
    tag = f'<span class="wb-made">{made}</span>' if made else ""
    where = f'<span title="sequence : position in the text">{c.seq}:{c.start + c.peak}</span>'
    return div("m", f"<b>{value}</b>{where}{same}") + div("c", tag, row)


def neighbours_html(records: LatentRecords, latent: int, link: Callable[[int], str], n: int = 12) -> str | None:
    """Nearest latents by decoder cosine; ``link`` turns a latent into markup. None where not computed."""
    found = records.neighbours(latent)
    if found is None:
        return None
    rows = []
    for other, cosine in found[:n]:
        row = records.row(other)
        about = chip(row["peak_text"]) if isinstance(row.get("peak_text"), str) else "–"
        up = chip(row["promoted_text"]) if isinstance(row.get("promoted_text"), str) else "–"
        density = row.get("density")
        rows.append([link(other), f"{cosine:.3f}", about, up, f"{100 * density:.2g} %" if density else "never"])
    return table(["latent", "cosine", "peak token", "promotes", "density"], rows, numeric=frozenset({1, 4}))


def interesting(records: LatentRecords) -> int:
    """Which latent to open first: neither rare nor everywhere, on real text, best labelled, then strongest."""
    table = records.table
    if not len(table):
        return 0
    sparse = table[(table["density"] > 5e-4) & (table["density"] < 2e-2)] if "density" in table else table
    chosen = sparse if len(sparse) else table
    if "peak_text" in chosen:
        text = chosen["peak_text"].fillna("").astype(str)
        words = chosen[text.str.contains("[A-Za-z]{2}") & ~text.str.contains(r"[<|\n]")]
        chosen = words if len(words) else chosen
    known = [c for c in ("label_score", "max") if c in chosen and chosen[c].notna().any()]
    column = known[0] if known else "latent"
    return int(chosen.loc[chosen[column].idxmax(), "latent"])
