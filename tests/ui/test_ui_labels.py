"""A reader's own labels of a graph's nodes: kept beside the graph, shown wherever the node is, carried
by its download.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from sae.errors import ConfigError, CorruptError, UsageError
from tests.ui.conftest import page_text
from workbench.results.labels import (
    GraphLabels,
    NodeLabel,
    read_labels,
    save_group,
    save_label,
    save_pin,
    with_labels,
)
from workbench.workspace import KINDS, Workspace
from workbench_ui.views.graph_drawing import NAMED, drawing, pdf, svg
from workbench_ui.views.graphs import open_graph, parse_graph

Open = Callable[..., AppTest]
GRAPH = "mini-pythia.prompt.12345678"


@pytest.fixture
def copy(full: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(full.root, tmp_path / "copy")
    return Workspace(tmp_path / "copy")


@pytest.fixture
def node(copy: Workspace) -> str:
    """A latent that some strong link touches."""
    document = json.loads((copy.path("graphs", GRAPH) / "graph.json").read_text())
    return str(next(n["node_id"] for n in document["nodes"] if n["layer"] == "2" and n["feature"] is not None))


def test_labels_are_kept_changed_and_removed(tmp_path: Path) -> None:
    assert read_labels(tmp_path, "g") == GraphLabels(graph="g") and not list(tmp_path.iterdir())
    save_label(tmp_path, "g", "1_2_3", "  a \n function ", "v1")
    save_label(tmp_path, "g", "E_0", "start", "v2")
    path = tmp_path / "labels" / "g.json"
    assert json.loads(path.read_text()) == {
        "workbench_schema": 2,
        "graph": "g",
        "labels": {"1_2_3": {"text": "a function", "version": "v1"}, "E_0": {"text": "start", "version": "v2"}},
        "subgraph": {"version": "", "pins": [], "groups": {}},
    }
    save_label(tmp_path, "g", "1_2_3", "", "v2")
    assert list(read_labels(tmp_path, "g").labels) == ["E_0"]
    was = path.stat().st_mtime_ns
    save_label(tmp_path, "g", "E_0", "start", "v2")  # nothing new, nothing written
    assert path.stat().st_mtime_ns == was and [p.name for p in path.parent.iterdir()] == ["g.json"]


def test_labels_refuse_nonsense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for graph in ("../out", "a/b", ""):
        with pytest.raises(UsageError):
            save_label(tmp_path, graph, "n", "x", "v")
    with pytest.raises(UsageError, match="at most 120 characters, this one 121"):
        save_label(tmp_path, "g", "n", "x" * 121, "v")
    monkeypatch.setattr("workbench.results.labels.MAX_LABELS", 1)
    save_label(tmp_path, "g", "n", "x", "v")
    with pytest.raises(UsageError, match="at most 1 labels"):
        save_label(tmp_path, "g", "m", "x", "v")
    folder = tmp_path / "labels"
    (tmp_path / "outside.json").write_text((folder / "g.json").read_text().replace('"g"', '"link"'))
    (folder / "link.json").symlink_to(tmp_path / "outside.json")
    before = (tmp_path / "outside.json").read_bytes()
    assert read_labels(tmp_path, "link").labels == {}
    with pytest.raises(UsageError, match="is a link"):
        save_label(tmp_path, "link", "n", "y", "v")
    (folder / "dir.json").mkdir()
    assert read_labels(tmp_path, "dir").labels == {}
    assert (tmp_path / "outside.json").read_bytes() == before


@pytest.mark.parametrize(
    "bad",
    (
        "{",
        "[1]",
        '{"labels": {}}',
        '{"workbench_schema": 9, "graph": "g"}',
        '{"workbench_schema": 1, "graph": "other"}',
        '{"workbench_schema": 1, "graph": "g", "more": 1}',
        '{"workbench_schema": 1, "graph": "g", "labels": {"n": {"text": "", "version": "v"}}}',
        '{"workbench_schema": 1, "graph": "g", "labels": {"n": {"text": "%s", "version": "v"}}}' % ("x" * 121),
        '{"workbench_schema": 1, "graph": "g", "labels": {"n": "x"}}',
    ),
)
def test_files_that_are_not_labels_are_left_alone(bad: str, open_page: Open, copy: Workspace, node: str) -> None:
    path = copy.root / "labels" / f"{GRAPH}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(bad.replace('"g"', f'"{GRAPH}"'))
    before = path.read_bytes()
    with pytest.raises((CorruptError, ConfigError)):
        read_labels(copy.root, GRAPH)
    with pytest.raises((CorruptError, ConfigError)):
        save_label(copy.root, GRAPH, node, "x", "v")
    at = open_page(copy, "graph", pin=node)
    assert not at.exception and f"labels/{GRAPH}.json cannot be read" in page_text(at) and "Made by" in page_text(at)
    assert not [t for t in at.text_input if t.key == "gr_label"] and path.read_bytes() == before


def test_a_label_is_given_on_the_page_and_shown_everywhere(
    open_page: Open, copy: Workspace, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught: list[Callable[[], bytes]] = []
    real = st.download_button
    monkeypatch.setattr(
        st,
        "download_button",
        lambda label, content, *a, **kw: (caught.append(content), real(label, content, *a, **kw))[1],
    )
    path = copy.path("graphs", GRAPH) / "graph.json"
    before = path.read_bytes()
    at = open_page(copy, "graph", pin=node)
    assert caught[-1]() == before
    bad = "<img src=x onerror=alert(1)> \u202e :red[x] $y$"
    at.text_input(key="gr_label").set_value(bad).run()
    version = copy.get("graphs", GRAPH).version
    kept = " ".join(bad.split())
    assert read_labels(copy.root, GRAPH).labels == {node: NodeLabel(text=kept, version=version)}
    text = page_text(at)
    shown = "“&lt;img src=x onerror=alert(1)&gt; ⟨U+202E⟩ :red[x] $y$”"
    assert not at.exception and shown in text and "<img" not in text and "\u202e" not in text
    named = [d for d in sent(at)["dots"] if unescape(shown) in d[5]]  # enters the page as a text node, so unescaped
    assert [d[0] for d in named] == [node] and "\u202e" not in named[0][4] + named[0][5]

    document = json.loads(caught[-1]())
    assert {n["node_id"]: n["clerp"] for n in document["nodes"] if n["clerp"]}[node] == kept
    assert (
        parse_graph(document, "x").links == parse_graph(json.loads(before), "x").links and path.read_bytes() == before
    )

    at = open_page(copy, "graph")  # among the strongest links, or of a neighbour
    document = parse_graph(json.loads(before), "x")
    other = next(s if t == node else t for s, t, _ in document.links if node in (s, t))
    assert shown in page_text(open_page(copy, "graph", pin=other))

    at = open_page(copy, "graph", pin=node)
    assert at.text_input(key="gr_label").value == kept
    at.text_input(key="gr_label").set_value(" ").run()
    assert read_labels(copy.root, GRAPH).labels == {} and shown not in page_text(at)
    assert caught[-1]() == before


def sent(at: AppTest) -> dict[str, Any]:
    """What the browser is given to draw."""
    (found,) = [c.proto for c in at.get("bidi_component") if c.proto.component_name == "workbench_network"]
    return dict(json.loads(found.json))


def test_a_subgraph_is_pinned_grouped_drawn_and_saved(open_page: Open, copy: Workspace, node: str) -> None:
    version, document = copy.get("graphs", GRAPH).version, copy.path("graphs", GRAPH) / "graph.json"
    graph = parse_graph(json.loads(document.read_text()), "x")
    source = next(s for s, t, _ in graph.links if t == node and graph.by_id[s].kind == "latent")
    targets = [t for s, t, _ in graph.links if s in (source, node) and graph.by_id[t].kind == "logit"]
    at = open_page(copy, "graph", pin=node)
    assert len(sent(at)["dots"]) == len(graph.nodes)
    at.button(key="gr_pin").click().run()
    save_pin(copy.root, GRAPH, source, True, version)
    mine = drawing(graph, {}, mine=read_labels(copy.root, GRAPH).subgraph, only_mine=True)
    outputs = {n.id for n in graph.nodes if n.kind == "logit"}
    assert {d.id for d in mine.dots} == {node, source} | outputs
    assert {(mine.dots[s].id, mine.dots[t].id, w) for s, t, w in mine.links} == {
        x for x in graph.links if {x[0], x[1]} <= {node, source} | outputs
    }
    at = open_page(copy, "graph", pin=node, sub="my subgraph")
    at.text_input(key="gr_group").set_value("  both\n of them ").run()
    save_group(copy.root, GRAPH, source, "both of them", version)
    found = read_labels(copy.root, GRAPH).subgraph
    assert (
        found.pins == [node, source] and found.groups == {"both of them": [node, source]} and found.version == version
    )
    one = drawing(graph, {}, mine=found, only_mine=True)
    assert {d.id for d in one.dots} == {"group:both of them"} | outputs
    summed = {
        o: sum(w for s, t, w in graph.links if s in (node, source) and t == o) for o in outputs if o in set(targets)
    }
    assert {one.dots[t].id: w for _, t, w in one.links} == pytest.approx(summed)
    made = with_labels(json.loads(document.read_text()), read_labels(copy.root, GRAPH), version)["qParams"]
    assert made["pinnedIds"] == [node, source] and made["supernodes"] == [["both of them", node, source]]
    assert b"both of them" in svg(one, 50, "t", "n") and svg(one, 50, "t", "n").count(b"<path d") >= len(one.links)
    at = open_page(copy, "graph", pin=node)
    at.button(key="gr_pin").click().run()
    assert read_labels(copy.root, GRAPH).subgraph.groups == {"both of them": [source]}
    with pytest.raises(UsageError, match="at most 120"):
        save_group(copy.root, GRAPH, source, "x" * 121, version)


def test_only_layers_that_exist_are_drawn_and_names_fit(full: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_WORKSPACE", str(full.root))

    def node(layer: str, position: int, feature: int, **more: Any) -> dict[str, Any]:
        id = f"{layer}_{feature}_{position}"
        kind = {"feature_type": "cross layer transcoder", "influence": 0.1 + feature / 100}
        return {"node_id": id, "layer": layer, "ctx_idx": position, "feature": feature, **kind, **more}

    nodes = [node(layer, 0, f) for layer in ("4", "20") for f in range(30)]
    nodes.append(node("29", 1, 7, is_target_logit=True, clerp="output ' <b>' (p = 0.250)"))
    link = {"source": "20_3_0", "target": "29_7_1", "weight": -1.0}
    graph = parse_graph({"nodes": nodes, "links": [link], "metadata": {"prompt_tokens": ["a", "b"]}}, "x")
    found = drawing(graph, {})
    assert [name for _, name in found.rows] == ["outputs", "layer 20", "layer 4"]
    assert sum(bool(d.name) for d in found.dots if d.kind == "latent") == 2 * NAMED
    assert [d.name for d in found.dots if d.kind == "logit"] == ["25 % ␣<b>"]
    places = {(d.x, d.y) for d in found.dots}
    assert len(places) == len(found.dots) and all(0 < x < found.width and 0 < y < found.height for x, y in places)
    picture = svg(found, 10, "t", "n").decode()
    assert "&lt;b&gt;" in picture and "<b>" not in picture and "stroke-dasharray" in picture
    ElementTree.fromstring(picture)


def test_the_graph_as_pdf_is_the_same_drawing(full: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors for LaTeX: as many curves as links are drawn, the same bytes each time, every name as text."""
    monkeypatch.setenv("WORKBENCH_WORKSPACE", str(full.root))
    found = drawing(open_graph(str(full.path("graphs", GRAPH)), "x"), {})

    def curves(made: bytes) -> int:
        parts = [zlib.decompress(x) for x in re.findall(rb"FlateDecode.*?stream\r?\n(.*?)\r?\nendstream", made, re.S)]
        return sum(len(re.findall(rb" c$", part, re.M)) for part in parts)

    whole, none = pdf(found, len(found.links), "t", "n"), pdf(found, 0, "t", "n")
    assert whole.startswith(b"%PDF") and whole == pdf(found, len(found.links), "t", "n")
    assert len(found.links) > 3 and curves(whole) - curves(none) == len(found.links)
    width, height = map(float, re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]", whole).groups())  # type: ignore[union-attr]
    assert (width, height) == pytest.approx((found.width * 0.75, (found.height + 44) * 0.75), abs=1)


def test_labels_of_other_data_are_named_as_such(open_page: Open, copy: Workspace, node: str) -> None:
    save_label(copy.root, GRAPH, node, "old meaning", "0ld0ld00")
    save_label(copy.root, GRAPH, "E_0", "new meaning", copy.get("graphs", GRAPH).version)
    text = page_text(open_page(copy, "graph", pin=node))
    assert "“old meaning (labelled on data version 0ld0ld00)”" in text
    assert "1 of 2 labels of your own were given on another data version" in text
    document: dict[str, Any] = json.loads((copy.path("graphs", GRAPH) / "graph.json").read_text())
    made = with_labels(document, read_labels(copy.root, GRAPH), copy.get("graphs", GRAPH).version)
    names = {n["node_id"]: n["clerp"] for n in made["nodes"]}
    assert names[node] == "old meaning (labelled on data version 0ld0ld00)" and names["E_0"] == "new meaning"


def test_labels_are_no_result_and_hide_none(copy: Workspace, open_page: Open) -> None:
    """Every label is a file of its reader's, made by no command: nothing that lists results may take it for one."""
    save_label(copy.root, GRAPH, "E_0", "x", "v")
    assert "labels" not in KINDS
    at = open_page(copy)
    assert not at.exception and "cannot be read" not in page_text(at)


def test_output_and_token_keep_their_names_beside_the_label(open_page: Open, copy: Workspace) -> None:
    version = copy.get("graphs", GRAPH).version
    save_label(copy.root, GRAPH, "3_17_7", "the answer", version)
    assert "output plain · “the answer”" in page_text(open_page(copy, "graph", pin="3_17_7"))
    save_label(copy.root, GRAPH, "E_0", "the start", version)
    assert " · “the start”" in page_text(open_page(copy, "graph", pin="E_0"))
