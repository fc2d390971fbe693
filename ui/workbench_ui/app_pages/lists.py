"""Named lists of latents with notes, kept as JSON in the workspace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from urllib.parse import urlencode

import pandas as pd
import streamlit as st

from sae.errors import UserError
from workbench.markup.tokens import clip, markdown, visible
from workbench.results.lists import LatentList, ListItem, delete_list, import_list, read_lists, save_list
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.documents import share_buttons
from workbench_ui.kit.index import Dictionary
from workbench_ui.kit.listing import carried, edited, names
from workbench_ui.kit.matching import fires_on


@st.fragment(key="lists_body")
def body() -> None:
    """Choose or make a list; its latents below."""
    with panels.guarded("The lists"):
        panels.page_title(
            "Lists",
            "latents with notes, as JSON in this workspace; add them on a latent's page, all of a table, or a piece of"
            " the map",
        )
        root = data.workspace_folder()
        known, problems = read_lists(root)
        for name, why in problems:
            panels.problem(f"lists/{name} cannot be read", why)
        make(known)
        if not known:
            panels.note("There is no list yet. Name one above, or choose <b>Add to list</b> on a latent's page.")
            return
        ids, called = list(known), names(known)
        st.session_state["li_choice"] = state.get_choice("list", ids, ids[0])
        id = st.selectbox(
            "List",
            ids,
            key="li_choice",
            format_func=lambda i: f"{called[i]} · {len(known[i].items):,}" if i in known else visible(str(i)),
            on_change=_choose,
            width=420,
        )
        show(id, known[id])


def _choose() -> None:
    state.put(list=st.session_state["li_choice"])


def make(known: dict[str, LatentList]) -> None:
    """Name a new list, or take one from a file."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.text_input("New list", key="li_new", max_chars=120, placeholder="name", width=300)
        st.button("Create", icon=":material/add:", on_click=_create, key="li_create")
        with st.popover("Import", icon=":material/upload:"):
            found = st.file_uploader("A list as JSON", type=["json"], key="li_file")
            if found is not None and st.button("Add this list", key="li_import"):
                try:
                    taken = import_list(found.getvalue())
                except UserError as e:  # said here; the lists below stay as they are
                    panels.problem("This file cannot be added", str(e))
                    return
                if any(x.name == taken.name for x in known.values()):
                    taken = taken.model_copy(update={"name": f"{clip(taken.name, 100)} (imported)"})
                state.put(list=save_list(data.workspace_folder(), taken))
                st.rerun(scope="fragment")


def _create() -> None:
    name = " ".join(str(st.session_state.get("li_new") or "").split())[:120]
    if not name:
        return
    root = data.workspace_folder()
    try:
        id = next((i for i, x in read_lists(root)[0].items() if x.name == name), None) or save_list(
            root, LatentList(name=name)
        )
    except UserError as e:
        st.toast(visible(str(e)))
        return
    st.session_state["li_new"] = ""
    state.put(list=id)


def show(id: str, chosen: LatentList) -> None:
    """The latents of a list, notes editable; stale versions are named."""
    known = data.index().dictionaries
    words = _fires_on(chosen)
    rows = []
    for j, x in enumerate(chosen.items, 1):
        d = known.get(x.dictionary)
        now = (
            "not in this workspace"
            if d is None
            else "as added"
            if d.version == x.version
            else f"data changed ({visible(x.version) or '?'} → {d.version})"
        )
        rows.append(
            {
                "no.": j,
                "open": False,
                "dictionary": visible(x.dictionary),
                "latent": _address(x, d),
                "fires on": words.get((x.dictionary, x.latent), "") if d is not None and d.version == x.version else "",
                "note": visible(x.note),
                "data": now,
                "remove": False,
            }
        )
    if not rows:
        panels.note(
            "This list is empty. Choose <b>Add to list</b> on a latent's page, or <b>Add all to a list</b> below a"
            " table of latents."
        )
    else:
        # Edits belong to row numbers and outlive a change of the data: another order needs another table.
        shown = hash(tuple((x.dictionary, x.latent) for x in chosen.items))
        key = f"li_table_{id}_{st.session_state.get('li_turn', 0)}_{shown}"
        before = st.session_state.get("li_before")
        if before is not None and before[:2] != (id, key) and before[0] == id:
            _carry(id, chosen, before[1], before[2])
        st.session_state["li_before"] = (id, key, chosen.items)
        table = st.data_editor(
            pd.DataFrame(rows),
            key=key,
            hide_index=True,
            disabled=["dictionary", "latent", "fires on", "data"],
            column_config={
                "no.": st.column_config.NumberColumn(
                    "no.", format="%d", width=56, help="Type another number to move the latent there"
                ),
                "open": st.column_config.CheckboxColumn("open", width=60, help="Tick to open the latent here"),
                "latent": st.column_config.LinkColumn(
                    "latent", display_text=r"[?&]i=(\d+)", width=80, help="Its number; a click opens it in a new tab"
                ),
                "fires on": st.column_config.TextColumn(
                    "fires on", width=210, help="Its label, else the token on which it fires most"
                ),
                "data": st.column_config.TextColumn(
                    "data", help="Whether the latents are still those the list was made on"
                ),
                "note": st.column_config.TextColumn("note", width=330, max_chars=2000),
                "remove": st.column_config.CheckboxColumn("remove", width=80),
            },
        )
        _apply(id, chosen, table, key)
    with st.container(horizontal=True, gap="small"):
        if rows:
            table_buttons(chosen)
            share_buttons("", {"list": id}, f"li_{id}")
        text = chosen.model_dump_json(indent=2)
        st.download_button(
            "List as JSON",
            text,
            file_name=f"{id}.json",
            mime="application/json",
            icon=":material/download:",
            on_click="ignore",
            key="li_down",
        )
        with st.popover("Rename", icon=":material/edit:"):
            st.text_input("Name", value=chosen.name, key=f"li_name_{id}", max_chars=120)
            st.button("Rename this list", on_click=_rename, args=(id,), key="li_rename")
        with st.popover("Delete", icon=":material/delete:"):
            st.caption("Removes the file from the workspace.")
            st.button("Delete this list", on_click=_delete, args=(id,), key="li_delete")


def _address(x: ListItem, d: Dictionary | None) -> str:
    """The page of a latent; of one whose dictionary is gone, the page that says so."""
    return "/latent?" + urlencode(state.link(d, i=x.latent) if d is not None else {"d": x.dictionary, "i": x.latent})


def _fires_on(chosen: LatentList) -> dict[tuple[str, int], str]:
    """What the latents of a list fire on, asked once per dictionary: a list may hold thousands."""
    known = data.index().dictionaries
    found: dict[tuple[str, int], str] = {}
    for id in dict.fromkeys(x.dictionary for x in chosen.items):
        records = data.records(known[id]) if id in known else None
        n = 0 if records is None else len(records)
        latents = list(dict.fromkeys(x.latent for x in chosen.items if x.dictionary == id and x.latent < n))
        found |= {(id, i): text for i, text in zip(latents, fires_on(data.index(), id, latents), strict=True)}
    return found


def table_buttons(chosen: LatentList) -> None:
    """The list as a filter of the table of latents: one button per dictionary of it."""
    known = data.index().dictionaries
    found = Counter(
        x.dictionary for x in chosen.items if x.dictionary in known and known[x.dictionary].records is not None
    )
    if len(found) == 1:
        _table_button(known[next(iter(found))], "Open as a table")
    elif found:
        with st.popover("Open as a table", icon=":material/table_rows:"):
            for id, n in found.items():
                _table_button(known[id], f"{markdown(id)} · {n:,}")


def _table_button(d: Dictionary, label: str) -> None:
    if st.button(
        label,
        icon=":material/table_rows:",
        key=f"li_table_of_{d.id}",
        help="Its latents with all their numbers, to sort and search",
    ):
        st.switch_page(
            "app_pages/latents.py", query_params=state.link(d, list=state.get("list") or st.session_state["li_choice"])
        )


def _carry(id: str, chosen: LatentList, key: str, was: tuple[ListItem, ...]) -> None:
    """Notes that were typed into the table of a list which another tab has changed since go to the same latents."""
    state_of_table = st.session_state.get(key)
    edits = state_of_table.get("edited_rows", {}) if isinstance(state_of_table, Mapping) else {}
    items, lost = carried(was, edits, chosen.items)
    if items != chosen.items:
        save_list(data.workspace_folder(), chosen.model_copy(update={"items": items}), id)
    if lost:
        st.toast("This list was changed elsewhere meanwhile; what you moved, removed or noted there was not kept.")
    if items != chosen.items:
        st.session_state["li_before"] = None
        st.rerun()


def _apply(id: str, chosen: LatentList, table: pd.DataFrame, key: str) -> None:
    """Write what was edited; open the latent that was ticked."""
    known = data.index().dictionaries
    rows = table.to_dict("records")
    for item, row in zip(chosen.items, rows, strict=False):
        if row["open"] and item.dictionary in known:
            st.switch_page("app_pages/latent.py", query_params=state.link(known[item.dictionary], i=item.latent))
    items = edited(chosen.items, rows)
    renumbered = any(row["no."] != j for j, row in enumerate(rows, 1))
    if items == chosen.items and not renumbered:
        return
    if items != chosen.items:
        save_list(data.workspace_folder(), chosen.model_copy(update={"items": items}), id)
    if key in st.session_state:
        del st.session_state[key]
    if renumbered or len(items) != len(chosen.items):
        st.session_state["li_turn"] = st.session_state.get("li_turn", 0) + 1
    st.rerun()


def _rename(id: str) -> None:
    """The name changes, the file and every link to it stay."""
    name = " ".join(str(st.session_state[f"li_name_{id}"] or "").split())[:120]
    known, _ = read_lists(data.workspace_folder())
    if name and id in known:
        save_list(data.workspace_folder(), known[id].model_copy(update={"name": name}), id)


def _delete(id: str) -> None:
    delete_list(data.workspace_folder(), id)
    state.put(list=None)


body()
