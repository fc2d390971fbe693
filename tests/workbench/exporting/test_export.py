"""The bundle: every file says the same, tokens survive every format, and the same spec gives the same bytes."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
import xml.etree.ElementTree
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from sae.errors import ConfigError, MissingError, UsageError
from workbench.cli import app
from workbench.exporting import FigureSpec, Style, bundle, read_spec
from workbench.exporting.figures import FigureData, Panel, build, figure_kinds
from workbench.exporting.references import ENTRIES, bibtex
from workbench.exporting.render import render
from workbench.exporting.tables import to_csv, to_latex, to_parquet
from workbench.markup.text import latex, quoted, visible
from workbench.workspace import Workspace

NASTY = [
    "NaN",
    "\r",
    "\n",
    "a\r\nb",
    "_&%$#{}~^\\",
    "👩\u200d🔬",
    "\u202eesrever\u202c",
    "",
    " ",
    '"q", x',
    "=1+1",
    "null",
    "日本語",
    "\ud800x",
    "\x00\x1b[31m",
    "ﬁ—’",
]
HERE = Path(__file__).resolve().parents[1]


def synthetic(name: str = "synthetic"):
    """A generator of results in the real formats, shared with the tests of the pages."""
    spec = importlib.util.spec_from_file_location(f"export_{name}", HERE.parent / "ui" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    ws = Workspace(tmp_path_factory.mktemp("ws"))
    made = synthetic()
    made.add_dictionary(
        ws,
        "mini-pythia.L1R-8x",
        model="mini-pythia",
        revision=None,
        site="L1R",
        latents=40,
        vocab=made.vocabulary(hostile=True),
    )
    return ws


def expected(token: str) -> str:
    return token.replace("\ud800", "\ufffd")


def test_tokens_survive_csv_and_parquet() -> None:
    frame = pd.DataFrame(
        {"token": pd.Series(NASTY, dtype=object), "value": [1 / 3] * len(NASTY), "n": range(len(NASTY))}
    )
    raw = to_csv(frame, tokens=["token"])
    assert b"\r" not in raw and raw.count(b"\n") == len(NASTY) + 1  # no cell breaks a line
    back = pd.read_csv(io.BytesIO(raw), dtype={"token": str}, keep_default_na=False)
    assert [json.loads(t) for t in back["token"]] == [expected(t) for t in NASTY]
    assert back["value"][0] == 0.333333333
    again = pd.read_parquet(io.BytesIO(to_parquet(frame, {"export": "x"})))
    assert list(again["token"]) == [expected(t) for t in NASTY] and again["value"][0] == 1 / 3


def test_quoted_text_holds_nothing_that_moves_or_hides() -> None:
    for token in NASTY:
        shown = quoted(token)
        assert json.loads(shown) == expected(token)
        assert shown.isprintable() and not any(c in shown for c in "\u202e\u200d\r\n\x00")
        assert visible(token).isprintable()


def test_latex_escapes_every_special_and_keeps_structure() -> None:
    frame = pd.DataFrame({"token": pd.Series(NASTY, dtype=object), "r": np.linspace(-1, 1, len(NASTY))})
    frame.loc[2, "r"] = np.nan
    tex = to_latex(frame, caption="50 % of $x_1$ & more", label="t", comment="hash")
    body = tex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(NASTY) and all(
        row.endswith(r"\\") and len(re.findall(r"(?<!\\)&", row)) == 1 for row in body
    )
    assert "{{--}}" in body[2] and "NaN" in body[0]
    assert latex("a → b ≥ 2") == r"a $\rightarrow$ b $\geq$ 2"
    assert tex.isascii() or all(ord(c) < 256 for c in tex)
    assert r"50 \% of \$x\_1\$ \& more" in tex and "S[table-format=-1.3]" in tex
    assert latex("\\{") == r"\textbackslash{}\{" and latex(" a--b ") == r"\textvisiblespace{}a-{}-b\textvisiblespace{}"
    for token in NASTY:  # braces balance once escaped ones are taken out
        plain = re.sub(r"\\[{}]", "", latex(token))
        assert plain.count("{") == plain.count("}")


def test_missing_numbers_are_empty_never_zero() -> None:
    raw = to_csv(pd.DataFrame({"r": [np.nan, 0.0], "label": [None, "NaN"]})).decode()
    assert raw == "r,label\n,\n0,NaN\n"


def test_bundle_is_complete_and_byte_identical(workspace: Workspace) -> None:
    spec = read_spec("latent-contexts").model_copy(update={"options": {"latent": 5, "n": 4}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph is a warning
        one, two = bundle(spec, workspace), bundle(spec, workspace)
    assert one.zip == two.zip
    names = {
        "figure.pdf",
        "figure.svg",
        "figure.png",
        "data.csv",
        "data.parquet",
        "figure.tex",
        "table.tex",
        "refs.bib",
        "caption.txt",
        "provenance.json",
        "spec.json",
        "reproduce.sh",
    }
    assert set(one.files) == names
    with zipfile.ZipFile(io.BytesIO(one.zip)) as archive:
        assert {n.split("/")[1] for n in archive.namelist()} == names and archive.testzip() is None
    provenance = json.loads(one.files["provenance.json"])
    assert provenance["inputs"][0]["manifest_sha256"] == workspace.get("latents", "mini-pythia.L1R-8x").digest
    assert provenance["data_sha256"] in one.files["reproduce.sh"].decode() and provenance["n"]["contexts"] == 4
    assert str(workspace.root) not in " ".join(
        c.decode("latin-1") for n, c in one.files.items() if n.endswith(("json", "sh", "txt", "tex"))
    )
    for name in ("figure.pdf", "figure.svg", "figure.png", "table.tex", "refs.bib"):  # provenance inside each file
        assert provenance["data_sha256"].encode() in one.files[name], name
    assert bundle(spec.model_copy(update={"options": {"latent": 6, "n": 4}}), workspace).version != one.version


def test_another_process_gives_the_same_bytes(workspace: Workspace, tmp_path: Path) -> None:
    """Other hash seed, time zone, locale and matplotlib settings: the zip of the command line is that of the button, to
    the byte.
    """
    (tmp_path / "matplotlibrc").write_text("font.size: 31\npdf.fonttype: 3\nlines.linewidth: 9\n")
    here = bundle(
        FigureSpec(figure="latent_contexts", source="latents/mini-pythia.L1R-8x", options={"latent": 2}), workspace
    ).zip
    command = [
        "-m",
        "workbench",
        "export",
        "latent_contexts",
        "--source",
        "latents/mini-pythia.L1R-8x",
        "--set",
        "latent=2",
    ]
    zips = []
    copy = Workspace(
        Path(shutil.copytree(workspace.root, tmp_path / "ws"))
    )  # the command line leaves its exports there
    for seed, zone in (("1", "Asia/Tokyo"), ("2", "America/Lima")):
        out = tmp_path / f"{seed}.zip"
        env = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "TZ": zone,
            "LC_ALL": "C",
            "MATPLOTLIBRC": str(tmp_path),
            "PYTHONPATH": str(HERE.parents[1]),
        }
        done = subprocess.run(
            [sys.executable, *command, "--workspace", str(copy.root), "--out", str(out)], env=env, capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode()
        zips.append(out.read_bytes())
    assert zips[0] == zips[1] == here


def test_tokens_survive_every_file_of_a_bundle(workspace: Workspace) -> None:
    """The same hostile tokens, read back from CSV, Parquet, SVG and LaTeX; nothing invisible or moving is left in text
    a person reads.
    """
    made = bundle(FigureSpec(figure="latent_contexts", options={"latent": 5, "n": 6}), workspace)
    back = pd.read_csv(io.BytesIO(made.files["data.csv"]), dtype={"token": str}, keep_default_na=False)
    stored = pd.read_parquet(io.BytesIO(made.files["data.parquet"]))
    tokens = [json.loads(t) for t in back["token"]]
    assert tokens == stored["token"].tolist() and len(set(tokens)) > 20
    hostile = [t for t in set(tokens) if t != visible(t)]
    assert len(hostile) >= 3, "this latent's contexts hold no hostile token, so the test would see nothing"
    svg, tex = made.files["figure.svg"].decode(), made.files["table.tex"].decode()
    for text in (svg, tex, made.files["caption.txt"].decode()):
        assert not any(c in text for c in "\u202e\u200b\u2066\x00\x1b\r")
    assert "<script" not in svg and "onerror=" not in re.sub(r">[^<]*<", "><", svg)
    xml.etree.ElementTree.fromstring(svg)
    assert b"/JavaScript" not in made.files["figure.pdf"] and b"/URI" not in made.files["figure.pdf"]


def test_data_of_a_bundle_are_the_records(workspace: Workspace) -> None:
    from workbench.results.records import LatentRecords

    made = bundle(FigureSpec(figure="latent_contexts", options={"latent": 3, "n": 3}), workspace)
    frame = pd.read_csv(io.BytesIO(made.files["data.csv"]), dtype={"token": str}, keep_default_na=False)
    want = LatentRecords.open(workspace.get("latents", "mini-pythia.L1R-8x").path).contexts(3, "top", 3)
    assert [json.loads(t) for t in frame["token"]] == [t for c in want for t in c.tokens]
    np.testing.assert_allclose(frame["activation"], [a for c in want for a in c.acts], rtol=1e-6)


def test_pdf_fonts_are_truetype_and_svg_text_is_text(workspace: Workspace) -> None:
    files = bundle(FigureSpec(figure="latent_densities", style=Style(width="double", font_size=9)), workspace).files
    assert (
        b"/FontFile2" in files["figure.pdf"]
        and b"/Type3" not in files["figure.pdf"]
        and b"CreationDate" not in files["figure.pdf"]
    )
    svg = files["figure.svg"].decode()
    clips = re.findall(r'<clipPath id="([^"]+)"', svg)
    assert clips == [f"clip-{i + 1}" for i in range(len(clips))] and "url(#clip-1)" in svg  # no digests of places
    assert "share of tokens on which a latent fires</text>" in svg and 'width="486pt"' in svg
    assert files["figure.png"].startswith(b"\x89PNG")


def test_every_panel_kind_draws_without_a_warning() -> None:
    rng = np.random.default_rng(0)
    x = np.linspace(0.01, 1, 8)
    line = pd.DataFrame(
        {"x": np.tile(x, 2), "y": rng.random(16), "s": ["a_$"] * 8 + ["null\u202e"] * 8, "lo": 0.1, "hi": 0.9}
    )
    heat = pd.DataFrame({"a": ["L0R", "L1R"] * 2, "b": ["L0R", "L0R", "L1R", "L1R"], "v": [0.1, np.nan, 0.5, 1]})
    points = pd.DataFrame(
        {"what": ["neurons", "$\\frac$ 👩"], "r": [0.1, 0.7], "lo": [0.0, np.nan], "hi": [0.2, np.nan]}
    )
    strips = pd.DataFrame({"row": [0] * 4 + [1] * 2, "token": NASTY[:6], "v": [0, 1, 0.5, 0, 0, 0]})
    panels = [
        Panel(
            "line",
            line,
            x="x",
            y="y",
            series="s",
            low="lo",
            high="hi",
            log_x=True,
            log_y=True,
            dashed=("null\u202e",),
            title="$x_{",
        ),
        Panel("step", line, x="x", y="y", series="s", y_range=(0, 1)),
        Panel("heat", heat, x="b", y="a", value="v"),
        Panel("points", points, x="what", y="r", low="lo", high="hi"),
        Panel("strips", strips, x="token", y="row", value="v"),
    ]
    data = FigureData(panels, "c", points, {"n": 1}, [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for style in (Style(), Style(width="double", palette="greys")):
            out = render(data, style)
            assert all(len(v) > 1000 for v in out.values())
    assert list(data.data["panel"].unique()) == ["$x_{", "1", "2", "3", "4"]


def test_bibtex_entries_parse_and_name_their_paper() -> None:
    text = bibtex(tuple(ENTRIES), comment="hash")
    assert len(re.findall(r"^@\w+\{[\w-]+,$", text, re.M)) == len(ENTRIES) and text.count("{") == text.count("}")
    assert "2410.06672" in bibtex(["universality"]) and "@misc{workbench," in bibtex([])
    with pytest.raises(UsageError, match="did you mean 'mamba'"):
        bibtex(["mambas"])


def test_bad_specs_say_what_is_wrong(tmp_path: Path, workspace: Workspace) -> None:
    with pytest.raises(MissingError, match="did you mean 'latent-contexts'"):
        read_spec("latent-context")
    (tmp_path / "bad.toml").write_text('figure = "latent_contexts"\nstlye = {}')
    with pytest.raises(ConfigError, match="did you mean 'style'"):
        read_spec(tmp_path / "bad.toml")
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(ConfigError, match="not a list"):
        read_spec(tmp_path / "bad.json")
    with pytest.raises(UsageError, match="did you mean 'latent_contexts'"):
        bundle(FigureSpec(figure="latent_context"), workspace)
    with pytest.raises(ConfigError, match=r"unknown key 'latents'.*'latent'"):
        bundle(FigureSpec(figure="latent_contexts", options={"latents": 1}), workspace)
    with pytest.raises(UsageError, match="must be 'latents/<id>'"):
        bundle(FigureSpec(figure="latent_contexts", source="latents/../../etc"), workspace)
    with pytest.raises(MissingError, match="workbench features"):
        bundle(FigureSpec(figure="latent_contexts"), Workspace(tmp_path / "empty"))


def test_command_line_writes_reuses_and_compares(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "b.zip"
    command = ["export", "latent-contexts", "--set", "latent=2", "--workspace", str(workspace.root), "--json"]
    runner = CliRunner()
    first = runner.invoke(app, [*command, "--out", str(out)])
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    assert out.read_bytes() == (Path(told["path"]) / f"{Path(told['path']).name.replace('.', '__')}.zip").read_bytes()
    again = runner.invoke(app, [*command, "--expect", told["data_sha256"]])
    assert again.exit_code == 0 and json.loads(again.stdout)["sha256"] == told["sha256"]
    wrong = runner.invoke(app, [*command, "--expect", "0" * 64])
    assert wrong.exit_code == 1 and "expected 000" in wrong.stderr
    assert len(workspace.items("exports")) == 1
    listed = json.loads(runner.invoke(app, ["export", "--list", "--json"]).stdout)
    assert {"latent_contexts", "latent_densities"} <= set(listed["figures"]) and listed["specs"][
        "latent-contexts"
    ] == "latent_contexts"
    assert runner.invoke(app, ["export", "--workspace", str(workspace.root)]).exit_code == 2


def test_figures_of_evolutions_and_circuits_are_built_from_their_tables(tmp_path: Path) -> None:
    results = synthetic("synthetic_results")
    ws = Workspace(tmp_path)
    vocab = synthetic().vocabulary()
    results.add_evolution(ws, "evo", vocab, "text")
    (ws.path("evolution", "evo") / "attribution.parquet").unlink()
    with pytest.raises(MissingError, match="attribution was not computed"):
        build(FigureSpec(figure="evolution_attribution"), ws)
    with pytest.raises(MissingError, match=r"emergence at 0\.9 was not computed"):
        build(FigureSpec(figure="evolution_emergence", options={"threshold": "0.9"}), ws)
    latents = ws.path("evolution", "evo") / "latents.parquet"
    table = pd.read_parquet(latents)
    table["emergence_0.5_step"] = pd.array(
        np.resize(np.load(latents.with_name("steps.npy")), len(table)), dtype="Int64"
    )
    table.loc[3, "emergence_0.5_step"] = pd.NA
    table.assign(alive=True, kind="token").to_parquet(latents)
    row = {
        "mode": "destroy",
        "ranking": "attribution",
        "metric": 1.0,
        "low": 0.5,
        "high": 1.5,
        "share": 1.0,
        "n": 16,
        "task": "induction",
        "step": 8,
    }
    pd.DataFrame([row | {"k": k} for k in (1, 2, 4)]).to_parquet(ws.path("evolution", "evo") / "attribution.parquet")
    for model, architecture in (("mini-pythia", "transformer"), ("mini-mamba", "mamba")):
        results.add_circuits(ws, model, architecture, vocab, "text")
    with pytest.raises(MissingError, match="evo follows one model"):
        build(FigureSpec(figure="evolution_architectures", source="evolution/evo"), ws)
    for name, kind in figure_kinds().items():
        if kind.source not in ("evolution", "circuits") or name == "evolution_architectures":
            continue
        for item in ws.items(kind.source):
            if (name, item.id) == ("circuit_taps", "mini-pythia.induction"):  # a Transformer has no convolution
                continue
            data = build(FigureSpec(figure=name, source=f"{kind.source}/{item.id}"), ws)
            assert (
                len(data.data)
                and len(data.table)
                and data.caption.endswith(".")
                and data.n
                and data.inputs[0].id == item.id
            ), name
    with pytest.raises(UsageError, match="did you mean 'mean_norm'"):
        build(FigureSpec(figure="evolution_phases", options={"quantities": ["mean_norms"]}), ws)
    with pytest.raises(UsageError, match="did you mean 'logit_diff'"):
        build(
            FigureSpec(
                figure="circuit_profile",
                source=f"circuits/{ws.items('circuits')[0].id}",
                options={"metric": "logit_dif"},
            ),
            ws,
        )
    assert read_spec("evolution_phases") == FigureSpec(figure="evolution_phases")


def test_a_caption_names_the_data_by_the_version_the_pages_show(workspace: Workspace) -> None:
    item = workspace.items("latents")[0]
    spec = FigureSpec(figure="latent_contexts", source=f"latents/{item.id}", options={"latent": 5})
    said = {}
    for caption, style in (("", {}), ("One", {}), ("Two!", {"width": "double"})):
        made = bundle(spec.model_copy(update={"caption": caption, "style": Style(**style)}), workspace)
        said[caption] = made.files["caption.txt"].decode()
        assert f"Data: latents/{item.id}@{item.version}. Figure {made.version}." in said[caption]
    assert "One. n: " in said["One"] and "Two! n: " in said["Two!"]


def test_a_figure_is_included_as_it_is(workspace: Workspace) -> None:
    made = bundle(read_spec("latent-contexts").model_copy(update={"options": {"latent": 5}}), workspace)
    tex = made.files["figure.tex"].decode()
    assert "\\includegraphics{figure.pdf}" in tex and tex.count("\\begin{figure") == tex.count("\\end{figure") == 1
    assert "@misc{workbench," in made.files["refs.bib"].decode()


def test_the_script_says_what_it_needs(workspace: Workspace, tmp_path: Path) -> None:
    made = bundle(read_spec("latent-contexts").model_copy(update={"options": {"latent": 5}}), workspace)
    (tmp_path / "reproduce.sh").write_bytes(made.files["reproduce.sh"])
    found = subprocess.run(
        ["sh", str(tmp_path / "reproduce.sh")],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 127 and "WORKBENCH=" in found.stderr and found.stderr.count("\n") == 1


def test_a_figure_that_no_page_holds_is_refused() -> None:
    frame = pd.DataFrame({"x": [f"a long name of row number {i} " * 3 for i in range(300)], "y": range(300)})
    made = FigureData([Panel("points", frame, "x", "y")], "", frame, {}, [])
    with pytest.raises(UsageError, match="inches tall"):
        render(made, Style(), formats=["png"])
