"""What a newcomer, a researcher and a reviewer once found broken in the browser, each tried as they did it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ui.browsing import Visit
from workbench.results.lists import delete_list, read_lists
from workbench.workspace import Workspace

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
