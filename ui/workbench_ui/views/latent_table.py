"""Selecting and laying out rows of the table of latents: a query on arrays, then one page of text cells.

Server work stays in milliseconds at 100k latents: one argsort per column is kept, filters are boolean masks, and only
the fifty rows of a page touch contexts.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import streamlit as st

from workbench.markup.charts import sparkline
from workbench.markup.tags import div, span
from workbench.markup.tokens import cell, chip, clip, escape, number, visible
from workbench.results.trust import LIMITS
from workbench_ui.components.enhance import latent_link
from workbench_ui.kit import data, facts, state
from workbench_ui.kit.index import Dictionary
from workbench_ui.kit.listing import part_of
from workbench_ui.kit.rows import Column

if TYPE_CHECKING:
    from workbench.results.records import LatentRecords

INTEREST = "most interesting"
SORTS = {  # what the order is called -> the column it is of
    INTEREST: "interest",
    "max activation": "max",
    "density": "density",
    "mean activation": "mean",
    "label score": "label_score",
    "detection": "score_detection",
    "near misses": "score_hard_detection",
    "fuzzing": "score_fuzzing",
    "simulation": "score_simulation",
    "complexity": "complexity",
    "twin r": "twin_r",
    "twin r given the token": "given",
    "born at step": "born",
    "skew": "skew",
    "kurtosis": "kurtosis",
    "nearest neighbour": "nearest_cos",
    "support": "support",
    "r in another seed": "seed_r",
    "r in another model seed": "model_seed_r",
    "r in the untrained model": "untrained_r",
    "effect on the loss": "effect",
    "encoder against decoder": "agreement",
    "absorbed": "absorbed_share",
    "rule on near misses": "label_hard_accuracy",
    "stability of contexts": "stability",
    "latent number": "latent",
}
DENSITIES = ["0", "1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "0.1", "1"]


@dataclass(frozen=True)
class Query:
    """What the controls ask for."""

    text: str = ""
    sort: str = INTEREST
    descending: bool = True
    density: tuple[float, float] = (0.0, 1.0)
    strength: tuple[int, int] = (0, 100)
    alive: bool = True
    labelled: bool = False
    well: bool = False  # well supported, as the cards of evidence have it
    latents: tuple[int, ...] | None = None  # only these, if any are named


def of_address(d: Dictionary) -> tuple[Query | None, str]:
    """What the address asks of the table, and what that is called; None where it names no filter, list or order."""
    known, _ = data.lists()
    get = state.get
    listed = get("list") if get("list") in known else None
    if not any(get(k) for k in ("q", "o", "dir", "fd", "fm", "al", "lb", "ws")) and listed is None:
        return None, ""

    def numbers(key: str, default: tuple[float, float]) -> tuple[float, float]:
        lo, _, hi = (get(key) or "").partition("_")
        try:
            return float(lo), float(hi)
        except ValueError:
            return default

    low, high = numbers("fm", (0, 100))
    query = Query(
        (get("q") or "")[:100],
        str(get("o")) if get("o") in SORTS else INTEREST,
        get("dir") != "low first",
        numbers("fd", (0.0, 1.0)),
        (int(low), int(high)),
        get("al") not in ("0", "false"),
        get("lb") in ("1", "true"),
        get("ws") in ("1", "true"),
        part_of(listed, d).latents if listed else None,
    )
    if listed:
        return query, f"in the list {known[listed].name}"
    return query, f"that hold “{query.text}”" if query.text else "in the order of the table"


def judged(d: Dictionary) -> bool:
    """Whether cards of evidence give a dictionary's latents a word."""
    return "support" in facts.columns(d)


def known_sorts(d: Dictionary, records: LatentRecords) -> list[str]:
    """The orders this dictionary has numbers for."""
    there = {*records.table.columns, *facts.columns(d)}
    return [name for name, column in SORTS.items() if column in there]


@st.cache_resource(show_spinner=False, max_entries=32)
def _order(folder: str, version: str, column: str, descending: bool, _values: np.ndarray | None) -> np.ndarray:
    """Row numbers by value, equal ones by their number, missing values last. Read-only."""
    if _values is None:
        table = data.open_records(folder, version).table
        _values = table[column].to_numpy() if column in table else table["latent"].to_numpy()
    values = _values.astype(np.float64) if _values.dtype == object else _values
    keys = -values if descending else values
    order = np.argsort(keys, kind="stable").astype(np.int32)  # NaN comes last either way
    order.flags.writeable = False
    return order


@st.cache_resource(show_spinner=False, max_entries=32)
def _columns(folder: str, version: str) -> dict[str, np.ndarray]:
    """The filterable columns as arrays: pandas 3 copies on every access, a page must not."""
    table = data.open_records(folder, version).table
    found = {name: table[name].to_numpy() for name in ("latent", "n_fired", "density", "max") if name in table}
    if "max" in found:
        ranks = np.argsort(np.argsort(np.nan_to_num(found["max"], nan=-1.0), kind="stable"), kind="stable")
        found["percentile"] = 100.0 * (ranks + 0.5) / max(1, len(ranks))
    if "label" in table:
        found["labelled"] = table["label"].notna().to_numpy()
    return found


def select_of(d: Dictionary, query: Query) -> np.ndarray:
    """:func:`select` on a dictionary's records, with what other results know of its latents."""
    assert d.records is not None
    return select(str(d.records.path), d.key, query, facts.columns(d))


def select(folder: str, version: str, query: Query, more: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """Latent ids that fit the query, in its order; those without the number it sorts by come last. ``more`` holds
    columns that are not in the records.
    """
    columns = _columns(folder, version)
    keep = np.ones(len(columns["latent"]), dtype=bool)
    if query.alive and "n_fired" in columns:
        keep &= columns["n_fired"] > 0
    if query.density != (0.0, 1.0) and "density" in columns:
        keep &= (columns["density"] >= query.density[0]) & (columns["density"] <= query.density[1])
    if query.strength != (0, 100) and "percentile" in columns:
        keep &= (columns["percentile"] >= query.strength[0]) & (columns["percentile"] <= query.strength[1])
    if query.labelled:
        keep &= columns.get("labelled", np.zeros(len(keep), dtype=bool))
    if query.well and more is not None and "support" in more:
        keep &= more["support"] >= LIMITS[1]  # those without a score are not
    if query.latents is not None:
        keep &= np.isin(columns["latent"], np.asarray(query.latents, dtype=columns["latent"].dtype))
    if query.text.strip():
        keep &= data.holding(folder, version, query.text.strip())
    column = SORTS.get(query.sort, "latent")
    extra = (more or {}).get(column)
    made_on = version if extra is None else f"{version}.{data.results_key()}"
    order = _order(folder, made_on, column, query.descending, extra)
    return columns["latent"][order[keep[order]]]


def page(
    records: LatentRecords, latents: np.ndarray, more: Mapping[str, np.ndarray] | None = None
) -> list[dict[str, Any]]:
    """The rows of one page of the table: numbers, activation profile, strongest context; ``more`` as in
    :func:`select`.
    """
    rows = []
    extra = more or {}
    at = [records.position(latent) for latent in latents.tolist()]
    wanted = records.table.iloc[at].to_dict("records")
    for latent, place, values in zip(latents.tolist(), at, wanted, strict=True):
        row = {k: v for k, v in values.items() if v is not None and v is not pd.NA and v == v}  # NaN is not itself
        top = records.contexts(latent, "top", 1)
        effects = records.logits(latent)
        found: dict[str, Any] = {
            "latent": latent,
            "label": clip(visible(" ".join(str(row.get("label", "")).split())), 80),
            "context": top[0] if top else None,
            "peak": row["peak_text"] if isinstance(row.get("peak_text"), str) else None,
            "density": 100 * row["density"] if row.get("density") is not None else None,
            "max": row.get("max"),
            "score": row.get("label_score"),
            "profile": sparkline(records.histogram(latent).counts, 16),
            "promotes": [t for _, t, _ in effects.promoted[:3]] if effects else [],
            "nearest": row.get("nearest_cos"),
        }
        found |= {name: float(values[place]) for name, values in extra.items()}
        rows.append(found)
    return rows


COLUMNS = (  # name, column, whether it is drawn only where some result holds its numbers
    ("latent", Column("latent", "Its number; the row opens it", True, "latent number")),
    ("label", Column("what it fires on", "By rule or by a language model", width="180px")),
    ("context", Column("strongest context")),
    ("peak", Column("peak token")),
    ("promotes", Column("raises")),
    ("score", Column("label score", "", True, "label score")),
    ("score_detection", Column("detection", "Told which excerpts hold a firing (0.5: chance)", True, "detection")),
    ("score_hard_detection", Column("near misses", "Detection among near misses (0.5: chance)", True, "near misses")),
    ("score_fuzzing", Column("fuzzing", "Told which marked tokens it fires on (0.5: chance)", True, "fuzzing")),
    ("score_simulation", Column("simulation", "r of guessed and true activations", True, "simulation")),
    (
        "complexity",
        Column("complexity", "", True, "complexity"),
    ),
    ("twin_r", Column("twin r", "", True, "twin r")),
    (
        "given",
        Column("given the token", "", True, "twin r given the token"),
    ),
    (
        "born",
        Column("born at step", "", True, "born at step"),
    ),
    (
        "support",
        Column("support", "", True, "support"),
    ),
    (
        "seed_r",
        Column("seed r", "", True, "r in another seed"),
    ),
    (
        "untrained_r",
        Column("untrained r", "", True, "r in the untrained model"),
    ),
    (
        "effect",
        Column("effect", "Loss that ablating it adds, nats per token it fires on", True, "effect on the loss"),
    ),
    ("density", Column("density %", "", True, "density")),
    ("max", Column("max", "", True, "max activation")),
    ("profile", Column("activations")),
    ("nearest", Column("nearest", "", True, "nearest neighbour")),
)


def layout(page: list[dict[str, Any]], d: Dictionary, **walk: str) -> tuple[list[Column], list[list[str]]]:
    """Columns and HTML cells of a page of the table; ``walk`` goes with every link, so that J and K know the order. A
    column in which no row holds anything is left out.
    """
    shown = [(name, c) for name, c in COLUMNS if any(_holds(row.get(name)) for row in page)]
    rows = [[_cell(name, row, d, walk) for name, _ in shown] for row in page]
    return [c for _, c in shown], rows


def _holds(value: Any) -> bool:
    return value is not None and value != "" and value == value


def _cell(name: str, row: dict[str, Any], d: Dictionary, walk: dict[str, str]) -> str:
    value = row[name]
    if name == "latent":
        return latent_link(d, int(value), f"{int(value):,}", **walk)
    if name == "label":
        return span("lab", escape(value))
    if name == "context":
        return snippet(value.tokens, value.peak) if value is not None else ""
    if name == "peak":
        return chip(value) if isinstance(value, str) else "–"
    if name == "promotes":
        return " ".join(f'<span class="wb-tok">{html.escape(cell(t, 16))}</span>' for t in value)
    if name == "profile":
        top = max(value) or 1.0
        return div(
            "wb-spark", *(f'<i style="height:{100 * v / top:.0f}%"></i>' for v in value), attrs='role="presentation"'
        )
    return number(None if value is None or value != value else float(value))


def snippet(tokens: list[str], peak: int, before: int = 10, after: int = 5) -> str:
    """The text around the peak on one line as HTML, the peak marked."""
    left = "".join(visible(t) for t in tokens[max(0, peak - before) : peak])
    right = "".join(visible(t) for t in tokens[peak + 1 : peak + 1 + after])
    mid = visible(tokens[peak]) if 0 <= peak < len(tokens) else ""
    return span("sn", f"{escape(left[-34:])}<b>{escape(clip(mid, 24))}</b>{escape(right[:20])}")
