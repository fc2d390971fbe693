"""The pages in a real Chromium: deep links, back, keys, hover, contrast, and nothing hostile gets through."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import statistics
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.ui.serving import CLICK_TO_PAINT, SCRUB, free_port, start, wait_until_up
from tests.ui.synthetic import hostile_tokens, make_workspace, vocabulary
from tests.ui.synthetic_results import add_all
from ui.kit.pages import PAGES
from workbench.export import FigureSpec, bundle
from workbench.results.lists import LatentList, ListItem, add_to_list, delete_list, read_lists, save_list
from workbench.workspace import Workspace

CHROMIUM = "/usr/bin/chromium"
PATIENCE = 60_000  # milliseconds; a busy machine must not decide
BUSY = "[data-test-script-state=running], [data-stale=true], [data-testid=stSkeleton]"
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; without one these tests are skipped with a reason, except in CI, where they fail."""
    if not Path(CHROMIUM).exists():
        why = f"{CHROMIUM} is not installed (apt-get install chromium)"
        pytest.fail(why) if os.environ.get("CI") == "true" else pytest.skip(why)
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        found = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def serve(workspace: Workspace) -> Iterator[str]:
    port = free_port()
    process = start(workspace.root, port)
    try:
        wait_until_up(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture(scope="module")
def site(full: Workspace) -> Iterator[str]:
    yield from serve(full)


class Visit:
    """A tab that records what went wrong in it."""

    def __init__(self, browser: Any, site: str, scheme: str = "light", width: int = 1440):
        self.context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 950})
        self.page, self.site, self.troubles = self.context.new_page(), site, []
        self.page.set_default_timeout(PATIENCE)
        self.page.on("pageerror", lambda e: self.troubles.append(f"page error: {e}"))
        self.page.on("console", lambda m: self.troubles.append(m.text) if m.type == "error" and "404" not in m.text else None)
        self.sent: list[int] = []
        self.page.on("websocket", lambda ws: ws.on("framesent", lambda frame: self.sent.append(len(frame))))
        self.page.on("request", self._request)
        self.page.on("dialog", lambda d: self.troubles.append(f"dialog: {d.message}"))

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.site, self.site.replace("http", "ws"), "data:", "blob:")):
            self.troubles.append(f"foreign request: {request.url}")

    def open(self, path: str = "") -> Any:
        self.page.goto(f"{self.site}/{path}")
        self.page.wait_for_selector(".wb-foot")
        self.settle()
        return self.page

    def settle(self, quiet: float = 0.4) -> None:
        """Wait until the page has neither worked nor changed its address for ``quiet`` seconds together."""
        self.page.evaluate("() => { window.__quiet = null }")
        self.page.wait_for_function(
            """([busy, quiet]) => {
              const now = document.querySelector(busy) ? null : location.href
              if (!window.__quiet || now === null || window.__quiet.href !== now) window.__quiet = {href: now, since: performance.now()}
              return now !== null && performance.now() - window.__quiet.since > 1000 * quiet
            }""",
            arg=[BUSY, quiet],
            polling=50,
            timeout=PATIENCE,
        )


@pytest.fixture
def visit(browser: Any, site: str) -> Iterator[Visit]:
    found = Visit(browser, site)
    yield found
    found.context.close()
    assert found.troubles == []


def heading(page: Any, text: str) -> None:
    page.wait_for_function("t => document.querySelector('.wb-title h1')?.textContent === t", arg=text, timeout=PATIENCE)


def test_deep_link_next_and_back(visit: Visit) -> None:
    page = visit.open("latent?d=mini-pythia.L2R-8x&i=7&g=Top&w=Full")
    heading(page, "Latent 7")
    assert page.locator(".wb-ctxs > .g").count() == 1 and "…" not in page.locator(".ctx").first.inner_text()
    page.get_by_role("button", name="Next").click()
    heading(page, "Latent 8")
    assert "i=8" in page.url and re.search(r"v=[0-9a-f]{8}", page.url) and "g=Top" in page.url
    page.go_back()
    heading(page, "Latent 7")


def test_keyboard(visit: Visit) -> None:
    page = visit.open("latent?d=mini-pythia.L2R-8x&i=7")
    page.locator(".wb-title h1").click()
    page.keyboard.press("j")
    heading(page, "Latent 8")
    page.keyboard.press("k")
    heading(page, "Latent 7")
    assert page.locator(".wb-keys kbd").all_inner_texts() == ["J", "K", "P", "E"]
    page.keyboard.press("p")
    page.wait_for_url(re.compile("p=mini-pythia"))
    page.keyboard.press("j")
    heading(page, "Latent 8")
    assert "Pinned: latent 7" in page.locator(".wb-panel.info").first.inner_text()
    page.keyboard.press("e")
    heading(page, "Export")


def test_row_of_the_table_opens_a_latent(visit: Visit) -> None:
    page = visit.open("latents?d=mini-pythia.L1R-8x")
    page.wait_for_selector("[data-testid=stDataFrame] canvas")
    page.wait_for_timeout(500)
    page.locator("[data-testid=stDataFrame]").click(position={"x": 17, "y": 50})
    page.wait_for_url(re.compile(r"/latent\?.*i=\d+"))
    page.wait_for_function("document.querySelector('.wb-title h1')?.textContent.startsWith('Latent ')")
    page.go_back()
    heading(page, "Latents")


def test_neighbour_opens_in_place(visit: Visit) -> None:
    page = visit.open("latent?d=mini-pythia.L1R-8x&i=7")
    page.evaluate("window.__same = true")
    link = page.locator("a[data-latent]").first
    other = link.get_attribute("data-latent")
    assert f"i={other}" in link.get_attribute("href")
    link.click()
    heading(page, f"Latent {int(other):,}")
    assert page.evaluate("window.__same") and f"i={other}" in page.url


def test_hovering_a_token_marks_the_histogram(visit: Visit) -> None:
    page = visit.open("latent?d=mini-pythia.L1R-8x&i=7")
    token = page.locator(".ctx b.pk.t8").first
    token.hover()
    cursor = page.locator(".hist .cursor")
    assert cursor.is_visible()
    lo, hi = (float(page.locator(".hist").get_attribute(f"data-{k}")) for k in ("lo", "hi"))
    import math

    want = 100 * math.log(float(token.get_attribute("data-x")) / lo) / math.log(hi / lo)
    assert abs(float(cursor.evaluate("e => parseFloat(e.style.left)")) - min(100, want)) < 0.5
    assert "pos" in page.evaluate("getComputedStyle(document.querySelector('.ctx b.pk.t8'), '::after').content")
    page.locator(".wb-title h1").hover()
    assert not cursor.is_visible()


def test_table_beside_the_chart_opens_without_the_server(visit: Visit) -> None:
    page = visit.open("latent?d=mini-pythia.L1R-8x&i=7")
    page.get_by_text("show as table").first.click()
    assert page.locator(".wb-astable[open] td.num").count() > 10


def test_scrubber_repaints_without_the_server(visit: Visit) -> None:
    page = visit.open("training")
    page.wait_for_selector(".scrub .row span")
    slider = page.locator(".scrub input[type=range]")
    assert slider.get_attribute("aria-valuetext").startswith("step ")
    frames = len(visit.sent)
    times = slider.evaluate(SCRUB)
    assert statistics.median(times) <= 10, times

    def painted(step: int) -> list[str]:
        return slider.evaluate(
            """(e, s) => { e.value = s; e.dispatchEvent(new Event('input'))
                return [...e.closest('.scrub').querySelectorAll('.c span')].map(x => x.style.background) }""",
            step,
        )

    assert painted(0) != painted(8)
    assert len(visit.sent) == frames  # dragging sends nothing
    slider.evaluate("e => e.dispatchEvent(new Event('change'))")
    page.wait_for_timeout(500)
    assert len(visit.sent) > frames  # letting go does, so the line above can fail
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert slider.input_value() == "7"


def test_aligned_strips_answer_without_the_server(visit: Visit) -> None:
    page = visit.open("pair")
    page.wait_for_selector(".pair .row span")
    frames = len(visit.sent)
    active = page.locator(".pair .c span[style*=background]").first
    active.hover()
    assert re.match(r"A [\d.]+ · B ", page.locator(".pair output").inner_text())
    assert page.locator(".joint .grid i[style*=outline]").count() == 1
    assert len(visit.sent) == frames

    widths = "rows => [...rows.querySelectorAll('.c span')].map(s => s.style.borderBottomWidth)"
    before, r = page.locator(".pair .rows").evaluate(widths), page.locator(".wb-stats .v").first.inner_text()
    after = page.locator(".pair").evaluate(
        f"pair => {{ pair.querySelector('button[data-s=\"1\"]').click(); return ({widths})(pair.querySelector('.rows')) }}"
    )
    assert before != after  # repainted within the click, before any answer
    page.wait_for_function("was => document.querySelector('.wb-stats .v').textContent !== was", arg=r)
    visit.settle()
    assert page.locator(".pair button[aria-pressed=true]").inner_text() == "+1"


def test_latent_in_a_graph_opens_its_page(visit: Visit) -> None:
    page = visit.open("graph")
    page.locator("a[data-latent]").first.click()
    page.wait_for_url(re.compile(r"/latent\?"))
    page.wait_for_function("document.querySelector('.wb-title h1')?.textContent.startsWith('Latent ')")


def test_exported_figure_opens_and_embeds_its_fonts(visit: Visit, tmp_path: Path) -> None:
    page = visit.open("export?f=latent_contexts&src=latents/mini-pythia.L1R-8x&i=3")
    with page.expect_download(timeout=60_000) as caught:
        page.get_by_role("button", name=re.compile("Download the bundle")).click()
    caught.value.save_as(tmp_path / "bundle.zip")
    with zipfile.ZipFile(tmp_path / "bundle.zip") as z:
        pdf = next(n for n in z.namelist() if n.endswith("figure.pdf"))
        assert z.read(pdf).startswith(b"%PDF") and b"/Type3" not in z.read(pdf)
        (tmp_path / "figure.pdf").write_bytes(z.read(pdf))
    if shutil.which("pdffonts"):
        said = subprocess.run(["pdffonts", str(tmp_path / "figure.pdf")], capture_output=True, text=True, check=True).stdout
        assert "TrueType" in said and "Type 3" not in said


CONTRAST = """() => {
  const parse = (s) => { const m = s.match(/[\\d.]+/g).map(Number); const k = s.startsWith('color(srgb') ? 255 : 1
    return [m[0] * k, m[1] * k, m[2] * k, m.length > 3 ? m[3] : 1] }
  const lum = (c) => { const f = c.slice(0, 3).map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2] }
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat([1])
  const roots = [document.body, ...[...document.querySelectorAll('*')].map(e => e.shadowRoot).filter(Boolean)]
  const texts = (root) => { const w = document.createTreeWalker(root, NodeFilter.SHOW_TEXT), out = []; while (w.nextNode()) out.push(w.currentNode); return out }
  const found = []
  for (const node of roots.flatMap(texts)) {
    const e = node.parentElement, text = node.textContent.trim()
    if (!e || !text || ['STYLE', 'SCRIPT', 'TITLE', 'CANVAS'].includes(e.tagName) || e.closest('canvas, [disabled], [aria-disabled=true], [data-testid=stIconMaterial], [data-testid=stSliderThumbValue]')) continue
    const box = e.getBoundingClientRect(), style = getComputedStyle(e)
    if (box.width < 2 || box.height < 2 || style.visibility === 'hidden' || +style.opacity === 0) continue
    const chain = []
    for (let n = e; n; n = n.parentElement || n.getRootNode().host) chain.unshift(parse(getComputedStyle(n).backgroundColor))
    const back = chain.reduce((under, c) => over(c, under), [255, 255, 255, 1])
    const ink = over(parse(style.color), back)
    const [a, b] = [lum(ink), lum(back)].sort((x, y) => y - x)
    const ratio = (a + 0.05) / (b + 0.05), size = parseFloat(style.fontSize)
    if (ratio < 4.5 || size < 12) found.push(`${text.slice(0, 30)} | ${e.tagName}.${e.className} | ${size}px ${ratio.toFixed(2)}`)
  }
  return [...new Set(found)]
}"""


# fragments of coloured tokens that lie outside of their row
OUTSIDE = """() => [...document.querySelectorAll('.ctx b')].flatMap(b => {
  const row = b.parentElement.getBoundingClientRect()
  return [...b.getClientRects()].filter(r => r.left < row.left - 2 || r.right > row.right + 2).map(() => b.textContent) })"""
# page: the heading of a deep link into it, and what of the link must still be there afterwards
LINKS = {
    "overview": ("?sites=residual+stream", "full"),
    "results": ("results?c=llama-scope.folding", "Results"),
    "latents": ("latents?d=mini-mamba.L2R-8x&q=pattern&o=density", "Latents"),
    "latent": ("latent?d=mini-pythia.L2R-8x&i=7&g=Top", "Latent 7"),
    "probe": ("probe?d=mini-mamba.L2R-8x&i=9", "Text probe"),
    "mppc": ("mppc?way=ba", "Matches"),
    "pair": ("pair?d=mini-mamba.L2R-8x&i=5&d2=mini-pythia.L2R-8x&i2=5", "Pair"),
    "training": ("training?ls=5_9", "Training"),
    "induction": ("induction?mb=mini-mamba.induction&met=logit_diff", "Induction & state"),
    "graph": ("graph?gr=mini-pythia.prompt.12345678", "Graph"),
    "map": ("map?map=mini-pythia.L1R-8x", "Map"),
    "lists": ("lists", "Lists"),
    "export": ("export?f=latent_densities&src=latents%2Fmini-pythia.L1R-8x", "Export"),
    "about": ("about", "About"),
}


def query_of(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


@pytest.mark.parametrize("scheme", ("light", pytest.param("dark", marks=pytest.mark.slow)))
def test_every_page_by_link_and_back_is_readable(browser: Any, site: str, scheme: str) -> None:
    """Deep link, state, another page, back: the same page in the same state; text large and dark enough, nothing outside of its place."""
    assert set(LINKS) == {p.stem for p in PAGES}
    tab = Visit(browser, site, scheme)
    try:
        for stem, (link, title) in LINKS.items():
            page = tab.open(link)
            heading(page, title)
            state = query_of(page.url)
            assert state.items() >= query_of(f"{site}/{link}").items(), stem
            assert page.evaluate(CONTRAST) == [] and page.evaluate(OUTSIDE) == [], stem
            assert page.evaluate("document.documentElement.scrollWidth") <= 1440, stem
            other = "Latents" if stem == "overview" else "Overview"
            page.get_by_role("link", name=other, exact=True).first.click()
            heading(page, "Latents" if stem == "overview" else "full")
            tab.settle()
            page.go_back()
            heading(page, title)
            tab.settle()
            assert query_of(page.url).items() >= query_of(f"{site}/{link}").items(), stem
            assert page.locator(".stException").count() == 0
        page.evaluate("document.querySelector('.wb-foot span').style.cssText = 'color: #777; background: #888; font-size: 11px'")
        assert any("11px" in text for text in page.evaluate(CONTRAST)), "the check itself must see bad text"
        assert tab.troubles == []
    finally:
        tab.context.close()


def test_back_leads_through_the_pages_as_they_were(visit: Visit) -> None:
    """One step back per page or latent, whatever the pages wrote into the address by themselves; filters come back, too."""
    page = visit.open("?arch=Mamba")
    seen = [page.url]
    for name, title in (("Latents", "Latents"), ("Latent", None), ("Text probe", "Text probe"), ("Overview", "full")):
        page.get_by_role("link", name=name, exact=True).first.click()
        page.wait_for_function(
            "t => { const h = document.querySelector('.wb-title h1')?.textContent; return t ? h === t : h?.startsWith('Latent ') }",
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


def test_dragging_over_the_distribution_lists_those_latents(visit: Visit) -> None:
    page = visit.open("mppc")
    chart = page.locator(".st-key-mx_dist_fig .nsewdrag").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    said = page.get_by_text(re.compile("latents with r between"))
    before, y = said.inner_text(), box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.6 * box["width"], y)
    page.mouse.down()
    for share in (0.65, 0.7, 0.75):
        page.mouse.move(box["x"] + share * box["width"], y)
    page.mouse.up()
    page.wait_for_function("was => !document.body.innerText.includes(was)", arg=before)
    lo, hi = (float(v) for v in re.findall(r"between (\S+) and (\S+?),?(?: |$)", said.inner_text())[0])
    assert 0.4 < lo < hi < 0.9


def test_list_is_made_and_annotated_from_a_latent(visit: Visit, full: Workspace) -> None:
    page = visit.open("latent?d=mini-pythia.L2R-8x&i=7")
    page.get_by_role("button", name="Add to list").click()
    name = page.get_by_role("combobox", name="List")
    name.fill("From the *browser*")
    name.press("Enter")
    note = page.get_by_label("Note")
    note.fill("opens a [function](http://x)")
    note.press("Control+Enter")
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_text("Latent 7 added").wait_for()
    (id,) = [i for i, x in read_lists(full.root)[0].items() if x.name == "From the *browser*"]
    try:
        (item,) = read_lists(full.root)[0][id].items
        assert (item.dictionary, item.latent, item.note) == ("mini-pythia.L2R-8x", 7, "opens a [function](http://x)")
        page = visit.open(f"lists?list={id}")
        assert page.locator("[data-testid=stDataFrame] canvas").count() > 0
    finally:
        delete_list(full.root, id)


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
def test_exported_page_is_readable_offline_and_asks_nobody(browser: Any, full: Workspace, scheme: str, tmp_path: Path) -> None:
    spec = FigureSpec.model_validate({"figure": "latents_page", "source": "latents/mini-pythia.L2R-8x", "options": {"latents": [3, 7]}})
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


def test_hostile_strings_run_nothing_and_call_nobody(browser: Any, beacon: tuple[str, list[str]], tmp_path: Path) -> None:
    url, hits = beacon
    workspace = make_workspace(tmp_path / "hostile", hostile=True, beacon=url)
    bad = hostile_tokens(url)
    add_all(workspace, vocab=vocabulary(hostile=True, beacon=url), text=" ".join(bad[:6]))
    id = save_list(workspace.root, LatentList(name=bad[1][:120]))
    add_to_list(workspace.root, id, ListItem(dictionary="mini-pythia.L1R-8x", latent=3, note=" ".join(bad)))
    for site in serve(workspace):
        tab = Visit(browser, site)
        for path in (
            "",
            "latents",
            "latents?q=%3Cimg%20src%3Dx%3E",
            "latent?i=3&w=Full",
            "latent?d=%3Cscript%3Ewindow.__pwn=9%3C/script%3E",
            "mppc",
            "pair",
            "induction",
            "training",
            "results",
            "graph",
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
