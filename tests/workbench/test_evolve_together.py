"""``workbench evolve`` by two processes: they train one crosscoder, that of a single process; then the first analyses
alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.sae.worlds import in_processes
from workbench import evolve
from workbench.analysis.evolution.recipe import EvolveRecipe, evolution_id, resolve_sources
from workbench.cli import app
from workbench.config import read_recipe
from workbench.results.evolution import Evolution
from workbench.workspace import Workspace

RECIPE = """
model = "mini-pythia"
revisions = ["step256", "step1664"]
expansion = 1
k = 8
tokens = 3000
n_seq = 80
ctx = 64
batch_size = 256
heldout_seqs = 32
loss_seqs = 0
ngram_seqs = 500
contexts = 0
prompts = 0
permutations = 5
attribution = "none"
[crosscoder]
dtype = "float64"
[parallel]
latents = {latents}
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("alone")
    (folder / "tiny.toml").write_text(RECIPE.format(latents=1))
    ws = Workspace(folder / "ws")
    id = evolve(ws, folder / "tiny.toml").id
    return id, load_file(ws.path("dictionaries", id) / "sae_weights.safetensors")


@pytest.mark.parametrize("latents", [1, 2])
def test_two_processes_follow_the_latents_of_one(
    tmp_path: Path, latents: int, alone: tuple[str, dict[str, torch.Tensor]]
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.format(latents=latents))

    def task(process_mesh: Any) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["evolve", str(recipe), "-w", str(tmp_path / "ws")])
        return done.exit_code, done.output

    (code, said), (other, nothing) = in_processes(2, task, tmp_path / "world")
    assert code == other == 0, said + nothing
    assert (
        f"over 2 sources by 2 processes (data {2 // latents} x latents {latents})" in said
        and said.count("analysing") == 1
    )
    assert nothing.strip() == ""
    id, want = alone
    ws = Workspace(tmp_path / "ws")
    made = Evolution.open(ws.get("evolution", id).path, verify=True)
    assert len(made) == 128 and len(made.sources) == 2
    got = load_file(ws.path("dictionaries", id) / "sae_weights.safetensors")
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")
    assert not (ws.path("dictionaries", id) / "checkpoints").exists()


def test_a_recipe_that_only_one_process_finds_stops_both(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.format(latents=1))

    def task(process_mesh: Any) -> tuple[int, str]:
        path = recipe if os.environ["RANK"] == "0" else tmp_path / "elsewhere.toml"
        done = CliRunner().invoke(app, ["evolve", str(path), "-w", str(tmp_path / "ws")])
        return done.exit_code, done.output

    (code, said), (other, why) = in_processes(2, task, tmp_path / "world")
    assert code == other == 1 and said.strip() == ""
    assert "process 1: error:" in why and "elsewhere.toml" in why
    sources = resolve_sources(read_recipe(EvolveRecipe, str(recipe)))
    ws = Workspace(tmp_path / "ws")
    assert not ws.complete("dictionaries", evolution_id(read_recipe(EvolveRecipe, str(recipe)), sources))
