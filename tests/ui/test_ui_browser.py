"""What a reader does on the pages, in a real Chromium: keys, rows, hover, drag, scrub, export, lists."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.ui.browsing import Visit, heading
from tests.ui.serving import SCRUB
from workbench.results.labels import save_label
from workbench.results.lists import LatentList, delete_list, read_lists, save_list
from workbench.workspace import Workspace

pytestmark = pytest.mark.browser


def test_deep_link_next_and_back(visit: Visit) -> None:
    page = visit.open("latent?d=mini-pythia.L2R-8x&i=7&g=Top&w=Full")
    heading(page, "Latent 7")
    assert page.locator(".wb-ctxs > .g").count() == 1 and "…" not in page.locator(".ctx").first.inner_text()
    page.get_by_role("button", name="Next").click()
    heading(page, "Latent 8")
    page.wait_for_url(re.compile(r"i=8\b"))
    visit.settle()
    assert re.search(r"v=[0-9a-f]{8}", page.url) and "g=Top" in page.url
    page.go_back()
    heading(page, "Latent 7")


def test_keyboard(visit: Visit) -> None:
    page = visit.open("latent?d=mini-pythia.L2R-8x&i=7")
    page.locator(".wb-title h1").click()
    page.keyboard.press("j")
    heading(page, "Latent 8")
    page.keyboard.press("k")
    heading(page, "Latent 7")
    assert shown_keys(page) == ["J", "K", "P", "E"]  # L goes into the list used last, and none was
    page.keyboard.press("p")
    page.wait_for_url(re.compile("p=mini-pythia"))
    page.keyboard.press("j")
    heading(page, "Latent 8")
    page.wait_for_function(
        "() => { const t = document.querySelector('.wb-thread').textContent; return /#8.*#7.*pinned/.test(t) }"
    )
    page.keyboard.press("e")
    heading(page, "Export")


def shown_keys(page: Any) -> list[str]:
    """The keys that the foot of the page says can be pressed."""
    return [k.inner_text() for k in page.locator(".wb-keys kbd").all() if k.is_visible()]


def test_the_key_of_the_last_list_is_shown_once_there_is_one(visit: Visit, full: Workspace) -> None:
    id = save_list(full.root, LatentList(name="mine"))
    try:
        page = visit.open("latent?d=mini-pythia.L2R-8x&i=7")
        assert shown_keys(page) == ["J", "K", "P", "E"]
        page.get_by_role("button", name="Add to list").click()
        page.get_by_role("button", name="Add", exact=True).click()
        page.get_by_role("button", name="Add to mine").wait_for()
        assert shown_keys(page) == ["J", "K", "P", "L", "E"]
    finally:
        delete_list(full.root, id)


def test_row_of_the_table_opens_a_latent(visit: Visit) -> None:
    page = visit.open("latents?d=mini-pythia.L1R-8x")
    page.locator(".wb-rows tbody tr").nth(1).locator("td").nth(5).click()
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


# labels and titles of axes that stick out of their chart, or lie under one another
OUTSIDE = """() => {
  const found = []
  for (const svg of document.querySelectorAll('.js-plotly-plot .main-svg:first-of-type')) {
    const frame = svg.getBoundingClientRect()
    const boxes = [...svg.querySelectorAll('.ytick text, .xtick text, .ytitle, .xtitle')]
      .map((t) => [t, t.getBoundingClientRect()]).filter(([, b]) => b.width)
    for (const [t, b] of boxes)
      if (b.left < frame.left - 1 || b.bottom > frame.bottom + 1) found.push('cut off: ' + t.textContent)
    const title = boxes.find(([t]) => t.classList.contains('ytitle'))?.[1]
    for (const [t, b] of boxes)
      if (title && t.closest('.ytick') && b.left < title.right - 1 && b.bottom > title.top && b.top < title.bottom)
        found.push('under the title: ' + t.textContent)
  }
  return found
}"""


@pytest.mark.parametrize("width", [1440, 390])
def test_labels_of_axes_are_whole(visit: Visit, width: int) -> None:
    for address in ("induction", "mppc", "training"):
        page = visit.open(address)
        page.set_viewport_size({"width": width, "height": 950})
        page.locator(".js-plotly-plot").first.wait_for()
        visit.settle()
        assert page.evaluate(OUTSIDE) == [], address


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
        "pair => { pair.querySelector('button[data-s=\"1\"]').click(); return"
        f" ({widths})(pair.querySelector('.rows')) }}"
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
        said = subprocess.run(
            ["pdffonts", str(tmp_path / "figure.pdf")], capture_output=True, text=True, check=True
        ).stdout
        assert "TrueType" in said and "Type 3" not in said


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


def test_all_of_a_table_go_into_a_list_that_is_put_in_order(visit: Visit, full: Workspace) -> None:
    page = visit.open("latents?d=mini-pythia.L1R-8x&q=pattern+1&o=latent+number&dir=low+first")
    page.get_by_role("button", name=re.compile(r"^Add all \d+ to a list")).click()
    name = page.get_by_role("combobox", name="List")
    name.fill("All of it")
    name.press("Enter")
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_text(re.compile(r"\d+ latents added to All of it")).wait_for()
    (id,) = [i for i, x in read_lists(full.root)[0].items() if x.name == "All of it"]

    def kept() -> list[int]:
        return [x.latent for x in read_lists(full.root)[0][id].items]

    try:
        was = kept()
        assert len(was) > 5 and was == sorted(was)
        page = visit.open(f"lists?list={id}")
        for step in range(2):  # the second edit meets a table that must have forgotten the first
            table, editor = page.locator("[data-testid=stDataFrame]"), page.locator("input.gdg-input")
            for _ in range(20):  # a table that was just drawn may not hear yet
                table.click(position={"x": 28, "y": 35 + 35 * 2 + 17})
                page.keyboard.press("Enter")
                page.wait_for_timeout(500)
                if editor.count():
                    break
            editor.fill("1")
            editor.press("Enter")
            want = [was[2], *was[:2], *was[3:]]
            for _ in range(100):
                if kept() == want:
                    break
                page.wait_for_timeout(100)
            visit.settle()
            assert kept() == want, step
            was = want
        page.get_by_role("button", name="Open as a table").click()
        heading(page, "Latents")
        visit.settle()
        assert f"list={id}" in page.url
        assert (
            f"{len(was)} of {len(was)} latents in the list All of it"
            in page.locator(".wb-head .sub").first.inner_text()
        )
    finally:
        delete_list(full.root, id)


def test_a_box_on_the_map_offers_a_list_and_a_click_opens_the_latent(visit: Visit) -> None:
    page = visit.open("map")
    chart = page.locator(".js-plotly-plot").first
    chart.locator("path.point").first.wait_for()
    assert page.get_by_text("latents chosen").count() == 0
    said = page.get_by_text(re.compile(r"^\d+ latents chosen"))

    def spot(a: float, b: float) -> tuple[float, float]:
        box = chart.locator(".nsewdrag").first.bounding_box()
        return box["x"] + a * box["width"], box["y"] + b * box["height"]

    def drawn(tool: str, corners: tuple[tuple[float, float], ...]) -> None:
        chart.locator(f".modebar-btn[data-title='{tool}']").click()
        page.mouse.move(*spot(*corners[0]))
        page.mouse.down()
        for corner in (*corners[1:], *(corners[:1] if len(corners) > 2 else ())):
            page.mouse.move(*spot(*corner), steps=8)
        page.mouse.up()

    for tool, corners in (
        ("Box Select", ((0.3, 0.3), (0.7, 0.7))),
        ("Lasso Select", ((0.3, 0.3), (0.7, 0.3), (0.7, 0.7), (0.3, 0.7))),
    ):
        visit.until(lambda t=tool, c=corners: drawn(t, c), lambda ms: said.wait_for(timeout=ms))
        visit.settle()
        n = int(
            re.findall(r"(\d+) latents chosen", page.locator(".wb-head .sub", has_text="latents chosen").inner_text())[
                0
            ]
        )
        assert 0 < n < 256 and "/map" in page.url
        assert page.get_by_role("button", name="Add to a list").is_visible()
    visit.until(
        lambda: page.mouse.dblclick(*spot(0.05, 0.05)), lambda ms: said.wait_for(state="detached", timeout=ms)
    )  # lets go of it

    def clicked() -> None:
        chart.locator(".modebar-btn[data-title='Pan']").click()
        chart.locator("path.point").nth(40).click(force=True)

    visit.until(clicked, lambda ms: page.wait_for_url(re.compile(r"/latent\?.*i=\d+"), timeout=ms))


def test_pages_of_the_table_and_back(visit: Visit) -> None:
    page = visit.open("latents?d=mini-pythia.L1R-8x")
    page.get_by_role("link", name="Page 3", exact=True).first.click()
    page.wait_for_url(re.compile("page=3"))
    visit.settle()
    page.get_by_role("link", name="Page 2", exact=True).first.click()
    page.wait_for_url(re.compile("page=2"))
    visit.settle()
    page.go_back()
    page.wait_for_url(re.compile("page=3"))
    visit.settle()
    assert page.locator(".wb-pager [aria-current]").first.inner_text() == "3"


def test_a_node_is_given_a_label(visit: Visit, full: Workspace) -> None:
    (graph,) = [i.id for i in full.items("graphs")]
    page = visit.open(f"graph?gr={graph}&pin=3_17_7")
    field = page.get_by_label("Your label")
    field.fill("<b>mine</b> *x*")
    field.press("Enter")
    try:
        page.get_by_text("“<b>mine</b> *x*”").first.wait_for()
        visit.settle()
        with page.expect_download() as caught:
            page.get_by_role("button", name="Graph as JSON").click()
        document = json.loads(Path(caught.value.path()).read_text())
        assert [n["clerp"] for n in document["nodes"] if n["node_id"] == "3_17_7"] == ["<b>mine</b> *x*"]
    finally:
        save_label(full.root, graph, "3_17_7", "", "")


def test_a_graph_lights_up_in_the_browser_and_the_keyboard_reaches_it(visit: Visit, full: Workspace) -> None:
    (graph,) = [i.id for i in full.items("graphs")]
    page = visit.open("graph")
    nodes = page.locator(".net .node")
    assert nodes.count() == 27 and page.locator(".net .lit path").count() == 0
    asked = len(visit.sent)
    nodes.nth(12).hover()
    page.locator(".net .lit path").first.wait_for(state="attached")
    assert page.locator(".net .near").count() > 1 and "made by" in page.locator(".net .say").inner_text()
    assert len(visit.sent) == asked  # no server was needed
    page.mouse.move(2, 2)
    page.locator(".net .node[tabindex='0']").focus()
    seen = set()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
        seen.add(page.locator(".net .node[tabindex='0']").get_attribute("data-id"))
    assert len(seen) >= 3
    focused = page.locator(".net .node[tabindex='0']").get_attribute("data-id")
    try:
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile(f"pin={re.escape(str(focused))}"))
        visit.settle()
        page.keyboard.press("p")
        page.locator(f".net .node.pin[data-id='{focused}']").wait_for()
        page.get_by_role("button", name="Unpin").wait_for()
        visit.settle()
        held = (
            "() => [...document.querySelectorAll('*')].map(e => e.shadowRoot?.activeElement?.dataset.id).find(Boolean)"
        )
        assert page.evaluate(held) == focused
        page.get_by_text("my subgraph", exact=True).click()
        page.wait_for_url(re.compile("sub=my"))
        visit.settle()
        with page.expect_download() as caught:
            page.get_by_role("button", name="Figure as SVG").click()
        assert nodes.count() == Path(caught.value.path()).read_text().count("<g>") == 2
    finally:
        (full.root / "labels" / f"{graph}.json").unlink(missing_ok=True)
