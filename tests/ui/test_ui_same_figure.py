"""Screen and paper draw the same figure: what Plotly and matplotlib were told and drew is compared, for every kind."""

from __future__ import annotations

import html
import json
import math
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_hex, to_rgba

from tests.ui.synthetic import GROUPS, write_records
from workbench.exporting import FigureSpec, Style, figure_kinds
from workbench.exporting.drawing import drawing
from workbench.exporting.figures import FigureData, Panel, build
from workbench.exporting.palette import GROUND, RAMP
from workbench.exporting.render import DASH, TALLEST, draw, settings
from workbench.markup import look
from workbench.workspace import Workspace
from workbench_ui.kit.plotting import plot

# those that run a model are held in test_ui_probe, where there is one
KINDS = [name for name, kind in figure_kinds().items() if not (kind.document or kind.live)]
# options beside the defaults, so that every renderer meets every way a figure can look
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "pair": [{"latent": 3}, {"latent": 5, "by": "a", "shift": 1, "direction": "ba"}],
    "mppc_distribution": [{}, {"view": "histogram"}, {"series": ["cross"], "direction": "ba"}],
    "evolution_norms": [{"latents": [5, 9]}, {}, {"latents": [2], "relative": False, "log_steps": False}],
    "evolution_architectures": [{}, {"measure": "norm"}],
    "state_reads": [{}, {"what": "effect", "text": 1, "layer": 0}, {"what": "survival", "snapshot": 0}],
    "circuit_profile": [{}, {"scale": 9.0}],
    "decoder_map": [{}, {"colour": "dictionary"}, {"colour": "max", "points": 100}],
    "latent_contexts": [{"latent": 3}],
    "latent_anatomy": [{"latent": 3}],
    "explanation_scores": [{}, {"latent": 3}],
    "substitution_wins": [{}, {"measure": "read"}],
    "matched_latents": [{}, {"one_to_one": False, "n": 5}],
}
RELAYS = "universality.offset-follows-the-tap"  # a claim with a curve
CASES = [(name, options) for name in KINDS for options in OPTIONS.get(name, [{}])]


@pytest.fixture(scope="module")
def drawn_in(full: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The generated results, and a store whose dictionaries are evaluated."""
    folder = tmp_path_factory.mktemp("drawn") / "drawn"
    shutil.copytree(full.root, folder)
    ws = Workspace(folder)
    (folder / "stores" / "s").mkdir(parents=True)
    (folder / "stores" / "s" / "seal.json").write_text(json.dumps({"id": "s", "kind": "stores"}))
    for id, site in (("m.L0R-8x", "L0R"), ("m.L1R-8x", "L1R"), ("m.L1A-8x", "L1A")):
        about = {"store": "s", "source": "m", "site": site, "model_name": "m", "kind": "sae"}
        numbers = {"d_sae": 64, "d_in": 8, "explained_variance": 0.9, "explained_variance_inliers": 0.8}
        with ws.create("dictionaries", id, numbers=numbers, metadata=about):
            pass
        record(ws, id)
        value = {"value": 0.5 + 0.1 * len(site), "low": 0.4, "high": 0.7, "n": 9}
        with ws.create("evaluations", id, numbers=dict.fromkeys(("ev", "l0", "delta_ce", "dead_share"), value)):
            pass
    claim = ws.path("claims", "universality.depth")
    document = json.loads((claim / "finding.json").read_text()) | {"claim": RELAYS}
    with ws.create(
        "claims", RELAYS, numbers={"verdict": document["verdict"], "n": 9, "effect": document["effect"]}
    ) as out:
        (out / "finding.json").write_text(json.dumps(document))
        steps = {"step": [1000, 1000, 9000, 9000], "at_plus_one": [0.6, 0.5, 0.8, 0.7], "moved": [0.5, 0.4, 0.6, 0.7]}
        pd.DataFrame(steps | {"idle": [0.0, 0.1, 0.0, 0.1], "early": [0.1, 0.1, 0.2, 0.1]}).to_parquet(
            out / "table.parquet"
        )
    return ws


def record(ws: Workspace, id: str) -> None:
    """Records whose massive rows lie at two places."""
    places = [[1, 3, 20, 0.3], [9, 4, 10, 0.1]]
    massive = {"n": 30, "n_rows": 4000, "square_share": 0.4, "median_norm": 2.0, "limit": 20.0, "places": places}
    massive |= {"positions": [[1, 20], [9, 10]], "tokens": [[3, 20], [4, 10]]}
    about = {"groups": GROUPS, "n_tokens": 4000, "vocab": "vocab.json", "massive": massive}
    with ws.create("latents", id, metadata=about) as folder:
        write_records(folder, latents=40, contexts=20, per_group=1, n_tokens=4000)


def made_of(ws: Workspace, name: str, options: dict[str, Any]) -> FigureData:
    """The figure of the first result it can show."""
    kind = figure_kinds()[name]
    source = "" if kind.many else f"{kind.source}/{ws.items(kind.source)[0].id}"
    if name == "evolution_architectures":
        source = "evolution/two-architectures"
    if name in ("claim", "claims_of_paper"):
        source = "claims/universality.depth"
    if name == "claim_curve":
        source = f"claims/{RELAYS}"
    return build(FigureSpec(figure=name, source=source, options=options), ws)


@pytest.fixture(params=CASES, ids=[f"{n}-{'-'.join(map(str, o.values())) or 'default'}" for n, o in CASES])
def made(request: pytest.FixtureRequest, drawn_in: Workspace) -> FigureData:
    return made_of(drawn_in, *request.param)


def paper(made: FigureData) -> Iterator[tuple[Any, Panel]]:
    """matplotlib's axes of every panel that is no strip of text."""
    with settings(Style()):
        figure = draw(made, Style())
        figure.canvas.draw()
        assert figure.get_size_inches()[1] <= TALLEST
        axes = [a for a in figure.axes if a.get_label() != "<colorbar>"]
        assert len(axes) == len(made.panels)
        yield from ((a, p) for a, p in zip(axes, made.panels, strict=True) if p.kind != "strips")


def close(a: Any, b: Any) -> bool:
    return bool(np.allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-9, atol=1e-12, equal_nan=True))


def test_screen_and_paper_agree(made: FigureData) -> None:
    for ax, panel in paper(made):
        screen = plot(panel)
        found = drawing(panel)
        if found.x is not None:
            same_axis(ax.get_xlim(), ax.get_xscale(), ax.get_xticks(), ax.get_xticklabels(), screen.layout.xaxis)
            same_axis(ax.get_ylim(), ax.get_yscale(), ax.get_yticks(), None, screen.layout.yaxis)
            assert ax.get_xlabel() == text_of(screen.layout.xaxis.title.text)
            assert ax.get_ylabel() == text_of(screen.layout.yaxis.title.text)
        legend = ax.get_legend()
        names = [t.get_text() for t in legend.get_texts()] if legend else []
        shown = [text_of(t.name) for t in screen.data if t.showlegend is not False and t.name]
        if screen.layout.showlegend and not (found.clouds and found.clouds[0].values is not None):
            assert names == shown
        else:
            assert names == []
        {"line": same_lines, "step": same_lines, "points": same_points, "heat": same_cells, "scatter": same_clouds}[
            panel.kind
        ](ax, screen)


def text_of(label: str | None) -> str:
    return html.unescape(label or "")


def same_axis(limits: tuple[float, float], scale: str, ticks: Any, labels: Any, axis: Any) -> None:
    assert scale == axis.type
    assert close(limits, [10**v for v in axis.range] if scale == "log" else axis.range)
    assert close(ticks, axis.tickvals)
    if labels is not None:
        assert [t.get_text()[:39] for t in labels] == [text_of(t).rstrip("…")[:39] for t in axis.ticktext]


def same_lines(ax: Any, screen: Any) -> None:
    curves = [t for t in screen.data if t.fill is None]
    assert len(ax.lines) == len(curves) > 0
    for line, curve in zip(ax.lines, curves, strict=True):
        assert to_hex(line.get_color()) == curve.line.color.lower()
        assert close(line.get_xdata(), curve.x)
        assert close(line.get_ydata(), curve.y)
        assert (line.get_drawstyle() == "steps-post") == (curve.line.shape == "hv")
        assert (line.get_marker() not in (None, "None")) == ("markers" in curve.mode)
        assert line.get_linestyle() == (DASH[curve.line.dash] if isinstance(DASH[curve.line.dash], str) else "--")
    bands = [c for c in ax.collections if isinstance(c, PolyCollection)]
    fills = [t for t in screen.data if t.fill is not None]
    assert [to_hex(b.get_facecolor()[0]) for b in bands] == [f.fillcolor.lower() for f in fills]
    for band, fill in zip(bands, fills, strict=True):
        corners = band.get_paths()[0].vertices
        assert close([np.nanmin(corners[:, 1]), np.nanmax(corners[:, 1])], [np.nanmin(fill.y), np.nanmax(fill.y)])


def same_points(ax: Any, screen: Any) -> None:
    assert len(ax.containers) == len(screen.data) > 0
    for bars, trace in zip(ax.containers, screen.data, strict=True):
        dots = bars.lines[0]
        assert to_hex(dots.get_color()) == trace.marker.color.lower()
        assert close(dots.get_xdata(), trace.x)
        assert close(dots.get_ydata(), trace.y)
        if trace.error_x.array is not None:
            ends = np.array([s[:, 0] for s in bars.lines[2][0].get_segments()])
            low = np.nan_to_num(np.abs(np.asarray(trace.error_x.arrayminus, float)))
            high = np.nan_to_num(np.abs(np.asarray(trace.error_x.array, float)))
            assert close(ends[:, 0], np.asarray(trace.x) - low)
            assert close(ends[:, 1], np.asarray(trace.x) + high)


def same_cells(ax: Any, screen: Any) -> None:
    (image,), (cells,) = ax.images, screen.data
    assert image.origin == "lower"
    assert close(np.ma.filled(image.get_array(), np.nan), np.array(cells.z, dtype=float))
    assert close(image.get_clim(), (cells.zmin, cells.zmax))
    scale = [(at, EEE if c == GROUND[0] else c) for at, c in cells.colorscale]
    for at, colour in scale:
        if not 0 < at < 1 or len({a for a, _ in scale}) == len(scale):  # a stepped scale has two colours at a step
            assert close(to_rgba(colour)[:3], image.cmap(at)[:3]) or np.allclose(
                to_rgba(colour)[:3], image.cmap(at)[:3], atol=1 / 128
            )
    if cells.text is not None and ax.texts:
        assert [t.get_text() for t in ax.texts] == [v for row in cells.text for v in row]


EEE = GROUND[1]


def same_clouds(ax: Any, screen: Any) -> None:
    clouds = [c for c in ax.collections if isinstance(c, PathCollection)]
    traces = [t for t in screen.data if t.type == "scatter"]
    assert len(clouds) == len(traces) > 0
    for cloud, trace in zip(clouds, traces, strict=True):
        assert close(cloud.get_offsets(), np.c_[trace.x, trace.y])
        if trace.marker.showscale is None and isinstance(trace.marker.color, str):
            assert to_hex(cloud.get_facecolor()[0]) == trace.marker.color.lower()
        else:
            assert close(np.ma.filled(cloud.get_array(), np.nan), trace.marker.color)
            assert close(cloud.get_clim(), (trace.marker.cmin, trace.marker.cmax))


def test_every_kind_was_compared(drawn_in: Workspace) -> None:
    assert {name for name, _ in CASES} == set(KINDS)
    assert all(drawn_in.items(figure_kinds()[name].source) for name in KINDS)


def test_no_figure_is_taller_than_a_page(drawn_in: Workspace) -> None:
    for name, options in CASES:
        for width in ("single", "double"):
            with settings(Style(width=width)):
                figure = draw(made_of(drawn_in, name, options), Style(width=width))
            assert figure.get_size_inches()[1] <= TALLEST, (name, width)


def test_joint_histogram_is_the_one_of_the_data(drawn_in: Workspace) -> None:
    """Columns in order, empty bins in place, A across: once they were permuted and closed up."""
    from workbench.results.matches import MatchRecords

    item = drawn_in.items("matches")[0]
    records = MatchRecords.open(item.path)
    a, b = records.metadata["a"]["dictionaries"][0], records.metadata["b"]["dictionaries"][0]
    joint = records.pair(a, 3, b, 3).joint.astype(float)
    joint[0, 0] = 0
    made = made_of(drawn_in, "pair", {"latent": 3, "partner_dictionary": b, "partner": 3})
    (ax, _), *_ = [x for x in paper(made) if x[1].kind == "heat"]
    with np.errstate(divide="ignore"):
        want = np.where(joint.T > 0, np.log10(joint.T), np.nan)
    got = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert got.shape == (32, 32)
    assert close(got, want)
    assert f"{a} #3" in ax.get_xlabel()
    marks = [t.get_text() for t in ax.get_xticklabels()]
    top = records.pair(a, 3, b, 3).maxima[0]
    assert marks[0] == "silent"
    for at, text in zip(ax.get_xticks()[1:], marks[1:], strict=True):
        assert math.isclose(float(text) / top * 31 + 0.5, at)


def test_tokens_on_paper_have_the_colours_of_the_pages() -> None:
    style = look()
    assert [f"--t{k}: light-dark({c}" in style for k, c in enumerate(RAMP)] == [True] * len(RAMP)
