"""The pages on a generated dictionary of 100,000 latents: ``python benchmarks/browser.py``.

Prints, beside its budget: memory of the server after browsing (600 MiB), click to paint of the next latent in headless
Chromium (median 200 ms), the first page from nothing (3 s), a step of the training scrubber (10 ms), and the server's
own work per rerun of the latent page, the table and a search (40 ms of CPU); and click to paint while another session
digests a file of 512 MiB (200 ms). ``--quick`` takes 10,000 latents and fewer clicks. Exits 1 where a budget is missed
with ``--strict``, and without Chromium prints only what needs none.
"""

from __future__ import annotations

import argparse
import os
import statistics
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


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Budgets of the pages on a large dictionary.")
    parser.add_argument("--quick", action="store_true", help="10,000 latents, fewer clicks")
    parser.add_argument("--latents", type=int, default=0)
    parser.add_argument("--strict", action="store_true", help="exit 1 where a budget is missed")
    args = parser.parse_args()
    latents = args.latents or (10_000 if args.quick else 100_000)
    clicks = 8 if args.quick else 25
    found: list[tuple[str, float, float, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        workspace = make_workspace(Path(folder) / "big", latents=latents, big=True)
        small = make_workspace(Path(folder) / "small")
        add_all(small)
        add_large_result(workspace)
        found += server_work(workspace, 3 if args.quick else 9)
        if Path(CHROMIUM).exists():
            found += in_browser(workspace, small, clicks)
        else:
            print(f"{CHROMIUM} is not installed: memory, click to paint, first page and scrub are not measured")
    print(f"{latents:,} latents; load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for name, value, budget, unit in found:
        print(f"{name:34} {value:8.1f} {unit:4} budget {budget:g}  {'ok' if value <= budget else 'MISSED'}")
    return 1 if args.strict and any(v > b for _, v, b, _ in found) else 0


def server_work(workspace: Workspace, times: int) -> list[tuple[str, float, float, str]]:
    """Median CPU milliseconds of a rerun, router and page together."""
    from streamlit.testing.v1 import AppTest

    os.environ["WORKBENCH_WORKSPACE"] = str(workspace.root)

    def page(name: str, **address: str) -> Any:
        at = AppTest.from_file(str(ROOT / "ui" / "app.py"), default_timeout=120).run()
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


def in_browser(workspace: Workspace, small: Workspace, clicks: int) -> list[tuple[str, float, float, str]]:
    """First page, click to paint and memory on the large dictionary; the scrubber on a small one."""
    import psutil
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with served(workspace) as (site, pid):
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
            page.wait_for_selector("[data-testid=stDataFrame] canvas", timeout=60_000)
            process = psutil.Process(pid)
            memory = sum(x.memory_info().rss for x in [process, *process.children(recursive=True)]) / 2**20
        with served(small) as (site, _):
            page = browser.new_page(viewport={"width": 1440, "height": 950})
            page.goto(f"{site}/training")
            page.wait_for_selector(".scrub .row span", timeout=60_000)
            scrub = page.locator(".scrub input[type=range]").evaluate(SCRUB)
        browser.close()
    return [
        ("memory of the server", memory, 600, "MiB"),
        ("first page", first, 3, "s"),
        ("click to paint, median", statistics.median(times), 200, "ms"),
        ("the same beside a read of 512 MiB", statistics.median(beside), 200, "ms"),
        ("scrub step, median", statistics.median(scrub), 10, "ms"),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
