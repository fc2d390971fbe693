"""The card of evidence of a latent on its page: made by ``workbench trust``, or the command that makes it."""

from __future__ import annotations

import streamlit as st

from workbench.markup.evidence import card_html
from workbench.markup.tokens import escape
from workbench.results.trust import Trust
from workbench_ui.components.enhance import latent_link
from workbench_ui.kit import data, panels
from workbench_ui.kit.index import Dictionary, Entry


def trust_of(d: Dictionary) -> Entry | None:
    """The cards of a dictionary; None where none were made."""
    return data.index().find("trust", d.id)


@st.cache_resource(show_spinner=False, max_entries=8)
def open_trust(folder: str, version: str) -> Trust:
    """Cards, kept; ``version`` makes new ones be read anew."""
    found = Trust.open(folder)
    _ = found.cards
    return found


def evidence(d: Dictionary, latent: int) -> None:
    """The panel."""
    panels.heading("Evidence", "is it real? each number beside chance")
    entry = trust_of(d)
    if entry is None:
        panels.not_computed(
            "Card of evidence",
            f"workbench trust {d.id}",
            "Found again in other seeds, effect on the loss, its rule on near misses, …",
            state="can be made for this dictionary",
        )
        return
    found = open_trust(str(entry.path), entry.version)
    if why := data.index().stale.get(("trust", d.id)):
        panels.note(escape(str(why)), "warn")
    known = data.index().dictionaries

    def partner(id: str, other: int) -> str:
        there = known.get(id)
        shown = f"#{other:,}"
        return latent_link(there, other, shown) if there is not None and there.records is not None else shown

    card = found.card(latent)
    st.html(card_html(card, found.metadata, link=lambda i: latent_link(d, i), partner=partner))
