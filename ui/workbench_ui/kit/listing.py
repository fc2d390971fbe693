"""Latents into a list: one form for one latent, a filtered table, or a piece of a map; and what an
edited list becomes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import streamlit as st

from sae.errors import MissingError, UserError
from workbench.markup.tokens import clip, escape, markdown, visible
from workbench.results.lists import MAX_ITEMS, LatentList, ListItem, read_lists, save_list
from workbench_ui.kit import data, panels
from workbench_ui.kit.index import Dictionary

Latents = Callable[[], Iterable[tuple[Dictionary, int]]]


def add_button(label: str, n: int, latents: Latents, *, what: str = "", help: str | None = None) -> None:
    """A button that opens the form: which list, and a note for all ``n`` latents. ``what`` is said to be added ("Latent
    7").

    ``latents`` is called when they are added and not before; their order is the list's.
    """
    what = what or f"{n:,} latent{'' if n == 1 else 's'}"
    if st.session_state.get("al_for") != what:  # a note is about what was there when it was typed
        st.session_state["al_for"], st.session_state["al_note"] = what, ""
    with st.popover(label, icon=":material/bookmark_add:", key="wb_lists", help=help):
        if n > MAX_ITEMS:
            panels.note(f"{n:,} latents are chosen; a list holds at most {MAX_ITEMS:,}. Narrow the choice.", "warn")
            return
        known, _ = data.lists()
        ids, called = list(known), names(known)
        last = st.session_state.get("last_list")
        name = st.selectbox(
            "List",
            ids,
            key="al_list",
            accept_new_options=True,
            placeholder="choose or type a new name",
            index=ids.index(last) if last in ids else 0 if ids else None,
            format_func=lambda i: called.get(i, str(i)),
        )
        st.text_area("Note", key="al_note", max_chars=2000, height=90)
        st.button("Add", key="al_add", disabled=not (name or "").strip(), on_click=_add, args=(what, latents))
        refused = st.session_state.pop("al_refused", None)
        if refused:
            panels.note(escape(refused), "warn")


def again_button(latents: Latents, *, what: str) -> None:
    """One click, or the key L: into the list that was used last in this session; nothing before one was."""
    last = st.session_state.get("last_list")
    known, _ = data.lists()
    if last in known:
        st.button(
            f"Add to {markdown(clip(visible(known[last].name), 28))}",
            icon=":material/bookmark_add:",
            key="wb_list_again",
            shortcut="L",
            help="Into the list you used last, without a note",
            on_click=_add_again,
            args=(what, latents, last),
        )


def _add_again(what: str, latents: Latents, id: str) -> None:
    try:
        _put(what, latents, id, "")
    except (UserError, OSError) as e:
        st.toast(markdown(str(e)))


def _add(what: str, latents: Latents) -> None:
    """Write the chosen latents into the chosen list, all in one file or none; the note is for these and is emptied."""
    choice, note = str(st.session_state.get("al_list") or ""), str(st.session_state.get("al_note") or "")
    try:
        _put(what, latents, choice, note)
    except (UserError, OSError) as e:
        st.session_state["al_refused"] = str(e)
        return
    st.session_state["al_note"] = ""


def _put(what: str, latents: Latents, choice: str, note: str) -> None:
    """Into the list of that id or name, said aloud; it is the one used last from now on.

    Raises:
        UserError, OSError: nothing is written.
    """
    items = [ListItem(dictionary=d.id, latent=i, version=d.version, note=note[:2000]) for d, i in latents()]
    id, chosen, there = add_items(choice, items)
    st.session_state["last_list"] = id
    already = (
        ""
        if not there
        else " (it was there already)"
        if len(items) == 1
        else f" ({there:,} of them were there already)"
    )
    st.toast(f"{what} added to {markdown(chosen.name)}{already}", icon=":material/bookmark_added:")


def add_items(choice: str, items: Sequence[ListItem]) -> tuple[str, LatentList, int]:
    """Add to the list with the id or name ``choice``, else to a new one of that name: its id, itself, and how many it
    held already.

    Raises:
        UsageError: too many latents; nothing is written.
    """
    root = data.workspace_folder()
    known, _ = read_lists(root)
    name = " ".join(choice.split())[:120]
    if not name:
        raise MissingError("no list was named. Choose one on the page of lists.")
    id = choice if choice in known else next((i for i, x in known.items() if x.name == name), None)
    old = known[id] if id is not None else LatentList(name=name)
    new = old.with_items(items)
    return save_list(root, new, id), new, len(items) - (len(new.items) - len(old.items))


def names(known: dict[str, LatentList]) -> dict[str, str]:
    """What lists are called in a selector, by id: names as they are seen, told apart by the id where two are alike."""
    seen = {i: visible(x.name) for i, x in known.items()}
    often = Counter(seen.values())
    return {i: name if often[name] == 1 else f"{name} · {i}" for i, name in seen.items()}


@dataclass(frozen=True)
class Part:
    """Of a list what belongs to one dictionary: its latents, each once, how many of its items were added on ``old``
    data, and of ``others``.
    """

    latents: tuple[int, ...]
    old: int
    others: int


def part_of(id: str, d: Dictionary) -> Part:
    """The part of the list ``id`` that is of a dictionary; kept until a file of lists changes."""
    return _part(*data.lists_now(), id, d.id, d.version)


@st.cache_resource(show_spinner=False, max_entries=16)
def _part(root: str, signature: tuple[tuple[str, int, int], ...], id: str, dictionary: str, version: str) -> Part:
    items = data.lists()[0][id].items
    mine = [x for x in items if x.dictionary == dictionary]
    latents = tuple(dict.fromkeys(x.latent for x in mine if x.latent < 2**31))
    return Part(latents, sum(x.version != version for x in mine), len(items) - len(mine))


def edited(items: Sequence[ListItem], rows: Sequence[dict[str, Any]]) -> tuple[ListItem, ...]:
    """A list's latents after its table (``no.``, ``note``, ``remove``) was edited: a row with another number moves to
    that place.
    """
    order = list(range(len(items)))
    for j, row in enumerate(rows):
        if not pd.isna(row["no."]) and int(row["no."]) != j + 1:
            order.remove(j)
            order.insert(max(0, min(len(order), int(row["no."]) - 1)), j)
    out = []
    for j in order:
        note = str(rows[j]["note"] or "")[:2000]
        if not rows[j]["remove"]:
            out.append(items[j] if note == visible(items[j].note) else items[j].model_copy(update={"note": note}))
    return tuple(out)


def carried(
    was: Sequence[ListItem], edits: Mapping[int, Mapping[str, Any]], now: Sequence[ListItem]
) -> tuple[tuple[ListItem, ...], int]:
    """A list that changed while its table was edited: the notes typed into rows of ``was`` (row -> column -> value) are
    given to the same latents of ``now``. Also how many rows' edits could not be carried over: moves, removals,
    notes of latents that are gone.
    """
    places = {(x.dictionary, x.latent): j for j, x in enumerate(now)}
    out, lost = list(now), 0
    for row, edit in edits.items():
        changed = {k: v for k, v in edit.items() if k != "open"}
        if not changed or not 0 <= int(row) < len(was):
            continue
        j = places.get((was[int(row)].dictionary, was[int(row)].latent))
        if "note" in changed and j is not None:
            out[j] = out[j].model_copy(update={"note": str(changed.pop("note") or "")[:2000]})
        lost += bool(changed)
    return tuple(out), lost
