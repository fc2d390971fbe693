"""The Graph page takes nodes apart and changes them: on a real miniature, with what the shell prints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from tests.ui.conftest import page_text, param
from tests.workbench.analysis.graph.test_graph import random_dictionaries
from workbench import graph, intervene
from workbench.models import load_model
from workbench.provenance import write_manifest
from workbench.results.splits import read_splits
from workbench.workspace import Item, Workspace

Open = Callable[..., AppTest]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Item]:
    """A graph of mini-pythia through random dictionaries, split."""
    ws = Workspace(tmp_path_factory.mktemp("parts"))
    for hook, sae in random_dictionaries(load_model("mini-pythia"), (0, 1)).items():
        layer = hook.split(".")[1]
        sae.metadata = {"model_name": "mini-pythia", "hook_name": hook, "site": f"L{layer}R"}
        id = f"mini-pythia.L{layer}R-1x"
        sae.save(ws.path("dictionaries", id))
        write_manifest(ws.path("dictionaries", id), "dictionaries", id, metadata=sae.metadata | {"kind": "sae"})
    return ws, graph(ws, "def read(self", node_share=1.0, edge_share=1.0, split=True)


def latents(item: Item, layer: str) -> list[dict]:
    nodes = json.loads((item.path / "graph.json").read_text())["nodes"]
    return sorted((n for n in nodes if n["activation"] and n["layer"] == layer), key=lambda n: -n["influence"])


def test_a_node_shows_its_heads_and_why_its_head_looks(open_page: Open, made: tuple[Workspace, Item]) -> None:
    ws, item = made
    splits = read_splits(item.path)
    assert splits is not None
    node = latents(item, "1")[0]["node_id"]
    text = page_text(open_page(ws, "graph", gr=item.id, pin=node))
    loads = splits.loadings[splits.loadings["target"] == node]
    for row in loads.itertuples():
        assert f"{row.value:+.3g}" in text
    assert "By heads" in text and "past the mixer of layer 1" in text and "looks there" in text
    pair = splits.scores[splits.scores["target"] == node].iloc[0]
    assert f"score {pair['score']:+.2f}" in text and f"{pair['value']:+.3g}" in text
    assert "mostly through" in text


def test_a_change_answers_with_what_the_shell_prints(open_page: Open, made: tuple[Workspace, Item]) -> None:
    ws, item = made
    a, b = (n["node_id"] for n in latents(item, "1")[:2])
    at = open_page(ws, "graph", gr=item.id, pin=a)
    assert "With these changes" not in page_text(at)
    at.button(key="gt_add").click().run()
    assert param(at, "do") == f"{a}=0"
    found = intervene(ws, item.id, set=[f"{a}=0"]).intervention
    assert found is not None
    text = page_text(at)
    assert f"{found.kl:.3g}" in text and f"{100 * found.after[0]:.1f} %" in text
    assert f"{found.predicted[0]:+.3f}" in text and f"{found.measured[0]:+.3f}" in text
    start = time.perf_counter()
    at.segmented_control(key="att").set_value("free").run()
    took = time.perf_counter() - start
    free = intervene(ws, item.id, set=[f"{a}=0"], freeze=False).intervention
    assert free is not None and f"{free.measured[0]:+.3f}" in page_text(at)
    assert took < 10  # within 1 s on a machine of its own; the tests share theirs
    text = page_text(open_page(ws, "graph", gr=item.id, pin=a, do=f"{a}~{b}"))
    swapped = intervene(ws, item.id, swap=[f"{a}={b}"]).intervention
    assert swapped is not None and f"{swapped.measured[0]:+.3f}" in text


def test_what_cannot_be_changed_is_said(open_page: Open, made: tuple[Workspace, Item]) -> None:
    ws, item = made
    at = open_page(ws, "graph", gr=item.id, do="9_9_9=0;<script>=x")
    assert not at.exception and "This cannot be changed" in page_text(at) and "<script>" not in page_text(at)
    at.button(key="gt_drop_9_9_9=0").click().run()
    assert param(at, "do") == "<script>=x"


def test_a_graph_without_its_split_names_the_command(open_page: Open, full: Workspace) -> None:
    node = json.loads((full.path("graphs", "mini-pythia.prompt.12345678") / "graph.json").read_text())["nodes"][-1]
    text = page_text(open_page(full, "graph", pin=node["node_id"]))
    assert "Heads and channels" in text and "--split" in text


def test_the_unit_that_carries_most(made: tuple[Workspace, Item]) -> None:
    splits = read_splits(made[1].path)
    assert splits is not None
    rows = splits.splits[splits.splits["unit"].str.startswith("H")]
    row = rows.loc[rows["value"].abs().idxmax()]
    assert splits.strongest(row["source"], row["target"]).startswith(f"L{row['layer']}{row['unit']}")
    assert splits.strongest("E_0", "nowhere") == ""
    assert isinstance(splits.reads, pd.DataFrame) and read_splits(made[1].path.parent) is None
