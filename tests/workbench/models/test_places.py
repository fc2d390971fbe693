"""Models by reference: a workspace holds ids and digests; where a folder lies is the user's own setting."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import workbench
from sae.errors import MismatchError, MissingError, UsageError
from workbench.activations import HarvestRecipe, harvest
from workbench.cli import app
from workbench.config import data_dir
from workbench.models.load import find_folder
from workbench.models.pointers import by_id
from workbench.provenance import Input
from workbench.run import Run
from workbench.workspace import Workspace


def own_model(folder: Path, snapshot: str = "step9000") -> Path:
    """A local model folder with one set of weights."""
    source = data_dir() / "models" / "mini-pythia"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(source / name, folder / name)
    shutil.copyfile(source / snapshot / "model.safetensors", folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Path]:
    """A store, a dictionary and its records from a local model, in a workspace that is then moved, as the model is."""
    home = tmp_path_factory.mktemp("first")
    model = own_model(home / "models" / "mine")
    ws = Workspace(home / "ws")
    text = home / "text.txt"
    text.write_text("\n".join(f"def f{i}(self, x{i * i}):\n    return self.n{i * 7919 % 104729}" for i in range(400)))
    corpus = {"kind": "text", "paths": [str(text)], "split": "all"}
    sources = [{"model": str(model)}]
    recipe = {"id": "small", "hooks": ["L1R"], "n_seq": 16, "ctx": 24, "sources": sources, "corpus": corpus}
    harvest(HarvestRecipe.model_validate(recipe), ws)
    train = {"store": "small", "expansions": (1,), "ks": (4,), "batch_size": 128, "tokens": 512}
    workbench.train(ws, workbench.dictionaries.recipe.TrainRecipe(**train))
    workbench.features(ws, "mine.L1R-1x", tokens=300, contexts=2, window=8)
    workbench.circuits(ws, str(model), prompts=2, length=9, control="none")
    there = tmp_path_factory.mktemp("second")
    shutil.move(ws.root, there / "moved")
    shutil.move(model, there / "elsewhere")
    shutil.move(text, there / "text.txt")
    return Workspace(there / "moved"), there / "elsewhere"


def test_no_file_of_a_workspace_names_a_place(made: tuple[Workspace, Path]) -> None:
    ws, _ = made
    assert ws.get("dictionaries", "mine.L1R-1x").manifest.metadata["model_name"] == "mine"
    for path in ws.root.rglob("*"):
        if path.is_file():
            assert b"/first" not in path.read_bytes(), path


def test_a_moved_model_is_asked_for_once_by_name(made: tuple[Workspace, Path]) -> None:
    ws, model = made
    run = CliRunner()
    done = run.invoke(app, ["info", str(ws.root), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["latents"], "what needs no model is there"
    asked = run.invoke(app, ["evaluate", "mine.L1R-1x", "--sequences", "1", "-w", str(ws.root)])
    assert asked.exit_code == 1 and f"workbench models mine FOLDER --workspace {ws.root}" in asked.output
    other = own_model(ws.root.parent / "other", "step512")
    wrong = run.invoke(app, ["models", "mine", str(other), "-w", str(ws.root)])
    assert wrong.exit_code == 1 and "were made with" in wrong.output
    assert run.invoke(app, ["models", "mine", str(model), "-w", str(ws.root)]).exit_code == 0
    assert find_folder("mine") == model
    listed = json.loads(run.invoke(app, ["models", "-w", str(ws.root), "--json"]).stdout)["models"]
    assert {"id": "mine", "kind": "folder", "where": str(model)} in listed
    assert workbench.features(ws, "mine.L1R-1x", tokens=300, contexts=2, window=8).id == "mine.L1R-1x"
    assert run.invoke(app, ["models", "yours", str(model), "-w", str(ws.root)]).exit_code == 1


def test_other_weights_under_a_known_name_are_refused(tmp_path: Path) -> None:
    ws, folder = Workspace(tmp_path / "ws"), own_model(tmp_path / "mine")
    assert by_id(ws, str(folder)) == "mine" == by_id(ws, str(folder))
    shutil.copyfile(
        data_dir() / "models" / "mini-pythia" / "step512" / "model.safetensors", folder / "model.safetensors"
    )
    with pytest.raises(MismatchError, match="has weights"):
        find_folder("mine")
    old = Input(kind="models", id="mine@step9000", digest="0" * 64)
    with ws.create("latents", "made", inputs=[old]):
        pass
    with pytest.raises(
        MismatchError, match=r"models/mine .*weights: [0-9a-f]{12} there, [0-9a-f]{12} asked.*--replace"
    ):
        by_id(ws, str(folder))
    assert by_id(ws, str(folder), run=Run(replace=True)) == "mine" and find_folder("mine") == folder
    with pytest.raises(UsageError, match="called like the bundled model"):
        by_id(ws, str(own_model(tmp_path / "mini-pythia", "step512")))
    with pytest.raises(MissingError, match="holds no config"):
        by_id(ws, str(tmp_path))
    assert by_id(ws, "mini-mamba") == "mini-mamba" and by_id(ws, "some/hub-model") == "some/hub-model"
