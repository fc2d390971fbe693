"""Workspaces the page tests look at, made once per session, and one way to open a page."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from streamlit import config
from streamlit.testing.v1 import AppTest

from tests.ui.browsing import CHROMIUM, Visit, serve
from tests.ui.synthetic import make_workspace, remove_files, vocabulary, write_records
from tests.ui.synthetic_results import add_all
from workbench.workspace import Workspace
from workbench_ui.components.near import EVERY

for option in ("runner.magicEnabled", "browser.gatherUsageStats"):
    config.set_option(option, False)  # as `workbench ui` serves the pages
APP = Path(__file__).resolve().parents[2] / "ui" / "workbench_ui" / "app.py"
OptionalParts = ("logits_id.npy", "logits_val.npy", "nbr_cos_id.npy", "nbr_cos_val.npy")


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two architectures, three layers, two snapshots."""
    ws = make_workspace(tmp_path_factory.mktemp("full") / "full")
    add_all(ws)
    return ws


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The same, every text of it an attack."""
    ws = make_workspace(tmp_path_factory.mktemp("hostile") / "hostile", hostile=True)
    add_all(ws, vocab=vocabulary(hostile=True), text="<img src=x onerror=window.__pwn=5> :red[x] $x^2$")
    return ws


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with nothing in it."""
    return Workspace(tmp_path_factory.mktemp("empty") / "empty")


@pytest.fixture(scope="session")
def minimal(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One dictionary's records without logit effects and neighbours, and no dictionary beside them."""
    ws = Workspace(tmp_path_factory.mktemp("minimal") / "minimal")
    meta = {
        "groups": ["top", "q1", "q2", "q3", "q4", "random", "near_miss"],
        "n_tokens": 100_000,
        "vocab": "vocab.json",
    }
    with ws.create("latents", "m.L0R-4x", metadata=meta) as tmp:
        write_records(tmp, latents=40, contexts=20, per_group=1, vocab=vocabulary(128))
    remove_files(ws.path("latents", "m.L0R-4x"), *OptionalParts)
    return ws


@pytest.fixture(scope="session")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Required files gone, truncated or foreign: the selected records are half-written, others are fine or worse."""
    ws = make_workspace(tmp_path_factory.mktemp("damaged") / "damaged")
    add_all(ws)
    (ws.path("latents", "mini-pythia.L1R-8x") / "hist.npy").unlink()
    (ws.path("latents", "mini-pythia.L2R-8x") / "group_ctx.npy").write_bytes(b"\x93NUMPY\x01\x00truncated")
    (ws.path("latents", "mini-mamba.L2R-8x") / "latents.parquet").write_bytes(b"not parquet")
    (ws.path("dictionaries", "mini-mamba.L2S-8x") / "manifest.json").write_text('{"workbench_schema": 99}')
    (ws.path("matches", "mini-pythia.L2R-8x__mini-mamba.L2R-8x") / "baselines.parquet").write_bytes(b"PAR1 cut short")
    (ws.path("circuits", "mini-pythia.induction") / "effects.parquet").write_bytes(b"nothing")
    (ws.path("circuits", "mini-mamba.induction") / "prompts.json").write_text("[{")
    (ws.path("evolution", "mini-pythia.L1R") / "decnorm.npy").write_bytes(b"\x93NUMPY")
    (ws.path("graphs", "mini-pythia.prompt.12345678") / "graph.json").write_text('{"nodes": [{}], "links": 3}')
    (ws.path("maps", "mini-pythia.L1R-8x") / "points.parquet").unlink()
    (ws.path("maps", "mini-pythia.L1R-8x") / "nearest_hist.parquet").write_bytes(b"no")
    (ws.path("explanations", "mini-pythia.L2R-8x.rules") / "labels.parquet").write_bytes(b"no")
    (ws.path("trust", "mini-pythia.L1R-8x") / "cards.parquet").write_bytes(b"no")
    (ws.path("claims", "universality.depth") / "finding.json").write_text('{"claim": 3}')
    (ws.path("claims", "llama-scope.folding") / "table.parquet").write_bytes(b"no")
    (ws.root / "lists").mkdir()
    (ws.root / "lists" / "broken.json").write_text("{")
    (ws.root / "lists" / "link.json").symlink_to("/etc/passwd")
    (ws.path("models", "mini-mamba") / "manifest.json").write_text("{")
    return ws


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A dictionary of random directions for each bundled model: real weights for the text probe, no records."""
    import torch

    from sae import TopKSAE
    from workbench.models import load_model

    ws = Workspace(tmp_path_factory.mktemp("real") / "real")
    for seed, model in enumerate(("mini-pythia", "mini-mamba")):
        width = load_model(model).cfg.d_model
        sae = TopKSAE(width, 64, 4)
        with torch.no_grad():
            rows = torch.nn.functional.normalize(
                torch.randn(64, width, generator=torch.Generator().manual_seed(seed)), dim=1
            )
            sae.enc_FD.copy_(rows)
            sae.dec_FD.copy_(rows)
        sae.metadata = {"kind": "sae", "model_name": model, "hook_name": "blocks.1.hook_resid_post", "site": "L1R"}
        with ws.create("dictionaries", f"{model}.L1R-1x", command="test", metadata=sae.metadata) as folder:
            sae.save(folder)
    return ws


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """``open_page(workspace, "latent", d=…, i=…)`` runs the page as a visitor with that address would see it."""

    def run(workspace: Workspace | Path, page: str = "overview", **address: object) -> AppTest:
        monkeypatch.setenv(
            "WORKBENCH_WORKSPACE", str(workspace.root if isinstance(workspace, Workspace) else workspace)
        )
        at = AppTest.from_file(str(APP), default_timeout=60)
        at.session_state[EVERY] = True  # nobody scrolls here
        at.run()
        if page != "overview" or address:
            at.switch_page(f"app_pages/{page}.py")
            for key, value in address.items():
                at.query_params[key] = str(value)
            at.run()
        return at

    return run


def page_text(at: AppTest) -> str:
    """All markup the page sent, one string."""
    return "\n".join(str(e.value) for e in at.get("html") if "<style>" not in str(e.value))


def table_of(at: AppTest) -> dict[str, list[str]]:
    """The first table whose rows are links, as text: column title -> cells."""
    html = next(
        str(e.value) for e in at.get("html") if 'class="wb-table"' in str(e.value) and "wb-rows" in str(e.value)
    )
    titles = [re.sub("<[^>]+>", "", t).rstrip(" ▼▲") for t in re.findall(r"<th [^>]*>(.*?)</th>", html, re.S)]
    rows = [
        re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in re.findall(r"<tr data-row[^>]*>(.*?)</tr>", html, re.S)
    ]
    cells = [[unescape(re.sub("<[^>]+>", "", cell)) for cell in row] for row in rows]
    return {title: [row[j] for row in cells] for j, title in enumerate(titles)}


def latents_of(at: AppTest) -> list[int]:
    """The latents that the table shows, in its order."""
    return [int(x.replace(",", "")) for x in table_of(at)["latent"]]


def param(at: AppTest, key: str) -> str:
    """One value of the page's address."""
    value = at.query_params[key]
    return value if isinstance(value, str) else value[0]


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


@pytest.fixture(scope="module")
def site(full: Workspace) -> Iterator[str]:
    yield from serve(full)


@pytest.fixture
def visit(browser: Any, site: str) -> Iterator[Visit]:
    found = Visit(browser, site)
    yield found
    found.context.close()
    assert found.troubles == []
