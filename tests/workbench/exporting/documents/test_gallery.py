"""``workbench export site``: a folder that opens from disk, asks nobody for anything and runs nothing of a token's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import pytest

from sae.errors import MissingError, UsageError
from tests.ui.browsing import CHROMIUM
from tests.ui.synthetic import hostile_tokens, make_workspace, vocabulary
from tests.ui.synthetic_results import add_all
from workbench.exporting import FigureSpec, bundle
from workbench.exporting.documents.gallery import pages as gallery_pages
from workbench.results.lists import LatentList, ListItem, save_list
from workbench.results.matches import MatchRecords
from workbench.results.records import LatentRecords
from workbench.verbs.publishing import export
from workbench.workspace import Workspace

A, B, MATCH = "mini-pythia.L2R-8x", "mini-mamba.L2R-8x", "mini-pythia.L2R-8x__mini-mamba.L2R-8x"
OURS = ("gallery.css", "gallery.js")


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = make_workspace(tmp_path_factory.mktemp("gallery") / "ws", latents=24, hostile=True)
    add_all(made, vocab=vocabulary(hostile=True), text="</script><img src=x onerror=window.__pwn=5>")
    notes = hostile_tokens()
    items = tuple(ListItem(dictionary=d, latent=i, note=notes[i]) for d, i in ((A, 3), (B, 1), (A, 0)))
    save_list(made.root, LatentList(name=notes[0], items=items), "mixed")
    return made


@pytest.fixture(scope="module")
def folder(ws: Workspace) -> Path:
    return export(ws, "site", set={"contexts": 1, "latents": 12}).path


@pytest.fixture(scope="module")
def pages(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*.html"))}


class Read(HTMLParser):
    """Tags, attributes and addresses of a page, as a browser would see them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [v or "" for name, v in attrs if name in ("href", "src", "action", "data", "srcset")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_every_address_is_a_file_of_the_folder_and_no_text_became_markup(pages: dict[str, str], folder: Path) -> None:
    assert len(pages) > 40
    for path, text in pages.items():
        seen = Read(text)
        assert not seen.tags & {"form", "iframe", "object", "embed", "style", "base", "image", "h4"}, path
        assert not [a for a in seen.attributes if a.startswith("on")] and text.count("<script") == 1, path
        for address in seen.addresses:
            assert not re.match(r"[a-z]+:|//|/", address), (path, address)
            target = (folder / PurePosixPath(path).parent / unquote(address.partition("#")[0])).resolve()
            assert target.is_file() and target.is_relative_to(folder), (path, address)
        assert "default-src 'none'" in text and not re.search(r"[\x00-\x08\x0b-\x1f\u202e\u2066]", text)
    for name in OURS:
        assert not re.search(r"https?:|url\(|@import|fetch|XMLHttp|innerHTML", (folder / name).read_text())


def test_what_a_page_says_is_what_the_results_hold(ws: Workspace, pages: dict[str, str]) -> None:
    records = LatentRecords.open(ws.path("latents", A))
    strongest = records.table[records.table["n_fired"] > 0].nlargest(12, "max")
    table = pages[f"latents/{A}/index.html"]
    assert [int(i) for i in re.findall(r'<td class=num><a href="(\d+)\.html">', table)] == strongest["latent"].tolist()
    assert f"the 12 with the largest activations, of {(records.table['n_fired'] > 0).sum()} that fired" in table
    latent = int(strongest["latent"].iloc[0])
    one = pages[f"latents/{A}/{latent}.html"]
    assert f"{records.row(latent)['n_fired']:,}" in one and f"of {records.n_tokens:,} tokens" in one
    assert all(f"{records.available(latent, g):,}" in one for g in records.groups)
    best = MatchRecords.open(ws.path("matches", MATCH)).best
    own = best[(best["dictionary"] == A) & (best["latent"] == latent)].iloc[0]
    assert f"{own['r']:.3f}" in one and f"#{own['partner']}" in one and f"{own['null_q99']:.3f}" in one
    assert "token-conditional" in pages[f"matches/{MATCH}/index.html"]
    evolution, circuits = (
        pages["evolution/mini-pythia.L1R/index.html"],
        pages["circuits/mini-mamba.induction/index.html"],
    )
    assert evolution.count('<svg class="curve"') == 12 and "<img" in evolution and "<img" in circuits
    front = Read(pages["index.html"])
    assert {f"{k}/{i.id}/index.html" for k in ("latents", "matches", "evolution", "circuits") for i in ws.items(k)} == {
        unquote(a) for a in front.addresses if a.count("/") == 2
    }


def test_a_list_is_its_latents_with_their_notes_and_matches(ws: Workspace) -> None:
    made = bundle(FigureSpec(figure="site", options={"list": "mixed", "contexts": 1}), ws)
    latents = {name for name in made.files if re.fullmatch(r"latents/.+/\d+\.html", name)}
    assert latents == {f"latents/{A}/3.html", f"latents/{B}/1.html", f"latents/{A}/0.html"}
    assert not [n for n in made.files if n.startswith(("evolution/", "circuits/"))]
    table = made.files[f"latents/{A}/index.html"].decode()
    assert table.index('"3.html"') < table.index('"0.html"') and "window.__pwn=1&lt;/script&gt;" in table
    shown = made.files[f"matches/{MATCH}/index.html"].decode()
    best = MatchRecords.open(ws.path("matches", MATCH)).best
    here = [
        (d, i) in {(A, 3), (B, 1), (A, 0)} and r == r
        for d, i, r in zip(best["dictionary"], best["latent"], best["r"], strict=True)
    ]
    assert f"{sum(here)} of {sum(here)} directed pairs" in shown and sum(here) > 0


def test_the_same_results_give_the_same_bytes(ws: Workspace) -> None:
    spec = FigureSpec(figure="site", source=f"latents/{A}", options={"contexts": 1, "latents": 3})
    assert bundle(spec, ws).zip == bundle(spec, ws).zip


def test_what_cannot_be_shown_is_refused(ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(**spec: Any) -> None:
        bundle(FigureSpec(figure="site", **spec), ws)

    with pytest.raises(MissingError, match="'nope' is not in"):
        made(options={"list": "nope"})
    with pytest.raises(UsageError, match="not both"):
        made(source=f"latents/{A}", options={"list": "mixed"})
    monkeypatch.setattr(gallery_pages, "MOST", 40)
    with pytest.raises(UsageError, match=r"too many for one folder \(at most 40\)"):
        made()
    with pytest.raises(MissingError, match="workbench features"):
        bundle(FigureSpec(figure="site"), Workspace(tmp_path / "empty"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        yield p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.mark.browser
def test_from_disk_it_asks_nobody_and_its_tables_sort_and_search(browser: Any, folder: Path) -> None:
    page = browser.new_page()
    troubles: list[str] = []
    page.on("request", lambda r: None if r.url.startswith("file://") else troubles.append(r.url))
    page.on("console", lambda m: troubles.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: troubles.append(str(e)))
    page.goto(f"file://{folder}/index.html")
    page.click(f'a[href="latents/{A}/index.html"]')
    rows = page.locator(".sortable tbody tr:visible")
    assert rows.count() == 12
    page.click("th:has-text('fired on')")
    fired = [int(t.replace(",", "")) for t in page.locator("tbody td:nth-child(6)").all_inner_texts()]
    assert fired == sorted(fired, reverse=True) and len(set(fired)) > 1
    page.fill("input[type=search]", "</SCRIPT>")
    wanted = [r for r in page.locator(".sortable tbody tr").all_text_contents() if "</script>" in r.lower()]
    assert rows.count() == len(wanted) < 12 and f"{len(wanted)} of 12" in page.inner_text(".found")
    page.fill("input[type=search]", "")
    page.locator("tbody a").first.click()
    page.wait_for_selector(".wb-stats")
    assert page.locator(".ctx b").count() > 5
    page.goto(f"file://{folder}/evolution/mini-pythia.L1R/index.html")
    page.wait_for_function("[...document.querySelectorAll('img')].some(i => i.naturalWidth > 100)")
    assert page.evaluate("window.__pwn") is None and not troubles
    page.close()


@pytest.mark.browser
def test_it_is_read_without_a_script(browser: Any, folder: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"file://{folder}/latents/{A}/index.html")
    assert page.locator("tbody tr:visible").count() == 12 and page.locator("input").count() == 0
    page.locator("tbody a").first.click()
    assert page.locator(".ctx").first.is_visible()
    context.close()
