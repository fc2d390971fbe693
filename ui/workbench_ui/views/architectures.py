"""Several models over their training, side by side: which of the latents they share come first in which."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from workbench.exporting.kinds.architectures import (
    LAG,
    MEASURES,
    behind,
    emergence_by_latent,
    lags_by_latent,
    there_from_the_start,
    too_few,
)
from workbench.markup.names import listed, model_name
from workbench.results.evolution import Evolution
from workbench_ui.kit import panels, state
from workbench_ui.kit.figures import chart
from workbench_ui.kit.index import Entry

TRAP = (
    "One training run of each model: what differs between them may be chance of that run. A decoder norm follows what"
    " all models share and may be there before the latent is; the models' own firings do not. Late in training the"
    " models' learning rates differ."
)


def which_first(entry: Entry, e: Evolution) -> list[int]:
    """The figure and the shared latents, those first that one model has much before the other; the chosen ones."""
    names = [str(m["model"]) for m in e.metadata["architectures"]]
    panels.heading("Which comes first where", f"latents that {listed(map(model_name, names))} share")
    measure = (
        st.segmented_control(
            "Emerges by",
            list(MEASURES),
            required=True,
            format_func=lambda m: MEASURES[m],
            label_visibility="collapsed",
            **state.tie_choice("by", list(MEASURES), "own"),
        )
        or "own"
    )
    frame = emergence_by_latent(e, measure)
    if frame.empty:
        panels.note("No latent is shared by all models at the end of their training.", "missing")
        return []
    chart("tr_architectures", "evolution_architectures", entry, {"measure": measure}, height=300)
    if few := too_few(frame):
        panels.note(few, "warn")
    if at_once := there_from_the_start(frame, e.metadata["architectures"]):
        panels.note(
            f"<b>{at_once} of {len(frame)}</b> shared latents are there at the first snapshot of every model: they tell"
            " nothing of an order, and the mean lags hold them."
        )
    return _table(frame, names, lags_by_latent(e, measure, frame["latent"].tolist()))


def _table(frame: pd.DataFrame, names: list[str], lags: dict[tuple[str, str], tuple[np.ndarray, int]]) -> list[int]:
    """Shared latents, those first that one model has longest before another; the rows that are chosen."""
    # rounded here, and no minus before 0.0
    known = {behind(*pair): by_latent.round(1) + 0.0 for pair, (by_latent, snapshots) in lags.items() if snapshots}
    view = frame[["latent", *names, "open", "part"]].assign(**known)
    largest = view[list(known)].abs().max(axis=1)
    view = view.reindex(largest.sort_values(ascending=False, kind="stable").index)
    event = st.dataframe(
        view,
        key="tr_shared",
        hide_index=True,
        on_select="rerun",
        selection_mode="multi-row",
        lazy=False,
        placeholder="never",
        height=300,
        alt="Shared latents with the step at which each model has them",
        column_config={
            **{n: st.column_config.NumberColumn(f"{model_name(n)}: step", format="%.0f") for n in names},
            "open": st.column_config.NumberColumn(
                "open given the token", format="%.2f", help="share of the latent's code that its token does not tell"
            ),
            "part": st.column_config.Column("third"),
            **{
                name: st.column_config.NumberColumn(
                    name, format="%+.1f", help=f"how much {LAG}, at snapshots both have; negative: earlier"
                )
                for name in known
            },
        },
    )
    return [int(view.iloc[r]["latent"]) for r in event.selection.rows if r < len(view)]
