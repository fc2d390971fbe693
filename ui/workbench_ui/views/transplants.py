"""What partners do in each other's place: panels for the pages of a comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st

from workbench.markup.tags import div
from workbench.markup.tokens import escape, number, visible
from workbench.results.matches import MatchRecords
from workbench.results.transplants import PREDICTOR_NAMES, REPAIRS, SHOWN, TransplantRecords
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.choose import check_version, choose_of
from workbench_ui.kit.figures import chart
from workbench_ui.kit.index import Entry
from workbench_ui.kit.panels import interval_and_n, two_places

COLUMNS = {
    "latent": "latent",
    "partner": "partner",
    "r": "r",
    "r_given_token": "r given the token",
    "cosine": "cosine",
    "transplant": "repaired",
    "transplant_low": "95 % from",
    "transplant_high": "to",
    "other": "another's partner",
    "random": "random direction",
    "activation": "own direction",
    "ceiling": "ceiling",
    "kl_ablated": "damage, nats",
    "n_sequences": "sequences",
}


@st.cache_resource(show_spinner=False, max_entries=6)
def open_transplant(folder: str, version: str) -> TransplantRecords:
    """A transplant, kept; ``version`` makes a new one be read anew."""
    return TransplantRecords.open(folder)


def belonging(m: MatchRecords) -> list[Entry]:
    """Transplants between the dictionaries of a comparison."""
    sides = [set(m.metadata[side]["dictionaries"]) for side in ("a", "b")]
    return [
        e
        for e in data.index().of("transplants")
        for x, y in [(e.metadata["a"]["dictionary"], e.metadata["b"]["dictionary"])]
        if (x in sides[0] and y in sides[1]) or (x in sides[1] and y in sides[0])
    ]


def section(m: MatchRecords) -> None:
    """The transplants of a comparison: how much partners repair, along their correlation, and pair by pair."""
    panels.heading(
        "In each other's place",
        "a latent's contribution is replaced by its partner's, in the other model: which share of the ablation's damage"
        " is repaired?",
    )
    a, b = (m.metadata[side]["dictionaries"][0] for side in ("a", "b"))
    entry = choose_of(
        belonging(m),
        "Transplant",
        "tr",
        what="Transplants",
        command=f"transplant {a} {b}",
        why="Correlation says that two latents fire alike; a transplant says whether one does the other's work.",
        text=lambda e: visible(e.id.replace("__", "  →  ")),
    )
    if entry is None:
        return
    check_version(entry, "tr")
    st.html(_headline(entry))
    names = list(PREDICTOR_NAMES)
    along = (
        st.segmented_control(
            "Along",
            names,
            format_func=PREDICTOR_NAMES.__getitem__,
            required=True,
            **state.tie_choice("along", names, names[0]),
        )
        or names[0]
    )
    left, right = st.columns([3, 2], gap="large")
    with left:
        chart("tx_curve", "transplant_curve", entry, {"predictor": along}, height=320)
    with right:
        chart("tx_arms", "transplant_arms", entry, height=320)
    _pairs(entry, m)


def _headline(entry: Entry) -> str:
    n, about = entry.numbers, entry.metadata
    share, mapped = n.get("share_of_ceiling"), about["map"]
    rank, firing = n["rank_correlation"], n["activation"]
    carried = (
        ("one space", "both dictionaries read the same place")
        if mapped["ridge"] is None
        else (number(float(mapped["cosine"])), f"cosine of left-out pairs, of {mapped['n_pairs']:,}")
    )
    return panels.stats(
        [
            ("Repaired", two_places(n["repaired"]["median"]), f"{interval_and_n(n['repaired'])}, median"),
            (
                "Firing alone",
                two_places(firing["median"]),
                f"{interval_and_n(firing)}; own direction",
            ),
            ("Another's partner", two_places(n["nulls"]["other"]["median"]), interval_and_n(n["nulls"]["other"])),
            ("Ceiling", two_places(n["ceiling"]["median"]), about["ceiling"]),
            ("Of the ceiling", "–" if share is None else f"{100 * share:.0f} %", "median over median"),
            ("Follows r", two_places(rank["r"]["value"]), f"{interval_and_n(rank['r'])}, rank correlation"),
            ("… given the token", two_places(rank["r_given_token"]["value"]), interval_and_n(rank["r_given_token"])),
            ("Decoders carried", *carried),
            ("Latents", f"{n['measured']:,}", f"measured, of {n['matched']:,} matched"),
        ]
    )


def _pairs(entry: Entry, m: MatchRecords) -> None:
    """Every pair; a row opens it."""
    records = open_transplant(str(entry.path), entry.version)
    frame = records.pairs.sort_values("transplant", ascending=False, na_position="last").reset_index(drop=True)
    with st.expander("All pairs", key="tx_pairs_box", on_change="rerun") as box:
        if not box.open:
            return
        number_column = st.column_config.NumberColumn
        formats = {"n_sequences": "%d", "kl_ablated": "%.5f", "latent": "%d", "partner": "%d"}
        event = st.dataframe(
            frame[list(COLUMNS)],
            key="tx_pairs",
            hide_index=True,
            on_select="rerun",
            selection_mode="single-row",
            lazy=False,
            placeholder="–",
            height=420 if len(frame) > 12 else "content",
            alt="Pairs with what the partner repairs",
            column_config={
                name: number_column(title, format=formats.get(name, "%.3f")) for name, title in COLUMNS.items()
            },
        )
        picked = event.selection.rows
        if picked and picked[0] < len(frame):
            row, about = frame.iloc[picked[0]], entry.metadata
            link = {"m": m.id, "d": about["b"]["dictionary"], "i": int(row["latent"]), "mv": m.version}
            link |= {"d2": about["a"]["dictionary"], "i2": int(row["partner"])}
            st.switch_page("app_pages/pair.py", query_params={k: str(v) for k, v in link.items()})


def of_pair(m: MatchRecords, a: str, i: int, b: str, j: int) -> None:
    """What a transplant found for a pair, in whichever direction; nothing where none did."""
    for entry in belonging(m):
        source, target = entry.metadata["a"]["dictionary"], entry.metadata["b"]["dictionary"]
        ends = {a: i, b: j}
        if {source, target} != {a, b}:
            continue
        row = open_transplant(str(entry.path), entry.version).of(ends[target], ends[source])
        if row is None:
            continue
        panels.heading(
            "In each other's place",
            f"{escape(target)} #{ends[target]} taken out of its model, {escape(source)} #{ends[source]} put in: the"
            " share of the ablation's damage that is repaired",
        )
        items = [(SHOWN[arm], two_places(_known(row[arm])), _ends(row, arm)) for arm in REPAIRS]
        items.append(("Damage", f"{row['kl_ablated']:.2g}", f"nats per token, {int(row['n_sequences'])} sequences"))
        st.html(div("", panels.stats(items)))


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _ends(row: Any, arm: str) -> str:
    low, high = row[f"{arm}_low"], row[f"{arm}_high"]
    return f"95 % {low:.2f} – {high:.2f}" if np.isfinite(low) and np.isfinite(high) else "not measured"
