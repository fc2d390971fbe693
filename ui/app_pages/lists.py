"""Named lists of latents with notes, kept as JSON in the workspace."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from sae.errors import UserError
from ui.kit import data, panels, state
from ui.kit.documents import share_buttons
from ui.kit.matching import fires_on
from workbench.markup.tokens import clip, visible
from workbench.results.lists import LatentList, ListItem, delete_list, import_list, list_id, read_lists, save_list


@st.fragment(key="lists_body")
def body() -> None:
    """Choose or make a list; its latents below."""
    with panels.guarded("The lists"):
        panels.page_title("Lists", "latents with notes, as JSON in this workspace; add from a latent's page")
        root = data.workspace_folder()
        known, problems = read_lists(root)
        for name, why in problems:
            panels.problem(f"lists/{name} cannot be read", why)
        make(known)
        if not known:
            panels.note("There is no list yet. Name one above, or choose <b>Add to list</b> on a latent's page.")
            return
        ids = list(known)
        st.session_state["li_choice"] = state.get_choice("list", ids, ids[0])
        id = st.selectbox(
            "List",
            ids,
            key="li_choice",
            format_func=lambda i: visible(f"{known[i].name} · {len(known[i].items)}"),
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
                taken = import_list(found.getvalue())
                id = list_id(taken.name)
                if id in known:
                    taken = taken.model_copy(update={"name": f"{clip(taken.name, 100)} (imported)"})
                state.put(list=save_list(data.workspace_folder(), taken))
                st.rerun(scope="fragment")


def _create() -> None:
    name = " ".join(str(st.session_state.get("li_new") or "").split())[:120]
    if not name:
        return
    root = data.workspace_folder()
    id = list_id(name)
    try:
        if id not in read_lists(root)[0]:
            save_list(root, LatentList(name=name))
    except UserError as e:
        st.toast(visible(str(e)))
        return
    st.session_state["li_new"] = ""
    state.put(list=id)


def show(id: str, chosen: LatentList) -> None:
    """The latents of a list, notes editable; stale versions are named."""
    known = data.index().dictionaries
    rows = []
    for x in chosen.items:
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
                "open": False,
                "dictionary": visible(x.dictionary),
                "latent": x.latent,
                "fires on": fires_on(data.index(), x.dictionary, [x.latent])[0] if d is not None and d.version == x.version else "",
                "note": visible(x.note),
                "data": now,
                "remove": False,
            }
        )
    if not rows:
        panels.note("This list is empty. Choose <b>Add to list</b> on a latent's page.")
    else:
        edited = st.data_editor(
            pd.DataFrame(rows),
            key=f"li_table_{id}",
            hide_index=True,
            disabled=["dictionary", "latent", "fires on", "data"],
            column_config={
                "open": st.column_config.CheckboxColumn("open", width=60, help="Tick to open the latent"),
                "fires on": st.column_config.TextColumn("fires on", width=210, help="Its label, else the token on which it fires most"),
                "data": st.column_config.TextColumn("data", help="Whether the latents are still those the list was made on"),
                "note": st.column_config.TextColumn("note", width=330, max_chars=2000),
                "remove": st.column_config.CheckboxColumn("remove", width=80),
            },
        )
        _apply(id, chosen, edited)
    with st.container(horizontal=True, gap="small"):
        if rows:
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


def _apply(id: str, chosen: LatentList, edited: pd.DataFrame) -> None:
    """Write what was edited; open the latent that was ticked."""
    known = data.index().dictionaries
    for item, row in zip(chosen.items, edited.to_dict("records"), strict=False):
        if row["open"] and item.dictionary in known:
            st.switch_page("app_pages/latent.py", query_params=state.link(known[item.dictionary], i=item.latent))
    kept = []
    for item, row in zip(chosen.items, edited.to_dict("records"), strict=False):
        if not row["remove"]:
            note = str(row["note"] or "")
            kept.append(
                item
                if note == visible(item.note)
                else ListItem(dictionary=item.dictionary, latent=item.latent, version=item.version, note=note[:2000])
            )
    if tuple(kept) != chosen.items:
        save_list(data.workspace_folder(), chosen.model_copy(update={"items": tuple(kept)}), id)
        del st.session_state[f"li_table_{id}"]
        st.rerun(scope="fragment")


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
