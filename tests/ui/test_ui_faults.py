"""Results that change while somebody looks: replaced, deleted, half-written; and two sessions that do not wait for each
other.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.ui.conftest import page_text, param, table_of
from tests.ui.synthetic import GROUPS, add_dictionary, write_records
from workbench.workspace import Workspace

pytestmark = pytest.mark.faults
Open = Callable[..., AppTest]
RESULTS = {
    "latent": "latents/mini-pythia.L1R-8x",
    "latents": "latents/mini-pythia.L1R-8x",
    "mppc": "matches/mini-pythia.L2R-8x__mini-mamba.L2R-8x",
    "pair": "matches/mini-pythia.L2R-8x__mini-mamba.L2R-8x",
    "induction": "circuits/mini-mamba.induction",
    "states": "states/mini-mamba.induction",
    "training": "evolution/mini-pythia.L1R",
    "graph": "graphs/mini-pythia.prompt.12345678",
    "map": "maps/mini-pythia.L1R-8x",
    "results": "claims/universality.depth",
}


@pytest.fixture
def copy(full: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(full.root, tmp_path / "copy")
    return Workspace(tmp_path / "copy")


@pytest.mark.parametrize("page", RESULTS)
def test_half_written_then_deleted_under_the_page(page: str, open_page: Open, copy: Workspace) -> None:
    """Every file cut in half while the page is open (a rewrite in place, then a crash), then the result gone: notices,
    no traceback.
    """
    folder = copy.root / RESULTS[page]
    at = open_page(copy, page, d="mini-pythia.L1R-8x")
    assert not at.exception and "cannot be shown" not in page_text(at)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "manifest.json":
            half = path.read_bytes()[: path.stat().st_size // 2]
            path.unlink()  # a new file under the old name: open memory maps keep the old bytes
            path.write_bytes(half)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text())  # the index sees a change and opens everything anew
    at.run()
    assert not at.exception and "wb-foot" in page_text(at)
    manifest.write_bytes(manifest.read_bytes()[:40])
    at.run()
    assert not at.exception and "wb-foot" in page_text(at)
    shutil.rmtree(folder)
    at.run()
    assert not at.exception and "wb-foot" in page_text(at)


def test_replaced_records_are_read_anew_and_the_link_says_so(open_page: Open, copy: Workspace) -> None:
    at = open_page(copy, "latent", d="mini-pythia.L1R-8x", i=3)
    old = param(at, "v")
    about = copy.get("latents", "mini-pythia.L1R-8x").manifest
    with copy.create(
        "latents", about.id, replace=True, command="again", metadata={**about.metadata, "n_tokens": 7_777_777}
    ) as folder:
        write_records(folder, latents=40, contexts=20, seed=9)
    at.run()
    text = page_text(at)
    assert not at.exception and "7,777,777 tokens" in text
    assert f"made on data version <code>{old}</code>" in text
    at = open_page(copy, "latent", d="mini-pythia.L1R-8x", i=200)  # there are only 40 now
    assert not at.exception and "There is no latent <b>200</b> here" in page_text(at)


def test_a_result_appears_while_the_page_is_open(open_page: Open, copy: Workspace) -> None:
    at = open_page(copy)
    before = len(table_of(at)["site"])
    add_dictionary(copy, "mini-pythia.L0R-8x", model="mini-pythia", revision=None, site="L0R", latents=32)
    part = copy.root / "latents" / ".mini-mamba.L0R-8x.1234.part"  # a result that is still being written
    part.mkdir()
    write_records(part, latents=8)
    at.run()
    shown = table_of(at)["site"]
    assert len(shown) == before + 1 and "L0R · layer 0, residual stream" in shown
    assert ".part" not in page_text(at) and len(GROUPS) == 7


def test_a_session_does_not_wait_for_the_large_read_of_another(
    open_page: Open, full: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One session is held in the middle of its self-test, as on a slow disk; the other opens and turns
    pages meanwhile.
    """
    import workbench.provenance

    inside, let_go = threading.Event(), threading.Event()
    real = workbench.provenance.check_files

    def slow(*args: object, **kw: object) -> list[str]:
        inside.set()
        assert let_go.wait(120)
        return real(*args, **kw)  # type: ignore[arg-type]

    monkeypatch.setattr(workbench.provenance, "check_files", slow)
    other = open_page(full, "about")
    thread = threading.Thread(target=lambda: other.button(key="ab_check").click().run(timeout=120), daemon=True)
    thread.start()
    try:
        assert inside.wait(60)
        at = open_page(full, "latent", d="mini-pythia.L1R-8x", i=7)
        at.button(key="wb_next").click().run()
        assert "Latent 8" in page_text(at) and not at.exception
        assert thread.is_alive()  # the other one is still in its read
    finally:
        let_go.set()
        thread.join(120)
    assert "as they were written" in page_text(other)
