"""The bar on top of dictionary pages: architecture and model, site and layer, snapshot, variant; and the version
banner.

Choosing one selector keeps as much of the others as exists (the same layer of another architecture, the same site at
another snapshot), so comparing is two clicks.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import streamlit as st

from workbench.markup.glossary import badge
from workbench.markup.tokens import clip, escape, visible
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.index import Dictionary, Index, architecture_css

if TYPE_CHECKING:
    from workbench.results.records import LatentRecords

SELECTORS = ("model", "site", "revision", "variant")
LABELS = {"model": "Model", "site": "Site", "revision": "Snapshot", "variant": "Dictionary"}


def context_bar(index: Index) -> Dictionary | None:
    """Draw the bar and return the selected dictionary, or None with a panel where there is none at all."""
    asked = state.get("d")
    d = state.current(index)
    if d is None:
        panels.not_computed(
            "Dictionaries",
            "workbench demo",
            "This workspace holds no dictionary yet. `workbench demo` makes models, stores, dictionaries and their"
            " latents.",
        )
        return None
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="wb_context"):
        for name in SELECTORS:
            _selector(index, d, name)
    if asked and asked != d.id:
        panels.note(
            f"<b>{escape(clip(asked, 80))}</b> is not in this workspace; showing <b>{escape(d.id)}</b>.", "warn"
        )
        state.put(i=None, v=None)
    version_banner(d)
    state.put(d=d.id)
    return d


def _selector(index: Index, d: Dictionary, name: str) -> None:
    options = choices(index, d, name)
    if name == "variant" and len(options) < 2:
        return
    key = f"ctx_{name}"
    st.session_state[key] = getattr(d, name)
    texts = {o: _text(index, name, o) for o in options}
    st.selectbox(
        LABELS[name],
        options,
        key=key,
        format_func=lambda o: texts.get(o, o),
        on_change=_changed,
        args=(name,),
        disabled=len(options) < 2,
        width={"model": 260, "site": 240, "revision": 150, "variant": 180}[name],
        filter_mode=None if len(options) < 12 else "contains",
    )


def choices(index: Index, d: Dictionary, name: str) -> list[str]:
    """Values of a selector that exist, given the selectors left of it; in the order of the index."""
    fixed = {s: getattr(d, s) for s in SELECTORS[: SELECTORS.index(name)]}
    found = [getattr(x, name) for x in index.dictionaries.values() if all(getattr(x, k) == v for k, v in fixed.items())]
    return list(dict.fromkeys(found))


def best_match(index: Index, d: Dictionary, name: str, value: str) -> Dictionary:
    """The dictionary with ``name`` = ``value`` that shares most with ``d``; records count, then the
    order of selectors.
    """
    fixed = {s: getattr(d, s) for s in SELECTORS[: SELECTORS.index(name)]} | {name: value}
    found = [x for x in index.dictionaries.values() if all(getattr(x, k) == v for k, v in fixed.items())]
    return max(
        found,
        key=lambda x: (
            x.records is not None,
            x.site == d.site,
            x.layer == d.layer,
            x.site[-1:] == d.site[-1:],
            x.revision == d.revision,
            x.variant == d.variant,
        ),
        default=d,
    )


def _changed(name: str) -> None:

    index = data.index()
    d = state.current(index)
    if d is not None:
        chosen = best_match(index, d, name, st.session_state[f"ctx_{name}"])
        state.put(d=chosen.id, v=chosen.version, i=None)


def _text(index: Index, name: str, value: str) -> str:
    if name == "model":
        return visible(f"{value} · {index.architecture(value)}")
    if name == "site":
        found = next((x for x in index.dictionaries.values() if x.site == value), None)
        return visible(f"{value} · {found.place}" if found else value)
    return visible(value)


def version_banner(d: Dictionary) -> None:
    """Warn where the address was made on other data than the workspace holds now."""
    asked = state.get("v")
    if asked and d.version and asked != d.version and state.get("d") == d.id:
        with st.container(horizontal=True, vertical_alignment="center"):
            panels.note(
                f"This link was made on data version <code>{escape(clip(asked, 16))}</code>; the workspace now holds"
                f" <code>{html.escape(d.version)}</code>. Latent numbers may mean something else.",
                "broken",
            )
            st.button("Use the data at hand", on_click=state.put, kwargs={"v": d.version}, key="wb_use_version")
    else:
        state.put(v=d.version or None)


def browsable(d: Dictionary) -> LatentRecords | None:
    """The records of a dictionary, or None with a panel that names the command."""
    records = data.records(d)
    if records is None and not d.has_rows:
        panels.note(
            f"{escape(d.id)} reads {len(d.about['sources'])} models at once and was trained while they ran: "
            "no store holds their rows, so it has no contexts. What its latents do is on the page <em>Training</em>."
        )
    elif records is None:
        panels.not_computed(
            f"Latents of {d.id}",
            f"workbench features {d.id}",
            "The dictionary exists; its latent records do not.",
        )
    return records


def badges(d: Dictionary) -> str:
    """Architecture, place, snapshot and data version as HTML chips."""
    css = architecture_css(d.architecture)
    chips = [
        badge("architecture", d.architecture, css),
        badge("model", escape(d.model)),
        badge("site", escape(d.place)),
        badge("snapshot", escape(d.revision)),
        badge("data version", html.escape(d.version), "v"),
    ]
    if d.stale:
        chips.append(badge("stale", f'<span title="{escape(d.stale)}">stale</span>'))
    return " ".join(chips)
