"""`workbench circuits` end to end on hand-made models: files, numbers, reuse, and errors."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from sae.errors import MissingError
from tests.workbench.bridges import bridge, tiny
from tests.workbench.handmade import induction_transformer, storing_mamba
from tests.workbench.models.zoo import save
from workbench.analysis.circuits.run import make_circuits
from workbench.cli import app
from workbench.results.circuits import CircuitResult
from workbench.workspace import Workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("ws"))


def test_the_mamba_on_the_command_line(workspace, tmp_path) -> None:
    storing_mamba(1).save_pretrained(tmp_path / "by-hand")
    arguments = [
        "circuits",
        str(tmp_path / "by-hand"),
        "--workspace",
        str(workspace.root),
        "--prompts",
        "8",
        "--length",
        "12",
        "--json",
    ]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    document = json.loads(run.stdout)
    numbers = document["numbers"]
    assert document["id"] == "by-hand.induction" and document["metadata"]["architecture"] == "mamba"
    assert numbers["accuracy"]["value"] == 1.0 and numbers["accuracy"]["n"] == 8
    assert (numbers["write_peak"]["layer"], numbers["write_peak"]["offset"]) == (0, 1)
    assert numbers["write_peak"]["share"]["value"] > 0.999 and numbers["state_layers"]["layers"] == [0]
    assert (numbers["conv_peak"]["tap"], numbers["conv_peak"]["source_offset"]) == (1, 0)
    result = CircuitResult.open(workspace.get("circuits", "by-hand.induction").path)
    assert set(result.effects.analysis) == {
        "state_to_logit", "y_to_logit", "write_profile", "conv_profile", "channels", "activation", "ablation"
    }  # fmt: skip
    assert set(result.effects.path) == {"direct", "residual", "total", "first-order"}
    profile = result.select(analysis="write_profile", metric="logit_diff", layer=0).set_index("offset").effect
    assert profile.idxmin() == 1 and profile.drop(1).abs().max() < 1e-3
    assert result.array("profile").shape == (8, 1, len(profile)) and result.array("maps").shape == (8, 1, 12, 12)
    first = result.prompts[0]
    assert len(first["tokens"]) == 12 and first["correct"] and first["marks"]["B"] == first["marks"]["A"] + 1
    assert result.scores is None
    with pytest.raises(MissingError, match="profile"):
        result.array("profil")
    before = workspace.get("circuits", "by-hand.induction").version
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0 and json.loads(again.stdout)["version"] == before
    changed = CliRunner().invoke(app, [*arguments, "--seed", "1"])
    assert changed.exit_code == 1 and "seed: 0 there, 1 asked" in changed.stderr
    changed = CliRunner().invoke(app, [*arguments, "--seed", "1", "--replace"])
    assert json.loads(changed.stdout)["version"] != before


def test_the_transformer(workspace) -> None:
    item = make_circuits(workspace, "by-hand-t", model=bridge(induction_transformer()), n_prompts=8, length=13)
    numbers = item.manifest.numbers
    assert numbers["induction_heads"]["effect"] == [[1, 1]] and numbers["induction_heads"]["agree"]
    assert numbers["previous_token_heads"]["effect"] == [[0, 0]] and numbers["previous_token_heads"]["agree"]
    assert {k: numbers["read_peak"][k] for k in ("layer", "unit", "offset")} == {"layer": 1, "unit": 1, "offset": 0}
    result = CircuitResult.open(item.path)
    assert set(result.effects.receiver) == {"", "L1H1.k", "L1H1.v", "L1H1.q"}
    assert result.scores.value.between(0, 1).all() and result.array("maps").shape == (8, 2, 3, 13, 13)
    total = (
        result.select(analysis="activation", site="z", metric="logit_diff", layer=0, unit=0)
        .set_index("position")
        .effect
    )
    assert (
        np.isfinite(result.effects.effect).all() and total["B"] == total.min()
    )  # noising: the corrupted B is in L0H0's output after B


def test_a_text_task_counts_from_its_own_mark(workspace, tmp_path) -> None:
    from workbench.config import data_dir
    from workbench.models.tokenizer import read_tokenizer

    model = bridge(tiny("mamba", vocab_size=512))
    model.tokenizer = read_tokenizer(data_dir() / "tokenizer")
    item = make_circuits(workspace, "tiny", model=model, task="agreement", n_prompts=8, metrics=("prob",))
    assert item.manifest.metadata["focus"] == "subject" and item.manifest.metadata["metrics"] == ["logit_diff", "prob"]
    effects = CircuitResult.open(item.path).effects
    assert {"subject", "subject+1", "last"} <= set(effects.position) and "induction_heads" not in item.manifest.numbers


def test_the_untrained_snapshot_is_the_control(workspace, tmp_path) -> None:
    from safetensors.torch import save_file

    trained, untrained = storing_mamba(1), storing_mamba(1)
    untrained.backbone.layers[0].mixer.out_proj.weight.data.zero_()
    folder = tmp_path / "grown"
    trained.config.save_pretrained(folder)
    for name, model in (("step0", untrained), ("step8", trained)):
        (folder / name).mkdir()
        save_file(model.state_dict(), folder / name / "model.safetensors")
    item = make_circuits(workspace, str(folder), n_prompts=8, length=12)
    control = item.manifest.numbers["control"]
    assert control["revision"] == "step0" and control["exceeds"] and control["strongest_effect"]["value"] == 0
    assert control["excess"]["value"] == pytest.approx(
        -item.manifest.numbers["write_peak"]["effect"]["value"], rel=1e-4
    )
    start = make_circuits(workspace, str(folder), revision="step0", n_prompts=8, length=12)
    assert start.id == "grown@step0.induction" and "control" not in start.manifest.numbers
    assert start.manifest.numbers["state_layers"]["layers"] == []


def test_errors_are_one_line(workspace, tmp_path) -> None:
    save("recurrent_gemma", tmp_path / "rg")
    run = CliRunner().invoke(app, ["circuits", str(tmp_path / "rg"), "--workspace", str(workspace.root)])
    assert run.exit_code == 2 and "the states of RG-LRU are not shown" in run.output and "Traceback" not in run.output
    run = CliRunner().invoke(app, ["circuits", "mini-mamba", "--workspace", str(workspace.root), "--task", "inducton"])
    assert run.exit_code in (1, 2) and "induction" in run.output and "Traceback" not in run.output
    assert not workspace.complete("circuits", "rg.induction")


def test_a_hybrid_has_heads_states_and_lives_of_writes(workspace, tmp_path) -> None:
    """Gated delta nets beside attention that transformers computes: states and heads are analysed."""
    save("olmo_hybrid", tmp_path / "hybrid")
    arguments = [str(tmp_path / "hybrid"), "--workspace", str(workspace.root), "--prompts", "8", "--length", "12"]
    run = CliRunner().invoke(app, ["circuits", *arguments, "--json"])
    assert run.exit_code == 0, run.output
    about = json.loads(run.stdout)["metadata"]
    assert about["architecture"] == "hybrid" and about["recurrent_layers"]["0"] == "gated delta net"
    assert about["heads_left_out"] == {} and about["attention_layers"] == [3]
    result = CircuitResult.open(workspace.get("circuits", "hybrid.induction").path)
    assert set(result.select(analysis="write_profile").layer) == {0, 1, 2}
    lives = result.lifetimes
    assert set(lives.layer) == {0, 1, 2} and lives[lives.offset == 0].survival.sub(1).abs().max() < 1e-5
    assert set(result.select(analysis="head_to_logit").layer) == {3}
    assert result.array("maps").shape == (8, 1, 6, 12, 12) and result.array("state_maps").shape == (8, 3, 12, 12)
