"""Three people's ways through the pages: a newcomer's five minutes, a researcher's list, a reviewer's figure."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ui.browsing import Visit, heading, query_of, serve
from tests.ui.synthetic import make_workspace
from tests.ui.synthetic_results import add_all
from workbench.results.labels import save_label
from workbench.results.lists import delete_list, read_lists
from workbench.workspace import Workspace

pytestmark = pytest.mark.browser
L2 = "mini-pythia.L2R-8x"


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The whole workspace, with dictionaries that can read: random directions for the bundled models."""
    import torch

    from sae import TopKSAE

    ws = make_workspace(tmp_path_factory.mktemp("lively") / "lively")
    add_all(ws)
    for seed, id in enumerate((L2, "mini-mamba.L2R-8x")):
        about = {**ws.get("dictionaries", id).manifest.metadata, "hook_name": "blocks.2.hook_resid_post"}
        sae = TopKSAE(128, 256, 16)
        with torch.no_grad():
            rows = torch.randn(256, 128, generator=torch.Generator().manual_seed(seed))
            sae.enc_FD.copy_(torch.nn.functional.normalize(rows, dim=1))
            sae.dec_FD.copy_(sae.enc_FD)
        sae.metadata = about
        with ws.create("dictionaries", id, command="test", metadata=about, replace=True) as folder:
            sae.save(folder)
    yield from serve(ws)


def says_nothing_is_missing(page: Any, where: str) -> None:
    said = page.locator("body").inner_text()
    assert not re.search(r"uncomputed|not computed|cannot be shown|workbench [a-z]+ .*--workspace", said), where


def test_a_newcomer_finds_a_meaning_a_twin_a_birth_and_reads_a_text(browser: Any, lively: str) -> None:
    tab = Visit(browser, lively)
    try:
        page = tab.open()
        heading(page, "What has a language model learnt?")
        says_nothing_is_missing(page, "front door")
        page.get_by_role("link", name="open it →").click()
        page.wait_for_function("document.querySelector('.wb-title h1')?.textContent.startsWith('Latent ')")
        tab.settle()
        assert page.locator(".ctx b").count() > 5
        assert not re.search(r"uncomputed|not computed", page.locator("body").inner_text())
        page.get_by_role("link", name=re.compile("both on the same tokens →")).first.click()
        heading(page, "Pair")
        tab.settle()
        says_nothing_is_missing(page, "pair")
        assert {"d", "d2", "i", "i2"} <= set(query_of(page.url))
        page.get_by_role("link", name="Overview", exact=True).first.click()
        page.get_by_role("link", name="play the training →").click()
        page.wait_for_selector(".scrub .row span")
        tab.settle()
        says_nothing_is_missing(page, "training")
        was = page.locator(".scrub output").inner_text()
        page.locator(".scrub input[type=range]").press("Home")
        page.wait_for_function(
            "was => [...document.querySelectorAll('*')].some(e => e.shadowRoot?.querySelector('.scrub output') &&"
            " e.shadowRoot.querySelector('.scrub output').textContent !== was)",
            arg=was,
        )
        page.get_by_role("link", name="Overview", exact=True).first.click()
        page.get_by_label("Your own text").fill("def read(self): return open(")
        page.get_by_role("button", name="Read it").click()
        heading(page, "Text probe")
        page.wait_for_function("document.querySelectorAll('.wb-ctxs').length >= 2", timeout=180_000)
        tab.settle()
        assert query_of(page.url)["text"] == "def read(self): return open("
        says_nothing_is_missing(page, "probe")
        page.locator(".wb-tokens a").nth(2).click()
        page.wait_for_function("document.querySelector('.wb-ctxs + .wb-panel, .wb-ctxs + .wb-tablewrap')")
        assert tab.troubles == []
    finally:
        tab.context.close()


def test_a_researcher_filters_lists_walks_labels_and_exports(visit: Visit, full: Workspace) -> None:
    try:
        page = visit.open(f"latents?d={L2}")
        page.locator(".st-key-q input").fill("plain 3")
        page.wait_for_url(re.compile("q=plain"))
        visit.settle()
        page.get_by_role("button", name=re.compile("^.*Add all .* to a list")).click()
        field = page.get_by_role("combobox", name="List")
        field.fill("Mine")
        field.press("Enter")
        page.get_by_role("button", name="Add", exact=True).click()
        page.get_by_text(re.compile("added to Mine")).wait_for()
        id, kept = next((i, x) for i, x in read_lists(full.root)[0].items() if x.name == "Mine")
        assert len(kept.items) > 1 and {x.dictionary for x in kept.items} == {L2}
        page = visit.open(f"latent?d={L2}&i={kept.items[0].latent}&list={id}")
        page.locator(".wb-title h1").click()
        page.keyboard.press("j")
        page.wait_for_url(re.compile(rf"i={kept.items[1].latent}\b"))  # J walks the list, not the numbers
        (graph,) = [i.id for i in full.items("graphs")]
        page = visit.open(f"graph?gr={graph}&pin=3_17_7")
        label = page.get_by_label("Your label")
        label.fill("the answer")
        label.press("Enter")
        page.get_by_text("“the answer”").first.wait_for()
        page = visit.open(f"export?f=latent_contexts&src=latents%2F{L2}&i={kept.items[0].latent}")
        with page.expect_download() as caught:
            page.get_by_role("button", name="Download the bundle").click()
        assert zipfile.ZipFile(caught.value.path()).testzip() is None
        assert visit.troubles == []
    finally:
        for id, x in read_lists(full.root)[0].items():
            if x.name == "Mine":
                delete_list(full.root, id)
        for g in full.items("graphs"):
            save_label(full.root, g.id, "3_17_7", "", "")


def test_a_reviewer_takes_a_figure_reads_its_table_and_makes_it_again(
    visit: Visit, full: Workspace, tmp_path: Path
) -> None:
    (m,) = [i.id for i in full.items("matches")][:1]
    page = visit.open(f"export?f=mppc_distribution&src=matches%2F{m}")
    with page.expect_download() as caught:
        page.get_by_role("button", name="Download the bundle").click()
    first = zipfile.ZipFile(caught.value.path())
    found = {Path(n).name: first.read(n) for n in first.namelist()}
    assert found["figure.pdf"].startswith(b"%PDF")
    tex = found["table.tex"].decode()
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 1 and r"\toprule" in tex
    assert b"@" in found["refs.bib"] and full.get("matches", m).version.encode() in found["caption.txt"]
    (tmp_path / "spec.json").write_bytes(found["spec.json"])
    made = subprocess.run(
        [sys.executable, "-m", "workbench", "export", "spec.json", "--workspace", str(full.root), "--out", "again.zip"],
        cwd=tmp_path, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    again = zipfile.ZipFile(tmp_path / "again.zip")
    same = {Path(n).name: again.read(n) for n in again.namelist()}
    for name in ("figure.pdf", "figure.svg", "data.csv", "table.tex", "caption.txt"):
        assert same[name] == found[name], name
    assert json.loads(found["provenance.json"]) and visit.troubles == []
