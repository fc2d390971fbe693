"""Every page on whole, minimal, damaged and hostile workspaces: a panel says what is wrong, never a traceback."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.ui.conftest import latents_of, page_text, param, table_of
from tests.ui.synthetic import hostile_tokens
from workbench.workspace import Workspace

Open = Callable[..., AppTest]
PAGES = (
    "overview",
    "results",
    "latents",
    "latent",
    "probe",
    "mppc",
    "pair",
    "training",
    "induction",
    "states",
    "map",
    "graph",
    "text",
    "lists",
    "export",
    "about",
)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("kind", ("full", "minimal", "damaged", "hostile"))
def test_page_has_no_exception(page: str, kind: str, open_page: Open, request: pytest.FixtureRequest) -> None:
    workspace = request.getfixturevalue(kind)
    at = open_page(workspace, page)  # one that is not in the navigation answers its address, too
    assert not at.exception
    assert "wb-foot" in page_text(at)  # the script ran to its end
    assert len(page_text(at)) > 300


def test_empty_workspace_names_the_command(open_page: Open, empty: Workspace) -> None:
    at = open_page(empty)
    assert not at.exception
    assert f"workbench demo --workspace {empty.root}" in page_text(at)


def test_missing_and_newer_workspace(open_page: Open, tmp_path: Path) -> None:
    at = open_page(tmp_path / "nowhere")
    assert not at.exception and "does not exist" in page_text(at)
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "workspace.json").write_text(json.dumps({"schema": 99}))
    at = open_page(newer)
    assert not at.exception and "schema 99" in page_text(at)


def test_overview_lists_numbers_and_gaps(open_page: Open, full: Workspace) -> None:
    at = open_page(full)
    table = table_of(at)
    assert table["model"] == ["mini-pythia"] * 3 + ["mini-mamba"] * 2
    assert table["snapshot"][:2] == ["step512", "final"]
    assert table["explained variance"] == ["0.87"] * 5 and table["dead %"] == ["2"] * 5
    assert table["can be browsed"] == ["yes"] * 4 + ["not computed"]
    assert f"workbench features mini-mamba.L2S-8x --workspace {full.root}" in page_text(at)


def test_overview_names_what_cannot_be_read(open_page: Open, damaged: Workspace) -> None:
    text = page_text(open_page(damaged))
    assert "models/mini-mamba cannot be read" in text
    assert "dictionaries/mini-mamba.L2S-8x cannot be read" in text and "schema 99" in text


def test_latent_shows_its_anatomy(open_page: Open, full: Workspace) -> None:
    at = open_page(full, "latent", d="mini-pythia.L2R-8x", i=5)
    text = page_text(at)
    for part in (
        "Latent 5",
        "Density",
        "Kurtosis",
        'class="hist"',
        "show as table",
        "Direct logit effect",
        "Near misses",
        "shown of",
    ):
        assert part in text, part
    neighbours = text[text.index("<h2>Neighbours") :]
    assert re.search(r'<a href="latent\?[^"]*i=(\d+)"[^>]*>#\1</a>', neighbours)
    assert param(at, "i") == "5" and param(at, "v") == _version(full, "mini-pythia.L2R-8x")


def _version(ws: Workspace, id: str) -> str:
    return ws.get("latents", id).version


def test_latent_says_what_was_not_computed(open_page: Open, minimal: Workspace) -> None:
    text = page_text(open_page(minimal, "latent"))
    assert "Direct logit effect – not computed" in text and "Neighbours – not computed" in text
    assert "workbench features m.L0R-4x" in text


def test_damaged_records_become_a_panel(open_page: Open, damaged: Workspace) -> None:
    for id, words in (
        ("mini-pythia.L1R-8x", "hist.npy is missing"),
        ("mini-pythia.L2R-8x", "group_ctx.npy"),
        ("mini-mamba.L2R-8x", "parquet"),
    ):
        for page in ("latents", "latent"):
            at = open_page(damaged, page, d=id)
            assert not at.exception
            assert words.lower() in page_text(at).lower() and "cannot be shown" in page_text(at), (id, page)


def test_dictionary_without_records(open_page: Open, full: Workspace) -> None:
    for page in ("latents", "latent"):
        at = open_page(full, page, d="mini-mamba.L2S-8x")
        assert "workbench features mini-mamba.L2S-8x" in page_text(at)


def test_dead_latent_shows_no_zeros(open_page: Open, full: Workspace) -> None:
    text = page_text(open_page(full, "latent", d="mini-pythia.L2R-8x", i=36))
    assert "never fired" in text
    assert re.search(r'>Max</a></div><div class="v">–</div>', text)


@pytest.mark.parametrize(
    "address",
    ({"d": "../../etc/passwd"}, {"d": "x" * 100_000}, {"i": "../../etc/passwd"}, {"i": "999999999"}, {"i": "-1"}),
)
def test_nonsense_addresses(address: dict[str, str], open_page: Open, full: Workspace) -> None:
    at = open_page(full, "latent", **{"d": "mini-pythia.L1R-8x", **address})
    text = page_text(at)
    assert not at.exception and "root:" not in text
    assert "is not in this workspace" in text or "There is no latent" in text
    assert len(param(at, "d")) < 500


def test_old_link_warns_and_can_be_renewed(open_page: Open, full: Workspace) -> None:
    at = open_page(full, "latent", d="mini-pythia.L1R-8x", i=3, v="deadbeef")
    assert "made on data version <code>deadbeef</code>" in page_text(at)
    at.button(key="wb_use_version").click().run()
    assert "deadbeef" not in page_text(at)
    assert param(at, "v") == _version(full, "mini-pythia.L1R-8x")


def test_next_previous_and_jump(open_page: Open, full: Workspace) -> None:
    at = open_page(full, "latent", d="mini-pythia.L1R-8x", i=7)
    at.button(key="wb_next").click().run()
    assert param(at, "i") == "8" and "Latent 8" in page_text(at)
    at.button(key="wb_prev").click().run()
    assert param(at, "i") == "7"
    at.number_input(key="wb_jump").set_value(42).run()
    assert param(at, "i") == "42" and "Latent 42" in page_text(at)


def test_selectors_keep_the_place(open_page: Open, full: Workspace) -> None:
    at = open_page(full, "latent", d="mini-pythia.L2R-8x")
    at.selectbox(key="ctx_model").set_value("mini-mamba").run()
    assert param(at, "d") == "mini-mamba.L2R-8x"
    at.selectbox(key="ctx_model").set_value("mini-pythia").run()
    at.selectbox(key="ctx_revision").set_value("step512").run()
    assert param(at, "d") == "mini-pythia@step512.L2R-8x"


def test_row_opens_the_latent(open_page: Open, full: Workspace) -> None:
    at = open_page(full, "latents", d="mini-pythia.L1R-8x")
    shown = latents_of(at)
    html = next(str(e.value) for e in at.get("html") if "data-row" in str(e.value))
    link = re.findall(r'<tr data-row[^>]*><td[^>]*><a href="latent\?([^"]+)"[^>]* data-dictionary="([^"]+)"', html)[2]
    assert f"i={shown[2]}" in link[0] and link[1] == "mini-pythia.L1R-8x"


def test_search_sort_and_filters(open_page: Open, full: Workspace) -> None:
    at = open_page(full, "latents", d="mini-pythia.L1R-8x", q="pattern 3")
    labels = table_of(at)["what it fires on"]
    assert labels and all("pattern 3" in x for x in labels)
    at = open_page(full, "latents", d="mini-pythia.L1R-8x", o="density")
    density = [float(v) for v in table_of(at)["density %"]]
    assert density == sorted(density, reverse=True)
    at = open_page(full, "latents", d="mini-pythia.L1R-8x", q="no such thing at all")
    assert "No latent fits" in page_text(at) and "wb-rows" not in page_text(at)


def test_hostile_strings_stay_text(open_page: Open, hostile: Workspace) -> None:
    for page in PAGES:
        at = open_page(hostile, page, d="mini-pythia.L1R-8x")
        text = page_text(at)
        for bad in (
            "<script",
            "<img",
            "<svg",
            "<style>body",
            "<form",
            "<h1 class='pwned'",
            "onerror='",
            "\u202e",
            "\x00",
            "\u200b",
        ):
            assert bad not in text, (page, bad)
        for element in (*at.markdown, *at.caption, *at.button, *at.selectbox):
            shown = str(getattr(element, "value", "")) + str(getattr(element, "label", ""))
            assert not any(t in shown for t in hostile_tokens() if len(t) > 12)


def test_workspace_replaced_under_the_running_page(open_page: Open, full: Workspace, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(full.root, copy)
    at = open_page(copy, "latent", d="mini-pythia.L1R-8x", i=3)
    assert "Latent 3" in page_text(at)
    shutil.rmtree(copy / "latents" / "mini-pythia.L1R-8x")
    at.run()
    assert not at.exception and "not computed" in page_text(at)
    shutil.rmtree(copy)
    at.run()
    assert not at.exception and "does not exist" in page_text(at)
