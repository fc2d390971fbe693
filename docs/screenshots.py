"""Pictures of every page of a workspace, in both themes and two widths: ``python docs/screenshots.py WORKSPACE OUT``.

Starts ``workbench ui`` on a free port, opens each page in Chromium, waits until nothing loads any more, and writes
``OUT/<page and query>-<theme>-<width>.png``. Pages are also taken in use (:data:`SCENES`): a range brushed, a text
read and steered, a node chosen, a link made on other data, a search without results. Nothing is written into the
workspace. Exits 1 where a page shows an exception, asks another host for anything, or logs an error.

The first picture of the README is ``docs/images/latent.png``, from a workspace of ``make demo-real``; commands to copy
are left out of it, since they name a folder of the machine it was taken on:

    python docs/screenshots.py WORKSPACE OUT --only "latent?d=smollm2-135m.L15R-8x&i=2050" \\
        --theme light --width 1440 --height 1360 --hide .run
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from workbench_ui.kit.index import read_index
from workbench_ui.kit.pages import PAGES

TEXT = "class Reader:\n    def read(self, path):\n        with open(path) as f:\n            return f.read()\n\n"
BUSY = "[data-testid=stSkeleton], [data-test-script-state=running], [data-stale=true]"


def brush(page: Any) -> None:
    """Drag over the middle of the distribution."""
    box = page.locator(".st-key-mx_dist_fig .nsewdrag").first.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.55 * box["width"], y)
    page.mouse.down()
    for share in (0.6, 0.65, 0.7):
        page.mouse.move(box["x"] + share * box["width"], y)
    page.mouse.up()
    page.wait_for_timeout(1500)


def steer(page: Any) -> None:
    """Push the first latent of the left side by twice its maximum."""
    page.get_by_role("slider").first.focus()
    for _ in range(8):
        page.keyboard.press("ArrowRight")
    page.get_by_text("pushed by").first.wait_for(timeout=60_000)


def continue_text(page: Any) -> None:
    """Continue the text, with a latent pushed, until the perplexities are there."""
    page.get_by_role("button", name="Continue", exact=False).first.click()
    page.get_by_text("under the unchanged model").first.wait_for(timeout=120_000)


def choose_node(page: Any) -> None:
    """Click a node of an upper layer."""
    nodes = page.locator("g.node[data-id]")
    nodes.nth(nodes.count() // 2).click(force=True)
    page.get_by_text("Chosen node").wait_for(timeout=60_000)


def box(page: Any) -> None:
    """Draw a box on the map."""
    chart = page.locator(".js-plotly-plot").first
    chart.locator(".modebar-btn[data-title='Box Select']").click()
    at = chart.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(at["x"] + 0.35 * at["width"], at["y"] + 0.35 * at["height"])
    page.mouse.down()
    page.mouse.move(at["x"] + 0.6 * at["width"], at["y"] + 0.6 * at["height"], steps=10)
    page.mouse.up()
    page.get_by_text("latents chosen").wait_for(timeout=60_000)


def unfold(page: Any) -> None:
    """Open the first table below a chart."""
    page.get_by_text("Show as table").first.click()
    page.wait_for_timeout(1500)


# name: page and address, and what is done there before the picture is taken
SCENES: dict[str, tuple[str, Callable[[Any], None] | None]] = {
    "probe-read": (f"probe?{urlencode({'text': TEXT})}", None),
    "probe-steered": (f"probe?{urlencode({'text': TEXT})}", steer),
    "probe-continued": (f"probe?{urlencode({'text': TEXT, 'cch': '17=12, 20:=0', 'cn': 60})}", continue_text),
    "mppc-brushed": ("mppc", brush),
    "mppc-table": ("mppc", unfold),
    "graph-node": ("graph", choose_node),
    "map-box": ("map", box),
    "latents-searched": ("latents?q=self", None),
    "latents-nothing": ("latents?q=nothing+fires+on+this", None),
    "latent-old-link": ("latent?i=999999&v=deadbeef", None),
    "latent-foreign": ("latent?d=..%2F..%2Fetc%2Fpasswd", None),
    "export-document": ("export?f=latents_page&i=3", None),
}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Pictures of every page of a workspace.")
    parser.add_argument("workspace", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--only",
        nargs="*",
        metavar="PAGE[?QUERY]",
        help="pages (with an address where wanted) and scenes; all by default",
    )
    parser.add_argument("--theme", nargs="*", default=["light", "dark"], choices=["light", "dark"])
    parser.add_argument("--width", nargs="*", type=int, default=[1440, 1024])
    parser.add_argument("--height", type=int, default=0, help="pixels; 0 takes the whole page")
    parser.add_argument("--hide", nargs="*", default=[], metavar="CSS", help="elements that are left out")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    args = parser.parse_args()
    index = read_index(args.workspace)
    here = [p.stem for p in PAGES if p.shown(index)]
    pages = args.only or [*here, *(name for name, (path, _) in SCENES.items() if path.partition("?")[0] in here)]
    args.out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    server = subprocess.Popen(
        [sys.executable, "-m", "workbench", "ui", "-w", str(args.workspace), "-p", str(port)], env=environment
    )
    try:
        _wait(port)
        return take(f"http://127.0.0.1:{port}", pages, args)
    finally:
        server.terminate()
        server.wait(10)


def _wait(port: int) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).read()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server did not come up")


def take(site: str, pages: list[str], args: argparse.Namespace) -> int:
    """All pictures; returns the exit code."""
    from playwright.sync_api import sync_playwright

    troubles: list[str] = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        for theme in args.theme:
            for width in args.width:
                context = browser.new_context(
                    color_scheme=theme, viewport={"width": width, "height": args.height or 950}
                )
                page = context.new_page()
                page.on("pageerror", lambda e: troubles.append(f"page error: {e}"))
                page.on(
                    "console", lambda m: troubles.append(m.text) if m.type == "error" and "404" not in m.text else None
                )
                page.on(
                    "request",
                    lambda r: (
                        troubles.append(f"foreign: {r.url}")
                        if not r.url.startswith((site, site.replace("http", "ws"), "data:", "blob:"))
                        else None
                    ),
                )
                for name in pages:
                    path, act = SCENES.get(name, (name, None))
                    stem = re.sub(r"[^\w.]+", "-", name).strip("-")
                    page.goto(f"{site}/{'' if path == 'overview' else path}")
                    _settle(page)
                    if act is not None:
                        act(page)
                        _settle(page)
                    for hidden in args.hide:
                        page.locator(hidden).evaluate_all("all => all.forEach(e => e.style.display = 'none')")
                    if not args.height:
                        tall = page.evaluate(
                            "Math.max(...[...document.querySelectorAll('section, .stMain')].map(e => e.scrollHeight))"
                        )
                        page.set_viewport_size({"width": width, "height": min(2600, max(700, int(tall) + 8))})
                        page.wait_for_timeout(500)
                    if page.locator(".stException").count():
                        troubles.append(f"{name}: an exception is shown")
                    page.screenshot(path=args.out / f"{stem}-{theme}-{width}.png")
                    print(f"{stem}-{theme}-{width}.png")
                    page.set_viewport_size({"width": width, "height": args.height or 950})
                context.close()
        browser.close()
    for line in dict.fromkeys(troubles):
        print(f"trouble: {line}", file=sys.stderr)
    return 1 if troubles else 0


def _settle(page: Any) -> None:
    """Until the page has come to its end and nothing is being loaded."""
    page.wait_for_selector(".wb-foot", timeout=120_000)
    page.wait_for_function(f"!document.querySelector('{BUSY}')", timeout=120_000)
    page.wait_for_timeout(900)
    page.wait_for_function(f"!document.querySelector('{BUSY}')", timeout=120_000)


if __name__ == "__main__":
    raise SystemExit(main())
