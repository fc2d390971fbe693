"""The pages on a generated dictionary of 100,000 latents, and on a small workspace: ``python benchmarks/browser.py``.

Prints, beside its budget: memory of the server after browsing (600 MiB), click to paint of the next latent in headless
Chromium (median 200 ms), the first page from nothing (3 s), a step of the training scrubber (10 ms), and the server's
own work per rerun of the latent page, the table and a search (40 ms of CPU); and click to paint while another session
digests a file of 512 MiB (200 ms). On the small workspace: J to the heading (100 ms) and to the contexts (200 ms), a
page change until it rests (600 ms), a new tab without a cache (1.2 s; the first one is told apart), and
memory of a server that has loaded no model (300 MiB).
Beside them, without a budget, the same of a bare Streamlit app: a new tab of a page with one heading, and the change to
a page with four charts as *Induction* has them. Below what these take on a machine no page of ours can go.

``--quick`` takes 10,000 latents and fewer clicks, ``--small`` only the small workspace. Exits 1 where a budget is
missed with ``--strict``, and without Chromium prints only what needs none.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.ui.serving import CLICK_TO_PAINT, SCRUB, free_port, start, wait_until_up  # noqa: E402
from tests.ui.synthetic import make_workspace  # noqa: E402
from tests.ui.synthetic_results import add_all  # noqa: E402
from workbench.workspace import Workspace  # noqa: E402

CHROMIUM = "/usr/bin/chromium"
PAGES = ("latents", "latent", "mppc", "pair", "training", "induction", "graph", "map", "lists", "export", "about")
BARE = """import plotly.graph_objects as go
import streamlit as st

def head(name):
    st.html(f'<div class="wb-title"><h1>{name}</h1></div>')

def about():
    head("about")

def charts():
    head("charts")
    cells = [[((7 * i + 3 * j) % 11) / 11 for j in range(6)] for i in range(4)]
    for j, column in enumerate(st.columns(2)):
        with column:
            st.plotly_chart(go.Figure(go.Heatmap(z=cells), {"height": 220}), key=f"heat{j}")
            st.plotly_chart(go.Figure(go.Scatter(y=cells[j]), {"height": 250}), key=f"line{j}")

st.navigation([st.Page(about, url_path="start", default=True), st.Page(charts, url_path="charts")]).run()
"""
PATIENCE = 20_000  # milliseconds after which a press or a page is given up, and said to be
TABS = 7  # new tabs that are timed, at most
# milliseconds from a press of J to the second frame after the new heading, and after the new contexts; null where the
# page did not answer
PRESS = """(patience) => new Promise(done => {
  const h = () => document.querySelector('.wb-title h1')?.textContent
  const c = () => document.querySelector('.wb-ctxs')?.textContent
  const was = h(), text = c(), began = performance.now(), found = {}
  const seen = (name) => requestAnimationFrame(() => requestAnimationFrame(() => {
    found[name] = performance.now() - began
    if ('heading' in found && 'contexts' in found) { watch.disconnect(); done([found.heading, found.contexts]) }
  }))
  const said = {}
  const look = () => {
    if (!said.h && h() && h() !== was) { said.h = true; seen('heading') }
    if (!said.c && c() && c() !== text) { said.c = true; seen('contexts') }
  }
  const watch = new MutationObserver(look)
  watch.observe(document.body, { subtree: true, childList: true, characterData: true })
  setTimeout(() => { watch.disconnect(); done(null) }, patience)
  window.dispatchEvent(new KeyboardEvent('keydown', { key: 'j', bubbles: true }))
})"""
# milliseconds until a page that was asked for has its heading and neither works nor changes any more (150 ms of quiet
# are taken off)
REST = """([link, patience]) => new Promise(done => {
  const began = performance.now()
  let last = began, left = location.pathname
  const busy = '[data-test-script-state=running], [data-stale=true], [data-testid=stSkeleton]'
  const watch = new MutationObserver(() => { last = performance.now() })
  watch.observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true })
  const timer = setInterval(() => {
    const now = performance.now()
    if (document.querySelector(busy)) last = now
    if (location.pathname !== left && document.querySelector('.wb-title h1') && now - last > 150) {
      clearInterval(timer); watch.disconnect(); done(last - began)
    }
  }, 10)
  setTimeout(() => { clearInterval(timer); watch.disconnect(); done(null) }, patience)
  document.querySelector(`a[href$="/${link}"], a[href="${link}"]`).click()
})"""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Budgets of the pages on a large dictionary.")
    parser.add_argument("--quick", action="store_true", help="10,000 latents, fewer clicks")
    parser.add_argument("--small", action="store_true", help="only what is measured on a small workspace")
    parser.add_argument("--latents", type=int, default=0)
    parser.add_argument("--strict", action="store_true", help="exit 1 where a budget is missed")
    args = parser.parse_args()
    latents = args.latents or (10_000 if args.quick else 100_000)
    clicks = 8 if args.quick else 25
    found: list[tuple[str, float, float, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        if not args.small:
            large = make_workspace(Path(folder) / "big", latents=latents, big=True)
            add_large_result(large)
            found += server_work(large, 3 if args.quick else 9)
            found += in_browser(large, clicks, on_large)
        small = make_workspace(Path(folder) / "small")
        add_all(small)
        found += in_browser(small, clicks, on_small)
        found += in_chromium(lambda browser: bare(browser, 2 if args.quick else 5))
    print(f"{latents:,} latents; load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for name, value, budget, unit in found:
        said = "" if budget == math.inf else f"budget {budget:g}  {'ok' if value <= budget else 'MISSED'}"
        print(f"{name:34} {value:8.1f} {unit:4} {said}".rstrip())
    return 1 if args.strict and any(v > b for _, v, b, _ in found) else 0


def server_work(workspace: Workspace, times: int) -> list[tuple[str, float, float, str]]:
    """Median CPU milliseconds of a rerun, router and page together."""
    from streamlit.testing.v1 import AppTest

    os.environ["WORKBENCH_WORKSPACE"] = str(workspace.root)

    def page(name: str, **address: str) -> Any:
        at = AppTest.from_file(str(ROOT / "ui" / "workbench_ui" / "app.py"), default_timeout=120).run()
        at.switch_page(f"app_pages/{name}.py")
        for key, value in address.items():
            at.query_params[key] = value
        return at.run()

    def cpu(action: Callable[[], object]) -> float:
        action()
        found = []
        for _ in range(times):
            began = time.process_time()
            action()
            found.append(1000 * (time.process_time() - began))
        return statistics.median(found)

    latent, table, search = page("latent", i="1000"), page("latents"), page("latents")
    sides = iter(["low first", "high first"] * 50)
    needles = iter([f"pattern {j}" for j in range(100)])
    return [
        ("server work, next latent", cpu(lambda: latent.button(key="wb_next").click().run()), 40, "ms"),
        (
            "server work, sort the table",
            cpu(lambda: table.segmented_control(key="dir").set_value(next(sides)).run()),
            40,
            "ms",
        ),
        ("server work, a new search", cpu(lambda: search.text_input(key="q").set_value(next(needles)).run()), 40, "ms"),
    ]


@contextmanager
def served(workspace: Workspace) -> Iterator[tuple[str, int]]:
    """The address and process id of a server on this workspace."""
    port = free_port()
    process = start(workspace.root, port)
    try:
        wait_until_up(port, process)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.kill()
        process.wait(10)


def add_large_result(workspace: Workspace) -> None:
    """A result with one file of 512 MiB, for the self-test of a second session to read."""
    with workspace.create("exports", "large") as folder, open(folder / "zeros.bin", "wb") as f:
        f.truncate(512 * 2**20)


def clicks_beside(browser: Any, site: str, page: Any, clicks: int) -> list[float]:
    """Click to paint while a second tab runs the self-test again and again; only clicks that fell into one count."""
    other = browser.new_page()
    other.goto(f"{site}/about")
    other.get_by_role("button", name="Check this workspace").wait_for(timeout=60_000)
    found: list[float] = []
    while len(found) < clicks:
        other.get_by_role("button", name="Check this workspace").click()
        other.locator("[data-testid=stProgress]").wait_for(timeout=60_000)
        ms = page.evaluate(CLICK_TO_PAINT)
        if other.locator("[data-testid=stApp][data-test-script-state=running]").count():
            found.append(ms)
        other.wait_for_function("!document.querySelector('[data-test-script-state=running]')", timeout=60_000)
    other.close()
    return found


def in_chromium(measure: Callable[[Any], list[tuple[str, float, float, str]]]) -> list[tuple[str, float, float, str]]:
    """What ``measure`` finds with a browser; nothing without Chromium."""
    from playwright.sync_api import sync_playwright

    if not Path(CHROMIUM).exists():
        print(f"{CHROMIUM} is not installed: what is measured in a browser is left out")
        return []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        found = measure(browser)
        browser.close()
    return found


def in_browser(
    workspace: Workspace, clicks: int, measure: Callable[[Any, str, int, int], list[tuple[str, float, float, str]]]
) -> list[tuple[str, float, float, str]]:
    """What ``measure`` finds with a browser on a server of this workspace."""

    def on_server(browser: Any) -> list[tuple[str, float, float, str]]:
        with served(workspace) as (site, pid):
            return measure(browser, site, pid, clicks)

    return in_chromium(on_server)


def memory_of(pid: int) -> float:
    """Resident MiB of a process and its children."""
    import psutil

    process = psutil.Process(pid)
    return float(sum(x.memory_info().rss for x in [process, *process.children(recursive=True)]) / 2**20)


def on_large(browser: Any, site: str, pid: int, clicks: int) -> list[tuple[str, float, float, str]]:
    """First page, click to paint and memory on the large dictionary."""
    page = browser.new_page(viewport={"width": 1440, "height": 950})
    began = time.perf_counter()
    page.goto(f"{site}/latent?i=1000")
    page.wait_for_selector(".ctx", timeout=60_000)
    first = time.perf_counter() - began
    times = []
    for _ in range(clicks):
        page.wait_for_timeout(400)
        times.append(page.evaluate(CLICK_TO_PAINT))
    beside = clicks_beside(browser, site, page, 5)
    page.goto(f"{site}/latents?q=pattern")
    page.wait_for_selector(".wb-rows tbody tr", timeout=60_000)
    return [
        ("memory of the server", memory_of(pid), 600, "MiB"),
        ("first page", first, 3, "s"),
        ("click to paint, median", statistics.median(times), 200, "ms"),
        ("the same beside a read of 512 MiB", statistics.median(beside), 200, "ms"),
    ]


def on_small(browser: Any, site: str, pid: int, clicks: int) -> list[tuple[str, float, float, str]]:
    """A step of the scrubber, and what one person does."""
    page = browser.new_page(viewport={"width": 1440, "height": 950})
    found = use(page, site, clicks)
    found.append(("memory without a model", memory_of(pid), 300, "MiB"))
    page.goto(f"{site}/training")
    page.wait_for_selector(".scrub .row span", timeout=60_000)
    scrub = page.locator(".scrub input[type=range]").evaluate(SCRUB)
    return [*found, ("scrub step, median", statistics.median(scrub), 10, "ms")]


def bare(browser: Any, times: int) -> list[tuple[str, float, float, str]]:
    """What Streamlit and Plotly themselves take: a new tab, and the change to a page with four charts."""
    with tempfile.TemporaryDirectory() as folder:
        app, port = Path(folder) / "app.py", free_port()
        app.write_text(BARE, encoding="utf-8")
        command = [sys.executable, "-m", "streamlit", "run", str(app), "--server.headless=true"]
        process = subprocess.Popen(
            [*command, f"--server.port={port}", "--browser.gatherUsageStats=false"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until_up(port, process)
            site = f"http://127.0.0.1:{port}"
            page = browser.new_page(viewport={"width": 1440, "height": 950})
            page.goto(site)
            page.wait_for_selector(".wb-title", timeout=60_000)
            _, cold = new_tabs(page, site, ".wb-title", min(times, TABS))
            changes = []
            for _ in range(times):
                page.goto(site)
                page.wait_for_selector(".wb-title", timeout=60_000)
                rest(page)
                changes.append(page.evaluate(REST, ["charts", PATIENCE]) or math.inf)
        finally:
            process.terminate()
            process.wait()
    return [
        ("new tab of a bare Streamlit page", cold, math.inf, "s"),
        ("page change, bare, four charts", statistics.median(changes), math.inf, "ms"),
    ]


def new_tab(page: Any, address: str, selector: str) -> float:
    """Seconds from nothing, with no cache, until an element is there."""
    context = page.context.browser.new_context(viewport={"width": 1440, "height": 950})
    tab = context.new_page()
    began = time.perf_counter()
    tab.goto(address)
    tab.wait_for_selector(selector, timeout=60_000)
    seconds = time.perf_counter() - began
    context.close()
    return seconds


def new_tabs(page: Any, address: str, selector: str, times: int) -> tuple[float, float]:
    """Seconds of the first new tab, for which server and browser read much for the first time, and the median of
    ``times`` later ones.
    """
    first, *later = (new_tab(page, address, selector) for _ in range(1 + times))
    return first, statistics.median(later)


def use(page: Any, site: str, times: int) -> list[tuple[str, float, float, str]]:
    """A new tab, J, page changes and the graph on a small workspace, as one person uses them."""
    page.goto(f"{site}/about")  # the program has started; the tab's own start is what is measured next
    page.wait_for_selector(".wb-foot", timeout=60_000)
    first, cold = new_tabs(page, f"{site}/latent?d=mini-pythia.L2R-8x&i=20", ".ctx", min(times, TABS))
    page.goto(f"{site}/latent?d=mini-pythia.L2R-8x&i=20")
    page.wait_for_selector(".ctx", timeout=60_000)
    pressed: list[tuple[float, float]] = []
    unheard = 0
    while len(pressed) < times and unheard < times:
        rest(page)
        found = page.evaluate(PRESS, PATIENCE / 4)
        pressed += [tuple(found)] if found else []
        unheard += not found
    changes: dict[str, float] = {}
    for name in PAGES:
        seen = []
        for _ in range(2 if times < 10 else 5):
            page.goto(f"{site}/about" if name != "about" else f"{site}/lists")
            page.wait_for_selector(".wb-foot", timeout=60_000)
            rest(page)
            open_menu(page, name)
            seen.append(page.evaluate(REST, [name, PATIENCE]) or math.inf)
        changes[name] = statistics.median(seen)
    if not pressed:
        pressed = [(math.inf, math.inf)]
    slowest = max(changes, key=lambda name: changes[name])
    return [
        ("new tab to contexts", cold, 1.2, "s"),
        ("the same, the first one", first, math.inf, "s"),
        ("J to the heading, median", statistics.median(h for h, _ in pressed), 100, "ms"),
        ("J to the contexts, median", statistics.median(c for _, c in pressed), 200, "ms"),
        ("page change, median of pages", statistics.median(changes.values()), 600, "ms"),
        (f"page change, slowest ({slowest})", changes[slowest], 600, "ms"),
        ("page change, Matches", changes["mppc"], 600, "ms"),
        ("page change, Graph", changes["graph"], 600, "ms"),
        ("page change, Induction", changes["induction"], 600, "ms"),
    ]


def rest(page: Any) -> None:
    """Until the page has done nothing for a while, and its keys are heard."""
    page.wait_for_function(
        """() => { const busy = document.querySelector('[data-test-script-state=running], [data-stale=true]')
          if (busy || !window.__rest) window.__rest = performance.now()
          if (performance.now() - window.__rest < 1500) return false
          window.__rest = 0; return true }""",
        polling=50,
        timeout=60_000,
    )


def open_menu(page: Any, name: str) -> None:
    """Make the link to a page be there: it may be in a folded part of the menu."""
    link = f'a[href$="/{name}"]'
    if page.locator(link).count():
        return
    for section in ("Analyse", "Work"):
        page.get_by_text(section, exact=True).first.click()
        page.wait_for_timeout(300)
        if page.locator(link).count():
            return


if __name__ == "__main__":
    raise SystemExit(main())
