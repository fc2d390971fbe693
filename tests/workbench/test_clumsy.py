"""What a clumsy user types: one line that quotes the value and says what to do, the right exit code,
never a traceback.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from sae.errors import UsageError
from tests.ui import synthetic
from workbench.cli import app
from workbench.cli.common import errors_as_lines
from workbench.workspace import Workspace, new_id

GOLDEN = Path(__file__).resolve().parents[1] / "sae" / "golden"
HARVEST = 'id = "{id}"\nhooks = ["*R"]\nn_seq = {n}\nctx = 128\n[[sources]]\nmodel = "mini-pythia"\n'


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return synthetic.make_workspace(tmp_path_factory.mktemp("clumsy") / "ws", latents=32)


def typed(*args: Any) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args])


def told(result: Result, code: int, *words: str) -> None:
    """One error line with these words, and nothing of Python in it."""
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in result.output, result.output
    assert all(w in lines[0] for w in words), lines[0]


@pytest.mark.parametrize(
    "args, code, words",
    [
        (["features", "mini-pythia.L1R-8"], 1, ["'mini-pythia.L1R-8'", "did you mean 'mini-pythia.L1R-8x'"]),
        (["features", ".."], 1, ["'..'", "neither"]),
        (["features", "a__b"], 1, ["'a__b'"]),
        (["compare", "mini-pythia.L1R-8x", "mini-pythia.L1R-8x"], 2, ["same dictionaries", "Name two"]),
        (
            ["map", "mini-pythia.L2R-8x", "mini-mamba.L2R-8x", "--no-layout"],
            2,
            ["different spaces", "models", "workbench compare"],
        ),
        (["explain", "mini-pythia.L1R-8x", "--latents", "1,2"], 2, ["--latents", "--llm"]),
        (
            ["explain", "mini-pythia.L1R-8x", "--llm", "x", "--endpoint", "notaurl"],
            2,
            ["'notaurl'", "http://127.0.0.1"],
        ),
        (["explain", "mini-pythia.L1R-8x", "--llm", "x", "--latents", "1,x"], 2, ["'1,x'", "3,17,40"]),
        (["explain", "mini-pythia.L1R-8x", "--store", "nope"], 1, ["stores/nope"]),
        (["train", "mini-harvest"], 2, ["mini-harvest.toml", "`workbench harvest mini-harvest`"]),
        (["harvest", "mini-train"], 2, ["`workbench train mini-train`"]),
        (["pretrain", "mini-evolve"], 2, ["`workbench evolve mini-evolve`"]),
        (["train", "mini-trian"], 1, ["did you mean 'mini-train'"]),
        (
            ["evolve", "mini-pythia-s1"],
            2,
            ["at least two sources", "mini-pythia-s1"],
        ),  # a bundled model and a pre-training recipe of one name
        (["evolve", "mini-evolv"], 1, ["did you mean 'mini-evolve'", "model"]),
        (["circuits", "mini-pythia", "--control", "step98"], 2, ["'step98'", "did you mean 'step9"]),
        (["circuits", "mini-pythia", "--task", "nope"], 1, ["'nope'", "ioi"]),
        (["import", GOLDEN / "saelens-topk", "--library", "saelense"], 2, ["did you mean 'saelens'"]),
        (["import", GOLDEN / "saelens-topk", "--id", "a__b"], 2, ["'a__b'", "comparison"]),
        (["import", GOLDEN / "saelens-topk", "--store", "nope"], 1, ["stores/nope"]),
        (
            ["export", "latent_contexts", "--source", "latents/mini-pythia.L1R-8x", "--set", "latent"],
            2,
            ["'latent'", "key=value"],
        ),
        (["graph", ""], 2, ["prompt is empty"]),
    ],
)
def test_one_line(ws: Workspace, args: list[Any], code: int, words: list[str]) -> None:
    result = typed(*args, "-w", ws.root)
    told(result, code, *words)
    assert "part" not in result.stderr  # no progress bar before anything began


def test_places_that_are_no_workspace(ws: Workspace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    told(typed("info", tmp_path / "file"), 1, "a file", "folder")
    told(typed("info", tmp_path), 1, "not a workspace", "workspace.json")
    told(typed("info", ws.root / "dictionaries"), 1, "not a workspace")
    told(typed("info", tmp_path / "nowhere"), 1, "workbench demo")
    assert typed("info", Workspace(tmp_path / "new").root).exit_code == 0
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "read-only").mkdir(mode=0o555)
    told(
        typed("import", GOLDEN / "saelens-topk", "-w", tmp_path / "read-only" / "ws"),
        1,
        "cannot write",
        "Choose a folder",
    )


def test_the_version_and_every_help_with_an_example() -> None:
    from workbench.cli import VERBS
    from workbench.version import __version__

    assert typed("--version").stdout.strip() == f"workbench {__version__}"
    for verb in sorted(set(VERBS) - {"demo", "ui"}):
        shown = typed(verb, "--help")
        assert shown.exit_code == 0 and "Example" in shown.stdout, verb


def test_an_empty_workspace_names_the_command(tmp_path: Path) -> None:
    told(typed("train", "mini-train", "-w", tmp_path), 1, "stores/demo", "`workbench demo --no-ui`")
    told(typed("graph", "x", "-d", "nope", "-w", tmp_path), 1, "dictionaries/nope", "`workbench train RECIPE`")
    told(typed("export", "mppc-distribution", "-w", tmp_path), 1, "`workbench compare A B")


def test_a_place_one_may_not_write_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as end, errors_as_lines(debug=False):
        raise PermissionError(errno.EACCES, "Permission denied", "ws/dictionaries/x")
    assert end.value.exit_code == 1
    assert "error: ws/dictionaries/x: Permission denied. Choose a place" in capsys.readouterr().err


def test_ids_that_would_not_be_found_again(ws: Workspace, tmp_path: Path) -> None:
    for id, words in (("a__b", "comparison"), ("../escape", "not an id")):
        recipe = tmp_path / "r.toml"
        recipe.write_text(HARVEST.format(id=id, n=16))
        told(typed("harvest", recipe, "-w", ws.root), 2, repr(id), words)
    assert not list(ws.root.glob("**/escape*")) and not (ws.root / "stores").exists()
    with pytest.raises(UsageError, match="'__' joins"):
        new_id("a__b")


def test_more_than_the_machine_has_is_one_line(ws: Workspace, tmp_path: Path) -> None:
    recipe = tmp_path / "huge.toml"
    recipe.write_text(HARVEST.format(id="huge", n=10**13))
    told(typed("harvest", recipe, "-w", ws.root), 1, "not enough memory", "nable to allocate", "workbench plan")
    for ask in (lambda: np.zeros(2**50), lambda: torch.zeros(2**50)):
        with pytest.raises(typer.Exit) as end, errors_as_lines(debug=False):
            ask()
        assert end.value.exit_code == 1
    with pytest.raises(RuntimeError, match="something else"), errors_as_lines(debug=False):
        raise RuntimeError("something else")


def test_short_text_is_not_repeated(ws: Workspace, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short\n")
    told(
        typed("features", "mini-pythia.L1R-8x", "--corpus", tmp_path / "short.txt", "--replace", "-w", ws.root),
        2,
        "short.txt",
        "tokens",
        "--ctx 128",
    )


def test_a_bundle_goes_into_a_folder_too(ws: Workspace, tmp_path: Path) -> None:
    done = typed(
        "export",
        "latent_densities",
        "--source",
        "latents/mini-pythia.L1R-8x",
        "--out",
        tmp_path,
        "-w",
        ws.root,
        "--json",
    )
    assert done.exit_code == 0, done.output
    assert (
        Path(json.loads(done.stdout)["zip"]).parent == tmp_path
        and len(list(tmp_path.glob("latent_densities*.zip"))) == 1
    )


def changed(folder: Path, library: str, **cfg: Any) -> Path:
    out = Path(shutil.copytree(GOLDEN / library, folder))
    file = next(out.glob("*fig.json" if (out / "config.json").exists() else "cfg.json"))
    file.write_text(json.dumps({k: v for k, v in (json.loads(file.read_text()) | cfg).items() if v != "absent"}))
    return out


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def hostile(tmp: Path) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """name -> (folder, words its error must hold)."""
    topk = load_file(GOLDEN / "saelens-topk" / "sae_weights.safetensors")
    out = {
        "k is a word": (changed(tmp / "1", "saelens-topk", k="many"), ("k = 'many'",)),
        "no k": (changed(tmp / "2", "saelens-topk", k="absent"), ("k = None",)),
        "k out of range": (changed(tmp / "3", "saelens-topk", k=0), ("k = 0",)),
        "architecture is a list": (changed(tmp / "4", "saelens-topk", architecture=["topk"]), ("['topk']",)),
        "unknown architecture": (
            changed(tmp / "5", "saelens-topk", architecture="temporal"),
            ("'temporal'", "jumprelu"),
        ),
        "metadata is a list": (changed(tmp / "6", "saelens-topk", metadata=[1]), ("metadata = [1]", "an object")),
        "widths contradict": (changed(tmp / "7", "saelens-topk", d_sae=99), ("(99, 6)", "(12, 6)")),
        "trainer is a number": (changed(tmp / "8", "dl-topk", trainer=3), ("trainer = 3", "an object")),
        "words for numbers": (changed(tmp / "9", "sparsify-sae", d_in="six"), ("six",)),
    }
    whole = changed(tmp / "10", "saelens-topk-plain")
    save_file({k: v.long() for k, v in topk.items()}, whole / "sae_weights.safetensors")
    flat = changed(tmp / "11", "saelens-topk")
    save_file(topk | {"W_enc": topk["W_enc"].flatten()}, flat / "sae_weights.safetensors")
    cut, twice = changed(tmp / "12", "saelens-topk"), changed(tmp / "13", "saelens-topk")
    data = (cut / "sae_weights.safetensors").read_bytes()
    (cut / "sae_weights.safetensors").write_bytes(data[:-100])
    length = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + length].decode().rstrip()
    header = header[:-1] + ', "b_dec": ' + json.dumps(json.loads(header)["b_dec"]) + "}"
    (twice / "sae_weights.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header.encode() + data[8 + length :]
    )
    evil, text, nothing = changed(tmp / "14", "dl-topk"), changed(tmp / "15", "dl-topk"), tmp / "16"
    torch.save({"encoder.weight": Runs()}, evil / "ae.pt")
    (text / "ae.pt").write_text("hello")
    nothing.mkdir()
    broken = changed(tmp / "17", "saelens-topk")
    (broken / "cfg.json").write_text('{"d_in": 6, "d_in": 7}')
    return out | {
        "integers": (whole, ("W_enc holds int64",)),
        "a flat matrix": (flat, ("(72,)",)),
        "cut short": (cut, ("not a whole safetensors file",)),
        "one key twice": (twice, ("duplicate key 'b_dec'",)),
        "a pickle that runs code": (evil, ("ae.pt is refused", "system")),
        "text for a pickle": (text, ("neither a torch archive nor a pickle",)),
        "nothing there": (nothing, ("found: nothing", "cfg.json")),
        "configuration twice": (broken, ("duplicate key 'd_in'", "Download it again")),
    }


def test_hostile_folders_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, (folder, words) in hostile(tmp_path).items():
        result = typed("import", folder, "-w", tmp_path / "ws")
        try:
            told(result, 1, *words)
        except AssertionError as e:
            raise AssertionError(name) from e
    assert not list(tmp_path.glob("**/ran")) and not Workspace(tmp_path / "ws").items("dictionaries")


def test_a_dictionary_that_does_not_say_where_it_belongs(tmp_path: Path) -> None:
    assert typed("import", GOLDEN / "saelens-topk", "--id", "bare", "-w", tmp_path).exit_code == 0
    told(typed("graph", "x", "-d", "bare", "-w", tmp_path), 2, "bare does not say its model", "--model")
    told(typed("graph", "x", "-w", tmp_path), 1, "no residual-stream SAEs of mini-pythia")
    told(typed("features", "bare", "-w", tmp_path), 2, "does not say its store", "--store", "--corpus")
    told(typed("evaluate", "bare", "-w", tmp_path), 2, "does not say its hook_name", "--hook")
    together = shutil.copytree(tmp_path / "dictionaries" / "bare", tmp_path / "dictionaries" / "both")
    manifest = json.loads((together / "manifest.json").read_text())
    manifest["metadata"]["sources"] = ["a", "b"]
    (together / "manifest.json").write_text(json.dumps(manifest))
    told(typed("features", "both", "-w", tmp_path), 2, "both reads 2 sources", "--store")
