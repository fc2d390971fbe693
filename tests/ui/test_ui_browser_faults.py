"""What a newcomer, a researcher and a reviewer once found broken in the browser, each tried as they did it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import streamlit as st

from tests.ui.browsing import Visit, heading, query_of
from workbench.results.lists import delete_list, read_lists
from workbench.results.records import LatentRecords
from workbench.workspace import Workspace
from workbench_ui.server import early_links

pytestmark = pytest.mark.browser
COLOUR = "getComputedStyle(document.querySelector('.ctx b.t8')).backgroundColor"


def add_to_list(page: Any, name: str, said: str) -> None:
    """Open the form, name a list, add."""
    page.get_by_role("button", name="Add to list").click()
    field = page.get_by_role("combobox", name="List")
    field.fill(name)
    field.press("Enter")
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_text(said).wait_for()


def test_adding_to_a_list_leaves_the_look_alone(visit: Visit, full: Workspace) -> None:
    page = visit.open("latent?d=mini-pythia.L1R-8x&i=7")
    before = page.evaluate(COLOUR)
    assert before != "rgba(0, 0, 0, 0)"
    add_to_list(page, "Look", "Latent 7 added")
    try:
        page.get_by_text("Latent 7 added").wait_for(state="hidden")  # the toast has come and gone
        assert page.evaluate(COLOUR) == before
        assert page.locator(".st-key-wb_look style").count() == 1
    finally:
        for id, x in read_lists(full.root)[0].items():
            if x.name == "Look":
                delete_list(full.root, id)


def test_every_address_answers_with_a_sentence(visit: Visit, browser: Any, site: str) -> None:
    errors: list[str] = []
    visit.page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page = visit.open("latent?d=mini-pythia.L1R-8x&i=7")
    assert errors == []  # a deep link looks nowhere else first
    visit.open("latent/?i=9&d=mini-pythia.L1R-8x")
    assert "/latent?" in page.url and "i=9" in page.url
    for path in ("latent/x", "nothing", "latent/x/y"):
        found = page.goto(f"{site}/{path}")
        assert found.status == 404 and "There is no such page" in page.locator("body").inner_text()
        page.get_by_role("link", name="Open the start page").click()
        page.wait_for_selector(".wb-foot")


def test_a_new_tab_asks_at_once_for_what_a_page_is_made_of(visit: Visit) -> None:
    page = visit.open("latent?d=mini-pythia.L1R-8x&i=7")
    named = page.evaluate("[...document.querySelectorAll('head link[href]')].map(l => l.href)")
    asked = page.evaluate("performance.getEntriesByType('resource').map(r => r.name)")
    scripts = {url.rpartition("/")[2] for url in asked if re.search(r"/static/js/.*\.js$", url)}
    there = {url.rpartition("/")[2] for url in named}
    static = Path(st.__file__).parent / "static"
    # charts and what only they import are read once this page rests, which it may do already
    drawing = "".join(set(early_links(static, charts=True)) - set(early_links(static)))
    later = {n for n in scripts if n.startswith("index.") or n in drawing}
    assert len(scripts) > 60 and scripts - there - later == set()
    assert sum(n.startswith(("MaterialSymbols-", "SourceCodeVF-Upright")) for n in there) == 2
    read = "performance.getEntriesByType('resource').some(r => r.name.includes('/PlotlyChart.'))"
    page.wait_for_function(read)  # the next page may hold some
    page = visit.open("mppc")
    assert page.evaluate("[...document.querySelectorAll('head link')].some(l => l.href.includes('/PlotlyChart.'))")


L1 = "mini-pythia.L1R-8x"


def records(ws: Workspace) -> LatentRecords:
    return LatentRecords.open(ws.path("latents", L1))


def first_row(page: Any) -> str:
    return str(page.locator(".wb-rows tbody tr").first.inner_text())


def test_a_header_sorts_all_rows_and_a_row_is_a_link(visit: Visit, full: Workspace) -> None:
    page = visit.open(f"latents?d={L1}")
    table = records(full).table
    page.get_by_role("link", name=re.compile("^density %")).click()
    page.wait_for_selector("th[aria-sort=descending]")
    visit.settle()
    top = int(table.loc[table["density"].idxmax(), "latent"])
    assert first_row(page).startswith(f"{top:,}\t") and "o=density" in page.url
    page.get_by_role("link", name=re.compile("^density %")).click()
    page.wait_for_selector("th[aria-sort=ascending]")
    visit.settle()
    fired = table[table["n_fired"] > 0]
    assert first_row(page).split("\t")[0] == f"{int(fired.loc[fired['density'].idxmin(), 'latent']):,}"
    page.get_by_role("link", name="Page 3").first.click()
    page.wait_for_url(re.compile("page=3"))
    page.get_by_role("searchbox").or_(page.locator(".st-key-q input")).first.fill("pattern 3")  # no Enter
    page.wait_for_url(re.compile("q=pattern"))
    visit.settle()
    assert "page=" not in page.url  # another search starts at its first page
    cell = page.locator(".wb-rows tbody tr").first.locator("td").nth(4)
    with page.context.expect_page() as other:
        cell.click(modifiers=["Control"])
    assert "/latent?" in other.value.url
    other.value.close()
    cell.click()
    page.wait_for_url(re.compile(r"/latent\?.*q=pattern"))
    page.wait_for_function("document.querySelector('.wb-title .sub')?.textContent.includes('that hold')")


def test_no_press_of_j_is_lost(visit: Visit) -> None:
    page = visit.open(f"latent?d={L1}&i=100")
    page.locator(".wb-title h1").click()
    # ten presses in one task of the browser, in which no answer can come: the number is there at once
    said = page.evaluate(
        """() => {
            const press = () => document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'j', bubbles: true }))
            for (let n = 0; n < 10; n++) press()
            return document.querySelector('.wb-title h1').textContent
        }"""
    )
    assert said == "Latent 110"
    page.wait_for_url(re.compile(r"i=110\b"))
    for _ in range(3):
        page.keyboard.press("k")
    page.wait_for_url(re.compile(r"i=107\b"))
    visit.settle()
    assert page.locator(".wb-title h1").inner_text() == "Latent 107"


def test_contexts_of_the_neighbours_are_there_before_the_server_answers(visit: Visit) -> None:
    page = visit.open(f"latent?d={L1}&i=100")
    page.locator(".wb-title h1").click()
    text = "() => document.querySelector('.st-key-wb_contexts .wb-ctxs').innerText"
    looks = "() => document.querySelector('.st-key-wb_contexts .stHtml').innerHTML"
    at_100, looked = page.evaluate(text), page.evaluate(looks)
    both = page.evaluate(
        f"""() => {{  // in one task of the browser, in which no answer can come
            const press = (key) => document.body.dispatchEvent(new KeyboardEvent('keydown', {{ key, bubbles: true }}))
            press('j')
            const there = [({text})(), ({looks})()]
            press('k')
            const back = ({text})()
            press('j')
            return [...there, back]
        }}"""
    )
    page.wait_for_url(re.compile(r"i=101\b"))
    visit.settle()
    assert both[0] == page.evaluate(text) != at_100 and both[2] == at_100
    assert both[1] == page.evaluate(looks) != looked  # to the last attribute what the server then says
    assert page.locator(".stHtml[data-other], :root[data-late]").count() == 0


def test_the_latent_at_hand_survives_the_menu(visit: Visit) -> None:
    a, b = "mini-pythia.L2R-8x", "mini-mamba.L2R-8x"
    page = visit.open(f"latent?d={a}&i=5")
    page.keyboard.press("p")
    page.wait_for_url(re.compile("p=mini-pythia"))
    page.get_by_role("link", name="Text probe", exact=True).first.click()
    heading(page, "Text probe")
    said = page.locator(".wb-thread").inner_text()
    assert "mini-pythia layer 2 #5" in said and "mini-mamba layer 2 #5" in said and "twin" in said
    visit.settle()
    page.locator(".wb-thread a").nth(1).click()  # to the twin: the pinned one is B now
    heading(page, "Latent 5")
    page.wait_for_function("document.querySelector('.wb-thread')?.textContent.includes('pinned')")
    page.get_by_role("link", name="both on the same tokens →", exact=True).click()
    heading(page, "Pair")
    visit.settle()
    asked = query_of(page.url)
    assert (asked["d"], asked["i"], asked["d2"], asked["i2"]) == (b, "5", a, "5")


def test_commands_run_as_copied(visit: Visit, full: Workspace) -> None:
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = visit.open("latents?d=mini-mamba.L2S-8x")
    page.get_by_role("button", name="Copy the command").first.click()
    page.get_by_text("copied").wait_for()
    said = page.evaluate("navigator.clipboard.readText()")
    program, *rest = shlex.split(said)
    assert Path(program).is_absolute() and Path(program).is_file()
    assert rest[-1] == str(full.root) and "features" in rest


def test_figures_below_the_fold_are_drawn_when_one_comes_near(visit: Visit) -> None:
    page = visit.open("mppc")
    first = page.locator(".st-key-mx_dist_fig .main-svg").first
    first.wait_for()
    below = page.locator("[class*=st-key-mx_given_fig] .js-plotly-plot")
    assert below.count() == 0  # a Plotly figure costs the browser a tenth of a second, seen or not
    assert page.get_by_role("heading", name="Given the token").count() == 0  # nor does its section cost anything yet
    page.locator(".st-key-mx_token_near").scroll_into_view_if_needed()
    below.first.wait_for()
    assert page.get_by_role("heading", name="Given the token").count() == 1
    visit.settle()
    page.get_by_text("mini-mamba → mini-pythia", exact=True).first.click()  # another direction: it stays drawn
    page.wait_for_url(re.compile("way=ba"))
    visit.settle()
    assert below.count() >= 1
