"""How long the server works on every page of a workspace: ``python benchmarks/pages.py WORKSPACE``.

Each page is opened as a visitor would, twice: *first* reads what it shows from the disk, *again* is a rerun. Printed
are wall and processor seconds of both (a busy machine lengthens the first, not the second). With ``--text`` the text
probe reads it with the workspace's model, *first* with the model to be loaded, *again* with another text. ``--strict``
exits 1 where a rerun takes longer than a second of processor time, or the probe's longer than two.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

from streamlit import config
from streamlit.testing.v1 import AppTest

from workbench_ui.kit.index import read_index
from workbench_ui.kit.pages import PAGES

APP = Path(__file__).resolve().parents[1] / "ui" / "workbench_ui" / "app.py"
PAGE, PROBE = 1.0, 2.0  # seconds
OTHER = "The second text is read by a model that is there already. "


# AppTest runs pages outside a server, and says so for every one of them
logging.getLogger("streamlit.runtime.scriptrunner_utils.script_run_context").disabled = True


def run(at: AppTest) -> tuple[float, float]:
    """(wall, processor) seconds of one run of the page."""
    wall, processor = time.perf_counter(), time.process_time()
    at.run()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path, nargs="?")
    parser.add_argument("--text", default="", help="what the text probe reads")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a small generated workspace")
    args = parser.parse_args()
    if args.quick or args.workspace is None:
        sys.path.insert(0, str(APP.parents[2]))
        from tests.ui.synthetic import make_workspace
        from tests.ui.synthetic_results import add_all

        made = make_workspace(Path(tempfile.mkdtemp()) / "pages")
        add_all(made)
        args.workspace = made.root
    os.environ["WORKBENCH_WORKSPACE"] = str(args.workspace)
    for option in ("runner.magicEnabled", "browser.gatherUsageStats"):
        config.set_option(option, False)  # as `workbench ui` serves the pages
    index, slow = read_index(args.workspace), []
    AppTest.from_file(str(APP), default_timeout=300).run()  # what every page imports
    print(f"{'page':10} {'first: wall':>12} {'processor':>10} {'again: wall':>12} {'processor':>10}   seconds")
    for page in (p.stem for p in PAGES if p.shown(index)):
        at = AppTest.from_file(str(APP), default_timeout=300)
        at.switch_page(f"app_pages/{page}.py")
        reads = page == "probe" and bool(args.text)
        if reads:
            at.query_params["text"] = args.text
        first = run(at)
        if reads:
            at.query_params["text"] = OTHER + args.text
        again = run(at)
        shown = " ".join(str(e.value) for e in at.get("html"))
        failed = bool(at.exception) or "cannot be shown" in shown
        print(
            f"{page:10} {first[0]:12.2f} {first[1]:10.2f} {again[0]:12.2f} {again[1]:10.2f}{'  FAILED' * failed}",
            flush=True,
        )
        if failed or again[1] > (PROBE if reads else PAGE):
            slow.append(page)
    if slow:
        print(f"over budget, or failed: {', '.join(slow)}")
    return int(bool(slow) and args.strict)


if __name__ == "__main__":
    raise SystemExit(main())
