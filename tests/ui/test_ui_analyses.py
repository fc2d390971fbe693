"""Pages of analyses: what they show is what the files say."""

from __future__ import annotations

import base64
import json
import re
import zipfile
from collections.abc import Callable
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from sae.errors import CorruptError, MissingError, UsageError
from tests.ui.conftest import page_text, param, table_of
from workbench.exporting import FigureSpec
from workbench.exporting.figures import FigureData, Panel, build
from workbench.markup.tokens import cell
from workbench.results import lists
from workbench.results.matches import MatchRecords
from workbench.results.records import LatentRecords
from workbench.results.substitutions import SubstitutionRecords
from workbench.results.transplants import TransplantRecords
from workbench.workspace import Workspace
from workbench_ui.components.scrubber import message
from workbench_ui.kit.export import make_zip
from workbench_ui.kit.plotting import plot
from workbench_ui.views import graphs
from workbench_ui.views.evolving import open_evolution

Open = Callable[..., AppTest]
MATCH = "mini-pythia.L2R-8x__mini-mamba.L2R-8x"


def charts(at: AppTest) -> list[dict[str, Any]]:
    """Every Plotly figure of a page."""
    return [json.loads(c.proto.spec) for c in at.get("plotly_chart")]


def figure(ws: Workspace, name: str, source: str, **options: Any) -> FigureData:
    return build(FigureSpec(figure=name, source=source, options=options), ws)


def test_matches_page_agrees_with_the_tables(open_page: Open, full: Workspace) -> None:
    at = open_page(full, "mppc")
    m = MatchRecords.open(full.path("matches", MATCH))
    best = m.best[m.best["direction"] == "ab"]
    text = page_text(at)
    assert f"{int(best['matched'].sum()):,}" in text and "needs another seed" in text
    assert "shared input as well as shared computation" in text and "token-conditional" in text
    shown = [float(r) for r in table_of(at)["max r"]]
    assert shown == sorted(shown, reverse=True) and min(shown) >= 0.5
    n = int((best["r"] >= 0.5).sum())
    assert len(shown) == min(50, n) and f"<b>{n:,}</b> latents with r between 0.5 and 1" in text
    least = open_page(full, "mppc", po="n_fired", pdir="low first", pp=2)  # all rows are sorted, then paged
    fired = best[best["r"] >= 0.5].sort_values("n_fired", kind="stable")["n_fired"].tolist()
    assert [int(x.replace(",", "")) for x in table_of(least)["fired"]] == fired[50:100] != []


def test_distribution_is_a_distribution(full: Workspace) -> None:
    frame = (
        figure(full, "mppc_distribution", f"matches/{MATCH}", series=["cross", "shuffle"], view="histogram")
        .panels[0]
        .frame
    )
    assert frame.groupby("series")["share"].sum().to_numpy() == pytest.approx([1, 1])
    above = (
        figure(full, "mppc_distribution", f"matches/{MATCH}", series=["cross"], view="above").panels[0].frame["share"]
    )
    assert above.is_monotonic_decreasing and above.iloc[0] == 1.0


def test_screen_and_export_draw_the_same_numbers(open_page: Open, full: Workspace) -> None:
    """Every chart with an export button shows exactly the data of the bundle the button downloads."""
    seen = 0
    pages: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
        "mppc": [
            (
                "mppc_distribution",
                f"matches/{MATCH}",
                {"series": ["cross", "same-token", "token-conditional", "shuffle", "neurons"], "view": "histogram"},
            ),
            ("mppc_given_token", f"matches/{MATCH}", {}),
            ("mppc_layers", f"matches/{MATCH}", {}),
            ("mppc_shift", f"matches/{MATCH}", {}),
        ],
        "induction": [
            ("circuit_profile", "circuits/mini-pythia.induction", {}),
            ("circuit_curve", "circuits/mini-pythia.induction", {}),
            ("circuit_taps", "circuits/mini-mamba.induction", {}),
            ("circuit_effects", "circuits/mini-mamba.induction", {}),
        ],
        "training": [("evolution_norms", "evolution/mini-pythia.L1R", {"latents": [5, 9], "relative": False})],
        "states": [("state_reads", "states/mini-mamba.induction", {"layer": 1})],
    }
    for page, figures in pages.items():
        at = open_page(full, page, **({"ls": "5_9"} if page == "training" else {}))
        drawn = [numbers(t) for c in charts(at) for t in c["data"]]
        for name, source, options in figures:
            panel = figure(full, name, source, **options).panels[0]
            for _, part in panel.frame.groupby(panel.series, sort=False) if panel.series else [("", panel.frame)]:
                want = sorted(float(v) for v in part[panel.value if panel.kind == "heat" else panel.y])
                assert any(len(d) == len(want) and np.allclose(d, want) for d in drawn), (page, name)
                seen += 1
    assert seen >= 10


def numbers(trace: dict[str, Any]) -> list[float]:
    """The values of a Plotly trace: those of the axis that measures, sorted."""
    value = trace.get("z") if trace["type"] == "heatmap" else trace.get("x") if trace.get("error_x") else trace.get("y")
    if isinstance(value, dict):  # a packed array
        value = np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"]).tolist()
    flat = [v for row in value for v in row] if trace["type"] == "heatmap" else value
    return sorted(float(v) for v in flat if v is not None)


def test_transplants_stand_under_their_comparison_and_with_their_pair(open_page: Open, full: Workspace) -> None:
    records = TransplantRecords.open(full.path("transplants", MATCH))
    numbers = records.manifest.numbers
    at = open_page(full, "mppc", along="r_given_token")
    text = page_text(at)
    assert f'<div class="v">{numbers["repaired"]["median"]:.2f}</div>' in text and "partner in mini-mamba" in text
    assert f"{100 * numbers['share_of_ceiling']:.0f} %" in text
    at.session_state["tx_pairs_box"] = True  # the box that holds all pairs is opened
    at.run()
    table = next(t for t in at.dataframe if "transplant" in t.value.columns).value
    assert table["transplant"].is_monotonic_decreasing and len(table) == len(records.pairs)
    drawn = [numbers_of for c in charts(at) for t in c["data"] for numbers_of in [_ys(t)]]
    curve = figure(full, "transplant_curve", f"transplants/{MATCH}", predictor="r_given_token").panels[0].frame
    for _, part in curve.groupby("arm"):
        assert any(len(d) == len(part) and np.allclose(d, sorted(part["median"])) for d in drawn)
    best = records.pairs.iloc[0]
    a, b = MATCH.split("__")
    for d, i, d2, j in ((a, best["partner"], b, best["latent"]), (b, best["latent"], a, best["partner"])):
        text = page_text(open_page(full, "pair", m=MATCH, d=d, i=int(i), d2=d2, i2=int(j)))
        assert "In each other" in text and f'<div class="v">{best["transplant"]:.2f}</div>' in text
    none = page_text(open_page(full, "pair", m=MATCH, d=a, i=int(best["partner"]), d2=b, i2=int(best["latent"]) + 1))
    assert "In each other" not in none


def test_substitutions_stand_under_the_circuits(open_page: Open, full: Workspace) -> None:
    id = "mini-mamba.L1W-2x"
    numbers_of = SubstitutionRecords.open(full.path("substitutions", id)).manifest.numbers
    at = open_page(full, "induction", by="read")
    text = page_text(at)
    assert "Atoms in the place of writes" in text
    for found in (numbers_of["win_rate"], numbers_of["leading"]["atom"], *numbers_of["controls"].values()):
        assert f'<div class="v">{found["win_rate"]:.2f}</div>' in text
    drawn = [y for c in charts(at) for t in c["data"] for y in [_ys(t)]]
    frame = figure(full, "substitution_wins", f"substitutions/{id}", measure="read").panels[0].frame
    assert any(len(d) == len(frame) and np.allclose(d, sorted(frame["win_rate"])) for d in drawn)


def _ys(trace: dict[str, Any]) -> list[float]:
    return numbers(trace) if trace["type"] == "scatter" and trace.get("y") is not None else []


def test_range_of_r_lists_its_latents(open_page: Open, full: Workspace) -> None:
    at = open_page(full, "mppc")
    at.slider(key="r").set_value((0.62, 0.9)).run()
    best = MatchRecords.open(full.path("matches", MATCH)).best
    r = best.loc[(best["direction"] == "ab") & best["r"].between(0.62, 0.9), "r"].sort_values(ascending=False)
    assert table_of(at)["max r"] == [f"{v:.3f}" for v in r[:50]] != []
    assert f"<b>{len(r)}</b> latents with r between 0.62 and 0.9" in page_text(at)


def test_pairs_name_what_both_latents_fire_on(open_page: Open, full: Workspace) -> None:
    row = {title: cells[0] for title, cells in table_of(open_page(full, "mppc")).items()}
    for dictionary, latent, name in (
        ("dictionary", "latent", "fires on"),
        ("partner in", "partner", "partner fires on"),
    ):
        table = LatentRecords.open(full.path("latents", row[dictionary])).row(int(row[latent]))
        assert row[name] == (table.get("label") or cell(table["peak_text"]))


def test_one_tall_series_does_not_flatten_the_others() -> None:
    frame = pd.DataFrame(
        {
            "r": [0.0, 0.5, 1.0] * 2,
            "share": [0.02, 0.03, 0.01, 0.9, 0.1, 0.0],
            "series": ["a"] * 3 + ["chance"] * 3,
            "n": 7,
        }
    )
    figure = plot(Panel("step", frame, "r", "share", series="series"))
    assert figure.layout.yaxis.range[1] == pytest.approx(0.045)
    assert [t.name for t in figure.data] == ["a (n 7)", "chance (n 7), up to 0.9"]
    even = plot(Panel("step", frame.assign(share=0.3), "r", "share", series="series"))
    assert even.layout.yaxis.range[1] > 0.3


def test_pair_statistics_equal_a_direct_computation(open_page: Open, full: Workspace) -> None:
    a, b = MATCH.split("__")
    at = open_page(full, "pair", m=MATCH, d=a, i=5, d2=b, i2=5)
    m = MatchRecords.open(full.path("matches", MATCH))
    rows_a, rows_b = m.of(a, 5)[0], m.of(b, 5)[0]
    text = page_text(at)
    assert f'<div class="v">{len(np.intersect1d(rows_a, rows_b)):,}</div>' in text
    assert f"{m.pair(a, 5, b, 5).r:.3f}" in text
    assert 'class="t' in text and " u" in text  # colour for A, underline for B
    at.button(key="px_swap").click().run()
    assert (param(at, "d"), param(at, "d2")) == (b, a)


def test_row_of_pairs_is_a_link_to_the_pair(open_page: Open, full: Workspace) -> None:
    at = open_page(full, "mppc")
    row = {title: cells[3] for title, cells in table_of(at).items()}
    link = re.findall(r'<tr data-row="1"><td[^>]*><a href="([^"]*)"', page_text(at))[3]
    asked = dict(parse_qsl(urlsplit(unescape(link)).query))
    assert link.startswith("pair?") and (asked["i"], asked["i2"]) == (row["latent"], row["partner"])
    assert "The same tokens" in page_text(open_page(full, "pair", **asked))


def test_circuit_peaks_are_where_they_were_planted(open_page: Open, full: Workspace) -> None:
    for model, row, offset in (("mini-pythia", "L2H3", 0), ("mini-mamba", "L2", 1)):
        frame = figure(full, "circuit_profile", f"circuits/{model}.induction").panels[0].frame
        peak = frame.loc[frame["effect"].abs().idxmax()]
        assert (peak["row"], peak["offset"]) == (row, offset)
    taps = figure(full, "circuit_taps", "circuits/mini-mamba.induction").panels[0].frame
    assert taps.loc[taps["effect"].abs().idxmax(), "back"] == "1 back" and taps["back"].nunique() == 4
    with pytest.raises(UsageError, match="conv_profile"):
        figure(full, "circuit_taps", "circuits/mini-pythia.induction")
    at = open_page(full, "induction")
    heat = [t for c in charts(at) for t in c["data"] if t["type"] == "heatmap"]
    assert len(heat) == 3 and heat[0]["zmax"] == heat[1]["zmax"] == pytest.approx(4.0)  # one scale for both models


def test_scrubber_message_holds_every_snapshot(full: Workspace) -> None:
    e = open_evolution(str(full.path("evolution", "mini-pythia.L1R")), "x")
    contexts = e.contexts(3)
    assert contexts is not None
    sent = message(contexts, [str(s) for s in e.steps], e.norms([3])[0])  # type: ignore[index]
    one = sent["contexts"][0]
    values = np.frombuffer(base64.b64decode(one["values"]), np.uint8).reshape(len(e.steps), -1)
    assert values.shape[1] == len(one["tokens"])
    top = max(float(c.readings.max()) for c in contexts)
    assert values / 255 * sent["top"] == pytest.approx(contexts[0].readings, abs=top / 200)
    assert sent["norms"][sent["start"]] == max(sent["norms"])


def test_training_page_shows_curves_of_the_address(open_page: Open, full: Workspace) -> None:
    at = open_page(full, "training", ls="5_9")
    names = [t["name"] for c in charts(at) for t in c["data"] if str(t.get("name", "")).startswith("latent ")]
    assert names == ["latent 5", "latent 9"]
    with pytest.raises(MissingError, match="'free' were not computed"):  # never zeros
        figure(full, "evolution_norms", "evolution/mini-pythia.L1R", latents=[5], kind="free")
    relative = figure(full, "evolution_norms", "evolution/mini-pythia.L1R", latents=[5], log_steps=False).panels[0]
    assert relative.frame["norm"].max() == pytest.approx(1.0) and not relative.log_x
    at.segmented_control(key="scale").set_value("free").run()
    assert not at.exception and "were not computed" in page_text(at)


def test_graph_page_shows_the_chosen_node(open_page: Open, full: Workspace) -> None:
    path = full.path("graphs", "mini-pythia.prompt.12345678")
    graph = graphs.open_graph(str(path), "x")
    assert [abs(w) for _, _, w in graph.links] == sorted((abs(w) for _, _, w in graph.links), reverse=True)
    node = next(n for n in graph.nodes if n.kind == "latent" and n.layer == 2)
    at = open_page(full, "graph", pin=node.id)
    text = page_text(at)
    assert "Made by" in text and f"L2 #{node.latent}" in text and f'data-latent="{node.latent}"' in text
    weights = [w for _, w, _ in graphs.neighbours_of(graph, node.id, {}, incoming=True)]
    assert weights and all(f"{w:+.3g}" in text for w in weights)


@pytest.mark.parametrize(
    "bad",
    ({}, {"nodes": 3, "links": []}, {"nodes": [{"layer": "x"}], "links": []}, [1], {"nodes": [{}] * 6000, "links": []}),
)
def test_foreign_graphs_are_refused(bad: Any) -> None:
    with pytest.raises(CorruptError):
        graphs.parse_graph(bad, "there")


def test_lists_round_trip_and_refuse_nonsense(tmp_path: Path) -> None:
    item = lists.ListItem(dictionary="a.L0R-4x", latent=3, version="12345678", note="<b>$x$")
    id = lists.save_list(tmp_path, lists.LatentList(name="../../evil ünï <script>"))
    assert id.startswith("evil-uni-script-") and list(tmp_path.rglob("*.json")) == [tmp_path / "lists" / f"{id}.json"]
    lists.add_to_list(tmp_path, id, [item])
    lists.add_to_list(tmp_path, id, [item.model_copy(update={"note": "new"})])
    known, problems = lists.read_lists(tmp_path)
    assert [x.note for x in known[id].items] == ["new"] and not problems
    again = lists.import_list(known[id].model_dump_json().encode())
    assert again == known[id]
    with pytest.raises(UsageError):
        lists.save_list(tmp_path, again, "../out")
    with pytest.raises(MissingError):
        lists.add_to_list(tmp_path, "no-such", [item])
    for data in (
        b"{",
        b"[1]",
        b'{"workbench_schema": 1, "name": "x", "items": [], "more": 1}',
        b'{"workbench_schema": 9, "name": "x"}',
    ):
        with pytest.raises(UsageError if b"more" in data else CorruptError):
            lists.import_list(data)
    lists.delete_list(tmp_path, id)
    assert lists.read_lists(tmp_path) == ({}, [])


def test_list_is_made_filled_and_emptied_in_the_pages(open_page: Open, minimal: Workspace) -> None:
    at = open_page(minimal, "lists")
    at.text_input(key="li_new").set_value("my *list*").run()
    at.button(key="li_create").click().run()
    (id,) = lists.read_lists(minimal.root)[0]
    lists.add_to_list(minimal.root, id, [lists.ListItem(dictionary="m.L0R-4x", latent=4, version="old", note="n")])
    at = open_page(minimal, "lists", list=id)
    at.text_input(key=f"li_name_{id}").set_value("another  name").run()
    at.button(key="li_rename").click().run()
    assert not at.exception and lists.read_lists(minimal.root)[0][id].name == "another name"
    row = at.get("dataframe")[0].value.iloc[0] if at.get("dataframe") else None
    assert not at.exception and (row is None or "data changed" in row["data"])
    lists.delete_list(minimal.root, id)


def test_export_page_and_command_line_give_the_same_bytes(open_page: Open, full: Workspace) -> None:
    source = "latents/mini-pythia.L1R-8x"
    at = open_page(full, "export", f="latent_contexts", src=source, i=3)
    assert not at.exception and "Contexts of latent 3, layer 1 residual stream of mini-pythia" in page_text(at)
    zips = {make_zip("latent_contexts", source, {"latent": 3}, {"width": "double"}) for _ in range(2)}
    assert len(zips) == 1
    names = {n.split("/")[1] for n in zipfile.ZipFile(BytesIO(zips.pop())).namelist()}
    assert {
        "figure.pdf",
        "figure.svg",
        "figure.png",
        "data.csv",
        "data.parquet",
        "table.tex",
        "refs.bib",
        "caption.txt",
        "provenance.json",
        "reproduce.sh",
    } <= names


def test_self_test_finds_a_changed_file(open_page: Open, full: Workspace, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(full.root, copy)
    at = open_page(copy, "about")
    at.button(key="ab_check").click().run()
    assert "as they were written" in page_text(at)
    with open(copy / "latents" / "mini-mamba.L2R-8x" / "hist.npy", "r+b") as f:
        f.seek(200)
        f.write(b"\xff")
    at.button(key="ab_check").click().run()
    assert "latents/mini-mamba.L2R-8x changed since it was written" in page_text(at) and "hist.npy" in page_text(at)


def test_margins_hold_the_labels_and_follow_those_that_may_be_turned() -> None:
    def drawn(rows: list[str], columns: int) -> Any:
        cells = [{"a": j, "b": row, "v": 1.0 * j} for row in rows for j in range(columns)]
        return plot(Panel("heat", pd.DataFrame(cells), "a", "b", value="v", x_label="x", y_label="y")).layout

    short, long, high, wide = (drawn([label], 3).margin.l for label in ("a", "a" * 30, "A" * 30, "W" * 30))
    assert 30 * 6 < long - short < high < wide == drawn(["的" * 30], 3).margin.l < 30 * 13 + 40
    assert drawn(["a"], 3).xaxis.automargin is False and drawn(["a"], 40).xaxis.automargin is True


def test_plotly_labels_are_text() -> None:
    frame = pd.DataFrame(
        {
            "what": ["<b>x</b>", "the", "<i>", "the "],
            "effect": [1.0, 2, 3, 4],
            "low": [0.0, 1, 2, 3],
            "high": [2.0, 3, 4, 5],
        }
    )
    figure = plot(Panel("points", frame, "what", "effect", low="low", high="high"))
    assert list(figure.layout.yaxis.ticktext) == ["&lt;b&gt;x&lt;/b&gt;", "the", "&lt;i&gt;", "the "]
    assert list(figure.data[0].y) == [0, 1, 2, 3]  # equal-looking labels stay two rows
    assert list(figure.data[0].error_x.array) == [1.0] * 4
    heat = plot(
        Panel("heat", pd.DataFrame({"a": [2, 1, 1], "b": [0, 0, 1], "v": [5.0, 6.0, 7.0]}), "a", "b", value="v")
    )
    assert list(heat.data[0].z[0]) == [6.0, 5.0] and heat.data[0].z[1][0] == 7.0 and heat.data[0].z[1][1] is None
