"""How soon the pages of `workbench export site` are there: 1,000 latents of a dictionary, from disk, in a browser.

    python benchmarks/gallery.py            # 1,000 latents
    python benchmarks/gallery.py --quick    # 200

Printed per page: bytes of its HTML, and milliseconds until the load event and until the first paint, the median of five
fresh tabs of headless Chromium. The latents are made up; nothing is trained.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

TIMES = """() => {
  const load = performance.getEntriesByType('navigation')[0].loadEventEnd
  const paint = performance.getEntriesByName('first-contentful-paint')[0]
  return [load, paint ? paint.startTime : load]
}"""


def main() -> None:
    from tests.ui.browsing import CHROMIUM
    from tests.ui.synthetic import make_workspace
    from workbench.verbs.publishing import export

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="200 latents")
    latents = 200 if parser.parse_args().quick else 1000
    if not Path(CHROMIUM).exists():
        sys.exit(f"{CHROMIUM} is not there: nothing is measured.")
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as tmp, sync_playwright() as p:
        ws = make_workspace(Path(tmp) / "ws", latents=latents, big=True)
        folder = export(ws, "site", set={"latents": latents}).path
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        print(f"{'page':44} {'bytes':>9} {'load ms':>8} {'paint ms':>8}")
        first = next(iter(sorted((folder / "latents/mini-pythia.L1R-8x").glob("[0-9]*.html"))))
        for path in (folder / "index.html", first.with_name("index.html"), first):
            times = []
            for _ in range(5):
                page = browser.new_page()
                page.goto(f"file://{path}", wait_until="load")
                page.wait_for_function("performance.getEntriesByType('navigation')[0].loadEventEnd > 0")
                times.append(page.evaluate(TIMES))
                page.close()
            load, paint = (statistics.median(t[j] for t in times) for j in (0, 1))
            print(f"{path.relative_to(folder)!s:44} {path.stat().st_size:>9,} {load:>8.0f} {paint:>8.0f}")


if __name__ == "__main__":
    main()
