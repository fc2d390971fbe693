"""Whole ways through the pages in a real Chromium: every page by link and back, hostile text everywhere, exported pages
offline.
"""

from __future__ import annotations

import http.server
import re
import statistics
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ui.browsing import CONTRAST, OUTSIDE, Visit, heading, query_of, serve
from tests.ui.serving import CLICK_TO_PAINT
from tests.ui.synthetic import hostile_tokens, make_workspace, vocabulary
from tests.ui.synthetic_results import add_all
from workbench.exporting import FigureSpec, bundle
from workbench.results.labels import save_label
from workbench.results.lists import LatentList, ListItem, add_to_list, save_list
from workbench.workspace import Workspace
from workbench_ui.components.history import COMPLETED
from workbench_ui.kit.pages import PAGES

pytestmark = pytest.mark.browser


FRONT = "What has a language model learnt?"
LINKS = {
    "overview": ("?sites=residual+stream", FRONT),
    "results": ("results?c=llama-scope.folding", "Results"),
    "latents": ("latents?d=mini-mamba.L2R-8x&q=pattern&o=density", "Latents"),
    "latent": ("latent?d=mini-pythia.L2R-8x&i=7&g=Top", "Latent 7"),
    "probe": ("probe?d=mini-mamba.L2R-8x&i=9", "Text probe"),
    "mppc": ("mppc?way=ba", "Matches"),
    "pair": ("pair?d=mini-mamba.L2R-8x&i=5&d2=mini-pythia.L2R-8x&i2=5", "Pair"),
    "training": ("training?ls=5_9", "Training"),
    "induction": ("induction?mb=mini-mamba.induction&met=logit_diff", "Induction & state"),
    "states": ("states?st=mini-mamba.induction&tok=2", "What is written and read"),
    "graph": ("graph?gr=mini-pythia.prompt.12345678", "Graph"),
    "map": ("map?map=mini-pythia.L1R-8x", "Map"),
    "text": ("text", "A look at the data"),
    "lists": ("lists", "Lists"),
    "export": ("export?f=latent_densities&src=latents%2Fmini-pythia.L1R-8x", "Export"),
    "about": ("about", "About"),
}


@pytest.mark.parametrize("scheme", ("light", pytest.param("dark", marks=pytest.mark.slow)))
def test_every_page_by_link_and_back_is_readable(browser: Any, site: str, scheme: str) -> None:
    """Deep link, state, another page, back: the same page in the same state; text large and dark enough, nothing
    outside of its place.
    """
    assert set(LINKS) == {p.stem for p in PAGES}
    tab = Visit(browser, site, scheme)
    try:
        for stem, (link, title) in LINKS.items():
            page = tab.open(link)
            heading(page, title)
            state = query_of(page.url)
            assert state.items() >= query_of(f"{site}/{link}").items(), stem
            assert set(state) - set(query_of(f"{site}/{link}")) <= set(COMPLETED.get(stem, ())), stem
            assert page.evaluate(CONTRAST) == [] and page.evaluate(OUTSIDE) == [], stem
            assert page.evaluate("document.documentElement.scrollWidth") <= 1440, stem
            other = "Latents" if stem == "overview" else "Overview"
            page.get_by_role("link", name=other, exact=True).first.click()
            heading(page, "Latents" if stem == "overview" else FRONT)
            tab.settle()
            page.go_back()
            heading(page, title)
            tab.settle()
            assert query_of(page.url).items() >= query_of(f"{site}/{link}").items(), stem
            assert page.locator(".stException").count() == 0
        page.evaluate(
            "document.querySelector('.wb-foot span').style.cssText = 'color: #777; background: #888; font-size: 11px'"
        )
        assert any("11px" in text for text in page.evaluate(CONTRAST)), "the check itself must see bad text"
        assert tab.troubles == []
    finally:
        tab.context.close()


def test_back_leads_through_the_pages_as_they_were(visit: Visit) -> None:
    """One step back per page or latent, whatever the pages wrote into the address by themselves; filters come back,
    too.
    """
    page = visit.open("?arch=Mamba")
    seen = [page.url]
    for name, title in (("Latents", "Latents"), ("Latent", None), ("Text probe", "Text probe"), ("Overview", FRONT)):
        page.get_by_role("link", name=name, exact=True).first.click()
        page.wait_for_function(
            "t => { const h = document.querySelector('.wb-title h1')?.textContent; return t ? h === t :"
            " h?.startsWith('Latent ') }",
            arg=title,
        )
        visit.settle(2)  # a write that the server still owes would come after the next step
        seen.append(page.url)
        if name == "Latent":
            was = page.locator(".wb-title h1").inner_text()
            page.get_by_role("button", name="Next").click()
            page.wait_for_function("was => document.querySelector('.wb-title h1')?.textContent !== was", arg=was)
            visit.settle(2)
            seen.append(page.url)
    assert len(set(seen)) == len(seen) == 6
    for url in reversed(seen[:-1]):
        page.go_back()
        page.wait_for_url(url)
        visit.settle(2)
    assert page.url.endswith("arch=Mamba")
    assert page.get_by_role("button", name="Transformer").get_attribute("data-selected") in (None, "false")


def test_a_write_that_comes_after_a_step_back_is_no_step_on(visit: Visit) -> None:
    """What the server still owes from the page before; what the reader does next is a step again."""
    page = visit.open("latent?d=mini-pythia.L2R-8x&i=7")
    was = page.locator(".wb-title h1").inner_text()
    page.get_by_role("button", name="Next").click()
    page.wait_for_function("was => document.querySelector('.wb-title h1')?.textContent !== was", arg=was)
    visit.settle(2)
    page.go_back()
    page.wait_for_function("was => document.querySelector('.wb-title h1')?.textContent === was", arg=was)
    visit.settle(2)
    late = "() => history.pushState(null, '', location.href.replace(/([?&]i=)7/, '$18'))"
    url = page.url
    page.evaluate(late)
    assert page.url == url and query_of(page.url)["i"] == "7"
    page.keyboard.press("Shift")
    page.evaluate(late)
    assert query_of(page.url)["i"] == "8"


@pytest.mark.slow
def test_text_is_typed_read_and_steered(browser: Any, real: Workspace) -> None:
    for site in serve(real):
        tab = Visit(browser, site)
        page = tab.open("probe?d=mini-pythia.L1R-1x")
        page.get_by_label("Text", exact=True).fill("def read(self):\n    return open(")
        page.get_by_role("button", name="Read the text").click()
        page.wait_for_function("document.querySelectorAll('.wb-ctxs').length === 2", timeout=180_000)
        tab.settle()
        assert query_of(page.url)["text"] == "def read(self):\n    return open("
        assert page.evaluate(OUTSIDE) == [] and page.evaluate(CONTRAST) == []
        page.get_by_role("slider").first.focus()
        for _ in range(8):
            page.keyboard.press("ArrowRight")
        page.get_by_text(re.compile(r"pushed by .* KL [\d.e-]+ nats")).first.wait_for()
        assert tab.troubles == []
        tab.context.close()


@pytest.mark.parametrize("scheme", ("light", "dark"))
def test_exported_page_is_readable_offline_and_asks_nobody(
    browser: Any, full: Workspace, scheme: str, tmp_path: Path
) -> None:
    spec = FigureSpec.model_validate(
        {"figure": "latents_page", "source": "latents/mini-pythia.L2R-8x", "options": {"latents": [3, 7]}}
    )
    (tmp_path / "latents.html").write_bytes(bundle(spec, full).files["latents.html"])
    context = browser.new_context(color_scheme=scheme, offline=True, viewport={"width": 1024, "height": 900})
    page, asked, said = context.new_page(), [], []
    page.on("request", lambda r: asked.append(r.url))
    page.on("console", lambda m: said.append(m.text))
    page.goto((tmp_path / "latents.html").as_uri())
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 1024
    page.get_by_text("show as table").first.click()
    assert page.locator(".wb-astable[open] td.num").count() > 10
    assert len(asked) == 1 and said == []
    context.close()


@pytest.fixture(scope="module")
def beacon() -> Iterator[tuple[str, list[str]]]:
    """A server that hostile strings point to; nobody may call it."""
    hits: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_response(204)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            """Quiet."""

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listener.server_address[1]}/beacon", hits
    listener.shutdown()


def test_hostile_strings_run_nothing_and_call_nobody(
    browser: Any, beacon: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, hits = beacon
    workspace = make_workspace(tmp_path / "hostile", hostile=True, beacon=url)
    bad = hostile_tokens(url)
    add_all(workspace, vocab=vocabulary(hostile=True, beacon=url), text=" ".join(bad[:6]))
    id = save_list(workspace.root, LatentList(name=bad[1][:120]))
    add_to_list(workspace.root, id, [ListItem(dictionary="mini-pythia.L1R-8x", latent=3, note=" ".join(bad))])
    graph = workspace.items("graphs")[0]
    save_label(workspace.root, graph.id, "3_17_7", bad[1][:120], graph.version)
    for site in serve(workspace):
        tab = Visit(browser, site)
        for path in (
            "",
            "latents",
            "latents?q=%3Cimg%20src%3Dx%3E",
            f"latents?d=mini-pythia.L1R-8x&list={id}",
            "latent?i=3&w=Full",
            "latent?d=%3Cscript%3Ewindow.__pwn=9%3C/script%3E",
            "mppc",
            "pair",
            "induction",
            "states",
            "training",
            "results",
            "graph",
            "graph?pin=3_17_7",
            "map",
            "lists",
            "probe?text=%3Cimg%20src%3Dx%20onerror%3Dwindow.__pwn%3D1%3E",
            "export?f=latent_contexts&src=latents%2Fmini-pythia.L1R-8x&i=3",
            "about",
        ):
            page = tab.open(path)
            page.wait_for_timeout(300)
            assert page.evaluate("window.__pwn") is None
            assert page.locator(".stHtml :is(img, svg, form, input, script, iframe, .pwned)").count() == 0
        tab.context.close()
        assert tab.troubles == []
    assert hits == []


@pytest.mark.slow
def test_click_to_paint(browser: Any, tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "big", latents=100_000, big=True)
    for site in serve(workspace):
        tab = Visit(browser, site)
        page = tab.open("latent?i=1000")
        times = []
        for _ in range(15):
            times.append(page.evaluate(CLICK_TO_PAINT))
            tab.settle()
        tab.context.close()
        print(f"click to paint: median {statistics.median(times):.0f} ms, worst {max(times):.0f} ms")
        assert statistics.median(times) <= 250
