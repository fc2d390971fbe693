"""Lists of latents through the pages: many added at once, a list as a filter, another order, a piece of a map."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pandas as pd
import pytest
import streamlit as st
from streamlit.elements.lib import policies
from streamlit.elements.plotly_chart import PlotlySelectionState, PlotlyState
from streamlit.testing.v1 import AppTest

from sae.errors import UsageError
from tests.ui.conftest import latents_of, page_text, param
from workbench.results import lists
from workbench.results.lists import LatentList, ListItem
from workbench.workspace import Workspace
from workbench_ui.kit import listing
from workbench_ui.views import latent_table
from workbench_ui.views.picking import inside

Open = Callable[..., AppTest]
L1, L2 = "mini-pythia.L1R-8x", "mini-pythia.L2R-8x"


def item(latent: int, note: str = "", dictionary: str = L1, version: str = "v") -> ListItem:
    return ListItem(dictionary=dictionary, latent=latent, version=version, note=note)


@pytest.fixture
def copy(full: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(full.root, tmp_path / "copy")
    return Workspace(tmp_path / "copy")


def fill(at: AppTest, name: str, note: str = "") -> AppTest:
    """Name a list that exists in the form, and add."""
    if name:
        at.selectbox(key="al_list").set_value(name)
    at.text_area(key="al_note").set_value(note)
    return at.button(key="al_add").click().run()


def test_many_are_added_at_once_and_notes_stay() -> None:
    old = LatentList(name="x", items=(item(1, "one"), item(2, "two"), item(1, "one again", L2)))
    new = old.with_items([item(9), item(2, "", version="w"), item(1, "new"), item(9, "nine")])
    assert [(x.dictionary, x.latent, x.note, x.version) for x in new.items] == [
        (L1, 1, "new", "v"),
        (L1, 2, "two", "w"),
        (L2, 1, "one again", "v"),
        (L1, 9, "nine", "v"),
    ]
    items = [item(i) for i in range(lists.MAX_ITEMS)]
    began = time.process_time()
    whole = LatentList(name="x").with_items(items)
    assert whole.with_items(items) == whole and time.process_time() - began < 1.0  # n² would take minutes
    with pytest.raises(UsageError, match=r"at most 10,000 latents; 'x' would hold 10,001"):
        whole.with_items([item(lists.MAX_ITEMS)])


def test_a_refused_addition_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_WORKSPACE", str(tmp_path))
    too_many = [item(i) for i in range(lists.MAX_ITEMS + 1)]
    with pytest.raises(UsageError, match="at most 10,000"):
        listing.add_items("new", too_many)
    assert not list(tmp_path.rglob("*"))
    id, made, there = listing.add_items("new", too_many[:3])
    assert len(made.items) == 3 and there == 0
    before = (tmp_path / "lists" / f"{id}.json").read_bytes()
    for add in (lambda: listing.add_items(id, too_many), lambda: lists.add_to_list(tmp_path, id, too_many)):
        with pytest.raises(UsageError):
            add()
    assert (tmp_path / "lists" / f"{id}.json").read_bytes() == before
    assert listing.add_items(" new ", too_many[2:5])[::2] == (id, 1)  # by name: the same list


def test_a_new_list_takes_no_file_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_WORKSPACE", str(tmp_path))
    first = lists.save_list(tmp_path, LatentList(name="a", items=(item(1),)))
    lists.save_list(tmp_path, LatentList(name="renamed", items=(item(1),)), first)
    second, _, _ = listing.add_items("a", [item(2)])
    assert second == f"{first}-2" and len(lists.read_lists(tmp_path)[0][first].items) == 1
    (tmp_path / "lists" / f"{lists.list_id('b')}.json").write_text("{")
    assert lists.save_list(tmp_path, LatentList(name="b")) == f"{lists.list_id('b')}-2"
    lists.save_list(tmp_path, LatentList(name="a"))
    called = listing.names(lists.read_lists(tmp_path)[0])
    assert (
        len(set(called.values())) == len(called) == 4
        and called[first] == "renamed"
        and called[second] == f"a · {second}"
    )


def test_latent_page_adds_one_and_keeps_its_note(open_page: Open, copy: Workspace) -> None:
    id = lists.save_list(copy.root, LatentList(name="mine", items=(item(3, "kept"),)))
    at = fill(open_page(copy, "latent", d=L1, i=3), id)
    version = copy.get("latents", L1).version
    assert not at.exception and lists.read_lists(copy.root)[0][id].items == (item(3, "kept", version=version),)
    assert [t.value for t in at.toast] == ["Latent 3 added to mine (it was there already)"]
    at = fill(open_page(copy, "latent", d=L1, i=4), id, "four")
    assert [(x.latent, x.note) for x in lists.read_lists(copy.root)[0][id].items] == [(3, "kept"), (4, "four")]
    assert at.text_area(key="al_note").value == ""  # the next latent does not inherit it


def test_the_list_used_last_is_one_click_away(open_page: Open, copy: Workspace) -> None:
    id = lists.save_list(copy.root, LatentList(name="mine"))
    at = open_page(copy, "latent", d=L1, i=3)
    assert "wb_list_again" not in {b.key for b in at.button}  # none was used yet
    at = fill(at, id, "three")
    at.query_params["i"] = "4"
    at = at.run()
    assert at.button(key="wb_list_again").label == "Add to mine"
    at = at.button(key="wb_list_again").click().run()
    assert [(x.latent, x.note) for x in lists.read_lists(copy.root)[0][id].items] == [(3, "three"), (4, "")]
    assert [t.value for t in at.toast] == ["Latent 4 added to mine"]
    lists.delete_list(copy.root, id)
    assert "wb_list_again" not in {b.key for b in at.run().button}


def test_a_latent_of_a_list_is_a_link_that_opens_in_a_new_tab(open_page: Open, copy: Workspace) -> None:
    version = copy.get("latents", L1).version
    id = lists.save_list(copy.root, LatentList(name="mine", items=(item(7), item(2, dictionary="gone"))))
    at = open_page(copy, "lists", list=id)
    links = at.dataframe[0].value["latent"].tolist()
    assert links == [f"/latent?d={L1}&v={version}&i=7", "/latent?d=gone&i=2"]
    query = dict(parse_qsl(urlsplit(links[0]).query))
    assert "Latent 7</h1>" in page_text(open_page(copy, "latent", **query))
    assert "is not in this workspace" in page_text(open_page(copy, "latent", d="gone", i=2))


def test_latents_page_adds_all_that_fit_in_their_order(open_page: Open, copy: Workspace) -> None:
    id = lists.save_list(copy.root, LatentList(name="mine"))
    at = fill(open_page(copy, "latents", d=L1, q="pattern", o="density", dir="low first"), id, "same")
    want = latent_table.select(
        str(copy.path("latents", L1)), "x", latent_table.Query(text="pattern", sort="density", descending=False)
    ).tolist()
    items = lists.read_lists(copy.root)[0][id].items
    assert not at.exception and len(want) > 50 and [x.latent for x in items] == want
    assert {(x.dictionary, x.version, x.note) for x in items} == {(L1, copy.get("latents", L1).version, "same")}
    assert at.toast[0].value == f"{len(want):,} latents added to mine"


def test_too_many_latents_are_refused_in_words(
    open_page: Open, copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = lists.save_list(copy.root, LatentList(name="mine", items=(item(199), item(198))))
    monkeypatch.setattr(lists, "MAX_ITEMS", 2)
    at = fill(open_page(copy, "latent", d=L1, i=3), id)
    assert not at.exception and "a list holds at most 2 latents; &#x27;mine&#x27; would hold 3" in page_text(at)
    monkeypatch.setattr(listing, "MAX_ITEMS", 2)
    at = open_page(copy, "latents", d=L1)
    assert "a list holds at most 2. Narrow the choice." in page_text(at) and not at.text_area
    assert len(lists.read_lists(copy.root)[0][id].items) == 2


def test_a_list_is_a_filter_of_the_latents_page(open_page: Open, copy: Workspace) -> None:
    version = copy.get("latents", L1).version
    items = (
        item(7, version=version),
        item(3, version="old"),
        item(5, dictionary=L2),
        item(36, version=version),
        item(9_999_999),
    )
    id = lists.save_list(copy.root, LatentList(name="<b>mine", items=items))
    at = open_page(copy, "latents", d=L1, list=id)
    text = page_text(at)
    assert set(latents_of(at)) == {7, 3}  # 36 never fired
    assert "<b>2</b> of 4 latents in the list <b>&lt;b&gt;mine</b> · 1 more are of other dictionaries" in text
    assert "2 were added on other data" in text
    at.toggle(key="al").set_value(False).run()
    assert set(latents_of(at)) == {7, 3, 36} and param(at, "list") == id
    at.button(key="la_unlist").click().run()
    assert len(latents_of(at)) == 50 and "list" not in at.query_params
    at.selectbox(key="list").set_value(id).run()
    assert len(latents_of(at)) == 3 and param(at, "list") == id
    text = page_text(open_page(copy, "latents", d=L1, list="../../no <such>"))
    assert "The list <b>../../no &lt;such&gt;</b> is not in this workspace" in text and "of 256 latents" in text


def test_lists_page_opens_the_table_of_each_dictionary(open_page: Open, copy: Workspace) -> None:
    id = lists.save_list(
        copy.root, LatentList(name="mine", items=(item(7), item(3), item(1, dictionary="gone.L1R-8x")))
    )
    at = open_page(copy, "lists", list=id)
    at.button(key=f"li_table_of_{L1}").click().run()
    assert "<h1>Latents</h1>" in page_text(at) and (param(at, "d"), param(at, "list")) == (L1, id)
    assert set(latents_of(at)) == {7, 3}
    lists.add_to_list(copy.root, id, [item(5, dictionary=L2)])
    at = open_page(copy, "lists", list=id)
    assert [b.label for b in at.button if "li_table_of" in str(b.key)] == [
        r"mini\-pythia\.L1R\-8x · 2",
        r"mini\-pythia\.L2R\-8x · 1",
    ]
    at.button(key=f"li_table_of_{L2}").click().run()
    assert latents_of(at) == [5]


def rows(items: tuple[ListItem, ...], **changes: Any) -> list[dict[str, Any]]:
    out = [{"no.": j + 1, "note": x.note, "remove": False} for j, x in enumerate(items)]
    for key, value in changes.items():
        column, _, j = key.rpartition("_")
        out[int(j)][{"no": "no."}.get(column, column)] = value
    return out


@pytest.mark.parametrize(
    "changes, order",
    (
        ({}, "abcd"),
        ({"no_3": 1}, "dabc"),
        ({"no_0": 3}, "bcad"),
        ({"no_1": 999}, "acdb"),
        ({"no_2": -5}, "cabd"),
        ({"no_2": float("nan")}, "abcd"),
        ({"no_3": 2, "remove_0": True}, "dbc"),
        ({"no_0": 2, "note_0": "x"}, "bxcd"),
    ),
)
def test_another_number_moves_the_row_there(changes: dict[str, Any], order: str) -> None:
    items = tuple(item(j, note) for j, note in enumerate("abcd"))
    assert "".join(x.note for x in listing.edited(items, rows(items, **changes))) == order


def test_lists_page_writes_the_new_order(open_page: Open, copy: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    id = lists.save_list(copy.root, LatentList(name="mine", items=(item(7, "a"), item(3, "b"), item(5, "c"))))
    keys = []

    def edit(frame: pd.DataFrame, key: str, **kw: Any) -> pd.DataFrame:
        keys.append(key)
        if len(keys) == 1:
            frame.loc[2, "no."] = 0
        return frame

    monkeypatch.setattr(st, "data_editor", edit)
    at = open_page(copy, "lists", list=id)
    assert not at.exception and [x.note for x in lists.read_lists(copy.root)[0][id].items] == ["c", "a", "b"]
    assert len(set(keys)) == 2  # the edit of row 3 must not meet the latent that is there now


def test_large_lists_open_within_seconds(open_page: Open, copy: Workspace) -> None:
    id = lists.save_list(
        copy.root, LatentList(name="mine", items=tuple(item(j, dictionary=f"d{j // 200}") for j in range(9_800)))
    )
    version = copy.get("latents", L1).version
    lists.add_to_list(copy.root, id, [item(j, version=version) for j in range(200)])
    open_page(copy, "lists", list=id)
    began = time.process_time()
    at = open_page(copy, "lists", list=id)
    assert not at.exception and time.process_time() - began < 3.0


def test_inside_a_box_or_lasso() -> None:
    points = pd.DataFrame({"x": [0.0, 1, 2, 3, 2.5], "y": [0.0, 1, 2, 3, 0.5]})
    assert np.flatnonzero(inside(points, [{"x": [2.2, 0.5], "y": [0.5, 2.2]}], [])).tolist() == [1, 2]
    # a C around (1, 1) and (2, 2) that leaves (2.5, 0.5) between its arms
    c = {"x": [0.5, 3, 3, 1.5, 1.5, 3, 3, 0.5], "y": [0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 2.5, 2.5]}
    assert np.flatnonzero(inside(points, [], [c])).tolist() == [1, 2]
    assert np.flatnonzero(inside(points, [{"x": [-1, 0.1], "y": [-1, 0.1]}], [c])).tolist() == [0, 1, 2]
    assert not inside(points, [{"x": [], "y": []}, {}], [{"x": [0, 9], "y": [0, 9]}]).any()


@pytest.mark.parametrize("drawn", (None, 20))
def test_a_piece_of_the_map_goes_into_a_list(
    open_page: Open, copy: Workspace, monkeypatch: pytest.MonkeyPatch, drawn: int | None
) -> None:
    """A box over two dictionaries and one that is gone: all latents inside, drawn or not, except those the legend
    hides.
    """
    path = copy.path("maps", L1) / "points.parquet"
    points = pd.read_parquet(path)
    n = len(points)
    points["dictionary"] = [(L1, L2, "gone.L1R-8x", "mini-pythia@step512.L2R-8x")[j % 4] for j in range(n)]
    points.to_parquet(path, index=False)
    box = {"xref": "x", "yref": "y", "x": [-1.0, 0.8], "y": [1.1, -0.9]}
    held = points[points["x"].between(-1, 0.8) & points["y"].between(-0.9, 1.1)]
    hidden = held["dictionary"] == "mini-pythia@step512.L2R-8x"
    here = held[~hidden & (held["dictionary"] != "gone.L1R-8x")]
    picked = [{"customdata": [name, 0]} for name in (L1, L2, "gone.L1R-8x")]
    id = lists.save_list(copy.root, LatentList(name="mine"))
    state = {"points": picked, "point_indices": [], "box": [box], "lasso": []}
    monkeypatch.setattr(
        st,
        "plotly_chart",
        lambda *a, key="", **kw: (
            PlotlyState({"selection": PlotlySelectionState(state)}) if key.startswith("ma_m") else None
        ),
    )
    at = open_page(copy, "map")
    assert (
        f"<b>{(~hidden).sum()}</b> latents chosen · {(~hidden).sum() - len(here)} of a dictionary that is not"
        in page_text(at)
    )
    fill(at, id, "a family")
    items = lists.read_lists(copy.root)[0][id].items
    assert not at.exception and [(x.dictionary, x.latent) for x in items] == list(
        zip(here["dictionary"], here["latent"], strict=True)
    )
    assert {x.version for x in items} == {copy.get("latents", d).version for d in (L1, L2)} and len(items) > 10


def test_a_click_on_the_map_opens_the_latent(open_page: Open, full: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"points": [{"customdata": [L1, 7]}], "point_indices": [0], "box": [], "lasso": []}
    monkeypatch.setattr(
        st,
        "plotly_chart",
        lambda *a, key="", **kw: (
            PlotlyState({"selection": PlotlySelectionState(state)}) if key.startswith("ma_m") else None
        ),
    )
    at = open_page(full, "map")
    assert "Latent 7" in page_text(at) and (param(at, "d"), param(at, "i")) == (L1, "7")


def test_pages_follow_the_address_without_a_warning(
    open_page: Open, full: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(policies, "_shown_default_value_warning", False)  # said once per process otherwise
    monkeypatch.setattr(policies._LOGGER, "warning", lambda text, *a, **kw: said.append(text % a))
    at = open_page(full, "latents", d=L1)
    seen = []
    for number in ("2", "3", "2", "77", "1"):  # the address moves by itself: a link, back, nonsense
        at.query_params["page"] = number
        at.run()
        seen.append(latents_of(at))
    assert said == [] and not at.exception
    assert seen[0] == seen[2] != seen[1] and seen[3] == seen[4] and not set(seen[0]) & set(seen[4])


def test_a_note_typed_while_another_tab_adds_is_kept() -> None:
    was = (item(1, "one"), item(2), item(3))
    now = (item(9), item(2), item(1, "one"))  # one came, one went, the order is another
    edits = {0: {"note": "typed"}, 1: {"note": "two", "no.": 1}, 2: {"note": "gone"}, 7: {"note": "nowhere"}}
    found, lost = listing.carried(was, edits, now)
    assert [(x.latent, x.note) for x in found] == [(9, ""), (2, "two"), (1, "typed")] and lost == 2
    assert listing.carried(was, {0: {"open": True}}, now) == (now, 0)
